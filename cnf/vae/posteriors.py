"""Posteriors q(z | x) of a VAE."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from math import e, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution

from cnf.utils.shapes import Shape, sizes
from cnf.vae.architecture import Architecture
from cnf.variational.posterior import FlowPosterior, check_encoding


class GaussianPosterior(nn.Module):
    """A Gaussian posterior N(loc, scale²) with independent coordinates.

    Example:
        >>> q = GaussianPosterior()(torch.zeros(3, 8), torch.zeros(3, 2), torch.ones(3, 2))
        >>> q.batch_shape, q.event_shape
        (torch.Size([3]), torch.Size([2]))
    """

    def forward(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> Distribution:
        """Return q(z | x) for the encoder's loc and scale; features h are ignored.

        Raises:
            ValueError: An input is not finite, or a scale is not positive.
        """
        check_encoding({"loc": loc, "scale": scale})
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


class PlanarPosterior(nn.Module):
    """A posterior by planar flows, from Pyro, of the encoder's Gaussian.

    Each flow is f(z) = z + û tanh(wᵀz + b), with parameters linear in h; it starts as the identity.

    Args:
        latent_dim: Number of latents.
        context_dim: Number of features h.
        flows: Number of flows.

    Raises:
        ValueError: Pyro is not installed.

    Source: Rezende & Mohamed (2015), Variational inference with normalizing flows, section 4.1.

    Example:
        >>> posterior = PlanarPosterior(latent_dim=2, context_dim=8, flows=3)
        >>> q = posterior(torch.zeros(5, 8), torch.zeros(5, 2), torch.ones(5, 2))
        >>> z, log_q = q.rsample_and_log_prob((10,))
        >>> z.shape, log_q.shape
        (torch.Size([10, 5, 2]), torch.Size([10, 5]))
    """

    def __init__(self, latent_dim: int, context_dim: int, flows: int) -> None:
        super().__init__()
        try:
            transforms = import_module("pyro.distributions.transforms")
        except ImportError:
            raise ValueError(
                "Expected Pyro for planar flows; got none installed: run pip install "
                "'cnf-flows[bench]'"
            ) from None
        self.flows = nn.ModuleList(
            transforms.ConditionalPlanar(_PlanarParameters(context_dim, latent_dim))
            for _ in range(flows)
        )

    def forward(self, h: Tensor, loc: Tensor, scale: Tensor) -> Distribution:
        """Return q(z | x) for the encoder's features h (n, context_dim), loc and scale.

        Raises:
            ValueError: An input is not finite, or a scale is not positive.
        """
        check_encoding({"h": h, "loc": loc, "scale": scale})
        gaussian = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        flows: Iterable[Any] = self.flows
        transforms = [flow.condition(h) for flow in flows]
        return Planar(gaussian, transforms, validate_args=False)


class _PlanarParameters(nn.Module):
    """Parameters b, u and w of one flow, linear in h, that make it start as the identity.

    In Pyro û = u + (softplus(wᵀu) − 1 − wᵀu) w / |w|², which is 0 for u = log(e − 1) w / |w|².
    """

    def __init__(self, context_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.sizes = [1, latent_dim, latent_dim]
        self.linear = nn.Linear(context_dim, sum(self.sizes))
        w = torch.randn(latent_dim) / latent_dim**0.5
        u = log(e - 1) * w / w.square().sum()
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.cat([torch.zeros(1), u, w]))

    def forward(self, h: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.linear(h).split(self.sizes, -1))  # in the order that Pyro expects


class Planar(TransformedDistribution):
    """A distribution transformed by maps without an inverse in closed form.

    Only the log-density of draws is available, which the transforms remember.
    """

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draw samples (*sample_shape, *batch, dim) with log q (*sample_shape, *batch)."""
        z = self.rsample(sizes(sample_shape))
        return z, super().log_prob(z)  # type: ignore[no-untyped-call]


def gaussian(architecture: Architecture) -> nn.Module:
    """Build the encoder's Gaussian."""
    return GaussianPosterior()


def planar(architecture: Architecture) -> nn.Module:
    """Build planar flows."""
    return PlanarPosterior(architecture.latent_dim, architecture.features, architecture.flows)


def continuous(architecture: Architecture) -> nn.Module:
    """Build a continuous flow with an amortized field."""
    return FlowPosterior(
        architecture.latent_dim, architecture.features, architecture.amortize, architecture.field
    )
