"""The budget of a training run, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

from cnf.training.history import Record
from cnf.training.learner import OptimizerStep


@dataclass(frozen=True)
class TrainingBudget:
    """The length of a run.

    Attributes:
        budget: Seconds, infinite where time does not limit the run.
        steps: Optimizer steps, infinite where they do not limit the run.
    """

    budget: float
    steps: float

    @staticmethod
    def of(budget: float | None, steps: int | None) -> TrainingBudget:
        """Return the budget of given seconds and steps, 60 seconds where neither is given.

        Raises:
            ValueError: A number is not above 0.
        """
        for name, value in (("budget", budget), ("steps", steps)):
            if value is not None and not value > 0:
                raise ValueError(f"Expected {name} to be above 0; got {value}")
        if budget is None and steps is None:
            budget = 60.0
        return TrainingBudget(budget or inf, steps or inf)

    def without(self, seconds: float) -> TrainingBudget:
        """Return the budget that is left after some seconds, at least one step.

        Example:
            >>> TrainingBudget.of(budget=10.0, steps=None).without(4.0).budget
            6.0
        """
        return TrainingBudget(max(self.budget - seconds, 1e-9), self.steps)

    def progress(self, seconds: float, step: int) -> float:
        """Return the fraction of the run that is done, by seconds or by steps, the larger one.

        Example:
            >>> TrainingBudget.of(budget=10.0, steps=100).progress(seconds=5.0, step=20)
            0.5
        """
        return min(1.0, max(seconds / self.budget, step / self.steps))

    def is_by_steps(self, seconds: float, step: int) -> bool:
        """Return whether steps rather than seconds will end the run."""
        return seconds / self.budget <= step / self.steps


@dataclass
class TrainingProgress:
    """The counters and records of a run, ready for JSON.

    Training states hold the attributes under these names.

    Attributes:
        step: Steps taken.
        seconds: Time since the loop's start.
        stage: The current stage's number, from 0.
        began: The fraction of the run that was done when the stage began.
        stage_steps: Steps taken in the stage.
        rate: The learning rate of the last step.
        records: Validations so far.
        losses: Sum of the losses since the last validation.
        evaluations: Sum of a solve's evaluations since the last validation.
        taken: Number of steps in these sums.
        best_nll: The lowest validation NLL.
        best_step: The step of the lowest validation NLL.
        stale: Validations of the stage since the lowest one.
        next_validation: The fraction of the run at which the next validation is due.
        validating: Seconds spent on validation.
        closing: Seconds that the last validation and the callbacks after it took.
        skipped: Steps skipped.
        failures: Consecutive steps skipped up to now.
        failure: Why the last skipped step was skipped.
        reason: Why the run has ended, empty while it has not.
    """

    step: int = 0
    seconds: float = 0.0
    stage: int = 0
    began: float = 0.0
    stage_steps: int = 0
    rate: float = 0.0
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
    def of(json: Mapping[str, Any]) -> TrainingProgress:
        """Return the progress that `dataclasses.asdict` turned into JSON."""
        records = [Record(**record) for record in json["records"]]
        return TrainingProgress(**{**json, "records": records})

    def begin_stage(self, progress: float) -> None:
        """Move to the next stage."""
        self.stage += 1
        self.began = progress
        self.stage_steps = 0
        self.stale = 0

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

    def record(self, objective: str, nll: float, seconds: float) -> Record:
        """Record a validation that took some seconds."""
        steps = self.taken or nan
        record = Record(
            step=self.step,
            seconds=self.seconds + seconds,
            objective=objective,
            loss=self.losses / steps,
            validation_nll=nll,
            nfe=self.evaluations / steps,
            learning_rate=self.rate,
        )
        self.records.append(record)
        self.validating += seconds
        self.losses, self.evaluations, self.taken = 0.0, 0.0, 0
        self.stale += 1
        if nll < self.best_nll:
            self.best_nll, self.best_step, self.stale = nll, self.step, 0
        return record
