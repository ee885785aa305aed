"""The numbers of training by averaged weights: readable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from cnf.training.numbers import check_numbers, number


@dataclass(frozen=True)
class AveragedRecipe:
    """The numbers of training that every `AveragedRun` needs."""

    learning_rate: float = number(5e-3, "peak learning rate")
    final_rate: float = number(0.01, "last learning rate over the peak", low=0)
    warmup: float = number(0.05, "fraction of the run that warms up", low=0, high=1)
    weight_decay: float = number(1e-4, "decoupled weight decay", low=0)
    max_grad_norm: float = number(1.0, "norm that gradients are clipped to")
    ema_decay: float = number(0.99, "decay of the averaged weights", low=0, high=1)
    validations: int = number(16, "number of validations", low=1)
    patience: int = number(6, "validations without improvement that end a run", low=1)

    def __post_init__(self) -> None:
        check_numbers(self)

    def rate(self, done: float) -> float:
        """Return the learning rate: linear warm-up, then a cosine over the run.

        Example:
            >>> [round(AveragedRecipe().rate(done), 6) for done in (0.02, 0.5, 1.0)]
            [0.002048, 0.002525, 5e-05]
        """
        rise = min(1.0, done / self.warmup + 0.01) if self.warmup else 1.0
        fall = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + cos(pi * min(1.0, done)))
        return self.learning_rate * rise * fall
