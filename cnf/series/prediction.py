"""Predictions and scores of series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import ColumnType
from cnf.series.clock import decode_clock, encoded_times
from cnf.series.series import Series

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of n series at times, in the data's own units.

    Attributes:
        columns: Names of the D columns.
        ids: The ids of the series, shape (n,).
        times: The times, padded by repeating the last one, shape (n, T).
        lengths: The number of times of each series, shape (n,).
        mean: The means, shape (n, T, D).
        quantiles: Quantiles of observations, their noise included, shape (Q, n, T, D).
        levels: The quantiles' levels, shape (Q,).
        draws: Draws of the curves that observations scatter about, shape (K, n, T, D), if they were
            asked for.
        id_column: Name of the column of ids of the series.
        time_column: Name of the column of times.
        clock: What times count.
    """

    columns: tuple[str, ...]
    ids: NDArray[Any]
    times: Array
    lengths: NDArray[np.int64]
    mean: Array
    quantiles: Array
    levels: Array
    draws: Array | None = None
    id_column: str = "id"
    time_column: str = "time"
    clock: ColumnType = field(default_factory=ColumnType)

    def to_frame(self, id: str | None = None, time: str | None = None) -> Any:
        """Return a pandas table of ids, times, means and quantiles, without the padding.

        The columns of x are `x`, its mean, and `x q0.05` and the like, its quantiles. Times are
        dates where those of the series were.

        Args:
            id: Name of the column of ids; that of the series when None.
            time: Name of the column of times; that of the series when None.
        """
        import pandas as pd  # here, since it takes long to import

        kept = np.arange(self.times.shape[1]) < self.lengths[:, None]
        found: dict[str, Any] = {
            id or self.id_column: np.repeat(self.ids, self.lengths),
            time or self.time_column: decode_clock(self.times[kept], self.clock),
        }
        for d, name in enumerate(self.columns):
            found[name] = self.mean[kept][:, d]
            for level, values in zip(self.levels, self.quantiles, strict=True):
                found[f"{name} q{level:g}"] = values[kept][:, d]
        return pd.DataFrame(found)


@dataclass(frozen=True, eq=False)
class SeriesScores:
    """Log-densities of n series, in nats and in the data's own units.

    Attributes:
        log_prob: Log-density of each series, or a lower bound of it, shape (n,).
        stderr: Its standard error, 0 where it is exact, shape (n,).
    """

    log_prob: Array
    stderr: Array


def frame_names(series: Series) -> dict[str, Any]:
    """Return the names and the clock that predictions of series keep for their table."""
    names = ("id_column", "time_column", "clock")
    return {name: getattr(series, name) for name in names}


def check_draws(draws: int) -> None:
    """Raise a ValueError unless there is a draw."""
    if draws < 1:
        raise ValueError(f"Expected draws of at least 1; got {draws}: draw more")


def checked_levels(quantiles: Sequence[float]) -> Array:
    """Return levels of quantiles, shape (Q,); raise a ValueError unless they are in (0, 1)."""
    levels = np.asarray(quantiles, dtype=np.float64)
    if not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"Expected quantiles between 0 and 1; got {[*quantiles]}: correct them")
    return levels


def asked_times(times: Any, series: Series) -> tuple[Array, NDArray[np.int64]]:
    """Return the times asked of series, padded by the last, (n, T), and their numbers (n,).

    Args:
        times: Times of all series (T,), of each (n, T), or series of the same ids; dates, or text
            of such, are counted by the clock of the series.
        series: The series.

    Raises:
        ValueError: There is no time, a shape does not fit, or the ids are others.
    """
    n = len(series)
    if isinstance(times, Series):
        if not np.array_equal(times.ids, series.ids):
            raise ValueError(
                "Expected the series whose times are asked for to have the ids of the series that "
                "are seen, in their order; got others: choose the same series"
            )
        lengths = times.lengths
        longest = max(1, int(lengths.max(initial=0)))
        place = np.minimum(np.arange(longest), np.maximum(lengths - 1, 0)[:, None])
        place = np.minimum(times.offsets[:-1, None] + place, max(len(times.times) - 1, 0))
        if not len(times.times):
            raise ValueError("Expected times to predict at; got none: add some")
        return times.times[place], lengths
    found = encoded_times(times, series.clock)
    found = np.broadcast_to(found, (n, len(found))) if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != n or not found.shape[1]:
        raise ValueError(
            f"Expected times of shape (times,) or ({n}, times), with at least one; got "
            f"{np.shape(times)}: reshape"
        )
    return found, np.full(n, found.shape[1])
