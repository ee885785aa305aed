"""Gradients by solving the adjoint equation backwards in time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.arguments import take_rows
from cnf.ode.autograd_function import Leaves, Problem, as_leaf, differentiable
from cnf.ode.controllers import Tolerance, rms_norm
from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import Run, integrate, stand_in
from cnf.ode.settings import Settings
from cnf.ode.solution import SolveError
from cnf.ode.step import BoundDynamics, within
from cnf.ode.tableaus import find_tableau


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

    Where the forward solve has fixed steps, the way back goes through the same times, unless it has
    a method of its own that estimates its error. A row that failed gets no gradient.

    Raises:
        ValueError: The method or the norm is unknown; when called, the method has no error estimate
            and the forward solve chose its steps, or a tolerance is lost in the state's dtype.
        SolveError: On the way back, which fails as any solve may.

    Source: Chen et al. (2018), Neural ordinary differential equations, appendix B; Kidger, Chen &
    Lyons (2021), "Hey, that's not an ODE": faster ODE adjoints via seminorms.

    Example:
        >>> from cnf.ode import solve
        >>> rate, back = torch.tensor(-1.0, requires_grad=True), Backsolve(rtol=1e-6, atol=1e-6)
        >>> ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=back).ys
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

    def __call__(self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
        """Solve, with this way back."""
        if self.method and not find_tableau(self.method).adaptive and settings.grid is None:
            raise ValueError(
                f"Expected a method with an error estimate for the way back of an adaptive solve; "
                f"got {self.method!r}"
            )
        return differentiable(_Backsolve, Problem(f, args, settings, self), y0, ts)


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, y0: Tensor, ts: Tensor, *tensors: Any) -> Tensor:
        problem.run = integrate(problem.f, y0, ts, problem.args, problem.settings)
        ctx.back = _Back(problem, Leaves(problem, ts, ctx.needs_input_grad[2:]), y0)
        saved = (leaf for leaf in tensors if isinstance(leaf, Tensor))
        ctx.save_for_backward(problem.run.ys, ts, *saved)
        return problem.run.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        first, ys = grad_ys[0], ctx.saved_tensors[0]
        failed = ctx.back.failed
        if failed is not None:
            chosen = stand_in(failed)
            if chosen is None:
                return None, first, *ctx.back.leaves.grads()
            ys = ys.index_select(1, chosen)
            grad_ys = grad_ys.masked_fill(failed.view(-1, *(1,) * (ys.ndim - 2)), 0.0)
        return None, ctx.back.sweep(ys, grad_ys) + first, *ctx.back.leaves.grads()


class _Back:
    """The adjoint system of a problem, packed in one row: state, adjoint, gradient."""

    def __init__(self, problem: Problem, leaves: Leaves, y: Tensor) -> None:
        assert problem.run is not None
        self.f, self.leaves, self.shape = problem.f, leaves, y.shape
        self.failed = problem.run.fates.failed if problem.run.rows else None
        chosen = None if self.failed is None else stand_in(self.failed)
        self.args = take_rows(leaves.args, chosen)
        self.sizes = [y.numel(), y.numel(), sum(map(_reals, leaves.wanted))]
        self.forward, self.tally = problem.settings, problem.run.stats.tallies[0]
        mode: Backsolve = problem.mode
        kept = sum(self.sizes[:2])
        tolerance = self.forward.tolerance
        self.settings = replace(
            self.forward,
            tableau=find_tableau(mode.method) if mode.method else self.forward.tableau,
            tolerance=Tolerance(
                _plain(tolerance.rtol if mode.rtol is None else mode.rtol),
                _plain(tolerance.atol if mode.atol is None else mode.atol),
                rms_norm if mode.norm == "full" else lambda ratio: rms_norm(ratio[:, :kept]),
            ),
            per_sample=False,
            grid=None,
            stops=None,
            jumps=None,
            observer=None,
        )
        self.fixed = self.forward.grid is not None and not (
            mode.method and self.settings.tableau.adaptive
        )
        if not self.fixed:
            self.settings.tolerance.check_dtype(y.dtype)

    def sweep(self, ys: Tensor, grad_ys: Tensor) -> Tensor:
        """Carry the adjoint from the last output time to the first; the leaves gather theirs."""
        ts = self.leaves.ts.detach()
        knots = self.forward.knots(ts) if self.fixed else None
        grad_ts = torch.zeros_like(ts)
        adjoint, gradient = grad_ys[-1], ys.new_zeros(self.sizes[2])
        for i in range(len(ts) - 1, 0, -1):
            before = self.inside(ts[i - 1], ts[i])
            grad_ts[i] = (grad_ys[i] * before(ts[i], ys[i])).sum()
            settings = self.settings_between(ts[i], ts[i - 1], knots)
            packed = torch.cat([ys[i].flatten(), adjoint.flatten(), gradient])[None]
            run = integrate(self.dynamics, packed, ts[[i, i - 1]], None, settings)
            self.tally.add(int(run.stats.evaluations))
            if run.rows and settings.grid is None:
                raise SolveError(run.solution(ts[[i, i - 1]]), "On the way back: ")
            _, adjoint, gradient = run.ys[-1, 0].split(self.sizes)
            adjoint = adjoint.view(self.shape)
            if i == 1:
                grad_ts[0] = -(adjoint * before(ts[0], ys[0])).sum()
            else:
                adjoint = adjoint + grad_ys[i - 1]
        self.leaves.ts.grad = grad_ts
        parts = gradient.split([_reals(leaf) for leaf in self.leaves.wanted])
        for leaf, part in zip(self.leaves.wanted, parts, strict=True):
            # A copy: real numbers are viewed as complex ones only from an even place of a storage.
            part = part.to(leaf.dtype.to_real(), copy=True)
            part = torch.view_as_complex(part.view(-1, 2)) if leaf.is_complex() else part
            leaf.grad = part.view_as(leaf)
        return adjoint

    def settings_between(self, begin: Tensor, end: Tensor, knots: Tensor | None) -> Settings:
        """The settings of a way from one time back to another."""
        jumps = _inner(self.forward.jumps, begin, end)
        inner = _inner(knots, begin, end)
        grid = None if inner is None else lambda ts: torch.cat([ts[:1], inner, ts[-1:]])
        return replace(self.settings, grid=grid, stops=jumps, jumps=jumps)

    def inside(self, begin: Tensor, end: Tensor) -> BoundDynamics:
        """The forward dynamics between two output times."""
        return self.slope if self.forward.jumps is None else within(self.slope, begin, end)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The forward dynamics, with a time of the shape that these have."""
        if self.forward.per_sample:
            t = t.expand(len(y), *(1,) * (y.ndim - 1))
        return self.f(t, y, self.args)

    def dynamics(self, t: Tensor, packed: Tensor, _: Any) -> Tensor:
        """The slope of state, adjoint and gradient."""
        y, adjoint, _gradient = packed[0].split(self.sizes)
        wanted = self.leaves.wanted
        with torch.enable_grad():
            leaf = as_leaf(y.view(self.shape), True)
            slope = self.slope(t, leaf)
            pulled: tuple[Tensor | None, ...] = (None,) * (1 + len(wanted))
            if slope.requires_grad:
                pulled = torch.autograd.grad(
                    slope, [leaf, *wanted], adjoint.view(self.shape), allow_unused=True
                )
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for part, leaf in zip(pulled, [leaf, *wanted], strict=True)
        ]
        back = (-_as_reals(part).to(packed.dtype) for part in parts)
        return torch.cat([slope.detach().flatten(), *back])[None]


def _as_reals(tensor: Tensor) -> Tensor:
    """Flatten a tensor to real numbers, two for each complex one."""
    flat = tensor.resolve_conj().flatten()
    return torch.view_as_real(flat).flatten() if flat.is_complex() else flat


def _reals(tensor: Tensor) -> int:
    """Count the real numbers of a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _inner(times: Tensor | None, begin: Tensor, end: Tensor) -> Tensor | None:
    """Those of the times that lie between two others, backwards."""
    if times is None:
        return None
    low, high = torch.minimum(begin, end), torch.maximum(begin, end)
    return times[(times > low) & (times < high)].flip(0)


def _plain(tolerance: float | Tensor) -> float:
    """A tolerance for all of the packed row: the least of the components' own above zero."""
    if not isinstance(tolerance, Tensor):
        return tolerance
    above = tolerance[tolerance > 0]
    return float(above.min()) if above.numel() else 0.0
