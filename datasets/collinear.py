"""Columns that others determine."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["collinear_columns"]

# Of a column's deviation: what is left beside the others is rounding. To five digits that leaves
# 5e-6 of sums in the UCI's tables; the least of a column that only nearly is one is 2e-4.
EXACT = 3e-5
PART = 1e-4  # a column's least part, in deviations, in a combination that it is named for


def collinear_columns(values: NDArray[np.float64]) -> dict[int, tuple[int, ...]]:
    """Find the columns that are linear combinations of columns before them, and of which.

    Columns that are exactly collinear have no density, however many others they have one with.

    Args:
        values: Shape (rows, columns), each of which varies.

    Returns:
        For each such column, counted from 0, the columns that make it up.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2, 50))
        >>> collinear_columns(np.stack([a, b, 3 * a - b + 7], axis=1))
        {2: (0, 1)}
    """
    standard = (values - values.mean(0)) / values.std(0)
    kept = list(range(standard.shape[1]))
    found: dict[int, tuple[int, ...]] = {}
    while True:
        triangle = np.linalg.qr(standard[:, kept], mode="r") / np.sqrt(len(standard))
        left = np.zeros(len(kept))  # fewer rows than columns leave nothing of the later ones
        left[: len(triangle)] = np.abs(np.diag(triangle))
        small = np.flatnonzero(left < EXACT)
        if not len(small):
            return found
        last = int(small[0])
        parts = np.linalg.solve(triangle[:last, :last], triangle[:last, last])
        makers = np.flatnonzero(np.abs(parts) > PART)
        found[kept[last]] = tuple(kept[i] for i in makers.tolist())
        del kept[last]
