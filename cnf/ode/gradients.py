"""Gradients of a solve: how its output times' states are differentiated.

Each mode takes the problem and gives the run, whose outputs have a gradient to the initial state,
the output times and the tensors in `args`. A new mode is a new entry of `GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cnf.ode.backsolve import Backsolve
from cnf.ode.checkpoint import Checkpoint
from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import Run, integrate
from cnf.ode.settings import Settings

Gradient = Callable[[Dynamics, Tensor, Tensor, Any, Settings], Run]


def backprop(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Autograd straight through the loop: exact for the discrete solve, differentiable again.

    The memory is that of every evaluation's graph, those of rejected steps let go at once.
    """
    return integrate(f, y0, ts, args, settings)


GRADIENTS: dict[str, Gradient] = {
    "backprop": backprop,
    "checkpoint": Checkpoint(),
    "backsolve": Backsolve(),
}
