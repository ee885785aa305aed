"""Lower bounds of a latent-variable model's log p(x), for any posterior, prior and likelihood."""

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
    """An evidence lower bound in its parts, each a mean over the samples, of shape (*batch).

    Attributes:
        value: The bound to maximise, log_likelihood − beta · kl, in nats.
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
    """Compute the evidence lower bound of log p(x), shape (*batch).

        E_q [log p(x | z) + beta (log p(z) − log q(z | x))] ≤ log p(x)

    Args:
        posterior: q(z | x), with batch shape (*batch): a `FlowPosterior`'s, or any distribution
            over vectors with `rsample`.
        prior: p(z) over vectors, whose log p(z) has the shape of log q(z | x).
        log_likelihood: log p(x | z) of z (*batch, latent), summed over the axes of x; with more
            than one sample of z (samples, *batch, latent).
        samples: Number of draws of z for each x.
        beta: Weight of the KL term. Below 1 the value is no bound of log p(x); a weight that rises
            in training, `beta=min(1.0, step / 1000)`, helps the model to use its latents.

    Raises:
        ValueError: `samples` is below 1, `beta` is negative, the posterior cannot be
            reparameterised, or a log-density has another shape than log q(z | x).

    Source: Kingma & Welling (2014), Auto-encoding variational Bayes; Sønderby et al. (2016), Ladder
    variational autoencoders, for the schedule of beta.

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
    _check_count("samples", samples)
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
    """Compute the importance-weighted bound, shape (*batch), which rises to log p(x) with K.

        log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q(z | x)

    The draws come in chunks, which the backward pass recomputes with the same draws, so that one
    chunk at a time is in memory.

    Args:
        posterior: q(z | x) as in `elbo`.
        prior: p(z) as in `elbo`.
        log_likelihood: log p(x | z) of z (draws, *batch, latent), summed over the axes of x.
        samples: Number K of draws of z for each x.
        rows: Largest number of z in a chunk, which has at least one for each x.

    Raises:
        ValueError: An argument of `elbo` is wrong, or `rows` is below 1.

    Source: Burda et al. (2016), Importance weighted autoencoders, equation 8.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> wide = Independent(Normal(torch.zeros(1), 1.5 * torch.ones(1)), 1)
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> bound = iwae(wide, prior, lambda z: torch.zeros(len(z)), samples=10_000)
        >>> abs(bound.item()) < 0.05  # log p(x) = 0 for x that does not depend on z
        True
    """
    _check_count("samples", samples)
    _check_count("rows", rows)
    chunk = min(samples, max(1, rows // max(1, posterior.batch_shape.numel())))
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]

    def log_total(size: int) -> Tensor:
        likelihood, kl = _terms(posterior, prior, log_likelihood, (size,))
        return torch.logsumexp(likelihood - kl, 0)

    recomputed = torch.is_grad_enabled() and len(sizes) > 1
    totals = [
        checkpoint(log_total, size, use_reentrant=False) if recomputed else log_total(size)
        for size in sizes
    ]
    return torch.stack(totals).logsumexp(0) - log(samples)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"Expected {name} of at least 1; got {count}")


def _terms(
    posterior: Distribution, prior: Distribution, log_likelihood: Likelihood, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return log p(x | z) and log q(z | x) − log p(z) of draws from q, each (*shape, *batch)."""
    if not posterior.has_rsample:
        raise ValueError(
            "Expected a posterior with rsample, whose draws have a gradient; "
            f"got {type(posterior).__name__}: use a reparameterised distribution"
        )
    jointly = getattr(posterior, "rsample_and_log_prob", None)  # in one solve
    if jointly is not None:
        z, log_q = jointly(torch.Size(shape))
    else:
        z = posterior.rsample(torch.Size(shape))
        log_q = posterior.log_prob(z)
    log_densities = {"prior": prior.log_prob(z), "likelihood": log_likelihood(z)}
    for name, log_p in log_densities.items():
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"Expected the {name}'s log-density to have the shape of log q(z | x), "
                f"{tuple(log_q.shape)}; got {tuple(log_p.shape)}. Sum it over the other axes, for "
                "a distribution by torch.distributions.Independent"
            )
    return log_densities["likelihood"], log_q - log_densities["prior"]
