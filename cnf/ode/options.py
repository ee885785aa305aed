"""Options of a solve: everything but the initial value problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.ode.controllers import Controller, Tolerance
from cnf.ode.tableau import Tableau

# Called with "step", "accept" or "reject", a step's start, state and size.
Observer = Callable[[str, Tensor, Tensor, Tensor], None]
# Returns the times of fixed steps for given output times.
Grid = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SolveOptions:
    """The options of a solve: everything but the initial value problem.

    Attributes:
        tableau: The Runge-Kutta method.
        tolerance: Tolerance and norm; the norm returns a scalar with joint steps, one number for
            each row with per-sample steps.
        controller: Chooses the next step's size.
        per_sample: Whether every row of the state has its own steps.
        first_step: Size of the first step, chosen from the dynamics when None.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        max_steps: The most steps, accepted and rejected, for the batch or for each row.
        grid: Returns, for given output times, the times of fixed steps without error control;
            adaptive steps when None.
        stops: Times between the first and the last that a step has to end at, in order.
        jumps: The stops at which the dynamics jump: no step evaluates them on the far side.
        observer: Called with "step", "accept" or "reject", the step's start, state and size.
    """

    tableau: Tableau
    tolerance: Tolerance
    controller: Controller
    per_sample: bool = False
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = float("inf")
    max_steps: int = 10_000
    grid: Grid | None = None
    stops: Tensor | None = None
    jumps: Tensor | None = None
    observer: Observer | None = None

    def knots(self, ts: Tensor) -> Tensor:
        """Return the times that no step crosses, differentiable in the output times."""
        if self.grid is not None:
            return self.grid(ts)
        if self.stops is None:
            return ts[:: len(ts) - 1]
        # An output time may coincide with a stop but moves alone: a jump stays where it is.
        return torch.cat([ts[:1], self.stops, ts[-1:]])


def snapped(times: Tensor, ts: Tensor) -> Tensor:
    """Return `times` with entries equal to output times replaced by those, so differentiable."""
    sign = (ts[-1] - ts[0]).detach().sign()
    place = torch.searchsorted(sign * ts.detach(), sign * times.detach()).clamp(max=len(ts) - 1)
    return torch.where(ts[place] == times, ts[place], times)
