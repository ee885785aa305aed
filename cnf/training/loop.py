"""The one training loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from cnf.utils.distributed import mean, rank, share, world_size
from cnf.utils.serialization import prefixed, under

MOST_FAILURES = 20  # failed steps in a row that end a run: skipping more would not bring it back
MOST_VALIDATING = 0.05  # of the time of a run that has a budget
# Rows that scalings are fitted on, drawn at random where there are more: means are then known to
# two thousandths of a deviation, and the field learns what is left.
MOST_SCALED = 200_000
CHUNK = 1000  # rows that pass through a flow, or layers of it, at a time


class TrainingError(RuntimeError):
    """Training failed before there was a model worth keeping."""


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
    steps by the recipe's schedule, solves at its loose tolerance where it solves, and validates a
    moving average of the weights. Ctrl-C ends it cleanly. What it draws depends on `seed` alone,
    and PyTorch's generator is left as it was.

    Rows that lie on a line, a curve or a surface have no density, and their likelihood no bound:
    `cnf train` and `CNFDensity` look for that; here `cnf.datasets.degeneracies` tells, when asked.

    Where `torch.distributed` is initialised the processes share the work: each takes its part of
    every batch and of the validation rows, on the data that all of them were given whole.

    Args:
        flow: The flow, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for a conditional flow.
        weight: How often each row counts, at least 0, shape (n,): as if it were repeated so often.
            Only their ratios matter; all count alike when None.
        objective: A name in `cnf.training.objectives.OBJECTIVES`; the recipe's when None.
        recipe: A recipe or its name; chosen by the data's size and dimension when None. Its
            architecture is the flow's business (`Recipe.flow`) and not read here.
        budget: Seconds from this call to the loop's end; 60 where neither it nor steps is given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Rows for validation, with their context as a pair; a tenth of the rows is held
            out for it when None.
        seed: Of the held-out rows, the order of the data, and all that is drawn in training.
        callbacks: Called after every step.
        state: A file for the run's state. Where it is there already, the run that wrote it goes on
            from it, bit for bit as if it had never stopped (with `steps` and one thread).
        state_seconds: Time between two states.

    Returns:
        The run's history.

    Raises:
        ValueError: The data does not fit the flow, a number or name is out of range, the objective
            cannot train the flow, or the state is of another run.
        TypeError: Data, a context or weights are no tensors.
        TrainingError: The steps failed over and over, or no validation could be scored, so that
            there is no model worth keeping.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    limit, start = TrainingBudget.of(budget, steps), perf_counter()
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
    with drawing(seed, flow.like.device):  # the same noise in every process
        _fit_scaling(flow, train)
    (spent,) = mean([perf_counter() - start], held_out.x)
    keeper = None
    if state is not None:
        identity = _identity(flow, recipe, limit, seed, train, held_out)
        keeper = Checkpointer(Path(state), state_seconds, identity)
    run = _Run(
        Learner(flow, recipe),
        recipe,
        plan,
        limit.without(spent),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        keeper,
    )
    with drawing(seed + rank(), flow.like.device):
        run.resume()
        try:
            run.loop(callbacks)
        except KeyboardInterrupt:
            if world_size() > 1:  # one may wait for another, which does not go on
                raise
            run.standing.reason = "interrupted"
    return run.finish()


def mean_nll(flow: Flow, rows: Rows) -> float:
    """Mean of −log p over `rows`, by their weights, in nats; infinite where a solve fails.

    Several processes score their parts, and get the same.
    """
    own = rows[share(len(rows))]
    total = 0.0
    try:
        with torch.no_grad():
            for part in own.split(CHUNK):
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
    """Fit the scalings of the context, and between the data and the first CNF layer."""
    if rows.weight is None and len(rows) > MOST_SCALED:
        rows = rows[torch.randint(len(rows), (MOST_SCALED,)).to(rows.x.device)]
    if flow.context is not None and rows.context is not None and not flow.context.fitted:
        flow.context.fit(rows.context, rows.weight)
    x = rows.x
    for layer in reversed(flow.layers):
        if isinstance(layer, CNF):
            return
        if isinstance(layer, Scaling) and not layer.fitted:
            layer.fit(x, rows.weight)
        x = torch.cat([layer.pull(part).value for part in x.split(CHUNK)])


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators seeded, and put back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _identity(
    flow: Flow, recipe: Recipe, limit: TrainingBudget, seed: int, train: Rows, held_out: Rows
) -> dict[str, Any]:
    """What makes a run the run that it is, ready for JSON."""
    shapes = {name: list(tensor.shape) for name, tensor in flow.state_dict().items()}
    found = {
        **asdict(recipe),
        **{name: None if value == inf else value for name, value in vars(limit).items()},
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
    """A training run: what it trains, on what, and where it stands."""

    learner: Learner
    recipe: Recipe
    plan: Sequence[Stage]
    limit: TrainingBudget
    order: BatchSampler
    held_out: Rows
    keeper: Checkpointer | None
    standing: TrainingProgress = field(default_factory=TrainingProgress)

    def __post_init__(self) -> None:
        self.standing.next_validation = 1 / self.recipe.validations
        self._remember()

    def resume(self) -> None:
        """Stand where a state says, if there is one; else write the first."""
        found = None if self.keeper is None else self.keeper.read()
        if found is None:
            self._keep()
            return
        self.standing = TrainingProgress.of(found.standing)
        tensors = found.tensors
        self.learner.restore(under("learner", tensors))
        self.order.restore(under("order", tensors))
        self.best = under("best", tensors)
        restore_generators(under("random", tensors), self.held_out.x.device)

    def loop(self, callbacks: Sequence[Callback]) -> None:
        """Step, validate now and then, tell the callbacks, until there is a reason to end."""
        start = perf_counter() - self.standing.seconds
        while not self.standing.reason:
            stage, before = self.plan[self.standing.stage], self.standing.seconds
            taken = self._step(stage)
            self._tick(start)
            progress = self._progress()
            last = self._is_last(self.standing.seconds - before)
            over = last or self._is_stage_over(progress)
            begin = self.standing.seconds
            record = self._validate(stage) if over or self._is_due(progress) else None
            event = Event(
                step=self.standing.step,
                seconds=perf_counter() - start,
                progress=1.0 if last else progress,
                loss=taken.loss,
                nfe=taken.nfe,
                stage=stage,
                record=record,
                records=self.standing.records,
                improved=record is not None and self.standing.stale == 0,
                flow=self.learner.averaged,
            )
            for callback in callbacks:
                callback(event)
            self._tick(start)
            if record is not None:
                self.standing.closing = self.standing.seconds - begin
                last = last or self._is_last(begin - before)
            self.standing.reason = self._reason(last)
            if self._is_stage_over(progress) and not self.standing.reason:
                self._next_stage(progress)
            self._keep()

    def finish(self) -> History:
        """Leave the flow with the best weights, and the history as arrays."""
        standing = self.standing
        if not isfinite(standing.best_nll) and (standing.failures or standing.records):
            raise TrainingError(
                f"Training ended with nothing to keep: {standing.failures} steps in a row failed, "
                f"and none of {len(standing.records)} validations could be scored. Lower the "
                f"learning rate, or look for extreme values in the data. {standing.failure}"
            )
        if not standing.records:  # interrupted before the first validation
            self._remember()
            standing.best_step = standing.step
        self.learner.flow.load_state_dict(self.best)
        arrays = {
            name: np.array([asdict(record)[name] for record in standing.records], dtype=dtype)
            for name, dtype in Record.__annotations__.items()
        }
        return History(
            **arrays,
            best_step=standing.best_step,
            steps=standing.step,
            duration=standing.seconds,
            skipped=standing.skipped,
            reason=standing.reason,
        )

    def _step(self, stage: Stage) -> OptimizerStep:
        """An optimizer step, counted."""
        standing = self.standing
        batch = self.order.batch(stage.batch_size)
        progress = (self._progress() - standing.began) / (self._stage_end() - standing.began)
        steps = standing.stage_steps / progress if progress else 0.0
        rate, tolerance_factor = (
            stage.rate(progress, steps),
            stage.tolerance_factor(progress, steps),
        )
        taken = self.learner.step(stage.objective, batch, rate, tolerance_factor)
        standing.count(taken, rate)
        return taken

    def _tick(self, start: float) -> None:
        """Read the clock, which all processes share."""
        (self.standing.seconds,) = mean([perf_counter() - start], self.held_out.x)

    def _progress(self) -> float:
        return self.limit.progress(self.standing.seconds, self.standing.step)

    def _stage_end(self) -> float:
        """The progress at which the stage ends."""
        last = self.standing.stage == len(self.plan) - 1
        return 1.0 if last else self.standing.began + self.plan[self.standing.stage].share

    def _is_last(self, step_seconds: float) -> bool:
        """Whether a further step and the last validation would overrun the run's length."""
        ahead = self.standing.seconds + step_seconds + self.standing.closing
        return self.standing.step >= self.limit.steps or ahead >= 0.99 * self.limit.budget

    def _is_stage_over(self, progress: float) -> bool:
        """Whether a stage that is not the last has had its share, or brings nothing any more."""
        end = self._stage_end()
        return end < 1 and (progress >= end or self.standing.stale >= self.recipe.patience)

    def _is_due(self, progress: float) -> bool:
        """Whether the next validation's time has come, and validations leave time to train.

        Where the steps run out first the clock has no say: the same seed gives the same run.
        """
        standing = self.standing
        if progress < standing.next_validation:
            return False
        cost = standing.validating + standing.closing
        by_steps = self.limit.is_by_steps(standing.seconds, standing.step)
        return by_steps or cost <= MOST_VALIDATING * standing.seconds

    def _validate(self, stage: Stage) -> Record:
        begin = perf_counter()
        nll = mean_nll(self.learner.judged, self.held_out)
        (spent,) = mean([perf_counter() - begin], self.held_out.x)
        record = self.standing.record(stage.objective.name, nll, spent)
        due = floor(self._progress() * self.recipe.validations + 1e-9) + 1
        self.standing.next_validation = due / self.recipe.validations
        if self.standing.stale == 0:
            self._remember()
        return record

    def _remember(self) -> None:
        """The averaged weights are the best so far."""
        state = self.learner.averaged.state_dict()
        self.best = {name: tensor.clone() for name, tensor in state.items()}

    def _next_stage(self, progress: float) -> None:
        """Go on with the next objective, from the best weights so far."""
        self.standing.begin_stage(progress)
        self.learner.averaged.load_state_dict(self.best)
        self.learner.restart()

    def _reason(self, last: bool) -> str:
        """Why the run is over, empty while it is not."""
        standing = self.standing
        if last:
            return "steps" if standing.step >= self.limit.steps else "budget"
        if standing.stale >= self.recipe.patience and standing.stage == len(self.plan) - 1:
            return "early stopping"
        if standing.failures >= MOST_FAILURES:
            return f"diverged: {standing.failure}"
        return ""

    def _keep(self) -> None:
        """Write the state where its time has come, at the start and in the end."""
        keeper, standing = self.keeper, self.standing
        if keeper is None or not (standing.reason or keeper.is_due(standing.seconds)):
            return
        tensors = {
            **prefixed("learner", self.learner.tensors()),
            **prefixed("order", self.order.state()),
            **prefixed("best", self.best),
            **prefixed("random", generators(self.held_out.x.device)),
        }
        keeper.write(standing, tensors)
