"""The integration loop: dynamics, state and times in, the states at those times out.

One loop serves joint and per-sample steps: it advances all lanes of control together, one for the
whole batch or one for each row, and rows that are done leave the batch. One number for each lane,
its error, crosses from the device to the host in each step.

The loop knows nothing of gradients: run where autograd records, everything that it computes is
differentiable; run where autograd does not, it is a plain solver whose accepted steps can be
replayed one by one. The fractions are constants of the gradient: a step that starts at fraction s
starts at the time t₀ + s (t₁ − t₀), and is differentiable in t₀ and t₁ through that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.ode.arguments import take_rows
from cnf.ode.controllers import Controller, Tolerance, first_step_size
from cnf.ode.lanes import CLOSE, Array, Control, Lanes, Mask
from cnf.ode.outputs import Outputs
from cnf.ode.solution import Stats, Status
from cnf.ode.step import BoundDynamics, Stages, Taken, add_error_stages, advance, dense, end_slope
from cnf.ode.tableaus import Tableau

Dynamics = Callable[[Tensor, Tensor, Any], Tensor]
Observer = Callable[[str, Tensor, Tensor, Tensor], None]

STATUSES = tuple(Status)


@dataclass(frozen=True, eq=False)
class Settings:
    """How to integrate: everything but the problem itself.

    Attributes:
        tableau: The method.
        tolerance: Tolerance and norm; the norm gives one error for each lane.
        controller: Chooses the next step's size.
        per_sample: Whether every row of the state has its own steps.
        first_step: Size of the first step, chosen from the dynamics when None.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        max_steps: The most steps for each lane, accepted and rejected.
        grid: Times to step through with no error control; adaptive when None.
        stops: Times that a step has to end at.
        observer: Called with "step", "accept" or "reject", the step's start, state and size.
    """

    tableau: Tableau
    tolerance: Tolerance
    controller: Controller
    per_sample: bool = False
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = float("inf")
    max_steps: int = 10_000
    grid: Tensor | None = None
    stops: Tensor | None = None
    observer: Observer | None = None


@dataclass(frozen=True, eq=False)
class Output:
    """An output time that a step passes.

    Attributes:
        index: Which of the output times.
        rows: Which of the step's rows pass it there; None for all.
        inside: Whether it lies inside the step, not at its very end.
    """

    index: int
    rows: Tensor | None
    inside: bool


@dataclass(frozen=True, eq=False)
class Step:
    """An accepted step, as a replay needs it.

    Attributes:
        rows: The rows of the batch that take it; None for all.
        start: Where it starts, as a fraction: one number, or one for each row.
        size: Its size as a fraction, alike.
        y: The states that it starts from.
        outputs: The output times that it passes.
    """

    rows: Tensor | None
    start: float | Tensor
    size: float | Tensor
    y: Tensor
    outputs: tuple[Output, ...] = ()

    def times(self, begin: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """The step's start time and signed size, differentiable in the whole's."""
        return begin + self.start * span, self.size * span

    def select(self, index: Tensor) -> Step:
        """The step of some of its rows."""
        assert isinstance(self.start, Tensor)
        assert isinstance(self.size, Tensor)
        rows = index if self.rows is None else self.rows[index]
        return Step(rows, self.start[index], self.size[index], self.y[index])


@dataclass(eq=False)
class Run:
    """What the loop leaves behind.

    Attributes:
        ys: The states at the output times, stacked; NaN where a row did not get.
        steps: The accepted steps, in order.
        status: Of each row, as a position in `STATUSES`.
        rows: Those that did not finish, the largest last error first.
        times: How far each lane got.
        stats: What it cost; an entry for each lane where steps are per sample.
    """

    ys: Tensor
    steps: list[Step]
    status: NDArray[np.int8]
    rows: tuple[int, ...]
    times: Array
    stats: Stats


def integrate(
    f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings, *, record: bool = False
) -> Run:
    """Integrate dy/dt = f(t, y, args) from `ts[0]` to `ts[-1]`, with outputs at all of `ts`.

    Args:
        f: Dynamics.
        y0: State at `ts[0]`.
        ts: Output times.
        args: The dynamics' arguments.
        settings: How to integrate.
        record: Whether to keep the accepted steps for a replay.
    """
    loop = _Loop(f, y0, ts, args, settings, record)
    loop.begin()
    while len(loop.lanes):
        loop.step()
    return loop.end()


class _Loop:
    """The loop's state: the lanes under way, and the tensors of the rows that they carry."""

    def __init__(
        self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings, record: bool
    ) -> None:
        self.f, self.args, self.settings = f, args, settings
        self.per_sample = settings.per_sample
        self.ts, self.whole = ts, (ts[0], ts[-1] - ts[0])
        self.clock = _Clock(ts)
        self.taus = self.clock.fractions(ts)
        self.batch = y0.shape[0] if y0.ndim else 1
        self.lanes = Lanes.start(
            self.clock.control(settings, y0.dtype), self.batch if self.per_sample else 1
        )
        self.gone: list[Lanes] = []
        self.y = self.slope = self.ratio = y0
        self.rows: Tensor | None = None  # which of the batch are at hand; None for all
        self.dead: Tensor | None = None  # rows that joint steps carry along but do not mind
        self.status = np.zeros(self.batch, dtype=np.int8)
        self.tries = 0
        self.outputs = Outputs(y0, len(ts))
        self.steps: list[Step] | None = [] if record else None
        self._bind()

    def begin(self) -> None:
        """The first slopes and the first steps' sizes."""
        self.slope = self.bound(self.ts[0], self.y)
        self.ratio = self.y + self.slope
        bad = ~_finite_rows(self.ratio)
        self._leave(self._drop_rows(bad) if bad.any() else np.zeros(len(self.lanes), dtype=bool))
        if not len(self.lanes) or self.settings.grid is not None:
            return
        if self.settings.first_step is not None:
            sizes = np.full(len(self.lanes), self.settings.first_step)
        else:
            with torch.no_grad():
                sizes = self._first_sizes()
        self.lanes.size = self.lanes.good = sizes / self.clock.length

    def step(self) -> None:
        """Try one step in every lane."""
        lanes = self.lanes
        size = lanes.propose()
        step = Step(self.rows, self._to_state(lanes.fraction), self._to_state(size), self.y)
        taken = self._take(step)
        error = self._errors(taken)
        accept = lanes.accepts(size, error)
        lanes.adapt(size, error, accept)
        accepted = np.count_nonzero(accept)
        if self.settings.observer is not None:
            kind = "accept" if accepted == len(accept) else "reject"
            self.settings.observer(kind, taken.t, taken.y0, taken.h)
        if accepted:
            self._move_on(step, taken, accept)
        else:
            # The step's stages have taken the place that the slope before it had.
            self.slope = taken.stages[0]
        lanes.evaluations = lanes.evaluations + self.calls
        self.calls = 0
        failed = self._failures(error, accept)
        done = lanes.done()
        self._leave(done if failed is None else done | failed)

    def end(self) -> Run:
        """The outputs, stacked, and the record."""
        fractions = np.ones(self.batch if self.per_sample else 1)
        counts = np.zeros((3, len(fractions)), dtype=np.int64)
        for lanes in self.gone:
            fractions[lanes.number] = np.minimum(lanes.fraction, 1.0)
            counts[:, lanes.number] = lanes.evaluations, lanes.accepted, lanes.rejected
        stats = Stats(*counts) if self.per_sample else Stats(*counts[:, 0].tolist())
        ys = self.outputs.stack()
        times = self.clock.begin + fractions * self.clock.span
        return Run(ys, self.steps or [], self.status, self._worst_first(), times, stats)

    def _bind(self) -> None:
        """The dynamics with the arguments of the rows at hand, counting their calls."""
        args = take_rows(self.args, self.rows)
        self.calls = 0

        def bound(t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return self.f(t, y, args)

        self.bound: BoundDynamics = bound
        buffered = not torch.is_grad_enabled()
        self.stages = Stages(self.settings.tableau, self.y, buffered=buffered)

    def _to_state(self, lanes: Array) -> float | Tensor:
        """Numbers of the lanes as the state's arithmetic takes them."""
        if not self.per_sample:
            return float(lanes[0])
        return torch.from_numpy(lanes).to(self.y).view(-1, *(1,) * (self.y.ndim - 1))

    def _first_sizes(self) -> Array:
        direction = 1.0 if self.clock.span > 0 else -1.0
        tolerance = self.settings.tolerance

        def size(vector: Tensor) -> Array:
            return self._norm(tolerance.ratio(vector, self.y))

        def change(step: Array) -> Tensor:
            h = self.y.new_tensor(direction) * self._to_state(step)
            return self.bound(self.ts[0] + h, self.y + h * self.slope) - self.slope

        return first_step_size(size, change, self.y, self.slope, self.lanes.control.order)

    def _take(self, step: Step) -> Taken:
        t, h = step.times(*self.whole)
        if self.settings.observer is not None:
            self.settings.observer("step", t, step.y, h)
        self.stages.restart(self.slope)
        taken = advance(self.bound, self.stages, t, h, step.y)
        if self.settings.grid is None:
            add_error_stages(self.bound, taken)
        return taken

    @torch.no_grad()
    def _errors(self, taken: Taken) -> Array:
        """The error of each lane's step in units of the tolerance."""
        if self.settings.grid is not None:
            return np.zeros(1)
        error = taken.stages.increment(taken.h, taken.stages.weights.e)
        return self._norm(self.settings.tolerance.ratio(error, taken.y0, taken.y1))

    def _norm(self, ratio: Tensor) -> Array:
        """One error for each lane."""
        if self.dead is not None:
            ratio = ratio.masked_fill(_as_mask(self.dead, ratio), 0.0)
        self.ratio = ratio
        errors = self.settings.tolerance.norm(ratio)
        if not self.per_sample:
            return np.array([errors.item()])
        numbers: Array = errors.double().cpu().numpy()
        return numbers

    def _move_on(self, step: Step, taken: Taken, accept: Mask) -> None:
        """Take the accepted steps: outputs, record, new states and slopes."""
        slope = end_slope(self.bound, taken)
        outputs = self._output(taken, slope, accept)
        if accept.all():
            self.y, self.slope = taken.y1, slope
        else:
            chosen = torch.from_numpy(accept).to(self.y.device)
            mask = _as_mask(chosen, self.y)
            self.y = torch.where(mask, taken.y1, taken.y0)
            self.slope = torch.where(mask, slope, taken.stages[0])
            step = step.select(chosen.nonzero().flatten())
        if self.steps is not None:
            self.steps.append(replace(step, outputs=outputs))

    def _output(self, taken: Taken, slope: Tensor, accept: Mask) -> tuple[Output, ...]:
        """The states at the output times that the accepted steps pass."""
        lanes = self.lanes
        if lanes.fraction.max() < self.taus[lanes.passed.min()] - CLOSE:
            return ()
        reached = np.searchsorted(self.taus, lanes.fraction + CLOSE, side="right")
        outputs = []
        inside = None
        for i in range(lanes.passed.min(), reached.max()):
            here = (lanes.passed <= i) & (i < reached)
            if not here.any():
                continue
            interior = bool((self.taus[i] < lanes.fraction[here] - CLOSE).any())
            values = taken.y1
            if interior:
                inside = inside or dense(taken, slope)
                values = inside((self.ts[i] - taken.t) / taken.h)
            self._add(i, values, here)
            rows = None if here.sum() == accept.sum() else self._index(here[accept])
            outputs.append(Output(i, rows, interior))
        lanes.passed = reached
        return tuple(outputs)

    def _add(self, i: int, values: Tensor, here: Mask) -> None:
        if self.dead is not None:
            values = values.masked_fill(_as_mask(self.dead, values), torch.nan)
        if here.all():
            self.outputs.add(i, self.rows, values)
            return
        index = self._index(here)
        self.outputs.add(i, index if self.rows is None else self.rows[index], values[index])

    def _index(self, mask: Mask) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(self.y.device)

    def _failures(self, error: Array, accept: Mask) -> Mask | None:
        """Which lanes can go no further; their rows are marked with the reason."""
        self.tries += 1  # of every lane that is still under way
        failed = None
        if not accept.all():
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
        """Give up the rows that are not finite, and say which lanes that ends."""
        if not lanes.any():
            return lanes
        if self.per_sample:
            self._mark(lanes, Status.NOT_FINITE)
            return lanes
        self.lanes.size = self.lanes.good
        return self._drop_rows(~_finite_rows(self.ratio))

    def _drop_rows(self, bad: Tensor) -> Mask:
        """Go on without some of the rows at hand, and say which lanes that ends."""
        rows: Mask = bad.cpu().numpy()
        if self.per_sample:
            self._mark(rows, Status.NOT_FINITE)
            return rows
        self._mark_rows(np.flatnonzero(rows), Status.NOT_FINITE)
        self.dead = bad if self.dead is None else bad | self.dead
        return np.array([bool(self.dead.all())])

    def _mark(self, lanes: Mask, status: Status) -> None:
        """Write down what lanes failed of."""
        if lanes.any():
            rows = self.lanes.number[lanes] if self.per_sample else np.arange(self.batch)
            self._mark_rows(rows, status)

    def _mark_rows(self, rows: NDArray[np.int64], status: Status) -> None:
        fresh = rows[self.status[rows] == 0]
        self.status[fresh] = STATUSES.index(status)

    def _leave(self, done: Mask) -> None:
        """Let the lanes that are done leave the batch, their rows with them."""
        self.lanes.evaluations = self.lanes.evaluations + self.calls
        self.calls = 0
        if not done.any():
            return
        self.gone.append(self.lanes.select(done))
        self.lanes = self.lanes.select(~done)
        if self.per_sample:
            index = self._index(~done)
            self.y, self.slope = self.y[index], self.slope[index]
            self.rows = index if self.rows is None else self.rows[index]
            self._bind()

    def _worst_first(self) -> tuple[int, ...]:
        rows = np.flatnonzero(self.status).tolist()
        if self.per_sample or not rows or self.ratio.ndim == 0:
            return tuple(rows)
        last = self.ratio.detach().abs().nan_to_num(nan=torch.inf).reshape(self.batch, -1).amax(1)
        return tuple(sorted(rows, key=lambda row: -last[row].item()))


class _Clock:
    """Times as fractions of the way from the first output time to the last."""

    def __init__(self, ts: Tensor) -> None:
        self.begin, end = ts[0].item(), ts[-1].item()
        self.span = end - self.begin
        self.length = abs(self.span)

    def fractions(self, times: Tensor) -> Array:
        numbers: Array = times.detach().double().cpu().numpy()
        return (numbers - self.begin) / self.span

    def control(self, settings: Settings, dtype: torch.dtype) -> Control:
        """The settings of the control, in fractions."""
        stops = np.ones(1)
        given = settings.stops if settings.grid is None else settings.grid
        if given is not None:
            stops = np.unique(np.append(self.fractions(given), 1.0))
            stops = stops[(stops > CLOSE) & (stops <= 1)]
        largest = max(abs(self.begin), abs(self.begin + self.span))
        return Control(
            controller=settings.controller,
            order=(settings.tableau.error_order or 0) + 1,
            min_step=settings.min_step / self.length,
            max_step=settings.max_step / self.length,
            resolution=4 * torch.finfo(dtype).eps * largest / self.length,
            stops=stops,
            grid=settings.grid is not None,
        )


def _finite_rows(y: Tensor) -> Tensor:
    """Which rows are finite; the whole state where it has no axis."""
    return y.isfinite().reshape(y.shape[0] if y.ndim else 1, -1).all(1)


def _as_mask(rows: Tensor, like: Tensor) -> Tensor:
    """A mask of rows, shaped to broadcast against a state."""
    return rows.view(-1, *(1,) * (like.ndim - 1)) if like.ndim else rows[0]
