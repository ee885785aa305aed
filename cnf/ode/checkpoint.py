"""Gradients by replaying the accepted steps one by one, the last first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.arguments import rowwise, take_rows
from cnf.ode.autograd_function import (
    InputLeaves,
    ODEProblem,
    as_leaf,
    differentiable_solve,
    needs_gradient,
)
from cnf.ode.dense_output import Piece, with_outputs
from cnf.ode.dynamics import Dynamics, FunctionDynamics, StagedDynamics
from cnf.ode.integrate import integrate, substitute_rows
from cnf.ode.options import SolveOptions
from cnf.ode.solution import BackwardCount, Solution
from cnf.ode.step import Stages, stage_times
from cnf.ode.step_adjoint import StageRecorder, StepAdjoint, StepTape
from cnf.ode.stepper import Stepper
from cnf.ode.tape import StepGraph, StepRecord, Tape


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoints at the accepted steps' first states; the backward pass replays step by step.

    Exact for the discrete solve, with the memory of one state for each step and one step's graph.
    Gradients reach the tensors in `args` and no others: a tensor caught in a closure gets none.

    Attributes:
        activation_bytes: Bytes for what the backward passes of accepted steps need, above all
            activations, from the first step on: a step whose activations are kept is not replayed.

    With joint or fixed steps a row that failed gets no gradient, and does not affect the others'.

    Raises:
        ValueError: `activation_bytes` is negative.

    Source: Griewank & Walther (2000), Algorithm 799: revolve; here with a checkpoint at every step.

    Example:
        >>> from cnf.ode import solve
        >>> rate, y0 = torch.tensor(-1.0, requires_grad=True), torch.ones(2)
        >>> mode = Checkpoint(activation_bytes=2**20)
        >>> solution = solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=mode)
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

    def __call__(
        self, f: Dynamics, y0: Tensor, knots: Tensor, args: Any, options: SolveOptions
    ) -> Solution:
        """Solve, with gradients by replaying the steps."""
        if not needs_gradient(y0, knots, args):
            with torch.no_grad():
                solution = integrate(f, y0, knots, args, options)
        else:
            problem = ODEProblem(f, args, options, self, knots)
            solution = differentiable_solve(_Checkpoint, problem, y0, knots)
        whole = with_outputs(solution, y0, knots, options)
        if solution.pieces is None or not (whole.rows and _share_steps(options)):
            return whole
        failed = rowwise(whole.failed, y0.ndim) if y0.ndim else whole.failed[0]
        first, later = whole.ys[:1], whole.ys[1:]
        return replace(whole, ys=torch.cat([first, torch.where(failed, later.detach(), later)]))


def _share_steps(options: SolveOptions) -> bool:
    """Return whether the rows that failed are part of every step."""
    return not options.per_sample or options.grid is not None


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: ODEProblem, y0: Tensor, knots: Tensor, *tensors: Any) -> Tensor:
        solve = _CheckpointedSolve(problem, knots, ctx.needs_input_grad[2:])
        problem.result = result = solve.forward(y0)
        ctx.solve, ctx.unreached = solve, None
        # Autograd sees to it that none of them is changed before the backward pass.
        ctx.save_for_backward(y0, knots, *(leaf for leaf in tensors if isinstance(leaf, Tensor)))
        if result.pieces is not None:
            return result.pieces.values
        ctx.unreached = result.ys.isnan() if result.rows else None
        return result.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        if ctx.unreached is not None:
            cotangent = cotangent.masked_fill(ctx.unreached, 0.0)
        return None, ctx.solve.backward(cotangent), *ctx.solve.leaves.grads()


class _CheckpointedSolve:
    """A solve whose accepted steps are kept, and the backward pass through them."""

    def __init__(self, problem: ODEProblem, knots: Tensor, needs_grad: tuple[bool, ...]) -> None:
        self.f, self.options = problem.f, problem.options
        self.replay_options = replace(problem.options, observer=None)
        self.activation_bytes = problem.gradient.activation_bytes
        self.dynamics = self.f if isinstance(self.f, StagedDynamics) else FunctionDynamics(self.f)
        self.leaves = InputLeaves(problem, knots, needs_grad)
        self.knots = self.leaves.times
        self.inputs = [self.knots] if self.knots.requires_grad else []
        self.inputs += self.leaves.differentiable
        self.lengths = self.knots.detach().double().diff().tolist()
        self.dense = self.options.outputs is not None
        # The step's adjoint serves steps without a gradient to times.
        self.by_adjoint = not self.knots.requires_grad and self.options.jumps is None
        if self.dense:
            self.by_adjoint = self.by_adjoint and self.options.tableau.middle_has_adjoint
        self.steps: list[StepRecord] = []
        self.calls = BackwardCount()
        self.failed: Tensor | None = None
        self.substitutes: Tensor | None = None

    def forward(self, y0: Tensor) -> Solution:
        """Solve."""
        self.shape = y0.shape
        args = self.leaves.args
        by_rows = self.dense or self.options.per_sample
        tape = Tape(
            self.dynamics, args, self.activation_bytes, by_adjoint=self.by_adjoint, by_rows=by_rows
        )
        result = integrate(self.f, y0.detach(), self.knots, args, self.options, tape=tape)
        self.steps, self.calls = tape.steps, result.stats.backward_counts[0]
        if result.rows and _share_steps(self.options):
            self.failed = result.failed
            self.substitutes = substitute_rows(self.failed)
            self.steps = [
                replace(step, graph=None, tape=None, row_tape=None) for step in self.steps
            ]
        self.first, self.first_rows = tape.first, tape.first_rows
        self.piece_rows = None if result.pieces is None else result.pieces.rows
        return result

    def backward(self, cotangent: Tensor) -> Tensor:
        """Return the adjoint at the first time, and set the gradients of the leaves.

        Args:
            cotangent: That of the states at both ends or, with dense output, of the pieces.
        """
        for leaf in self.inputs:
            leaf.grad = None
        first = cotangent.new_zeros(self.shape) if self.dense else cotangent[0]
        if self.failed is not None:
            if self.substitutes is None:
                return first
            failed = self.failed if self.piece_rows is None else self.failed[self.piece_rows]
            mask = rowwise(failed, len(self.shape))
            cotangent = cotangent.masked_fill(mask, 0.0)
        last, pieces = (first, cotangent) if self.dense else (cotangent[1], None)
        if not self.by_adjoint or self.dense or self.options.per_sample:
            return self._backward_by_rows(last, pieces) + first
        return self._backward_by_adjoint(last) + first

    def _vjp(self, step: StepRecord, cotangents: list[Tensor]) -> Tensor:
        """Return the cotangent of a step's start for those of its end and outputs, by autograd."""
        graph = step.graph or self._replay(step)
        y = graph.y
        y.grad = None
        torch.autograd.backward(
            graph.ends,
            cotangents,
            inputs=[y, *self.inputs],
            retain_graph=graph is step.graph,
        )
        assert y.grad is not None
        return _take(y.grad, graph.rows)

    def _backward_by_rows(self, cotangent: Tensor, pieces: Tensor | None) -> Tensor:
        """Return the cotangent of the first state for that of each row's last, step by step."""
        slope: Tensor | None = None  # the cotangent of the slopes that the next steps start with
        for step in reversed(self.steps):
            own = _take(cotangent, step.rows)
            parts = None
            if step.piece is not None and pieces is not None:
                parts = pieces[:, step.piece.place]
            if step.row_tape is None:
                before = self._vjp(step, [own] if parts is None else [own, parts])
            else:
                if step.piece is not None and parts is not None:
                    parts = _whole(step.piece, parts, own)
                own_slope = None if slope is None else _take(slope, step.rows)
                before, start = step.row_tape.vjp(self.options.tableau, own, own_slope, parts)
                slope = torch.zeros_like(cotangent) if slope is None else slope
                slope = _put(slope, step.rows, start)
            cotangent = _put(cotangent, step.rows, before)
        if slope is None:
            return cotangent
        assert self.first is not None
        start = self.first.vjp(_take(slope, self.first_rows))
        self.first.linearization.finish()
        return _put(cotangent, self.first_rows, _take(cotangent, self.first_rows) + start)

    def _backward_by_adjoint(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent of the first state for that of the last, by the steps' adjoints."""
        if self.steps:
            adjoint = StepAdjoint(self.options.tableau, cotangent)
        for step in reversed(self.steps):
            cotangent = (step.tape or self._evaluate_again(step)).vjp(cotangent, adjoint)
        if self.steps and self.steps[0].tape is not None:
            self.steps[0].tape.first.linearization.finish()
        return cotangent

    def _evaluate_again(self, step: StepRecord) -> StepTape:
        """Repeat an accepted step, recording its evaluations for its adjoint."""
        assert isinstance(step.knot, int)
        assert isinstance(step.size, float)
        tableau, size = self.options.tableau, step.size * self.lengths[step.knot]
        y = _take(step.y, self.substitutes).detach()
        with torch.enable_grad():
            args = take_rows(self.leaves.args, self.substitutes)
        begin, end = step.interval(self.knots)
        t, h = step.times(begin, end - begin)
        stages = Stages(tableau, y, buffered=True)
        linearization = self.dynamics.linearize(stage_times(stages.weights, t, h), args)
        recorder = StageRecorder(linearization)
        stages.restart(y, recorder(0, y), size)
        for i in range(1, tableau.solution_stages):
            state = stages.state(h, stages.weights.a[i])
            stages.append(recorder(i, state, unweighted=tableau.unweighted[i]))
        self.calls.add(tableau.solution_stages)
        first, *rest = recorder.evaluations
        return StepTape(first, tuple(rest), size, linearization)

    @torch.enable_grad()
    def _replay(self, step: StepRecord) -> StepGraph:
        """Repeat an accepted step under autograd."""
        y = as_leaf(_take(step.y, self.substitutes), True)
        stepper = Stepper(
            self.f, self.leaves.args, self.replay_options, self.knots, self.lengths, None
        )
        stepper.rows = self.substitutes if step.rows is None else step.rows
        result = stepper.step(replace(step, y=y), None)
        ends = [result.y1]
        if step.piece is not None:
            ends.append(step.piece.parts(result, step.piece.rows))
        self.calls.add(stepper.calls, step.rows)
        return StepGraph(y, ends)


def _take(whole: Tensor, rows: Tensor | None) -> Tensor:
    return whole if rows is None else whole.index_select(0, rows)


def _put(whole: Tensor, rows: Tensor | None, part: Tensor) -> Tensor:
    return part if rows is None else whole.index_copy(0, rows, part)


def _whole(piece: Piece, parts: Tensor, like: Tensor) -> Tensor:
    """Return the cotangents of a step's parts for all of its rows, (parts, *state)."""
    if not piece.by_row:
        return parts[:, 0]
    if piece.rows is None:
        return parts
    return parts.new_zeros(len(parts), *like.shape).index_copy(1, piece.rows, parts)


CHECKPOINT = Checkpoint()  # the mode of the solver's default
