"""Posteriors q(z | x) of a VAE, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from cnf.vae.architecture import Architecture
from cnf.vae.planar import PlanarPosterior
from cnf.variational.posterior import FlowPosterior, check_encoding


class GaussianPosterior(nn.Module):
    """A Gaussian posterior N(loc, scale²) with independent coordinates.

    Example:
        >>> import torch
        >>> q = GaussianPosterior()(torch.zeros(3, 8), torch.zeros(3, 2), torch.ones(3, 2))
        >>> q.batch_shape, q.event_shape
        (torch.Size([3]), torch.Size([2]))
    """

    def forward(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> Distribution:
        """Return q(z | x) for the encoder's loc and scale; features h are ignored.

        Raises:
            ValueError: An input is not finite, or a scale is not positive.
        """
        del h
        check_encoding({"loc": loc, "scale": scale})
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _gaussian(architecture: Architecture) -> nn.Module:
    return GaussianPosterior()


def _planar(architecture: Architecture) -> nn.Module:
    return PlanarPosterior(architecture.latent_dim, architecture.features, architecture.flows)


def _cnf(architecture: Architecture) -> nn.Module:
    return FlowPosterior(
        architecture.latent_dim,
        architecture.features,
        architecture.amortize,
        architecture.field,
    )


POSTERIORS: dict[str, Callable[[Architecture], nn.Module]] = {
    "gaussian": _gaussian,
    "planar": _planar,
    "cnf": _cnf,
}
"""Constructors of posteriors by name: modules that map features h, loc and scale to q(z | x)."""
