"""Training of a flow from noise to rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.outliers.noise_flow import SIGMAS, NoiseFlow
from cnf.training.averaged_recipe import AveragedRecipe
from cnf.training.averaged_run import AveragedRun
from cnf.training.data import BatchSampler, Rows
from cnf.training.history import History, StepEvent
from cnf.training.numbers import document_numbers, number
from cnf.training.optimizer import StepLoss
from cnf.training.progress import TrainingBudget
from cnf.utils.threads import Threads

Callback = Callable[[StepEvent], None]


@dataclass(frozen=True)
class NoiseRecipe(AveragedRecipe):
    """The numbers of training a `NoiseFlow`."""

    learning_rate: float = number(3e-3, "peak learning rate")
    ema_decay: float = number(0.998, "decay of the averaged weights", low=0, high=1)
    max_grad_norm: float = number(100.0, "norm that gradients are clipped to")
    validations: int = number(20, "number of validations", low=1)
    levels: int = number(8, "scales of noise in a step", low=1)
    level_rows: int = number(32, "rows for each of these scales", low=1)
    validation_rows: int = number(1000, "rows for validation at most", low=1)


document_numbers(NoiseRecipe)


class NoiseRun(AveragedRun[NoiseFlow]):
    """A training run of a `NoiseFlow`'s network; its mixture stays as it is."""

    objective, model_name = "flow matching", "flow"
    sampler: BatchSampler

    def __init__(
        self,
        flow: NoiseFlow,
        recipe: NoiseRecipe,
        budget: TrainingBudget,
        train: Tensor,
        held_out: Tensor,
        threads: Threads,
        seed: int,
    ) -> None:
        self.recipe, self.held_out = recipe, held_out[: recipe.validation_rows]
        # A batch has all rows where there are fewer: they are repeated to fill it.
        repeats = -(-recipe.levels * recipe.level_rows // len(train))
        generator = torch.Generator().manual_seed(seed)
        rows = train.repeat(repeats, 1) if repeats > 1 else train
        sampler = BatchSampler(Rows(rows), generator)
        super().__init__(flow, flow, recipe, budget, sampler, None, threads)
        value = self.validate()
        record, value = self.record(value, 0.0)
        self.progress.add_record(record, value, 0.0)  # of the mixture alone

    def loss(self, done: float) -> StepLoss:
        levels, rows = self.recipe.levels, self.recipe.level_rows
        x = self.sampler.batch(levels * rows).x.view(levels, rows, -1)
        strata = torch.arange(levels).to(x) + torch.rand(levels).to(x)
        return StepLoss(self.losses(x, strata / levels).mean())

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean of the held-out rows' scores, with the opposite sign."""
        return -self.averaged.score(self.held_out).mean().item()


def train_network(
    flow: NoiseFlow,
    train: Tensor,
    held_out: Tensor,
    budget: TrainingBudget,
    *,
    seed: int = 0,
    threads: Threads = "auto",
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a flow's network, and leave it with its best averaged weights on held-out rows.

    It stays zero where their mean gain in score over the mixture alone is no more than one standard
    error of it, or there are no two held-out rows to tell.

    Args:
        flow: The flow, changed in place.
        train: Rows to train on, in the flow's coordinates.
        held_out: Rows for validation, any number.
        budget: The length of the run.
        seed: Seed of the order of the rows and of the noise.
        threads: As in `cnf.fit`.
        callbacks: Called after every step.

    Example:
        >>> from cnf.outliers.noisy_mixture import NoisyMixture
        >>> x = torch.randn(200, 2)
        >>> flow = NoiseFlow(NoisyMixture.fit(x, 3), x.var(0), hidden=(8, 8))
        >>> train_network(flow, x[:150], x[150:], TrainingBudget.of(None, 5)).steps
        5
    """
    alone = {name: each.clone() for name, each in flow.state_dict().items()}
    told = held_out if len(held_out) else train
    run = NoiseRun(flow, NoiseRecipe(), budget, train, told, threads, seed)
    run.run(callbacks, seed)
    flow.load_state_dict(run.finish())
    if not _gains(flow, run.held_out if len(held_out) else held_out):
        flow.load_state_dict(alone)
    return History.of(run.progress)


@torch.no_grad()
def _gains(flow: NoiseFlow, rows: Tensor) -> bool:
    """Return whether the network's mean gain on rows exceeds its standard error."""
    gain = flow.score(rows) - flow.mixture.log_prob(rows, torch.tensor(SIGMAS[0]).to(rows))
    return len(gain) > 1 and bool(gain.mean() > gain.std() / len(gain) ** 0.5)
