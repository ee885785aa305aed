"""Records of validations, events for callbacks, and the history of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.training.progress import TrainingProgress
from cnf.training.schedule import Stage


@dataclass(frozen=True)
class Record:
    """One validation.

    Attributes:
        step: Steps taken.
        seconds: Time since the loop's start.
        objective: The name of the objective that was minimised.
        loss: Mean loss since the record before.
        validation_nll: Validation NLL of the averaged weights, nats per row, in the data's units;
            infinite where a solve failed.
        nfe: Mean evaluations per training solve since the record before; 0 where there was none.
        learning_rate: The last step's learning rate.
        threads: PyTorch's threads at that time; 0 where an earlier version did not say.
    """

    step: int
    seconds: float
    objective: str
    loss: float
    validation_nll: float
    nfe: float
    learning_rate: float
    threads: int = 0


@dataclass(frozen=True)
class StepEvent:
    """One training step, as callbacks see it, whatever is trained.

    Attributes:
        step: Steps taken, this one included.
        seconds: Time since the loop's start.
        progress: Fraction of the run that is done, 0 to 1.
        loss: The step's loss, nan for a skipped step.
        nfe: The step's evaluations per solve, 0 without one, nan for a skipped step.
        record: The validation that followed this step, None where none did.
        records: All validations so far.
        improved: Whether the last one is the best so far.
        model: The model with averaged weights, which are validated and kept.
    """

    step: int
    seconds: float
    progress: float
    loss: float
    nfe: float
    record: Record | None
    records: Sequence[Record]
    improved: bool
    model: Any


@dataclass(frozen=True)
class Event(StepEvent):
    """One training step of `cnf.fit`, as callbacks see it.

    Attributes:
        stage: The stage of the run that the step belongs to.
    """

    model: Flow
    stage: Stage

    @property
    def flow(self) -> Flow:
        """The flow with averaged weights, which are validated and kept."""
        return self.model


Callback = Callable[[Event], None]


@dataclass(frozen=True)
class History:
    """The history of a training run, whose arrays have one entry for each validation.

    The arrays have the names of `Record`'s attributes, and their meaning.

    Attributes:
        best_step: The step whose averaged weights the flow was left with; of several flows, one
            after the other, that of the last.
        steps: Number of steps taken.
        duration: Seconds of training.
        skipped: Steps skipped because the solve, the loss or the gradient failed.
        reason: Why the run ended: budget, steps, early stopping, interrupted, or diverged.
    """

    step: NDArray[np.int64]
    seconds: NDArray[np.float64]
    objective: NDArray[np.str_]
    loss: NDArray[np.float64]
    validation_nll: NDArray[np.float64]
    nfe: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    threads: NDArray[np.int64]
    best_step: int
    steps: int
    duration: float
    skipped: int
    reason: str

    @property
    def records(self) -> list[Record]:
        """The validations, one after the other."""
        columns = (getattr(self, name).tolist() for name in Record.__annotations__)
        return [Record(*row) for row in zip(*columns, strict=True)]

    def followed_by(self, other: History) -> History:
        """Return the history of this run and of another that came after it."""
        shifts = {"step": self.steps, "seconds": self.duration}
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in Record.__annotations__
        }
        for name, shift in shifts.items():
            arrays[name][len(self.step) :] += shift
        return History(
            **arrays,
            best_step=self.steps + other.best_step,
            steps=self.steps + other.steps,
            duration=self.duration + other.duration,
            skipped=self.skipped + other.skipped,
            reason=other.reason,
        )

    @staticmethod
    def of(progress: TrainingProgress) -> History:
        """Return the history of a run that has ended, from its records."""
        arrays = {
            name: np.array([getattr(record, name) for record in progress.records], dtype=dtype)
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
