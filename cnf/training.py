"""The one training loop."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import floor, inf, isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnf.distributed import gather, mean, rank, share, world_size
from cnf.flow import Flow
from cnf.history import Callback, Event, History, Record
from cnf.layers import Standardize
from cnf.learner import Learner, Taken
from cnf.ode import SolveError
from cnf.recipes import Recipe, choose_recipe
from cnf.rows import Order, Rows, hold_out, rows_for
from cnf.schedule import Stage, stages
from cnf.training_state import TrainingState, prefixed, under

MOST_FAILURES = 20  # failed steps in a row that end a run: skipping more would not bring it back
MOST_VALIDATING = 0.08  # of the time of a run that has a budget
CHUNK = 1000  # rows that a validation scores in one solve


class TrainingError(RuntimeError):
    """Training failed before there was a model worth keeping."""


def fit(
    flow: Flow,
    data: Tensor,
    *,
    context: Tensor | None = None,
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

    Standardisation layers next to the data are first fitted on the training rows, unless they are
    fitted already. The loop takes AdamW steps by the recipe's schedule, solves at its loose
    tolerance where it solves, and validates a moving average of the weights. Ctrl-C ends it
    cleanly. What it draws depends on `seed` alone, and PyTorch's generator is left as it was.

    Where `torch.distributed` is initialised the processes share the work: each takes its part of
    every batch and of the validation rows, on the data that all of them were given whole.

    Args:
        flow: The flow, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for a conditional flow.
        objective: A name in `cnf.objectives.OBJECTIVES`; the recipe's when None.
        recipe: A recipe or its name; chosen by the data's size and dimension when None. Its
            architecture is the flow's business (`Recipe.flow`) and not read here.
        budget: Seconds from the loop's start to its end; 60 where neither it nor steps is given.
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
        TrainingError: The steps failed over and over, or no validation could be scored, so that
            there is no model worth keeping.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    limit = _Limit.of(budget, steps)
    generator = torch.Generator().manual_seed(seed)
    train = rows_for(flow, "data", data, context)
    if validation is None:
        train, held_out = hold_out(train, generator)
    else:
        pair = validation if isinstance(validation, tuple) else (validation, None)
        held_out = rows_for(flow, "validation", *pair)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, len(train), flow.dim)[1]
    recipe = replace(recipe, objective=objective or recipe.objective)
    plan = stages(recipe)
    for stage in plan:
        stage.objective.check(flow, conditional=context is not None)
    _fit_standardization(flow, train)
    keeper = None
    if state is not None:
        identity = _identity(flow, recipe, limit, seed, train, held_out)
        keeper = _Keeper(Path(state), state_seconds, identity)
    run = _Run(
        Learner(flow, recipe),
        recipe,
        plan,
        limit,
        Order(train, generator),
        held_out[: recipe.validation_rows],
        keeper,
    )
    with _drawing(seed, flow.like.device):
        run.resume()
        try:
            run.loop(callbacks)
        except KeyboardInterrupt:
            run.standing.reason = "interrupted"
    return run.finish()


def mean_nll(flow: Flow, rows: Rows) -> float:
    """Mean of −log p over `rows`, in nats; infinite where a solve fails.

    Several processes score their parts, and get the same.
    """
    own = rows[share(len(rows))]
    total = 0.0
    try:
        with torch.no_grad():
            for part in own.split(CHUNK):
                log_prob = flow.score_rows(part.x, part.context).log_prob
                total -= log_prob.double().sum().item()
    except SolveError:
        total = inf
    (total,) = mean([total], rows.x)
    found = total * world_size() / len(rows)
    return found if isfinite(found) else inf


def _fit_standardization(flow: Flow, rows: Rows) -> None:
    """Fit the standardisations of the context, and between the data and the first other layer."""
    if flow.context is not None and rows.context is not None and not flow.context.fitted:
        flow.context.fit(rows.context)
    x = rows.x
    for layer in reversed(flow.layers):
        if not isinstance(layer, Standardize):
            return
        if not layer.fitted:
            layer.fit(x)
        x = layer.pull(x).value


@dataclass(frozen=True)
class _Limit:
    """The length of a run, in seconds, steps or both."""

    budget: float
    steps: float

    @staticmethod
    def of(budget: float | None, steps: int | None) -> _Limit:
        for name, value in (("budget", budget), ("steps", steps)):
            if value is not None and not value > 0:
                raise ValueError(f"Expected {name} to be above 0; got {value}")
        if budget is None and steps is None:
            budget = 60.0
        return _Limit(budget or inf, steps or inf)

    def progress(self, seconds: float, step: int) -> float:
        return min(1.0, max(seconds / self.budget, step / self.steps))


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators seeded, for each process in another way, and put back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank())
        yield


def _identity(
    flow: Flow, recipe: Recipe, limit: _Limit, seed: int, train: Rows, held_out: Rows
) -> dict[str, Any]:
    """What makes a run the run that it is, ready for JSON."""
    shapes = {name: list(tensor.shape) for name, tensor in flow.state_dict().items()}
    found = {
        **asdict(recipe),
        **{name: None if value == inf else value for name, value in vars(limit).items()},
        "seed": seed,
        "number of processes": world_size(),
        "training rows": train.fingerprint(),
        "validation rows": held_out.fingerprint(),
        "shapes of weights": shapes,
    }
    identity: dict[str, Any] = json.loads(json.dumps(found))
    return identity


@dataclass
class _Standing:
    """Where a run stands, ready for JSON.

    Attributes:
        step: Steps taken.
        seconds: Time since the loop's start.
        stage: The stage's number, from 0.
        began: The progress at which it began.
        records: Validations so far.
        losses: Sum of the losses since the last of them.
        evaluations: Alike, of a solve's evaluations.
        taken: Number of steps that these are of.
        best_nll: Of the validations.
        best_step: The step that it was of.
        stale: Validations of the stage since then.
        next_validation: The progress at which one is due.
        validating: Seconds spent on validation.
        closing: Seconds that the last one took, with what callbacks made of it.
        skipped: Steps skipped.
        failures: Those at the end, in a row.
        failure: Why the last one was skipped.
        reason: Why the run is over, empty while it is not.
    """

    step: int = 0
    seconds: float = 0.0
    stage: int = 0
    began: float = 0.0
    records: list[Record] = field(default_factory=list)
    losses: float = 0.0
    evaluations: float = 0.0
    taken: int = 0
    best_nll: float = inf
    best_step: int = 0
    stale: int = 0
    next_validation: float = 0.0
    validating: float = 0.0
    closing: float = 0.0
    skipped: int = 0
    failures: int = 0
    failure: str = ""
    reason: str = ""

    @staticmethod
    def of(json: Mapping[str, Any]) -> _Standing:
        records = [Record(**record) for record in json["records"]]
        return _Standing(**{**json, "records": records})


@dataclass
class _Keeper:
    """Writes a run's state to a file every now and then, and reads it."""

    path: Path
    seconds: float
    identity: Mapping[str, Any]
    written: float = -inf

    def read(self) -> TrainingState | None:
        if not self.path.exists():
            return None
        found = TrainingState.read(self.path)
        found.check(self.path, self.identity)
        return found

    def write(self, standing: _Standing, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Write the state, with every process's generators; a disk that is full ends no run."""
        own = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(device)
        for process, generators in enumerate(gather(own)):
            tensors |= {f"random.{process}.{name}": state for name, state in generators.items()}
        self.written = standing.seconds
        if rank() > 0:
            return
        try:
            TrainingState(self.identity, asdict(standing), tensors).write(self.path)
        except OSError as error:
            warnings.warn(
                f"The training state could not be written to {self.path} ({error.strerror}). "
                "Training goes on; the state written before stays",
                stacklevel=2,
            )


@dataclass
class _Run:
    """A training run: what it trains, on what, and where it stands."""

    learner: Learner
    recipe: Recipe
    plan: Sequence[Stage]
    limit: _Limit
    order: Order
    held_out: Rows
    keeper: _Keeper | None
    standing: _Standing = field(default_factory=_Standing)

    def __post_init__(self) -> None:
        self.standing.next_validation = 1 / self.recipe.validations
        self._remember()

    def resume(self) -> None:
        """Stand where a state says, if there is one; else write the first."""
        found = None if self.keeper is None else self.keeper.read()
        if found is None:
            self._keep()
            return
        self.standing = _Standing.of(found.standing)
        tensors = found.tensors
        self.learner.restore(under("learner", tensors))
        self.order.restore(under("order", tensors))
        self.best = under("best", tensors)
        torch.set_rng_state(tensors[f"random.{rank()}.cpu"])
        if f"random.{rank()}.cuda" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.{rank()}.cuda"])

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

    def _step(self, stage: Stage) -> Taken:
        """An optimizer step, counted."""
        standing = self.standing
        batch = self.order.batch(stage.batch_size)
        progress = (self._progress() - standing.began) / (self._stage_end() - standing.began)
        taken = self.learner.step(stage.objective, batch, stage.rate(progress))
        standing.step += 1
        if taken.failure:
            standing.skipped += 1
            standing.failures += 1
            standing.failure = taken.failure
        else:
            standing.failures = 0
            standing.losses += taken.loss
            standing.evaluations += taken.nfe
            standing.taken += 1
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

        Where only steps are counted the clock has no say: the same seed gives the same run.
        """
        standing = self.standing
        if progress < standing.next_validation:
            return False
        cost = standing.validating + standing.closing
        return self.limit.budget == inf or cost <= MOST_VALIDATING * standing.seconds

    def _validate(self, stage: Stage) -> Record:
        standing, begin = self.standing, perf_counter()
        nll = mean_nll(self.learner.judged, self.held_out)
        (spent,) = mean([perf_counter() - begin], self.held_out.x)
        standing.validating += spent
        taken = standing.taken or nan
        record = Record(
            step=standing.step,
            seconds=standing.seconds + spent,
            objective=stage.objective.name,
            loss=standing.losses / taken,
            validation_nll=nll,
            nfe=standing.evaluations / taken,
        )
        standing.records.append(record)
        standing.losses, standing.evaluations, standing.taken = 0.0, 0.0, 0
        due = floor(self._progress() * self.recipe.validations) + 1
        standing.next_validation = due / self.recipe.validations
        standing.stale += 1
        if nll < standing.best_nll:
            standing.best_nll, standing.best_step, standing.stale = nll, standing.step, 0
            self._remember()
        return record

    def _remember(self) -> None:
        """The averaged weights are the best so far."""
        state = self.learner.averaged.state_dict()
        self.best = {name: tensor.clone() for name, tensor in state.items()}

    def _next_stage(self, progress: float) -> None:
        """Go on with the next objective, from the best weights so far."""
        self.standing.stage += 1
        self.standing.began = progress
        self.standing.stale = 0
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
        if keeper is None:
            return
        if standing.reason or standing.seconds - keeper.written >= keeper.seconds:
            tensors = {
                **prefixed("learner", self.learner.tensors()),
                **prefixed("order", self.order.state()),
                **prefixed("best", self.best),
            }
            keeper.write(standing, tensors, self.held_out.x.device)
