"""Kinds of columns without an order: categories, booleans, and columns of one value."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import ColumnType
from cnf.datasets.reading import drop_option
from cnf.layers import Argmax, Constant, Layer
from cnf.tables.kinds.column_values import ColumnValues, Looks
from cnf.tables.kinds.kind import UNKNOWN_CODE, ColumnKind, Unknown
from cnf.tables.kinds.lattice import Array

MAX_CATEGORIES = 1000
FEW_CATEGORIES = 100  # more than half as many as rows are names or ids
MAX_SHOWN_CATEGORIES = 8  # in a description
MAX_SHOWN_LETTERS = 40  # of a category
MAX_LISTED_CATEGORIES = 10  # in an error

BOOLEAN_TEXTS = ("false", "true")  # texts of 0 and 1


class CategoricalColumn(ColumnKind):
    """A column of one of `categories`, modelled by their numbers, counted from 0."""

    category_counts: ClassVar[tuple[float, float]] = (2, inf)
    discrete: ClassVar[bool] = True

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the categories, where values are their numbers.

        Raises:
            ValueError: There are more than 1000, or more than a hundred and half of the rows.
        """
        names = column.categories
        most = min(MAX_CATEGORIES, max(FEW_CATEGORIES, len(column.known) // 2))
        if names is not None and len(names) > most:
            unlike = " (all different: an id?)" if len(names) == len(column.known) else ""
            raise ValueError(
                f"Expected at most {most} categories in column {column.name!r}; got "
                f"{len(names)} in {len(column.known)} rows{unlike}: leave it out "
                f"({drop_option(column.name)}), or merge rare categories"
            )
        return Looks(categories=names) if names else None

    @property
    def names(self) -> tuple[str, ...]:
        """The categories' names, by number."""
        return self.categories

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it, one less than the categories."""
        return len(self.names) - 1

    @property
    def coded(self) -> bool:
        """Whether tables have codes of the categories: not where they have their names' numbers."""
        return not self._numeric or self.table_type.family in ("text", "category")

    @property
    def table_type(self) -> ColumnType:
        if self.type is not None and (self._numeric or self.type.family != "real"):
            return self.type
        if not self._numeric:
            return ColumnType("str")
        whole = all(float(name) % 1 == 0 for name in self.categories)
        return ColumnType("int64" if whole else "float64")

    @property
    def _numeric(self) -> bool:
        return all(map(_is_number, self.categories))

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        out = (numbers != np.floor(numbers)) | (numbers < 0) | (numbers >= len(self.names))
        return np.asarray(out)

    def numbers(self, column: ColumnValues, unknown: Unknown = "raise") -> Array:
        if column.categories is None and not self._numeric:
            if self.coded and column.type.family not in ("real", self.table_type.family):
                raise self.refusal(self._listed, f"{column.type.dtype}: {self.advice}")
            return column.values
        names: Sequence[object] = self.names
        gaps = np.isnan(column.values)
        if column.categories is None:  # the table has the categories' names as numbers
            names = [float(name) for name in self.categories]
            unique, codes = np.unique(column.values, return_inverse=True)
            distinct: Sequence[object] = unique.tolist()
        else:
            distinct, codes = column.categories, np.where(gaps, 0, column.values).astype(np.int64)
        places = {name: place for place, name in reversed([*enumerate(names)])}
        of_code = [places.get(self._name(each), UNKNOWN_CODE) for each in distinct]
        found = np.where(gaps, np.nan, np.array(of_code or [np.nan], np.float64)[codes])
        foreign = found == UNKNOWN_CODE
        if unknown == "raise" and foreign.any():
            row = int(foreign.argmax())
            first = distinct[codes[row]]
            got = f"{first:g}" if isinstance(first, float) else repr(first)
            raise self.refusal(
                self._listed,
                f"{got} in row {row + 1} (counting from 1; {foreign.sum()} such rows): "
                f"{self.advice}",
            )
        return found

    @property
    def _listed(self) -> str:
        return f"one of {_shown(self.names[:MAX_LISTED_CATEGORIES])}"

    def _name(self, text: object) -> object:
        """Return a category of a table by its name in the column."""
        return text

    def tabled(self, numbers: Array) -> Array:
        """Return draws as a table has them: categories whose names are numbers as these."""
        if self.coded:
            return numbers
        numeric: Array = np.array([*(float(name) for name in self.categories), np.nan])
        known = numbers >= 0  # not those of unknown categories, −1, or NaN
        return numeric[np.where(known, numbers, -1).astype(np.int64)]

    def text(self, number: float) -> str:
        return self.names[int(number)]

    def values_text(self) -> str:
        more = ", …" if len(self.names) > MAX_SHOWN_CATEGORIES else ""
        return f"one of {_shown(self.names[:MAX_SHOWN_CATEGORIES])}{more}"

    def describe(self, kind: bool = True) -> str:
        """Return the name and the categories, which say the kind, for display."""
        return f"{self.name}{':' if kind else ''} {self.values_text()}{self.gaps_text()}"

    def table_layer(self, numbers: Array) -> Layer:
        """Return the map to categories, with noise by the shares of these in training rows.

        A category that does not occur there has the share of half a row.
        """
        counts = np.bincount(numbers.astype(np.int64), minlength=len(self.names))
        shares: list[float] = ((counts + 0.5) / (counts + 0.5).sum()).tolist()
        return Argmax(shares)


class BooleanColumn(CategoricalColumn):
    """A column of 0 and 1 that is false or true in tables, modelled as two categories."""

    category_counts: ClassVar[tuple[float, float]] = (0, 0)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return no attributes for booleans."""
        return Looks() if column.type.family == "boolean" else None

    @property
    def names(self) -> tuple[str, ...]:
        return BOOLEAN_TEXTS

    @property
    def coded(self) -> bool:
        return False

    @property
    def _numeric(self) -> bool:
        return False

    @property
    def table_type(self) -> ColumnType:
        return self.type or ColumnType("bool")

    def _name(self, text: object) -> object:
        return str(text).lower()

    def tabled(self, numbers: Array) -> Array:
        return numbers

    def values_text(self) -> str:
        return ""

    def describe(self, kind: bool = True) -> str:
        return (f"{self.name}: boolean" if kind else self.name) + self.gaps_text()


class ConstantColumn(ColumnKind):
    """A column of one value, `low` or the category of that number, which is not modelled.

    Where gaps are a value, these are modelled.
    """

    bounds: ClassVar[tuple[int, int]] = (1, 1)
    category_counts: ClassVar[tuple[float, float]] = (0, inf)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the only value."""
        values = column.known
        if (values != values[0]).any():
            return None
        return Looks(float(values[0]), categories=column.categories or ())

    @property
    def value(self) -> float:
        """The only value."""
        return self.low or 0.0

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it: none."""
        return 0

    @property
    def table_type(self) -> ColumnType:
        if self.type is not None or not self.categories:
            whole = self.value % 1 == 0
            return self.type or ColumnType("int64" if whole else "float64")
        return ColumnType("str")

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        """Return False for all numbers, since none is modelled."""
        return np.zeros(len(numbers), dtype=bool)

    def numbers(self, column: ColumnValues, unknown: Unknown = "raise") -> Array:
        """Return the value in place of a table's, whatever that is."""
        return self.tabled(column.values)

    def tabled(self, numbers: Array) -> Array:
        """Return the value in place of draws, but of gaps where these are a value."""
        gaps = np.isnan(numbers) if self.gaps == "value" else False
        return np.where(gaps, np.nan, np.full(len(numbers), self.value))

    def text(self, number: float) -> str:
        return self.values_text()

    def values_text(self) -> str:
        return self.categories[int(self.value)] if self.categories else self.value_text(self.value)

    def table_layer(self, numbers: Array) -> Layer:
        return Constant([self.value])


def _shown(names: Sequence[str]) -> str:
    """Return names for display, in one line."""
    return ", ".join(" ".join(name.split())[:MAX_SHOWN_LETTERS] for name in names)


def _is_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False
