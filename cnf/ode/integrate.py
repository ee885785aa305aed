"""The integration loop: from dynamics, a state and times to the states at those times.

One loop serves joint and per-sample steps: it advances all sequences of steps together, one for the
whole batch or one for each row, and finished rows leave the batch. One number for each sequence,
its error, crosses from the device to the host in each step. Where autograd records, all that the
loop computes is differentiable; where it does not, the accepted steps can be replayed one by one.

A step lies between two knots: the first and the last time and the stops between them, or the times
of a grid of fixed steps. One that starts at fraction s of the way starts at the time
a + s (b − a), differentiable in the knots a and b; s is a constant of the gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import rowwise
from cnf.ode.controllers import Array, first_step_size
from cnf.ode.dense_output import PieceRecorder, with_outputs
from cnf.ode.dynamics import Dynamics
from cnf.ode.options import SolveOptions
from cnf.ode.row_results import Ends, RowStatus
from cnf.ode.solution import BackwardCount, Solution, Stats, Status
from cnf.ode.step import StepResult
from cnf.ode.step_control import (
    Mask,
    StepControlOptions,
    StepControlState,
    TimeScale,
)
from cnf.ode.stepper import Stepper
from cnf.ode.tape import StepRecord, Tape


def integrate(
    f: Dynamics,
    y0: Tensor,
    knots: Tensor,
    args: Any,
    options: SolveOptions,
    *,
    tape: Tape | None = None,
) -> Solution:
    """Integrate dy/dt = f(t, y, args) from the first of the knots, the times of steps, to the last.

    With `options.outputs` the solution has the pieces that dense output needs, otherwise the states
    at both ends. A tape keeps the accepted steps for a backward pass; the knots and the arguments
    are leaves of their graphs then.
    """
    scale = TimeScale(knots)
    lengths = [scale.span] if len(knots) == 2 else knots.detach().double().diff().tolist()
    loop = _Loop(Stepper(f, args, options, knots, lengths, tape), y0.contiguous(), scale)
    loop.begin()
    while loop.running:
        loop.step()
    return loop.end()


def backprop(f: Dynamics, y0: Tensor, knots: Tensor, args: Any, options: SolveOptions) -> Solution:
    """Solve, with gradients straight through the solve."""
    return with_outputs(integrate(f, y0, knots, args, options), y0, knots, options)


class _Loop:
    """The state of the loop: step control, and the states and slopes of the active rows."""

    def __init__(self, stepper: Stepper, y0: Tensor, scale: TimeScale) -> None:
        self.stepper, self.options, self.tape = stepper, stepper.options, stepper.tape
        self.per_sample = self.options.per_sample
        self.scale = scale
        self.batch = y0.shape[0] if y0.ndim else 1
        options = StepControlOptions(self.options, scale, stepper.knots)
        self.control = StepControlState.start(options, self.batch if self.per_sample else 1)
        self.running = True
        self.finished: list[StepControlState] = []
        self.y = self.slope = self.ratio = y0
        self.rows: Tensor | None = None  # the active rows of the batch; None for all
        self.error = y0  # the last one, not measured by the norm
        self.failed: Tensor | None = None  # rows that joint steps ignore since they failed,
        self.substitutes: Tensor | None = None  # and the rows that are computed in their place
        self.row_status = RowStatus(y0)
        self.attempts = 0
        self.last = np.zeros(0), np.zeros(0, dtype=bool)  # errors and acceptance of the last try
        self.accepted = 0  # how many steps the last try accepted
        self.ends = Ends(y0)
        outputs = self.options.outputs
        self.pieces = None
        if outputs is not None:
            self.pieces = PieceRecorder(outputs, self.batch if self.per_sample else None)
        self._start_stepper()

    def begin(self) -> None:
        """Evaluate the first slopes, and choose the first steps' sizes."""
        self.slope = self.stepper.first_slope(self.y)
        if self.slope.shape != self.y.shape or self.slope.dtype != self.y.dtype:
            raise ValueError(
                f"Expected f to return a slope like the state, {tuple(self.y.shape)} and "
                f"{self.y.dtype}; got {tuple(self.slope.shape)} and {self.slope.dtype}"
            )
        if self.options.grid is not None:
            return
        self.ratio = self.y + self.slope
        if not self.ratio.detach().sum().isfinite():  # cheap, and an overflow does no harm
            bad = ~_finite_rows(self.ratio)
            self._remove(self._drop_rows(bad))
            if self.running:  # the graph of the others must not contain them
                self.slope = self.stepper.first_slope(self.y)
        if not self.running:
            return
        given = self.options.first_step
        sizes = np.broadcast_to(np.nan if given is None else given, (self.batch,))
        sizes = sizes[self.control.index]
        if np.isnan(sizes).any():
            with torch.no_grad():
                sizes = np.where(np.isnan(sizes), self._first_sizes(), sizes)
        self.control.size = self.control.accepted_size = sizes / self.scale.length

    def step(self) -> None:
        """Try one step of every sequence."""
        tape = self.tape
        if tape is not None and tape.room > 0:
            with tape.measure(), torch.set_grad_enabled(tape.keeps_graphs):
                self._try()
            self.y, self.slope = self.y.detach(), self.slope.detach()
        else:
            self._try()
        finished, failed = self.control.finished(), self._failures()
        self._remove(finished if failed is None else finished | failed)

    def _try(self) -> None:
        control = self.control
        begin, size = control.fraction, control.propose()
        step = self._plan(size)
        slope = None if self.stepper.keeps_graphs else self.slope
        result = self.stepper.step(step, slope)
        error = self._errors(result)
        accept = control.acceptable(size, error)
        self.accepted = int(np.count_nonzero(accept))
        if self.accepted and self._recording and not np.isfinite(error).all():
            # Zero times NaN is NaN in a backward pass: the others' graph must not depend on NaN.
            self.stepper.stages.clean = False
            step = self._plan(np.where(np.isfinite(error), size, 0.0))
            result = self.stepper.step(step, slope)
            result.error()
        control.adapt(size, error, accept)
        if self.options.observer is not None:
            kind = "accept" if accept.all() else "reject"
            self.options.observer(kind, result.t.detach(), result.y0.detach(), result.h.detach())
        if self.accepted:
            self._accept(step, result, accept, begin)
        else:
            # The buffer has overwritten the slope of the step before.
            self.slope = result.stages[0]
        self.attempts += 1  # of every active sequence
        self.last = error, accept

    @property
    def _recording(self) -> bool:
        """Whether a backward pass reads the evaluations of all rows that try a step."""
        kept = self.tape is not None and self.tape.keeps_evaluations
        return torch.is_grad_enabled() or (self.per_sample and kept)

    def end(self) -> Solution:
        """Return the solution."""
        counts = np.zeros((3, self.batch if self.per_sample else 1), dtype=np.int64)
        for control in self.finished:
            counts[:, control.index] = control.evaluations, control.accepted, control.rejected
        backward = BackwardCount(np.zeros(self.batch, dtype=np.int64) if self.per_sample else 0)
        evaluations, accepted, rejected = counts if self.per_sample else counts[:, 0].tolist()
        stats = Stats(evaluations, accepted, rejected, (backward,))
        fractions = np.minimum(self.row_status.fractions, 1.0)
        times = self.scale.begin + fractions * self.scale.span
        failed = self.row_status.worst_first(None if self.per_sample else self.ratio)
        status, ts = self.row_status, self.stepper.knots[:: len(self.stepper.knots) - 1]
        pieces, ys = None, self.ends.y0[None]
        if self.pieces is None:
            ys = self.ends.stack()
        else:
            knots, finite = self.control.options.knots, not failed
            pieces = self.pieces.all(ys[0], knots, fractions, finite=finite)
        return Solution(ts, ys, status.statuses, stats, failed, times, status.states, pieces)

    def _start_stepper(self) -> None:
        """Prepare steps, and their tolerance, of the active rows."""
        self.tolerance = self.options.tolerance
        if self.rows is not None:
            self.tolerance = self.tolerance.take(self.rows, self.ends.y0.shape)
        self.stepper.start(self.y, self.rows if self.per_sample else self.substitutes)

    def _to_state(self, values: Array) -> float | Tensor:
        """Return values of step control as factors of the state."""
        if not self.per_sample:
            return float(values[0])
        return rowwise(torch.from_numpy(values).to(self.y), self.y.ndim)

    def _plan(self, size: Array) -> StepRecord:
        """Return the step to try."""
        start, size = self.control.between_knots(size)
        knots = self.control.knot
        knot: int | Tensor = int(knots[0])
        if self.per_sample and (knots != knot).any():
            knot = torch.from_numpy(knots).to(self.y.device)
        y = self.y.detach().requires_grad_() if self.stepper.keeps_graphs else self.y
        return StepRecord(self.rows, knot, self._to_state(start), self._to_state(size), y)

    def _slope_past_jump(self, jumped: Mask) -> Tensor:
        """Return the slopes, taken just beyond the jump where a step ended at one."""
        knot = self.control.knot + 1
        if not self.per_sample:
            return self.stepper.slope_past_jump(self.y, knot, None)
        index = self._index(jumped)
        rows = index if self.rows is None else self.rows[index]
        slope = self.stepper.slope_past_jump(self.y[index], knot[jumped], rows)
        self.control.evaluations = self.control.evaluations + jumped
        return self.slope.index_copy(0, index, slope)

    def _first_sizes(self) -> Array:
        direction = 1.0 if self.scale.span > 0 else -1.0
        scale = self.tolerance.scale(self.y)

        def size(vector: Tensor) -> Array:
            return self._norm(self.tolerance.measure(vector, scale))

        def change(step: Array) -> Tensor:
            h = self.y.new_tensor(direction) * self._to_state(step)
            t = self.stepper.knots[0] + h
            return self.stepper.bound(t, self.y + h * self.slope) - self.slope

        order, span = self.control.options.order, self.scale.length
        share = self.stepper.rest_share
        return first_step_size(size, change, self.y, self.slope, order, span, share)

    def _errors(self, result: StepResult) -> Array:
        """Return the errors of the steps in units of the tolerance."""
        if self.options.grid is not None:
            return np.zeros(len(self.control))
        error = result.error()
        with torch.no_grad():
            self.error = error.detach()
            return self._norm(self.tolerance.ratio(error, result.y0, result.y1))

    def _norm(self, ratio: Tensor) -> Array:
        """Return the norm of error ratios, one for each sequence of steps."""
        if self.failed is not None:
            ratio = ratio.masked_fill(_as_mask(self.failed, ratio), 0.0)
        self.ratio = ratio
        errors = self.tolerance.norm(ratio)
        if errors.shape != ((len(ratio),) if self.per_sample else ()):
            raise ValueError(
                "Expected norm to return a scalar with joint steps, or one number for each row "
                f"with per-sample steps; got shape {tuple(errors.shape)} for {tuple(ratio.shape)}"
            )
        if not self.per_sample:
            return np.array([errors.item()])
        numbers: Array = errors.double().cpu().numpy()
        return numbers

    def _accept(self, step: StepRecord, result: StepResult, accept: Mask, begin: Array) -> None:
        """Advance by the accepted steps: outputs, states, slopes and tape."""
        piece = parts = None
        if self.pieces is None:
            self._add_ends(result)
        else:
            piece, parts = self.pieces.record(result, self.control, begin, accept)
        chosen = None
        if self.accepted == len(accept):
            self.y = result.y1
            if np.count_nonzero(self.control.finished()) < len(accept):
                self.slope = result.end_slope
        else:
            chosen = torch.from_numpy(accept).to(self.y.device)
            mask = _as_mask(chosen, self.y)
            self.y = torch.where(mask, result.y1, result.y0)
            self.slope = torch.where(mask, result.end_slope, result.stages[0])
            chosen = chosen.nonzero().flatten()
        jumped = self.control.at_jump(accept)
        if jumped is not None:
            self.slope = self._slope_past_jump(jumped)
        if self.tape is not None:
            step = replace(step if chosen is None else step.select(chosen), piece=piece)
            self.tape.add(step, result, chosen, parts)

    def _add_ends(self, result: StepResult) -> None:
        """Collect the states of rows that have reached the last time."""
        finished = self.control.finished()
        count = np.count_nonzero(finished)
        if not count:
            return
        rows, values = self.rows, result.y1
        if count < len(finished):
            index = self._index(finished)
            rows, values = index if rows is None else rows[index], values[index]
        if self.failed is not None:
            values = values.masked_fill(_as_mask(self.failed, values), torch.nan)
        self.ends.add(rows, values)

    def _index(self, mask: Mask) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(self.y.device)

    def _failures(self) -> Mask | None:
        """Return which sequences of steps cannot continue, and mark their rows with the reason."""
        error, accept = self.last
        failed = None
        if self.options.grid is not None and self.control.finished().all():
            bad = ~_finite_rows(self.y).cpu().numpy()
            self.row_status.mark(np.flatnonzero(bad), Status.NOT_FINITE)
        if self.accepted < len(accept):
            bad = ~np.isfinite(error)
            self.stepper.stages.clean = not bad.any()
            too_small = self.control.too_small(accept)
            failed = too_small
            if too_small.any():
                self._mark(too_small & ~bad, Status.STEP_TOO_SMALL)
                failed = too_small & ~bad | self._mark_nonfinite(too_small & bad)
        if self.attempts >= self.options.max_steps:
            late = ~self.control.finished()
            self._mark(late, Status.STEP_LIMIT)
            failed = late if failed is None else late | failed
        return failed

    def _mark_nonfinite(self, entries: Mask) -> Mask:
        """Mark the rows whose errors are not finite; return which sequences that ends."""
        if not entries.any():
            return entries
        nonfinite: Mask = (~_finite_rows(self.error)).cpu().numpy()
        if self.per_sample:
            self._mark(entries & nonfinite, Status.NOT_FINITE)
            self._mark(entries & ~nonfinite, Status.NORM_NOT_FINITE)
            return entries
        bad = ~_finite_rows(self.ratio)
        if not bad.any():  # the norm itself is to blame, and would be without any of the rows
            self._mark(entries, Status.NORM_NOT_FINITE)
            return entries
        norm_only = np.flatnonzero(bad.cpu().numpy() & ~nonfinite)
        self.row_status.mark(norm_only, Status.NORM_NOT_FINITE)
        self.control.size = self.control.accepted_size
        return self._drop_rows(bad)

    def _drop_rows(self, bad: Tensor) -> Mask:
        """Continue without some of the active rows; return which sequences that ends."""
        rows: Mask = bad.cpu().numpy()
        if self.per_sample:
            self._mark(rows, Status.NOT_FINITE)
            return rows
        self.row_status.mark(np.flatnonzero(rows), Status.NOT_FINITE)
        self._store(bad if self.failed is None else bad & ~self.failed, self.control.fraction)
        self.failed = bad if self.failed is None else bad | self.failed
        self.substitutes = substitute_rows(self.failed)
        if self.substitutes is None:
            return np.ones(1, dtype=bool)
        self.y, self.slope = self.y[self.substitutes], self.slope[self.substitutes]
        self.stepper.use_arguments(self.substitutes)
        return np.zeros(1, dtype=bool)

    def _mark(self, entries: Mask, status: Status) -> None:
        """Set the status of the rows of failed sequences of steps."""
        if entries.any():
            rows = self.control.index[entries] if self.per_sample else np.arange(self.batch)
            self.row_status.mark(rows, status)

    def _remove(self, entries: Mask) -> None:
        """Remove sequences of steps that have ended, and their rows from the batch."""
        self.control.evaluations = self.control.evaluations + self.stepper.calls
        self.stepper.calls = 0
        left = len(entries) - int(np.count_nonzero(entries))
        if left == len(entries):
            return
        self.running = left > 0
        self.finished.append(self.control.select(entries) if left else self.control)
        if self.per_sample:
            mask = torch.from_numpy(entries).to(self.y.device)
            self._store(mask, self.control.fraction[entries])
        else:
            self._store(None if self.failed is None else ~self.failed, self.control.fraction)
        if left:
            self.control = self.control.select(~entries)
            index = self._index(~entries)
            self.y, self.slope = self.y[index], self.slope[index]
            self.rows = index if self.rows is None else self.rows[index]
            self._start_stepper()

    def _store(self, chosen: Tensor | None, fractions: Array) -> None:
        """Store how far some of the active rows (None: all) got, and their states there."""
        if chosen is None or not self.y.ndim:
            self.row_status.store(None, fractions, self.y)
            return
        index = chosen.nonzero().flatten()
        rows = index if self.rows is None else self.rows[index]
        self.row_status.store(rows, fractions, self.y[index])


def substitute_rows(failed: Tensor) -> Tensor | None:
    """Return the row to compute in place of each: itself, or for a failed row one that has not.

    The results of substitutes are discarded, and finite: their gradient of zero stays zero, where
    that of a row of NaN would be NaN. None where all rows have failed.
    """
    if failed.all():
        return None
    first = int((~failed).nonzero()[0])
    return torch.arange(len(failed), device=failed.device).masked_fill(failed, first)


def _finite_rows(y: Tensor) -> Tensor:
    """Return a mask of the rows that are finite; of one entry for a scalar state."""
    return y.isfinite().reshape(y.shape[0] if y.ndim else 1, -1).all(1)


def _as_mask(rows: Tensor, like: Tensor) -> Tensor:
    """Return a mask of rows, shaped to broadcast against a state."""
    return rowwise(rows, like.ndim) if like.ndim else rows[0]
