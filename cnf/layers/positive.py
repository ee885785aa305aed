"""Positive columns as a layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, inf

from cnf.layers.layer import Layer, Mapped


class Positive(Layer):
    """x = e^z in each column; log |det| = Σ z.

    Rows that are not positive have no density: their log-determinant is −∞.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> import torch
        >>> z, log_det = Positive(1).inverse(torch.tensor([[1.0], [-1.0]]))
        >>> z[0].item(), log_det.tolist()
        (0.0, [0.0, -inf])
    """

    name: ClassVar[str] = "positive"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def push(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Into the data's units."""
        return Mapped(z.exp(), z.sum(1))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Into logarithms."""
        out = x <= 0
        z = x.masked_fill(out, 1.0).log()
        return Mapped(z, (-z.sum(1)).masked_fill(out.any(1), -inf))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim}
