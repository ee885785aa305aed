"""The result of a solve: the solution, its statistics and its status."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from cnf.ode.dense_output import Pieces


class Status(Enum):
    """The status of a solve; the value is a sentence that says what to do next."""

    FINISHED = "The solve reached the last time."
    STEP_LIMIT = (
        "The step limit was hit before the last time: the dynamics are stiff, or the tolerance is "
        "too tight for them. Raise max_steps, loosen rtol and atol, or train with a smaller "
        "learning rate or weight decay so that the field stays smooth."
    )
    STEP_TOO_SMALL = (
        "The step size fell below the resolution of time: the dynamics are stiff or discontinuous "
        "here. Loosen rtol and atol, solve in float64, or use a smoother field."
    )
    NOT_FINITE = (
        "The state or its derivative is NaN or infinite. Check the inputs and the field's weights "
        "for NaN and infinity; if the weights diverged, train with a smaller learning rate or clip "
        "the gradient."
    )
    NORM_NOT_FINITE = (
        "The norm of the error is NaN or infinite although the state and its derivative are "
        "finite: norm returned it, the tolerance is 0 where the error is not, or the error "
        "overflows the dtype. Check norm, pass atol above 0, or solve in float64."
    )
    FOLDED = (
        "The explicit steps fold space here: the determinant of one is not positive, and there is "
        "no density. Train the steps by cnf.distil, which penalises folds, take more steps, or use "
        "the adaptive flow for such rows."
    )
    NO_INVERSE = (
        "No state was found that the explicit steps map to this one: Newton's method did not "
        "converge. Take more steps, train them by cnf.distil, or use the adaptive flow."
    )


# A number for the whole batch, or an array with one for each row where steps are per sample.
Count = int | NDArray[np.int64]


@dataclass(eq=False)
class BackwardCount:
    """The number of evaluations in the backward passes of a solve so far."""

    count: Count = 0

    def add(self, calls: int, rows: Tensor | None = None) -> None:
        """Add calls with all rows, or with some."""
        if rows is None:
            self.count = self.count + calls
        else:
            assert isinstance(self.count, np.ndarray)
            self.count[rows.cpu().numpy()] += calls


@dataclass(frozen=True, eq=False)
class Stats:
    """The cost of a solve: evaluations of the dynamics, accepted and rejected steps.

    Each is a number for the whole batch with joint steps, an array with one for each row with
    per-sample steps. Statistics of consecutive solves can be added.

    Attributes:
        evaluations: Evaluations in the forward pass.
        accepted: Accepted steps.
        rejected: Rejected steps.
        backward_counts: Counters of the evaluations in backward passes, one for each solve.

    Example:
        >>> Stats(7, 1, 0) + Stats(13, 2, 0)
        Stats(evaluations=20, accepted=3, rejected=0)
    """

    evaluations: Count = 0
    accepted: Count = 0
    rejected: Count = 0
    backward_counts: tuple[BackwardCount, ...] = field(default=(), repr=False)

    @property
    def backward(self) -> Count:
        """Evaluations in backward passes: of the dynamics, or of backsolve's adjoint system."""
        total: Count = sum((counter.count for counter in self.backward_counts), start=0)
        return _first(total, np.size(self.evaluations))

    def first(self, rows: int) -> Stats:
        """Return the statistics of the first rows, where each row has its own."""
        return replace(
            self,
            evaluations=_first(self.evaluations, rows),
            accepted=_first(self.accepted, rows),
            rejected=_first(self.rejected, rows),
        )

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.evaluations + other.evaluations,
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.backward_counts + other.backward_counts,
        )


def _first(count: Count, rows: int) -> Count:
    return count[:rows] if isinstance(count, np.ndarray) else count


@dataclass(frozen=True)
class Solution:
    """The states at the requested times, with the status and the cost of the solve.

    Attributes:
        ts: The requested times, shape (T,), or (rows, T) where each row has its own.
        ys: The states there, shape (T, *state); NaN at times that a failed row did not reach.
        row_status: The status of each row (along the first axis of the state), an array of
            `Status`.
        stats: The cost.
        rows: The rows that did not finish, the worst first.
        last_times: How far each row got, shape (rows,): the last of its times where it finished.
        last_states: The states there, of y0's shape, without a gradient.
        pieces: While the solver is at work, the steps of which it computes `ys`.
    """

    ts: Tensor
    ys: Tensor
    row_status: NDArray[np.object_]
    stats: Stats
    rows: tuple[int, ...]
    last_times: NDArray[np.float64]
    last_states: Tensor
    pieces: Pieces | None = field(default=None, repr=False)

    @classmethod
    def unsolved(cls, start: Tensor, status: NDArray[np.object_], stats: Stats) -> Self:
        """Return the solution of a map without steps in time, whose failed rows stay at 0."""
        lost = status != Status.FINISHED
        rows, times = tuple(np.flatnonzero(lost).tolist()), np.where(lost, 0.0, 1.0)
        ts, ys = start.new_tensor([0.0, 1.0]), torch.stack([start, start])
        return cls(ts, ys, status, stats, rows, times, start.detach())

    @property
    def status(self) -> Status:
        """FINISHED if all rows are, else the status of the worst row."""
        if not self.rows:
            return Status.FINISHED
        status: Status = self.row_status[self.rows[0]]
        return status

    @property
    def failed(self) -> Tensor:
        """A mask of the rows that did not finish."""
        return torch.from_numpy(self.row_status != Status.FINISHED).to(self.ys.device)


class SolveError(RuntimeError):
    """A solve that did not reach its last time.

    Args:
        solution: The solution up to the failure.
        preface: The beginning of the message.
        first: The number of the solution's first row, where the rows are a part of a batch.

    Attributes:
        solution: The solution up to the failure.
    """

    def __init__(self, solution: Solution, preface: str = "", first: int | None = None) -> None:
        self.solution = solution
        super().__init__(preface + _message(solution, first))


def _message(solution: Solution, first: int | None) -> str:
    shown = ", ".join(str((first or 0) + row) for row in solution.rows[:5])
    more = f" and {len(solution.rows) - 5} more" if len(solution.rows) > 5 else ""
    where = f" (rows {shown}{more})" if first is not None or len(solution.row_status) > 1 else ""
    stats, time = solution.stats, solution.last_times[solution.rows[0]]
    return (
        f"{solution.status.value} Stopped at t = {time:.6g}{where} after up to "
        f"{np.max(stats.accepted)} accepted and {np.max(stats.rejected)} rejected steps."
    )
