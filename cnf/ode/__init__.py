"""The shared adaptive ODE solver: knows nothing of flows."""

from cnf.ode.controllers import PIController, Tolerance, rms_norm
from cnf.ode.gradients import GRADIENTS
from cnf.ode.solution import Solution, SolveError, Stats, Status
from cnf.ode.solve import solve
from cnf.ode.tableaus import TABLEAUS, Tableau

__all__ = [
    "GRADIENTS",
    "TABLEAUS",
    "PIController",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "Tableau",
    "Tolerance",
    "rms_norm",
    "solve",
]
