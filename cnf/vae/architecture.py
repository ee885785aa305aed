"""Architecture of a VAE, and the parts to choose from: readable without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnf.training.numbers import check_numbers, document_numbers, number
from cnf.utils.registry import Registry
from cnf.variational import AMORTIZATIONS

if TYPE_CHECKING:
    from torch import nn

    from cnf.vae.likelihoods import Likelihood
    from cnf.vae.networks import Networks

LIKELIHOODS: Registry[Callable[[int], Likelihood]] = Registry(
    {"bernoulli": "cnf.vae.likelihoods:Bernoulli", "levels": "cnf.vae.likelihoods:Levels"}
)
"""Likelihoods by name, constructed with the grey value of white."""

NETWORKS: Registry[Callable[[tuple[int, int], int, int, Sequence[int]], Networks]] = Registry(
    {"mlp": "cnf.vae.networks:perceptrons", "conv": "cnf.vae.networks:gated_convolutions"}
)
"""Networks by name: functions of the images' size, the likelihood's channels, the number of latents
and the widths of the hidden layers."""

POSTERIORS: Registry[Callable[[Architecture], nn.Module]] = Registry(
    {
        "gaussian": "cnf.vae.posteriors:gaussian",
        "planar": "cnf.vae.posteriors:planar",
        "cnf": "cnf.vae.posteriors:continuous",
    }
)
"""Constructors of posteriors by name: modules that map features h, loc and scale to q(z | x)."""


@dataclass(frozen=True)
class Architecture:
    """A configuration of a `VAE`, ready for JSON.

    Attributes:
        size: Height and width of the images.
        white: Grey value of white.

    Raises:
        ValueError: A name is unknown, a size is below 1, or a list of widths is empty.

    Example:
        >>> Architecture((28, 28), 255, latent_dim=0)
        Traceback (most recent call last):
        ValueError: Expected the architecture's latent_dim to be finite and at least 1; got 0
    """

    size: tuple[int, int]
    white: int
    likelihood: str = number(
        "bernoulli",
        "black and white pixels, drawn anew in each epoch, or all levels of grey; bernoulli for "
        "digits and mnist, levels for others",
        choices=LIKELIHOODS,
    )
    network: str = number(
        "mlp",
        "perceptrons, or the gated convolutions of the Sylvester flows' paper",
        choices=NETWORKS,
    )
    hidden: tuple[int, ...] = number(
        (400, 400),
        "mlp: widths of the encoder's hidden layers, in reverse order the decoder's",
        low=1,
    )
    latent_dim: int = number(32, "number of latents", low=1)
    features: int = number(
        64, "number of features for the posterior from the encoder, besides loc and scale", low=1
    )
    posterior: str = number("cnf", "posterior of the latents", choices=POSTERIORS)
    amortize: str = number(
        "bias", "cnf: how its field depends on the image", choices=AMORTIZATIONS, used_by=("cnf",)
    )
    field: tuple[int, ...] = number(
        (64, 64), "cnf: widths of its field's hidden layers", low=1, used_by=("cnf",)
    )
    flows: int = number(16, "planar: number of flows", low=1, used_by=("planar",))

    def __post_init__(self) -> None:
        if min(*self.size, self.white) < 1:
            raise ValueError(
                "Expected images with sides and a value of white of at least 1; got sides "
                f"{self.size}, white {self.white}"
            )
        check_numbers(self)

    @property
    def uses_features(self) -> bool:
        """Whether the posterior is conditioned on encoder features besides loc and scale."""
        unamortized = self.posterior == "cnf" and self.amortize == "none"
        return self.posterior != "gaussian" and not unamortized


document_numbers(Architecture)
