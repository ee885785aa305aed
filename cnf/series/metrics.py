"""Errors of predictions of series."""

from __future__ import annotations

import numpy as np

from cnf.series.series import Array, Series


def column_scales(series: Series) -> Array:
    """Return the largest observation of each column, 1 where that is 0 or missing.

    Values are scaled to (x − min) / max, so that errors of a scaled column are errors over this.

    Source: Rubanova, Chen and Duvenaud (2019), https://arxiv.org/abs/1907.03907, whose code takes
    minimum and maximum over all series, those of the test included.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": 1, "time": [0, 1], "x": [1.0, 4.0], "y": [0.0, 0.0]})
        >>> column_scales(Series.from_frame(frame, id="id", time="time"))
        array([4., 1.])
    """
    largest = np.where(series.observed, series.values, -np.inf).max(0, initial=-np.inf)
    return np.where((largest == 0) | np.isinf(largest), 1.0, largest)


def series_errors(predicted: Array, wanted: Series, scales: Array) -> Array:
    """Return the mean squared error of each series, shape (n,), as it is published for PhysioNet.

    With the m_d observations x of column d of a series, and scales s,

        e = 1/D Σ_d 1/m_d Σ_t ((x̂_td − x_td) / s_d)².

    A column without observations counts as 0, so the error falls as more columns are empty; compare
    it with that of the baselines, and with `entry_error`.

    Args:
        predicted: The predictions, shape (N, D).
        wanted: The observations.
        scales: The scales of the columns, such as `column_scales`, shape (D,).

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1, 2], "time": [0, 1, 0], "x": [1.0, 3.0, 2.0]})
        >>> series = Series.from_frame(frame.assign(y=float("nan")), id="id", time="time")
        >>> series_errors(np.zeros((3, 2)), series, np.ones(2)).tolist()
        [2.5, 2.0]
    """
    squares = _squares(predicted, wanted, scales)
    filled = wanted.lengths > 0
    errors, starts = np.zeros(len(wanted)), wanted.offsets[:-1][filled]
    if len(starts):
        counts = np.add.reduceat(wanted.observed, starts, axis=0, dtype=np.float64)
        means = np.add.reduceat(squares, starts, axis=0) / np.maximum(counts, 1)
        errors[filled] = means.mean(1)
    return errors


def entry_error(predicted: Array, wanted: Series, scales: Array) -> float:
    """Return the mean squared error over all observed entries, such as those that were hidden.

    Arguments are those of `series_errors`; it is NaN where there is no entry.
    """
    count = int(wanted.observed.sum())
    return float(_squares(predicted, wanted, scales).sum() / count) if count else np.nan


def _squares(predicted: Array, wanted: Series, scales: Array) -> Array:
    """Return squared scaled errors, 0 where nothing was observed, shape (N, D)."""
    if predicted.shape != wanted.values.shape:
        raise ValueError(
            f"Expected predictions of shape {wanted.values.shape}; got {predicted.shape}: predict "
            "at the times of these series"
        )
    return np.where(wanted.observed, ((predicted - wanted.values) / scales) ** 2, 0.0)
