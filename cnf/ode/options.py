"""Options of a solve: everything but the initial value problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnf.ode.controllers import Controller, Tolerance
from cnf.ode.dynamics import Dynamics
from cnf.ode.solution import Solution
from cnf.ode.tableau import Tableau

# Called with "step", "accept" or "reject", a step's start, state and size.
Observer = Callable[[str, Tensor, Tensor, Tensor], None]
# Returns the times of fixed steps for given output times.
Grid = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SolveOptions:
    """The options of a solve, with the meaning that they have in `cnf.ode.solve`."""

    tableau: Tableau
    tolerance: Tolerance
    controller: Controller
    per_sample: bool = False
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = float("inf")
    max_steps: int = 10_000
    grid: Grid | None = None  # adaptive steps when None
    stops: Tensor | None = None  # strictly between the first and the last time, in order
    jumps: Tensor | None = None  # those of the stops at which the dynamics jump
    observer: Observer | None = None

    def knots(self, ts: Tensor) -> Tensor:
        """Return the times that no step crosses, differentiable in the output times."""
        if self.grid is not None:
            return self.grid(ts)
        if self.stops is None:
            return ts[:: len(ts) - 1]
        # An output time may coincide with a stop but moves alone: a jump stays where it is.
        return torch.cat([ts[:1], self.stops, ts[-1:]])


Gradient = Callable[[Dynamics, Tensor, Tensor, Any, SolveOptions], Solution]


def snapped(times: Tensor, ts: Tensor) -> Tensor:
    """Return `times` with entries equal to output times replaced by those, so differentiable."""
    sign = (ts[-1] - ts[0]).detach().sign()
    place = torch.searchsorted(sign * ts.detach(), sign * times.detach()).clamp(max=len(ts) - 1)
    return torch.where(ts[place] == times, ts[place], times)
