"""Constant columns as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnf.layers.layer import Layer, TransformResult


class Constant(Layer):
    """x = value in each column, of which nothing is modelled: the density is of the others.

    What a column holds on the way to the base is left out, whatever it is.

    Args:
        values: Each column's.

    Shapes: (rows, 0) → (rows, dim), (rows,).

    Raises:
        ValueError: A value is not finite.

    Example:
        >>> Constant([7.0])(torch.zeros(2, 0))
        (tensor([[7.],
                [7.]]), tensor([0., 0.]))
    """

    name: ClassVar[str] = "constant"
    surjective = False

    values: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        if not all(isfinite(value) for value in values):
            raise ValueError(f"Expected finite values; got {list(values)}")
        self.numbers = [float(value) for value in values]
        self.register_buffer("values", torch.tensor(self.numbers))

    @property
    def widths(self) -> tuple[int, int]:
        """No column for all of them."""
        return 0, len(self.numbers)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """To the values."""
        return TransformResult(self.values.expand(len(z), -1), z.new_zeros(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """To nothing."""
        return TransformResult(x[:, :0], x.new_zeros(len(x)))

    def in_range(self, x: Tensor) -> Tensor:
        """Those with the values, to single precision: in that it keeps them."""
        return (x.float() == self.values.float()).all(1)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"values": self.numbers}
