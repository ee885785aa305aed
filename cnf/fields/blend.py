"""FFJORD's blend network."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cnf.fields.affine import Affine
from cnf.fields.layerwise import LayerwiseField, TimedLayer


class BlendLinear(TimedLayer):
    """Two linear maps, blended by time: y = (1 − t) (W₀ x + b₀) + t (W₁ x + b₁).

    Args:
        inputs: Size of x.
        outputs: Size of y.
        context_dim: Size of the context that shifts it.
    """

    def __init__(self, inputs: int, outputs: int, context_dim: int) -> None:
        super().__init__(outputs, context_dim)
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(inputs, outputs)

    def constants(self) -> tuple[Tensor, ...]:
        """Return the first map, and its difference to the second."""
        first, second = self.first, self.second
        return first.weight, second.weight - first.weight, first.bias, second.bias - first.bias

    @staticmethod
    def at(times: Tensor, constants: tuple[Tensor, ...]) -> list[Affine]:
        """Return the blend at each time, one map where all rows have the same time."""
        weight, change, bias, bias_change = constants
        if times.ndim == 1:
            weights = (weight + times.view(-1, 1, 1) * change).unbind()
            offsets = (bias + times.view(-1, 1) * bias_change).unbind()
            return [Affine(w, o) for w, o in zip(weights, offsets, strict=True)]
        offsets = (bias + times * bias_change).unbind()
        mixes = times.unbind()
        return [
            Affine(weight, offset, change=change, mix=mix)
            for offset, mix in zip(offsets, mixes, strict=True)
        ]


class Blend(LayerwiseField):
    """FFJORD's blend network: each layer changes from one linear map to another.

    Arguments and errors are those of `LayerwiseField`.

    Source: `BlendLinear` of the code with Grathwohl et al. (2019), FFJORD.

    Example:
        >>> Blend(2, hidden=(16, 16)).trace
        'tangents'
    """

    name: ClassVar[str] = "blend"

    def layer(self, inputs: int, outputs: int) -> BlendLinear:
        """Return a new layer."""
        return BlendLinear(inputs, outputs, self.context_dim)
