"""Kinds of columns of whole numbers of a step, which have a probability mass."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import ColumnType
from cnf.layers import Bounded, Dequantize, Identity, Layer, Positive
from cnf.tables.dates import date_text
from cnf.tables.kinds.column_values import ColumnValues, Looks
from cnf.tables.kinds.kind import ColumnKind, Unknown
from cnf.tables.kinds.lattice import Array, Lattice

MAX_DISTINCT = 20  # multiples of a step, of which none is missing, whose range becomes the bounds
MAX_INTEGER = 2**18  # beyond, single precision leaves little room for noise


class IntegerColumn(ColumnKind):
    """A column of whole numbers, from `low` and to `high` where these are given."""

    bounds: ClassVar[tuple[int, int]] = (0, 2)
    discrete: ClassVar[bool] = True

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the range of a few whole numbers with none missing, and 0 below counts."""
        if not column.whole or np.abs(column.known).max() >= MAX_INTEGER:
            return None
        return _ranged(column, Lattice(0.0, 1.0))._replace(step=None, origin=None)

    def check(self) -> None:
        """Check that bounds are whole numbers, too, or on the grid."""
        super().check()
        if not all(float(self.number(bound)).is_integer() for bound in self.given_bounds):
            wanted = "whole bounds" if self.step is None else f"bounds on the grid of {self.step:g}"
            raise self.refusal(f"{wanted} for kind {self.kind}", f"{self.low} and {self.high}")

    @property
    def table_type(self) -> ColumnType:
        return self.type or ColumnType("int64" if self.step is None else "float64")

    def nearest(self, numbers: Array) -> Array:
        return np.rint(numbers)

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        return np.asarray(super().outside(numbers) | (numbers != np.floor(numbers)))

    def continuous_layer(self) -> Layer:
        """Return the map to numbers from `low` to below `high` + 1, with noise in them."""
        if self.low is None:
            return Identity(1)
        if self.high is None:
            return Positive([self.number(self.low)])
        return Bounded([self.number(self.low)], [self.number(self.high) + 1])

    def table_layer(self, numbers: Array) -> Layer:
        """Return the map that rounds down, and adds noise in the other direction.

        Of numbers beyond 2^22 single precision leaves no room for noise: log p is then that of
        their density in steps, and draws are still on the grid.
        """
        return Dequantize(1)


class GridColumn(IntegerColumn):
    """A column of multiples of a step, modelled by their counts from the origin."""

    steps: ClassVar[tuple[int, int]] = (1, 1)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the step of whole numbers that are large or sparse, and of decimals with ties."""
        lattice = column.lattice
        if lattice is None:
            return None
        large = column.whole and (lattice.step > 1 or np.abs(column.known).max() >= MAX_INTEGER)
        fits = large or (column.has_ties and not column.whole)
        return _ranged(column, lattice) if fits else None

    @property
    def grid(self) -> Lattice:
        """The values that the column can have."""
        assert self.lattice is not None  # by `steps`
        return self.lattice

    def number(self, value: float) -> float:
        return float(self.grid.counts(np.array([value]))[0])

    def numbers(self, column: ColumnValues, unknown: Unknown = "raise") -> Array:
        return self.grid.counts(super().numbers(column, unknown), column.epsilon)

    def tabled(self, numbers: Array) -> Array:
        return self.allowed(self.grid.values(np.rint(numbers)))

    def text(self, number: float) -> str:
        return self.value_text(float(self.grid.values(np.array([number]))[0]))

    def foreign_text(self, number: float) -> str:
        return self.value_text(self.grid.origin + self.grid.step * number)

    def values_text(self) -> str:
        return f"in steps of {self.grid.step:g} {super().values_text()}".strip()


class DatetimeColumn(GridColumn):
    """A column of dates, modelled by the time since the first.

    It is counted in steps of `step` units of the type, 1 when None.
    """

    steps: ClassVar[tuple[int, int]] = (0, 1)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the greatest step between dates."""
        if column.type.family != "date":
            return None
        lattice = Lattice.of(column.distinct[0], 0.0)
        return None if lattice is None else _ranged(column, lattice)

    def check(self) -> None:
        """Check that the type is one of dates, too, where it is known."""
        super().check()
        if self.type is not None and self.type.family != "date":
            raise self.refusal("dates for kind datetime", f"{self.type.family} values")

    @property
    def grid(self) -> Lattice:
        return self.lattice or Lattice(self.low or 0.0, 1.0)

    def values_text(self) -> str:
        step = f"{self.grid.step:g} {self.table_type.unit}".removeprefix("1 ")
        if self.low is None:
            return f"since {date_text(self.grid.origin, self.table_type)} every {step}"
        return f"{ColumnKind.values_text(self)} every {step}"


def _ranged(column: ColumnValues, lattice: Lattice) -> Looks:
    """Return a lattice with the range of few values of which none is missing, and 0 below counts.

    Counts are at least 0 and not all far above it; their bound is the least where 0 is no multiple.
    """
    found = Looks(step=lattice.step, origin=lattice.origin)
    distinct = column.distinct[0]
    low, high = float(distinct[0]), float(distinct[-1])
    counts = lattice.counts(np.array([0.0, low, high]))
    if len(distinct) == counts[2] - counts[1] + 1 <= MAX_DISTINCT:
        return found._replace(low=low, high=high, origin=None)
    if column.type.family != "date" and 0 <= low <= high / 2:
        return found._replace(low=0.0 if counts[0] % 1 == 0 else low, origin=None)
    return found
