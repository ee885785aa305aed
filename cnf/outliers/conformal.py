"""Split conformal inference: p-values and thresholds by the scores of rows that were held out."""

from __future__ import annotations

from math import floor, inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def conformal_p_values(scores: ArrayLike, calibration: ArrayLike) -> Array:
    """Return how rare scores as low as these are among those of normal rows.

        p(s) = (1 + #{calibration scores ≤ s}) / (1 + n)

    Where the n calibration rows had no part in the training and are exchangeable with a new normal
    row, its p-value is at most α with probability at most α, for every α, whatever the model. That
    is a statement before the calibration rows are drawn: p-values of several rows share them.
    Outliers among the calibration rows make p-values larger where they score lower than normal
    rows.

    Args:
        scores: Scores, larger for normal rows, shape (rows,).
        calibration: Scores of the calibration rows, shape (n,).

    Returns:
        Shape (rows,), between 1 / (1 + n) and 1.

    Raises:
        ValueError: A score is NaN.

    Source: Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world; Bates,
    Candès, Lei, Romano and Sesia (2023), Testing for outliers with conformal p-values.

    Example:
        >>> conformal_p_values([-9.0, 2.5], [1.0, 2.0, 3.0, 4.0]).tolist()
        [0.2, 0.6]
    """
    ordered, given = _ordered(calibration), _numbers(scores, "scores")
    below = np.searchsorted(ordered, given, side="right")
    return np.asarray((1 + below) / (1 + len(ordered)))


def conformal_threshold(calibration: ArrayLike, level: float) -> float:
    """Return the threshold that a new normal row scores below with at most a given probability.

    It is the ⌊level · (n + 1)⌋-th smallest of n calibration scores: a score is below it where its
    p-value is at most `level`. Where n + 1 < 1 / level no p-value is as small, and it is −inf.

    Args:
        calibration: Scores of the calibration rows, larger for normal ones, shape (n,).
        level: The probability, between 0 and 1.

    Raises:
        ValueError: A score is NaN.

    Example:
        >>> conformal_threshold([4.0, 3.0, 2.0, 1.0], 0.4)
        2.0
    """
    ordered = _ordered(calibration)
    place = floor(level * (len(ordered) + 1) + 1e-9)  # rounding aside
    return float(ordered[min(place, len(ordered)) - 1]) if place and len(ordered) else -inf


def _ordered(calibration: ArrayLike) -> Array:
    return np.sort(_numbers(calibration, "calibration scores"))


def _numbers(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, np.float64)
    if np.isnan(found).any():
        raise ValueError(f"Expected {name} that are numbers; got NaN: leave such rows out")
    return found
