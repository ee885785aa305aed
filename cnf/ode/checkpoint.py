"""Gradients by replaying the accepted steps, one by one and backwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.arguments import take_rows
from cnf.ode.autograd_function import Leaves, Problem, as_leaf, differentiable
from cnf.ode.dynamics import Dynamics, Plain, StagedDynamics
from cnf.ode.integrate import Run, integrate, stand_in
from cnf.ode.pullback import Adjoint, Trail, retrace
from cnf.ode.record import Kept, Step
from cnf.ode.recording import Recording
from cnf.ode.settings import Settings
from cnf.ode.solution import Tally
from cnf.ode.step import BoundDynamics, Stages, advance, stage_times, staged, within
from cnf.ode.tableaus import tableau_tensors


@dataclass(frozen=True)
class Checkpoint:
    """Keep the accepted steps' first states; on the way back replay one step at a time.

    Exact for the discrete solve, with the memory of one state for each step and one step's graph.
    Gradients reach the tensors in `args` and no others: a tensor caught in a closure gets none.

    Attributes:
        activation_bytes: Bytes for what the ways back of accepted steps need, activations above all, from the
            first step on: one that has what it needs is not replayed. 0 keeps none.

    With joint or fixed steps a row that failed gets no gradient, and leaves the others theirs.

    Raises:
        ValueError: `keep` is negative.

    Source: Griewank & Walther (2000), Algorithm 799: revolve; here with a checkpoint at every step.

    Example:
        >>> from cnf.ode import solve
        >>> rate, y0 = torch.tensor(-1.0, requires_grad=True), torch.ones(2)
        >>> kept = Checkpoint(activation_bytes=2**20)
        >>> solution = solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=kept)
        >>> solution.ys.sum().backward()
        >>> solution.stats.backward
        0
    """

    activation_bytes: int = 0

    def __post_init__(self) -> None:
        if self.activation_bytes < 0:
            raise ValueError(
                f"Expected activation_bytes of at least 0 bytes; got {self.activation_bytes}"
            )

    def __call__(self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
        """Solve, with this way back."""
        return differentiable(_Checkpoint, Problem(f, args, settings, self), y0, ts)


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, y0: Tensor, ts: Tensor, *tensors: Any) -> Tensor:
        tape = _Tape(problem, ts, ctx.needs_input_grad[2:])
        problem.run = tape.record(y0)
        ctx.tape = tape
        ctx.missing = problem.run.missing
        # That none of them is changed before the way back is what autograd sees to.
        ctx.save_for_backward(y0, ts, *(leaf for leaf in tensors if isinstance(leaf, Tensor)))
        return problem.run.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        if ctx.missing is not None:
            grad_ys = grad_ys.masked_fill(ctx.missing, 0.0)
        return None, ctx.tape.sweep(grad_ys), *ctx.tape.leaves.grads()


class _Tape:
    """A solve's accepted steps, and the way back through them."""

    def __init__(self, problem: Problem, ts: Tensor, needs: tuple[bool, ...]) -> None:
        self.f, self.settings, self.activation_bytes = (
            problem.f,
            problem.settings,
            problem.mode.activation_bytes,
        )
        self.dynamics = self.f if isinstance(self.f, StagedDynamics) else Plain(self.f)
        self.leaves = Leaves(problem, ts, needs)
        with torch.enable_grad():
            self.own_knots = self.settings.knots(self.leaves.ts)
        self.knots = as_leaf(self.own_knots, self.leaves.ts.requires_grad)
        self.inputs = [leaf for leaf in (self.leaves.ts, self.knots) if leaf.requires_grad]
        self.inputs += self.leaves.wanted
        self.lengths = self.knots.detach().double().diff().tolist()
        # Where only the end is asked for, at a time without a gradient, for steps of one size.
        self.by_hand = (
            not self.knots.requires_grad
            and len(ts) == 2
            and not self.settings.per_sample
            and self.settings.jumps is None
        )
        self.steps: list[Step] = []
        self.tally = Tally()
        self.failed: Tensor | None = None
        self.stand_in: Tensor | None = None

    def record(self, y0: Tensor) -> Run:
        """Solve."""
        ts, args = self.leaves.ts, self.leaves.args
        recording = Recording(self.dynamics, args, self.activation_bytes, by_hand=self.by_hand)
        run = integrate(
            self.f, y0.detach(), ts, args, self.settings, recording=recording, knots=self.knots
        )
        self.steps, self.tally = recording.steps, run.stats.tallies[0]
        if run.rows and not (self.settings.per_sample and self.settings.grid is None):
            # The rows that failed are in everyone's steps.
            self.failed = run.fates.failed
            self.stand_in = stand_in(self.failed)
            self.steps = [replace(step, kept=None, trail=None) for step in self.steps]
        return run

    def sweep(self, grad_ys: Tensor) -> Tensor:
        """Carry the adjoint from the last output time to the first; the leaves gather theirs."""
        for leaf in self.inputs:
            leaf.grad = None
        adjoint, first = torch.zeros_like(grad_ys[0]), grad_ys[0]
        if self.failed is not None:
            if self.stand_in is None:
                return first
            grad_ys = grad_ys.masked_fill(self.failed.view(-1, *(1,) * (adjoint.ndim - 1)), 0.0)
        if self.by_hand:
            return self._sweep_by_hand(grad_ys[1]) + first
        for step in reversed(self.steps):
            kept = step.kept or self.replay(step)
            cotangents = [_take(adjoint, step.rows)]
            cotangents += [
                _take(_take(grad_ys[output.index], step.rows), output.rows)
                for output in step.outputs
            ]
            y = kept.y
            y.grad = None
            torch.autograd.backward(
                kept.ends, cotangents, inputs=[y, *self.inputs], retain_graph=kept is step.kept
            )
            assert y.grad is not None
            before = _take(y.grad, kept.rows)
            adjoint = before if step.rows is None else adjoint.index_copy(0, step.rows, before)
        if self.knots.grad is not None:
            torch.autograd.backward(self.own_knots, self.knots.grad, retain_graph=True)
        return adjoint + first

    def _sweep_by_hand(self, cotangent: Tensor) -> Tensor:
        """The cotangent of the first state for that of the last."""
        if self.steps:
            adjoint = Adjoint(self.settings.tableau, cotangent)
        for step in reversed(self.steps):
            cotangent = (step.trail or self._retrace(step)).pull(cotangent, adjoint)
        if self.steps and self.steps[0].trail is not None:
            self.steps[0].trail.first.linearization.finish()
        return cotangent

    def _retrace(self, step: Step) -> Trail:
        """Take an accepted step again, with ways back for its evaluations."""
        tableau = self.settings.tableau
        y = _take(step.y, self.stand_in).detach()
        with torch.enable_grad():
            args = take_rows(self.leaves.args, self.stand_in)
        begin, end = step.interval(self.knots)
        t, h = step.times(begin, end - begin)
        weights = tableau_tensors(tableau, y.dtype, y.device)
        linearization = self.dynamics.linearize(stage_times(weights, t, h), args)
        self.tally.add(tableau.solution_stages)
        assert isinstance(step.knot, int)
        assert isinstance(step.size, float)
        return retrace(linearization, tableau, y, step.size * self.lengths[step.knot])

    @torch.enable_grad()
    def replay(self, step: Step) -> Kept:
        """Repeat an accepted step under autograd."""
        y = as_leaf(_take(step.y, self.stand_in), True)
        args = take_rows(self.leaves.args, self.stand_in if step.rows is None else step.rows)
        calls = 0

        def bound(t: Tensor, y: Tensor, **unweighted: bool) -> Tensor:
            nonlocal calls
            calls += 1
            return self.f(t, y, args, **unweighted)

        begin, end = step.interval(self.knots)
        t, h = step.times(begin, end - begin)
        f: BoundDynamics = bound
        stages, at = Stages(self.settings.tableau, y, buffered=False), None
        if self.settings.jumps is not None:
            f = within(bound, begin, end)
        elif isinstance(self.f, StagedDynamics):
            at = staged(bound, self.settings.tableau, stage_times(stages.weights, t, h))
        stages.restart(y, f(t, y))
        taken = advance(f, stages, t, h, at)
        ends = [taken.y1, *(output.values(taken, self.leaves.ts) for output in step.outputs)]
        self.tally.add(calls, step.rows)
        return Kept(y, ends)


def _take(whole: Tensor, rows: Tensor | None) -> Tensor:
    return whole if rows is None else whole.index_select(0, rows)
