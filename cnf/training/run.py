"""A training run: steps, validations, callbacks and states, whatever is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import floor, isfinite
from time import perf_counter
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from cnf.training.checkpoint import Checkpointer, TrainingState, generators, restore_generators
from cnf.training.optimizer import OptimizerStep
from cnf.training.progress import TrainingBudget, TrainingProgress
from cnf.utils.distributed import mean, rank, world_size
from cnf.utils.random import seeded
from cnf.utils.serialization import add_prefix, strip_prefix
from cnf.utils.threads import (
    ThreadChooser,
    Threads,
    candidates,
    check_threads,
    number_of_threads,
    set_threads,
)

MAX_FAILURES = 20  # consecutive failed steps that end a run: more would not bring it back

R = TypeVar("R")
E = TypeVar("E")


class TrainingError(RuntimeError):
    """A failure of training before there was a model worth keeping."""


class Run(ABC, Generic[R, E]):
    """A training run of records R and events E, whose subclass says what is trained."""

    record_type: ClassVar[Callable[..., Any]]
    checkpoints_records: ClassVar[bool] = False  # a state after each validation, whatever the time
    validation_share: float = 0.05  # of the time of a run that has a budget, at most

    def __init__(
        self,
        budget: TrainingBudget,
        validations: int,  # their number, evenly spread
        shares: Sequence[float],  # fraction of the run of each stage; the last one takes the rest
        patience: float,  # validations without improvement after which a stage ends
        like: Tensor,  # on the device that is trained on
        checkpointer: Checkpointer | None,
        threads: Threads = "auto",
        measurable: bool = True,  # whether its steps by several numbers of threads may be compared
    ) -> None:
        self.budget, self.validations, self.patience = budget, validations, patience
        self.shares, self.like, self.checkpointer = shares, like, checkpointer
        self.threads = threads
        self.measurable = measurable and world_size() == 1 and not like.is_cuda
        self.progress = TrainingProgress(next_validation=1 / validations)
        self.remember()  # in `best`, the weights that validated best

    @abstractmethod
    def step(self, done: float, steps: float) -> tuple[OptimizerStep, float]:
        """Take an optimizer step; return it and its learning rate.

        The stage is done up to the fraction `done` of `steps` steps, as far as they are known.
        """

    @abstractmethod
    def validate(self) -> Any:
        """Return the scores of the held-out data."""

    @abstractmethod
    def record(self, scores: Any, seconds: float) -> tuple[R, float]:
        """Return the record of a validation, and the value to minimise: inf not to be selected."""

    @abstractmethod
    def event(self, step: OptimizerStep, done: float, seconds: float, record: R | None) -> E:
        """Return a step as callbacks see it."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that are validated, and kept where they are the best."""

    def begin_stage(self) -> None:
        """Begin a stage after the first, from the best weights so far; do nothing by default."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a training state, but for the best weights and the generators."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""

    def upgrade(self, found: TrainingState) -> TrainingState:
        """Return a state that an earlier version wrote in this version's format."""
        return found

    def run(self, callbacks: Sequence[Callable[[E], None]], seed: int) -> None:
        """Resume the run, or begin it, and take its steps; Ctrl-C ends it cleanly."""
        with seeded(seed + rank(), self.like.device):
            self.resume()
            try:
                self.loop(callbacks)
            except KeyboardInterrupt:
                if world_size() > 1:  # a process may wait for another, which has ended
                    raise
                self.progress.reason = "interrupted"

    def resume(self) -> None:
        """Resume from the state, if there is one; else write the first."""
        found = None if self.checkpointer is None else self.checkpointer.read()
        if found is None:
            self._begin_threads()
            self._checkpoint()
            return
        found = self.upgrade(found)
        self.progress = TrainingProgress.of(found.progress, type(self).record_type)
        self.restore(found.tensors)
        self.best = strip_prefix("best", found.tensors)
        restore_generators(strip_prefix("random", found.tensors), self.like.device)
        self._begin_threads()

    def loop(self, callbacks: Sequence[Callable[[E], None]]) -> None:
        """Take steps, validate, and call the callbacks, until there is a reason to end."""
        with number_of_threads(self.chooser.choice):
            self._loop(callbacks)

    def _loop(self, callbacks: Sequence[Callable[[E], None]]) -> None:
        start = perf_counter() - self.progress.seconds
        while not self.progress.reason:
            before = self.progress.seconds
            step = self._step()
            self._read_clock(start)
            done = self.done()
            last = self._is_last(self.progress.seconds - before)
            over = last or self._is_stage_over(done)
            begin = self.progress.seconds
            record = self._validate() if over or self._is_due(done) else None
            event = self.event(step, 1.0 if last else done, perf_counter() - start, record)
            for callback in callbacks:
                callback(event)
            self._read_clock(start)
            if record is not None:
                self.progress.closing = self.progress.seconds - begin
                last = last or self._is_last(begin - before)
            self.progress.reason = self._reason(last)
            if self._is_stage_over(done) and not self.progress.reason:
                self.progress.begin_stage(done)
                self.begin_stage()
                self.chooser.restart()
            self._checkpoint(record)

    def finish(self) -> Mapping[str, Tensor]:
        """Return the best weights, or the last ones of a run without a validation.

        Raises:
            TrainingError: There is nothing to keep.
        """
        progress = self.progress
        if not isfinite(progress.best_nll) and (progress.failures or progress.records):
            raise TrainingError(
                f"Training ended with nothing to keep: {progress.failures} steps in a row failed, "
                f"and none of {len(progress.records)} validations could be scored. Lower the "
                f"learning rate, or look for extreme values in the data. {progress.failure}"
            )
        if not progress.records:  # interrupted before the first validation
            self.remember()
            progress.best_step = progress.step
        return self.best

    def remember(self) -> None:
        """Copy the weights as the best so far."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.weights().items()}

    def done(self) -> float:
        """Return the fraction of the run that is done."""
        return self.budget.progress(self.progress.seconds, self.progress.step)

    def improved(self, record: R | None) -> bool:
        """Return whether a validation is the best so far."""
        return record is not None and self.progress.stale == 0

    def _step(self) -> OptimizerStep:
        progress = self.progress
        done = (self.done() - progress.began) / (self._stage_end() - progress.began)
        set_threads(self.chooser.threads)
        start = perf_counter()
        step, rate = self.step(done, progress.stage_steps / done if done else 0.0)
        if not step.failure:  # which may have ended early
            self.chooser.add(perf_counter() - start, step.nfe or 1.0)
        progress.count(step, rate)
        progress.threads = self.chooser.choice
        set_threads(progress.threads)
        return step

    def _begin_threads(self) -> None:
        """Choose among numbers of threads, from the number that the run had before if any."""
        progress, threads = self.progress, self.threads
        if progress.threads_fixed and threads == "auto":
            threads = check_threads(progress.threads)
        progress.threads_fixed = isinstance(threads, int)
        numbers = candidates(threads, self.measurable)
        progress.threads = progress.threads if progress.threads in numbers else numbers[0]
        self.chooser = ThreadChooser(numbers, progress.threads)

    def _read_clock(self, start: float) -> None:
        """Update the seconds, which all processes share."""
        (self.progress.seconds,) = mean([perf_counter() - start], self.like)

    def _stage_end(self) -> float:
        last = self.progress.stage == len(self.shares) - 1
        return 1.0 if last else self.progress.began + self.shares[self.progress.stage]

    def _is_last(self, step_seconds: float) -> bool:
        """Return whether another step and the last validation would exceed the budget."""
        ahead = self.progress.seconds + step_seconds + self.progress.closing
        return self.progress.step >= self.budget.steps or ahead >= 0.99 * self.budget.budget

    def _is_stage_over(self, done: float) -> bool:
        """Return whether a stage before the last has had its share, or no longer improves."""
        end = self._stage_end()
        return end < 1 and (done >= end or self.progress.stale >= self.patience)

    def _is_due(self, done: float) -> bool:
        """Return whether the next validation is due, and validations leave time to train.

        Where the steps will end the run the clock has no say: the same seed gives the same run.
        """
        progress = self.progress
        if done < progress.next_validation:
            return False
        cost = progress.validating + progress.closing
        by_steps = self.budget.is_by_steps(progress.seconds, progress.step)
        return by_steps or cost <= self.validation_share * progress.seconds

    def _validate(self) -> R:
        begin = perf_counter()
        scores = self.validate()
        (spent,) = mean([perf_counter() - begin], self.like)
        record, value = self.record(scores, self.progress.seconds + spent)
        self.progress.add_record(record, value, spent)
        due = floor(self.done() * self.validations + 1e-9) + 1
        self.progress.next_validation = due / self.validations
        if self.improved(record):
            self.remember()
        return record

    def _reason(self, last: bool) -> str:
        """Return why the run has ended, an empty text while it has not."""
        progress = self.progress
        if last:
            return "steps" if progress.step >= self.budget.steps else "budget"
        if progress.stale >= self.patience and progress.stage == len(self.shares) - 1:
            return "early stopping"
        if progress.failures >= MAX_FAILURES:
            return f"diverged: {progress.failure}"
        return ""

    def _checkpoint(self, record: R | None = None) -> None:
        """Write the state where it is due, and at the end."""
        if self.checkpointer is None:
            return
        due = self.progress.seconds - self.checkpointer.written >= self.checkpointer.seconds
        if due or self.progress.reason or (record is not None and self.checkpoints_records):
            random = add_prefix("random", generators(self.like.device))
            tensors = {**self.tensors(), **add_prefix("best", self.best), **random}
            self.checkpointer.write(self.progress, tensors)
