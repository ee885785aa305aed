"""Kinds of columns of numbers with a density."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Bounded, Circular, Layer, Positive
from cnf.tables.kinds.column_values import ColumnValues, Looks
from cnf.tables.kinds.kind import ColumnKind
from cnf.tables.kinds.lattice import Array

MIN_SKEWNESS = 1.0  # of positive numbers: an exponential distribution has twice this
MAX_SKEWNESS_ROWS = 1_000_000  # from which the skewness is computed
MAX_SHOWN_ATOMS = 3  # in a line


class RealColumn(ColumnKind):
    """A column of real numbers, whose draws are rounded to the step where there is one."""

    on_line: ClassVar[bool] = True
    steps: ClassVar[tuple[int, int]] = (0, 1)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return no bounds: any values may be real numbers."""
        return stepped(column)


class PositiveColumn(ColumnKind):
    """A column of numbers above `low`, 0 when None, modelled by their logarithm.

    Draws are rounded to the step where there is one.
    """

    bounds: ClassVar[tuple[int, int]] = (0, 1)
    on_line: ClassVar[bool] = True
    steps: ClassVar[tuple[int, int]] = (0, 1)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return no bounds for values above 0 whose logarithm is much less skewed."""
        values = column.known
        if values.min() <= 0:
            return None
        from scipy.stats import skew  # here, since it takes long to import

        values = values[:: -(-len(values) // MAX_SKEWNESS_ROWS)]
        skewness = float(skew(values))
        if skewness > MIN_SKEWNESS and abs(float(skew(np.log(values)))) < skewness / 2:
            return stepped(column)
        return None

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        return np.asarray(numbers <= (self.low or 0.0))

    def tabled(self, numbers: Array) -> Array:
        """Return draws as a table's values, of which none is rounded to the bound."""
        values = super().tabled(numbers)
        if self.lattice is None:
            return values
        above = np.floor(self.lattice.counts(np.array([self.low or 0.0]))) + 1
        return np.maximum(values, self.lattice.values(above))

    def continuous_layer(self) -> Layer:
        return Positive([self.low or 0.0])


class BoundedColumn(ColumnKind):
    """A column of numbers from `low` to `high`, modelled by their log odds."""

    bounds: ClassVar[tuple[int, int]] = (2, 2)
    on_line: ClassVar[bool] = True
    steps: ClassVar[tuple[int, int]] = (0, 1)

    def continuous_layer(self) -> Layer:
        low, high = self.given_bounds
        return Bounded([low], [high])


class CircularColumn(ColumnKind):
    """A column of an angle or an hour, the same at `low` and at `high`.

    Values beyond the bounds are equal to those a turn nearer; draws are from `low` to below `high`.
    """

    bounds: ClassVar[tuple[int, int]] = (2, 2)

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        """Return False for all numbers, since there are those of every turn."""
        return np.zeros(len(numbers), dtype=bool)

    def continuous_layer(self) -> Layer:
        return Circular(1, *self.given_bounds)


class SpikeColumn(RealColumn):
    """A column of real numbers of which some, its `atoms`, occur with a mass beside a density.

    It is modelled as real numbers, whose density grows at the atoms for as long as one trains.
    """

    atom_counts: ClassVar[tuple[float, float]] = (1, np.inf)

    @classmethod
    def infer(cls, column: ColumnValues) -> Looks | None:
        """Return the values that occur too often for the density of the others."""
        if not column.atoms:
            return None
        return stepped(column)._replace(atoms=column.atoms)

    def values_text(self) -> str:
        shares = [
            f"{value:g} ({100 * share:{'.0f' if share >= 0.01 else '.1g'}} %)"
            for value, share in self.atoms
        ]
        more = ", …" if len(shares) > MAX_SHOWN_ATOMS else ""
        return f"at {', '.join(shares[:MAX_SHOWN_ATOMS])}{more}"


def stepped(column: ColumnValues) -> Looks:
    """Return the step of rounded numbers, none for others."""
    if column.lattice is None:
        return Looks()
    return Looks(step=column.lattice.step, origin=column.lattice.origin)
