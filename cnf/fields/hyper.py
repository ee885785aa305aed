"""FFJORD's hyper network: a network whose weights small networks compute from the time."""

import torch
from torch import Tensor, nn

from cnf.fields.affine import Affine
from cnf.fields.layerwise import LayerwiseField, TimedLayer

GENERATOR_WIDTH = 8  # of the networks that make the weights, as in FFJORD's code


class HyperLinear(TimedLayer):
    """A linear map whose weights and biases a small network computes from the time."""

    def __init__(self, inputs: int, outputs: int, context_dim: int) -> None:
        super().__init__(inputs, outputs, context_dim)
        self.inside = nn.Linear(1, GENERATOR_WIDTH)
        self.weight = nn.Linear(GENERATOR_WIDTH, outputs * inputs)
        self.bias = nn.Linear(GENERATOR_WIDTH, outputs)
        # So that the weights made start as large as a linear map's own.
        with torch.no_grad():
            scale = (inputs * GENERATOR_WIDTH) ** -0.5
            for made in (self.weight, self.bias):
                nn.init.uniform_(made.weight, -scale, scale)
                nn.init.uniform_(made.bias, -(inputs**-0.5), inputs**-0.5)

    def zero(self) -> None:
        """Set all but the inside to zero: zeros throughout would never get a gradient."""
        for layer in (self.weight, self.bias, self.shift):
            for parameter in [] if layer is None else layer.parameters():
                nn.init.zeros_(parameter)

    def constants(self) -> tuple[Tensor, ...]:
        layers = (self.inside, self.weight, self.bias)
        return tuple(tensor for layer in layers for tensor in (layer.weight, layer.bias))

    @staticmethod
    def at(times: Tensor, constants: tuple[Tensor, ...]) -> list[Affine]:
        inside, inside_bias, weight, weight_bias, bias, bias_bias = constants
        times = times.unsqueeze(-1) if times.ndim == 1 else times
        h = torch.tanh(times @ inside.T + inside_bias)
        offsets = h @ bias.T + bias_bias
        weights = (h @ weight.T + weight_bias).unflatten(-1, (offsets.shape[-1], -1))
        return [Affine(w, o) for w, o in zip(weights.unbind(), offsets.unbind(), strict=True)]


class Hyper(LayerwiseField):
    """FFJORD's hyper network: small networks compute each layer's weights from the time.

    With per-sample steps every row has separate weights: (rows, out, in) numbers for each layer.
    Arguments and errors are those of `LayerwiseField`.

    Source: `HyperLinear` of the code with Grathwohl et al. (2019), FFJORD; Ha et al. (2017),
    HyperNetworks.

    Example:
        >>> Hyper(2, hidden=(16, 16)).trace
        'tangents'
    """

    layer = HyperLinear
