"""The vector field of latent states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def rotations(dim: int, turns: float) -> Tensor:
    """Return A of pairs of latents that rotate at evenly spaced rates from 0, (dim, dim).

    Args:
        dim: Number of latents; one that is left over rests.
        turns: Number of turns in a unit of time that no rate reaches.

    Example:
        >>> rotations(4, 1.0) / torch.pi
        tensor([[ 0.,  0.,  0.,  0.],
                [ 0.,  0.,  0.,  0.],
                [ 0.,  0.,  0.,  1.],
                [ 0.,  0., -1.,  0.]])
    """
    pairs = dim // 2
    rates = 2 * torch.pi * turns * torch.arange(pairs) / max(1, pairs)
    found, first = torch.zeros(dim, dim), 2 * torch.arange(pairs)
    found[first, first + 1] = rates
    return found - found.mT


class LatentField(nn.Module):
    """A perceptron and a linear map: dz/dt = A z + c + W₃ tanh(W₂ tanh(W₁ z + w t + b₁) + b₂).

    The term w t is absent unless the field depends on time. At the start W₃ is zero and A that of
    `rotations`: a path is a sum of waves before it is anything else.

    Args:
        dim: Size of z.
        hidden: Widths of the hidden layers.
        timed: Whether the field depends on time.
        turns: Argument of `rotations`.

    Example:
        >>> field = LatentField(3, (8, 8))
        >>> LatentField.slope(torch.zeros(()), torch.zeros(5, 2, 3), field.args()).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self, dim: int, hidden: Sequence[int], timed: bool = False, turns: float = 4.0
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        widths = [dim, *hidden, dim]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        layers[-1].register_parameter("bias", None)
        for layer in (self.linear, *layers[:-1]):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.linear.weight.copy_(rotations(dim, turns))
            layers[-1].weight.zero_()
        self.layers = nn.ModuleList(layers)
        self.time = nn.Parameter(torch.zeros(widths[1])) if timed else None

    def args(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return the weights, as `solve` differentiates in them."""
        weights = tuple(tuple(layer.parameters()) for layer in (*self.layers, self.linear))
        return (*weights, () if self.time is None else (self.time,))

    @staticmethod
    def slope(t: Tensor, z: Tensor, args: tuple[tuple[Tensor, ...], ...]) -> Tensor:
        """Return dz/dt of states (B, K, dim), at a time of one shape with them or of none."""
        *layers, (last,), pair, timed = args
        hidden = z
        for i, (weight, bias) in enumerate(layers):
            before = linear(hidden, weight, bias)
            hidden = (before + t * timed[0] if timed and i == 0 else before).tanh()
        return linear(hidden, last) + linear(z, *pair)
