"""A tanh network as a logistic one, whose values and slopes cost the fewest passes.

With tanh z = 2p − 1 and p = 1 / (1 + e⁻²ᶻ), a layer of tanh after one of tanh is

    z = (W (2p − 1) + b) ∘ g + s,   2z = (4W p + 2 (b − W 1)) ∘ g + 2s:

the same network, with other weights, in p = σ(2z), σ' = p − p². The weights are made once for each
solve, the tanh would be computed for each state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def logistic_weights(weights: Sequence[Tensor], first: int) -> list[Tensor]:
    """Return the weights of the logistic network for those of the tanh network.

    Args:
        weights: Weights of all layers.
        first: The number of layers before the first tanh.
    """
    start = [*weights[:first], 2 * weights[first]]
    return [*start, *(4 * weight for weight in weights[first + 1 : -1]), 2 * weights[-1]]


def logistic_biases(
    weights: Sequence[Tensor], biases: Sequence[Tensor], first: int
) -> list[Tensor]:
    """Return the biases of the logistic network; arguments as in `logistic_weights`."""
    start = [*biases[:first], 2 * biases[first]]
    pairs = zip(weights[first + 1 :], biases[first + 1 :], strict=True)
    *hidden, last = (bias - weight.sum(1) for weight, bias in pairs)
    return [*start, *(2 * bias for bias in hidden), last]


def logistic_shifts(shifts: Tensor, first: int, last: int) -> Tensor:
    """Return the shifts (..., width) of the logistic network, doubled where a tanh follows.

    Args:
        shifts: Shifts of all layers, one after the other.
        first: The width of the layers before the first tanh.
        last: The width of the last layer.
    """
    ones = shifts.new_ones(shifts.shape[-1] - first - last)
    return shifts * torch.nn.functional.pad(ones + 1, (first, last), value=1.0)
