"""Likelihoods of observed entries, each with its draws; entries that are missing have none."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cnf.utils.registry import Registry

LOWEST_LOG_SCALE = -7.0  # of the columns' standard deviations: a density stays bounded


class NormalNoise(nn.Module):
    """Observations x = loc + scale · ε of columns, ε ~ N(0, 1)."""

    def __init__(self, columns: int) -> None:
        super().__init__()

    def log_prob(self, x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return log p of entries, in the shape that the arguments broadcast to.

        Example:
            >>> zero = torch.zeros(1)
            >>> NormalNoise(1).log_prob(zero, zero, zero)
            tensor([-0.9189])
        """
        return -0.5 * ((x - loc) * (-log_scale).exp()).square() - log_scale - 0.5 * log(2 * pi)

    def weight(self, residual: Tensor) -> Tensor:
        """Return the weights of residuals ε in a Gauss–Newton step."""
        return torch.ones_like(residual)

    def quantile(self, levels: Tensor) -> Tensor:
        """Return the quantiles of ε at levels that broadcast against columns (…, D)."""
        found: Tensor = torch.special.ndtri(levels)
        return found


class StudentNoise(nn.Module):
    """Observations x = loc + scale · ε, ε of Student's t with learned degrees of freedom.

    Each column has its own degrees of freedom, above 2, so that variances are finite.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.full((columns,), 6.0))

    def degrees(self) -> Tensor:
        """Return the degrees of freedom of each column."""
        return 2.1 + softplus(self.free)

    def log_prob(self, x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return log p of entries, in the shape that the arguments broadcast to."""
        free = self.degrees()
        half = (free + 1) / 2
        constant = half.lgamma() - (free / 2).lgamma() - 0.5 * (free * pi).log()
        distance = ((x - loc) * (-log_scale).exp()).square()
        return constant - log_scale - half * (distance / free).log1p()

    def weight(self, residual: Tensor) -> Tensor:
        """Return the weights of residuals ε (…, D) in a Gauss–Newton step."""
        free = self.degrees()
        return (free + 1) / (free + residual.square())

    def quantile(self, levels: Tensor) -> Tensor:
        """Return the quantiles of ε at levels that broadcast against columns (…, D)."""
        from scipy.special import stdtrit  # here, since it takes long to import

        degrees = self.degrees().detach().double().cpu().numpy()
        found = stdtrit(degrees, levels.double().cpu().numpy())
        return torch.from_numpy(found).to(levels)


Noise = NormalNoise | StudentNoise

NOISES: Registry[type[Noise]] = Registry(
    {
        "normal": "cnf.series.likelihoods:NormalNoise",
        "student": "cnf.series.likelihoods:StudentNoise",
    }
)
"""The likelihoods of entries by name: modules of the number of columns."""
