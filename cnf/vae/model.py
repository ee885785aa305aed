"""A variational autoencoder of images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import softplus

from cnf.storage import read_model, reporting_load_errors, write_model
from cnf.utils.random import seeded
from cnf.utils.sharing import restore_sharing, shared_parts
from cnf.vae.architecture import LIKELIHOODS, NETWORKS, POSTERIORS, Architecture
from cnf.vae.likelihoods import Likelihood
from cnf.vae.posteriors import GaussianPosterior
from cnf.variational import Bound, elbo, iwae
from cnf.variational.posterior import FlowPosterior

MIN_POSTERIOR_SCALE = 1e-4
ELBO_SAMPLES = 100  # the most, of a score
GAUSSIAN = GaussianPosterior()
VAE_CONFIG_KEYS = ("architecture", "metadata")


class VAE(nn.Module):
    """A variational autoencoder: a decoder p(x | z) p(z), z ~ N(0, 1), and a posterior q(z | x).

    Attributes:
        likelihood: p(x | z) given the decoder's outputs, one of `cnf.vae.LIKELIHOODS`.
        decoder_batch: Maximum number of latents that are decoded at a time.

    Raises:
        ValueError: A size does not fit, or a library is missing.

    Source: Kingma & Welling (2014), Auto-encoding variational Bayes.

    Example:
        >>> vae = VAE(Architecture((8, 8), 16, hidden=(16,), latent_dim=2))
        >>> vae.bound(torch.zeros(5, 64)).value.shape
        torch.Size([5])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.likelihood: Likelihood = LIKELIHOODS[architecture.likelihood](architecture.white)
        latent_dim = architecture.latent_dim
        networks = NETWORKS[architecture.network](
            architecture.size, self.likelihood.channels, latent_dim, architecture.hidden
        )
        self.encoder, self.decoder = networks.encoder, networks.decoder
        self.decoder_batch = networks.decoder_batch
        self.head = nn.Linear(networks.features, 2 * latent_dim)
        self.tell = None  # saved weights are keyed by this attribute's name
        if architecture.uses_features:
            linear = nn.Linear(networks.features, architecture.features)
            self.tell = nn.Sequential(linear, nn.SiLU())
        self.posterior = POSTERIORS[architecture.posterior](architecture)

    @property
    def prior(self) -> Distribution:
        """Prior p(z), standard normal."""
        zeros = self.head.weight.new_zeros(self.architecture.latent_dim)
        return Independent(Normal(zeros, zeros + 1, validate_args=False), 1, validate_args=False)

    def encode(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return features for the posterior, if any, loc and scale, given images (n, pixels)."""
        h = self.encoder(x)
        loc, scale = self.head(h).chunk(2, -1)
        features = None if self.tell is None else self.tell(h)
        return features, loc, softplus(scale) + MIN_POSTERIOR_SCALE

    def posterior_of(self, x: Tensor, settling: bool = False) -> Distribution:
        """Return q(z | x) of images (n, pixels); the encoder's Gaussian if `settling`."""
        module = GAUSSIAN if settling else self.posterior
        posterior: Distribution = module(*self.encode(x))
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Return the decoder's outputs (..., channels, pixels) for latents (..., latent_dim)."""
        outputs: Tensor = self.decoder(z.flatten(0, -2))
        return outputs.view(*z.shape[:-1], *outputs.shape[1:])

    def log_likelihood(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return log p(x | z) of images (n, pixels) as a function of z (..., n, latent_dim)."""
        return lambda z: self.likelihood.log_prob(self.decode(z), x)

    def bound(
        self, x: Tensor, beta: float = 1.0, samples: int = 1, settling: bool = False
    ) -> Bound:
        """Return the evidence lower bound of each image, by `cnf.elbo`."""
        posterior = self.posterior_of(x, settling)
        return elbo(posterior, self.prior, self.log_likelihood(x), samples, beta)

    def means(self, z: Tensor) -> Tensor:
        """Return mean images (..., height, width), from 0 to 1, for latents (..., latent_dim)."""
        means = self.likelihood.mean(self.decode(z))
        return means.reshape(*means.shape[:-1], *self.architecture.size)

    def accurate(self) -> Self:
        """Return a VAE with shared parameters whose posterior solves accurately, for reporting."""
        if not isinstance(self.posterior, FlowPosterior):
            return self
        view = copy.copy(self)
        view._modules = {**self._modules, "posterior": self.posterior.accurate()}
        return view

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Save the VAE and metadata, ready for JSON, to a folder, which is created if needed.

        Raises:
            OSError: The folder cannot be written to.
        """
        config = {
            "architecture": asdict(self.architecture),
            "shared": shared_parts(self),
            "metadata": dict(metadata or {}),
        }
        write_model(folder, self.state_dict(), config)


def load(folder: str | Path) -> VAE:
    """Load the VAE that `VAE.save` wrote to a folder, on the CPU.

    Raises:
        ValueError: The folder holds no VAE, or one that is damaged or of a newer version.

    Example:
        >>> import tempfile
        >>> vae = VAE(Architecture((8, 8), 16, hidden=(16,), latent_dim=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae.save(folder)
        ...     loaded = load(folder)
        >>> z = torch.zeros(1, 2)
        >>> torch.equal(loaded.means(z), vae.means(z))
        True
    """
    config, weights = read_model(folder, VAE_CONFIG_KEYS)
    with reporting_load_errors("a VAE", folder):
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config["architecture"].items()
        }
        with seeded(0):  # initial weights are drawn and then replaced
            vae = VAE(Architecture(**entries))
        restore_sharing(vae, config.get("shared", {}))
        vae.load_state_dict(safetensors.torch.load(weights))
    return vae


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
    accurate, elbo_samples = vae.accurate(), min(samples, ELBO_SAMPLES)
    elbos, nlls = [], []
    for part in x.split(max(1, vae.decoder_batch // elbo_samples)):
        posterior, likelihood = accurate.posterior_of(part), vae.log_likelihood(part)
        nlls.append(-iwae(posterior, vae.prior, likelihood, samples, vae.decoder_batch))
        elbos.append(accurate.bound(part, samples=elbo_samples).value)
    return LikelihoodBounds(torch.cat(elbos), torch.cat(nlls))
