"""The interface of a kind of column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import ColumnType
from cnf.datasets.reading import drop_option
from cnf.layers import Identity, Layer
from cnf.tables.dates import date_text, recount
from cnf.tables.kinds.column_values import Atoms, ColumnValues, Looks
from cnf.tables.kinds.lattice import Array, Lattice

Unknown = Literal["raise", "keep"]

Gaps = Literal["unknown", "value"]
GAPS: tuple[Gaps, ...] = ("unknown", "value")  # an unknown value, or one more value

UNKNOWN_CODE = -1.0  # of a category that a column does not have


@dataclass(frozen=True)
class ColumnKind:
    """A kind of column with its bounds and categories, and no limits unless a subclass has them.

    A new kind is a subclass, entered in `cnf.tables.kinds.KINDS`. A column's *values* are those of
    tables; its *numbers*, which `numbers` and `tabled` map them to and back, those of flows.

    Attributes:
        name: The column's name.
        kind: The kind's name in the registry.
        low: Lower bound of the values, None for no bound.
        high: Upper bound of the values, None for no bound.
        categories: The categories' names.
        step: The values are multiples of it, from `origin`; None where they are not.
        origin: The value that multiples of the step are counted from; None for `low`, or for 0.
        atoms: Values that occur with a mass beside a density, each with its share.
        type: The values' type in tables, None where it is unknown.
        gaps: The meaning of gaps, a name in `GAPS`.
        bounds: The least and the most bounds that the kind has.
        category_counts: The least and the most categories that the kind has.
        steps: The least and the most steps that the kind has.
        atom_counts: The least and the most atoms that the kind has.
        discrete: Whether values have a probability mass rather than a density.
        on_line: Whether values are numbers with a density on the line: constant where they do not
            vary, and to be resolved by single precision.
    """

    name: str
    kind: str
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    step: float | None = None
    origin: float | None = None
    atoms: Atoms = ()
    type: ColumnType | None = None
    gaps: Gaps = "unknown"

    bounds: ClassVar[tuple[int, int]] = (0, 0)
    category_counts: ClassVar[tuple[float, float]] = (0, 0)
    steps: ClassVar[tuple[int, int]] = (0, 0)
    atom_counts: ClassVar[tuple[float, float]] = (0, 0)
    discrete: ClassVar[bool] = False
    on_line: ClassVar[bool] = False

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the attributes of a column whose values look like this kind, None for others."""
        return None

    def check(self) -> None:
        """Raise a ValueError unless the attributes are those of the kind."""
        if self.gaps not in GAPS:
            raise self.refusal(f"gaps among {', '.join(GAPS)}", repr(self.gaps))
        self._check_numbers()
        texts = all(isinstance(name, str) for name in self.categories)
        if not texts or len(set(self.categories)) < len(self.categories):
            raise self.refusal("distinct texts for categories", repr(list(self.categories))[:80])
        for what, (least, most), count in (
            ("categories", self.category_counts, len(self.categories)),
            ("steps", self.steps, int(self.step is not None)),
            ("atoms", self.atom_counts, len(self.atoms)),
        ):
            if not least <= count <= most:
                wanted = f"at least {least:g}" if least else f"at most {most:g}"
                raise self.refusal(f"{wanted} {what} for kind {self.kind}", str(count))

    def _check_numbers(self) -> None:
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
        if self.step is not None and not (isfinite(self.step) and self.step > 0):
            raise self.refusal("a step above 0", f"{self.step}")
        if self.origin is not None and not isfinite(self.origin):
            raise self.refusal("a finite origin", f"{self.origin}")

    def refusal(self, wanted: str, got: str) -> ValueError:
        return ValueError(f"Expected {wanted} in column {self.name!r}; got {got}")

    @property
    def advice(self) -> str:
        """The remedy for values that the column cannot have."""
        return f"correct them, or leave the column out ({drop_option(self.name)})"

    @property
    def given_bounds(self) -> list[float]:
        """The bounds that are not None."""
        return [bound for bound in (self.low, self.high) if bound is not None]

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it."""
        return 1

    @property
    def table_type(self) -> ColumnType:
        """The type of the values in tables."""
        return self.type or ColumnType()

    @property
    def coded(self) -> bool:
        """Whether tables have codes of the categories in the column."""
        return bool(self.categories)

    @cached_property
    def lattice(self) -> Lattice | None:
        """The values that the column can have, where it has a step."""
        if self.step is None:
            return None
        return Lattice((self.low or 0.0) if self.origin is None else self.origin, self.step)

    def number(self, value: float) -> float:
        """Return the number of a value."""
        return value

    def nearest(self, numbers: Array) -> Array:
        """Return the numbers of a grid that are nearest to numbers (rows,), these without one."""
        return numbers

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        """Return which numbers the column cannot have, shape (rows,)."""
        out = np.zeros(len(numbers), dtype=bool)
        if self.low is not None:
            out |= numbers < self.number(self.low)
        if self.high is not None:
            out |= numbers > self.number(self.high)
        return out

    def numbers(self, column: ColumnValues, unknown: Unknown = "raise") -> Array:
        """Return the numbers (rows,) of a table's column: of categories, their places in this one.

        Dates and durations are counted as this column does; real numbers may be such counts, and
        numbers of categories. NaN stays NaN.

        Args:
            column: The table's column.
            unknown: Whether to `"raise"` an error for a category that this column does not have, or
                to `"keep"` it as −1.

        Raises:
            ValueError: The table has text, dates or durations and this column has none, or the
                other way round, or a category is unknown.
        """
        if column.categories is not None:
            text = repr(column.categories[0]) if column.categories else "none"
            raise self.refusal(f"numbers ({self.describe()})", f"text, {text}: {self.advice}")
        given, mine = column.type, self.table_type
        counted = given.unit or (mine.unit and given.family != "real")
        if counted and given.family != mine.family:
            wanted = f"{mine.family}s" if mine.unit else "numbers"
            got = f"{given.family}s" if given.unit else given.dtype
            raise self.refusal(f"{wanted} ({self.describe()})", f"{got}: {self.advice}")
        return recount(column.values, given, mine) if given.unit else column.values

    def tabled(self, numbers: Array) -> Array:
        """Return numbers (rows,) that were drawn as a table's values.

        They are rounded to the step or to whole numbers, and are within bounds, which single
        precision rounds.
        """
        if self.lattice is not None:
            return self.allowed(self.lattice.nearest(numbers))
        return self.allowed(numbers if self.table_type.family == "real" else np.rint(numbers))

    def allowed(self, values: Array) -> Array:
        """Return the nearest values within the bounds, and within those of the type."""
        limits = self.table_type.limits
        values = values if limits is None else np.clip(values, *limits)
        return values if self.low is None else np.clip(values, self.low, self.high)

    def text(self, number: float) -> str:
        """Return a number's value for display."""
        return self.value_text(number)

    def foreign_text(self, number: float) -> str:
        """Return a number that the column cannot have, as a value for display."""
        return f"{number:g}"

    def value_text(self, value: float) -> str:
        """Return a value for display: a date by its name."""
        if self.table_type.family == "date" and isfinite(value):
            return date_text(value, self.table_type)
        return f"{value:.6g}"

    def values_text(self) -> str:
        """Return the values that the column can have, for display."""
        bounds = (("from", self.low), ("to", self.high))
        given = [(word, bound) for word, bound in bounds if bound is not None]
        return " ".join(f"{word} {self.value_text(bound)}" for word, bound in given)

    def describe(self, kind: bool = True) -> str:
        """Return the name, the kind if asked for, and the possible values, for display."""
        prefix = f"{self.name}: {self.kind}" if kind else self.name
        return f"{prefix} {self.values_text()}".strip() + self.gaps_text()

    def gaps_text(self) -> str:
        """Return that gaps are a value, for display."""
        return " or missing" if self.gaps == "value" else ""

    def continuous_layer(self) -> Layer:
        """Return the layer between the modelled columns and numbers with a density."""
        return Identity(self.width)

    def table_layer(self, numbers: Array) -> Layer:
        """Return the layer between numbers with a density and the column's, of training rows."""
        return Identity(1)
