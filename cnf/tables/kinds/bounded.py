"""Numbers between two bounds."""

from __future__ import annotations

from typing import ClassVar

from cnf.layers import Bounded, Layer
from cnf.tables.kinds.kind import ColumnKind


class BoundedColumn(ColumnKind):
    """A column of numbers from `low` to `high`, modelled by their log odds."""

    bounds: ClassVar[tuple[int, int]] = (2, 2)
    on_line: ClassVar[bool] = True

    def continuous_layer(self) -> Layer:
        """Return the logistic function between the bounds."""
        assert self.low is not None
        assert self.high is not None
        return Bounded([self.low], [self.high])
