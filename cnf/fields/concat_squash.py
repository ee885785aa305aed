"""FFJORD's concat-squash network, with the exact trace of its Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cnf.fields.activations import ACTIVATIONS
from cnf.fields.field import TracedField
from cnf.fields.gated_linear import Affine, GatedLinear


class ConcatSquash(TracedField):
    """A network whose hidden layers are gated and shifted by time and context.

    With h₀ = x, signals s = (t, c) and layers l = 1 … L,

        h_l = σ(z_l),   z_l = (W_l h_{l−1} + b_l) ∘ g_l(s) + B_l s,
        f(t, x, c) = W_{L+1} h_L + b_{L+1} + B_{L+1} s.

    The last layer is shifted but not gated, so that the trace of ∂f/∂x has a closed form for one
    and two hidden layers, with derivatives d_l = g_l ∘ σ'(z_l):

        L = 1:  tr = dᵀ p,        p = rowsum(W₁ ∘ W₂ᵀ),
        L = 2:  tr = d₂ᵀ P d₁,    P = W₂ ∘ (W₁ W₃)ᵀ.

    P is computed once for each solve, and the trace then costs one product more for each
    evaluation. Deeper networks carry `dim` tangents through each layer as one stacked product.

    Args:
        dim: Size of x.
        hidden: Widths of the hidden layers, at least one.
        context_dim: Size of the context c; 0 without one.
        activation: `"tanh"`, `"softplus"`, `"silu"` or `"gelu"`.
        zero_last: Whether the last layer starts at zero, and so the field, and its flow as the
            identity.

    Raises:
        ValueError: A size is not positive or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Source: Grathwohl et al. (2019), FFJORD, appendix B.1, with the last layer ungated.

    Example:
        >>> field = ConcatSquash(2, hidden=(16, 16))
        >>> field.trace
        'closed form'
        >>> t, x = torch.tensor(0.5), torch.randn(5, 2)
        >>> velocity, trace = field.with_divergence(t, x, None, field.constants())
        >>> velocity.shape, trace.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    name: ClassVar[str] = "concat_squash"

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or context_dim < 0 or not hidden or min(hidden) < 1:
            raise ValueError(
                "Expected dim of at least 1, at least one hidden width, each at least 1, and "
                f"context_dim of at least 0; got dim = {dim}, hidden = {tuple(hidden)}, "
                f"context_dim = {context_dim}"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        self.dim = dim
        self.hidden = tuple(hidden)
        self.context_dim = context_dim
        self.activation = activation
        self.trace: Literal["closed form", "tangents"] = (
            "closed form" if len(self.hidden) <= 2 else "tangents"
        )
        signals = 1 + context_dim
        sizes = [dim, *self.hidden]
        self.layers = nn.ModuleList(
            GatedLinear(inputs, outputs, signals, gate=True, shift=True)
            for inputs, outputs in pairwise(sizes)
        )
        self.last = GatedLinear(sizes[-1], dim, signals, gate=False, shift=True)
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity f(t, x, c)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self._affine(t, context)
        for layer in hidden:
            x, _ = activation(layer(x))
        return last(x)

    def constants(self) -> tuple[Tensor, ...]:
        """The vector p or the matrix P above; nothing for deeper networks."""
        weights = [layer.linear.weight for layer in (*self.layers, self.last)]
        match weights:
            case [first, last]:
                return ((first * last.T).sum(1),)
            case [first, middle, last]:
                return (middle * (first @ last).T,)
            case _:
                return ()

    def with_divergence(
        self, t: Tensor, x: Tensor, context: Tensor | None, constants: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The velocity and the exact trace of its Jacobian."""
        layers = self._affine(t, context)
        if constants:
            return self._closed_form(layers, x, constants[0])
        return self._tangents(layers, x)

    def _closed_form(self, layers: list[Affine], x: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        *hidden, last = layers
        slopes = []
        for layer in hidden:
            x, slope = ACTIVATIONS[self.activation](layer(x))
            slopes.append(slope if layer.gate is None else slope * layer.gate)
        if len(slopes) == 1:
            return last(x), slopes[0] @ P
        return last(x), ((slopes[0] @ P.T) * slopes[1]).sum(-1)

    def _tangents(self, layers: list[Affine], x: Tensor) -> tuple[Tensor, Tensor]:
        first, *middle, last = layers
        activation = ACTIVATIONS[self.activation]
        tangents = first.columns()  # ∂z/∂x_j, stacked over j
        x, slope = activation(first(x))
        for layer in middle:
            stacked = layer.linear(torch.cat([x.unsqueeze(0), slope * tangents]))
            tangents = stacked[1:]
            x, slope = activation(stacked[0] + layer.offset)
        trace = slope * (tangents * last.weight.unsqueeze(1)).sum(0)
        return last(x), trace.sum(-1)

    def _affine(self, t: Tensor, context: Tensor | None) -> list[Affine]:
        """The layers at a time and a context, the last one too."""
        signals = t.reshape(-1, 1) if t.ndim else t.reshape(1)
        if context is not None:
            signals = torch.cat([signals.expand(len(context), 1), context], 1)
        return [layer.at(signals) for layer in (*self.layers, self.last)]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, but for the weights' start."""
        return {
            "dim": self.dim,
            "hidden": list(self.hidden),
            "context_dim": self.context_dim,
            "activation": self.activation,
        }

    def extra_repr(self) -> str:
        """The sizes, for the module's repr."""
        return f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}"
