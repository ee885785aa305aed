"""FFJORD's blend network."""

from torch import Tensor, nn

from cnf.fields.affine import Affine
from cnf.fields.layerwise import LayerwiseField, TimedLayer


class BlendLinear(TimedLayer):
    """Two linear maps, blended by time: y = (1 − t) (W₀ x + b₀) + t (W₁ x + b₁)."""

    def __init__(self, inputs: int, outputs: int, context_dim: int) -> None:
        super().__init__(inputs, outputs, context_dim)
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(inputs, outputs)

    def constants(self) -> tuple[Tensor, ...]:
        first, second = self.first, self.second
        return first.weight, second.weight - first.weight, first.bias, second.bias - first.bias

    @staticmethod
    def at(times: Tensor, constants: tuple[Tensor, ...]) -> list[Affine]:
        weight, change, bias, bias_change = constants
        if times.ndim == 1:
            weights = (weight + times.view(-1, 1, 1) * change).unbind()
            offsets = (bias + times.view(-1, 1) * bias_change).unbind()
            return [Affine(w, o) for w, o in zip(weights, offsets, strict=True)]
        return [Affine(weight, bias + t * bias_change, change=change, mix=t) for t in times]


class Blend(LayerwiseField):
    """FFJORD's blend network: each layer changes from one linear map to another.

    Arguments and errors are those of `LayerwiseField`.

    Source: `BlendLinear` of the code with Grathwohl et al. (2019), FFJORD.

    Example:
        >>> Blend(2, hidden=(16, 16)).trace
        'tangents'
    """

    layer = BlendLinear
