"""A solve as an autograd function: the parts that the gradient modes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from cnf.ode.dynamics import Dynamics
from cnf.ode.options import SolveOptions
from cnf.ode.solution import Solution


@dataclass
class ODEProblem:
    """An initial value problem for an autograd function, without its state."""

    f: Dynamics
    args: Any
    options: SolveOptions
    gradient: Any
    knots: Tensor
    result: Solution | None = None  # once the problem is solved


def differentiable_solve(
    function: type[torch.autograd.Function], problem: ODEProblem, y0: Tensor, times: Tensor
) -> Solution:
    """Solve by an autograd function of the times and the arguments' leaves.

    Its value is that of the pieces of dense output, where the solution has these, or the states.
    """
    leaves, _ = tree_flatten(problem.args)
    value = function.apply(problem, y0, times, *leaves)
    solution, problem.result = problem.result, None
    assert solution is not None
    if solution.pieces is None:
        return replace(solution, ys=value)
    return replace(solution, pieces=replace(solution.pieces, values=value))


def needs_gradient(*inputs: Any) -> bool:
    """Return whether autograd records for a tensor among the inputs."""
    return torch.is_grad_enabled() and any(
        isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(inputs)
    )


class InputLeaves:
    """Times and the arguments, detached as leaves that accumulate gradients."""

    def __init__(self, problem: ODEProblem, times: Tensor, needs_grad: tuple[bool, ...]) -> None:
        leaves, spec = tree_flatten(problem.args)
        self.times = as_leaf(times, needs_grad[0])
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
            leaf.grad if isinstance(leaf, Tensor) else None for leaf in (self.times, *self.all)
        )


def as_leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    """Return a tensor detached from its history, as a leaf."""
    return tensor.detach().requires_grad_(needs_grad)
