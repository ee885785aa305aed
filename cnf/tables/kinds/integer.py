"""Whole numbers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Bounded, Dequantize, Identity, Layer, Positive
from cnf.tables.kinds.kind import Array, ColumnKind, Looks

MAX_DISTINCT = 20  # whole numbers between which none is missing, whose range becomes the bounds
MAX_INTEGER = 2**18  # beyond, single precision leaves little room for noise


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

    def _check_bounds(self) -> None:
        super()._check_bounds()
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not all(float(bound).is_integer() for bound in bounds):
            raise self.refusal("whole bounds for kind integer", f"{self.low} and {self.high}")

    @property
    def whole(self) -> bool:
        """Whether tables have whole numbers in the column: always."""
        return True

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Return which values are not whole, or not within the bounds."""
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
