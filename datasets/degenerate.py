"""Detection of tables that have no density: collinear columns, and rows on a surface."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnf.datasets.table import Array

MAX_CHECKED_ROWS = 100_000
UNBOUNDED_LIKELIHOOD = "the rows have no density, and the NLL falls without bound"

# Residual of a collinear column in units of its standard deviation. Values rounded to five digits
# leave 5e-6 of sums in the UCI tables; the smallest of a column that is not collinear is 2e-4.
MAX_RESIDUAL = 3e-5
MIN_COEFFICIENT = 1e-4  # of a standardised column that is part of a combination

MAX_SURFACE_COLUMNS = 5  # in more dimensions neighbours are too far away
MIN_SURFACE_ROWS = 300
MAX_SURFACE_ROWS = 20_000
QUERY_ROWS = 200  # rows whose neighbours are found
MIN_DISTINCT_SHARE = 0.9  # of a column's values; rounded values would lie on lines
# Thickness over width of the neighbours of a row, 90 % quantile over the rows. Measured on 1000
# rows: 0.007 on a circle, 0.004 on a parabola, 0.06 on a sphere; 0.7 to 0.8 on the toys, 0.5 for
# five normal columns. No false alarm in 388 trials: toys, heavy tails, clusters, UCI tables.
MAX_THINNESS = 0.08
NEIGHBOUR_FACTOR = 4  # between the numbers of neighbours that are compared
# Factor by which more neighbours on a surface are thicker; those of a thin cloud are not.
MIN_THICKENING = 1.5


@dataclass(frozen=True)
class Degeneracy:
    """A reason why rows have no density.

    Attributes:
        why: Explanation, a sentence.
        advice: Remedy, a sentence.
        column: Redundant column; empty where no single one is to be left out.
    """

    why: str
    advice: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.why}. {self.advice}"


def degeneracies(values: Array, names: Sequence[str]) -> list[Degeneracy]:
    """Find reasons why rows of real numbers (rows, columns) have no density.

    Constant columns, which are not modelled, and rows after the first 100,000 are ignored.

    Example:
        >>> a, b = np.random.default_rng(0).normal(size=(2, 50))
        >>> [each.column for each in degeneracies(np.stack([a, b, a - b], 1), ["a", "b", "c"])]
        ['c']
    """
    varying: list[int] = np.flatnonzero(np.ptp(values, 0) > 0).tolist()
    values, names = values[:MAX_CHECKED_ROWS, varying], [names[i] for i in varying]
    rows, columns = values.shape
    if columns < 2:
        return []
    if rows <= columns:
        few = f"{rows} training rows of {columns} columns lie on a plane"
        return [Degeneracy(f"{few}: {UNBOUNDED_LIKELIHOOD}", "Add rows, or leave out columns")]
    combinations = collinear_columns(values)
    found = []
    for i, combined in combinations.items():
        others = ", ".join(repr(names[j]) for j in combined)
        why = f"column {names[i]!r} is a linear combination of {others}: {UNBOUNDED_LIKELIHOOD}"
        found.append(Degeneracy(why, "Leave it out", names[i]))
    independent = [i for i in range(columns) if i not in combinations]
    if on_surface(values[:, independent]):
        curved = ", ".join(repr(names[i]) for i in independent)
        why = f"columns {curved} seem to lie on a curve or a curved surface: {UNBOUNDED_LIKELIHOOD}"
        advice = "Model coordinates along it, such as an angle, or leave a column out"
        found.append(Degeneracy(why, advice))
    return found


def collinear_columns(values: Array) -> dict[int, tuple[int, ...]]:
    """Find the columns of rows (n, columns) that are linear combinations of columns before them.

    None may be constant. Each is given by its index, with the indices of those that it combines.

    Example:
        >>> a, b = np.random.default_rng(0).normal(size=(2, 50))
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


def on_surface(values: Array) -> bool:
    """Return whether all rows seem to lie on a smooth curve or surface, where they have no density.

    The nearest neighbours of a row on a surface are nearly as flat as its tangent, and flatter the
    nearer they are: their thickness is the square of their width. Near neighbours of rows with a
    density are as thick as they are wide. No column may be a linear combination of others; the
    answer is False for few rows, one column, more than five columns, and rounded values.

    Example:
        >>> angle = np.random.default_rng(0).uniform(-3, 3, 1000)
        >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        >>> on_surface(circle), on_surface(np.stack([np.cos(angle), angle[::-1]], axis=1))
        (True, False)
    """
    from scipy.spatial import KDTree  # here, since it takes long to import

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
    return np.asarray(extents[:, -1] / extents[:, 0])
