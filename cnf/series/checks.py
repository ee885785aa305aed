"""Checks of series before a model is trained on them."""

from __future__ import annotations

import warnings

import numpy as np

from cnf.series.series import Series


def check_training(series: Series) -> None:
    """Check that a model can be trained on series.

    Series of one row, or of none, are accepted: they say something of the first state, or of the
    labels. A column that never changes is accepted with a warning, since its scale is a guess.

    Args:
        series: The training series.

    Raises:
        ValueError: There are no series, none has two observations at different times, or a column
            was never observed.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0, 1], "x": [1.0, 2.0], "y": float("nan")})
        >>> check_training(Series.from_frame(frame, id="id", time="time"))
        Traceback (most recent call last):
        ValueError: Expected observations in every column; got none in 'y': leave it out
    """
    if not len(series) or not series.observed.any():
        raise ValueError(
            f"Expected series with observations to train on; got {len(series)} series without any: "
            "pass others"
        )
    low = np.where(series.observed, series.values, np.inf).min(0)
    high = np.where(series.observed, series.values, -np.inf).max(0)
    if (never := low > high).any():
        raise ValueError(
            "Expected observations in every column; got none in "
            f"{series.columns[int(never.argmax())]!r}: leave it out"
        )
    if (constant := low == high).any():
        names = [name for name, flag in zip(series.columns, constant, strict=True) if flag]
        warnings.warn(
            f"Columns of one value are trained on: {', '.join(names[:10])}; leave them out to save "
            "time",
            stacklevel=2,
        )
    if series.lengths.max() < 2:
        raise ValueError(
            "Expected a series with rows at two times or more; got one row in each of "
            f"{len(series)} series, such as {series.name(0)}: check the column of ids"
        )


def check_apart(given: Series, wanted: Series) -> None:
    """Check that no observation is both given and wanted of the same series.

    Raises:
        ValueError: The ids differ, or an observation is in both.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0.0, 1.0], "x": [1.0, 2.0]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> check_apart(*series.cut(0.5))
    """
    if not np.array_equal(given.ids, wanted.ids):
        raise ValueError(
            "Expected given observations of the series that are scored, with their ids in their "
            "order; got other ids: choose the same series"
        )
    owners = np.concatenate([given.owners, wanted.owners])
    order = np.lexsort((np.concatenate([given.times, wanted.times]), owners))
    times = np.concatenate([given.times, wanted.times])[order]
    observed = np.concatenate([given.observed, wanted.observed])[order]
    same = (np.diff(times) == 0) & (np.diff(owners[order]) == 0)
    both = same[:, None] & observed[1:] & observed[:-1]
    if both.any():
        row, column = (int(each[0]) for each in both.nonzero())
        raise ValueError(
            "Expected given observations apart from those that are scored; got one of "
            f"{given.columns[column]} of series {given.name(int(owners[order][row]))} in both "
            f"({both.sum()} such): leave them out of one"
        )


def check_from(series: Series, cut: float) -> None:
    """Raise a ValueError for an observation before the cut of a task."""
    early = (series.times < cut) & series.observed.any(1)
    if early.any():
        row = int(early.argmax())
        raise ValueError(
            f"Expected observations from the task's cut, {cut:g}, on; got one at "
            f"{series.times[row]:g} in series {series.name(int(series.owners[row]))}: leave what "
            "comes before out, or give it"
        )
