"""The gradient modes of a solve.

Each mode solves a problem such that the outputs have a gradient to the initial state, the output
times and the tensors in `args`. A new mode is a new entry of `GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cnf.ode.backsolve import Backsolve
from cnf.ode.checkpoint import Checkpoint
from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import IntegrationResult, integrate
from cnf.ode.options import SolveOptions

Gradient = Callable[[Dynamics, Tensor, Tensor, Any, SolveOptions], IntegrationResult]


def backprop(
    f: Dynamics, y0: Tensor, ts: Tensor, args: Any, options: SolveOptions
) -> IntegrationResult:
    """Solve under autograd: exact for the discrete solve, and differentiable again.

    The memory is that of every evaluation's graph; those of rejected steps are freed at once.
    """
    return integrate(f, y0, ts, args, options)


GRADIENTS: dict[str, Gradient] = {
    "backprop": backprop,
    "checkpoint": Checkpoint(),
    "backsolve": Backsolve(),
}
