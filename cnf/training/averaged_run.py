"""Runs that validate and keep the average of a model's weights."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from cnf.training.averaged_recipe import AveragedRecipe
from cnf.training.checkpoint import Checkpointer
from cnf.training.history import Record, StepEvent
from cnf.training.optimizer import Optimizer, OptimizerStep, StepLoss
from cnf.training.progress import TrainingBudget
from cnf.training.run import Run
from cnf.utils.distributed import parallel
from cnf.utils.serialization import add_prefix, strip_prefix
from cnf.utils.threads import Threads


@torch.no_grad()
def update_average(
    averaged: Sequence[Tensor], current: Sequence[Tensor], updates: int, decay: float
) -> None:
    """Update an average θ̄ ← θ̄ + (1 − d)(θ − θ̄), whose decay d starts low to forget the start.

    Args:
        averaged: The averages θ̄, changed in place.
        current: The weights θ.
        updates: The number of updates, this one included.
        decay: The decay that d rises to.
    """
    torch._foreach_lerp_([*averaged], [*current], 1 - min(decay, updates / (9 + updates)))


class Sampler(Protocol):
    """A sampler of batches, whose state can be saved and restored."""

    def state(self) -> dict[str, Tensor]:
        """Return the state."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...


M = TypeVar("M", bound=nn.Module)


class AveragedRun(Run[Record, StepEvent], Generic[M]):
    """A run that trains a model and validates the average of its weights.

    A subclass defines `loss` and `validate`, and may change `score` and `shown_loss`.

    Args:
        model: The model, changed in place.
        losses: The module whose output is the loss, such as the model: `self.losses` is this
            module, with gradients averaged over processes.
        recipe: The numbers of training.
        budget: The length of the run.
        sampler: The batches of training rows.
        checkpointer: Where states are written, if anywhere.
        threads: The number of PyTorch's threads, chosen as in `cnf.fit`.
        betas: AdamW's decays of the mean gradient and of the mean square.
        ema_steps: Steps between two averages.
    """

    record_type = Record
    objective: ClassVar[str]  # its name in records
    model_name: ClassVar[str]  # of the model in training states

    def __init__(
        self,
        model: M,
        losses: nn.Module,
        recipe: AveragedRecipe,
        budget: TrainingBudget,
        sampler: Sampler,
        checkpointer: Checkpointer | None,
        threads: Threads,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        ema_steps: int = 1,
    ) -> None:
        self.model, self.ema_steps = model, ema_steps
        self.sampler: Any = sampler
        self.rate, self.ema_decay = recipe.rate, recipe.ema_decay
        self.losses = parallel(losses)
        self.averaged = copy.deepcopy(model)  # after `parallel` has made the weights rank 0's
        numbers = (recipe.weight_decay, recipe.max_grad_norm, betas)
        self.optimizer = Optimizer(list(model.parameters()), *numbers)
        self.averages = 0
        options = (self.optimizer.parameters[0], checkpointer, threads)
        super().__init__(budget, recipe.validations, (1.0,), recipe.patience, *options)

    @abstractmethod
    def loss(self, done: float) -> StepLoss:
        """Draw a batch and return its loss; the fraction `done` of the run is done."""

    def score(self, scores: Any) -> float:
        """Return the value to minimise of what `validate` returned; by default the same."""
        return float(scores)

    def shown_loss(self, mean_loss: float) -> float:
        """Return a mean training loss in the unit of the score; by default the same."""
        return mean_loss

    def step(self, done: float, steps: float) -> tuple[OptimizerStep, float]:
        rate = self.rate(done)
        step = self.optimizer.step(lambda: self.loss(done), rate)
        if not step.failure and (self.progress.step + 1) % self.ema_steps == 0:
            self.averages += 1
            averaged, current = (list(each.parameters()) for each in (self.averaged, self.model))
            update_average(averaged, current, self.averages, self.ema_decay)
        return step, rate

    def record(self, scores: Any, seconds: float) -> tuple[Record, float]:
        progress, value = self.progress, self.score(scores)
        value = value if isfinite(value) else inf
        loss = self.shown_loss(progress.mean_loss)
        counted = (progress.step, seconds, self.objective, loss, value, progress.mean_nfe)
        return Record(*counted, progress.rate, progress.threads), value

    def event(
        self, step: OptimizerStep, done: float, seconds: float, record: Record | None
    ) -> StepEvent:
        improved, records = self.improved(record), self.progress.records
        taken = (self.progress.step, seconds, done, step.loss, step.nfe)
        return StepEvent(*taken, record, records, improved, self.averaged)

    def weights(self) -> Mapping[str, Tensor]:
        return self.averaged.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        return {
            **add_prefix(self.model_name, self.model.state_dict()),
            **add_prefix("averaged", self.averaged.state_dict()),
            **add_prefix("optimizer", self.optimizer.tensors()),
            **add_prefix("order", self.sampler.state()),
            "averages": torch.tensor(self.averages),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(strip_prefix(self.model_name, tensors))
        self.averaged.load_state_dict(strip_prefix("averaged", tensors))
        self.optimizer.restore(strip_prefix("optimizer", tensors))
        self.sampler.restore(strip_prefix("order", tensors))
        self.averages = int(tensors["averages"])
