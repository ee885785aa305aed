"""Lower bounds of a VAE's log p(x) of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.vae.model import VAE
from cnf.variational.elbo import iwae

ELBO_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class LikelihoodBounds:
    """Bounds of the log-likelihood log p(x) of images, in nats, shape (n,) each.

    Attributes:
        elbo: Evidence lower bound.
        nll: Minus the importance-weighted bound, which is tighter: on average at least −log p(x).
    """

    elbo: Tensor
    nll: Tensor


@torch.no_grad()
def score(vae: VAE, x: Tensor, samples: int = 1000) -> LikelihoodBounds:
    """Return bounds of log p(x) of images (n, pixels), with the posterior solved accurately.

    Args:
        vae: A trained VAE.
        x: Images as returned by the likelihood's `observe`.
        samples: Draws of z for the importance-weighted bound; the evidence lower bound averages
            over at most a hundred.

    Raises:
        ValueError: `samples` is below 1, or the likelihood's `check` rejects x.
        SolveError: A solve failed.

    Source: Burda et al. (2016), Importance weighted autoencoders.
    """
    vae.likelihood.check(x)
    accurate = vae.accurate()
    prior, elbo_samples = vae.prior, min(samples, ELBO_SAMPLES)
    elbos, nlls = [], []
    for part in x.split(max(1, vae.decoder_batch // elbo_samples)):
        posterior, likelihood = accurate.posterior_of(part), vae.log_likelihood(part)
        nlls.append(-iwae(posterior, prior, likelihood, samples, vae.decoder_batch))
        elbos.append(accurate.bound(part, samples=elbo_samples).value)
    return LikelihoodBounds(torch.cat(elbos), torch.cat(nlls))
