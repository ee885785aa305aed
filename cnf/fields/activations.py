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
        function: σ(z), and what else of z the derivatives are made of; None where the value will
            do.
        slope: σ'(z) of these two.
        back: The way back, z̄ = σ' v̄ + σ'' d̄, of these two, σ'(z) and the cotangents v̄ of the value
            and d̄ of the derivative.

    Example:
        >>> value, slope = ACTIVATIONS["tanh"](torch.zeros(3))
        >>> value, slope
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    slope: Callable[[Tensor, Tensor | None], Tensor]
    back: Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """σ(z) and σ'(z)."""
        value, kept = self.function(z)
        return value, self.slope(value, kept)


def _tanh(z: Tensor) -> tuple[Tensor, None]:
    """σ = 2 / (1 + e⁻²ᶻ) − 1.

    The same to a rounding of 1 as torch.tanh, and on a CPU twice as fast (512 x 64 float32: 43 µs,
    torch.tanh 84).
    """
    return torch.sigmoid(2 * z) * 2 - 1, None


def _tanh_slope(value: Tensor, kept: Tensor | None) -> Tensor:
    """σ' = 1 − σ²."""
    return 1 - value * value


def _tanh_back(value: Tensor, kept: Tensor | None, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = −2 σ σ'."""
    return torch.addcmul(v, value, d, value=-2) * slope


def _softplus(z: Tensor) -> tuple[Tensor, None]:
    """σ = ln(1 + eᶻ)."""
    return torch.nn.functional.softplus(z), None


def _softplus_slope(value: Tensor, kept: Tensor | None) -> Tensor:
    """σ' = 1 − e^−σ, right to a rounding of 1; by expm1, to one of σ', it takes twice as long."""
    return 1 - torch.exp(-value)


def _softplus_back(
    value: Tensor, kept: Tensor | None, slope: Tensor, v: Tensor, d: Tensor
) -> Tensor:
    """σ'' = σ' (1 − σ')."""
    return torch.addcmul(v + d, slope, d, value=-1) * slope


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z s, with the gate s = 1 / (1 + e⁻ᶻ), of which the derivatives are made too."""
    gate = torch.sigmoid(z)
    return z * gate, gate


def _silu_slope(value: Tensor, gate: Tensor | None) -> Tensor:
    """σ' = s + σ − σ s."""
    assert gate is not None
    return torch.addcmul(gate + value, gate, value, value=-1)


def _silu_back(value: Tensor, gate: Tensor | None, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = s + σ' − 2 s σ'."""
    assert gate is not None
    bend = torch.addcmul(gate + slope, gate, slope, value=-2)
    return torch.addcmul(v * slope, d, bend)


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / sqrt(2 * pi)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / sqrt(2)))


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ = z Φ(z), with the standard normal's Φ and φ; the derivatives are made of z."""
    return z * _normal_cdf(z), z


def _gelu_slope(value: Tensor, z: Tensor | None) -> Tensor:
    """σ' = Φ(z) + z φ(z)."""
    assert z is not None
    return torch.addcmul(_normal_cdf(z), z, _normal_density(z))


def _gelu_back(value: Tensor, z: Tensor | None, slope: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """σ'' = (2 − z²) φ(z)."""
    assert z is not None
    return v * slope + d * (2 - z * z) * _normal_density(z)


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(_tanh, _tanh_slope, _tanh_back),
    "softplus": Activation(_softplus, _softplus_slope, _softplus_back),
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


def waves(dim: int, count: int) -> Activation:
    """Fourier features of x: of (x, ωx, ωx) the identity, the sine and the cosine.

    The derivatives of a sine and a cosine of one argument are made of one another, so that nothing
    is computed twice.

    Args:
        dim: Size of x.
        count: Size of ω.
    """
    sizes = [dim, count, count]
    return Activation(
        partial(_waves, sizes), partial(_waves_slope, sizes), partial(_waves_back, sizes)
    )


def _waves(sizes: list[int], z: Tensor) -> tuple[Tensor, None]:
    x, of_sine, of_cosine = z.split(sizes, -1)
    return torch.cat([x, torch.sin(of_sine), torch.cos(of_cosine)], -1), None


def _waves_slope(sizes: list[int], value: Tensor, kept: Tensor | None) -> Tensor:
    x, sine, cosine = value.split(sizes, -1)
    return torch.cat([torch.ones_like(x), cosine, -sine], -1)


def _waves_back(
    sizes: list[int], value: Tensor, kept: Tensor | None, slope: Tensor, v: Tensor, d: Tensor
) -> Tensor:
    """σ'' = −σ but for the identity."""
    dim = sizes[0]
    bent = torch.addcmul(v[..., dim:] * slope[..., dim:], d[..., dim:], value[..., dim:], value=-1)
    return torch.cat([v[..., :dim], bent], -1)
