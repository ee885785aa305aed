"""The shared adaptive ODE solver: knows nothing of flows."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_names

if TYPE_CHECKING:
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
    from cnf.ode.gradients import GRADIENTS
    from cnf.ode.neural_ode import NeuralODE
    from cnf.ode.options import Gradient
    from cnf.ode.solution import Solution, SolveError, Stats, Status
    from cnf.ode.solver import StepMode, solve
    from cnf.ode.tableau import Tableau
    from cnf.ode.tableaus import TABLEAUS
    from cnf.ode.torchdiffeq import odeint, odeint_adjoint, odeint_event
else:  # the names of methods and gradient modes need no PyTorch
    _NAMES = {
        "arguments": "PerRow take_rows",
        "backsolve": "Backsolve",
        "checkpoint": "Checkpoint",
        "controllers": "IController Norm PIController Tolerance max_norm rms_norm row_max_norm "
        "row_rms_norm",
        "dynamics": "AutogradLinearization Dynamics Linearization StagedDynamics",
        "gradients": "GRADIENTS",
        "neural_ode": "NeuralODE",
        "options": "Gradient",
        "solution": "Solution SolveError Stats Status",
        "solver": "StepMode solve",
        "tableau": "Tableau",
        "tableaus": "TABLEAUS",
        "torchdiffeq": "odeint odeint_adjoint odeint_event",
    }
    __getattr__, __dir__ = lazy_names(
        __name__,
        {name: f"cnf.ode.{file}:{name}" for file in _NAMES for name in _NAMES[file].split()},
    )

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
    "NeuralODE",
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
    "odeint_event",
    "rms_norm",
    "row_max_norm",
    "row_rms_norm",
    "solve",
    "take_rows",
]
