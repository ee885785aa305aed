"""The tape of a solve: its accepted steps, as a backward pass needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from cnf.ode.arguments import rowwise
from cnf.ode.dense_output import Piece
from cnf.ode.dynamics import StagedDynamics, StageEvaluation
from cnf.ode.step import StepResult
from cnf.ode.step_adjoint import RowStepTape, StageRecorder, StepTape


@dataclass(frozen=True, eq=False)
class StepGraph:
    """The autograd graph of a step."""

    y: Tensor  # the leaf that it starts from
    ends: list[Tensor]  # the states at its end, and the parts of dense output
    rows: Tensor | None = None  # the rows of y that have accepted the step; None for all


@dataclass(eq=False)
class StepRecord:
    """A step, as a replay needs it: knot, start and size are one number, or one for each row."""

    rows: Tensor | None  # of the batch; None for all
    knot: int | Tensor  # the index of the knot before it
    start: float | Tensor  # as a fraction of the way to the next knot
    size: float | Tensor  # as such a fraction
    y: Tensor  # the states that it starts from
    piece: Piece | None = None  # its part in dense output
    graph: StepGraph | None = None  # where that is kept
    # Where the evaluations are kept for the backward pass, of joint or of per-sample steps.
    tape: StepTape | None = None
    row_tape: RowStepTape | None = None

    def interval(self, knots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the knots before and after the step."""
        begin, end = knots[self.knot], knots[self.knot + 1]
        if isinstance(self.knot, int):
            return begin, end
        return rowwise(begin, self.y.ndim), rowwise(end, self.y.ndim)

    def times(self, begin: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """Return start time and signed size, of the knot before it and the span to the next."""
        if isinstance(self.start, Tensor):
            return begin + self.start * span, self.size * span
        return torch.add(begin, span, alpha=self.start), self.size * span

    def select(self, index: Tensor) -> StepRecord:
        """Return the step of some of its rows."""
        assert isinstance(self.start, Tensor)
        assert isinstance(self.size, Tensor)
        rows = index if self.rows is None else self.rows[index]
        knot = self.knot if isinstance(self.knot, int) else self.knot[index]
        return StepRecord(rows, knot, self.start[index], self.size[index], self.y[index])


class SavedBytes(saved_tensors_hooks):
    """The bytes of the tensors that autograd saves while this is open, outside some storages."""

    def __init__(self, excluded: frozenset[int]) -> None:
        self.seen = set(excluded)
        self.bytes = 0
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()


def storages(args: Any) -> frozenset[int]:
    """Return the addresses of the storages of the tensors among arguments."""
    return frozenset(
        leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
    )


class Tape:
    """The accepted steps of a solve, with what their backward passes need while it fits.

    That is the graph of a step or, with `by_adjoint`, its evaluations, whose vector-Jacobian
    products make up the adjoint of a Runge-Kutta step: a `RowStepTape` with `by_rows`, otherwise a
    `StepTape`. The storages of `args` do not count.
    """

    def __init__(
        self,
        dynamics: StagedDynamics,
        args: Any,
        activation_bytes: int,
        *,
        by_adjoint: bool,
        by_rows: bool,
    ) -> None:
        self.dynamics, self.by_adjoint, self.by_rows = dynamics, by_adjoint, by_rows
        self.room = activation_bytes  # the bytes that are left
        self.excluded = storages(args) if activation_bytes else frozenset()
        self.steps: list[StepRecord] = []
        self.saved = SavedBytes(self.excluded)
        self.recorder: StageRecorder | None = None  # of the step being tried
        self.middle: StageRecorder | None = None  # of its evaluation for the middle
        # Of the slope that the next joint step starts with, or the first per-sample steps.
        self.first: StageEvaluation | None = None
        self.first_rows: Tensor | None = None

    @property
    def keeps_graphs(self) -> bool:
        """Whether the graph of the next step is to be kept."""
        return self.room > 0 and not self.by_adjoint

    @property
    def keeps_evaluations(self) -> bool:
        """Whether the evaluations of the next step are to be kept."""
        return self.room > 0 and self.by_adjoint

    def measure(self) -> SavedBytes:
        """Return a context manager that counts the bytes that the next step saves."""
        self.saved = SavedBytes(self.excluded)
        return self.saved

    def evaluations(self, times: Tensor, args: Any) -> StageRecorder:
        """Return a recorder of evaluations at times."""
        self.recorder = StageRecorder(self.dynamics.linearize(times, args))
        return self.recorder

    def keep_first(self, rows: Tensor | None) -> None:
        """Keep the evaluation just made, of some rows, as that of the first slope."""
        assert self.recorder is not None
        self.first, self.first_rows = self.recorder.evaluations[0], rows
        self.room -= self.saved.bytes + self.recorder.linearization.bytes

    def add(
        self, step: StepRecord, result: StepResult, rows: Tensor | None, parts: Tensor | None
    ) -> None:
        """Append a step of the rows that accept it, with its parts of dense output.

        The result is of all rows that tried it; `rows` are those of them that accept it.
        """
        if self.keeps_evaluations:
            step = self._with_evaluations(step, result, rows)
        elif self.keeps_graphs:
            self.room -= self.saved.bytes
            if self.room >= 0:
                ends = [result.y1 if rows is None else result.y1[rows]]
                ends += [] if parts is None else [parts]
                step = replace(step, graph=StepGraph(result.y0, ends, rows))
        self.steps.append(step)

    def _with_evaluations(
        self, step: StepRecord, result: StepResult, rows: Tensor | None
    ) -> StepRecord:
        """Return the step with its evaluations, the last of which is the next step's first."""
        assert self.recorder is not None
        assert self.first is not None
        linearization, evaluations = self.recorder.linearization, self.recorder.evaluations
        self.room -= self.saved.bytes + linearization.bytes
        count = result.stages.tableau.solution_stages - 1
        stages = tuple(evaluations[:count])
        if self.by_rows:
            middle = None if self.middle is None else self.middle.evaluations[0]
            self.middle = None
            known = (
                step.piece is None or step.piece.options["slope"] or step.piece.options["inside"]
            )
            end = evaluations[-1] if known else None
            row_tape = RowStepTape(stages, end, result.h, linearization, rows, middle)
            return replace(step, row_tape=row_tape) if self.room >= 0 else step
        size = result.stages.size
        assert size is not None
        tape = StepTape(self.first, stages, size, linearization)
        self.first = evaluations[-1] if evaluations else None
        return replace(step, tape=tape) if self.room >= 0 else step
