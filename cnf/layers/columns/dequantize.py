"""A layer of integers."""

import torch
from torch import Tensor, inf

from cnf.layers.columns.stochastic import StochasticLayer, uniform
from cnf.layers.layer import TransformResult
from cnf.utils.random import RowNoise


class Dequantize(StochasticLayer):
    """The floor x = ⌊z⌋ of each column; towards the base z = x + u with noise u ~ U(0, 1).

    The mean of log p(x + u) is a lower bound on the log-mass of x, the integral of p(x + u) over u.
    Each call draws the noise anew. Rows that are not integers have no mass: their log-determinant
    is −∞.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models.

    Example:
        >>> z, log_det = Dequantize(1).inverse(torch.tensor([[3.0], [3.5]]))
        >>> z[0].floor().item(), log_det.tolist()
        (3.0, [0.0, -inf])
    """

    surjective = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(z.floor(), z.new_zeros(len(z)))

    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        floor = x.floor()
        # Neither the integer itself, which may be a bound, nor, by rounding, the next one.
        above = 1 - uniform(x, noise)
        z = torch.minimum(floor + above, torch.nextafter(floor + 1, floor))
        return TransformResult(z, x.new_zeros(len(x)).masked_fill(~self.in_range(x), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        return (x == x.floor()).all(1)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the middles between x and x + 1."""
        return x + 0.5
