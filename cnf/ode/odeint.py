"""The solver as users of torchdiffeq know it: `odeint` and `odeint_adjoint`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnf.ode.backsolve import Backsolve
from cnf.ode.controllers import PIController
from cnf.ode.form import Form, InputError, State, is_number
from cnf.ode.gradients import Gradient
from cnf.ode.settings import Observer, snapped
from cnf.ode.solve import even_steps, solve
from cnf.ode.step import BoundDynamics
from cnf.ode.tableaus import Tableau, find_tableau

Func = Callable[[Any, Any], Any]
Options = Mapping[str, Any]

# The options that methods with adaptive and with fixed steps take.
ADAPTIVE = {"first_step", "min_step", "max_step", "max_num_steps", "safety", "ifactor", "dfactor"}
ADAPTIVE |= {"norm", "step_t", "jump_t", "dtype"}
FIXED = {"step_size", "grid_constructor", "perturb", "interp", "norm"}

CALLBACKS = {
    "step": "callback_step",
    "accept": "callback_accept_step",
    "reject": "callback_reject_step",
}


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
        func: Takes a time, a scalar, and a state like y0; gives dy/dt. Where it has methods
            `callback_step`, `callback_accept_step` or `callback_reject_step`, they are called with
            a step's start, the state there and its size: before each step tried, and after it.
        y0: Initial state: a tensor, real or complex, or a tuple of tensors; of any shapes.
        t: Times t₀ … t_T, strictly increasing or strictly decreasing, floating point.
        rtol: Relative tolerance: a number, a tensor that broadcasts against the state, or for a
            tuple as many of these.
        atol: Absolute tolerance, alike.
        method: Name of a tableau in `cnf.ode.TABLEAUS`; `"dopri5"` when None.
        options: For adaptive methods `first_step`, `min_step`, `max_step`; `safety`, `ifactor`,
            `dfactor` (the safety factor of the next step's size, the most that it grows and
            shrinks by); `max_num_steps` (on the average of the intervals between output times);
            `step_t`, `jump_t` (times that steps end at, and where func jumps as well); `norm`
            (takes a tensor like y0, for a tuple a tuple, and gives the size of the error). For
            methods of fixed steps `step_size` or `grid_constructor` (gives the grid of steps from
            func, y0 and t); without them steps go from each of `t` to the next; `interp`,
            `"linear"` or `"cubic"`, between steps; `perturb`, for a func that jumps at the steps'
            ends. `dtype` is accepted and changes nothing: the control of the steps is in float64.

    Returns:
        The states at the times `t`: a tensor of shape (T, *y0.shape), or a tuple of such.

    Raises:
        ValueError: The method, the step size or another option is not as described, or a tolerance
            is lost in y0's dtype, as the default ones are in half precision.
        InputError: y0, t or a tolerance is not as described; it is a `ValueError`, and an
            `AssertionError` as in torchdiffeq.
        TypeError: `t` is not floating point.
        SolveError: The solve failed: the limit of steps, a step size that underflows, a state or a
            norm that is not finite (an `AssertionError` in torchdiffeq). Fixed steps do not fail.

    Source: R. T. Q. Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> y0, t = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> odeint(lambda t, y: -y, y0, t)[-1]
        tensor([0.3679, 0.7358])
    """
    problem = _Problem.of(func, y0, t, rtol, atol, method, options)
    return problem.form.unpack(problem.solve("backprop"), len(t))


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
    """As `odeint`, with gradients by the continuous adjoint: `torchdiffeq.odeint_adjoint`.

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
        adjoint_rtol: Relative tolerance of the way back, that of the forward solve when None. Of
            several numbers the least counts.
        adjoint_atol: Absolute tolerance of it, alike.
        adjoint_method: Method of the way back, alike.
        adjoint_options: `norm="seminorm"` leaves the gradient of the parameters out of the error's
            norm. Nothing else can be chosen for the way back: its steps are controlled as those
            forward, and other options are warned of.
        adjoint_params: The tensors that want a gradient; `tuple(func.parameters())` when None.

    Returns:
        See `odeint`.

    Raises:
        ValueError: See `odeint`; or there are no parameters to be found, or `adjoint_method` is
            another method than the forward one and its options are not given.
        InputError: See `odeint`.
        TypeError: See `odeint`.
        SolveError: See `odeint`; on the way back, too.

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
    params = _wanting(func, adjoint_params)
    if adjoint_options is None and options is not None and adjoint_method not in (None, method):
        raise ValueError(
            f"Expected adjoint_options beside options and adjoint_method {adjoint_method!r}, "
            f"another method than {method!r}; got None"
        )
    problem = _Problem.of(func, y0, t, rtol, atol, method, options)
    gradient = Backsolve(
        _least(adjoint_rtol),
        _least(adjoint_atol),
        adjoint_method and find_tableau(adjoint_method).name,
        "state" if _seminorm(adjoint_options, options or {}) else "full",
    )
    _warn_of_callbacks(
        func, [f"{name}_adjoint" for name in CALLBACKS.values()], "odeint_adjoint", 3
    )
    return problem.form.unpack(problem.solve(gradient, params), len(t))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What both functions are called with, checked, and the state in the solver's form."""

    func: Func
    given_y0: State
    form: Form
    y0: Tensor
    t: Tensor
    rtol: float | Tensor
    atol: float | Tensor
    tableau: Tableau
    options: Options

    @staticmethod
    def of(
        func: Func,
        y0: State,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Options | None,
    ) -> _Problem:
        tableau = find_tableau(method or "dopri5")
        form = Form.of(y0)
        packed = form.pack(y0)
        _check_times(t)
        if t.device != packed.device:
            warn(f"t is on {t.device} and y0 on {packed.device}: t is moved there", stacklevel=3)
            t = t.to(packed.device)
        tolerances = form.tolerance("rtol", rtol, packed), form.tolerance("atol", atol, packed)
        options = dict(options or {})
        _check_options(tableau, options)
        if not tableau.adaptive:
            _warn_of_callbacks(func, list(CALLBACKS.values())[1:], tableau.name, 4)
        return _Problem(func, y0, form, packed, t, *tolerances, tableau, options)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The user's dynamics in the solver's form."""
        return self.form.pack(self.func(t, self.form.unpack(y)))

    def solve(self, gradient: str | Gradient, params: tuple[Tensor, ...] = ()) -> Tensor:
        """The states at the times `t` by the solver, with gradients to `params` as well."""
        if len(self.t) == 1:
            return self.y0[None]
        ts = self.t
        if self.tableau.adaptive:
            steps = self.adaptive()
        else:
            grid = self.grid()
            # A state that is not finite is handed out: fixed steps do not fail.
            steps = {"step_size": grid, "max_steps": len(grid), "on_failure": "return"}
            if self.options.get("perturb"):
                steps["jumps"] = grid
            if self.options.get("interp", "linear") == "linear" and not _contains(grid, ts):
                ts = grid
        ys = solve(
            _rerouted(self.slope, params),
            self.y0,
            ts,
            tuple(_real_copy(param, self.y0.dtype) for param in params),
            method=self.tableau.name,
            rtol=self.rtol,
            atol=self.atol,
            gradient=gradient,
            observer=self.observer(),
            **steps,
        ).ys
        return ys if ts is self.t else _between(self.t, ts, ys)

    def adaptive(self) -> dict[str, Any]:
        """The solver's settings of adaptive steps by the options."""
        options = self.options
        first_step = options.get("first_step")
        settings = {
            "norm": self.form.norm(options.get("norm")),
            "controller": PIController(
                safety=float(options.get("safety", 0.9)),
                factor_min=float(options.get("dfactor", 0.2)),
                factor_max=float(options.get("ifactor", 10.0)),
                beta=0.0,
            ),
            "first_step": None if first_step is None else float(first_step),
            "min_step": float(options.get("min_step", 0.0)),
            "max_step": float(options.get("max_step", inf)),
            "max_steps": int(options.get("max_num_steps", 2**31 - 1)) * (len(self.t) - 1),
        }
        return settings | _stops(options, self.t)

    def grid(self) -> Tensor:
        """The times of fixed steps."""
        constructor, size = self.options.get("grid_constructor"), self.options.get("step_size")
        begin, end = self.t[0], self.t[-1]
        if constructor is not None:
            grid: Tensor = constructor(self.func, self.given_y0, self.t)
            if not (grid[0] == begin and grid[-1] == end):
                raise InputError(
                    f"Expected the grid to go from {begin.item():g} to {end.item():g}; "
                    f"got {grid.tolist()}"
                )
            return snapped(grid, self.t)
        if size is None:
            return self.t
        return even_steps(float(size), self.t)(self.t)

    def observer(self) -> Observer | None:
        """What calls the callbacks that func has."""
        kinds = CALLBACKS if self.tableau.adaptive else {"step": CALLBACKS["step"]}
        found = {kind: getattr(self.func, name, None) for kind, name in kinds.items()}
        if not any(found.values()):
            return None

        def observe(kind: str, t: Tensor, y: Tensor, h: Tensor) -> None:
            callback = found.get(kind)
            if callback is not None:
                callback(t, self.form.unpack(y), h.abs())

        return observe


class _Rerouted(torch.autograd.Function):
    """Dynamics that hold tensors, with the gradients of these handed to others in their stead.

    The solver gives a gradient to its arguments alone, so it gets the tensors as arguments; the
    dynamics go on using their own.
    """

    @staticmethod
    def forward(
        ctx: Any, f: BoundDynamics, held: tuple[Tensor, ...], t: Tensor, y: Tensor, *args: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            t, y = (
                tensor.detach().requires_grad_(want)
                for tensor, want in zip((t, y), wanted, strict=False)
            )
            slope = f(t, y)
        ctx.slope = slope
        ctx.inputs = (t, y, *held)
        ctx.like = (t, y, *args)
        return slope.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [
            i for i, want in enumerate(ctx.needs_input_grad[2:]) if want and ctx.slope.requires_grad
        ]
        inputs = [ctx.inputs[i] for i in wanted]
        found: list[Tensor | None] = [None] * len(ctx.inputs)
        if inputs:
            parts = torch.autograd.grad(ctx.slope, inputs, cotangent, allow_unused=True)
            for i, part in zip(wanted, parts, strict=True):
                found[i] = None if part is None else _real_copy(part, ctx.like[i].dtype)
        return None, None, *found


def _rerouted(f: BoundDynamics, held: tuple[Tensor, ...]) -> Callable[[Tensor, Tensor, Any], Any]:
    """`f` as the solver takes it, with copies of the tensors that it holds as arguments."""

    def dynamics(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Any:
        if held and torch.is_grad_enabled():
            return _Rerouted.apply(f, held, t, y, *args)  # type: ignore[no-untyped-call]
        return f(t, y)

    return dynamics


def _real_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.to(dtype)


def _wanting(func: Func, given: Iterable[Tensor] | None) -> tuple[Tensor, ...]:
    """The parameters that want a gradient."""
    if given is None:
        if not isinstance(func, nn.Module):
            raise ValueError(
                "Expected func to be a module, or its tensors that want a gradient in "
                f"adjoint_params (maybe none, `()`); got {type(func).__name__}"
            )
        given = _parameters(func)
    return tuple(param for param in given if param.requires_grad)


def _parameters(module: nn.Module) -> list[Tensor]:
    """A module's parameters; in a replica of DataParallel they are plain attributes."""
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    values = [value for part in module.modules() for value in vars(part).values()]
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad]


def _seminorm(given: Options | None, forward: Options) -> bool:
    """Whether the way back has the seminorm; what is not heeded is warned of."""
    if given is None:
        return False
    norm = given.get("norm")
    ignored = {
        name
        for name, value in given.items()
        if name != "norm" and not (name in forward and forward[name] is value)
    }
    if norm not in (None, "seminorm"):
        ignored.add("norm")
    if ignored:
        warn(
            f"odeint_adjoint: adjoint_options {sorted(ignored)} are not used; the steps back are "
            "controlled as those forward",
            stacklevel=3,
        )
    return bool(norm == "seminorm")


def _least(tolerance: Any) -> float | None:
    """The least of a tolerance's numbers."""
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


def _check_options(tableau: Tableau, options: Options) -> None:
    known = ADAPTIVE if tableau.adaptive else FIXED
    unused = {name: value for name, value in options.items() if name not in known}
    if unused:
        warn(f"{tableau.name}: Unexpected arguments {unused}", stacklevel=4)
    if tableau.adaptive:
        return
    if None not in (options.get("step_size"), options.get("grid_constructor")):
        raise ValueError("Expected step_size or grid_constructor; got both")
    if options.get("interp", "linear") not in ("linear", "cubic"):
        raise ValueError(f"Expected interp to be linear or cubic; got {options['interp']!r}")


def _warn_of_callbacks(func: Func, names: list[str], who: str, level: int) -> None:
    found = [name for name in names if hasattr(func, name)]
    if found:
        warn(f"{who} does not support callbacks {found}", stacklevel=level)


def _stops(options: Options, t: Tensor) -> dict[str, Tensor]:
    """The times between the first and the last that steps have to end at."""
    given = {
        name: torch.as_tensor(options[option]).detach().to(t.device, torch.float64).flatten()
        for name, option in (("stops", "step_t"), ("jumps", "jump_t"))
        if options.get(option) is not None
    }
    together = torch.cat([t.new_empty(0), *given.values()])
    if len(together.unique()) < len(together):
        raise ValueError(
            "Expected step_t and jump_t without repeated times between them; "
            f"got {together.tolist()}"
        )
    low, high = sorted(t.detach()[[0, -1]].tolist())
    return {name: times[(low < times) & (times < high)] for name, times in given.items()}


def _contains(grid: Tensor, ts: Tensor) -> bool:
    return set(ts.tolist()) <= set(grid.tolist())


def _between(ts: Tensor, grid: Tensor, ys: Tensor) -> Tensor:
    """The states at the times `ts`, linear between those at the times of a grid."""
    ahead = 1.0 if grid[-1] > grid[0] else -1.0
    after = torch.searchsorted(ahead * grid.detach(), ahead * ts.detach()).clamp(min=1)
    begin, end = grid[after - 1], grid[after]
    theta = ((ts - begin) / (end - begin)).to(ys.dtype).view(-1, *(1,) * (ys.ndim - 1))
    states: Tensor = ys[after - 1] + theta * (ys[after] - ys[after - 1])
    return states
