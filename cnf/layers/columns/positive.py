"""A layer of positive columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, inf

from cnf.layers.columns.open_bounds import above
from cnf.layers.layer import Layer, TransformResult


class Positive(Layer):
    """The exponential x = low + e^z of each column; log |det| = Σ z.

    Draws that rounding would take to a bound are held above it. Rows that are not above their
    bounds have no density: their log-determinant is −∞.

    Args:
        low: Lower bounds of the columns, usually 0.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Raises:
        ValueError: A bound is not finite.

    Example:
        >>> z, log_det = Positive([0.0]).inverse(torch.tensor([[1.0], [-1.0]]))
        >>> z[0].item(), log_det.abs().tolist()
        (0.0, [0.0, inf])
    """

    name: ClassVar[str] = "positive"
    surjective = False

    low: Tensor

    def __init__(self, low: Sequence[float]) -> None:
        super().__init__()
        if not all(isfinite(bound) for bound in low):
            raise ValueError(f"Expected finite lower bounds; got {list(low)}")
        self.bounds = [float(bound) for bound in low]
        self.register_buffer("low", torch.tensor(self.bounds))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map to the data's units."""
        return TransformResult(above(self.low + z.exp(), self.low), z.sum(1))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map to logarithms."""
        out = self._out(x)
        z = (x - self.low).masked_fill(out, 1.0).log()
        return TransformResult(z, (-z.sum(1)).masked_fill(out.any(1), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        """Return a mask of the rows above the bounds."""
        return ~self._out(x).any(1)

    def _out(self, x: Tensor) -> Tensor:
        return x <= self.low

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"low": self.bounds}
