"""The interface of a kind of column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Identity, Layer

Array = NDArray[np.float64]


class Looks(NamedTuple):
    """The bounds and categories that a column's values look like."""

    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnKind:
    """A kind of column with its bounds and categories, and no limits unless a subclass has them.

    A new kind is a subclass, entered in `cnf.tables.kinds.KINDS`.

    Attributes:
        name: The column's name.
        kind: The kind's name in the registry.
        low: Lower bound, None for no bound.
        high: Upper bound, None for no bound.
        categories: The categories' names.
        bounds: The least and the most bounds that the kind has.
        category_counts: The least and the most categories that the kind has.
        discrete: Whether values have a probability mass rather than a density.
        on_line: Whether values are numbers with a density on the line. A column of such a kind is
            constant where it does not vary, and must be resolved by single precision.
        circular: Whether the modelled columns are angles.
    """

    name: str
    kind: str
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()

    bounds: ClassVar[tuple[int, int]] = (0, 0)
    category_counts: ClassVar[tuple[float, float]] = (0, 0)
    discrete: ClassVar[bool] = False
    on_line: ClassVar[bool] = False
    circular: ClassVar[bool] = False

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return the bounds and categories of values that look like this kind, None for others.

        Args:
            values: Shape (rows,).
            categories: The categories' names where values are their numbers, counted from 0.
        """
        return None

    def check(self) -> None:
        """Check the bounds and categories.

        Raises:
            ValueError: They are not those of the kind.
        """
        self._check_bounds()
        self._check_categories()

    def _check_bounds(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not all(isfinite(bound) for bound in bounds):
            raise self.refusal("finite bounds", f"{self.low} and {self.high}")
        least, most = self.bounds
        if not least <= len(bounds) <= most:
            exact = "both bounds" if least == 2 else "one bound"
            wanted = exact if least else f"at most {most} bounds"
            raise self.refusal(f"{wanted} for kind {self.kind}", str(len(bounds)))
        if self.high is not None and (self.low is None or not self.low < self.high):
            raise self.refusal("a lower bound below the upper one", f"{self.low}, {self.high}")

    def _check_categories(self) -> None:
        texts = all(isinstance(name, str) for name in self.categories)
        if not texts or len(set(self.categories)) < len(self.categories):
            raise self.refusal("distinct texts for categories", repr(list(self.categories))[:80])
        least, most = self.category_counts
        if not least <= len(self.categories) <= most:
            raise self.refusal(
                "at least 2 categories for kind categorical, and none for another",
                f"{len(self.categories)} for {self.kind}",
            )

    def refusal(self, wanted: str, got: str) -> ValueError:
        """Return the error of a column that is not as it must be."""
        return ValueError(f"Expected {wanted} in column {self.name!r}; got {got}")

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it."""
        return 1

    @property
    def whole(self) -> bool:
        """Whether tables have whole numbers in the column."""
        return False

    @property
    def numeric_categories(self) -> bool:
        """Whether the categories' names are numbers, which tables have in their place."""
        return bool(self.categories) and all(map(_is_number, self.categories))

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Return which values the column cannot have, shape (rows,)."""
        out = np.zeros(len(values), dtype=bool)
        if self.low is not None:
            out |= values < self.low
        if self.high is not None:
            out |= values > self.high
        return out

    def numbers(self, values: Array, categories: Sequence[str] | None) -> Array:
        """Return a table's values with categories as their numbers in this column.

        Args:
            values: Shape (rows,).
            categories: The texts that the values are numbers of, None where the table has numbers.

        Raises:
            ValueError: The table has text and the column has none, or a category is unknown.
        """
        if categories is not None:
            raise self.refusal(f"numbers ({self.describe()})", f"text, {categories[0]!r}")
        return values

    def tabled(self, values: Array) -> Array:
        """Return draws, shape (rows,), as a table has them.

        A flow computes in single precision, which rounds bounds.
        """
        return values if self.low is None else np.asarray(np.clip(values, self.low, self.high))

    def text(self, value: float) -> str:
        """Return a value for display."""
        return f"{value:.6g}"

    def values_text(self) -> str:
        """Return the values that the column can have, for display."""
        bounds = (("from", self.low), ("to", self.high))
        return " ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def describe(self, kind: bool = True) -> str:
        """Return the name, the kind if asked for, and the possible values, for display."""
        can_be = self.values_text()
        if not kind:
            return f"{self.name} {can_be}".strip()
        return f"{self.name}: {' '.join(part for part in (self.kind, can_be) if part)}"

    def continuous_layer(self) -> Layer:
        """Return the layer between the modelled columns and numbers with a density."""
        return Identity(self.width)

    def table_layer(self, values: Array) -> Layer:
        """Return the layer between numbers with a density and the table's column.

        Args:
            values: The training rows' values, shape (rows,).
        """
        return Identity(1)


def _is_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False
