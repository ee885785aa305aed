"""The budget of a training run, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

from cnf.training.optimizer import OptimizerStep


@dataclass(frozen=True)
class TrainingBudget:
    """The length of a run: seconds and optimizer steps, infinite where they do not limit it."""

    budget: float
    steps: float

    @staticmethod
    def of(budget: float | None, steps: int | None) -> TrainingBudget:
        """Return the budget of given seconds and steps above 0, 60 seconds without either."""
        for name, value in (("budget", budget), ("steps", steps)):
            if value is not None and not value > 0:
                raise ValueError(f"Expected {name} to be above 0; got {value}")
        if budget is None and steps is None:
            budget = 60.0
        return TrainingBudget(budget or inf, steps or inf)

    def without(self, seconds: float) -> TrainingBudget:
        """Return the budget that is left after some seconds, at least one step."""
        return TrainingBudget(max(self.budget - seconds, 1e-9), self.steps)

    def progress(self, seconds: float, step: int) -> float:
        """Return the fraction of the run that is done, by seconds or by steps, the larger one."""
        return min(1.0, max(seconds / self.budget, step / self.steps))

    def is_by_steps(self, seconds: float, step: int) -> bool:
        """Return whether steps rather than seconds will end the run."""
        return seconds / self.budget <= step / self.steps


@dataclass
class TrainingProgress:
    """The counters and records of a run, ready for JSON; states hold them under these names."""

    step: int = 0  # steps taken
    seconds: float = 0.0  # since the loop's start
    stage: int = 0  # the current stage's number, from 0
    began: float = 0.0  # the fraction of the run that was done when the stage began
    stage_steps: int = 0  # steps taken in the stage
    rate: float = 0.0  # the learning rate of the last step
    threads: int = 0  # the number of threads that was chosen last
    threads_fixed: bool = False  # whether it was given
    records: list[Any] = field(default_factory=list)  # validations so far
    losses: float = 0.0  # their sum since the last validation
    evaluations: float = 0.0  # of solves, their sum since the last validation
    taken: int = 0  # number of steps in these sums
    best_nll: float = inf  # the lowest value of a validation that may be selected
    best_step: int = 0  # the step of that validation
    stale: int = 0  # validations of the stage since the lowest one
    next_validation: float = 0.0  # the fraction of the run at which the next one is due
    validating: float = 0.0  # seconds spent on validation
    closing: float = 0.0  # seconds that the last validation and the callbacks after it took
    skipped: int = 0  # steps skipped
    failures: int = 0  # consecutive steps skipped up to now
    failure: str = ""  # why the last skipped step was skipped
    reason: str = ""  # why the run has ended, empty while it has not

    @staticmethod
    def of(json: Mapping[str, Any], record_type: Callable[..., Any]) -> TrainingProgress:
        """Return the progress that `dataclasses.asdict` turned into JSON."""
        records = [record_type(**record) for record in json["records"]]
        return TrainingProgress(**{**json, "records": records})

    @property
    def mean_loss(self) -> float:
        return self.losses / (self.taken or nan)

    @property
    def mean_nfe(self) -> float:
        return self.evaluations / (self.taken or nan)

    def begin_stage(self, progress: float) -> None:
        """Move to the next stage."""
        self.stage += 1
        self.began, self.stage_steps, self.stale = progress, 0, 0

    def count(self, step: OptimizerStep, rate: float) -> None:
        """Count an optimizer step of a learning rate."""
        self.step += 1
        self.stage_steps += 1
        self.rate = rate
        if step.failure:
            self.skipped += 1
            self.failures += 1
            self.failure = step.failure
            return
        self.failures = 0
        self.losses += step.loss
        self.evaluations += step.nfe
        self.taken += 1

    def add_record(self, record: Any, value: float, seconds: float) -> None:
        """Add the record of a validation that took some seconds, and found a value to minimise."""
        self.records.append(record)
        self.validating += seconds
        self.losses, self.evaluations, self.taken = 0.0, 0.0, 0
        self.stale += 1
        if value < self.best_nll:
            self.best_nll, self.best_step, self.stale = value, self.step, 0
