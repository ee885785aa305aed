"""Rows that lie on a curve or a surface."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["on_surface"]

Array = NDArray[np.float64]

MOST_COLUMNS = 5  # in more, the neighbours of a row are too far from it to tell
FEWEST_ROWS = 300
MOST_ROWS = 20_000
LOOKED_AT = 200  # rows whose neighbours are looked at
DISTINCT = 0.9  # of a column's values; rounded ones lie on lines by themselves
# Of the neighbours' extent, what nine tenths of the rows have less of across a surface. Measured on
# 1000 rows: 0.007 on a circle, 0.004 on a parabola, 0.06 on a sphere; 0.7 to 0.8 on the toys, 0.5
# for five normal columns. No false alarm in 388 trials: toys, heavy tails, clusters, columns of
# the UCI's tables.
THIN = 0.08
ZOOM = 4  # times as many neighbours
BENT = 1.5  # by what a surface's neighbours then leave it more, at least; a thin cloud does not


def on_surface(values: Array) -> bool:
    """Whether all rows seem to lie on a smooth curve or surface, where they have no density.

    The nearest neighbours of a row on a surface are almost as flat as its tangent, and the more so
    the nearer they are: their extent across it is the square of that along it. Those of rows with a
    density are as thick as they are wide, once they are near enough.

    Args:
        values: Shape (rows, columns), none a linear combination of others.

    Returns:
        False too where it cannot be told: of few rows, one or many columns, or rounded values.

    Example:
        >>> angle = np.random.default_rng(0).uniform(-3, 3, 1000)
        >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        >>> on_surface(circle), on_surface(np.stack([np.cos(angle), angle[::-1]], axis=1))
        (True, False)
    """
    rows, columns = values.shape
    if not 1 < columns <= MOST_COLUMNS or rows < FEWEST_ROWS:
        return False
    values = values[:: -(-rows // MOST_ROWS)]
    if any(len(np.unique(column)) < DISTINCT * len(values) for column in values.T):
        return False
    values = np.unique(values, axis=0)
    white, _, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    asked = np.random.default_rng(0).permutation(len(white))[:LOOKED_AT]
    count = 2 * columns + 2
    near = np.asarray(KDTree(white).query(white[asked], k=ZOOM * count)[1])
    thin, wide = (_thinness(white[near[:, :size]]) for size in (count, ZOOM * count))
    return bool(np.quantile(thin, 0.9) < THIN and np.median(wide) > BENT * np.median(thin))


def _thinness(clouds: Array) -> Array:
    """The smallest extent of clouds (n, points, columns) over the largest, shape (n,)."""
    extents = np.linalg.svd(clouds - clouds.mean(1, keepdims=True), compute_uv=False)
    found: Array = extents[:, -1] / extents[:, 0]
    return found
