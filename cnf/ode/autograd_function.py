"""What the gradient modes share: a solve as an autograd function, its inputs as leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import Run, integrate
from cnf.ode.settings import Settings


@dataclass
class Problem:
    """What goes into the autograd functions that is not a tensor, and the run that comes out."""

    f: Dynamics
    args: Any
    settings: Settings
    mode: Any
    run: Run | None = None


def differentiable(
    function: type[torch.autograd.Function], problem: Problem, y0: Tensor, ts: Tensor
) -> Run:
    """Run an autograd function over the arguments' leaves; a plain solve where none wants it."""
    leaves, _ = tree_flatten(problem.args)
    tensors = [leaf for leaf in (y0, ts, *leaves) if isinstance(leaf, Tensor)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        with torch.no_grad():
            return integrate(problem.f, y0, ts, problem.args, problem.settings)
    ys = function.apply(problem, y0, ts, *leaves)
    assert problem.run is not None
    return replace(problem.run, ys=ys)


class Leaves:
    """The output times and the arguments once more, as leaves that gather gradients.

    Attributes:
        ts: The output times.
        args: The arguments.
        wanted: The arguments' tensors that want a gradient.
    """

    def __init__(self, problem: Problem, ts: Tensor, needs: tuple[bool, ...]) -> None:
        leaves, spec = tree_flatten(problem.args)
        self.ts = as_leaf(ts, needs[0])
        self.all = [
            as_leaf(leaf, needed) if isinstance(leaf, Tensor) else leaf
            for leaf, needed in zip(leaves, needs[1:], strict=True)
        ]
        self.wanted = [leaf for leaf in self.all if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.args = tree_unflatten(self.all, spec)

    def grads(self) -> tuple[Tensor | None, ...]:
        """What they gathered: of the times, and of every argument."""
        return tuple(
            leaf.grad if isinstance(leaf, Tensor) else None for leaf in (self.ts, *self.all)
        )


def as_leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    """The same tensor without its history, to gather a gradient of its own."""
    return tensor.detach().requires_grad_(needs_grad)
