"""Gradients by solving the adjoint equation backwards in time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.arguments import take_rows
from cnf.ode.autograd_function import InputLeaves, ODEProblem, as_leaf, differentiable_solve
from cnf.ode.controllers import Tolerance, rms_norm
from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import integrate, substitute_rows
from cnf.ode.options import SolveOptions
from cnf.ode.solution import Solution, SolveError
from cnf.ode.step import BoundDynamics, within
from cnf.ode.tableaus import find_tableau


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: a backward solve for state, adjoint and gradient together.

        da/dt = −aᵀ ∂f/∂y,   dg/dt = −aᵀ ∂f/∂args

    from the last output time to the first, in joint steps (the gradient of the arguments is a sum
    over rows). The memory is constant in the number of steps; the gradient is that of the exact
    solution, up to the tolerance, not that of the discrete one. It reaches the tensors in `args`
    and no others.

    Attributes:
        rtol: Relative tolerance of the backward solve; that of the forward solve when None.
        atol: Absolute tolerance of the backward solve; that of the forward solve when None.
        method: Method of the backward solve; that of the forward solve when None.
        norm: `"state"`: the error norm leaves out the gradient of the arguments, on which no
            trajectory depends (the seminorm of Kidger et al. 2021); `"full"`: it does not.

    Where the forward solve has fixed steps, the backward solve takes the same ones, unless `method`
    is given and estimates its error. A row that failed gets no gradient.

    Raises:
        ValueError: The method or the norm is unknown; when called, the method has no error estimate
            and the forward solve is adaptive, or a tolerance is lost in the state's dtype.
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

    def __post_init__(self) -> None:
        if self.method is not None:
            find_tableau(self.method)
        if self.norm not in ("state", "full"):
            raise ValueError(f"Expected norm to be state or full; got {self.norm!r}")

    def __call__(
        self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, options: SolveOptions
    ) -> Solution:
        """Solve, with gradients by the continuous adjoint."""
        if self.method and not find_tableau(self.method).adaptive and options.grid is None:
            raise ValueError(
                "Expected a method with an error estimate for the backward pass of an adaptive "
                f"solve; got {self.method!r}"
            )
        return differentiable_solve(_Backsolve, ODEProblem(f, args, options, self), y0, ts)


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: ODEProblem, y0: Tensor, ts: Tensor, *tensors: Any) -> Tensor:
        problem.result = integrate(problem.f, y0, ts, problem.args, problem.options)
        leaves = InputLeaves(problem, ts, ctx.needs_input_grad[2:])
        ctx.system = _AdjointSystem(problem, leaves, y0)
        saved = (leaf for leaf in tensors if isinstance(leaf, Tensor))
        ctx.save_for_backward(problem.result.ys, ts, *saved)
        return problem.result.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        first, ys = grad_ys[0], ctx.saved_tensors[0]
        failed = ctx.system.failed
        if failed is not None:
            substitutes = substitute_rows(failed)
            if substitutes is None:
                return None, first, *ctx.system.leaves.grads()
            ys = ys.index_select(1, substitutes)
            grad_ys = grad_ys.masked_fill(failed.view(-1, *(1,) * (ys.ndim - 2)), 0.0)
        return None, ctx.system.sweep(ys, grad_ys) + first, *ctx.system.leaves.grads()


class _AdjointSystem:
    """The adjoint system of a problem, packed in one row: state, adjoint, gradient."""

    def __init__(self, problem: ODEProblem, leaves: InputLeaves, y: Tensor) -> None:
        assert problem.result is not None
        self.f, self.leaves, self.shape = problem.f, leaves, y.shape
        self.failed = problem.result.failed if problem.result.rows else None
        substitutes = None if self.failed is None else substitute_rows(self.failed)
        self.args = take_rows(leaves.args, substitutes)
        self.sizes = [y.numel(), y.numel(), sum(map(_reals, leaves.differentiable))]
        self.forward, self.calls = problem.options, problem.result.stats.backward_counts[0]
        mode: Backsolve = problem.gradient
        steering = sum(self.sizes[:2])
        tolerance = self.forward.tolerance
        self.options = replace(
            self.forward,
            tableau=find_tableau(mode.method) if mode.method else self.forward.tableau,
            tolerance=Tolerance(
                _scalar(tolerance.rtol if mode.rtol is None else mode.rtol),
                _scalar(tolerance.atol if mode.atol is None else mode.atol),
                rms_norm if mode.norm == "full" else lambda ratio: rms_norm(ratio[:, :steering]),
            ),
            per_sample=False,
            grid=None,
            stops=None,
            jumps=None,
            observer=None,
        )
        self.fixed = self.forward.grid is not None and not (
            mode.method and self.options.tableau.adaptive
        )
        if not self.fixed:
            self.options.tolerance.check_dtype(y.dtype)

    def sweep(self, ys: Tensor, grad_ys: Tensor) -> Tensor:
        """Return the adjoint at the first output time, and set the gradients of the leaves."""
        ts = self.leaves.ts.detach()
        knots = self.forward.knots(ts) if self.fixed else None
        grad_ts = torch.zeros_like(ts)
        adjoint, gradient = grad_ys[-1], ys.new_zeros(self.sizes[2])
        for i in range(len(ts) - 1, 0, -1):
            before = self.inside(ts[i - 1], ts[i])
            grad_ts[i] = (grad_ys[i] * before(ts[i], ys[i])).sum()
            options = self.options_between(ts[i], ts[i - 1], knots)
            packed = torch.cat([ys[i].flatten(), adjoint.flatten(), gradient])[None]
            result = integrate(self.dynamics, packed, ts[[i, i - 1]], None, options)
            self.calls.add(int(result.stats.evaluations))
            if result.rows and options.grid is None:
                raise SolveError(result, "In the backward pass: ")
            _, adjoint, gradient = result.ys[-1, 0].split(self.sizes)
            adjoint = adjoint.view(self.shape)
            if i == 1:
                grad_ts[0] = -(adjoint * before(ts[0], ys[0])).sum()
            else:
                adjoint = adjoint + grad_ys[i - 1]
        self.leaves.ts.grad = grad_ts
        parts = gradient.split([_reals(leaf) for leaf in self.leaves.differentiable])
        for leaf, part in zip(self.leaves.differentiable, parts, strict=True):
            # A copy: real numbers are viewed as complex ones only from an even storage offset.
            part = part.to(leaf.dtype.to_real(), copy=True)
            part = torch.view_as_complex(part.view(-1, 2)) if leaf.is_complex() else part
            leaf.grad = part.view_as(leaf)
        return adjoint

    def options_between(self, begin: Tensor, end: Tensor, knots: Tensor | None) -> SolveOptions:
        """Return the options of the backward solve from one output time to the one before."""
        jumps = _backwards_between(self.forward.jumps, begin, end)
        inner = _backwards_between(knots, begin, end)
        grid = None if inner is None else lambda ts: torch.cat([ts[:1], inner, ts[-1:]])
        return replace(self.options, grid=grid, stops=jumps, jumps=jumps)

    def inside(self, begin: Tensor, end: Tensor) -> BoundDynamics:
        """Return the forward dynamics between two output times."""
        return self.slope if self.forward.jumps is None else within(self.slope, begin, end)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the slope of the forward dynamics, with a time of the shape that they expect."""
        if self.forward.per_sample:
            t = t.expand(len(y), *(1,) * (y.ndim - 1))
        return self.f(t, y, self.args)

    def dynamics(self, t: Tensor, packed: Tensor, _: Any) -> Tensor:
        """Return the slope of state, adjoint and gradient."""
        y, adjoint, _gradient = packed[0].split(self.sizes)
        differentiable = self.leaves.differentiable
        with torch.enable_grad():
            leaf = as_leaf(y.view(self.shape), True)
            slope = self.slope(t, leaf)
            pulled: tuple[Tensor | None, ...] = (None,) * (1 + len(differentiable))
            if slope.requires_grad:
                pulled = torch.autograd.grad(
                    slope, [leaf, *differentiable], adjoint.view(self.shape), allow_unused=True
                )
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for part, leaf in zip(pulled, [leaf, *differentiable], strict=True)
        ]
        slopes = (-_as_reals(part).to(packed.dtype) for part in parts)
        return torch.cat([slope.detach().flatten(), *slopes])[None]


def _as_reals(tensor: Tensor) -> Tensor:
    """Return a tensor flattened to real numbers, two for each complex one."""
    flat = tensor.resolve_conj().flatten()
    return torch.view_as_real(flat).flatten() if flat.is_complex() else flat


def _reals(tensor: Tensor) -> int:
    """Return the number of real numbers of a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _backwards_between(times: Tensor | None, begin: Tensor, end: Tensor) -> Tensor | None:
    """Return the times that lie between two others, in reverse order."""
    if times is None:
        return None
    low, high = torch.minimum(begin, end), torch.maximum(begin, end)
    return times[(times > low) & (times < high)].flip(0)


def _scalar(tolerance: float | Tensor) -> float:
    """Return one tolerance for the packed row: the least of the components' above zero."""
    if not isinstance(tolerance, Tensor):
        return tolerance
    above = tolerance[tolerance > 0]
    return float(above.min()) if above.numel() else 0.0


BACKSOLVE = Backsolve()  # the mode with the forward solve's tolerance and method
