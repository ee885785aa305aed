"""Tasks: what a model of series sees, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cnf.series.clock import decode_clock
from cnf.series.series import Series

TaskKind = Literal["interp", "extrap", "filter"]


@dataclass(frozen=True)
class Task:
    """A rule for what a model sees of series, and which observations it is asked for.

    - `interp`: it sees all observations but those hidden, and is asked for all.
    - `extrap`: it sees those before the cut but those hidden, and is asked for the rest.
    - `filter`: it is asked for each observation given those before it.

    Attributes:
        kind: The name of the task.
        cut: The time that `extrap` divides at, as the clock of the series counts.
        hide: Share of the entries that are hidden from what is seen, chosen anew by each seed.

    Raises:
        ValueError: There is no such task, `extrap` has no cut, another one has, or the share is
            not from 0 to below 1.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0.0, 1.0, 2.0], "x": 0.5})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> seen, wanted = Task("extrap", cut=1.5).split(series, seed=0)
        >>> seen.times.tolist(), wanted.times.tolist()
        ([0.0, 1.0], [2.0])
    """

    kind: TaskKind = "interp"
    cut: float | None = None
    hide: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            names = ", ".join(get_args(TaskKind))
            raise ValueError(f"Expected a task among {names}; got {self.kind!r}: choose one")
        if (self.kind == "extrap") != (self.cut is not None):
            raise ValueError(
                f"Expected a cut for the task extrap, and for no other; got {self.kind} with "
                f"{self.cut}: {'give one' if self.cut is None else 'leave it out'}"
            )
        if self.cut is not None and not np.isfinite(self.cut):
            raise ValueError(f"Expected a finite cut; got {self.cut}: correct it")
        if not 0 <= self.hide < 1:
            raise ValueError(
                f"Expected a share to hide from 0 to below 1; got {self.hide}: correct it"
            )

    def split(self, series: Series, seed: int) -> tuple[Series, Series]:
        """Return what is seen and what is wanted, two sets of the same series.

        Args:
            series: The series.
            seed: The seed of what is hidden.

        Raises:
            ValueError: A series has no observation before the cut, or none of them has one after
                it.
        """
        seen = wanted = series
        if self.cut is not None:
            seen, wanted = series.cut(self.cut)
            at = decode_clock(np.array([self.cut]), series.clock).iloc[0]
            at = f"{at:g}" if isinstance(at, float) else at
            counts = np.bincount(seen.owners, weights=seen.observed.any(1), minlength=len(series))
            if (empty := counts == 0).any():
                raise ValueError(
                    f"Expected an observation before the cut {at} in every series; got "
                    f"none in series {series.name(int(empty.argmax()))} ({empty.sum()} such "
                    "series): raise the cut, or leave them out"
                )
            if not wanted.observed.any():
                raise ValueError(
                    f"Expected observations from the cut {at} on; got none: lower the cut"
                )
        return (seen.hide(self.hide, seed)[0] if self.hide else seen), wanted
