"""A call of torchdiffeq's interface: its checked arguments, and the solve that it amounts to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from warnings import warn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.arguments import rowwise
from cnf.ode.options import Gradient
from cnf.ode.solution import Solution
from cnf.ode.solver import solve
from cnf.ode.state_layout import InputError, State, StateLayout
from cnf.ode.step import BoundDynamics
from cnf.ode.tableau import Tableau
from cnf.ode.tableaus import find_tableau
from cnf.ode.torchdiffeq_options import (
    Options,
    adaptive_options,
    callback_observer,
    check_options,
    fixed_grid,
)

Func = Callable[[Any, Any], Any]
AdjointObserver = Callable[[str, Tensor, tuple[Tensor, ...], Tensor], None]


class OdeintInputs:
    """The checked arguments of any method, with the state in the solver's layout."""

    def __init__(
        self, func: Func, y0: State, t: Tensor, rtol: Any, atol: Any, options: Options | None
    ) -> None:
        self.func, self.user_y0 = func, y0
        self.layout = StateLayout.of(y0)
        self.y0 = self.layout.pack(y0)
        _check_times(t)
        device = self.y0.device
        if t.device != device:
            warn(f"t is on {t.device} and y0 on {device}: t is moved to {device}", stacklevel=4)
        self.t = t.to(device)
        self.rtol = self.layout.tolerance("rtol", rtol, self.y0)
        self.atol = self.layout.tolerance("atol", atol, self.y0)
        self.options = dict(options or {})

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the user's slope in the solver's layout."""
        return self.layout.pack(self.func(t, self.layout.unpack(y)))

    def complex(self, packed: Tensor) -> Tensor:
        """Return a state in the solver's layout, as complex numbers where the user has them."""
        return torch.view_as_complex(packed) if self.layout.dtype.is_complex else packed

    def adjoint_observer(
        self, tableau: Tableau, params: tuple[Tensor, ...]
    ) -> AdjointObserver | None:
        """Return an observer of the backward solve that calls the adjoint's callbacks of func."""

        def unpack(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            y, adjoint, *grads = state
            parts = (_like(grad, param) for grad, param in zip(grads, params, strict=True))
            return (y.new_zeros(()), self.complex(y), self.complex(adjoint), *parts)

        return callback_observer(self.func, tableau, unpack, "_adjoint")


class OdeintCall(OdeintInputs):
    """The checked arguments of a Runge-Kutta method."""

    def __init__(
        self,
        func: Func,
        y0: State,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Options | None,
    ) -> None:
        self.tableau = find_tableau(method or "dopri5")
        super().__init__(func, y0, t, rtol, atol, options)
        check_options(self.tableau, self.options)
        self.observer = callback_observer(func, self.tableau, self.layout.unpack)

    def solve(self, gradient: str | Gradient, params: tuple[Tensor, ...] = ()) -> Any:
        """Return the states at the times `t`, with gradients to `params` as well."""
        if len(self.t) == 1:
            return self.layout.unpack(self.y0[None], 1)
        ts, steps = self.t, self.steps(self.t)
        if not self.tableau.adaptive:
            grid = steps["step_size"]
            linear = self.options.get("interp", "linear") == "linear"
            if linear and not set(ts.tolist()) <= set(grid.tolist()):
                ts = grid
        ys = self.solution(self.y0, ts, gradient, params, observer=self.observer, **steps).ys
        ys = ys if ts is self.t else _interpolate_linearly(self.t, ts, ys)
        return self.layout.unpack(ys, len(self.t))

    def steps(self, ts: Tensor) -> dict[str, Any]:
        """Return the arguments of the solver for steps between output times."""
        if self.tableau.adaptive:
            norm = self.layout.norm(self.options.get("norm"))
            return adaptive_options(self.options, ts, norm)
        grid = fixed_grid(self.options, self.func, self.user_y0, ts)
        # A state that is not finite is returned: fixed steps do not fail.
        steps = {"step_size": grid, "max_steps": len(grid), "on_failure": "return"}
        return steps | {"jumps": grid} if self.options.get("perturb") else steps

    def solution(
        self,
        y0: Tensor,
        ts: Tensor,
        gradient: str | Gradient,
        params: tuple[Tensor, ...] = (),
        **steps: Any,
    ) -> Solution:
        """Return the solution in the solver's layout."""
        return solve(
            with_arguments(self.slope, params),
            y0,
            ts,
            tuple(_real_copy(param, y0.dtype) for param in params),
            method=self.tableau.name,
            rtol=self.rtol,
            atol=self.atol,
            gradient=gradient,
            **steps,
        )


class _DynamicsWithArguments(torch.autograd.Function):
    """Dynamics that hold tensors, whose gradients go to copies passed as arguments.

    The solver returns gradients to its arguments alone, so it gets copies of the tensors as
    arguments, while the dynamics use the tensors that they hold.
    """

    @staticmethod
    def forward(
        ctx: Any, f: BoundDynamics, held: tuple[Tensor, ...], t: Tensor, y: Tensor, *args: Tensor
    ) -> Tensor:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            t, y = (
                tensor.detach().requires_grad_(need)
                for tensor, need in zip((t, y), needed, strict=False)
            )
            slope = f(t, y)
        ctx.slope, ctx.inputs = slope, (t, y, *held)
        ctx.dtypes = [tensor.dtype for tensor in (t, y, *args)]
        return slope.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.inputs)
        if ctx.slope.requires_grad:
            needed = [i for i, need in enumerate(ctx.needs_input_grad[2:]) if need]
            inputs = [ctx.inputs[i] for i in needed]
            parts = torch.autograd.grad(ctx.slope, inputs, cotangent, allow_unused=True)
            for i, part in zip(needed, parts, strict=True):
                grads[i] = None if part is None else _real_copy(part, ctx.dtypes[i])
        return None, None, *grads


def with_arguments(
    f: BoundDynamics, held: tuple[Tensor, ...]
) -> Callable[[Tensor, Tensor, Any], Any]:
    """Return `f` for the solver, with copies of the tensors that it holds as arguments."""

    def dynamics(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Any:
        if held and torch.is_grad_enabled():
            return _DynamicsWithArguments.apply(f, held, t, y, *args)  # type: ignore[no-untyped-call]
        return f(t, y)

    return dynamics


def _real_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.to(dtype)


def _check_times(t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise InputError(f"Expected t to be a tensor; got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"Expected t to be floating point; got {t.dtype}")
    gaps = t.detach().diff() if t.ndim == 1 else None
    if gaps is None or not len(t) or not ((gaps > 0).all() or (gaps < 0).all()):
        raise InputError(
            "Expected t to be one-dimensional and strictly increasing or decreasing; "
            f"got {t.tolist()}"
        )


def _interpolate_linearly(ts: Tensor, grid: Tensor, ys: Tensor) -> Tensor:
    """Return the states at the times `ts`, linear between those at the times of a grid."""
    ahead = 1.0 if grid[-1] > grid[0] else -1.0
    after = torch.searchsorted(ahead * grid.detach(), ahead * ts.detach()).clamp(min=1)
    begin, end = grid[after - 1], grid[after]
    theta = rowwise(((ts - begin) / (end - begin)).to(ys.dtype), ys.ndim)
    return torch.lerp(ys[after - 1], ys[after], theta)


def _like(grad: Tensor, param: Tensor) -> Tensor:
    """Return the gradient of a parameter from that of its real copy."""
    grad = grad.to(param.dtype.to_real())
    return torch.view_as_complex(grad) if param.is_complex() else grad
