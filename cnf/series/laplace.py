"""Gaussian approximations of posteriors of latent states, by Gauss–Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

DIFFERENCE = 1e-2  # of forward differences; latents have order one
LONGEST = 1.0  # the largest change of a latent in a step
SPREAD = 1.1  # factor on standard deviations: tails of a proposal are better too heavy

Curves = Callable[[Tensor], tuple[Tensor, Tensor]]
Weight = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GaussianProposals:
    """Gaussians N(mean, F Fᵀ) of the latents of series, means (B, L) and factors F (B, L, L)."""

    mean: Tensor
    factor: Tensor

    def of(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the draws of standard normal noise (B, K, L), and their log q (B, K).

        Example:
            >>> q = GaussianProposals(torch.zeros(1, 2), torch.eye(2)[None])
            >>> z, log_q = q.of(torch.zeros(1, 3, 2))
            >>> log_q.exp()  # 1 / 2π
            tensor([[0.1592, 0.1592, 0.1592]])
        """
        z = self.mean[:, None] + noise @ self.factor.mT
        log_det = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_q = -0.5 * (noise.square() + log(2 * pi)).sum(-1) - log_det[:, None]
        return z, log_q


def laplace(
    curves: Curves, weight: Weight, x: Tensor, mask: Tensor, start: Tensor, steps: int
) -> GaussianProposals:
    """Return Gaussian approximations of p(z | x) for z ~ N(0, I), x = loc(z) + σ ε.

    With residuals e = (x − loc) / σ, the Jacobian J of loc / σ by forward differences, and weights
    w of the entries (1 for normal noise), a Gauss–Newton step is

        z ← z + H⁻¹ (Jᵀ W e − z),   H = I + Jᵀ W J,

    cut to a length, and the covariance is H⁻¹ at the end. Where loc is linear in z and the noise
    normal, one step gives the exact posterior.

    Args:
        curves: Function of points (B, P, L) to loc and σ that broadcasts to it, (B, P, T, D).
        weight: Function of residuals that weighs them.
        x: Observations, shape (B, T, D).
        mask: 1 where there is one, shape (B, T, D).
        start: Latents to start at, (B, L).
        steps: Number of steps, at least one.

    Source: Tierney & Kadane (1986), Accurate approximations for posterior moments and marginal
    densities.

    Example:
        >>> x = torch.tensor([[[1.0]]])  # of z + ε with both standard normal
        >>> found = laplace(lambda z: (z[..., None], torch.ones(1)), torch.ones_like, x,
        ...                 torch.ones(1, 1, 1), torch.zeros(1, 1), steps=2)
        >>> print(f"{found.mean.item():.3f} {(found.factor.item() / SPREAD) ** 2:.3f}")
        0.500 0.500
    """
    latents = start.shape[-1]
    shifts = torch.cat([start.new_zeros(1, latents), DIFFERENCE * torch.eye(latents).to(start)])
    z = start
    for step in range(steps + 1):
        loc, scale = curves(z[:, None] + shifts)
        scale = scale[:, :1] if scale.ndim == 4 else scale
        jacobian = (loc[:, 1:] - loc[:, :1]) / (DIFFERENCE * scale)
        residual = (x[:, None] - loc[:, :1]) / scale
        weighted = (mask[:, None] * weight(residual) * jacobian).flatten(2)
        curvature = weighted @ jacobian.flatten(2).mT + torch.eye(latents).to(z)
        factor = torch.linalg.cholesky(curvature)
        if step < steps:
            slope = (weighted @ residual.flatten(2).mT)[..., 0] - z
            change = torch.cholesky_solve(slope[..., None], factor)[..., 0]
            longest = change.abs().amax(1, keepdim=True).clamp(min=LONGEST) / LONGEST
            z = z + change / longest
    inverse = torch.cholesky_inverse(factor)
    return GaussianProposals(z, SPREAD * torch.linalg.cholesky(inverse))
