"""A layer of angles."""

from math import isfinite, log, pi

import torch
from torch import Tensor

from cnf.layers.layer import ColumnRange, Layer, TransformResult
from cnf.utils.angles import half_open


class Circular(Layer):
    """The map of angles z in radians to x = low + (high − low) (z + π) / 2π in each column.

    Both ends are the same point, and values beyond the interval are wrapped into it: `push` returns
    x in [low, high), and `pull` z in [−π, π).
    log |det| = dim ln((high − low) / 2π).

    Args:
        dim: Number of columns.
        low: Start of the interval.
        high: End of the interval, the same point as its start.

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

    # The ends are numbers rather than buffers, so that a flow of any dtype rounds them only once.
    def __init__(self, dim: int, low: float = -pi, high: float = pi) -> None:
        super().__init__()
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"Expected finite ends, the lower one first; got {low} and {high}")
        self.dim, self.low, self.high = dim, float(low), float(high)
        self.circular, self.widths = tuple(range(dim)), (dim, dim)
        self.turn = self.high - self.low
        self.log_scale = dim * log(self.turn / (2 * pi))

    @property
    def ranges(self) -> tuple[ColumnRange, ...]:
        return (ColumnRange(self.low, self.high, circular=True),) * self.dim

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        turned = torch.remainder(z + pi, 2 * pi)
        x = half_open(self.low + self.turn / (2 * pi) * turned, self.low, self.high)
        return TransformResult(x, z.new_full((len(z),), self.log_scale))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        turned = torch.remainder(x - self.low, self.turn)
        z = half_open(2 * pi / self.turn * turned - pi, -pi, pi)
        return TransformResult(z, x.new_full((len(x),), -self.log_scale))
