"""Hyperparameters of a VAE's training."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of a training run.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Adam's peak learning rate, after a linear warm-up and before a cosine decay
            to 0.
        warmup: Fraction of the run that warms up.
        annealing: Fraction of the run in which the KL term's weight rises from 0 to 1.
        settling: Fraction of the run in which the posterior is the encoder's Gaussian, before its
            flow begins to learn. This costs no more than a Gaussian posterior, which makes latents
            either informative and distinct, or unused; a flow that learns from the start keeps all
            of them slightly informative.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: Norm to which the gradient is clipped.

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
                raise ValueError(
                    f"Expected {name} above 0, and finite; got {getattr(self, name)}: correct it"
                )
        for name in ("warmup", "annealing", "settling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"Expected {name} of at least 0 and below 1; got {getattr(self, name)}: "
                    "correct it"
                )
        if not 0 <= self.weight_decay < inf:
            raise ValueError(
                f"Expected weight_decay of at least 0, and finite; got {self.weight_decay}: "
                "correct it"
            )

    def rate(self, progress: float) -> float:
        """Return the learning rate at a progress from 0 to 1."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + cos(pi * decay))

    def beta(self, progress: float) -> float:
        """Return the KL term's weight at a progress from 0 to 1."""
        return min(1.0, progress / self.annealing) if self.annealing else 1.0

    def is_settling(self, progress: float) -> bool:
        """Return whether the posterior is still the encoder's Gaussian."""
        return progress < self.settling

    def is_selectable(self, progress: float) -> bool:
        """Return whether the objective is the final one, so that weights may be selected."""
        return self.beta(progress) == 1 and not self.is_settling(progress)
