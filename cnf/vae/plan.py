"""Hyperparameters of a VAE's training."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from cnf.training.numbers import check_numbers, document_numbers, number


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of a training run.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> plan = Plan(learning_rate=1e-3, warmup=0.1, annealing=0.5)
        >>> [round(1e3 * plan.rate(p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
        >>> [plan.beta(p) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    epochs: int = number(100, "passes over the training images")
    batch_size: int = number(128, "images for each step")
    learning_rate: float = number(1e-3, "peak learning rate, which decays as a cosine to 0")
    warmup: float = number(
        0.02, "fraction of the run in which the learning rate rises", low=0, high=1
    )
    annealing: float = number(
        0.2, "fraction of the run in which the KL term's weight rises from 0 to 1", low=0, high=1
    )
    # The posterior is the encoder's Gaussian at first, which makes latents either informative and
    # distinct, or unused; a flow that learns from the start keeps all of them slightly informative.
    settling: float = number(
        0.3, "fraction of the run before the posterior's flow starts to train", low=0, high=1
    )
    weight_decay: float = number(0.0, "AdamW's weight decay", low=0)
    max_grad_norm: float = number(100.0, "norm above which the gradient is clipped")

    def __post_init__(self) -> None:
        check_numbers(self)

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


document_numbers(Plan)
