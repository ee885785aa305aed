"""Angles, hours and the like."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Circular, Layer
from cnf.tables.kinds.kind import Array, ColumnKind


class CircularColumn(ColumnKind):
    """A column of an angle or an hour, the same at `low` and at `high`.

    Values beyond the bounds are equal to those a turn nearer; draws are from `low` to below `high`.
    """

    bounds: ClassVar[tuple[int, int]] = (2, 2)
    circular: ClassVar[bool] = True

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Return False for all values, since there are those of every turn."""
        return np.zeros(len(values), dtype=bool)

    def continuous_layer(self) -> Layer:
        """Return the map of an angle in radians to the column's turn."""
        assert self.low is not None
        assert self.high is not None
        return Circular(1, self.low, self.high)
