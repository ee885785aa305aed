"""A layer of bounded columns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, inf
from torch.nn.functional import logsigmoid

from cnf.layers.layer import ColumnRange, Layer, TransformResult

# Extension of an interval on either side, relative to its width: so its ends have finite preimages.
# Draws beyond the ends are clamped to them.
INTERVAL_MARGIN = 1e-6
# Distance by which a row may exceed a bound and still count as the bound, relative to it: the
# buffers are rounded to single precision once, while rows may come in double.
BOUND_TOLERANCE = torch.finfo(torch.float32).eps


class Bounded(Layer):
    """The scaled sigmoid x = low + (high − low) σ(z) of each column.

        log |det| = Σ ln((high − low) σ(z) σ(−z))

    The interval is a millionth wider than [low, high] on either side, so that its ends have a
    density; draws are clamped to [low, high]. Rows outside have no density: their log-determinant
    is −∞.

    Args:
        low: Lower bounds of the columns.
        high: Upper bounds of the columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Raises:
        ValueError: A lower bound is not below the upper one.

    Example:
        >>> layer = Bounded([0.0], [10.0])
        >>> z, log_det = layer.inverse(torch.tensor([[5.0], [11.0]]))
        >>> round(abs(z[0].item()), 3), [round(value, 3) for value in log_det.tolist()]
        (0.0, [-0.916, -inf])
    """

    surjective = False
    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(
                f"Expected as many lower bounds as upper bounds, each below its upper bound; got "
                f"{list(low)} and {list(high)}: correct the bounds of these columns"
            )
        self.bounds = (list(map(float, low)), list(map(float, high)))
        self.register_buffer("low", torch.tensor(self.bounds[0]))
        self.register_buffer("high", torch.tensor(self.bounds[1]))

    @property
    def ranges(self) -> tuple[ColumnRange, ...]:
        return tuple(map(ColumnRange, self.low.tolist(), self.high.tolist()))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        width = self.high - self.low
        share = (1 + 2 * INTERVAL_MARGIN) * z.sigmoid() - INTERVAL_MARGIN
        # Strictly below the upper bound, since `Dequantize` may follow and take the floor.
        highest = torch.nextafter(self.high, torch.full_like(self.high, -inf))
        x = (self.low + width * share).clamp(self.low, highest)
        return TransformResult(x, self._log_det(z))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        outside = self._outside(x)
        # The margin is added to the share: to bounds far from 0 it would be lost in rounding.
        share = (x.clamp(self.low, self.high) - self.low) / (self.high - self.low)
        inner = (share + INTERVAL_MARGIN) / (1 + 2 * INTERVAL_MARGIN)
        z = inner.masked_fill(outside, 0.5).logit()
        return TransformResult(z, (-self._log_det(z)).masked_fill(outside.any(1), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        return ~self._outside(x).any(1)

    def _outside(self, x: Tensor) -> Tensor:
        low, high = (BOUND_TOLERANCE * bound.abs() for bound in (self.low, self.high))
        return (x < self.low - low) | (x > self.high + high)

    def _log_det(self, z: Tensor) -> Tensor:
        width = (1 + 2 * INTERVAL_MARGIN) * (self.high - self.low)
        return (width.log() + logsigmoid(z) + logsigmoid(-z)).sum(1)

    def config(self) -> dict[str, Any]:
        return {"low": self.bounds[0], "high": self.bounds[1]}
