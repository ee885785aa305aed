"""Tables of numbers with named columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import ColumnType

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """A table of real numbers and of codes of categories.

    Attributes:
        name: Name of the table.
        values: Float64 array of shape (rows, columns).
        columns: Names of the columns, distinct and not blank.
        dropped: Number of rows that were dropped because of missing values.
        categories: Texts of the codes 0, 1, … of each categorical column, by the column's name.
        types: Types of the columns that hold anything but float64 numbers, by the column's name.
        notes: Lines on how the table was read, where that is not the plain case.

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
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        check_distinct(self.columns)
        blank = [i for i, name in enumerate(self.columns, start=1) if not name.strip()]
        if blank:
            raise ValueError(
                f"Expected a name for every column; got blank names at columns {blank}: name them, "
                "or drop a row index that was saved with the table."
            )

    def select(self, names: Sequence[str]) -> Table:
        """Return the table of some columns, in their order.

        Example:
            >>> Table("pairs", np.array([[1.0, 2.0]]), ("x", "y")).select(["y"]).values.tolist()
            [[2.0]]
        """
        if tuple(names) == self.columns:
            return self
        values = self.values[:, [self.columns.index(name) for name in names]]
        return replace(
            self,
            values=values,
            columns=tuple(names),
            categories={name: self.categories[name] for name in names if name in self.categories},
            types={name: self.types[name] for name in names if name in self.types},
        )


def check_distinct(names: Iterable[str]) -> None:
    """Raise a ValueError where names of columns are repeated."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"Expected distinct column names; got {repeated} repeated: rename them.")


def closest(name: str, choices: Iterable[str]) -> list[str]:
    """Return up to three of the choices, the most similar to a misspelt name first.

    Example:
        >>> closest("Moon", ["circles", "moons", "wine", "rings"])
        ['moons', 'wine', 'rings']
    """
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.0)]
