"""The shared adaptive ODE solver: knows nothing of flows."""

from cnf.ode.arguments import PerRow, take_rows
from cnf.ode.backsolve import Backsolve
from cnf.ode.checkpoint import Checkpoint
from cnf.ode.controllers import (
    IController,
    Norm,
    PIController,
    Tolerance,
    max_norm,
    rms_norm,
    row_max_norm,
    row_rms_norm,
)
from cnf.ode.dynamics import AutogradLinearization, Dynamics, Linearization, StagedDynamics
from cnf.ode.gradients import GRADIENTS, Gradient
from cnf.ode.odeint import odeint, odeint_adjoint
from cnf.ode.solution import Solution, SolveError, Stats, Status
from cnf.ode.solve import StepMode, solve
from cnf.ode.tableau import Tableau
from cnf.ode.tableaus import TABLEAUS

__all__ = [
    "GRADIENTS",
    "TABLEAUS",
    "AutogradLinearization",
    "Backsolve",
    "Checkpoint",
    "Dynamics",
    "Gradient",
    "IController",
    "Linearization",
    "Norm",
    "PIController",
    "PerRow",
    "Solution",
    "SolveError",
    "StagedDynamics",
    "Stats",
    "Status",
    "StepMode",
    "Tableau",
    "Tolerance",
    "max_norm",
    "odeint",
    "odeint_adjoint",
    "rms_norm",
    "row_max_norm",
    "row_rms_norm",
    "solve",
    "take_rows",
]
