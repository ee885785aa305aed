"""A layer of positive columns."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, inf

from cnf.layers.layer import ColumnRange, Layer, TransformResult


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

    surjective = False
    low: Tensor

    def __init__(self, low: Sequence[float]) -> None:
        super().__init__()
        if not all(isfinite(bound) for bound in low):
            raise ValueError(f"Expected finite lower bounds; got {list(low)}")
        self.bounds = [float(bound) for bound in low]
        self.register_buffer("low", torch.tensor(self.bounds))

    @property
    def ranges(self) -> tuple[ColumnRange, ...]:
        return tuple(map(ColumnRange, self.low.tolist()))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        lowest = torch.nextafter(self.low, torch.full_like(self.low, inf))
        return TransformResult(torch.maximum(self.low + z.exp(), lowest), z.sum(1))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        out = self._out(x)
        z = (x - self.low).masked_fill(out, 1.0).log()
        return TransformResult(z, (-z.sum(1)).masked_fill(out.any(1), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        return ~self._out(x).any(1)

    def _out(self, x: Tensor) -> Tensor:
        return x <= self.low

    def config(self) -> dict[str, Any]:
        return {"low": self.bounds}
