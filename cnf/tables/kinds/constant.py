"""Columns of one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Constant, Layer
from cnf.tables.kinds.kind import Array, ColumnKind, Looks


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
        return np.full(len(values), self.value)

    def tabled(self, values: Array) -> Array:
        """Return the value in place of draws."""
        return np.full(len(values), self.value)

    def values_text(self) -> str:
        """Return the value, for display."""
        return self.categories[0] if self.categories else f"{self.value:g}"

    def table_layer(self, values: Array) -> Layer:
        """Return the layer that inserts the value."""
        return Constant([self.value])
