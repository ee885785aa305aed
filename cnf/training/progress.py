"""How far a training run may go, and where it stands."""

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
        budget: Seconds, infinite where they do not count.
        steps: Alike.
    """

    budget: float
    steps: float

    @staticmethod
    def of(budget: float | None, steps: int | None) -> TrainingBudget:
        """The limit that is given, 60 seconds where none is.

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
        """What is left of it after some seconds: none less than a step.

        Example:
            >>> TrainingBudget.of(budget=10.0, steps=None).without(4.0).budget
            6.0
        """
        return TrainingBudget(max(self.budget - seconds, 1e-9), self.steps)

    def progress(self, seconds: float, step: int) -> float:
        """The fraction of the run that is done, by whichever of them is further.

        Example:
            >>> TrainingBudget.of(budget=10.0, steps=100).progress(seconds=5.0, step=20)
            0.5
        """
        return min(1.0, max(seconds / self.budget, step / self.steps))

    def is_by_steps(self, seconds: float, step: int) -> bool:
        """Whether the steps bring the run nearer to its end than the time does."""
        return seconds / self.budget <= step / self.steps


@dataclass
class TrainingProgress:
    """Where a run stands, ready for JSON.

    Attributes:
        step: Steps taken.
        seconds: Time since the loop's start.
        stage: The stage's number, from 0.
        began: The progress at which it began.
        stage_steps: Steps taken in it.
        rate: The learning rate of the last of them.
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
        """What `asdict` made of one."""
        records = [Record(**record) for record in json["records"]]
        return TrainingProgress(**{**json, "records": records})

    def begin_stage(self, progress: float) -> None:
        """Go on to the next stage."""
        self.stage += 1
        self.began = progress
        self.stage_steps = 0
        self.stale = 0

    def count(self, taken: OptimizerStep, rate: float) -> None:
        """Count a step, taken at a learning rate."""
        self.step += 1
        self.stage_steps += 1
        self.rate = rate
        if taken.failure:
            self.skipped += 1
            self.failures += 1
            self.failure = taken.failure
            return
        self.failures = 0
        self.losses += taken.loss
        self.evaluations += taken.nfe
        self.taken += 1

    def record(self, objective: str, nll: float, seconds: float) -> Record:
        """Note a validation, which took some seconds."""
        taken = self.taken or nan
        record = Record(
            step=self.step,
            seconds=self.seconds + seconds,
            objective=objective,
            loss=self.losses / taken,
            validation_nll=nll,
            nfe=self.evaluations / taken,
            learning_rate=self.rate,
        )
        self.records.append(record)
        self.validating += seconds
        self.losses, self.evaluations, self.taken = 0.0, 0.0, 0
        self.stale += 1
        if nll < self.best_nll:
            self.best_nll, self.best_step, self.stale = nll, self.step, 0
        return record
