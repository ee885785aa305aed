"""Detection of rows on a curve or a surface."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["on_surface"]

Array = NDArray[np.float64]

MAX_SURFACE_COLUMNS = 5  # in more dimensions neighbours are too far away
MIN_SURFACE_ROWS = 300
MAX_SURFACE_ROWS = 20_000
QUERY_ROWS = 200  # rows whose neighbours are found
MIN_DISTINCT_SHARE = 0.9  # of a column's values; rounded values would lie on lines
# Thickness over width of the neighbours of a row, 90 % quantile over the rows. Measured on 1000
# rows: 0.007 on a circle, 0.004 on a parabola, 0.06 on a sphere; 0.7 to 0.8 on the toys, 0.5 for
# five normal columns. No false alarm in 388 trials: toys, heavy tails, clusters, columns of the
# UCI tables.
MAX_THINNESS = 0.08
NEIGHBOUR_FACTOR = 4  # between the numbers of neighbours that are compared
# Factor by which more neighbours on a surface are thicker; those of a thin cloud are not.
MIN_THICKENING = 1.5


def on_surface(values: Array) -> bool:
    """Return whether all rows seem to lie on a smooth curve or surface, where they have no density.

    The nearest neighbours of a row on a surface are nearly as flat as its tangent, and flatter the
    nearer they are: their thickness is the square of their width. Near neighbours of rows with a
    density are as thick as they are wide.

    Args:
        values: Shape (rows, columns), no column a linear combination of others.

    Returns:
        True for a surface; False otherwise, or for few rows, one column, more than five columns, or
        rounded values.

    Example:
        >>> angle = np.random.default_rng(0).uniform(-3, 3, 1000)
        >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        >>> on_surface(circle), on_surface(np.stack([np.cos(angle), angle[::-1]], axis=1))
        (True, False)
    """
    rows, columns = values.shape
    if not 1 < columns <= MAX_SURFACE_COLUMNS or rows < MIN_SURFACE_ROWS:
        return False
    values = values[:: -(-rows // MAX_SURFACE_ROWS)]
    if any(len(np.unique(column)) < MIN_DISTINCT_SHARE * len(values) for column in values.T):
        return False
    values = np.unique(values, axis=0)
    white, _, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    queries = np.random.default_rng(0).permutation(len(white))[:QUERY_ROWS]
    count = 2 * columns + 2
    near = np.asarray(KDTree(white).query(white[queries], k=NEIGHBOUR_FACTOR * count)[1])
    fewer, more = (_thinness(white[near[:, :size]]) for size in (count, NEIGHBOUR_FACTOR * count))
    is_flat = np.quantile(fewer, 0.9) < MAX_THINNESS
    return bool(is_flat and np.median(more) > MIN_THICKENING * np.median(fewer))


def _thinness(clouds: Array) -> Array:
    """Return the smallest extent of clouds (n, points, columns) over the largest, shape (n,)."""
    extents = np.linalg.svd(clouds - clouds.mean(1, keepdims=True), compute_uv=False)
    thinness: Array = extents[:, -1] / extents[:, 0]
    return thinness
