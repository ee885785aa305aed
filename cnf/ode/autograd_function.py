"""A solve as an autograd function: the parts that the gradient modes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cnf.ode.dynamics import Dynamics
from cnf.ode.integrate import integrate
from cnf.ode.options import SolveOptions
from cnf.ode.solution import Solution


@dataclass
class ODEProblem:
    """An initial value problem for an autograd function, without its state and times."""

    f: Dynamics
    args: Any
    options: SolveOptions
    gradient: Any
    result: Solution | None = None  # once the problem is solved


def differentiable_solve(
    function: type[torch.autograd.Function], problem: ODEProblem, y0: Tensor, ts: Tensor
) -> Solution:
    """Solve by an autograd function of the arguments' leaves, or plainly without a gradient."""
    leaves, _ = tree_flatten(problem.args)
    tensors = [leaf for leaf in (y0, ts, *leaves) if isinstance(leaf, Tensor)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        with torch.no_grad():
            return integrate(problem.f, y0, ts, problem.args, problem.options)
    ys = function.apply(problem, y0, ts, *leaves)
    assert problem.result is not None
    return replace(problem.result, ts=ts, ys=ys)


class InputLeaves:
    """The output times and the arguments, detached as leaves that accumulate gradients."""

    def __init__(self, problem: ODEProblem, ts: Tensor, needs_grad: tuple[bool, ...]) -> None:
        leaves, spec = tree_flatten(problem.args)
        self.ts = as_leaf(ts, needs_grad[0])
        self.all = [
            as_leaf(leaf, needed) if isinstance(leaf, Tensor) else leaf
            for leaf, needed in zip(leaves, needs_grad[1:], strict=True)
        ]
        self.differentiable = [
            leaf for leaf in self.all if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        self.args = tree_unflatten(self.all, spec)

    def grads(self) -> tuple[Tensor | None, ...]:
        """Return the accumulated gradients of the times and of each leaf of the arguments."""
        return tuple(
            leaf.grad if isinstance(leaf, Tensor) else None for leaf in (self.ts, *self.all)
        )


def as_leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    """Return a tensor detached from its history, as a leaf."""
    return tensor.detach().requires_grad_(needs_grad)
