"""How a VAE is trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi


@dataclass(frozen=True)
class Plan:
    """A training run but for its data and its seed.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images for each step.
        learning_rate: Adam's peak learning rate; after a linear warm-up it falls as a cosine to 0.
        warmup: Fraction of the run that warms up.
        annealing: Fraction of the run in which the KL term's weight rises from 0 to 1.
        settling: Fraction of the run in which the posterior is the encoder's Gaussian, before what
            carries it on begins to learn. That costs no more than a Gaussian does, and a Gaussian
            makes latents tell each something else, or nothing: a flow that learns from the start
            lets them all tell a little, and stays there.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: Largest norm of the gradient.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> plan = Plan(learning_rate=1e-3, warmup=0.1, annealing=0.5)
        >>> [round(1e3 * plan.rate(p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
        >>> [plan.beta(p) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.02
    annealing: float = 0.2
    settling: float = 0.3
    weight_decay: float = 0.0
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"Expected {name} above 0, and finite; got {getattr(self, name)}")
        for name in ("warmup", "annealing", "settling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"Expected {name} of at least 0 and below 1; got {getattr(self, name)}"
                )
        if not 0 <= self.weight_decay < inf:
            raise ValueError(
                f"Expected weight_decay of at least 0, and finite; got {self.weight_decay}"
            )

    def rate(self, progress: float) -> float:
        """The learning rate, where a fraction of the run is done."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        fallen = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + cos(pi * fallen))

    def beta(self, progress: float) -> float:
        """The KL term's weight, alike."""
        return min(1.0, progress / self.annealing) if self.annealing else 1.0

    def is_settling(self, progress: float) -> bool:
        """Whether the posterior is the encoder's Gaussian still."""
        return progress < self.settling

    def counts(self, progress: float) -> bool:
        """Whether weights may be kept: the KL term has its full weight, and nothing settles."""
        return self.beta(progress) == 1 and not self.is_settling(progress)
