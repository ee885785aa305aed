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
        on_line: Whether values are numbers with a density on the line: constant where they do not
            vary, and to be resolved by single precision.
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

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return the bounds and categories of values (rows,) of this kind, None for others.

        Values of columns with categories are the numbers of these.
        """
        return None

    def check(self) -> None:
        """Raise a ValueError unless the bounds and categories are those of the kind."""
        bounds = self.given_bounds
        if not all(isfinite(bound) for bound in bounds):
            raise self.refusal("finite bounds", f"{self.low} and {self.high}")
        least, most = self.bounds
        if not least <= len(bounds) <= most:
            exact = "both bounds" if least == 2 else "one bound"
            wanted = exact if least else f"at most {most} bounds"
            raise self.refusal(f"{wanted} for kind {self.kind}", str(len(bounds)))
        if self.high is not None and (self.low is None or not self.low < self.high):
            raise self.refusal("a lower bound below the upper one", f"{self.low}, {self.high}")
        texts = all(isinstance(name, str) for name in self.categories)
        if not texts or len(set(self.categories)) < len(self.categories):
            raise self.refusal("distinct texts for categories", repr(list(self.categories))[:80])
        fewest, largest = self.category_counts
        if not fewest <= len(self.categories) <= largest:
            wanted = f"at least {fewest:g}" if fewest else f"at most {largest:g}"
            wanted = f"{wanted} categories for kind {self.kind}"
            raise self.refusal(wanted, str(len(self.categories)))

    def refusal(self, wanted: str, got: str) -> ValueError:
        return ValueError(f"Expected {wanted} in column {self.name!r}; got {got}")

    @property
    def given_bounds(self) -> list[float]:
        """The bounds that are not None."""
        return [bound for bound in (self.low, self.high) if bound is not None]

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
        """Return a table's values (rows,) with categories as their numbers in this column.

        The table's values are numbers of the table's categories, None where it has numbers.

        Raises:
            ValueError: The table has text and the column has none, or a category is unknown.
        """
        if categories is not None:
            raise self.refusal(f"numbers ({self.describe()})", f"text, {categories[0]!r}")
        return values

    def tabled(self, values: Array) -> Array:
        """Return draws (rows,) as a table has them, within bounds that single precision rounds."""
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
        prefix = f"{self.name}: {self.kind}" if kind else self.name
        return f"{prefix} {self.values_text()}".strip()

    def continuous_layer(self) -> Layer:
        """Return the layer between the modelled columns and numbers with a density."""
        return Identity(self.width)

    def table_layer(self, values: Array) -> Layer:
        """Return the layer between numbers with a density and the column, of training rows."""
        return Identity(1)


def _is_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False
