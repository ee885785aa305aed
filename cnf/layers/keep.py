"""Columns left as they are, as a layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from cnf.layers.layer import Layer, Mapped


class Keep(Layer):
    """x = z.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> import torch
        >>> Keep(1)(torch.ones(1, 1))
        (tensor([[1.]]), tensor([0.]))
    """

    name: ClassVar[str] = "keep"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def push(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """As it is."""
        return Mapped(z, z.new_zeros(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """As it is."""
        return Mapped(x, x.new_zeros(len(x)))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim}
