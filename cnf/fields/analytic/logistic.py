"""A network of tanh as one of logistic functions, whose value and slope cost the fewest passes.

With tanh z = 2p − 1 and p = 1 / (1 + e⁻²ᶻ), a layer of tanh after one of tanh is

    z = (W (2p − 1) + b) ∘ g + s,   2z = (4W p + 2 (b − W 1)) ∘ g + 2s:

the same network, with other weights, in p = σ(2z), σ' = p − p². The weights are made once for each
solve, where the tanh would be computed for each state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnf.fields.activations import Activation


def _logistic(z: Tensor) -> tuple[Tensor, None]:
    """σ = 1 / (1 + e⁻ᶻ)."""
    return torch.sigmoid(z), None


def _slope(value: Tensor, kept: Tensor | None) -> Tensor:
    """σ' = σ − σ²."""
    return torch.addcmul(value, value, value, value=-1)


def _back(value: Tensor, kept: Tensor | None, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = σ' (1 − 2σ)."""
    return torch.addcmul(v + d, value, d, value=-2) * slope


LOGISTIC = Activation(_logistic, _slope, _back)


def logistic_weights(weights: Sequence[Tensor], first: int) -> list[Tensor]:
    """The weights of the logistic network for those of the tanh network.

    Args:
        weights: Of all layers.
        first: The number of layers before the first tanh.
    """
    found = [*weights[:first], 2 * weights[first]]
    return [*found, *(4 * weight for weight in weights[first + 1 : -1]), 2 * weights[-1]]


def logistic_biases(
    weights: Sequence[Tensor], biases: Sequence[Tensor], first: int
) -> list[Tensor]:
    """The biases of the logistic network; arguments as in `logistic_weights`."""
    found = [*biases[:first], 2 * biases[first]]
    pairs = zip(weights[first + 1 :], biases[first + 1 :], strict=True)
    *hidden, last = (bias - weight.sum(1) for weight, bias in pairs)
    return [*found, *(2 * bias for bias in hidden), last]


def logistic_shifts(shifts: Tensor, first: int, last: int) -> Tensor:
    """The shifts (..., width): doubled, but for the layers before the first tanh and the last.

    Args:
        shifts: Of all layers, one after the other.
        first: The width of what is before the first tanh.
        last: The width of the last layer.
    """
    ones = shifts.new_ones(shifts.shape[-1] - first - last)
    return shifts * torch.nn.functional.pad(ones + 1, (first, last), value=1.0)
