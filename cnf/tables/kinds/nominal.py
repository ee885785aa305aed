"""Kinds of columns without an order: categories, and columns of one value."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Argmax, Constant, Layer
from cnf.tables.kinds.kind import Array, ColumnKind, Looks

MAX_SHOWN_CATEGORIES = 8  # in a description
MAX_LISTED_CATEGORIES = 10  # in an error


class CategoricalColumn(ColumnKind):
    """A column of one of `categories`, modelled by their numbers, counted from 0."""

    category_counts: ClassVar[tuple[float, float]] = (2, inf)
    discrete: ClassVar[bool] = True

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return the categories, where values are their numbers."""
        return Looks(categories=categories) if categories else None

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it, one less than the categories."""
        return len(self.categories) - 1

    @property
    def whole(self) -> bool:
        """Whether the categories' names are whole numbers."""
        return self.numeric_categories and all(float(name) % 1 == 0 for name in self.categories)

    def outside(self, values: Array) -> NDArray[np.bool_]:
        out = (values != np.floor(values)) | (values < 0) | (values >= len(self.categories))
        return np.asarray(out)

    def numbers(self, values: Array, categories: Sequence[str] | None) -> Array:
        if categories is None and not self.numeric_categories:
            return values
        names: Sequence[object] = self.categories
        if categories is None:  # the table has the categories' names as numbers
            names = [float(name) for name in self.categories]
            unique, codes = np.unique(values, return_inverse=True)
            distinct: Sequence[object] = unique.tolist()
        else:
            distinct, codes = categories, values.astype(np.int64)
        places = {name: place for place, name in enumerate(names)}
        found: Array = np.array([places.get(each, -1) for each in distinct], np.float64)[codes]
        if (found < 0).any():
            row = int(found.argmin())
            first = distinct[codes[row]]
            got = f"{first:g}" if isinstance(first, float) else repr(first)
            raise self.refusal(
                f"one of {', '.join(self.categories[:MAX_LISTED_CATEGORIES])}",
                f"{got} in row {row + 1} (counting from 1; {(found < 0).sum()} such rows)",
            )
        return found

    def tabled(self, values: Array) -> Array:
        """Return draws as a table has them: categories whose names are numbers as these."""
        if not self.numeric_categories:
            return values
        numeric: Array = np.array([float(name) for name in self.categories])
        return numeric[values.astype(np.int64)]

    def text(self, value: float) -> str:
        return self.categories[int(value)]

    def values_text(self) -> str:
        more = ", …" if len(self.categories) > MAX_SHOWN_CATEGORIES else ""
        return f"one of {', '.join(self.categories[:MAX_SHOWN_CATEGORIES])}{more}"

    def describe(self, kind: bool = True) -> str:
        """Return the name and the categories, which say the kind, for display."""
        return f"{self.name}{':' if kind else ''} {self.values_text()}"

    def table_layer(self, values: Array) -> Layer:
        """Return the map to categories, with noise by the shares of these in training rows.

        A category that does not occur there has the share of half a row.
        """
        counts = np.bincount(values.astype(np.int64), minlength=len(self.categories))
        shares: list[float] = ((counts + 0.5) / (counts + 0.5).sum()).tolist()
        return Argmax(shares)


class ConstantColumn(ColumnKind):
    """A column that is not modelled: draws have `low` in it, or its only category."""

    bounds: ClassVar[tuple[int, int]] = (1, 1)
    category_counts: ClassVar[tuple[float, float]] = (0, 1)

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return the only value."""
        if (values != values[0]).any():
            return None
        return Looks(float(values[0]), categories=categories[:1])

    @property
    def value(self) -> float:
        """The only value."""
        return self.low or 0.0

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it: none."""
        return 0

    @property
    def whole(self) -> bool:
        """Whether the value is a whole number."""
        return self.value % 1 == 0 and not self.categories

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Return False for all values, since none is modelled."""
        return np.zeros(len(values), dtype=bool)

    def numbers(self, values: Array, categories: Sequence[str] | None) -> Array:
        """Return a table's values, or the value in place of text."""
        if categories is None or not self.categories:
            return super().numbers(values, categories)
        return self.tabled(values)

    def tabled(self, values: Array) -> Array:
        """Return the value in place of draws."""
        return np.full(len(values), self.value)

    def values_text(self) -> str:
        return self.categories[0] if self.categories else f"{self.value:g}"

    def table_layer(self, values: Array) -> Layer:
        return Constant([self.value])
