"""The run of a flow: its learner, the stages of its plan, and its validations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from cnf.flow import Flow
from cnf.flow.base_config import describe
from cnf.layers import CNF, Steps
from cnf.ode import SolveError
from cnf.training.checkpoint import Checkpointer
from cnf.training.data import BatchSampler, Rows
from cnf.training.history import Event, Record
from cnf.training.learner import Learner
from cnf.training.optimizer import OptimizerStep
from cnf.training.progress import TrainingBudget
from cnf.training.run import Run
from cnf.training.schedule import Stage
from cnf.utils.distributed import local_slice, mean, world_size
from cnf.utils.serialization import add_prefix, strip_prefix
from cnf.utils.threads import Threads

BASE = "base"  # the prefix of its tensors in a state
PASS_CHUNK_ROWS = 1000  # rows that pass through a flow, or through its layers, at once


class FlowRun(Run[Record, Event]):
    """A run of `fit`: its learner, the stages of its plan, and its rows."""

    record_type = Record

    def __init__(
        self,
        learner: Learner,
        plan: Sequence[Stage],
        budget: TrainingBudget,
        sampler: BatchSampler,
        held_out: Rows,
        checkpointer: Checkpointer | None,
        threads: Threads,
    ) -> None:
        self.learner, self.plan, self.sampler, self.held_out = learner, plan, sampler, held_out
        validations, patience = learner.recipe.validations, learner.recipe.patience
        shares = [stage.share for stage in plan]
        options = (held_out.x, checkpointer, threads, not _is_compiled(learner.flow))
        super().__init__(budget, validations, shares, patience, *options)

    @property
    def stage(self) -> Stage:
        return self.plan[self.progress.stage]

    def step(self, done: float, steps: float) -> tuple[OptimizerStep, float]:
        stage = self.stage
        batch = self.sampler.batch(stage.batch_size)
        rate, factor = stage.rate(done, steps), stage.tolerance_factor(done, steps)
        return self.learner.step(stage.objective, batch, rate, factor), rate

    def validate_start(self) -> None:
        """Validate the weights that the run begins with, which are kept where none are better."""
        record, value = self.record(self.validate(), 0.0)
        self.progress.add_record(record, value, 0.0)

    def validate(self) -> float:
        self.learner.copy_statistics()
        return mean_nll(self.learner.validated, self.held_out)

    def record(self, scores: float, seconds: float) -> tuple[Record, float]:
        progress = self.progress
        name, nfe = self.stage.objective.name, progress.mean_nfe
        counted = (progress.step, seconds, name, progress.mean_loss, scores, nfe, progress.rate)
        return Record(*counted, progress.threads), scores

    def event(
        self, step: OptimizerStep, done: float, seconds: float, record: Record | None
    ) -> Event:
        improved, records = self.improved(record), self.progress.records
        taken = (self.progress.step, seconds, done, step.loss, step.nfe)
        return Event(*taken, record, records, improved, self.learner.ema, self.stage)

    def weights(self) -> Mapping[str, Tensor]:
        return self.learner.ema.state_dict()

    def begin_stage(self) -> None:
        self.learner.ema.load_state_dict(self.best)
        self.learner.restart()

    def tensors(self) -> dict[str, Tensor]:
        order, base = add_prefix("order", self.sampler.state()), self.learner.flow.base
        found = {**add_prefix("learner", self.learner.tensors()), **order}
        return found | (describe(base, BASE)[1] if isinstance(base, MixtureSameFamily) else {})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.learner.restore(strip_prefix("learner", tensors))
        self.sampler.restore(strip_prefix("order", tensors))


def mean_nll(flow: Flow, rows: Rows) -> float:
    """Return the weighted mean of −log p over rows, in nats; infinite where a solve fails.

    Each process scores its part of the rows, and all return the mean over all rows.
    """
    total = 0.0
    try:
        with torch.no_grad():
            for part in rows[local_slice(len(rows))].split(PASS_CHUNK_ROWS):
                log_prob = flow.score_rows(part.x, part.context).log_prob.double()
                weighted = log_prob if part.weight is None else part.weight * log_prob
                total -= weighted.sum().item()
    except SolveError:
        total = inf
    (total,) = mean([total], rows.x)
    counted = len(rows) if rows.weight is None else rows.weight.double().sum().item()
    found = total * world_size() / counted
    return found if isfinite(found) else inf


def _is_compiled(flow: Flow) -> bool:
    """Return whether code is compiled, anew for each number of threads."""
    return any(
        (isinstance(layer, CNF) and layer.settings.compile)
        or (isinstance(layer, Steps) and layer.compiles)
        for layer in flow.layers
    )
