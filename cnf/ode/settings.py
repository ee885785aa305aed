"""How to integrate: everything but the problem itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.ode.controllers import Controller, Tolerance
from cnf.ode.tableaus import Tableau

# Called with "step", "accept" or "reject", a step's start, state and size.
Observer = Callable[[str, Tensor, Tensor, Tensor], None]
# Gives, from the output times, the times of fixed steps.
Grid = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Settings:
    """How to integrate: everything but the problem itself.

    Attributes:
        tableau: The method.
        tolerance: Tolerance and norm; the norm gives one error for each lane.
        controller: Chooses the next step's size.
        per_sample: Whether every row of the state has its own steps.
        first_step: Size of the first step, chosen from the dynamics when None.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        max_steps: The most steps for each lane, accepted and rejected.
        grid: Gives, from the output times, times to step through with no error control; adaptive
            when None.
        stops: Times between the first and the last that a step has to end at, in order.
        jumps: Those of them where the dynamics jump: no step looks beyond.
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
        """The times that steps lie between, differentiable in the output times."""
        if self.grid is not None:
            return self.grid(ts)
        if self.stops is None:
            return ts[:: len(ts) - 1]
        # An output time may coincide with a stop, and moves alone: what jumps there stays.
        return torch.cat([ts[:1], self.stops, ts[-1:]])


def snapped(times: Tensor, ts: Tensor) -> Tensor:
    """`times`, with those among the output times taken from there, and so differentiable."""
    sign = (ts[-1] - ts[0]).detach().sign()
    place = torch.searchsorted(sign * ts.detach(), sign * times.detach()).clamp(max=len(ts) - 1)
    return torch.where(ts[place] == times, ts[place], times)
