"""The solver's public function."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, inf
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import check_rows
from cnf.ode.controllers import (
    Controller,
    Norm,
    PIController,
    Tolerance,
    rms_norm,
    row_rms_norm,
)
from cnf.ode.dynamics import Dynamics
from cnf.ode.gradients import GRADIENTS
from cnf.ode.options import Gradient, Grid, Observer, SolveOptions, snapped
from cnf.ode.solution import Solution, SolveError, Stats, Status
from cnf.ode.tableau import Tableau
from cnf.ode.tableaus import find_tableau, known_name
from cnf.utils.memory import hold_freed_memory

StepMode = Literal["joint", "per_sample"]

# The default norms of the error ratios: over the batch, or over each row.
DEFAULT_NORMS: dict[StepMode, Norm] = {"joint": rms_norm, "per_sample": row_rms_norm}


def solve(
    f: Dynamics,
    y0: Tensor,
    t: Tensor | Sequence[float],
    args: Any = (),
    *,
    method: str = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    norm: Norm | None = None,
    controller: Controller | None = None,
    step: StepMode = "joint",
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = inf,
    max_steps: int = 10_000,
    step_size: float | Tensor | Sequence[float] | None = None,
    stops: Tensor | Sequence[float] | None = None,
    jumps: Tensor | Sequence[float] | None = None,
    gradient: str | Gradient = "checkpoint",
    observer: Observer | None = None,
    on_failure: Literal["raise", "return"] = "raise",
) -> Solution:
    """Solve the initial value problem dy/dt = f(t, y, args), y(t₀) = y0, adaptively.

    Args:
        f: Dynamics; takes a time, a state and `args`, returns dy/dt. With joint steps the time is a
            scalar and the state has y0's shape; with per-sample steps the state has the active
            rows, and the time has shape (rows, 1, …), one for each.
        y0: Initial state, floating point, any shape; its first axis counts as rows.
        t: Times t₀ … t_T, at least two, strictly increasing or strictly decreasing. The solution
            is returned at each of them, between steps by dense output.
        args: Every tensor that needs a gradient, in nested tuples, lists and dicts; passed to f.
            One that belongs to the rows is wrapped, `PerRow(tensor)`, and unwrapped for f.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance: a number, or for single components a tensor that broadcasts
            against y0.
        atol: Absolute tolerance: a number, or such a tensor.
        norm: Reduces the tensor of error ratios |error| / (atol + rtol · max(|y|, |y₁|)) to a
            scalar, or with per-sample steps to one number for each row; a step is accepted up to 1.
            The root mean square when None.
        controller: Step-size controller; `PIController()` when None.
        step: `"joint"`: one step for the whole batch. `"per_sample"`: every row has its own time,
            step and status, no row's result depends on the other rows, and finished rows leave the
            batch; rows of f must not depend on one another.
        first_step: Size of the first step tried; chosen from f when None.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        max_steps: The most steps, accepted and rejected, for the batch or for each row.
        step_size: Steps of this size, or from each to the next of these times, without error
            control: required by a method without an error estimate, and possible with any other.
            Such steps are differentiable in t₀, t_T and the times that are among `t` as well.
        stops: Times between t₀ and t_T that a step has to end at.
        jumps: Such times at which f jumps: a step evaluates f on its side of the jump alone.
        gradient: `"checkpoint"`, `"backprop"` or `"backsolve"`, or an instance of `Checkpoint` or
            `Backsolve`. The first two are exact for the discrete solve, to y0, t and args, with the
            adaptive steps' relative sizes as constants; the third has constant memory.
        observer: Called as `observer(kind, t, y, h)` with kind "step" before each tried step, then
            with "accept", or with "reject" where a row has to try again.
        on_failure: Whether to raise where some rows do not reach the last time, or to return the
            solution, with each row's status and NaN at the times that a row did not reach.

    Returns:
        The solution at the times `t`.

    Raises:
        ValueError: An argument is not as described, f's slope has another shape or dtype than the
            state, a tolerance is lost in y0's dtype, or the controller does not shorten a rejected
            step.
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
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        got = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(f"Expected y0 to be a tensor of a floating dtype; got {got}")
    tableau = find_tableau(method)
    ts = _times(t, y0)
    per_sample = known_name("step", step, DEFAULT_NORMS) == "per_sample"
    known_name("on_failure", on_failure, ("raise", "return"))
    stops, jumps = _interior("stops", stops, ts), _interior("jumps", jumps, ts)
    options = SolveOptions(
        tableau=tableau,
        tolerance=_tolerance(rtol, atol, norm or DEFAULT_NORMS[step], y0),
        controller=controller or PIController(),
        per_sample=per_sample,
        first_step=_positive("first_step", first_step),
        min_step=_positive("min_step", min_step, zero=True),
        max_step=_positive("max_step", max_step),
        max_steps=_positive("max_steps", max_steps),
        grid=_grid(step_size, ts, tableau, max_steps),
        stops=_all_stops(stops, jumps, ts),
        jumps=jumps,
        observer=observer,
    )
    if options.grid is None:
        options.tolerance.check_dtype(y0.dtype)
    if not y0.numel():
        finished = np.full(y0.shape[0], Status.FINISHED)
        ys = y0.expand(len(ts), *y0.shape)
        ends = np.full(y0.shape[0], ts[-1].item())
        return Solution(ts, ys, finished, Stats(), (), ends, y0.detach())
    if per_sample and y0.ndim == 0:
        raise ValueError(
            "Expected y0 with rows for per-sample steps; got a scalar: add an axis, or take joint "
            "steps"
        )
    check_rows(args, y0.shape[0] if y0.ndim else 1)
    if isinstance(gradient, str):
        gradient = GRADIENTS[known_name("gradient", gradient, GRADIENTS)]
    hold_freed_memory()
    solution = gradient(f, y0, ts, args, options)
    if on_failure == "raise" and solution.rows:
        raise SolveError(solution)
    return solution


def _tolerance(rtol: float | Tensor, atol: float | Tensor, norm: Norm, y0: Tensor) -> Tolerance:
    """Return the tolerance, checked against the state."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        shape = value.shape if isinstance(value, Tensor) else torch.Size()
        fits = len(shape) <= y0.ndim and all(
            given in (1, size) for given, size in zip(shape[::-1], y0.shape[::-1], strict=False)
        )
        if not fits:
            raise ValueError(
                f"Expected {name} to broadcast against y0 of shape {tuple(y0.shape)}; "
                f"got {tuple(shape)}"
            )
    return Tolerance(rtol, atol, norm)


def _grid(
    step_size: float | Tensor | Sequence[float] | None,
    ts: Tensor,
    tableau: Tableau,
    max_steps: int,
) -> Grid | None:
    """Return a function to the times of fixed steps; None for adaptive steps."""
    if step_size is None:
        if not tableau.adaptive:
            raise ValueError(
                f"Expected step_size with method {tableau.name!r}, which has no error estimate; "
                "got None: pass step_size, or choose an adaptive method"
            )
        return None
    if isinstance(step_size, float | int):
        grid = even_steps(_positive("step_size", step_size), ts)
    else:
        times = _tensor(step_size).to(ts)
        ends = ts.detach()[[0, -1]]
        gaps = times.detach().diff() * (ends[1] - ends[0]).sign()
        if not (times.ndim == 1 and times.detach()[[0, -1]].equal(ends) and bool((gaps > 0).all())):
            raise ValueError(
                "Expected step_size to be a number, or ordered times from "
                f"{ends[0].item():g} to {ends[1].item():g}; got {times.tolist()}"
            )

        def grid(ts: Tensor) -> Tensor:
            return snapped(times, ts)

    steps = len(grid(ts.detach())) - 1
    if steps > max_steps:
        raise ValueError(
            f"Expected step_size to make at most max_steps = {max_steps} steps; got {steps}: "
            "raise max_steps, or take longer steps"
        )
    return grid


def even_steps(size: float, ts: Tensor) -> Grid:
    """Return a grid of steps of one size from the first output time, the last maybe shorter.

    Example:
        >>> ts = torch.tensor([0.0, 1.0])
        >>> even_steps(0.4, ts)(ts)
        tensor([0.0000, 0.4000, 0.8000, 1.0000])
    """
    span = ts[-1].item() - ts[0].item()
    # A remainder of a few rounding errors makes no step.
    steps = max(1, ceil(abs(span) / size * (1 - 8 * torch.finfo(ts.dtype).eps)))
    gaps = torch.arange(steps, dtype=ts.dtype, device=ts.device) * (size if span > 0 else -size)
    return lambda ts: torch.cat([ts[:1] + gaps, ts[-1:]])


def _interior(what: str, times: Tensor | Sequence[float] | None, ts: Tensor) -> Tensor | None:
    """Return the times strictly between the first and the last, in order; None without any."""
    if times is None:
        return None
    found = _tensor(times).detach().to(ts)
    begin, end = ts[0].item(), ts[-1].item()
    low, high = sorted((begin, end))
    if found.ndim != 1 or not bool(((low <= found) & (found <= high)).all()):
        raise ValueError(
            f"Expected {what} to be times between {low:g} and {high:g}; got {found.tolist()}"
        )
    found = found[(low < found) & (found < high)].unique()
    found = found if end > begin else found.flip(0)
    return found if len(found) else None


def _all_stops(stops: Tensor | None, jumps: Tensor | None, ts: Tensor) -> Tensor | None:
    """Return all times that steps have to end at, in order."""
    given = [times for times in (stops, jumps) if times is not None]
    return _interior("stops", torch.cat(given), ts) if given else None


def _tensor(times: Tensor | Sequence[float]) -> Tensor:
    return times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)


def _times(t: Tensor | Sequence[float], y0: Tensor) -> Tensor:
    """Return the output times as a tensor of y0's dtype and device, checked."""
    ts = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
    times = ts.tolist() if ts.ndim == 1 else []
    ahead = 1.0 if len(times) > 1 and times[1] > times[0] else -1.0
    rising = all(0 < ahead * (b - a) < inf for a, b in pairwise(times))
    if len(times) < 2 or not rising:
        raise ValueError(
            "Expected t to be at least two finite times, strictly increasing or decreasing; "
            f"got {ts.tolist()}"
        )
    return ts


def _positive(what: str, value: Any, *, zero: bool = False) -> Any:
    if value is not None and not (value > 0 or (zero and value == 0)):
        raise ValueError(f"Expected {what} to be {'at least' if zero else 'above'} 0; got {value}")
    return value
