"""A perceptron whose weights are the context of each row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnf.fields.row_perceptron import RowLayer, RowPerceptron


class GivenWeights(RowPerceptron):
    """A perceptron without shared weights: the context is c = (W, a, b) of all layers.

        W x + b + t a

    With its `generator`, which has all the parameters, it is a hypernetwork. Arguments, shapes and
    errors are those of `RowPerceptron`.

    Source: Grathwohl et al. (2019), FFJORD, section 4.3; Ha et al. (2017), HyperNetworks.

    Example:
        >>> field = GivenWeights(4, hidden=(16,))
        >>> sum(parameter.numel() for parameter in field.parameters())
        0
        >>> make = field.generator(8)
        >>> field(torch.tensor(0.5), torch.randn(5, 4), make(torch.randn(5, 8))).shape
        torch.Size([5, 4])
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64,), activation: str = "tanh") -> None:
        super().__init__(dim, hidden, activation)

    def numbers(self, inputs: int, outputs: int) -> list[int]:
        return [outputs * inputs, outputs, outputs]

    def layer(self, place: int, parts: Sequence[Tensor]) -> RowLayer:
        weight, slope, bias = parts
        return RowLayer(weight.unflatten(1, (bias.shape[1], -1)), bias, slope)

    def start(self, place: int, parts: Sequence[nn.Linear]) -> None:
        """Initialize to the size of a linear map's weights, the last layer to zero."""
        scale = 0.0 if place == len(self.shapes) - 1 else self.shapes[place][0] ** -0.5
        with torch.no_grad():
            for part in parts:
                part.weight.mul_(scale)
                nn.init.uniform_(part.bias, -scale, scale)
