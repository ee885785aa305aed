"""The solver with torchdiffeq's interface: `odeint` and `odeint_adjoint`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnf.ode.backsolve import Backsolve
from cnf.ode.options import Gradient
from cnf.ode.solver import solve
from cnf.ode.state_layout import InputError, State, StateLayout, is_number
from cnf.ode.step import BoundDynamics
from cnf.ode.tableaus import find_tableau
from cnf.ode.torchdiffeq_options import (
    CALLBACKS,
    Options,
    adaptive_options,
    callback_observer,
    check_options,
    fixed_grid,
    uses_seminorm,
    warn_of_callbacks,
)

Func = Callable[[Any, Any], Any]


def odeint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) from y(t₀) = y0, called as `torchdiffeq.odeint` is.

    Gradients go straight through the solve, to y0, t and whatever tensors `func` holds.

    Args:
        func: Takes a time, a scalar, and a state like y0; returns dy/dt. Where it has methods
            `callback_step`, `callback_accept_step` or `callback_reject_step`, they are called with
            a step's start, the state there and its size, before or after each tried step.
        y0: Initial state: a tensor, real or complex, or a tuple of tensors; of any shapes.
        t: Times t₀ … t_T, strictly increasing or strictly decreasing, floating point.
        rtol: Relative tolerance: a number, a tensor that broadcasts against the state, or for a
            tuple as many of these.
        atol: Absolute tolerance, of the same kinds.
        method: Name of a tableau in `cnf.ode.TABLEAUS`; `"dopri5"` when None.
        options: For adaptive methods `first_step`, `min_step`, `max_step`; `safety`, `ifactor`,
            `dfactor` (the safety factor of the next step's size, its largest and its smallest
            change); `max_num_steps` (on average over the intervals between output times);
            `step_t`, `jump_t` (times that steps end at, and times at which func jumps); `norm`
            (takes a tensor like y0, for a tuple a tuple, and returns the size of the error). For
            methods of fixed steps `step_size` or `grid_constructor` (returns the grid of steps for
            func, y0 and t); without them steps go from each of `t` to the next; `interp`,
            `"linear"` or `"cubic"`, between steps; `perturb`, for a func that jumps at the steps'
            ends. `dtype` is accepted without effect: step control is in float64.

    Returns:
        The states at the times `t`: a tensor of shape (T, *y0.shape), or a tuple of such.

    Raises:
        ValueError: The method, the step size or another option is not as described, or a tolerance
            is lost in y0's dtype, as the default ones are in half precision.
        InputError: y0, t or a tolerance is not as described; it is a `ValueError`, and an
            `AssertionError` as in torchdiffeq.
        TypeError: `t` is not floating point.
        SolveError: The solve failed: the step limit, a step size that underflows, a state or a norm
            that is not finite (an `AssertionError` in torchdiffeq). Fixed steps do not fail.

    Source: R. T. Q. Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> y0, t = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> odeint(lambda t, y: -y, y0, t)[-1]
        tensor([0.3679, 0.7358])
    """
    return _OdeintCall(func, y0, t, rtol, atol, method, options).solve("backprop")


def odeint_adjoint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Options | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Solve as `odeint` does, with gradients by the continuous adjoint.

    Called as `torchdiffeq.odeint_adjoint` is.

    The memory is constant in the number of steps (see `cnf.ode.Backsolve`); with fixed steps and
    linear interpolation at times that no step ends at, it is one state for each step. Gradients
    reach y0, t and `adjoint_params`, leaves or not, and no other tensor that `func` holds.

    Args:
        func: See `odeint`; a module, or `adjoint_params` are given. Its `callback_step_adjoint` and
            the like are not called.
        y0: See `odeint`.
        t: See `odeint`.
        rtol: See `odeint`.
        atol: See `odeint`.
        method: See `odeint`.
        options: See `odeint`.
        adjoint_rtol: Relative tolerance of the backward solve, that of the forward solve when None.
            Of several numbers the least counts.
        adjoint_atol: Absolute tolerance of the backward solve, with the same default.
        adjoint_method: Method of the backward solve, with the same default.
        adjoint_options: `norm="seminorm"` leaves the gradient of the parameters out of the error's
            norm. The steps of the backward solve are controlled like those of the forward one:
            other options have no effect but a warning.
        adjoint_params: The tensors that need a gradient; `tuple(func.parameters())` when None.

    Returns:
        See `odeint`.

    Raises:
        ValueError: See `odeint`; or func is no module and `adjoint_params` are not given, or
            `adjoint_method` differs from `method` and has no `adjoint_options` where there are
            `options`.
        InputError: See `odeint`.
        TypeError: See `odeint`.
        SolveError: See `odeint`; in the backward pass too.

    Source: Chen et al. (2018), Neural ordinary differential equations; Kidger, Chen & Lyons (2021),
    "Hey, that's not an ODE": faster ODE adjoints via seminorms.

    Example:
        >>> rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        >>> y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> ys = odeint_adjoint(lambda t, y: rate * y, y0, t, adjoint_params=(rate,))
        >>> ys[-1].backward()
        >>> print(f"{rate.grad:.6f}")  # d exp(rate) / d rate
        0.367879
    """
    params = _differentiable_params(func, adjoint_params)
    if adjoint_options is None and options is not None and adjoint_method not in (None, method):
        raise ValueError(
            f"Expected adjoint_options with adjoint_method {adjoint_method!r}, which differs from "
            f"method {method!r}; got None: pass adjoint_options={{}} for the defaults"
        )
    call = _OdeintCall(func, y0, t, rtol, atol, method, options)
    gradient = Backsolve(
        _least(adjoint_rtol),
        _least(adjoint_atol),
        adjoint_method and find_tableau(adjoint_method).name,
        "state" if uses_seminorm(adjoint_options, options or {}) else "full",
    )
    warn_of_callbacks(func, [f"{name}_adjoint" for name in CALLBACKS.values()], "odeint_adjoint", 3)
    return call.solve(gradient, params)


class _OdeintCall:
    """The checked arguments of a call, with the state in the solver's layout."""

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
        self.func, self.user_y0 = func, y0
        self.tableau = find_tableau(method or "dopri5")
        self.layout = StateLayout.of(y0)
        self.y0 = self.layout.pack(y0)
        _check_times(t)
        device = self.y0.device
        if t.device != device:
            warn(f"t is on {t.device} and y0 on {device}: t is moved to {device}", stacklevel=3)
        self.t = t.to(device)
        self.rtol = self.layout.tolerance("rtol", rtol, self.y0)
        self.atol = self.layout.tolerance("atol", atol, self.y0)
        self.options = dict(options or {})
        check_options(self.tableau, self.options)
        if not self.tableau.adaptive:
            warn_of_callbacks(func, list(CALLBACKS.values())[1:], self.tableau.name, 4)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the user's slope in the solver's layout."""
        return self.layout.pack(self.func(t, self.layout.unpack(y)))

    def solve(self, gradient: str | Gradient, params: tuple[Tensor, ...] = ()) -> Any:
        """Return the states at the times `t`, with gradients to `params` as well."""
        if len(self.t) == 1:
            return self.layout.unpack(self.y0[None], 1)
        ts = self.t
        if self.tableau.adaptive:
            norm = self.layout.norm(self.options.get("norm"))
            steps = adaptive_options(self.options, self.t, norm)
        else:
            grid = fixed_grid(self.options, self.func, self.user_y0, self.t)
            # A state that is not finite is returned: fixed steps do not fail.
            steps = {"step_size": grid, "max_steps": len(grid), "on_failure": "return"}
            if self.options.get("perturb"):
                steps["jumps"] = grid
            linear = self.options.get("interp", "linear") == "linear"
            if linear and not set(ts.tolist()) <= set(grid.tolist()):
                ts = grid
        ys = solve(
            _with_arguments(self.slope, params),
            self.y0,
            ts,
            tuple(_real_copy(param, self.y0.dtype) for param in params),
            method=self.tableau.name,
            rtol=self.rtol,
            atol=self.atol,
            gradient=gradient,
            observer=callback_observer(self.func, self.tableau, self.layout.unpack),
            **steps,
        ).ys
        ys = ys if ts is self.t else _interpolate_linearly(self.t, ts, ys)
        return self.layout.unpack(ys, len(self.t))


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


def _with_arguments(
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


def _differentiable_params(func: Func, given: Iterable[Tensor] | None) -> tuple[Tensor, ...]:
    """Return the parameters that need a gradient."""
    if given is None:
        if not isinstance(func, nn.Module):
            raise ValueError(
                "Expected func to be a module, or adjoint_params with the tensors that need a "
                f"gradient (without any, `()`); got {type(func).__name__}"
            )
        given = _parameters(func)
    return tuple(param for param in given if param.requires_grad)


def _parameters(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters; in a replica of DataParallel they are plain attributes."""
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    values = [value for part in module.modules() for value in vars(part).values()]
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad]


def _least(tolerance: Any) -> float | None:
    """Return the least number of a tolerance."""
    if tolerance is None or is_number(tolerance):
        return None if tolerance is None else float(tolerance)
    return min(float(torch.as_tensor(part).min()) for part in tolerance)


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
    theta = ((ts - begin) / (end - begin)).to(ys.dtype).view(-1, *(1,) * (ys.ndim - 1))
    return torch.lerp(ys[after - 1], ys[after], theta)
