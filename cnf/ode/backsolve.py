"""Gradients by solving the adjoint equation backwards in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
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
from cnf.ode.controllers import Norm, Tolerance, moving_rms_norm, rms_norm
from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import backprop, integrate, substitute_rows
from cnf.ode.options import SolveOptions, between
from cnf.ode.solution import Solution, SolveError
from cnf.ode.step import BoundDynamics, within
from cnf.ode.tableaus import find_tableau


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: a backward solve for state, adjoint and gradient together.

        da/dt = −aᵀ ∂f/∂y,   dg/dt = −aᵀ ∂f/∂args

    from each output time to the one before, of all rows or of each, in joint steps (the gradient of
    the arguments is a sum over rows). The memory is constant in the number of steps; the gradient
    is that of the exact solution, up to the tolerance, not that of the discrete one. It reaches the
    tensors in `args` and no others.

    Attributes:
        rtol: Relative tolerance of the backward solve; that of the forward solve when None.
        atol: Absolute tolerance of the backward solve; that of the forward solve when None.
        method: Method of the backward solve; that of the forward solve when None.
        norm: `"state"`: the error norm leaves out the gradient of the arguments, on which no
            trajectory depends (the seminorm of Kidger et al. 2021); `"full"`: it does not.
        observer: Called for the steps of the backward solve as that of `cnf.ode.solve` is, with
            the state, the adjoint and the gradient of each argument in a tuple.

    Where the forward solve has fixed steps, the backward solve takes the same ones, unless `method`
    is given and estimates its error. A row that failed gets no gradient.

    Raises:
        ValueError: The method or the norm is unknown; when called, the method has no error estimate
            and the forward solve is adaptive, a tolerance is lost in the state's dtype, or rows
            with their own times have jumps or stops.
        SolveError: The backward solve failed.

    Source: Chen et al. (2018), Neural ordinary differential equations, appendix B; Kidger, Chen &
    Lyons (2021), "Hey, that's not an ODE": faster ODE adjoints via seminorms.

    Example:
        >>> from cnf.ode import solve
        >>> rate, mode = torch.tensor(-1.0, requires_grad=True), Backsolve(rtol=1e-6, atol=1e-6)
        >>> ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=mode).ys
        >>> ys[-1].sum().backward()
        >>> print(f"{rate.grad:.4f}")  # d exp(rate) / d rate
        0.3679
    """

    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    method: str | None = None
    norm: Literal["state", "full"] = "state"
    observer: Callable[[str, Tensor, tuple[Tensor, ...], Tensor], None] | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            find_tableau(self.method)
        if self.norm not in ("state", "full"):
            raise ValueError(f"Expected norm to be state or full; got {self.norm!r}")

    def __call__(
        self, f: Dynamics, y0: Tensor, knots: Tensor, args: Any, options: SolveOptions
    ) -> Solution:
        """Solve, with gradients by the continuous adjoint."""
        if self.method and not find_tableau(self.method).adaptive and options.grid is None:
            raise ValueError(
                "Expected a method with an error estimate for the backward pass of an adaptive "
                f"solve; got {self.method!r}"
            )
        times = options.outputs.times if options.outputs else knots[:: len(knots) - 1]
        if times.ndim == 2 and options.jumps is not None:
            raise ValueError(
                "Expected no jumps or stops with output times of each row and gradient "
                "'backsolve'; got some: choose gradient='checkpoint'"
            )
        if not needs_gradient(y0, times, args):
            with torch.no_grad():
                return backprop(f, y0, knots, args, options)
        problem = ODEProblem(f, args, options, self, knots.detach())
        return differentiable_solve(_Backsolve, problem, y0, times)


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: ODEProblem, y0: Tensor, times: Tensor, *tensors: Any) -> Tensor:
        knots = problem.knots
        problem.result = backprop(problem.f, y0, knots, problem.args, problem.options)
        leaves = InputLeaves(problem, times, ctx.needs_input_grad[2:])
        ctx.system = _AdjointSystem(problem, leaves, y0)
        saved = (leaf for leaf in tensors if isinstance(leaf, Tensor))
        ctx.save_for_backward(problem.result.ys, times, *saved)
        return problem.result.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        first, ys = grad_ys[0], ctx.saved_tensors[0]
        failed = ctx.system.failed
        if failed is not None:
            if ctx.system.substitutes is None:
                return None, first, *ctx.system.leaves.grads()
            ys = ys.index_select(1, ctx.system.substitutes)
            grad_ys = grad_ys.masked_fill(rowwise(failed, ys.ndim - 1), 0.0)
        return None, ctx.system.sweep(ys, grad_ys) + first, *ctx.system.leaves.grads()


class _AdjointSystem:
    """The adjoint system of a problem, packed in one row: state, adjoint, gradient."""

    def __init__(self, problem: ODEProblem, leaves: InputLeaves, y: Tensor) -> None:
        assert problem.result is not None
        self.f, self.leaves, self.shape = problem.f, leaves, y.shape
        self.failed = problem.result.failed if problem.result.rows else None
        self.substitutes = None if self.failed is None else substitute_rows(self.failed)
        self.args = take_rows(leaves.args, None)
        self.sizes = [y.numel(), y.numel(), sum(map(_reals, leaves.differentiable))]
        self.forward, self.calls = problem.options, problem.result.stats.backward_counts[0]
        self.knots = problem.knots
        if self.forward.row_step is not None:  # as many steps for all rows
            count = round(float(np.max(1 / self.forward.row_step)))
            steps = count * (len(self.knots) - 1)
            self.knots = torch.arange(steps + 1).to(self.knots) / count
        self.rows: tuple[Tensor, Tensor] | None = None  # start and span of each row's interval
        mode: Backsolve = problem.gradient
        tolerance = self.forward.tolerance
        self.options = replace(
            self.forward,
            tableau=find_tableau(mode.method) if mode.method else self.forward.tableau,
            tolerance=Tolerance(
                _scalar(tolerance.rtol if mode.rtol is None else mode.rtol),
                _scalar(tolerance.atol if mode.atol is None else mode.atol),
                rms_norm if mode.norm == "full" else _state_norm(tolerance.norm, y),
            ),
            per_sample=False,
            first_step=None if self.forward.per_sample else self.forward.first_step,
            grid=None,
            row_step=None,
            stops=None,
            jumps=None,
            observer=None if mode.observer is None else self.observe,
            outputs=None,
        )
        self.observer = mode.observer
        self.fixed = self.forward.grid is not None and not (
            mode.method and self.options.tableau.adaptive
        )
        if not self.fixed:
            self.options.tolerance.check_dtype(y.dtype)

    def sweep(self, ys: Tensor, grad_ys: Tensor) -> Tensor:
        """Return the adjoint at the first output time, and set the gradients of the leaves."""
        ts = self.leaves.times.detach()
        if ts.ndim == 2 and self.substitutes is not None:
            ts = ts.index_select(0, self.substitutes)
        grad_ts = torch.zeros_like(ts)
        adjoint, gradient = grad_ys[-1], ys.new_zeros(self.sizes[2])
        for i in range(len(ys) - 1, 0, -1):
            begin, end = ts[..., i], ts[..., i - 1]
            before = self.inside(end, begin)
            change = grad_ys[i] * before(self.rowwise(begin), ys[i])
            grad_ts[..., i] = (
                change.reshape(len(change), -1).sum(1) if ts.ndim == 2 else change.sum()
            )
            if not begin.equal(end):
                options, interval = self.options_between(begin, end)
                packed = torch.cat([ys[i].flatten(), adjoint.flatten(), gradient])[None]
                result = integrate(self.dynamics, packed, interval, None, options)
                self.calls.add(int(result.stats.evaluations))
                if result.rows and options.grid is None:
                    raise SolveError(result, "In the backward pass: ")
                _, adjoint, gradient = result.ys[-1, 0].split(self.sizes)
                adjoint = adjoint.view(self.shape)
            if i > 1:
                adjoint = adjoint + grad_ys[i - 1]
            elif ts.ndim == 1:
                grad_ts[0] = -(adjoint * before(ts[0], ys[0])).sum()
        self.leaves.times.grad = grad_ts
        for leaf, part in zip(self.leaves.differentiable, self.unpack(gradient), strict=True):
            leaf.grad = part
        return adjoint

    def unpack(self, gradient: Tensor) -> list[Tensor]:
        """Return the gradient of each leaf."""
        leaves = self.leaves.differentiable
        parts = gradient.split([_reals(leaf) for leaf in leaves])
        return [_as_gradient(leaf, part) for leaf, part in zip(leaves, parts, strict=True)]

    def observe(self, kind: str, t: Tensor, packed: Tensor, h: Tensor) -> None:
        """Tell the observer of a step of the backward solve."""
        y, adjoint, gradient = packed[0].split(self.sizes)
        state = (y.view(self.shape), adjoint.view(self.shape), *self.unpack(gradient))
        assert self.observer is not None
        self.observer(kind, t, state, h)

    def options_between(self, begin: Tensor, end: Tensor) -> tuple[SolveOptions, Tensor]:
        """Return the options of the solve from an output time to the one before, and its knots."""
        if begin.ndim:
            return self._options_of_rows(begin, end)
        jumps = _backwards_between(self.forward.jumps, begin, end)
        inner = _backwards_between(self.knots if self.fixed else jumps, begin, end)
        grid = (lambda ts: ts) if self.fixed else None
        interval = torch.stack([begin, end] if inner is None else [begin, *inner, end])
        return replace(self.options, grid=grid, stops=jumps, jumps=jumps), interval

    def _options_of_rows(self, begin: Tensor, end: Tensor) -> tuple[SolveOptions, Tensor]:
        """Return the options of a solve in the time from 0 to 1 within each row's interval."""
        self.rows = self.rowwise(begin), self.rowwise(end - begin)
        spans = (end - begin).abs().double().cpu().numpy()
        with np.errstate(divide="ignore"):
            longest = float(np.min(self.forward.max_step / spans))
        steps = 1
        if self.fixed:
            steps = ceil(float(np.max(spans / self.forward.fixed_step(self.knots))) - 1e-6)
        grid = (lambda ts: ts) if self.fixed else None
        options = replace(self.options, first_step=None, min_step=0.0, max_step=longest, grid=grid)
        return options, torch.linspace(0, 1, max(1, steps) + 1).to(begin)

    def rowwise(self, t: Tensor) -> Tensor:
        """Return the times of rows, as the dynamics get them; a time of all rows as it is."""
        return rowwise(t, len(self.shape)) if t.ndim else t

    def inside(self, begin: Tensor, end: Tensor) -> BoundDynamics:
        """Return the forward dynamics between two output times."""
        return self.slope if self.forward.jumps is None else within(self.slope, begin, end)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the slope of the forward dynamics, with a time of the shape that they expect."""
        if self.forward.per_sample and not t.ndim:
            t = t.expand(len(y), *(1,) * (y.ndim - 1))
        args = self.args
        if self.substitutes is not None:
            args = take_rows(self.leaves.args, self.substitutes)
        return self.f(t, y, args)

    def dynamics(self, t: Tensor, packed: Tensor, _: Any) -> Tensor:
        """Return the slope of state, adjoint and gradient."""
        y, adjoint, _gradient = packed[0].split(self.sizes)
        adjoint, differentiable = adjoint.view(self.shape), self.leaves.differentiable
        if self.rows is not None:
            begin, span = self.rows
            t, adjoint = begin + t * span, span * adjoint
        with torch.enable_grad():
            leaf = as_leaf(y.view(self.shape), True)
            slope = self.slope(t, leaf)
            pulled: tuple[Tensor | None, ...] = (None,) * (1 + len(differentiable))
            if slope.requires_grad:
                pulled = torch.autograd.grad(
                    slope, [leaf, *differentiable], adjoint, allow_unused=True
                )
        if self.rows is not None:
            slope = self.rows[1] * slope
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for part, leaf in zip(pulled, [leaf, *differentiable], strict=True)
        ]
        slopes = (-_as_reals(part).to(packed.dtype) for part in parts)
        return torch.cat([slope.detach().flatten(), *slopes])[None]


def _as_gradient(leaf: Tensor, part: Tensor) -> Tensor:
    """Return the gradient of a leaf from its real numbers."""
    # A copy: real numbers are viewed as complex ones only from an even storage offset.
    part = part.to(leaf.dtype.to_real(), copy=True)
    part = torch.view_as_complex(part.view(-1, 2)) if leaf.is_complex() else part
    return part.view_as(leaf)


def _as_reals(tensor: Tensor) -> Tensor:
    """Return a tensor flattened to real numbers, two for each complex one."""
    flat = tensor.resolve_conj().flatten()
    return torch.view_as_real(flat).flatten() if flat.is_complex() else flat


def _reals(tensor: Tensor) -> int:
    """Return the number of real numbers of a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _backwards_between(times: Tensor | None, begin: Tensor, end: Tensor) -> Tensor | None:
    """Return the times that lie between two others, in reverse order."""
    return None if times is None else between(times, begin, end).flip(0)


def _state_norm(forward: Norm, y: Tensor) -> Norm:
    """Return the norm of the error ratios of state and adjoint, as that of the forward solve."""
    count = 2 * y.numel()
    if forward is not moving_rms_norm:
        return lambda ratio: rms_norm(ratio[:, :count])
    rows = 2 * len(y)
    return lambda ratio: moving_rms_norm(ratio[0, :count].view(rows, -1))


def _scalar(tolerance: float | Tensor) -> float:
    """Return one tolerance for the packed row: the least of the components' above zero."""
    if not isinstance(tolerance, Tensor):
        return tolerance
    above = tolerance[tolerance > 0]
    return float(above.min()) if above.numel() else 0.0


BACKSOLVE = Backsolve()  # the mode with the forward solve's tolerance and method
