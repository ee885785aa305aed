"""The layer of FFJORD's fields: a linear map, gated and shifted by time and context."""

from typing import ClassVar

from torch import Tensor, nn

from cnf.fields.activations import LOGISTIC, Activation


class GatedLinear(nn.Module):
    """A linear map whose outputs are gated and shifted by conditioning s (time, then context).

        y = (W x + b) ∘ γ(G s + g) + B s,   γ(z) = 1 / (1 + e⁻ᶻ)

    Without the gate it is FFJORD's ConcatLayer, without the shift its SquashLayer, with both its
    ConcatSquashLinear, with neither a plain linear map.

    Args:
        inputs: Size of x.
        outputs: Size of y.
        conditioning: Size of s.
        gate: Whether y is gated.
        shift: Whether y is shifted.

    Shapes: x (rows, inputs), s (conditioning,) or (rows, conditioning) → (rows, outputs).

    Source: Grathwohl et al. (2019), appendix B.1.

    Example:
        >>> import torch
        >>> layer = GatedLinear(2, 3, conditioning=1, gate=True, shift=True)
        >>> layer(torch.zeros(4, 2), torch.tensor([0.5])).shape
        torch.Size([4, 3])
    """

    gate_activation: ClassVar[Activation] = LOGISTIC

    def __init__(
        self, inputs: int, outputs: int, conditioning: int, *, gate: bool, shift: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(conditioning, outputs) if gate else None
        self.shift = nn.Linear(conditioning, outputs, bias=False) if shift else None

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if self.gate is not None:
            y = y * self.gate_activation.function(self.gate(conditioning))[0]
        return y if self.shift is None else y + self.shift(conditioning)
