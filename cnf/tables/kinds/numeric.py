"""Kinds of columns of numbers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Bounded, Circular, Dequantize, Identity, Layer, Positive
from cnf.tables.kinds.kind import Array, ColumnKind, Looks

MIN_SKEWNESS = 1.0  # of positive numbers: an exponential distribution has twice this
MAX_SKEWNESS_ROWS = 1_000_000  # from which the skewness is computed

MAX_DISTINCT = 20  # whole numbers between which none is missing, whose range becomes the bounds
MAX_INTEGER = 2**18  # beyond, single precision leaves little room for noise


class RealColumn(ColumnKind):
    """A column of real numbers."""

    on_line: ClassVar[bool] = True

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return no bounds: any values may be real numbers."""
        return Looks()


class PositiveColumn(ColumnKind):
    """A column of numbers above `low`, 0 when None, modelled by their logarithm."""

    bounds: ClassVar[tuple[int, int]] = (0, 1)
    on_line: ClassVar[bool] = True

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return no bounds for values above 0 whose logarithm is much less skewed."""
        if values.min() <= 0:
            return None
        from scipy.stats import skew  # here, since it takes long to import

        values = values[:: -(-len(values) // MAX_SKEWNESS_ROWS)]
        skewness = float(skew(values))
        if skewness > MIN_SKEWNESS and abs(float(skew(np.log(values)))) < skewness / 2:
            return Looks()
        return None

    def outside(self, values: Array) -> NDArray[np.bool_]:
        return np.asarray(values <= (self.low or 0.0))

    def continuous_layer(self) -> Layer:
        return Positive([self.low or 0.0])


class BoundedColumn(ColumnKind):
    """A column of numbers from `low` to `high`, modelled by their log odds."""

    bounds: ClassVar[tuple[int, int]] = (2, 2)
    on_line: ClassVar[bool] = True

    def continuous_layer(self) -> Layer:
        low, high = self.given_bounds
        return Bounded([low], [high])


class CircularColumn(ColumnKind):
    """A column of an angle or an hour, the same at `low` and at `high`.

    Values beyond the bounds are equal to those a turn nearer; draws are from `low` to below `high`.
    """

    bounds: ClassVar[tuple[int, int]] = (2, 2)

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Return False for all values, since there are those of every turn."""
        return np.zeros(len(values), dtype=bool)

    def continuous_layer(self) -> Layer:
        return Circular(1, *self.given_bounds)


class IntegerColumn(ColumnKind):
    """A column of whole numbers, from `low` and to `high` where these are given."""

    bounds: ClassVar[tuple[int, int]] = (0, 2)
    discrete: ClassVar[bool] = True

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return the range of a few whole numbers, no bounds for many or with some missing."""
        if (values != np.floor(values)).any() or np.abs(values).max() >= MAX_INTEGER:
            return None
        distinct = np.unique(values)
        low, high = float(distinct[0]), float(distinct[-1])
        complete = len(distinct) == high - low + 1
        return Looks(low, high) if len(distinct) <= MAX_DISTINCT and complete else Looks()

    def check(self) -> None:
        """Check that bounds are whole numbers, too."""
        super().check()
        if not all(float(bound).is_integer() for bound in self.given_bounds):
            raise self.refusal("whole bounds for kind integer", f"{self.low} and {self.high}")

    @property
    def whole(self) -> bool:
        """Whether tables have whole numbers in the column: always."""
        return True

    def outside(self, values: Array) -> NDArray[np.bool_]:
        return np.asarray(super().outside(values) | (values != np.floor(values)))

    def continuous_layer(self) -> Layer:
        """Return the map to numbers from `low` to below `high` + 1, with noise in them."""
        if self.low is None:
            return Identity(1)
        if self.high is None:
            return Positive([self.low])
        return Bounded([self.low], [self.high + 1])

    def table_layer(self, values: Array) -> Layer:
        """Return the map that rounds down, and adds noise in the other direction."""
        return Dequantize(1)
