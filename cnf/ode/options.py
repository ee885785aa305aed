"""Options of a solve: everything but the initial value problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnf.ode.controllers import Array, Controller, Tolerance
from cnf.ode.dynamics import Dynamics
from cnf.ode.solution import Solution
from cnf.ode.tableau import Tableau

if TYPE_CHECKING:
    from cnf.ode.dense_output import OutputTimes

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
    first_step: float | Array | None = None  # arrays have an entry for each row; NaN as None
    min_step: float | Array = 0.0
    max_step: float | Array = float("inf")
    max_steps: int = 10_000
    grid: Grid | None = None  # adaptive steps when None
    row_step: Array | None = None  # each row's fixed step
    stops: Tensor | None = None  # strictly between the first and the last time, in order
    jumps: Tensor | None = None  # those of the stops at which the dynamics jump
    observer: Observer | None = None
    outputs: OutputTimes | None = None  # the first time and the last when None

    def fixed_step(self, knots: Tensor) -> Array | float:
        """Return the size of fixed steps, one or each row's."""
        return float(knots.diff().abs().max()) if self.row_step is None else self.row_step

    def knots(self, ts: Tensor) -> Tensor:
        """Return the times that no step crosses, differentiable in the output times."""
        if self.grid is not None:
            return self.grid(ts)
        if self.stops is None:
            return ts[:: len(ts) - 1]
        # An output time may coincide with a stop but moves alone: a jump stays where it is.
        return torch.cat([ts[:1], self.stops, ts[-1:]])


# Maps dynamics, a first state, the times that no step crosses, arguments and options to a solution.
Gradient = Callable[[Dynamics, Tensor, Tensor, Any, SolveOptions], Solution]


def snapped(times: Tensor, ts: Tensor) -> Tensor:
    """Return `times` with entries equal to output times replaced by those, so differentiable."""
    sign = (ts[-1] - ts[0]).detach().sign()
    place = torch.searchsorted(sign * ts.detach(), sign * times.detach()).clamp(max=len(ts) - 1)
    return torch.where(ts[place] == times, ts[place], times)


def between(times: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return the times strictly between two others."""
    low, high = torch.minimum(begin, end), torch.maximum(begin, end)
    return times[(times > low) & (times < high)]
