"""The training loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import floor, inf, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.layers import CNF, Scaling
from cnf.ode import SolveError
from cnf.training.checkpoint import Checkpointer, generators, restore_generators
from cnf.training.data import BatchSampler, Rows, hold_out, rows_for
from cnf.training.history import Callback, Event, History, Record
from cnf.training.learner import Learner, OptimizerStep
from cnf.training.progress import TrainingBudget, TrainingProgress
from cnf.training.recipes import Recipe, choose_recipe
from cnf.training.schedule import Stage, stages
from cnf.utils.distributed import local_slice, mean, rank, world_size
from cnf.utils.random import seeded
from cnf.utils.serialization import add_prefix, strip_prefix

MAX_FAILURES = 20  # consecutive failed steps that end a run: more would not bring it back
MAX_VALIDATION_SHARE = 0.05  # of the time of a run that has a budget
# Rows that scalings are fitted on, drawn at random where there are more: means are then known to
# two thousandths of a deviation, and the field learns what is left.
MAX_SCALING_ROWS = 200_000
PASS_CHUNK_ROWS = 1000  # rows that pass through a flow, or through its layers, at once


class TrainingError(RuntimeError):
    """A failure of training before there was a model worth keeping."""


def fit(
    flow: Flow,
    data: Tensor,
    *,
    context: Tensor | None = None,
    weight: Tensor | None = None,
    objective: str | None = None,
    recipe: str | Recipe | None = None,
    budget: float | None = None,
    steps: int | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
) -> History:
    """Train `flow` on `data` and leave it with its best weights on validation.

    Scaling layers (standardisation, whitening, curves that make columns normal) next to the data
    are first fitted on the training rows, unless they are fitted already. The loop takes AdamW
    steps by the recipe's schedule, solves at the recipe's loose tolerance, and validates a moving
    average of the weights. Ctrl-C ends it cleanly. Its random numbers depend on `seed` alone, and
    PyTorch's generator is left as it was.

    Rows that lie on a line, a curve or a surface have no density, and their likelihood is
    unbounded: `cnf train` and `CNFDensity` check for that, here `cnf.datasets.degeneracies` does.

    Where `torch.distributed` is initialised the processes share the work: each is given all of the
    data, and takes its part of every batch and of the validation rows.

    Args:
        flow: The flow, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for a conditional flow.
        weight: Weights of the rows, at least 0, shape (n,): how often each one is repeated. Only
            their ratios matter; all are equal when None.
        objective: A name in `cnf.training.objectives.OBJECTIVES`; the recipe's when None.
        recipe: A recipe or its name; chosen by the data's size and dimension when None. Its
            architecture is not read here: `Recipe.flow` builds the flow.
        budget: Seconds from this call to the loop's end; 60 where neither it nor steps is given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Rows for validation, with their context as a pair; a tenth of the rows is held
            out for it when None.
        seed: Seed of the held-out rows, of the order of the data, and of training's random numbers.
        callbacks: Called after every step.
        state: A file for the run's state. Where it exists, the run that wrote it resumes, bit for
            bit as if it had never stopped (with `steps` and one thread).
        state_seconds: Seconds between two states.

    Returns:
        The run's history.

    Raises:
        ValueError: The data does not fit the flow, a number or name is out of range, the objective
            cannot train the flow, or the state belongs to another run.
        TypeError: Data, a context or weights are not tensors.
        TrainingError: Too many steps failed in a row, or no validation could be scored, so that
            there is no model to keep.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    length, start = TrainingBudget.of(budget, steps), perf_counter()
    generator = torch.Generator().manual_seed(seed)
    train = rows_for(flow, "data", data, context, weight)
    if validation is None:
        train, held_out = hold_out(train, generator)
    else:
        pair = validation if isinstance(validation, tuple) else (validation, None)
        held_out = rows_for(flow, "validation", *pair)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, len(train), flow.dim, context is not None, objective)[1]
    recipe = replace(recipe, objective=objective or recipe.objective)
    plan = stages(recipe)
    for stage in plan:
        stage.objective.check(flow, conditional=context is not None)
    with seeded(seed, flow.like.device):  # the same noise in every process
        _fit_scaling(flow, train)
    (spent,) = mean([perf_counter() - start], held_out.x)
    checkpointer = None
    if state is not None:
        identity = _identity(flow, recipe, length, seed, train, held_out)
        checkpointer = Checkpointer(Path(state), state_seconds, identity)
    run = _Run(
        Learner(flow, recipe),
        recipe,
        plan,
        length.without(spent),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        checkpointer,
    )
    with seeded(seed + rank(), flow.like.device):
        run.resume()
        try:
            run.loop(callbacks)
        except KeyboardInterrupt:
            if world_size() > 1:  # a process may wait for another, which has ended
                raise
            run.progress.reason = "interrupted"
    return run.finish()


def mean_nll(flow: Flow, rows: Rows) -> float:
    """Return the weighted mean of −log p over rows, in nats; infinite where a solve fails.

    Each process scores its part of the rows, and all return the mean over all rows.
    """
    part_of_process = rows[local_slice(len(rows))]
    total = 0.0
    try:
        with torch.no_grad():
            for part in part_of_process.split(PASS_CHUNK_ROWS):
                log_prob = flow.score_rows(part.x, part.context).log_prob.double()
                weighted = log_prob if part.weight is None else part.weight * log_prob
                total -= weighted.sum().item()
    except SolveError:
        total = inf
    (total,) = mean([total], rows.x)
    counted = len(rows) if rows.weight is None else rows.weight.double().sum().item()
    found = total * world_size() / counted
    return found if isfinite(found) else inf


def _fit_scaling(flow: Flow, rows: Rows) -> None:
    """Fit the scalings of the context, and those between the data and the first CNF layer."""
    if rows.weight is None and len(rows) > MAX_SCALING_ROWS:
        rows = rows[torch.randint(len(rows), (MAX_SCALING_ROWS,)).to(rows.x.device)]
    if flow.context is not None and rows.context is not None and not flow.context.fitted:
        flow.context.fit(rows.context, rows.weight)
    x = rows.x
    for layer in reversed(flow.layers):
        if isinstance(layer, CNF):
            return
        if isinstance(layer, Scaling) and not layer.fitted:
            layer.fit(x, rows.weight)
        x = torch.cat([layer.pull(part).value for part in x.split(PASS_CHUNK_ROWS)])


def _identity(
    flow: Flow, recipe: Recipe, length: TrainingBudget, seed: int, train: Rows, held_out: Rows
) -> dict[str, Any]:
    """Return what a run may not change when it resumes, ready for JSON."""
    shapes = {name: list(tensor.shape) for name, tensor in flow.state_dict().items()}
    found = {
        **asdict(recipe),
        **{name: None if value == inf else value for name, value in vars(length).items()},
        "seed": seed,
        "number of processes": world_size(),
        "kind of device": held_out.x.device.type,
        "training rows": train.fingerprint(),
        "validation rows": held_out.fingerprint(),
        "shapes of weights": shapes,
    }
    identity: dict[str, Any] = json.loads(json.dumps(found))
    return identity


@dataclass
class _Run:
    """A training run: its learner, its rows and its progress."""

    learner: Learner
    recipe: Recipe
    plan: Sequence[Stage]
    budget: TrainingBudget
    sampler: BatchSampler
    held_out: Rows
    checkpointer: Checkpointer | None
    progress: TrainingProgress = field(default_factory=TrainingProgress)

    def __post_init__(self) -> None:
        self.progress.next_validation = 1 / self.recipe.validations
        self._remember()

    def resume(self) -> None:
        """Resume from the state, if there is one; else write the first."""
        found = None if self.checkpointer is None else self.checkpointer.read()
        if found is None:
            self._checkpoint()
            return
        self.progress = TrainingProgress.of(found.progress)
        tensors = found.tensors
        self.learner.restore(strip_prefix("learner", tensors))
        self.sampler.restore(strip_prefix("order", tensors))
        self.best = strip_prefix("best", tensors)
        restore_generators(strip_prefix("random", tensors), self.held_out.x.device)

    def loop(self, callbacks: Sequence[Callback]) -> None:
        """Take steps, validate, and call the callbacks, until there is a reason to end."""
        start = perf_counter() - self.progress.seconds
        while not self.progress.reason:
            stage, before = self.plan[self.progress.stage], self.progress.seconds
            step = self._step(stage)
            self._read_clock(start)
            done = self._done()
            last = self._is_last(self.progress.seconds - before)
            over = last or self._is_stage_over(done)
            begin = self.progress.seconds
            record = self._validate(stage) if over or self._is_due(done) else None
            event = Event(
                step=self.progress.step,
                seconds=perf_counter() - start,
                progress=1.0 if last else done,
                loss=step.loss,
                nfe=step.nfe,
                stage=stage,
                record=record,
                records=self.progress.records,
                improved=record is not None and self.progress.stale == 0,
                flow=self.learner.ema,
            )
            for callback in callbacks:
                callback(event)
            self._read_clock(start)
            if record is not None:
                self.progress.closing = self.progress.seconds - begin
                last = last or self._is_last(begin - before)
            self.progress.reason = self._reason(last)
            if self._is_stage_over(done) and not self.progress.reason:
                self._next_stage(done)
            self._checkpoint()

    def finish(self) -> History:
        """Load the best weights into the flow, and return the history."""
        progress = self.progress
        if not isfinite(progress.best_nll) and (progress.failures or progress.records):
            raise TrainingError(
                f"Training ended with nothing to keep: {progress.failures} steps in a row failed, "
                f"and none of {len(progress.records)} validations could be scored. Lower the "
                f"learning rate, or look for extreme values in the data. {progress.failure}"
            )
        if not progress.records:  # interrupted before the first validation
            self._remember()
            progress.best_step = progress.step
        self.learner.flow.load_state_dict(self.best)
        arrays = {
            name: np.array([asdict(record)[name] for record in progress.records], dtype=dtype)
            for name, dtype in Record.__annotations__.items()
        }
        return History(
            **arrays,
            best_step=progress.best_step,
            steps=progress.step,
            duration=progress.seconds,
            skipped=progress.skipped,
            reason=progress.reason,
        )

    def _step(self, stage: Stage) -> OptimizerStep:
        """Take an optimizer step, and count it."""
        progress = self.progress
        batch = self.sampler.batch(stage.batch_size)
        done = (self._done() - progress.began) / (self._stage_end() - progress.began)
        steps = progress.stage_steps / done if done else 0.0
        rate, factor = stage.rate(done, steps), stage.tolerance_factor(done, steps)
        step = self.learner.step(stage.objective, batch, rate, factor)
        progress.count(step, rate)
        return step

    def _read_clock(self, start: float) -> None:
        """Update the seconds, which all processes share."""
        (self.progress.seconds,) = mean([perf_counter() - start], self.held_out.x)

    def _done(self) -> float:
        """Return the fraction of the run that is done."""
        return self.budget.progress(self.progress.seconds, self.progress.step)

    def _stage_end(self) -> float:
        """Return the fraction of the run at which the stage ends."""
        last = self.progress.stage == len(self.plan) - 1
        return 1.0 if last else self.progress.began + self.plan[self.progress.stage].share

    def _is_last(self, step_seconds: float) -> bool:
        """Return whether another step and the last validation would exceed the budget."""
        ahead = self.progress.seconds + step_seconds + self.progress.closing
        return self.progress.step >= self.budget.steps or ahead >= 0.99 * self.budget.budget

    def _is_stage_over(self, done: float) -> bool:
        """Return whether a stage before the last has had its share, or no longer improves."""
        end = self._stage_end()
        return end < 1 and (done >= end or self.progress.stale >= self.recipe.patience)

    def _is_due(self, done: float) -> bool:
        """Return whether the next validation is due, and validations leave time to train.

        Where the steps will end the run the clock has no say: the same seed gives the same run.
        """
        progress = self.progress
        if done < progress.next_validation:
            return False
        cost = progress.validating + progress.closing
        by_steps = self.budget.is_by_steps(progress.seconds, progress.step)
        return by_steps or cost <= MAX_VALIDATION_SHARE * progress.seconds

    def _validate(self, stage: Stage) -> Record:
        begin = perf_counter()
        nll = mean_nll(self.learner.validated, self.held_out)
        (spent,) = mean([perf_counter() - begin], self.held_out.x)
        record = self.progress.record(stage.objective.name, nll, spent)
        due = floor(self._done() * self.recipe.validations + 1e-9) + 1
        self.progress.next_validation = due / self.recipe.validations
        if self.progress.stale == 0:
            self._remember()
        return record

    def _remember(self) -> None:
        """Copy the averaged weights as the best so far."""
        state = self.learner.ema.state_dict()
        self.best = {name: tensor.clone() for name, tensor in state.items()}

    def _next_stage(self, done: float) -> None:
        """Begin the next stage, from the best weights so far."""
        self.progress.begin_stage(done)
        self.learner.ema.load_state_dict(self.best)
        self.learner.restart()

    def _reason(self, last: bool) -> str:
        """Return why the run has ended, an empty text while it has not."""
        progress = self.progress
        if last:
            return "steps" if progress.step >= self.budget.steps else "budget"
        if progress.stale >= self.recipe.patience and progress.stage == len(self.plan) - 1:
            return "early stopping"
        if progress.failures >= MAX_FAILURES:
            return f"diverged: {progress.failure}"
        return ""

    def _checkpoint(self) -> None:
        """Write the state where it is due, and at the end."""
        checkpointer, progress = self.checkpointer, self.progress
        if checkpointer is None or not (progress.reason or checkpointer.is_due(progress.seconds)):
            return
        tensors = {
            **add_prefix("learner", self.learner.tensors()),
            **add_prefix("order", self.sampler.state()),
            **add_prefix("best", self.best),
            **add_prefix("random", generators(self.held_out.x.device)),
        }
        checkpointer.write(progress, tensors)
