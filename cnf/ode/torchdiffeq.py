"""The solver with torchdiffeq's interface: `odeint`, `odeint_adjoint` and `odeint_event`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cnf.ode.backsolve import Backsolve
from cnf.ode.state_layout import State, is_number
from cnf.ode.tableaus import find_tableau, known_name
from cnf.ode.torchdiffeq_call import Func, OdeintCall
from cnf.ode.torchdiffeq_events import EventFunction, solve_until_event
from cnf.ode.torchdiffeq_options import (
    Options,
    uses_seminorm,
)
from cnf.ode.torchdiffeq_scipy import SCIPY, ScipyCall


def odeint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: EventFunction | None = None,
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
        method: Name of a tableau in `cnf.ode.TABLEAUS`; `"dopri5"` when None. `"scipy_solver"` is
            SciPy's `solve_ivp`, whose implicit methods are for stiff func; on the CPU in float64,
            and without gradients, which `odeint_adjoint` has.
        options: For adaptive methods `first_step`, `min_step`, `max_step`; `safety`, `ifactor`,
            `dfactor` (the safety factor of the next step's size, its largest and its smallest
            change); `max_num_steps` (on average over the intervals between output times);
            `step_t`, `jump_t` (times that steps end at, and times at which func jumps); `norm`
            (takes a tensor like y0, for a tuple a tuple, and returns the size of the error). For
            methods of fixed steps `step_size` or `grid_constructor` (returns the grid of steps for
            func, y0 and t); without them steps go from each of `t` to the next; `interp`,
            `"linear"` or `"cubic"`, between steps; `perturb`, for a func that jumps at the steps'
            ends. `dtype` is accepted without effect: step control is in float64. For
            `"scipy_solver"` `solver`, the name of SciPy's method, `"LSODA"`, `"BDF"`, `"Radau"` …;
            `first_step`, `max_step`, and for LSODA `min_step`.
        event_fn: Takes a time and a state like y0; returns a tensor. The solve ends where one of
            its numbers first changes its sign; see `odeint_event`. Then `t` has two times, the
            start and one that says in which direction time goes, and fixed steps need `step_size`.

    Returns:
        The states at the times `t`: a tensor of shape (T, *y0.shape), or a tuple of such. With
        `event_fn` the event's time, and the states at the start and at the event.

    Raises:
        ValueError: The method, the step size or another option is not as described, or a tolerance
            is lost in y0's dtype, as the default ones are in half precision.
        InputError: y0, t or a tolerance is not as described; it is a `ValueError`, and an
            `AssertionError` as in torchdiffeq.
        TypeError: `t` is not floating point.
        SolveError: The solve failed: the step limit, a step size that underflows, a state or a norm
            that is not finite (an `AssertionError` in torchdiffeq). Fixed steps do not fail.
        RuntimeError: No event was found, in `max_num_steps` steps (100,000 without the option).

    Source: R. T. Q. Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> y0, t = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> odeint(lambda t, y: -y, y0, t)[-1]
        tensor([0.3679, 0.7358])
    """
    if method == SCIPY:
        _check_no_event(event_fn)
        return ScipyCall(func, y0, t, rtol, atol, options).solve()
    call = OdeintCall(func, y0, t, rtol, atol, method, options)
    return (
        call.solve("backprop")
        if event_fn is None
        else solve_until_event(call, event_fn, "backprop")
    )


def odeint_adjoint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: EventFunction | None = None,
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

    With `method="scipy_solver"` the adjoint is solved by SciPy as well, along the dense output of
    the forward solve, which is kept: a stiff equation cannot be solved backwards.

    Args:
        func: See `odeint`; a module, or `adjoint_params` are given. Where it has methods
            `callback_step_adjoint`, `callback_accept_step_adjoint` or
            `callback_reject_step_adjoint`, they are called for the steps of the backward solve,
            with the state in a tuple: zero, y (of a tuple all numbers in one vector), the adjoint,
            and the gradient of each parameter. (The zero stands for the gradient of the time, which
            is part of torchdiffeq's backward solve.)
        y0: See `odeint`.
        t: See `odeint`.
        rtol: See `odeint`.
        atol: See `odeint`.
        method: See `odeint`.
        options: See `odeint`.
        event_fn: See `odeint`.
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
        RuntimeError: See `odeint`.

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
    if method == SCIPY:
        _check_no_event(event_fn)
        known_name("adjoint_method", adjoint_method or SCIPY, (SCIPY,))
        scipy = ScipyCall(func, y0, t, rtol, atol, options)
        return scipy.solve_adjoint(
            params, _least(adjoint_rtol), _least(adjoint_atol), adjoint_options
        )
    call = OdeintCall(func, y0, t, rtol, atol, method, options)
    tableau = find_tableau(adjoint_method) if adjoint_method else call.tableau
    gradient = Backsolve(
        _least(adjoint_rtol),
        _least(adjoint_atol),
        tableau.name if adjoint_method or event_fn else None,
        "state" if uses_seminorm(adjoint_options, options or {}) else "full",
        call.adjoint_observer(tableau, params),
    )
    if event_fn is not None:
        return solve_until_event(call, event_fn, gradient, params)
    return call.solve(gradient, params)


def odeint_event(
    func: Func,
    y0: State,
    t0: Tensor,
    *,
    event_fn: EventFunction,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **keywords: Any,
) -> Any:
    """Solve until an event, called as `torchdiffeq.odeint_event` is.

    Gradients reach y0, t0, func's tensors as those of `odeint_interface` do, and the tensors that
    `event_fn` holds; they include how the event's time depends on all of these. (So do those of
    `odeint` with `event_fn` here, where torchdiffeq's hold the time fixed.)

    Args:
        func: See `odeint`.
        y0: See `odeint`.
        t0: The first time, a tensor of one number.
        event_fn: Takes a time and a state like y0; returns a tensor. The solve ends where one of
            its numbers first changes its sign, as seen at the ends of steps: an event that comes
            and goes within one step may be missed, unless `max_step` forbids such steps.
        reverse_time: Whether time goes backwards.
        odeint_interface: `odeint` or `odeint_adjoint`.
        **keywords: Further arguments of the interface.

    Returns:
        The event's time, a scalar, and the states at t0 and at the event: a tensor of shape
        (2, *y0.shape), or a tuple of such.

    Raises:
        ValueError: See `odeint`.
        RuntimeError: See `odeint`.

    Source: Chen, Amos & Nickel (2021), Learning neural event functions for ordinary differential
    equations.

    Example:
        >>> height = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
        >>> y0, t0 = torch.stack([height, torch.zeros_like(height)]), height.new_zeros(())
        >>> def fall(t, y):
        ...     return torch.stack([y[1], y.new_tensor(-9.81)])
        >>> time, states = odeint_event(fall, y0, t0, event_fn=lambda t, y: y[0])
        >>> time.backward()
        >>> print(f"{time:.6f} {height.grad:.6f}")  # √(2h/g) and its derivative 1/√(2gh)
        1.009638 0.100964
    """
    start = t0.reshape(1)
    ahead = -1.0 if reverse_time else 1.0
    t = torch.cat([start, start.detach() + ahead])
    return odeint_interface(func, y0, t, event_fn=event_fn, **keywords)


def _check_no_event(event_fn: EventFunction | None) -> None:
    if event_fn is not None:
        raise ValueError(
            f"Expected a Runge-Kutta method with event_fn; got {SCIPY!r}: pass dopri5 or another "
            "name in cnf.ode.TABLEAUS"
        )


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
