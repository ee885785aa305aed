"""Bounds of a latent-variable model's log p(x), for any posterior, prior and likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

Likelihood = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Bound:
    """The evidence lower bound in its parts, each a mean over the samples, of shape (*batch).

    Attributes:
        value: log_likelihood − beta · kl, in nats: what to maximise.
        log_likelihood: E_q log p(x | z).
        kl: E_q [log q(z | x) − log p(z)].
    """

    value: Tensor
    log_likelihood: Tensor
    kl: Tensor


def elbo(
    posterior: Distribution,
    prior: Distribution,
    log_likelihood: Likelihood,
    samples: int = 1,
    beta: float = 1.0,
) -> Bound:
    """The evidence lower bound, E_q [log p(x | z) + beta (log p(z) − log q(z | x))] ≤ log p(x).

    Args:
        posterior: q(z | x), with batch shape (*batch): a `FlowPosterior`'s, or any distribution
            over vectors with `rsample`.
        prior: p(z), over vectors: whatever gives log p(z) the shape of log q(z | x).
        log_likelihood: log p(x | z) of z (*batch, latent), summed over the axes of x; with more
            than one sample of z (samples, *batch, latent).
        samples: Draws of z for each x.
        beta: Weight of the KL term. With less than 1 the value is no bound of log p(x): let it
            rise in training, `beta=min(1.0, step / 1000)`, so that the latents come into use.

    Raises:
        ValueError: There is no sample, `beta` is negative, the posterior cannot be
            reparameterised, or a log-density has another shape than log q(z | x).

    Source: Kingma & Welling (2014), Auto-encoding variational Bayes; Sønderby et al. (2016), Ladder
    variational autoencoders, for the rise of beta.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> def normal(loc, scale):
        ...     return Independent(Normal(loc, scale), 1)
        >>> prior = normal(torch.zeros(1), torch.ones(1))
        >>> x, loc = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [1.0]])
        >>> exact = normal(loc, torch.full_like(loc, 0.5**0.5))  # where x = z + noise
        >>> bound = elbo(exact, prior, lambda z: normal(z, torch.ones(1)).log_prob(x))
        >>> evidence = normal(torch.zeros(1), torch.full((1,), 2**0.5)).log_prob(x)
        >>> torch.allclose(bound.value, evidence)
        True
    """
    _check_samples(samples)
    if not beta >= 0:
        raise ValueError(f"Expected beta of at least 0; got {beta}")
    likelihood, kl = _terms(posterior, prior, log_likelihood, () if samples == 1 else (samples,))
    if samples > 1:
        likelihood, kl = likelihood.mean(0), kl.mean(0)
    return Bound(likelihood - beta * kl, likelihood, kl)


def iwae(
    posterior: Distribution,
    prior: Distribution,
    log_likelihood: Likelihood,
    samples: int,
    rows: int = 8192,
) -> Tensor:
    """The importance-weighted bound, shape (*batch), which rises to log p(x) with the samples.

        log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q(z | x)

    Args:
        posterior: As `elbo` has it.
        prior: Alike.
        log_likelihood: log p(x | z) of z (draws, *batch, latent), summed over the axes of x.
        samples: K.
        rows: The most z that there are at a time, at least one for each x: it draws in chunks.

    Raises:
        ValueError: As `elbo`; or `rows` is below 1.

    Where a gradient is asked for of several chunks, each is computed again on the way back, with
    the same draws; so that no more than one is in memory then either.

    Source: Burda et al. (2016), Importance weighted autoencoders, equation 8.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> wide = Independent(Normal(torch.zeros(1), 1.5 * torch.ones(1)), 1)
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> bound = iwae(wide, prior, lambda z: torch.zeros(len(z)), samples=10_000)
        >>> abs(bound.item()) < 0.05  # log p(x) = 0 for x that z does not tell of
        True
    """
    _check_samples(samples)
    if rows < 1:
        raise ValueError(f"Expected rows of at least 1; got {rows}")
    chunk = min(samples, max(1, rows // max(1, posterior.batch_shape.numel())))
    sizes = [min(chunk, samples - done) for done in range(0, samples, chunk)]

    def total(size: int) -> Tensor:
        likelihood, kl = _terms(posterior, prior, log_likelihood, (size,))
        return torch.logsumexp(likelihood - kl, 0)

    if torch.is_grad_enabled() and len(sizes) > 1:
        totals = [checkpoint(total, size, use_reentrant=False) for size in sizes]
    else:
        totals = [total(size) for size in sizes]
    return torch.stack(totals).logsumexp(0) - log(samples)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"Expected samples of at least 1; got {samples}")


def _terms(
    posterior: Distribution,
    prior: Distribution,
    log_likelihood: Likelihood,
    shape: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Log p(x | z), and log q(z | x) − log p(z), of draws from q, each (*shape, *batch)."""
    z, log_q = _draw(posterior, torch.Size(shape))
    found = {"prior": prior.log_prob(z), "likelihood": log_likelihood(z)}
    for name, log_p in found.items():
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"Expected the {name}'s log-density to have the shape of log q(z | x), "
                f"{tuple(log_q.shape)}; got {tuple(log_p.shape)}. Sum it over the other axes, for "
                "a distribution by torch.distributions.Independent"
            )
    return found["likelihood"], log_q - found["prior"]


def _draw(posterior: Distribution, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Reparameterised draws and their log-densities, in one solve where the posterior can."""
    if not posterior.has_rsample:
        raise ValueError(
            "Expected a posterior with rsample, whose draws have a gradient; "
            f"got {type(posterior).__name__}"
        )
    jointly = getattr(posterior, "rsample_and_log_prob", None)
    if jointly is not None:
        drawn: tuple[Tensor, Tensor] = jointly(shape)
        return drawn
    z = posterior.rsample(shape)
    return z, posterior.log_prob(z)
