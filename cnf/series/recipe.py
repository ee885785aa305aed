"""The numbers of training a model of series: readable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cnf.training.averaged_recipe import AveragedRecipe
from cnf.training.numbers import document_numbers, number

_latent = partial(number, used_by=("latent_ode",))


@dataclass(frozen=True)
class SeriesRecipe(AveragedRecipe):
    """The numbers of training a model of series."""

    final_rate: float = number(0.02, "last learning rate over the peak", low=0)
    warmup: float = number(0.02, "fraction of the run that warms up", low=0, high=1)
    max_grad_norm: float = number(5.0, "norm that gradients are clipped to")
    momentum: float = number(0.9, "AdamW's decay of the mean gradient", low=0, high=1)
    square_decay: float = number(0.99, "AdamW's decay of the mean square", low=0, high=1)
    batch_size: int = number(100, "series for each step, of each process")
    pool: int = number(10, "batches whose series are sorted by length, against padding", low=1)
    draws: int = _latent(1, "draws of the latents; more give the importance-weighted bound", low=1)
    kl_start: float = _latent(0.01, "first weight of the KL term", low=0)
    kl_warmup: float = _latent(0.3, "fraction of the run in which that weight rises", high=1)
    kl_weight: float = _latent(1.0, "last weight of the KL term; 1 for a bound", low=0)
    flow_start: float = _latent(0.3, "fraction before a posterior's flow joins", low=0, high=1)
    shown_weight: float = number(
        1.0, "weight of entries that were not hidden, where some are", low=0
    )
    error_weight: float = _latent(
        0.0, "weight of the squared error of means, in units of columns' largest values", low=0
    )
    label_weight: float = _latent(1.0, "weight of a label's cross-entropy, nats a series", low=0)
    dropout: float = _latent(0.3, "share of a classifier's inputs that is dropped", low=0, high=1)
    ema_steps: int = number(5, "steps between two averages", low=1)
    validation_series: int = number(1000, "series for validation at most", low=1)
    patience: int = number(8, "validations without improvement that end a run", low=1)

    def kl(self, done: float) -> float:
        """Return the weight of the KL term when a fraction of the run is done.

        Example:
            >>> [round(SeriesRecipe().kl(done), 3) for done in (0.0, 0.15, 1.0)]
            [0.01, 0.505, 1.0]
        """
        rise = min(1.0, done / self.kl_warmup)
        return self.kl_start + (self.kl_weight - self.kl_start) * rise


document_numbers(SeriesRecipe)
