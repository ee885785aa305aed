"""A layer of constant columns."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from cnf.layers.layer import Layer, TransformResult


class Constant(Layer):
    """The constant x = value of each column, which has no columns on the base's side.

    The density is that of the other columns: towards the base these are dropped unchecked.

    Args:
        values: Values of the columns.

    Shapes: (rows, 0) → (rows, dim), (rows,).

    Raises:
        ValueError: A value is not finite.

    Example:
        >>> Constant([7.0])(torch.zeros(2, 0))
        (tensor([[7.],
                [7.]]), tensor([0., 0.]))
    """

    surjective = False
    values: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        if not all(isfinite(value) for value in values):
            raise ValueError(
                f"Expected finite values; got {list(values)}: give each column its constant"
            )
        self.numbers = [float(value) for value in values]
        self.widths = 0, len(values)
        self.unread = tuple(range(len(values)))
        self.register_buffer("values", torch.tensor(self.numbers))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(self.values.expand(len(z), -1), z.new_zeros(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(x[:, :0], x.new_zeros(len(x)))

    def in_range(self, x: Tensor) -> Tensor:
        """Return a mask of the rows with the values, in single precision, as they are stored."""
        return (x.float() == self.values.float()).all(1)

    def config(self) -> dict[str, Any]:
        return {"values": self.numbers}
