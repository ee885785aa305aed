"""The solver's public function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil, inf
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import check_rows, take_rows
from cnf.ode.controllers import (
    Array,
    Controller,
    Norm,
    PIController,
    Tolerance,
    moving_rms_norm,
    rms_norm,
    row_rms_norm,
)
from cnf.ode.dense_output import OutputTimes
from cnf.ode.dynamics import Dynamics
from cnf.ode.gradients import GRADIENTS
from cnf.ode.options import Gradient, Grid, Observer, SolveOptions, between, snapped
from cnf.ode.row_times import RowTimes
from cnf.ode.solution import Solution, SolveError, Stats, Status
from cnf.ode.state_jumps import StateJumps, is_state_jumps, solve_with_jumps
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
    jumps: Tensor | Sequence[float] | StateJumps | None = None,
    gradient: str | Gradient = "checkpoint",
    observer: Observer | None = None,
    on_failure: Literal["raise", "return"] = "raise",
) -> Solution:
    """Solve the initial value problem dy/dt = f(t, y, args), y(t₀) = y0, adaptively.

    Output times may differ between the rows of a batch. All rows are then solved together in a time
    s from 0 to 1, each with the time t = t₀ + s (t_T − t₀) and the dynamics (t_T − t₀) f.

    Args:
        f: Dynamics; takes a time, a state and `args`, returns dy/dt. With joint steps the time is a
            scalar and the state has y0's shape; with per-sample steps the state has the active
            rows, and the time has shape (rows, 1, …), one for each, as it does where t has rows.
        y0: Initial state, floating point, any shape; its first axis counts as rows.
        t: Times t₀ … t_T, at least two, strictly increasing or strictly decreasing; or with shape
            (rows, times) the times of each row, which may end by repeating the last. Rows may
            differ in start, end and direction; a row whose times are all equal stays where it is,
            even where f is not finite (but not its derivatives, for the gradients of the others),
            and has a gradient to the first and the last of them alone.
            The solution is returned at each of the times, between steps by dense output.
        args: Every tensor that needs a gradient, in nested tuples, lists and dicts; passed to f.
            One that belongs to the rows is wrapped, `PerRow(tensor)`, and unwrapped for f.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance: a number, or for single components a tensor that broadcasts
            against y0.
        atol: Absolute tolerance: a number, or such a tensor.
        norm: Reduces the tensor of error ratios |error| / (atol + rtol · max(|y|, |y₁|)) to a
            scalar, or with per-sample steps to one number for each row; a step is accepted up to 1.
            The root mean square when None, where t has rows over those that the step moves.
        controller: Step-size controller; `PIController()` when None.
        step: `"joint"`: one step for the whole batch. `"per_sample"`: every row has its own time,
            step and status, no row's result depends on the other rows, and finished rows leave the
            batch; rows of f must not depend on one another.
        first_step: Size of the first step tried; chosen from f when None. Where t has rows, joint
            steps have these sizes, and that of `step_size`, in the row with the longest way.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        max_steps: The most steps, accepted and rejected, for the batch or for each row.
        step_size: Steps of this size, or from each to the next of these times, without error
            control: required by a method without an error estimate, and possible with any other.
            Such steps are differentiable in t₀, t_T and the times that are among `t` as well. Where
            t has rows, a number: a row's steps are equal and at most of this size, joint steps as
            many for all rows.
        stops: Times between t₀ and t_T that a step has to end at. Where t has rows, they may be
            those of each row, (rows, stops), and count only between its own first and last time.
        jumps: Such times at which f jumps: a step evaluates f on its side of the jump alone. Or
            `(times, function)`, jumps of the state: at each time it becomes
            `function(index, t, y, args)`, of the jump's number, its time and the states of all
            rows. The times are (jumps,), or (rows, jumps) those of each row, padded with NaN or by
            repeating the last; the time in f and the function then has shape (rows, 1, …), and a
            row without the jump keeps its state. The output at a jump is the state after it,
            which has the derivative f to the output's own time, and `max_steps` is for the way
            from each jump to the next.
        gradient: `"checkpoint"`, `"backprop"` or `"backsolve"`, or an instance of `Checkpoint` or
            `Backsolve`. The first two are exact for the discrete solve, to y0, t and args, with the
            adaptive steps' relative sizes as constants; the third has constant memory.
        observer: Called as `observer(kind, t, y, h)` with kind "step" before each tried step, then
            with "accept", or with "reject" where a row has to try again. Where t has rows, t and h
            are in the time s.
        on_failure: Whether to raise where some rows do not reach the last time, or to return the
            solution, with each row's status and NaN at the times that a row did not reach.

    Returns:
        The solution at the times `t`, its states of shape (times, *y0.shape).

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

        Two rows, each with its own times, the second padded:

        >>> t = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, 0.5]])
        >>> solve(lambda t, y, _: 2 * t, torch.zeros(2), t).ys.T
        tensor([[ 0.0000,  1.0000,  4.0000],
                [ 0.0000, -0.7500, -0.7500]])
    """
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        got = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(f"Expected y0 to be a tensor of a floating dtype; got {got}")
    tableau = find_tableau(method)
    ts = _times(t, y0)
    per_sample = known_name("step", step, DEFAULT_NORMS) == "per_sample"
    known_name("on_failure", on_failure, ("raise", "return"))
    limits = {
        "first_step": _positive("first_step", first_step),
        "min_step": _positive("min_step", min_step, zero=True),
        "max_step": _positive("max_step", max_step),
    }
    options = SolveOptions(
        tableau=tableau,
        tolerance=as_tolerance(rtol, atol, norm or DEFAULT_NORMS[step], y0),
        controller=controller or PIController(),
        per_sample=per_sample,
        max_steps=_positive("max_steps", max_steps),
        observer=observer,
    )
    if step_size is None:
        _check_adaptive(options, y0)
    _check_state(y0, ts, args, per_sample=per_sample)
    if not y0.numel():
        return _nothing(ts, y0)
    if isinstance(gradient, str):
        gradient = GRADIENTS[known_name("gradient", gradient, GRADIENTS)]
    hold_freed_memory()
    steps = _Steps(step_size, stops, jumps, limits)
    solve_times = _solve_times
    if is_state_jumps(jumps):
        solve_times = partial(_solve_jumps, stop_early=on_failure == "raise")
    solution = solve_times(f, y0, ts, args, options, steps, gradient)
    if on_failure == "raise" and solution.rows:
        raise SolveError(solution)
    return solution


@dataclass(frozen=True, eq=False)
class _Steps:
    """The settings of steps, as `solve` was given them."""

    step_size: float | Tensor | Sequence[float] | None
    stops: Tensor | Sequence[Any] | None
    jumps: Tensor | Sequence[Any] | None
    limits: dict[str, float | Array | None]


def _solve_times(
    f: Dynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    options: SolveOptions,
    steps: _Steps,
    gradient: Gradient,
) -> Solution:
    """Solve with output times that rows share, or those of each row."""
    solve_times = _solve_rows if ts.ndim == 2 else _solve_together
    return solve_times(f, y0, ts, args, options, steps, gradient)


def _solve_jumps(
    f: Dynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    options: SolveOptions,
    steps: _Steps,
    gradient: Gradient,
    *,
    stop_early: bool,
) -> Solution:
    """Solve with jumps of the state."""

    def solve_stretch(
        y: Tensor, ts: Tensor, first_step: float | Array | None, stops: Any, step_size: Any
    ) -> Solution:
        limits = steps.limits | {"first_step": first_step}
        changed = _Steps(step_size, stops, None, limits)
        return _solve_times(f, y, ts, args, options, changed, gradient)

    @torch.no_grad()
    def slope(t: Tensor, y: Tensor) -> Tensor:
        t = t.expand(len(y), *(1,) * (y.ndim - 1)) if options.per_sample else t
        return f(t, y, take_rows(args, None))

    if steps.stops is not None and ts.ndim == torch.as_tensor(steps.stops).ndim == 1:
        _interior("stops", steps.stops, ts)
    first, given = steps.limits["first_step"], (steps.stops, steps.step_size)
    jumps = cast(StateJumps, steps.jumps)
    return solve_with_jumps(solve_stretch, slope, y0, ts, args, jumps, first, *given, stop_early)


def _solve_together(
    f: Dynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    options: SolveOptions,
    steps: _Steps,
    gradient: Gradient,
) -> Solution:
    """Solve with output times that rows share."""
    stops, jumps = (_interior(name, getattr(steps, name), ts) for name in ("stops", "jumps"))
    size, limits = steps.step_size, cast(dict[str, Any], steps.limits)
    grid = None if size is None else _grid(size, ts, options.max_steps)
    stops = _all_stops(stops, jumps, ts)
    options = replace(options, **limits, grid=grid, stops=stops, jumps=jumps)
    knots = options.knots(ts)
    if len(ts) > 2:
        options = replace(options, outputs=OutputTimes.between(ts, knots))
    return replace(gradient(f, y0, knots, args, options), ts=ts)


def _solve_rows(
    f: Dynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    options: SolveOptions,
    steps: _Steps,
    gradient: Gradient,
) -> Solution:
    """Solve with output times of each row, in a time in which all rows start and end together."""
    inner = [
        _row_stops(name, getattr(steps, name), ts)
        for name in ("stops", "jumps")
        if getattr(steps, name) is not None
    ]
    rows = RowTimes(ts, torch.cat(inner, 1) if inner else None, y0.ndim)
    spans = rows.spans() if options.per_sample else rows.spans().max(keepdims=True)
    limits: dict[str, Any] = {
        name: None if size is None else _shares(size, spans) for name, size in steps.limits.items()
    }
    grid = row_step = None
    if steps.step_size is not None:
        grid, row_step = _row_grid(steps.step_size, rows, spans, options)
    options = replace(
        options, **limits, grid=grid, row_step=row_step, stops=rows.inner, jumps=rows.inner
    )
    if options.tolerance.norm is rms_norm:
        options = replace(options, tolerance=replace(options.tolerance, norm=moving_rms_norm))
    outputs = rows.outputs()
    if not outputs.ends_only:
        options = replace(options, outputs=outputs)
    knots = options.knots(rows.knots)
    solution = gradient(rows.dynamics(f), y0, knots, rows.arguments(args), options)
    return replace(solution, ts=ts, last_times=rows.times(solution.last_times))


def _shares(size: float | Array, spans: Array) -> Array:
    """Return step sizes as shares of spans; of a span of zero it is all, and zero nothing."""
    whole = np.where(np.equal(size, 0), 0.0, np.full_like(spans, np.inf))
    return np.divide(size, spans, out=whole, where=spans > 0)


def _nothing(ts: Tensor, y0: Tensor) -> Solution:
    """Return the solution of a state without entries."""
    rows, ys = y0.shape[:1], y0.expand(ts.shape[-1], *y0.shape)
    ends = np.broadcast_to(ts[..., -1].detach().double().cpu().numpy(), rows)
    return Solution(ts, ys, np.full(rows, Status.FINISHED), Stats(), (), ends, y0.detach())


def _check_adaptive(options: SolveOptions, y0: Tensor) -> None:
    """Check that the error of steps can be controlled."""
    if not options.tableau.adaptive:
        raise ValueError(
            f"Expected step_size with method {options.tableau.name!r}, which has no error "
            "estimate; got None: pass step_size, or choose an adaptive method"
        )
    options.tolerance.check_dtype(y0.dtype)


def _check_state(y0: Tensor, ts: Tensor, args: Any, *, per_sample: bool) -> None:
    """Check that times and arguments fit the rows of the state."""
    if per_sample and y0.ndim == 0:
        raise ValueError(
            "Expected y0 with rows for per-sample steps; got a scalar: add an axis, or take joint "
            "steps"
        )
    if ts.ndim == 2 and (y0.ndim == 0 or len(ts) != len(y0)):
        raise ValueError(
            "Expected t with a row of times for each row of the state; got shapes "
            f"{tuple(ts.shape)} and {tuple(y0.shape)}"
        )
    check_rows(args, y0.shape[0] if y0.ndim else 1)


def as_tolerance(rtol: float | Tensor, atol: float | Tensor, norm: Norm, y0: Tensor) -> Tolerance:
    """Return the tolerance, checked against the state.

    Raises:
        ValueError: It is negative or not finite, or does not broadcast against the state.
    """
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


def _grid(step_size: float | Tensor | Sequence[float], ts: Tensor, max_steps: int) -> Grid:
    """Return a function to the times of fixed steps."""
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

    _check_steps(len(grid(ts.detach())) - 1, max_steps)
    return grid


def _row_grid(
    step_size: Any, rows: RowTimes, spans: Array, options: SolveOptions
) -> tuple[Grid, Array | None]:
    """Return the times of fixed steps of rows with their own times, or the size of each row's."""
    if not isinstance(step_size, float | int):
        raise ValueError(
            "Expected step_size to be a number with output times of each row; got times: pass the "
            "size that no row's step exceeds"
        )
    # A remainder of a few rounding errors makes no step.
    whole = 1 - 8 * torch.finfo(rows.ts.dtype).eps
    counts = np.ceil(spans / _positive("step_size", step_size) * whole).clip(1)
    count = 1 if options.per_sample else int(counts.max())
    _check_steps(int(counts.max()) * rows.segments, options.max_steps)
    times = torch.arange(count * rows.segments + 1).to(rows.knots) / count
    return lambda ts: times, 1 / counts if options.per_sample else None


def _check_steps(steps: int, max_steps: int) -> None:
    if steps > max_steps:
        raise ValueError(
            f"Expected step_size to make at most max_steps = {max_steps} steps; got {steps}: "
            "raise max_steps, or take longer steps"
        )


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
    found = between(found, ts[0], ts[-1]).unique()
    found = found if end > begin else found.flip(0)
    return found if len(found) else None


def _row_stops(what: str, times: Tensor | Sequence[Any], ts: Tensor) -> Tensor:
    """Return the times that steps of rows have to end at, (rows, stops), and NaN."""
    found = torch.as_tensor(times).detach().to(ts)
    if found.ndim not in (1, 2) or (found.ndim == 2 and len(found) != len(ts)):
        raise ValueError(
            f"Expected {what} of shape (times,) or ({len(ts)}, times), a row for each row of the "
            f"state; got {tuple(found.shape)}"
        )
    return found.expand(len(ts), -1)


def _all_stops(stops: Tensor | None, jumps: Tensor | None, ts: Tensor) -> Tensor | None:
    """Return all times that steps have to end at, in order."""
    given = [times for times in (stops, jumps) if times is not None]
    return _interior("stops", torch.cat(given), ts) if given else None


def _tensor(times: Tensor | Sequence[float]) -> Tensor:
    return times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)


def _times(t: Tensor | Sequence[float], y0: Tensor) -> Tensor:
    """Return the output times as a tensor of y0's dtype and device, checked."""
    ts = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
    if ts.ndim == 2:
        return _check_row_times(ts)
    times = ts.tolist() if ts.ndim == 1 else []
    ahead = 1.0 if len(times) > 1 and times[1] > times[0] else -1.0
    rising = all(0 < ahead * (b - a) < inf for a, b in pairwise(times))
    if len(times) < 2 or not rising:
        raise ValueError(
            "Expected t to be at least two finite times, strictly increasing or decreasing; "
            f"got {ts.tolist()}"
        )
    return ts


def _check_row_times(ts: Tensor) -> Tensor:
    """Return the output times of rows, checked."""
    gaps = ts.detach().diff(dim=1)
    good = ((gaps >= 0).all(1) | (gaps <= 0).all(1)) & ts.detach().isfinite().all(1)
    if ts.shape[1] < 2 or not good.all():
        row = int((~good).nonzero()[0]) if not good.all() else 0
        raise ValueError(
            "Expected each row of t to be at least two finite times that do not decrease, or do "
            f"not increase; got {ts[row].tolist() if len(ts) else []} in row {row}: sort them, and "
            "pad rows by repeating their last time"
        )
    return ts


def _positive(what: str, value: Any, *, zero: bool = False) -> Any:
    if value is not None and not (value > 0 or (zero and value == 0)):
        raise ValueError(f"Expected {what} to be {'at least' if zero else 'above'} 0; got {value}")
    return value
