"""Trivial predictions of series, to compare models with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cnf.series.series import Array, Series, Whole

Baseline = Callable[[Series, Series, Array], Array]


def column_means(series: Series) -> Array:
    """Return the mean of all observations of each column, shape (D,); 0 without any.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1, 2], "time": [0, 1, 0], "x": [1.0, None, 4.0]})
        >>> column_means(Series.from_frame(frame, id="id", time="time"))
        array([2.5])
    """
    counts = series.observed.sum(0)
    return np.asarray(np.nansum(series.values, axis=0) / np.maximum(counts, 1))


def predict_training_mean(seen: Series, wanted: Series, means: Array) -> Array:
    """Return the training mean of each column for each row that is wanted.

    Args:
        seen: What is seen of the series.
        wanted: The rows that are asked for, of the same series.
        means: The training series' `column_means`, shape (D,).

    Returns:
        A prediction of each column, also of those that were not measured, shape (N, D).
    """
    return np.broadcast_to(means, wanted.values.shape)


def predict_own_mean(seen: Series, wanted: Series, means: Array) -> Array:
    """Return each series' own mean, or the training mean where it has no observation.

    Arguments and result are those of `predict_training_mean`.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1, 2], "time": [0, 1, 0], "x": [1.0, 3.0, None]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> predict_own_mean(series, series, means=np.array([5.0])).ravel().tolist()
        [2.0, 2.0, 5.0]
    """
    _check_same(seen, wanted)
    filled = seen.lengths > 0  # of which reduceat takes the rows
    starts = seen.offsets[:-1][filled]
    own = np.full((len(seen), len(seen.columns)), np.nan)
    if len(starts):
        counts = np.add.reduceat(seen.observed, starts, axis=0, dtype=np.float64)
        totals = np.add.reduceat(np.where(seen.observed, seen.values, 0.0), starts, axis=0)
        own[filled] = totals / np.where(counts > 0, counts, np.nan)
    return np.asarray(np.where(np.isnan(own), means, own)[wanted.owners])


def predict_last(seen: Series, wanted: Series, means: Array) -> Array:
    """Return the last value that was seen before each row that is wanted.

    Where a column was seen only later, it is the series' own mean, and where never, the training
    mean. Arguments and result are those of `predict_training_mean`.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0, 1, 2], "x": [1.0, 4.0, 9.0]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> predict_last(series, series, means=np.array([5.0])).ravel().round(2).tolist()
        [4.67, 1.0, 4.0]
    """
    predicted = predict_own_mean(seen, wanted, means)
    starts, counts = seen.offsets[wanted.owners], _rows_before(seen, wanted)
    for place in range(len(seen.columns)):
        rows = np.flatnonzero(seen.observed[:, place])
        if len(rows):
            last = rows[np.maximum(np.searchsorted(rows, counts) - 1, 0)]
            known = (last >= starts) & (last < counts)
            predicted[known, place] = seen.values[last[known], place]
    return predicted


def predict_linear(seen: Series, wanted: Series, means: Array) -> Array:
    """Return the linear interpolation of what was seen, at each row that is wanted.

    Before the first and behind the last observation it is constant, and where a column was never
    seen, it is the training mean. Arguments and result are those of `predict_training_mean`.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0, 1, 3], "x": [1.0, None, 4.0]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> predict_linear(series, series, means=np.array([5.0])).ravel().tolist()
        [1.0, 2.0, 4.0]
    """
    predicted = np.array(np.broadcast_to(means, wanted.values.shape))
    starts, ends = seen.offsets[wanted.owners], seen.offsets[wanted.owners + 1]
    counts = _rows_before(seen, wanted)
    for place in range(len(seen.columns)):
        rows = np.flatnonzero(seen.observed[:, place])
        if not len(rows):
            continue
        after = np.searchsorted(rows, counts)
        left, right = rows[np.maximum(after - 1, 0)], rows[np.minimum(after, len(rows) - 1)]
        before = (left >= starts) & (left < counts)
        behind = (right >= counts) & (right < ends)
        left, right = np.where(before, left, right), np.where(behind, right, left)
        gap = seen.times[right] - seen.times[left]
        share = (wanted.times - seen.times[left]) / np.where(gap > 0, gap, np.inf)
        values = seen.values[:, place]
        between = values[left] + share * (values[right] - values[left])
        predicted[:, place] = np.where(before | behind, between, predicted[:, place])
    return predicted


BASELINES: dict[str, Baseline] = {
    "training mean": predict_training_mean,
    "own mean": predict_own_mean,
    "last value": predict_last,
    "linear interpolation": predict_linear,
}
"""Predictions by name: functions of what is seen, what is wanted, and the training means."""


def _rows_before(seen: Series, wanted: Series) -> Whole:
    """Return how many rows of what is seen come before each wanted row, by series and time."""
    _check_same(seen, wanted)
    owners = np.concatenate([wanted.owners, seen.owners])
    times = np.concatenate([wanted.times, seen.times])
    is_seen = np.arange(len(times)) >= len(wanted.times)
    order = np.lexsort((is_seen, times, owners))  # wanted first at the same time
    counts = np.empty(len(times), np.int64)
    counts[order] = np.cumsum(is_seen[order])
    return counts[: len(wanted.times)]


def _check_same(seen: Series, wanted: Series) -> None:
    if len(seen) != len(wanted):
        raise ValueError(
            f"Expected the same series seen and wanted; got {len(seen)} and {len(wanted)}: take "
            "both from one Task.split, Series.cut or Series.hide"
        )
