"""Variational autoencoders of images, to compare posteriors with: `train-vae` as a library.

`Architecture` describes a `VAE`; `fit` trains it by a `Plan`; `score` returns bounds of log p(x).

Example:
    >>> import torch
    >>> from cnf.datasets import load_images
    >>> images = load_images("digits")
    >>> vae = VAE(Architecture(images.size, images.white, hidden=(16,), latent_dim=2))
    >>> x, held_out = (grey(each, images.white) for each in (images.train, images.validation))
    >>> records = fit(vae, x[:200], held_out[:50], Plan(epochs=1))
    >>> score(vae, vae.likelihood.observe(held_out[:5]), samples=10).nll.shape
    torch.Size([5])
"""

from cnf.vae.architecture import Architecture
from cnf.vae.likelihoods import LIKELIHOODS, grey
from cnf.vae.model import VAE, load
from cnf.vae.networks import NETWORKS
from cnf.vae.plan import Plan
from cnf.vae.posteriors import POSTERIORS
from cnf.vae.score import LikelihoodBounds, score
from cnf.vae.training import EpochRecord, VAEStep, fit

__all__ = [
    "LIKELIHOODS",
    "NETWORKS",
    "POSTERIORS",
    "VAE",
    "Architecture",
    "EpochRecord",
    "LikelihoodBounds",
    "Plan",
    "VAEStep",
    "fit",
    "grey",
    "load",
    "score",
]
