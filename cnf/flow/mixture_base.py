"""Bases that are mixtures of normal distributions, for flows that refine such a mixture."""

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal


def mixture_base(weights: Tensor, means: Tensor, covariances: Tensor) -> MixtureSameFamily:
    """Return a mixture of normal distributions, Σ_k w_k N(z; μ_k, Σ_k), as a flow's base.

    Args:
        weights: Shape (K,), of which only the ratios matter.
        means: Shape (K, dim).
        covariances: Shape (K, dim, dim).

    Example:
        >>> base = mixture_base(torch.ones(3), torch.randn(3, 2), torch.eye(2).expand(3, 2, 2))
        >>> base.event_shape, base.sample((5,)).shape
        (torch.Size([2]), torch.Size([5, 2]))
    """
    factors = torch.linalg.cholesky(covariances)
    components = MultivariateNormal(means, scale_tril=factors)
    return MixtureSameFamily(Categorical(weights), components)


def unfitted_mixture(dim: int) -> MixtureSameFamily:
    """Return a mixture of one component, N(0, I), which `cnf.fit` replaces by one that it fits.

    Example:
        >>> is_unfitted(unfitted_mixture(2))
        True
    """
    return mixture_base(torch.ones(1), torch.zeros(1, dim), torch.eye(dim).unsqueeze(0))


def is_unfitted(base: Distribution) -> bool:
    """Return whether a base is as `unfitted_mixture` made it."""
    if not isinstance(base, MixtureSameFamily):
        return False
    parts = base.component_distribution
    if not isinstance(parts, MultivariateNormal) or parts.batch_shape != (1,):
        return False
    identity = torch.eye(parts.event_shape[0]).to(parts.loc)
    return not parts.loc.any() and torch.equal(parts.scale_tril[0], identity)
