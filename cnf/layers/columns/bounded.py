"""Bounded columns as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, inf
from torch.nn.functional import logsigmoid

from cnf.layers.ends import below
from cnf.layers.layer import Layer, TransformResult

# Of an interval's width, by which it is wider on either side: its ends are finite points. What a
# flow has beyond them is drawn as the ends.
MARGIN = 1e-6
# Of a bound, by which a row may be beyond it and is taken for it: the buffers are rounded to single
# precision once, while rows may come in double.
ROUNDING = torch.finfo(torch.float32).eps


class Bounded(Layer):
    """x = low + (high − low) σ(z) in each column; log |det| = Σ ln((high − low) σ(z) σ(−z)).

    The interval is a millionth wider than [low, high] on either side, so that its ends have a
    density; draws are held within it. Rows outside have none: their log-determinant is −∞.

    Args:
        low: Each column's lower bound.
        high: Its upper bound.

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
                f"Expected as many lower bounds as upper ones, and below them; got {list(low)} and "
                f"{list(high)}"
            )
        self.bounds = (list(map(float, low)), list(map(float, high)))
        self.register_buffer("low", torch.tensor(self.bounds[0]))
        self.register_buffer("high", torch.tensor(self.bounds[1]))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into the data's units."""
        start, width = self._interval()
        x = start + width * z.sigmoid()
        # Below the upper bound: what is next to it may be cut down to whole numbers.
        return TransformResult(below(x.clamp(min=self.low), self.high), self._log_det(z, width))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into log odds."""
        start, width = self._interval()
        out = self._out(x)
        z = ((x.clamp(self.low, self.high) - start) / width).masked_fill(out, 0.5).logit()
        return TransformResult(z, (-self._log_det(z, width)).masked_fill(out.any(1), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        """Those within the bounds, their ends included."""
        return ~self._out(x).any(1)

    def _out(self, x: Tensor) -> Tensor:
        low, high = (ROUNDING * bound.abs() for bound in (self.low, self.high))
        return (x < self.low - low) | (x > self.high + high)

    def _interval(self) -> tuple[Tensor, Tensor]:
        """Where it starts and its width, margins included."""
        width = self.high - self.low
        return self.low - MARGIN * width, (1 + 2 * MARGIN) * width

    def _log_det(self, z: Tensor, width: Tensor) -> Tensor:
        return (width.log() + logsigmoid(z) + logsigmoid(-z)).sum(1)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"low": self.bounds[0], "high": self.bounds[1]}
