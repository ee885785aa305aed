"""Numbers above a bound."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.layers import Layer, Positive
from cnf.tables.kinds.kind import Array, ColumnKind, Looks

MIN_SKEWNESS = 1.0  # an exponential distribution has twice this
MAX_SKEWNESS_ROWS = 1_000_000  # from which the skewness is computed


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
        """Return which values are not above the bound."""
        return np.asarray(values <= (self.low or 0.0))

    def continuous_layer(self) -> Layer:
        """Return the exponential above the bound."""
        return Positive([self.low or 0.0])
