"""Gradients of a solve: how its output times' states are differentiated.

Each mode takes the problem and gives the run, whose outputs have a gradient to the initial state,
the output times and the tensors in `args`. A new mode is a new entry of `GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from cnf.ode.arguments import take_rows
from cnf.ode.controllers import Tolerance, rms_norm
from cnf.ode.integrate import Dynamics, Run, Settings, Step, integrate
from cnf.ode.step import Stages, advance, dense, end_slope
from cnf.ode.tableaus import TABLEAUS

Gradient = Callable[[Dynamics, Tensor, Tensor, Any, Settings], Run]


def backprop(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Autograd straight through the loop: exact for the discrete solve, differentiable again.

    The memory is that of every evaluation's graph, those of rejected steps let go at once.
    """
    return integrate(f, y0, ts, args, settings)


def checkpoint(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Keep the accepted steps' first states; on the way back replay one step at a time.

    Exact for the discrete solve, with the memory of one state for each step and one step's graph.
    Gradients reach the tensors in `args` and no others: a tensor caught in a closure gets none.
    """
    return _apply(_Checkpoint, _Problem(f, settings), y0, ts, args)


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: on the way back solve for state, adjoint and gradient together.

        da/dt = −aᵀ ∂f/∂y,   dg/dt = −aᵀ ∂f/∂args

    from the last output time to the first, in joint steps (the gradient of the arguments is a sum
    over rows). The memory is constant in the number of steps; the gradient is that of the exact
    solution, up to the tolerance, not that of the discrete one. It reaches the tensors in `args`
    and no others.

    Attributes:
        rtol: Relative tolerance of the way back; that of the forward solve when None.
        atol: Absolute tolerance, alike.
        method: Its method, alike.
        norm: `"state"`: the error norm leaves the gradient of the arguments out, which steers no
            trajectory (the seminorm of Kidger et al. 2021); `"full"`: it does not.

    Source: Chen et al. (2018), Neural ordinary differential equations, appendix B; Kidger, Chen &
    Lyons (2021), "Hey, that's not an ODE": faster ODE adjoints via seminorms.
    """

    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    method: str | None = None
    norm: Literal["state", "full"] = "state"

    def __call__(self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
        """Solve, with this way back."""
        return _apply(_Backsolve, _Problem(f, settings, self), y0, ts, args)


GRADIENTS: dict[str, Gradient] = {
    "backprop": backprop,
    "checkpoint": checkpoint,
    "backsolve": Backsolve(),
}


def _apply(
    function: type[torch.autograd.Function],
    problem: _Problem,
    y0: Tensor,
    ts: Tensor,
    args: Any,
) -> Run:
    """Run an autograd function over the arguments' leaves; a plain solve where none wants it."""
    leaves, problem.spec = tree_flatten(args)
    tensors = [leaf for leaf in (y0, ts, *leaves) if isinstance(leaf, Tensor)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        with torch.no_grad():
            return integrate(problem.f, y0, ts, args, problem.settings)
    ys = function.apply(problem, y0, ts, *leaves)  # type: ignore[no-untyped-call]
    return replace(problem.run, ys=ys)


@dataclass
class _Problem:
    """What goes through the autograd functions that is not a tensor, in both directions."""

    f: Dynamics
    settings: Settings
    backsolve: Backsolve | None = None
    spec: TreeSpec = field(init=False)
    run: Run = field(init=False)


def _forward(
    ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, leaves: tuple[Any, ...], *, record: bool
) -> Tensor:
    args = tree_unflatten(leaves, problem.spec)
    problem.run = integrate(problem.f, y0, ts, args, problem.settings, record=record)
    ctx.problem = problem
    ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.save_for_backward(
        ts,
        None if record else problem.run.ys,
        *(leaf if isinstance(leaf, Tensor) else None for leaf in leaves),
    )
    return problem.run.ys


def _leaves(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """The arguments' leaves, detached, and those of them that want a gradient."""
    _, _, *tensors = ctx.saved_tensors
    leaves = [
        constant if tensor is None else _leaf(tensor, needed)
        for tensor, constant, needed in zip(
            tensors, ctx.constants, ctx.needs_input_grad[3:], strict=True
        )
    ]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return leaves, wanted


def _grads(leaves: list[Any]) -> list[Tensor | None]:
    return [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, *leaves: Any) -> Tensor:
        return _forward(ctx, problem, y0, ts, leaves, record=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        ts = _leaf(ctx.saved_tensors[0], ctx.needs_input_grad[2])
        leaves, wanted = _leaves(ctx)
        wanted = [ts, *wanted] if ts.requires_grad else wanted
        args = tree_unflatten(leaves, ctx.problem.spec)
        adjoint = _sweep(ctx.problem, ts, args, wanted, grad_ys)
        return None, adjoint, ts.grad, *_grads(leaves)


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, *leaves: Any) -> Tensor:
        return _forward(ctx, problem, y0, ts, leaves, record=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        ts, ys = ctx.saved_tensors[:2]
        leaves, wanted = _leaves(ctx)
        args = take_rows(tree_unflatten(leaves, ctx.problem.spec), None)
        back = _Back(ctx.problem, args, wanted, ys[0])
        grad_ts = torch.zeros_like(ts)
        adjoint, gradient = grad_ys[-1], back.nothing
        for i in range(len(ts) - 1, 0, -1):
            grad_ts[i] = (grad_ys[i] * back.slope(ts[i], ys[i])).sum()
            adjoint, gradient = back.solve(ts[[i, i - 1]], ys[i], adjoint, gradient)
            if i == 1:
                grad_ts[0] = -(adjoint * back.slope(ts[0], ys[0])).sum()
            adjoint = adjoint + grad_ys[i - 1]
        back.hand_out(gradient)
        return None, adjoint, grad_ts, *_grads(leaves)


class _Back:
    """The adjoint system of a problem, packed in one vector: state, adjoint, gradient."""

    def __init__(self, problem: _Problem, args: Any, wanted: list[Tensor], y: Tensor) -> None:
        self.f, self.args, self.wanted, self.shape = problem.f, args, wanted, y.shape
        self.sizes = [y.numel(), y.numel(), sum(leaf.numel() for leaf in wanted)]
        self.nothing = y.new_zeros(self.sizes[2])
        options = problem.backsolve
        assert options is not None
        kept = sum(self.sizes[:2])
        forward = problem.settings
        self.settings = replace(
            forward,
            tableau=TABLEAUS[options.method] if options.method else forward.tableau,
            tolerance=Tolerance(
                _plain(options.rtol, forward.tolerance.rtol, y),
                _plain(options.atol, forward.tolerance.atol, y),
                rms_norm if options.norm == "full" else lambda ratio: rms_norm(ratio[:kept]),
            ),
            per_sample=False,
            grid=None,
            stops=None,
            observer=None,
        )

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The forward dynamics, in the time shape that the solve had."""
        return self.f(t, y, self.args)

    def dynamics(self, t: Tensor, packed: Tensor, _: Any) -> Tensor:
        y, adjoint, _gradient = packed.split(self.sizes)
        with torch.enable_grad():
            leaf = _leaf(y.view(self.shape), True)
            slope = self.f(t, leaf, self.args)
            pulled = torch.autograd.grad(
                slope, [leaf, *self.wanted], adjoint.view(self.shape), allow_unused=True
            )
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for part, leaf in zip(pulled, [leaf, *self.wanted], strict=True)
        ]
        return torch.cat([slope.detach().flatten(), *(-part.flatten() for part in parts)])

    def solve(
        self, ts: Tensor, y: Tensor, adjoint: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adjoint and gradient at the second of two times, from those at the first."""
        packed = torch.cat([y.flatten(), adjoint.flatten(), gradient])
        run = integrate(self.dynamics, packed, ts, None, self.settings)
        _, adjoint, gradient = run.ys[-1].split(self.sizes)
        return adjoint.view(self.shape), gradient

    def hand_out(self, gradient: Tensor) -> None:
        """Give every leaf its part of the gradient."""
        parts = gradient.split([leaf.numel() for leaf in self.wanted])
        for leaf, part in zip(self.wanted, parts, strict=True):
            leaf.grad = part.view_as(leaf)


def _plain(chosen: float | Tensor | None, forward: float | Tensor, y: Tensor) -> float | Tensor:
    """A tolerance of the packed vector: components' own tolerances serve state and adjoint."""
    value = forward if chosen is None else chosen
    return float(value.min()) if isinstance(value, Tensor) else value


def _sweep(
    problem: _Problem, ts: Tensor, args: Any, wanted: list[Tensor], grad_ys: Tensor
) -> Tensor:
    """Carry the adjoint from the last output time to the first; gradients gather in `wanted`."""
    adjoint = torch.zeros_like(grad_ys[0])
    for step in reversed(problem.run.steps):
        before = _replay(problem, step, ts, args, wanted, (adjoint, grad_ys))
        adjoint = before if step.rows is None else adjoint.index_copy(0, step.rows, before)
    return adjoint + grad_ys[0]


def _replay(
    problem: _Problem,
    step: Step,
    ts: Tensor,
    args: Any,
    wanted: list[Tensor],
    adjoints: tuple[Tensor, Tensor],
) -> Tensor:
    """Repeat one accepted step under autograd and pull the adjoint of its rows back through it."""
    adjoint, grad_ys = (
        whole if step.rows is None else whole.index_select(axis, step.rows)
        for axis, whole in enumerate(adjoints)
    )
    y = _leaf(step.y, True)
    with torch.enable_grad():
        taken_args = take_rows(args, step.rows)

        def f(t: Tensor, y: Tensor) -> Tensor:
            return problem.f(t, y, taken_args)

        t, h = step.times(ts[0], ts[-1] - ts[0])
        stages = Stages(problem.settings.tableau, y, buffered=False)
        stages.restart(f(t, y))
        taken = advance(f, stages, t, h, y)
        ends, cotangents = [taken.y1], [adjoint]
        inside = None
        for output in step.outputs:
            values = taken.y1
            if output.inside:
                inside = inside or dense(taken, end_slope(f, taken))
                values = inside((ts[output.index] - t) / h)
            rows = slice(None) if output.rows is None else output.rows
            ends.append(values[rows])
            cotangents.append(grad_ys[output.index][rows])
    torch.autograd.backward(ends, cotangents, inputs=[y, *wanted])
    assert y.grad is not None
    return y.grad


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_grad)
