"""A layer of real numbers."""

from torch import Tensor

from cnf.layers.layer import Layer, TransformResult


class Identity(Layer):
    """The identity x = z.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> import torch
        >>> Identity(1)(torch.ones(1, 1))
        (tensor([[1.]]), tensor([0.]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(z, z.new_zeros(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(x, x.new_zeros(len(x)))
