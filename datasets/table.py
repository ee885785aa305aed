"""Tables of numbers with named columns, and their division into training and test rows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_SPLIT_ROWS = 10  # a tenth of fewer rows would be empty


@dataclass(frozen=True, eq=False)
class Table:
    """A table of real numbers and of codes of categories.

    Attributes:
        name: Name of the table.
        values: Float64 array of shape (rows, columns).
        columns: Names of the columns, distinct and not blank.
        dropped: Number of rows that were dropped because of missing values.
        categories: Texts of the codes 0, 1, … of each categorical column, by the column's name.

    Raises:
        ValueError: If the values have another shape or type, or names do not fit.

    Example:
        >>> Table("pairs", np.zeros((3, 2)), ("x", "y")).columns
        ('x', 'y')
    """

    name: str
    values: Array
    columns: tuple[str, ...]
    dropped: int = 0
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float64:
            got = f"{self.values.dtype} of shape {self.values.shape}"
            raise ValueError(
                f"Expected float64 values of shape (rows, columns); got {got}: convert."
            )
        if len(self.columns) != self.values.shape[1]:
            raise ValueError(
                f"Expected a name for each of {self.values.shape[1]} columns; "
                f"got {len(self.columns)} names: give one a column."
            )
        repeated = [name for name, count in Counter(self.columns).items() if count > 1]
        if repeated:
            raise ValueError(
                f"Expected distinct column names; got {repeated} repeated: rename them."
            )
        blank = [i for i, name in enumerate(self.columns, start=1) if not name.strip()]
        if blank:
            raise ValueError(
                f"Expected a name for every column; got blank names at columns {blank}: name them, "
                "or drop a row index that was saved with the table."
            )


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of training, validation and test rows, each part in random order."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


def split(rows: int, seed: int) -> Split:
    """Divide rows at random into 80 % training, 10 % validation and 10 % test, rounded down.

    Raises:
        ValueError: If there are fewer than ten rows, or the seed is negative.

    Example:
        >>> parts = split(25, seed=0)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (21, 2, 2)
    """
    if rows < MIN_SPLIT_ROWS:
        raise ValueError(
            f"Expected at least {MIN_SPLIT_ROWS} rows, to split them 80/10/10; got {rows}: add "
            "rows."
        )
    if seed < 0:
        raise ValueError(f"Expected a seed; got {seed}: give 0 or more.")
    order = np.random.default_rng(seed).permutation(rows)
    tenth = rows // 10
    return Split(train=order[2 * tenth :], validation=order[tenth : 2 * tenth], test=order[:tenth])


def closest(name: str, choices: Iterable[str]) -> list[str]:
    """Return up to three of the choices, the most similar to a misspelt name first.

    Example:
        >>> closest("Moon", ["circles", "moons", "wine", "rings"])
        ['moons', 'wine', 'rings']
    """
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.0)]
