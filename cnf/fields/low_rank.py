"""A perceptron whose weights the context of each row changes by a matrix of low rank."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cnf.fields.row_perceptron import RowLayer, RowPerceptron


class LowRank(RowPerceptron):
    """A perceptron with shared weights, to which each row adds a matrix of low rank and a bias.

        (W + U V) x + b + b' + t a,   with the context c = (U, V, b') of all layers.

    U V is formed once for a solve, for the exact trace. Other arguments, shapes and errors are
    those of `RowPerceptron`.

    Args:
        rank: The rank of U V.

    Source: Grathwohl et al. (2019), FFJORD, section 4.3.

    Example:
        >>> field = LowRank(4, hidden=(16,), rank=2)
        >>> make = field.generator(8)
        >>> field(torch.tensor(0.5), torch.randn(5, 4), make(torch.randn(5, 8))).shape
        torch.Size([5, 4])
    """

    rank: int

    def __init__(
        self, dim: int, hidden: Sequence[int] = (64,), activation: str = "tanh", rank: int = 4
    ) -> None:
        super().__init__(dim, hidden, activation, rank=rank)
        # Time is each layer's first input.
        linears = nn.ModuleList(nn.Linear(1 + inputs, outputs) for inputs, outputs in self.shapes)
        self.linears = cast("Sequence[nn.Linear]", linears)
        for parameter in self.linears[-1].parameters():
            nn.init.zeros_(parameter)

    def numbers(self, inputs: int, outputs: int) -> list[int]:
        return [outputs * self.rank, inputs * self.rank, outputs]

    def layer(self, place: int, parts: Sequence[Tensor]) -> RowLayer:
        left, right, bias = parts
        linear = self.linears[place]
        return RowLayer(
            linear.weight[:, 1:],
            linear.bias + bias,
            linear.weight[:, 0],
            left.unflatten(1, (-1, self.rank)),
            right.unflatten(1, (self.rank, -1)),
        )

    def start(self, place: int, parts: Sequence[nn.Linear]) -> None:
        """Set U and b' to zero; V not, or neither would ever get a gradient."""
        left, right, bias = parts
        with torch.no_grad():
            for parameter in (*left.parameters(), *bias.parameters()):
                parameter.zero_()
            scale = self.shapes[place][0] ** -0.5
            right.weight.mul_(scale)
            nn.init.uniform_(right.bias, -scale, scale)
