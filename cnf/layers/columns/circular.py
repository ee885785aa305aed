"""Angles as a layer."""

from __future__ import annotations

from math import isfinite, log, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnf.layers.layer import Layer, TransformResult
from cnf.utils.angles import half_open


class Circular(Layer):
    """x = low + (high − low) (z + π) / 2π in each column, on the circle: z in radians, low at −π.

    Both ends are the same point. On either side values beyond the interval are those within it that
    are whole turns away: x is always in [low, high), and z, on the way back, in [−π, π).
    log |det| = dim ln((high − low) / 2π).

    Args:
        dim: Number of columns.
        low: Where the interval starts.
        high: Where it ends, and the circle is closed.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Raises:
        ValueError: The ends are not finite, or not in this order.

    Example:
        >>> layer = Circular(1, 0.0, 360.0)
        >>> z, log_det = layer.inverse(torch.tensor([[90.0], [450.0]]))
        >>> z.tolist()
        [[-1.5707963705062866], [-1.5707963705062866]]
        >>> layer(z)[0].tolist()
        [[90.0], [90.0]]
    """

    name: ClassVar[str] = "circular"

    # The ends are numbers, not buffers: a flow of another dtype has them as exact as it can.
    def __init__(self, dim: int, low: float = -pi, high: float = pi) -> None:
        super().__init__()
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"Expected finite ends, the lower one first; got {low} and {high}")
        self.dim, self.low, self.high = dim, float(low), float(high)
        self.circular = tuple(range(dim))
        self.turn = self.high - self.low
        self.log_scale = dim * log(self.turn / (2 * pi))

    @property
    def widths(self) -> tuple[int, int]:
        """As many on either side."""
        return self.dim, self.dim

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into the data's units, within the interval."""
        turned = torch.remainder(z + pi, 2 * pi)
        x = half_open(self.low + self.turn / (2 * pi) * turned, self.low, self.high)
        return TransformResult(x, z.new_full((len(z),), self.log_scale))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into radians."""
        turned = torch.remainder(x - self.low, self.turn)
        z = half_open(2 * pi / self.turn * turned - pi, -pi, pi)
        return TransformResult(z, x.new_full((len(x),), -self.log_scale))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim, "low": self.low, "high": self.high}
