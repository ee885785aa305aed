"""The options and callbacks of torchdiffeq, and the options of this solver that they amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from cnf.ode.controllers import Norm, PIController
from cnf.ode.options import between, snapped
from cnf.ode.solver import even_steps
from cnf.ode.state_layout import InputError, State
from cnf.ode.tableau import Tableau

Options = Mapping[str, Any]

# The options of methods with adaptive and with fixed steps.
ADAPTIVE = {"first_step", "min_step", "max_step", "max_num_steps", "safety", "ifactor", "dfactor"}
ADAPTIVE |= {"norm", "step_t", "jump_t", "dtype"}
FIXED = {"step_size", "grid_constructor", "perturb", "interp", "norm"}

CALLBACKS = {
    "step": "callback_step",
    "accept": "callback_accept_step",
    "reject": "callback_reject_step",
}


def check_options(tableau: Tableau, options: Options) -> None:
    """Warn of options that the method does not have.

    Raises:
        ValueError: The options of fixed steps contradict one another, or `interp` is unknown.
    """
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


def adaptive_options(options: Options, t: Tensor, norm: Norm) -> dict[str, Any]:
    """Return the arguments of `cnf.ode.solve` for adaptive steps."""
    first_step = options.get("first_step")
    arguments = {
        "norm": norm,
        "controller": PIController(
            safety=float(options.get("safety", 0.9)),
            factor_min=float(options.get("dfactor", 0.2)),
            factor_max=float(options.get("ifactor", 10.0)),
            beta=0.0,
        ),
        "first_step": None if first_step is None else float(first_step),
        "min_step": float(options.get("min_step", 0.0)),
        "max_step": float(options.get("max_step", inf)),
        "max_steps": int(options.get("max_num_steps", 2**31 - 1)) * (len(t) - 1),
    }
    return arguments | _stops(options, t)


def fixed_grid(options: Options, func: Any, y0: State, t: Tensor) -> Tensor:
    """Return the times of fixed steps.

    Raises:
        InputError: The times of `grid_constructor` do not go from the first of `t` to the last.
    """
    constructor, size = options.get("grid_constructor"), options.get("step_size")
    begin, end = t[0], t[-1]
    if constructor is not None:
        grid: Tensor = constructor(func, y0, t)
        if not (grid[0] == begin and grid[-1] == end):
            raise InputError(
                "Expected the times of grid_constructor to go from "
                f"{begin.item():g} to {end.item():g}; got {grid.tolist()}"
            )
        return snapped(grid, t)
    if size is None:
        return t
    return even_steps(float(size), t)(t)


def uses_seminorm(adjoint_options: Options | None, options: Options) -> bool:
    """Return whether the backward solve has the seminorm; warn of adjoint options without effect.

    The options of the forward solve may be repeated for the backward one.
    """
    if adjoint_options is None:
        return False
    norm = adjoint_options.get("norm")
    ignored = {
        name
        for name, value in adjoint_options.items()
        if name != "norm" and not (name in options and options[name] is value)
    }
    if norm not in (None, "seminorm"):
        ignored.add("norm")
    if ignored:
        warn(
            f"odeint_adjoint: adjoint_options {sorted(ignored)} are not used; the steps of the "
            "backward pass are controlled like those of the forward pass",
            stacklevel=3,
        )
    return bool(norm == "seminorm")


def callback_observer(
    func: Any, tableau: Tableau, unpack: Callable[[Any], Any], suffix: str = ""
) -> Callable[[str, Tensor, Any, Tensor], None] | None:
    """Return an observer that calls the callbacks of `func`; None where it has none.

    A method of fixed steps calls `callback_step` alone, and warns of the others.
    """
    found = {kind: getattr(func, f"{name}{suffix}", None) for kind, name in CALLBACKS.items()}
    callbacks = {kind: callback for kind, callback in found.items() if callback is not None}
    if not tableau.adaptive:
        unused = [f"{CALLBACKS[kind]}{suffix}" for kind in callbacks if kind != "step"]
        if unused:
            warn(f"{tableau.name} does not support callbacks {unused}", stacklevel=4)
        callbacks = {kind: callbacks[kind] for kind in callbacks if kind == "step"}
    if not callbacks:
        return None

    def observe(kind: str, t: Tensor, y: Any, h: Tensor) -> None:
        callback = callbacks.get(kind)
        if callback is not None:
            callback(t, unpack(y), h.abs())

    return observe


def _stops(options: Options, t: Tensor) -> dict[str, Tensor]:
    """Return the times between the first and the last that steps have to end at."""
    given = {
        name: torch.as_tensor(options[option]).detach().to(t.device, torch.float64).flatten()
        for name, option in (("stops", "step_t"), ("jumps", "jump_t"))
        if options.get(option) is not None
    }
    together = torch.cat([t.new_empty(0), *given.values()])
    if len(together.unique()) < len(together):
        raise ValueError(
            "Expected step_t and jump_t to have no time in common and none twice; "
            f"got {together.tolist()}"
        )
    return {name: between(times, t[0], t[-1]) for name, times in given.items()}
