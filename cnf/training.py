"""The one training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cnf.flow import Flow
from cnf.layers import Standardize
from cnf.objectives import OBJECTIVES, Objective
from cnf.ode import SolveError
from cnf.recipes import Recipe, choose_recipe

# After so many failed steps in a row the run is over: skipping more would not bring it back.
MOST_FAILURES = 20


@dataclass(frozen=True)
class Event:
    """One training step, as callbacks see it.

    Attributes:
        step: Steps taken so far, this one included.
        seconds: Time since the loop's start.
        progress: Fraction of the run that is done, 0 to 1.
        loss: The step's loss, nan for a skipped step.
        nfe: Evaluations of the step's solves.
        validation_nll: Validation NLL in nats per row, where this step was validated.
        improved: Whether that is the best so far.
        flow: The flow with averaged weights, which is what is validated and kept.
    """

    step: int
    seconds: float
    progress: float
    loss: float
    nfe: float
    validation_nll: float | None
    improved: bool
    flow: Flow


Callback = Callable[[Event], None]


@dataclass(frozen=True)
class History:
    """How a training run went; one entry for each validation.

    Attributes:
        step: Steps taken.
        seconds: Time since the loop's start.
        loss: Mean training loss since the entry before.
        validation_nll: Validation NLL of the averaged weights, nats per row, in the data's units.
        nfe: Mean evaluations per training solve since the entry before.
        best_step: The step whose averaged weights the flow was left with.
        skipped: Steps skipped because the loss, the gradient or the solve failed.
        reason: Why the run ended.
    """

    step: NDArray[np.int64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    validation_nll: NDArray[np.float64]
    nfe: NDArray[np.float64]
    best_step: int
    skipped: int
    reason: str


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
            (hidden, activation, blocks) is the flow's business and not read here.
        budget: Seconds from the loop's start to its end; 60 where neither it nor steps is
            given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Rows for validation, with their context as a pair; a tenth of the rows is held
            out for it when None.
        seed: Seed of the held-out rows and the order of the data.
        callbacks: Called after every step.

    Returns:
        The run's history.

    Raises:
        ValueError: The data does not fit the flow, or a number or name is out of range.
        TrainingError: The very first steps failed over and over.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> int(history.step[-1]), history.reason
        (5, 'steps')
    """
    chosen = recipe if isinstance(recipe, Recipe) else choose_recipe(recipe, flow.dim)[1]
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected an objective among {', '.join(OBJECTIVES)}; got {objective!r}")
    limit = _Limit.of(budget, steps)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = _prepare(flow, data, context, validation, generator)
    _fit_standardization(flow, train.x)
    run = _Run(flow, chosen, limit, callbacks)
    try:
        run.loop(OBJECTIVES[objective], train, held_out.first(chosen.validation_rows), generator)
    except KeyboardInterrupt:
        run.reason = "interrupted"
    return run.finish()


@dataclass(frozen=True)
class Rows:
    """Rows with their context, on the flow's device and in its dtype."""

    x: Tensor
    context: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.x[index], None if self.context is None else self.context[index])

    def first(self, n: int) -> Rows:
        """The first `n` rows."""
        return self[:n]

    def batches(self, size: int, generator: torch.Generator) -> Iterable[Rows]:
        """Batches for ever, in a new random order each time through."""
        size = min(size, len(self))
        while True:
            order = torch.randperm(len(self), generator=generator).to(self.x.device)
            for batch in order[: len(order) - len(order) % size].split(size):
                yield self[batch]


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
        return _Limit(budget or float("inf"), steps or float("inf"))

    def progress(self, seconds: float, step: int) -> float:
        return min(1.0, max(seconds / self.budget, step / self.steps))


@dataclass
class _Run:
    """The state of a training run."""

    flow: Flow
    recipe: Recipe
    limit: _Limit
    callbacks: Sequence[Callback]
    reason: str = "budget"
    records: list[tuple[int, float, float, float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    skipped: int = 0
    failures: int = 0
    failure: str = ""
    best: float = float("inf")
    best_step: int = 0
    stale: int = 0
    validating: float = 0.0
    next_mark: float = 0.0

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.view = self.flow.with_solver(
            rtol=recipe.rtol, atol=recipe.atol, gradient=recipe.gradient, norm="mean"
        )
        self.averaged = copy.deepcopy(self.flow)
        self.judged = self.averaged.with_solver(
            rtol=0.1 * recipe.rtol, atol=0.1 * recipe.atol, norm="mean"
        )
        self.best_state = copy.deepcopy(self.averaged.state_dict())
        self.parameters = [p for p in self.flow.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    def loop(
        self, objective: Objective, train: Rows, held_out: Rows, generator: torch.Generator
    ) -> None:
        start = perf_counter()
        self.next_mark = 1 / self.recipe.validations
        for step, batch in enumerate(train.batches(self.recipe.batch_size, generator), start=1):
            seconds = perf_counter() - start
            self._schedule(self.limit.progress(seconds, step - 1))
            loss, nfe = self._step(objective, batch, step)
            seconds = perf_counter() - start
            # The last validation belongs to the budget: leave time for it, and for one step more.
            reserve = seconds / step + self._validation_time() + 0.01 * self.limit.budget
            progress = self.limit.progress(seconds, step)
            last = step >= self.limit.steps or seconds + reserve >= self.limit.budget
            nll = self._validate_if_due(held_out, step, start, progress, last)
            improved = nll is not None and self.best_step == step
            seconds = perf_counter() - start
            event = Event(
                step, seconds, 1.0 if last else progress, loss, nfe, nll, improved, self.averaged
            )
            for callback in self.callbacks:
                callback(event)
            if self._over(last, step):
                return

    def finish(self) -> History:
        """Leave the flow with the best weights, and the history as arrays."""
        if self.best == float("inf") and self.failures:
            raise TrainingError(
                f"Training failed {self.failures} steps in a row with nothing to keep: "
                f"{self.failure} Lower the learning rate, or check the data for extreme values."
            )
        self.flow.load_state_dict(self.best_state)
        columns = list(zip(*self.records, strict=True)) or [()] * 5
        step, seconds, loss, nll, nfe = (np.array(column, dtype=float) for column in columns)
        return History(
            step.astype(np.int64),
            seconds,
            loss,
            nll,
            nfe,
            self.best_step,
            self.skipped,
            self.reason,
        )

    def _schedule(self, progress: float) -> None:
        warmup = self.recipe.warmup
        rise = min(1.0, progress / warmup + 0.01) if warmup else 1.0
        fall = 0.5 * (1 + cos(pi * max(0.0, progress - warmup) / (1 - warmup)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rise * fall

    def _step(self, objective: Objective, batch: Rows, step: int) -> tuple[float, float]:
        """One optimizer step, skipped where the solve, the loss or the gradient is not finite."""
        self.optimizer.zero_grad()
        try:
            loss = objective(self.view, batch.x, batch.context)
            loss.value.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
            value, norm_value = torch.stack([loss.value.detach(), norm]).tolist()
        except SolveError as error:
            return self._skip(str(error))
        if not (isfinite(value) and isfinite(norm_value)):
            return self._skip(f"The loss is {value}, the norm of its gradient {norm_value}.")
        self.optimizer.step()
        self._average(step)
        self.failures = 0
        nfe = loss.stats.evaluations / self._solves()
        self.losses.append(value)
        self.evaluations.append(nfe)
        return value, nfe

    def _skip(self, failure: str) -> tuple[float, float]:
        self.skipped += 1
        self.failures += 1
        self.failure = failure
        return float("nan"), float("nan")

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """θ̄ ← θ̄ + (1 − d)(θ − θ̄), with a decay d that starts low, so that θ̄ forgets its start."""
        decay = min(self.recipe.average, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(averaged, list(self.flow.parameters()), 1 - decay)

    def _validate_if_due(
        self, held_out: Rows, step: int, start: float, progress: float, last: bool
    ) -> float | None:
        """The validation NLL, where the run has come to its next mark or its end."""
        elapsed = perf_counter() - start
        affordable = self.validating + self._validation_time() <= 0.15 * elapsed
        if not last and not (progress >= self.next_mark and affordable):
            return None
        self.next_mark = progress + 1 / self.recipe.validations
        begin = perf_counter()
        nll = mean_nll(self.judged, held_out)
        self.validating += perf_counter() - begin
        self._record(step, perf_counter() - start, nll)
        return nll

    def _record(self, step: int, seconds: float, nll: float) -> None:
        self.stale += 1
        if nll < self.best:
            self.best, self.best_step, self.stale = nll, step, 0
            self.best_state = copy.deepcopy(self.averaged.state_dict())
        loss = float(np.mean(self.losses)) if self.losses else float("nan")
        nfe = float(np.mean(self.evaluations)) if self.evaluations else float("nan")
        self.records.append((step, seconds, loss, nll, nfe))
        self.losses, self.evaluations = [], []

    def _validation_time(self) -> float:
        return self.validating / max(1, len(self.records))

    def _solves(self) -> int:
        """Solves in one pass through the flow."""
        return max(1, sum(hasattr(layer, "field") for layer in self.flow.layers))

    def _over(self, last: bool, step: int) -> bool:
        if last:
            self.reason = "steps" if step >= self.limit.steps else "budget"
        elif self.stale >= self.recipe.patience:
            self.reason = "early stopping"
        elif self.failures >= MOST_FAILURES:
            self.reason = f"diverged: {self.failure}"
        else:
            return False
        return True


class ProgressBar:
    """A callback that shows loss, validation NLL and evaluations; quiet without a terminal."""

    def __init__(self) -> None:
        bar_format = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        self._bar: tqdm[Any] = tqdm(total=1.0, disable=None, bar_format=bar_format, leave=False)
        self._nll = float("nan")

    def __call__(self, event: Event) -> None:
        """Show one step."""
        if event.validation_nll is not None:
            self._nll = event.validation_nll
        self._bar.set_postfix_str(
            f"step {event.step}  loss {event.loss:.3f}  validation NLL {self._nll:.3f}  "
            f"{event.nfe:.0f} evaluations",
            refresh=False,
        )
        self._bar.update(event.progress - self._bar.n)

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._bar.close()


def _prepare(
    flow: Flow,
    data: Tensor,
    context: Tensor | None,
    validation: Tensor | tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> tuple[Rows, Rows]:
    """Training and validation rows, checked."""
    rows = _rows("data", flow, data, context)
    if validation is not None:
        x, c = validation if isinstance(validation, tuple) else (validation, None)
        return rows, _rows("validation", flow, x, c)
    if len(rows) < 2:
        raise ValueError("Expected at least 2 rows to hold one out for validation; got 1")
    order = torch.randperm(len(rows), generator=generator).to(rows.x.device)
    held_out = max(1, len(rows) // 10)
    return rows[order[held_out:]], rows[order[:held_out]]


def _rows(name: str, flow: Flow, x: Tensor, context: Tensor | None) -> Rows:
    if x.ndim != 2 or x.shape[1] != flow.dim or not len(x):
        raise ValueError(
            f"Expected {name} of shape (rows, {flow.dim}) with at least one row; "
            f"got {tuple(x.shape)}"
        )
    if context is not None and (context.ndim != 2 or len(context) != len(x)):
        raise ValueError(
            f"Expected a context of shape ({len(x)}, context_dim) for {name}; "
            f"got {tuple(context.shape)}"
        )
    like = next(flow.parameters())
    rows = Rows(x.to(like), None if context is None else context.to(like))
    for what, values in ((name, rows.x), ("context", rows.context)):
        if values is not None and not values.isfinite().all():
            bad = (~values.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"Expected finite {what}; got NaN or infinity first in row {bad[0]}, column "
                f"{bad[1]} (counted from 0)"
            )
    return rows


def _fit_standardization(flow: Flow, x: Tensor) -> None:
    """Fit the standardisations between the data and the first other layer, where they are not."""
    for layer in reversed(flow.layers):
        if not isinstance(layer, Standardize):
            return
        if not layer.fitted:
            layer.fit(x)
        x = layer.pull(x).value


def mean_nll(flow: Flow, rows: Rows, chunk: int = 1000) -> float:
    """Mean of −log p over `rows`; infinite where the solve fails."""
    total = 0.0
    try:
        with torch.no_grad():
            for i in range(0, len(rows), chunk):
                part = rows[i : i + chunk]
                total -= flow.score_rows(part.x, part.context).log_prob.sum().item()
    except SolveError:
        return float("inf")
    return total / len(rows) if isfinite(total) else float("inf")
