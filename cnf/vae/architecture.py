"""Architecture of a VAE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A configuration of a `VAE`, ready for JSON.

    Attributes:
        size: Height and width of the images.
        white: Grey value of white.
        likelihood: A name in `cnf.vae.LIKELIHOODS`.
        network: A name in `cnf.vae.NETWORKS`.
        hidden: Widths of the encoder's hidden layers, which the decoder has in reverse order; only
            for network `"mlp"`.
        latent_dim: Number of latents.
        features: Number of encoder features that the posterior is conditioned on in addition to loc
            and scale, where it uses any.
        posterior: A name in `cnf.vae.POSTERIORS`.
        amortize: A name in `cnf.variational.posterior.AMORTIZATIONS`; only for posterior `"cnf"`.
        field: Widths of the field's hidden layers; only for posterior `"cnf"`.
        flows: Number of planar flows; only for posterior `"planar"`.

    Raises:
        ValueError: A size is below 1, or a list of widths is empty.

    Example:
        >>> Architecture((28, 28), 255, latent_dim=0)
        Traceback (most recent call last):
        ValueError: Expected latent_dim of at least 1; got 0: choose a larger one
    """

    size: tuple[int, int]
    white: int
    likelihood: str = "bernoulli"
    network: str = "mlp"
    hidden: tuple[int, ...] = (400, 400)
    latent_dim: int = 32
    features: int = 64
    posterior: str = "cnf"
    amortize: str = "bias"
    field: tuple[int, ...] = (64, 64)
    flows: int = 16

    def __post_init__(self) -> None:
        for name in ("size", "white", "hidden", "latent_dim", "features", "field", "flows"):
            value = getattr(self, name)
            if min(value, default=0) < 1 if isinstance(value, tuple) else value < 1:
                raise ValueError(f"Expected {name} of at least 1; got {value}: choose a larger one")

    @property
    def uses_features(self) -> bool:
        """Whether the posterior is conditioned on encoder features besides loc and scale.

        Example:
            >>> Architecture((8, 8), 16, posterior="gaussian").uses_features
            False
        """
        unamortized = self.posterior == "cnf" and self.amortize == "none"
        return self.posterior != "gaussian" and not unamortized
