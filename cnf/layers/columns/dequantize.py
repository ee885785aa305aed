"""Whole numbers as a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, inf

from cnf.layers.columns.noisy import Noisy, uniform
from cnf.layers.layer import TransformResult
from cnf.utils.row_noise import RowNoise


class Dequantize(Noisy):
    """x = ⌊z⌋ in each column; on the way back z = x + u with noise u ~ U(0, 1).

    The mean of log p(x + u) is a lower bound on the log-mass of x, since that is the integral of
    p(x + u) over u. The noise is PyTorch's, anew each time. Rows that are not whole have no mass:
    their log-determinant is −∞.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models.

    Example:
        >>> z, log_det = Dequantize(1).inverse(torch.tensor([[3.0], [3.5]]))
        >>> z[0].floor().item(), log_det.tolist()
        (3.0, [0.0, -inf])
    """

    name: ClassVar[str] = "dequantize"
    surjective = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """To whole numbers."""
        return TransformResult(z.floor(), z.new_zeros(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """To the cells of length 1 above them."""
        return self._pull(x, None)

    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        whole = x.floor()
        # Never the whole number itself, which may be a bound; nor, by rounding, the next one.
        above = 1 - uniform(x, noise)
        z = torch.minimum(whole + above, torch.nextafter(whole + 1, whole))
        return TransformResult(z, x.new_zeros(len(x)).masked_fill(~self.in_range(x), -inf))

    def in_range(self, x: Tensor) -> Tensor:
        """Those of whole numbers."""
        return (x == x.floor()).all(1)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The cells' middles."""
        return x + 0.5

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim}
