"""Categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Argmax, Layer
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
        """Return which values are not the number of a category."""
        return np.asarray(
            (values != np.floor(values)) | (values < 0) | (values >= len(self.categories))
        )

    def numbers(self, values: Array, categories: Sequence[str] | None) -> Array:
        """Return a table's values as the categories' numbers in this column."""
        if categories is None:
            return self._numbers_of_numbers(values) if self.numeric_categories else values
        known = {name: place for place, name in enumerate(self.categories)}
        codes = values.astype(np.int64)
        places = np.array([known.get(name, -1) for name in categories])[codes]
        names = np.array(categories)[codes]
        self._check_known(places >= 0, lambda row: repr(str(names[row])))
        return np.asarray(places, np.float64)

    def _numbers_of_numbers(self, values: Array) -> Array:
        """Return the numbers of categories that the table has as numbers."""
        numeric = np.array([float(name) for name in self.categories])
        places = np.abs(values[:, None] - numeric).argmin(1)
        self._check_known(numeric[places] == values, lambda row: f"{values[row]:g}")
        return np.asarray(places, np.float64)

    def _check_known(self, known: NDArray[np.bool_], text: Callable[[int], str]) -> None:
        """Raise a ValueError with the text of the first row that has no known category."""
        if known.all():
            return
        row = int(known.argmin())
        raise self.refusal(
            f"one of {', '.join(self.categories[:MAX_LISTED_CATEGORIES])}",
            f"{text(row)} in row {row + 1} (counting from 1; {int((~known).sum())} such rows)",
        )

    def tabled(self, values: Array) -> Array:
        """Return draws as a table has them: categories whose names are numbers as these."""
        if not self.numeric_categories:
            return values
        numeric: Array = np.array([float(name) for name in self.categories])
        return numeric[values.astype(np.int64)]

    def text(self, value: float) -> str:
        """Return the name of a category."""
        return self.categories[int(value)]

    def values_text(self) -> str:
        """Return the first categories' names, for display."""
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
