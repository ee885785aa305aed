"""The integration loop: dynamics, state and times in, the states at those times out.

The loop knows nothing of gradients: run where autograd records, everything that it computes is
differentiable; run where autograd does not, it is a plain solver whose accepted steps can be
replayed one by one. The sizes of the steps are constants of the gradient: step n of the interval
between two output times t_i and t_j starts at t_i + s_n (t_j − t_i), with the fractions s_n fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from cnf.ode.controllers import PIController, Tolerance, first_step_size
from cnf.ode.solution import Stats, Status
from cnf.ode.tableaus import Tableau, tableau_tensors

Dynamics = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Settings:
    """How to integrate: everything but the problem itself."""

    tableau: Tableau
    tolerance: Tolerance
    controller: PIController
    first_step: float | None
    max_steps: int


@dataclass(frozen=True)
class Step:
    """An accepted step: its interval, its start and size as fractions of that, its first state."""

    interval: int
    start: float
    size: float
    y: Tensor

    def times(self, ts: Tensor) -> tuple[Tensor, Tensor]:
        """The step's start time and signed size, differentiable in the output times `ts`."""
        return _place(ts, self.interval, self.start, self.size)


@dataclass
class Run:
    """The loop's state while it runs, and its record afterwards."""

    y: Tensor
    slope: Tensor
    step_size: float = float("nan")
    error: float = 1.0
    previous_error: float = 1.0
    ratio: Tensor = field(default_factory=lambda: torch.zeros(()))
    evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    time: float = float("nan")
    status: Status = Status.FINISHED
    rows: tuple[int, ...] = ()
    outputs: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def stats(self) -> Stats:
        """Evaluations and steps so far."""
        return Stats(self.evaluations, self.accepted, self.rejected)


def integrate(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Integrate dy/dt = f(t, y, args) from `ts[0]` through the times `ts`, hitting each exactly.

    Returns:
        The run. Its outputs are fewer than `ts` where its status is not FINISHED.
    """
    run = _start(f, y0, ts, args, settings)
    for interval in range(len(ts) - 1):
        if run.status is Status.FINISHED:
            _cross(run, f, ts, interval, args, settings)
        if run.status is Status.FINISHED:
            run.outputs.append(run.y)
    return run


def advance(
    f: Dynamics, tableau: Tableau, t: Tensor, h: Tensor, y: Tensor, slope: Tensor, args: Any
) -> tuple[Tensor, list[Tensor]]:
    """One Runge-Kutta step: the solution at t + h and the stages that it is made of.

    Args:
        f: Dynamics.
        tableau: Method.
        t: Start time, a scalar.
        h: Signed size, a scalar.
        y: State at t.
        slope: f(t, y, args), the first stage.
        args: The dynamics' arguments.
    """
    tensors = tableau_tensors(tableau, y.dtype, y.device)
    times = torch.addcmul(t, tensors.c, h).unbind()
    stages = [slope]
    for i in range(1, tableau.solution_stages):
        stages.append(f(times[i], _combine(y, h, tensors.a[i], stages), args))
    return _combine(y, h, tensors.b, stages), stages


def _combine(y: Tensor, h: Tensor, weights: Tensor, stages: list[Tensor]) -> Tensor:
    """Y + h Σ_j weights_j stages_j."""
    return torch.addcmul(y, h, _weighted(weights, stages))


def _weighted(weights: Tensor, stages: list[Tensor]) -> Tensor:
    """Σ_j weights_j stages_j, as one product."""
    return (weights @ torch.stack(stages).view(len(stages), -1)).view_as(stages[0])


def _place(ts: Tensor, interval: int, start: float, size: float) -> tuple[Tensor, Tensor]:
    begin = ts[interval]
    length = ts[interval + 1] - begin
    return begin + start * length, size * length


def _start(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Evaluate the first slope and choose the first step size."""
    run = Run(y=y0, slope=f(ts[0], y0, args), evaluations=1, outputs=[y0], time=ts[0].item())
    if not (run.slope.isfinite().all() & y0.isfinite().all()).item():
        run.ratio = y0.detach() + run.slope.detach()
        _fail(run, Status.NOT_FINITE)
        return run
    if settings.first_step is not None:
        run.step_size = settings.first_step
        return run
    with torch.no_grad():
        run.step_size = first_step_size(
            lambda t, y: f(t, y, args),
            ts[0],
            y0,
            run.slope,
            1.0 if ts[-1] > ts[0] else -1.0,
            settings.tableau.error_order + 1,
            settings.tolerance,
        )
    run.evaluations += 1
    return run


def _cross(run: Run, f: Dynamics, ts: Tensor, interval: int, args: Any, settings: Settings) -> None:
    """Step from one output time to the next."""
    begin, end = ts[interval].item(), ts[interval + 1].item()
    length = abs(end - begin)
    resolution = 4 * torch.finfo(run.y.dtype).eps * max(abs(begin), abs(end))
    start = 0.0
    while start < 1.0 and run.status is Status.FINISHED:
        size = _clip(run.step_size / length, 1.0 - start)
        if run.accepted + run.rejected >= settings.max_steps:
            _fail(run, Status.STEP_LIMIT)
        elif _attempt(run, f, ts, Step(interval, start, size, run.y), args, settings):
            start = 1.0 if start + size > 1.0 - 1e-12 else start + size
            run.time = begin + start * (end - begin)
        elif run.step_size < resolution:
            finite = isfinite(run.error)
            _fail(run, Status.STEP_TOO_SMALL if finite else Status.NOT_FINITE)


def _clip(wanted: float, rest: float) -> float:
    """The step to take where `rest` is left: a sliver is never left over, two halves are."""
    if wanted >= rest:
        return rest
    return min(wanted, rest / 2)


def _attempt(run: Run, f: Dynamics, ts: Tensor, step: Step, args: Any, settings: Settings) -> bool:
    """Try one step; on acceptance move on, either way choose the next step's size."""
    t, h = step.times(ts)
    tableau = settings.tableau
    y, stages = advance(f, tableau, t, h, run.y, run.slope, args)
    stages += _error_stages(f, tableau, t, h, run.y, y, stages, args)
    run.evaluations += tableau.stages - 1
    with torch.no_grad():
        weights = tableau_tensors(tableau, y.dtype, y.device).e
        error = h * _weighted(weights, stages)
        run.ratio = settings.tolerance.ratio(error, run.y, y)
        run.error = settings.tolerance.norm(run.ratio).item()
    size = abs(h.item())
    factor = settings.controller.factor(run.error, run.previous_error, tableau.error_order + 1)
    if not run.error <= 1:
        run.rejected += 1
        run.step_size = size * factor
        return False
    # A step that was cut short to end on an output time says little of the next one's size.
    run.step_size = max(size * factor, run.step_size if size < 0.99 * run.step_size else 0.0)
    run.accepted += 1
    run.previous_error = run.error
    run.steps.append(step)
    run.y = y
    run.slope = stages[-1] if tableau.first_same_as_last else f(t + h, y, args)
    run.evaluations += not tableau.first_same_as_last
    return True


def _error_stages(
    f: Dynamics,
    tableau: Tableau,
    t: Tensor,
    h: Tensor,
    y0: Tensor,
    y1: Tensor,
    stages: list[Tensor],
    args: Any,
) -> list[Tensor]:
    """The stages that only the error estimate needs."""
    tensors = tableau_tensors(tableau, y0.dtype, y0.device)
    extra: list[Tensor] = []
    for i in range(tableau.solution_stages, tableau.stages):
        last = tableau.first_same_as_last and i == tableau.stages - 1
        state = y1 if last else _combine(y0, h, tensors.a[i], stages + extra)
        extra.append(f(t + tensors.c[i] * h, state, args))
    return extra


def _fail(run: Run, status: Status) -> None:
    """End the run, naming the rows at fault: those not finite, else those of the largest error."""
    run.status = status
    if run.ratio.ndim == 0:
        return
    ratio = run.ratio.detach().abs().nan_to_num(nan=torch.inf)
    error = ratio.reshape(len(ratio), -1).amax(1)
    order = error.argsort(descending=True)
    threshold = torch.inf if status is Status.NOT_FINITE else min(1.0, error.max().item())
    run.rows = tuple(order[error[order] >= threshold].tolist())
