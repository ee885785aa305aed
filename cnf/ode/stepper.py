"""Steps of dynamics whose arguments are those of the active rows, with evaluations counted."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cnf.ode.arguments import rowwise, take_rows
from cnf.ode.dynamics import Dynamics, StagedDynamics
from cnf.ode.options import SolveOptions
from cnf.ode.step import (
    BoundDynamics,
    StageDynamics,
    Stages,
    StepResult,
    advance,
    stage_times,
    within,
)
from cnf.ode.step_adjoint import StageRecorder
from cnf.ode.step_control import Counts
from cnf.ode.tape import StepRecord, Tape


class Stepper:
    """Steps of dynamics whose arguments are those of the active rows, with evaluations counted.

    No step crosses the knots; `lengths` has the signed distances between them, as numbers.
    """

    stages: Stages

    def __init__(
        self,
        f: Dynamics,
        args: Any,
        options: SolveOptions,
        knots: Tensor,
        lengths: list[float],
        tape: Tape | None,
    ) -> None:
        self.f, self.args, self.options, self.tape = f, args, options, tape
        self.knots, self.lengths = knots, lengths
        self.rows: Tensor | None = None  # whose arguments the dynamics get; None for all
        self.active_args = args
        self.calls = 0  # evaluations since this was last set to zero

    @cached_property
    def intervals(self) -> list[tuple[Tensor, Tensor]]:
        """The knots before the steps, each with the signed distance to the next."""
        return [*zip(self.knots[:-1].unbind(), self.knots.diff().unbind(), strict=True)]

    def start(self, y: Tensor, rows: Tensor | None) -> None:
        """Prepare for states like y of some rows (None: all)."""
        self.use_arguments(rows)
        buffered = not torch.is_grad_enabled()
        self.stages = Stages(self.options.tableau, y, buffered=buffered)

    def use_arguments(self, rows: Tensor | None) -> None:
        """Use the arguments of some rows (None: all)."""
        self.rows = rows
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.tape is not None):
            self.active_args = take_rows(self.args, rows)

    def bound(self, t: Tensor, y: Tensor, **unweighted: bool) -> Tensor:
        """Evaluate the dynamics with the active arguments; staged ones may get `unweighted`."""
        self.calls += 1
        slope: Tensor = self.f(t, y, self.active_args, **unweighted)
        return slope

    @property
    def rest_share(self) -> float:
        """The largest share of the span that the first step of dynamics at rest may take."""
        f = self.f if isinstance(self.f, StagedDynamics) else StagedDynamics
        return f.rest_share

    @property
    def keeps_graphs(self) -> bool:
        """Whether the graph of each step is to be kept."""
        return self.tape is not None and self.tape.keeps_graphs

    def first_slope(self, y: Tensor) -> Tensor:
        """Return the slopes of the first states; a clone, as dynamics may reuse their output."""
        t = self.intervals[0][0]
        if self.options.per_sample:
            t = t.expand(len(y), *(1,) * (y.ndim - 1))
        f: BoundDynamics = self.bound
        if self.options.jumps is not None:
            f = within(f, self.knots[0], self.knots[1])
        if self.tape is not None and self.tape.keeps_evaluations:
            with self.tape.measure():
                at = self._counted(self.tape.evaluations(t.unsqueeze(0), self.active_args))
                slope = at(0, y)
            self.tape.keep_first(self.rows)
            return slope.clone()
        return f(t, y).clone()

    def slope_past_jump(self, y: Tensor, knot: Counts, rows: Tensor | None) -> Tensor:
        """Return the slopes just beyond the jump at a knot, given by one index or one per row."""
        if rows is None:
            begin, end = self.knots[knot[0]], self.knots[knot[0] + 1]
            return within(self.bound, begin, end)(begin, y)
        place = torch.from_numpy(knot).to(y.device)
        begin, end = (rowwise(self.knots[index], y.ndim) for index in (place, place + 1))
        args = take_rows(self.args, rows)
        return within(lambda t, y: self.f(t, y, args), begin, end)(begin, y)

    def step(self, step: StepRecord, slope: Tensor | None) -> StepResult:
        """Take a step, whose graph includes all that it depends on where it is given no slope."""
        fresh = slope is None
        if fresh:
            self.active_args = take_rows(self.args, self.rows)
        if fresh or not isinstance(step.knot, int):
            begin, end = step.interval(self.knots)
            span = end - begin
        else:
            begin, span = self.intervals[step.knot]
        t, h = step.times(begin, span)
        if self.options.observer is not None:
            self.options.observer("step", t.detach(), step.y.detach(), h.detach())
        f: BoundDynamics = self.bound
        if self.options.jumps is not None:
            f = within(f, *step.interval(self.knots))
        if slope is None:
            stages, slope = Stages(self.options.tableau, step.y, buffered=False), f(t, step.y)
        else:
            stages = self.stages
        size = None
        if isinstance(step.size, float) and isinstance(step.knot, int):
            size = step.size * self.lengths[step.knot]
        stages.restart(step.y, slope, size)
        if self.tape is not None and self.tape.keeps_evaluations:
            return self._recorded(t, h, stages, self.tape)
        return advance(f, stages, t, h, self._stagewise(f, stages, t, h))

    def _recorded(self, t: Tensor, h: Tensor, stages: Stages, tape: Tape) -> StepResult:
        """Take a step whose evaluations are recorded for its adjoint."""
        tableau, times = self.options.tableau, stage_times(stages.weights, t, h)
        recorder = tape.evaluations(times[1:], self.active_args)
        at = self._counted(lambda i, y: recorder(i - 1, y, unweighted=tableau.unweighted[i]))
        f = self._recorded_middle(tape)
        errors = 0 if self.options.grid is not None else tableau.error_stages
        end = recorder.advance(max(tableau.solution_stages, errors), stages, h)
        if end is None:
            return advance(f, stages, t, h, at)
        self.calls += len(stages) - 1
        return StepResult(f, at, t, h, stages.y, end, stages)

    def _recorded_middle(self, tape: Tape) -> BoundDynamics:
        """Return the dynamics, whose evaluation for a step's middle is recorded."""

        def evaluate(t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            tape.middle = StageRecorder(tape.dynamics.linearize(t.unsqueeze(0), self.active_args))
            return tape.middle(0, y)

        return evaluate

    def _stagewise(self, f: BoundDynamics, stages: Stages, t: Tensor, h: Tensor) -> StageDynamics:
        """Return the dynamics by the number of the stage; staged ones prepare all stages."""
        times, unweighted = stage_times(stages.weights, t, h), self.options.tableau.unweighted
        each = times.unbind()
        if self.options.jumps is not None or not isinstance(self.f, StagedDynamics):
            return lambda i, y: f(each[i], y)
        if self.options.per_sample:
            return lambda i, y: self.bound(each[i], y, unweighted=unweighted[i])
        whole, part = self.f.evaluate, self.f.evaluate_unweighted
        prepared = self.f.prepare(times[1:], self.active_args)
        return self._counted(lambda i, y: (part if unweighted[i] else whole)(prepared[i - 1], y))

    def _counted(self, at: StageDynamics) -> StageDynamics:
        """Return stage dynamics whose calls are counted."""

        def counted(i: int, y: Tensor) -> Tensor:
            self.calls += 1
            return at(i, y)

        return counted
