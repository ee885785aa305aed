"""How to integrate: everything but the problem itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        stops: Times that a step has to end at.
        jumps: Times where the dynamics jump: steps end there, and look at neither's other side.
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
        return ts[:: len(ts) - 1] if self.grid is None else self.grid(ts)
