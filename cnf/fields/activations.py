"""Activations with their derivatives, as the closed-form traces need both."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import torch
from torch import Tensor

# σ(z) and σ'(z) together: the derivative is made of what the value has already computed.
Activation = Callable[[Tensor], tuple[Tensor, Tensor]]


def tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = tanh z, σ' = 1 − σ²."""
    value = torch.tanh(z)
    return value, 1 - value * value


def softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = ln(1 + eᶻ), σ' = 1 / (1 + e⁻ᶻ)."""
    return torch.nn.functional.softplus(z), torch.sigmoid(z)


def silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z s, σ' = s + σ (1 − s), with s = 1 / (1 + e⁻ᶻ)."""
    gate = torch.sigmoid(z)
    value = z * gate
    return value, gate + value * (1 - gate)


def gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z Φ(z), σ' = Φ(z) + z φ(z), with the standard normal's Φ and φ."""
    cdf = 0.5 * (1 + torch.erf(z / sqrt(2)))
    density = torch.exp(-0.5 * z * z) / sqrt(2 * pi)
    return z * cdf, cdf + z * density


ACTIVATIONS: dict[str, Activation] = {
    "tanh": tanh,
    "softplus": softplus,
    "silu": silu,
    "gelu": gelu,
}
