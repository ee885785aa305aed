"""Variational autoencoders of images, to compare posteriors with: `train-vae` as a library.

`Architecture` describes a `VAE`; `fit` trains it by a `Plan`; `score` returns bounds of log p(x).

Example:
    >>> from cnf.datasets import load_images
    >>> from cnf.vae import VAE, Architecture, Plan, fit, grey, score
    >>> images = load_images("digits")
    >>> vae = VAE(Architecture(images.size, images.white, hidden=(16,), latent_dim=2))
    >>> x, held_out = (grey(each, images.white) for each in (images.train, images.validation))
    >>> records = fit(vae, x[:200], held_out[:50], Plan(epochs=1))
    >>> score(vae, vae.likelihood.observe(held_out[:5]), samples=10).nll.shape
    torch.Size([5])
"""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.vae.architecture import LIKELIHOODS, NETWORKS, POSTERIORS, Architecture
    from cnf.vae.likelihoods import grey
    from cnf.vae.model import VAE, LikelihoodBounds, load, score
    from cnf.vae.plan import Plan
    from cnf.vae.training import EpochRecord, VAEStep, fit
else:  # architectures and plans are read without PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "architecture": "LIKELIHOODS NETWORKS POSTERIORS Architecture",
            "likelihoods": "grey",
            "model": "VAE LikelihoodBounds load score",
            "plan": "Plan",
            "training": "EpochRecord VAEStep fit",
        },
    )

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
