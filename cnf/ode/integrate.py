"""The integration loop: dynamics, state and times in, the states at those times out.

One loop serves joint and per-sample steps: it advances all lanes of control together, one for the
whole batch or one for each row, and rows that are done leave the batch. One number for each lane,
its error, crosses from the device to the host in each step.

The loop knows nothing of gradients: run where autograd records, everything that it computes is
differentiable; run where autograd does not, it is a plain solver whose accepted steps can be
replayed one by one.

A step lies between two knots: of the first and the last output time and the stops between them, or
of a grid of fixed steps. Where between them is a constant of the gradient: a step that starts at
fraction s of the way starts at the time a + s (b − a), and is differentiable in the knots a and b
through that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import take_rows
from cnf.ode.clock import Clock
from cnf.ode.controllers import first_step_size
from cnf.ode.dynamics import Dynamics, StagedDynamics
from cnf.ode.fates import Fates
from cnf.ode.lanes import CLOSE, Array, Lanes, Mask
from cnf.ode.outputs import Outputs
from cnf.ode.record import Output, Step
from cnf.ode.recording import Recording
from cnf.ode.settings import Settings
from cnf.ode.solution import Solution, Stats, Status, Tally
from cnf.ode.step import (
    BoundDynamics,
    StageDynamics,
    Stages,
    Taken,
    advance,
    stage_times,
    staged,
    within,
)


@dataclass(eq=False)
class Run:
    """What the loop leaves behind.

    Attributes:
        ys: The states at the output times, stacked; NaN where a row did not get.
        fates: What became of each row.
        rows: Those that did not finish: first what is not finite, then the largest last error.
        stats: What it cost; an entry for each lane where steps are per sample.
        last_times: How far each row got.
    """

    ys: Tensor
    fates: Fates
    rows: tuple[int, ...]
    stats: Stats
    last_times: Array

    @property
    def missing(self) -> Tensor | None:
        """Where the outputs are NaN because a row did not get there; None where all did."""
        return self.ys.isnan() if self.rows else None

    def solution(self, ts: Tensor) -> Solution:
        """What a user gets, with the output times."""
        last = self.last_times, self.fates.states
        return Solution(ts, self.ys, self.fates.statuses, self.stats, self.rows, *last)


def integrate(
    f: Dynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    settings: Settings,
    *,
    recording: Recording | None = None,
    knots: Tensor | None = None,
) -> Run:
    """Integrate dy/dt = f(t, y, args) from `ts[0]` to `ts[-1]`, with outputs at all of `ts`.

    Args:
        f: Dynamics.
        y0: State at `ts[0]`.
        ts: Output times.
        args: The dynamics' arguments.
        settings: How to integrate.
        recording: Keeps the accepted steps, for their ways back: the arguments are leaves of those,
            and of whole steps' graphs the times and knots too.
        knots: What `settings.knots` gives, as a leaf.
    """
    y0 = y0.contiguous()
    loop = _Loop(f, y0, ts, args, settings, settings.knots(ts) if knots is None else knots)
    loop.recording = recording
    loop.begin()
    while loop.running:
        loop.step()
    return loop.end()


class _Loop:
    """The loop's state: the lanes under way, and the tensors of the rows that they carry."""

    def __init__(
        self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings, knots: Tensor
    ) -> None:
        self.f, self.args, self.settings = f, args, settings
        self.per_sample = settings.per_sample
        self.ts, self.knots = ts, knots
        self.begins, self.spans = knots[:-1].unbind(), knots.diff().unbind()
        self.clock = Clock(ts)
        self.taus = self.clock.fractions(ts)
        whole = len(knots) == 2
        self.lengths = [self.clock.span] if whole else knots.detach().double().diff().tolist()
        self.batch = y0.shape[0] if y0.ndim else 1
        self.lanes = Lanes.start(
            self.clock.control(settings, knots), self.batch if self.per_sample else 1
        )
        self.running = True
        self.gone: list[Lanes] = []
        self.y = self.slope = self.ratio = y0
        self.rows: Tensor | None = None  # which of the batch are at hand; None for all
        self.broken: Tensor | None = None  # those whose last error was not finite; None for none
        self.dead: Tensor | None = None  # rows that joint steps do not mind any more,
        self.stand_in: Tensor | None = None  # and what goes on in everyone's place
        self.fates = Fates(y0)
        self.tries = 0
        self.last = np.zeros(0), np.zeros(0, dtype=bool)  # of the last try: errors, and accepted
        self.accepted = 0  # and how many
        self.outputs = Outputs(y0, len(ts))
        self.ahead = self.taus[1]  # the first output time that some lane has not passed
        self.recording: Recording | None = None
        self.calls = 0  # of the dynamics, not yet put down to the lanes
        self._bind()

    def begin(self) -> None:
        """The first slopes and the first steps' sizes."""
        self.slope = self._first_slope()
        if self.slope.shape != self.y.shape or self.slope.dtype != self.y.dtype:
            raise ValueError(
                f"Expected f to give a slope like the state, {tuple(self.y.shape)} and "
                f"{self.y.dtype}; got {tuple(self.slope.shape)} and {self.slope.dtype}"
            )
        if self.settings.grid is not None:
            return
        self.ratio = self.y + self.slope
        if not self.ratio.detach().sum().isfinite():  # which is cheap; too large a sum does no harm
            bad = ~_finite_rows(self.ratio)
            self._leave(self._drop_rows(bad))
            if self.running:  # not even in the graph may the others meet them
                self.slope = self._first_slope()
        if not self.running:
            return
        if self.settings.first_step is not None:
            sizes = np.full(len(self.lanes), self.settings.first_step)
        else:
            with torch.no_grad():
                sizes = self._first_sizes()
        self.lanes.size = self.lanes.good = sizes / self.clock.length

    def step(self) -> None:
        """Try one step in every lane."""
        recording = self.recording
        if recording is not None and recording.room > 0:
            with recording.weigh(), torch.set_grad_enabled(recording.graphs):
                self._try()
            self.y, self.slope = self.y.detach(), self.slope.detach()
        else:
            self._try()
        done, failed = self.lanes.done(), self._failures()
        self._leave(done if failed is None else done | failed)

    def _try(self) -> None:
        """One step in every lane."""
        lanes = self.lanes
        size = lanes.propose()
        step = self._plan(size)
        taken = self._take(step)
        error = self._errors(taken)
        accept = lanes.accepts(size, error)
        self.accepted = int(np.count_nonzero(accept))
        if self.accepted and torch.is_grad_enabled() and not np.isfinite(error).all():
            # A zero times NaN is NaN on the way back: no graph of theirs may hang on the others'.
            step = self._plan(np.where(np.isfinite(error), size, 0.0))
            taken = self._take(step)
            taken.error()
        lanes.adapt(size, error, accept)
        if self.settings.observer is not None:
            kind = "accept" if accept.all() else "reject"
            self.settings.observer(kind, taken.t.detach(), taken.y0.detach(), taken.h.detach())
        if self.accepted:
            self._move_on(step, taken, accept)
        else:
            # The step's stages have taken the place that the slope before it had.
            self.slope = taken.stages[0]
        self.tries += 1  # of every lane that is still under way
        self.last = error, accept

    def end(self) -> Run:
        """The outputs, stacked, and the record."""
        counts = np.zeros((3, self.batch if self.per_sample else 1), dtype=np.int64)
        for lanes in self.gone:
            counts[:, lanes.number] = lanes.evaluations, lanes.accepted, lanes.rejected
        tally = Tally(np.zeros(self.batch, dtype=np.int64) if self.per_sample else 0)
        evaluations, accepted, rejected = counts if self.per_sample else counts[:, 0].tolist()
        stats = Stats(evaluations, accepted, rejected, (tally,))
        ys = self.outputs.stack()
        times = self.clock.begin + np.minimum(self.fates.reached, 1.0) * self.clock.span
        rows = self.fates.worst_first(None if self.per_sample else self.ratio)
        return Run(ys, self.fates, rows, stats, times)

    def _bind(self) -> None:
        """The dynamics with the arguments of the rows at hand, counting their calls."""
        self.at_hand = take_rows(self.args, self.chosen)
        self.tolerance = self.settings.tolerance
        if self.rows is not None:
            self.tolerance = self.tolerance.take(self.rows, self.outputs.y0.shape)
        buffered = not torch.is_grad_enabled()
        self.stages = Stages(self.settings.tableau, self.y, buffered=buffered)

    @property
    def chosen(self) -> Tensor | None:
        """Whose arguments the dynamics get; None for everyone's own."""
        return self.rows if self.per_sample else self.stand_in

    def bound(self, t: Tensor, y: Tensor, **unweighted: bool) -> Tensor:
        """Return the slope with the current rows' arguments; staged dynamics take `unweighted`."""
        self.calls += 1
        slope: Tensor = self.f(t, y, self.at_hand, **unweighted)
        return slope

    def _to_state(self, lanes: Array) -> float | Tensor:
        """Numbers of the lanes as the state's arithmetic takes them."""
        if not self.per_sample:
            return float(lanes[0])
        return torch.from_numpy(lanes).to(self.y).view(-1, *(1,) * (self.y.ndim - 1))

    def _plan(self, size: Array) -> Step:
        """The step to try in every lane."""
        start, size = self.lanes.local(size)
        knots = self.lanes.knot
        knot: int | Tensor = int(knots[0])
        if self.per_sample and (knots != knot).any():
            knot = torch.from_numpy(knots).to(self.y.device)
        y = self.y.detach().requires_grad_() if self.graphs else self.y
        return Step(self.rows, knot, self._to_state(start), self._to_state(size), y)

    def _first_slope(self) -> Tensor:
        """The slopes of the first states; a clone, as dynamics may write into their last answer."""
        t = self.begins[0]
        if self.per_sample:
            t = t.expand(len(self.y), *(1,) * (self.y.ndim - 1))
        f: BoundDynamics = self.bound
        if self.settings.jumps is not None:
            f = within(f, self.knots[0], self.knots[1])
        if self.recording is not None and self.recording.trails:
            with self.recording.weigh():
                at = self._counted(self.recording.evaluations(t.unsqueeze(0), self.at_hand))
                slope = at(0, self.y)
            self.recording.begin()
            return slope.clone()
        return f(t, self.y).clone()

    def _slope_past(self, jumped: Mask) -> Tensor:
        """The slopes, those of lanes that have come to a jump taken just beyond it."""
        knot = self.lanes.knot + 1
        if not self.per_sample:
            begin, end = self.knots[knot[0]], self.knots[knot[0] + 1]
            return within(self.bound, begin, end)(begin, self.y)
        index = self._index(jumped)
        place = torch.from_numpy(knot[jumped]).to(index.device)
        shape = (-1, *(1,) * (self.y.ndim - 1))
        begin, end = self.knots[place].view(shape), self.knots[place + 1].view(shape)
        args = take_rows(self.args, index if self.rows is None else self.rows[index])
        slope = within(lambda t, y: self.f(t, y, args), begin, end)(begin, self.y[index])
        self.lanes.evaluations = self.lanes.evaluations + jumped
        return self.slope.index_copy(0, index, slope)

    def _first_sizes(self) -> Array:
        direction = 1.0 if self.clock.span > 0 else -1.0
        scale = self.tolerance.scale(self.y)

        def size(vector: Tensor) -> Array:
            return self._norm(self.tolerance.measure(vector, scale))

        def change(step: Array) -> Tensor:
            h = self.y.new_tensor(direction) * self._to_state(step)
            return self.bound(self.ts[0] + h, self.y + h * self.slope) - self.slope

        return first_step_size(size, change, self.y, self.slope, self.lanes.control.order)

    @property
    def graphs(self) -> bool:
        """Whether steps leave graphs of their own."""
        return self.recording is not None and self.recording.graphs

    def _take(self, step: Step) -> Taken:
        """The step, with the slope that is at hand or, where its graph matters, a fresh one."""
        fresh = self.graphs
        if fresh:  # and everything that it depends on
            self.at_hand = take_rows(self.args, self.chosen)
        if fresh or not isinstance(step.knot, int):
            begin, end = step.interval(self.knots)
            span = end - begin
        else:
            begin, span = self.begins[step.knot], self.spans[step.knot]
        t, h = step.times(begin, span)
        if self.settings.observer is not None:
            self.settings.observer("step", t.detach(), step.y.detach(), h.detach())
        f: BoundDynamics = self.bound
        if self.settings.jumps is not None:
            f = within(f, *step.interval(self.knots))
        stages = self.stages
        if fresh:
            stages = Stages(self.settings.tableau, step.y, buffered=False)
        size = None
        if isinstance(step.size, float) and isinstance(step.knot, int):
            size = step.size * self.lengths[step.knot]
        stages.restart(step.y, f(t, step.y) if fresh else self.slope, size)
        if self.recording is not None and self.recording.trails:
            return self._record(f, t, h, stages, self.recording)
        return advance(f, stages, t, h, self._prepared(t, h))

    def _record(
        self, f: BoundDynamics, t: Tensor, h: Tensor, stages: Stages, recording: Recording
    ) -> Taken:
        """The step, its evaluations leaving their ways back."""
        tableau, times = self.settings.tableau, stage_times(stages.weights, t, h)
        recorder = recording.evaluations(times[1:], self.at_hand)
        at = self._counted(lambda i, y: recorder(i - 1, y, unweighted=tableau.unweighted[i]))
        errors = 0 if self.settings.grid is not None else tableau.error_stages
        end = recorder.take(max(tableau.solution_stages, errors), stages, h)
        if end is None:
            return advance(f, stages, t, h, at)
        self.calls += len(stages) - 1
        return Taken(f, at, t, h, stages.y, end, stages)

    def _prepared(self, t: Tensor, h: Tensor) -> StageDynamics | None:
        """Return the dynamics at a step's stages if they know unweighted ones; otherwise None."""
        if self.settings.jumps is not None or not isinstance(self.f, StagedDynamics):
            return None
        tableau, times = self.settings.tableau, stage_times(self.stages.weights, t, h)
        if self.per_sample:
            return staged(self.bound, tableau, times)
        whole, part = self.f.evaluate, self.f.evaluate_unweighted
        unweighted = tableau.unweighted
        stages = self.f.prepare(times[1:], self.at_hand)
        return self._counted(lambda i, y: (part if unweighted[i] else whole)(stages[i - 1], y))

    def _counted(self, at: StageDynamics) -> StageDynamics:
        """Count the calls."""

        def counted(i: int, y: Tensor) -> Tensor:
            self.calls += 1
            return at(i, y)

        return counted

    def _errors(self, taken: Taken) -> Array:
        """The error of each lane's step in units of the tolerance."""
        if self.settings.grid is not None:
            return np.zeros(len(self.lanes))
        error = taken.error()
        with torch.no_grad():
            norm = self._norm(self.tolerance.ratio(error, taken.y0, taken.y1))
            self.broken = None if np.isfinite(norm).all() else ~_finite_rows(error)
        return norm

    def _norm(self, ratio: Tensor) -> Array:
        """One error for each lane."""
        if self.dead is not None:
            ratio = ratio.masked_fill(_as_mask(self.dead, ratio), 0.0)
        self.ratio = ratio
        errors = self.tolerance.norm(ratio)
        if errors.shape != ((len(ratio),) if self.per_sample else ()):
            raise ValueError(
                "Expected norm to give a scalar with joint steps, and one number for each row with "
                f"per-sample steps; got shape {tuple(errors.shape)} for {tuple(ratio.shape)}"
            )
        if not self.per_sample:
            return np.array([errors.item()])
        numbers: Array = errors.double().cpu().numpy()
        return numbers

    def _move_on(self, step: Step, taken: Taken, accept: Mask) -> None:
        """Take the accepted steps: outputs, new states and slopes, record."""
        outputs, values = self._output(taken, accept)
        chosen = None
        if self.accepted == len(accept):
            self.y = taken.y1
            if np.count_nonzero(self.lanes.done()) < len(accept):
                self.slope = taken.end_slope
        else:
            chosen = torch.from_numpy(accept).to(self.y.device)
            mask = _as_mask(chosen, self.y)
            self.y = torch.where(mask, taken.y1, taken.y0)
            self.slope = torch.where(mask, taken.end_slope, taken.stages[0])
            chosen = chosen.nonzero().flatten()
        jumped = self.lanes.at_jump(accept)
        if jumped is not None:
            self.slope = self._slope_past(jumped)
        if self.recording is not None:
            step = replace(step if chosen is None else step.select(chosen), outputs=outputs)
            self.recording.add(step, taken, chosen, values)

    def _output(self, taken: Taken, accept: Mask) -> tuple[tuple[Output, ...], list[Tensor]]:
        """The states at the output times that the accepted steps pass."""
        lanes = self.lanes
        if lanes.fraction.max() < self.ahead - CLOSE:
            return (), []
        reached = np.searchsorted(self.taus, lanes.fraction + CLOSE, side="right")
        outputs, values = [], []
        for i in range(lanes.passed.min(), reached.max()):
            here = (lanes.passed <= i) & (i < reached)
            if not here.any():
                continue
            inside = bool((self.taus[i] < lanes.fraction[here] - CLOSE).any())
            rows = None if here.all() else self._index(here)
            values.append(Output(i, rows, inside).values(taken, self.ts))
            self._add(i, rows, values[-1])
            chosen = None if here.sum() == accept.sum() else self._index(here[accept])
            outputs.append(Output(i, chosen, inside))
        lanes.passed = reached
        self.ahead = self.taus[min(reached.min(), len(self.taus) - 1)]
        return tuple(outputs), values

    def _add(self, index: int, rows: Tensor | None, values: Tensor) -> None:
        if self.dead is not None:
            values = values.masked_fill(_as_mask(self.dead, values), torch.nan)
        whole = self.rows if rows is None else rows if self.rows is None else self.rows[rows]
        self.outputs.add(index, whole, values)

    def _index(self, mask: Mask) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(self.y.device)

    def _failures(self) -> Mask | None:
        """Which lanes can go no further; their rows are marked with the reason."""
        error, accept = self.last
        failed = None
        if self.settings.grid is not None and self.lanes.done().all():
            bad = ~_finite_rows(self.y).cpu().numpy()
            self.fates.mark(np.flatnonzero(bad), Status.NOT_FINITE)
        if self.accepted < len(accept):
            bad = ~np.isfinite(error)
            self.stages.clean = not bad.any()
            stuck = self.lanes.stuck(accept)
            failed = stuck
            if stuck.any():
                self._mark(stuck & ~bad, Status.STEP_TOO_SMALL)
                failed = stuck & ~bad | self._not_finite(stuck & bad)
        if self.tries >= self.settings.max_steps:
            late = ~self.lanes.done()
            self._mark(late, Status.STEP_LIMIT)
            failed = late if failed is None else late | failed
        return failed

    def _not_finite(self, lanes: Mask) -> Mask:
        """Give up the rows whose errors are not finite, and say which lanes that ends."""
        if not lanes.any():
            return lanes
        assert self.broken is not None
        broken: Mask = self.broken.cpu().numpy()
        if self.per_sample:
            self._mark(lanes & broken, Status.NOT_FINITE)
            self._mark(lanes & ~broken, Status.NORM_NOT_FINITE)
            return lanes
        bad = ~_finite_rows(self.ratio)
        if not bad.any():  # the norm itself is to blame, and would be without any of the rows
            self._mark(lanes, Status.NORM_NOT_FINITE)
            return lanes
        self.fates.mark(np.flatnonzero(bad.cpu().numpy() & ~broken), Status.NORM_NOT_FINITE)
        self.lanes.size = self.lanes.good
        return self._drop_rows(bad)

    def _drop_rows(self, bad: Tensor) -> Mask:
        """Go on without some of the rows at hand, and say which lanes that ends."""
        rows: Mask = bad.cpu().numpy()
        if self.per_sample:
            self._mark(rows, Status.NOT_FINITE)
            return rows
        self.fates.mark(np.flatnonzero(rows), Status.NOT_FINITE)
        self._let_go(bad if self.dead is None else bad & ~self.dead, self.lanes.fraction)
        self.dead = bad if self.dead is None else bad | self.dead
        self.stand_in = stand_in(self.dead)
        if self.stand_in is None:
            return np.ones(1, dtype=bool)
        self.y, self.slope = self.y[self.stand_in], self.slope[self.stand_in]
        self.at_hand = take_rows(self.args, self.stand_in)
        return np.zeros(1, dtype=bool)

    def _mark(self, lanes: Mask, status: Status) -> None:
        """Write down what lanes failed of."""
        if lanes.any():
            rows = self.lanes.number[lanes] if self.per_sample else np.arange(self.batch)
            self.fates.mark(rows, status)

    def _leave(self, done: Mask) -> None:
        """Let the lanes that are done leave the batch, their rows with them."""
        self.lanes.evaluations = self.lanes.evaluations + self.calls
        self.calls = 0
        left = len(done) - int(np.count_nonzero(done))
        if left == len(done):
            return
        self.running = left > 0
        self.gone.append(self.lanes.select(done) if left else self.lanes)
        if self.per_sample:
            self._let_go(torch.from_numpy(done).to(self.y.device), self.lanes.fraction[done])
        else:
            self._let_go(None if self.dead is None else ~self.dead, self.lanes.fraction)
        if left:
            self.lanes = self.lanes.select(~done)
            index = self._index(~done)
            self.y, self.slope = self.y[index], self.slope[index]
            self.rows = index if self.rows is None else self.rows[index]
            self._bind()

    def _let_go(self, leaving: Tensor | None, fractions: Array) -> None:
        """Keep how far some of the rows at hand (None: all) got, and their states there."""
        if leaving is None or not self.y.ndim:
            self.fates.let_go(None, fractions, self.y)
            return
        index = leaving.nonzero().flatten()
        rows = index if self.rows is None else self.rows[index]
        self.fates.let_go(rows, fractions, self.y[index])


def stand_in(failed: Tensor) -> Tensor | None:
    """Whom to take for each row where some have failed: itself, or the first that has not.

    What is computed of stand-ins is thrown away, and finite: their gradient of zero is zero, where
    that of a row of NaN would be NaN. None where all have failed.
    """
    if failed.all():
        return None
    first = int((~failed).nonzero()[0])
    return torch.arange(len(failed), device=failed.device).masked_fill(failed, first)


def _finite_rows(y: Tensor) -> Tensor:
    """Which rows are finite; the whole state where it has no axis."""
    return y.isfinite().reshape(y.shape[0] if y.ndim else 1, -1).all(1)


def _as_mask(rows: Tensor, like: Tensor) -> Tensor:
    """A mask of rows, shaped to broadcast against a state."""
    return rows.view(-1, *(1,) * (like.ndim - 1)) if like.ndim else rows[0]
