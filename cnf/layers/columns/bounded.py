"""A layer of bounded columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, inf
from torch.nn.functional import logsigmoid

from cnf.layers.columns.open_bounds import below
from cnf.layers.layer import Layer, TransformResult

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

    name: ClassVar[str] = "bounded"
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

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map log-odds to the data's units."""
        start, width = self._interval()
        x = start + width * z.sigmoid()
        # Strictly below the upper bound, since `Dequantize` may follow and take the floor.
        return TransformResult(below(x.clamp(min=self.low), self.high), self._log_det(z, width))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map to log-odds."""
        start, width = self._interval()
        outside = self._outside(x)
        z = ((x.clamp(self.low, self.high) - start) / width).masked_fill(outside, 0.5).logit()
        return TransformResult(z, (-self._log_det(z, width)).masked_fill(outside.any(1), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        """Return a mask of the rows within the bounds, ends included."""
        return ~self._outside(x).any(1)

    def _outside(self, x: Tensor) -> Tensor:
        low, high = (BOUND_TOLERANCE * bound.abs() for bound in (self.low, self.high))
        return (x < self.low - low) | (x > self.high + high)

    def _interval(self) -> tuple[Tensor, Tensor]:
        """Return the start and the width of the interval, margins included."""
        width = self.high - self.low
        return self.low - INTERVAL_MARGIN * width, (1 + 2 * INTERVAL_MARGIN) * width

    def _log_det(self, z: Tensor, width: Tensor) -> Tensor:
        return (width.log() + logsigmoid(z) + logsigmoid(-z)).sum(1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"low": self.bounds[0], "high": self.bounds[1]}
