"""What a VAE is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """All that a `VAE` is made of but its weights, ready for JSON.

    Attributes:
        size: Height and width of the images.
        white: The grey value of white.
        likelihood: A name in `cnf.vae.LIKELIHOODS`.
        network: A name in `cnf.vae.NETWORKS`.
        hidden: Widths of the encoder's hidden layers, and in reverse order of the decoder's; of
            network `"mlp"`.
        latent_dim: Size of z.
        features: Size of what the encoder tells the posterior beside loc and scale, where that
            makes use of it.
        posterior: A name in `cnf.vae.POSTERIORS`.
        amortize: Of posterior `"cnf"`, a name in `cnf.variational.posterior.AMORTIZATIONS`.
        field: Of it too, widths of the field's hidden layers.
        flows: Of posterior `"planar"`, how many.

    Raises:
        ValueError: A size is below 1, or there is no hidden layer.

    Example:
        >>> Architecture((28, 28), 255, latent_dim=0)
        Traceback (most recent call last):
        ValueError: Expected latent_dim of at least 1; got 0
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
                raise ValueError(f"Expected {name} of at least 1; got {value}")

    @property
    def tells(self) -> bool:
        """Whether the encoder tells the posterior more than loc and scale.

        Example:
            >>> Architecture((8, 8), 16, posterior="gaussian").tells
            False
        """
        shared = self.posterior == "cnf" and self.amortize == "none"
        return self.posterior != "gaussian" and not shared
