"""Gradients of a solve: how its output times' states are differentiated.

Each mode takes the problem and gives the run and its outputs, stacked over the output times, with a
gradient to the initial state, the output times and the tensors in `args`. A new mode is a new entry
of `GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from cnf.ode.integrate import Dynamics, Run, Settings, Step, advance, integrate

Gradient = Callable[[Dynamics, Tensor, Tensor, Any, Settings], tuple[Run, Tensor]]


def backprop(
    f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings
) -> tuple[Run, Tensor]:
    """Autograd straight through the loop: exact for the discrete solve, differentiable again.

    The memory is that of every evaluation's graph, those of rejected steps let go at once.
    """
    run = integrate(f, y0, ts, args, settings)
    return run, _stack(run, len(ts))


def checkpoint(
    f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings
) -> tuple[Run, Tensor]:
    """Keep the accepted steps' first states; on the way back replay one step at a time.

    Exact for the discrete solve, with the memory of one state for each step and one step's graph.
    Gradients reach the tensors in `args` and no others: a tensor caught in a closure gets none.
    """
    leaves, spec = tree_flatten(args)
    problem = _Problem(f, settings, spec)
    ys = _Checkpoint.apply(problem, y0, ts, *leaves)  # type: ignore[no-untyped-call]
    return problem.run, ys


GRADIENTS: dict[str, Gradient] = {"backprop": backprop, "checkpoint": checkpoint}


@dataclass
class _Problem:
    """What goes through the autograd function that is not a tensor, in both directions."""

    f: Dynamics
    settings: Settings
    spec: TreeSpec
    run: Run = field(init=False)


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, *leaves: Any) -> Tensor:
        args = tree_unflatten(leaves, problem.spec)
        problem.run = integrate(problem.f, y0, ts, args, problem.settings)
        ctx.problem = problem
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(ts, *(leaf if isinstance(leaf, Tensor) else None for leaf in leaves))
        return _stack(problem.run, len(ts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        problem: _Problem = ctx.problem
        ts, *tensors = ctx.saved_tensors
        needs_ts, *needs_leaves = ctx.needs_input_grad[2:]
        ts = _leaf(ts, needs_ts)
        leaves = [
            constant if tensor is None else _leaf(tensor, needed)
            for tensor, constant, needed in zip(tensors, ctx.constants, needs_leaves, strict=True)
        ]
        wanted = [leaf for leaf in (ts, *leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        args = tree_unflatten(leaves, problem.spec)
        adjoint = _sweep(problem, ts, args, wanted, grad_ys)
        grads = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]
        return None, adjoint, ts.grad, *grads


def _sweep(
    problem: _Problem, ts: Tensor, args: Any, wanted: list[Tensor], grad_ys: Tensor
) -> Tensor:
    """Carry the adjoint from the last output time to the first; gradients gather in `wanted`."""
    reached = len(problem.run.outputs) - 1
    adjoint = grad_ys[reached]
    interval = reached - 1
    for step in reversed(problem.run.steps):
        if step.interval >= reached:  # of an interval that a failed solve did not cross
            continue
        if step.interval < interval:
            adjoint = adjoint + grad_ys[interval]
            interval = step.interval
        adjoint = _replay(problem, step, ts, args, wanted, adjoint)
    return adjoint + grad_ys[0] if reached else adjoint


def _replay(
    problem: _Problem, step: Step, ts: Tensor, args: Any, wanted: list[Tensor], adjoint: Tensor
) -> Tensor:
    """Repeat one accepted step under autograd and pull the adjoint back through it."""
    y = _leaf(step.y, True)
    with torch.enable_grad():
        t, h = step.times(ts)
        slope = problem.f(t, y, args)
        end, _ = advance(problem.f, problem.settings.tableau, t, h, y, slope, args)
    torch.autograd.backward(end, adjoint, inputs=[y, *wanted])
    assert y.grad is not None
    return y.grad


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_grad)


def _stack(run: Run, times: int) -> Tensor:
    """The outputs over the output times, NaN where the run did not get."""
    missing = [torch.full_like(run.y, torch.nan)] * (times - len(run.outputs))
    return torch.stack(run.outputs + missing)
