"""The gradient modes of a solve.

Each mode solves a problem such that the outputs have a gradient to the initial state, the output
times and the tensors in `args`. A new mode is a new entry of `GRADIENTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.ode.options import Gradient

GRADIENTS: Registry[Gradient] = Registry(
    {
        # The solve itself under autograd: exact for the discrete solve, and differentiable again,
        # with the memory of every evaluation's graph; those of rejected steps are freed at once.
        "backprop": "cnf.ode.integrate:backprop",
        "checkpoint": "cnf.ode.checkpoint:CHECKPOINT",
        "backsolve": "cnf.ode.backsolve:BACKSOLVE",
    }
)
"""The gradient modes of `solve`, by name."""
