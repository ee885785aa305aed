"""Detection of collinear columns."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["collinear_columns"]

# Residual of a collinear column in units of its standard deviation. Values rounded to five digits
# leave 5e-6 of sums in the UCI tables; the smallest of a column that is not collinear is 2e-4.
MAX_RESIDUAL = 3e-5
MIN_COEFFICIENT = 1e-4  # of a standardised column that is part of a combination


def collinear_columns(values: NDArray[np.float64]) -> dict[int, tuple[int, ...]]:
    """Find the columns that are linear combinations of columns before them.

    Rows with collinear columns have no density.

    Args:
        values: Shape (rows, columns), without constant columns.

    Returns:
        Index of each such column, from 0, with the indices of the columns that it combines.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2, 50))
        >>> collinear_columns(np.stack([a, b, 3 * a - b + 7], axis=1))
        {2: (0, 1)}
    """
    standard = (values - values.mean(0)) / values.std(0)
    remaining = list(range(standard.shape[1]))
    found: dict[int, tuple[int, ...]] = {}
    while True:
        triangle = np.linalg.qr(standard[:, remaining], mode="r") / np.sqrt(len(standard))
        residuals = np.zeros(len(remaining))  # zero for the columns beyond the number of rows
        residuals[: len(triangle)] = np.abs(np.diag(triangle))
        collinear = np.flatnonzero(residuals < MAX_RESIDUAL)
        if not len(collinear):
            return found
        first = int(collinear[0])
        coefficients = np.linalg.solve(triangle[:first, :first], triangle[:first, first])
        sources = np.flatnonzero(np.abs(coefficients) > MIN_COEFFICIENT)
        found[remaining[first]] = tuple(remaining[i] for i in sources.tolist())
        del remaining[first]
