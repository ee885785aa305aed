"""The layer that FFJORD's fields are made of: a linear map, gated and shifted by signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

    Shapes: x (rows, inputs), s (signals,) or (rows, signals) → (rows, outputs).

    Source: Grathwohl et al. (2019), appendix B.1.

    Example:
        >>> layer = GatedLinear(2, 3, signals=1, gate=True, shift=True)
        >>> layer(torch.zeros(4, 2), torch.tensor([0.5])).shape
        torch.Size([4, 3])
    """

    def __init__(self, inputs: int, outputs: int, signals: int, *, gate: bool, shift: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(signals, outputs) if gate else None
        self.shift = nn.Linear(signals, outputs, bias=False) if shift else None

    def forward(self, x: Tensor, signals: Tensor) -> Tensor:
        """The map of x at some signals."""
        y: Tensor = self.linear(x)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(signals))
        return y if self.shift is None else y + self.shift(signals)
