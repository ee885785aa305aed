"""Bounds of a VAE's log p(x), image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.vae.model import VAE
from cnf.variational.elbo import iwae

ELBO_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class Bounds:
    """What the images' log p(x) is at least, in nats, shape (n,) each.

    Attributes:
        elbo: The evidence lower bound.
        nll: Minus the importance-weighted bound, which is closer: at least −log p(x).
    """

    elbo: Tensor
    nll: Tensor


@torch.no_grad()
def score(vae: VAE, x: Tensor, samples: int = 1000) -> Bounds:
    """The bounds of images (n, pixels), with the posterior solved with care.

    Args:
        vae: A trained one.
        x: What its likelihood observes.
        samples: Draws of z for the importance-weighted bound; the evidence lower bound's mean is
            over at most a hundred.

    Raises:
        ValueError: There is no sample, or x is nothing that the likelihood observes.
        SolveError: A solve failed.

    Source: Burda et al. (2016), Importance weighted autoencoders.
    """
    vae.likelihood.check(x)
    careful = vae.accurate()
    prior, few = vae.prior, min(samples, ELBO_SAMPLES)
    elbos, nlls = [], []
    for part in x.split(max(1, vae.most // few)):
        posterior, likelihood = careful.posterior_of(part), vae.log_likelihood(part)
        nlls.append(-iwae(posterior, prior, likelihood, samples, vae.most))
        elbos.append(careful.bound(part, samples=few).value)
    return Bounds(torch.cat(elbos), torch.cat(nlls))
