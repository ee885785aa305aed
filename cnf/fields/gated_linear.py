"""The layer that FFJORD's fields are made of: a linear map, gated and shifted by signals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Affine:
    """The affine map x → g ∘ (W x) + s that a gated layer is at given signals.

    Attributes:
        weight: Shape (out, in). A gate that is the same for all rows is folded in: a product of
            out × in once, instead of one over the batch.
        offset: Shape (out,) or (rows, out).
        gate: Shape (out,) or (rows, out), None for no gate.
    """

    weight: Tensor
    offset: Tensor
    gate: Tensor | None

    def linear(self, x: Tensor) -> Tensor:
        """The linear part g ∘ (W x), for `x` of shape (..., rows, in)."""
        product = x @ self.weight.T
        return self._gated(product)

    def columns(self) -> Tensor:
        """The linear part of the unit vectors, shape (in, 1, out) or (in, rows, out)."""
        return self._gated(self.weight.T.unsqueeze(1))

    def __call__(self, x: Tensor) -> Tensor:
        """The map of `x`, shape (rows, in) → (rows, out)."""
        if self.offset.ndim == 1:
            return torch.addmm(self.offset, x, self.weight.T)
        return self.linear(x) + self.offset

    def _gated(self, product: Tensor) -> Tensor:
        if self.gate is None or self.gate.ndim == 1:
            return product
        return product * self.gate


class GatedLinear(nn.Module):
    """A linear map whose outputs are gated and shifted by signals s (time, then context).

        y = (W x + b) ∘ sigmoid(G s + g) + B s

    Without the gate it is FFJORD's ConcatLayer, without the shift its SquashLayer, with both its
    ConcatSquashLinear, with neither a plain linear map.

    Args:
        inputs: Size of x.
        outputs: Size of y.
        signals: Size of s.
        gate: Whether y is gated.
        shift: Whether y is shifted.

    Source: Grathwohl et al. (2019), appendix B.1.

    Example:
        >>> layer = GatedLinear(2, 3, signals=1, gate=True, shift=True)
        >>> layer.at(torch.tensor([0.5]))(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, inputs: int, outputs: int, signals: int, *, gate: bool, shift: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(signals, outputs) if gate else None
        self.shift = nn.Linear(signals, outputs, bias=False) if shift else None

    def at(self, signals: Tensor) -> Affine:
        """The affine map at `signals`, of shape (s,) for all rows or (rows, s)."""
        weight: Tensor = self.linear.weight
        offset: Tensor = self.linear.bias
        gate = None
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(signals))
            offset = offset * gate
        if self.shift is not None:
            offset = offset + self.shift(signals)
        if gate is not None and gate.ndim == 1:
            weight = weight * gate.unsqueeze(1)
        return Affine(weight, offset, gate)
