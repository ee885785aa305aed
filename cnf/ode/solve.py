"""The solver's public function."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from cnf.ode.controllers import Norm, PIController, Tolerance, rms_norm
from cnf.ode.gradients import GRADIENTS
from cnf.ode.integrate import Dynamics, Settings
from cnf.ode.solution import Solution, SolveError, Status
from cnf.ode.tableaus import TABLEAUS


def solve(
    f: Dynamics,
    y0: Tensor,
    t: Tensor | Sequence[float],
    args: Any = (),
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: Norm = rms_norm,
    controller: PIController | None = None,
    first_step: float | None = None,
    max_steps: int = 10_000,
    gradient: str = "checkpoint",
    on_failure: Literal["raise", "return"] = "raise",
) -> Solution:
    """Solve the initial value problem dy/dt = f(t, y, args), y(t₀) = y0, adaptively.

    Args:
        f: Dynamics; takes a scalar time, a state of y0's shape and `args`, gives dy/dt.
        y0: Initial state, floating point, any shape; its first axis counts as rows in messages.
        t: Times t₀ … t_T, at least two, strictly increasing or strictly decreasing. The solution
            is given at each of them; each is hit by a step's end.
        args: Every tensor that wants a gradient, in nested tuples, lists and dicts; handed to f.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        norm: Reduces the tensor of error ratios |error| / (atol + rtol · max(|y|, |y₁|)) to a
            scalar; a step is accepted where that is at most 1.
        controller: Step-size controller; `PIController()` when None.
        first_step: Size of the first step tried; chosen from f when None.
        max_steps: The most steps, accepted and rejected, that the solve may take.
        gradient: `"checkpoint"` or `"backprop"`, see `cnf.ode.gradients`. Both are exact for the
            discrete solve, to y0, t and args, with the steps' relative sizes as constants.
        on_failure: Whether a solve that does not reach its last time raises or is returned, with
            its status, its rows at fault and NaN at the times that it did not reach.

    Returns:
        The solution at the times `t`.

    Raises:
        ValueError: An argument is not as described.
        SolveError: The solve failed, and `on_failure` is `"raise"`.

    Source: Hairer, Nørsett & Wanner (1993), Solving ordinary differential equations I, chapter II.

    Example:
        >>> rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> solution = solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, rtol=1e-8, atol=1e-8)
        >>> print(f"{solution.ys[-1].item():.6f}")  # exp(-1)
        0.367879
        >>> solution.ys[-1].backward()
        >>> print(f"{rate.grad:.6f}")  # d exp(rate) / d rate
        0.367879
    """
    if not y0.is_floating_point():
        raise ValueError(f"Expected y0 of a floating dtype; got {y0.dtype}")
    settings = Settings(
        tableau=TABLEAUS[_known("method", method, TABLEAUS)],
        tolerance=Tolerance(rtol, atol, norm),
        controller=controller or PIController(),
        first_step=_positive("first_step", first_step),
        max_steps=_positive("max_steps", max_steps),
    )
    differentiate = GRADIENTS[_known("gradient", gradient, GRADIENTS)]
    ts = _times(t, y0)
    run, ys = differentiate(f, y0, ts, args, settings)
    solution = Solution(ts, ys, run.status, run.stats, run.rows, run.time)
    if on_failure == "raise" and run.status is not Status.FINISHED:
        raise SolveError(solution)
    return solution


def _times(t: Tensor | Sequence[float], y0: Tensor) -> Tensor:
    """The output times as a tensor like y0, checked."""
    ts = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
    gaps = ts.detach().diff() if ts.ndim == 1 else ts.new_empty(0)
    if not (gaps.numel() and ((gaps > 0).all() | (gaps < 0).all()).item()):
        raise ValueError(
            "Expected t to be at least two times, strictly increasing or strictly decreasing; "
            f"got {ts.tolist()}"
        )
    return ts


def _known(what: str, name: str, registry: dict[str, Any]) -> str:
    if name not in registry:
        close = get_close_matches(name, registry) or list(registry)
        raise ValueError(f"Expected {what} to be one of {', '.join(close)}; got {name!r}")
    return name


def _positive(what: str, value: Any) -> Any:
    if value is not None and not value > 0:
        raise ValueError(f"Expected {what} to be above 0; got {value}")
    return value
