"""The one training loop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import cos, inf, isfinite, nan, pi
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnf.flow import Flow
from cnf.history import Callback, Event, History, Record
from cnf.layers import Standardize
from cnf.objectives import OBJECTIVES, Objective
from cnf.ode import SolveError
from cnf.recipes import Recipe, choose_recipe
from cnf.rows import Rows, hold_out, rows_for

MOST_FAILURES = 20  # failed steps in a row that end a run: skipping more would not bring it back
CHUNK = 1000  # rows that a validation scores in one solve


class TrainingError(RuntimeError):
    """Training failed before there was a model worth keeping."""


def fit(
    flow: Flow,
    data: Tensor,
    *,
    context: Tensor | None = None,
    objective: str = "mle",
    recipe: str | Recipe | None = None,
    budget: float | None = None,
    steps: int | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train `flow` on `data` and leave it with its best weights on validation.

    Standardisation layers next to the data are first fitted on the training rows, unless they are
    fitted already. The loop takes AdamW steps with warm-up and a cosine schedule, solves at the
    recipe's loose tolerance, and validates a moving average of the weights. Ctrl-C ends it cleanly.

    Args:
        flow: The flow, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for a conditional flow.
        objective: A name in `cnf.objectives.OBJECTIVES`.
        recipe: A recipe or its name; chosen by the data's dimension when None. Its architecture
            (hidden, activation, blocks, field and its features) is the flow's business and not
            read here.
        budget: Seconds from the loop's start to its end; 60 where neither it nor steps is given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Rows for validation, with their context as a pair; a tenth of the rows is held
            out for it when None.
        seed: Seed of the held-out rows and the order of the data; what else is drawn (probes, the
            base's time) comes from PyTorch's generator.
        callbacks: Called after every step.

    Returns:
        The run's history.

    Raises:
        ValueError: The data does not fit the flow, or a number or name is out of range.
        TrainingError: The steps failed over and over, or no validation could be scored, so that
            there is no model worth keeping.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected an objective among {', '.join(OBJECTIVES)}; got {objective!r}")
    chosen = recipe if isinstance(recipe, Recipe) else choose_recipe(recipe, flow.dim)[1]
    limit = _Limit.of(budget, steps)
    generator = torch.Generator().manual_seed(seed)
    train = rows_for(flow, "data", data, context)
    if validation is None:
        train, held_out = hold_out(train, generator)
    else:
        pair = validation if isinstance(validation, tuple) else (validation, None)
        held_out = rows_for(flow, "validation", *pair)
    _fit_standardization(flow, train)
    run = _Run(flow, chosen, limit, OBJECTIVES[objective], held_out[: chosen.validation_rows])
    try:
        run.loop(train.batches(chosen.batch_size, generator), callbacks)
    except KeyboardInterrupt:
        run.reason = "interrupted"
    return run.finish()


def mean_nll(flow: Flow, rows: Rows) -> float:
    """Mean of −log p over `rows`, in nats; infinite where a solve fails."""
    try:
        with torch.no_grad():
            parts = [flow.score_rows(part.x, part.context).log_prob for part in rows.split(CHUNK)]
    except SolveError:
        return inf
    mean = -torch.cat(parts).double().mean().item()
    return mean if isfinite(mean) else inf


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


@dataclass
class _Run:
    """A training run: what it trains, and where it stands."""

    flow: Flow
    recipe: Recipe
    limit: _Limit
    objective: Objective
    held_out: Rows
    records: list[Record] = field(default_factory=list)
    recent: list[tuple[float, float]] = field(default_factory=list)  # loss and nfe since a record
    best_nll: float = inf
    best_step: int = 0
    stale: int = 0  # validations since the best
    step: int = 0
    skipped: int = 0
    failures: int = 0  # in a row
    failure: str = ""
    validating: float = 0.0  # seconds spent on validation
    start: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        recipe = self.recipe
        loose = {"rtol": recipe.rtol, "atol": recipe.atol, "step": "joint"}
        training: dict[str, Any] = {"gradient": recipe.gradient, "keep": recipe.keep}
        if recipe.divergence != "auto":
            training["divergence"] = recipe.divergence
        self.view = self.flow.with_solver(**loose, **training)
        self.averaged = copy.deepcopy(self.flow)
        self.judged = self.averaged.with_solver(**loose)
        self.best_state = copy.deepcopy(self.averaged.state_dict())
        self.next_validation = 1 / recipe.validations
        self.parameters = [p for p in self.flow.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    @property
    def seconds(self) -> float:
        return perf_counter() - self.start

    def loop(self, batches: Iterable[Rows], callbacks: Sequence[Callback]) -> None:
        self.start = perf_counter()
        for batch in batches:
            self._schedule(self.limit.progress(self.seconds, self.step))
            loss, nfe = self._take_step(batch)
            self.step += 1
            progress = self.limit.progress(self.seconds, self.step)
            last = self._is_last()
            record = self._validate() if last or self._is_due(progress) else None
            event = Event(
                step=self.step,
                seconds=self.seconds,
                progress=1.0 if last else progress,
                loss=loss,
                nfe=nfe,
                record=record,
                improved=record is not None and self.stale == 0,
                flow=self.averaged,
            )
            for callback in callbacks:
                callback(event)
            self.reason = self._reason(last)
            if self.reason:
                return

    def finish(self) -> History:
        """Leave the flow with the best weights, and the history as arrays."""
        if not isfinite(self.best_nll) and (self.failures or self.records):
            raise TrainingError(
                f"Training ended with nothing to keep: {self.failures} steps in a row failed, and "
                f"none of {len(self.records)} validations could be scored. Lower the learning "
                f"rate, or look for extreme values in the data. {self.failure}".rstrip()
            )
        if not self.records:  # interrupted before the first validation
            self.best_state, self.best_step = self.averaged.state_dict(), self.step
        self.flow.load_state_dict(self.best_state)
        arrays = {
            name: np.array([asdict(record)[name] for record in self.records], dtype=dtype)
            for name, dtype in Record.__annotations__.items()
        }
        return History(
            **arrays,
            best_step=self.best_step,
            steps=self.step,
            duration=self.seconds,
            skipped=self.skipped,
            reason=self.reason,
        )

    def _schedule(self, progress: float) -> None:
        """Linear warm-up, then a cosine to zero."""
        warmup = self.recipe.warmup
        rise = min(1.0, progress / warmup + 0.01) if warmup else 1.0
        fall = 0.5 * (1 + cos(pi * max(0.0, progress - warmup) / (1 - warmup)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rise * fall

    def _take_step(self, batch: Rows) -> tuple[float, float]:
        """One optimizer step, skipped where the solve, the loss or the gradient fails."""
        self.optimizer.zero_grad()
        try:
            loss = self.objective(self.view, batch.x, batch.context, self.recipe.regularization)
            loss.value.backward()
        except SolveError as error:
            return self._skip(str(error))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        value, length = torch.stack([loss.value.detach(), norm]).tolist()
        if not (isfinite(value) and isfinite(length)):
            return self._skip(f"The loss is {value} and the norm of its gradient {length}.")
        self.optimizer.step()
        self._average()
        self.failures = 0
        self.recent.append(
            (value, float(np.mean(loss.stats.evaluations)) / max(1, self.flow.solves))
        )
        return self.recent[-1]

    def _skip(self, failure: str) -> tuple[float, float]:
        self.skipped += 1
        self.failures += 1
        self.failure = failure
        return nan, nan

    @torch.no_grad()
    def _average(self) -> None:
        """θ̄ ← θ̄ + (1 − d)(θ − θ̄), with a decay d that starts low, so that θ̄ forgets its start."""
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        averaged: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(averaged, list(self.flow.parameters()), 1 - decay)

    def _is_last(self) -> bool:
        """Whether a further step and the last validation would overrun the run's length."""
        ahead = self.seconds / self.step + self._validation_seconds()
        return self.step >= self.limit.steps or self.seconds + ahead >= 0.99 * self.limit.budget

    def _is_due(self, progress: float) -> bool:
        """Whether the next validation's time has come, and validations take no more than 15 %.

        Where only steps are counted the clock has no say: the same seed gives the same run.
        """
        if progress < self.next_validation:
            return False
        cost = self.validating + self._validation_seconds()
        return self.limit.budget == inf or cost <= 0.15 * self.seconds

    def _validation_seconds(self) -> float:
        return self.validating / max(1, len(self.records))

    def _validate(self) -> Record:
        begin = self.seconds
        nll = mean_nll(self.judged, self.held_out)
        self.validating += self.seconds - begin
        loss, nfe = np.mean(self.recent, 0).tolist() if self.recent else (nan, nan)
        record = Record(self.step, self.seconds, loss, nll, nfe)
        self.records.append(record)
        self.recent = []
        self.next_validation = (
            self.limit.progress(self.seconds, self.step) + 1 / self.recipe.validations
        )
        self.stale += 1
        if nll < self.best_nll:
            self.best_nll, self.best_step, self.stale = nll, self.step, 0
            self.best_state = copy.deepcopy(self.averaged.state_dict())
        return record

    def _reason(self, last: bool) -> str:
        """Why the run is over, empty while it is not."""
        if last:
            return "steps" if self.step >= self.limit.steps else "budget"
        if self.stale >= self.recipe.patience:
            return "early stopping"
        if self.failures >= MOST_FAILURES:
            return f"diverged: {self.failure}"
        return ""
