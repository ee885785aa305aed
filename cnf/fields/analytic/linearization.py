"""Evaluations of a perceptron with its trace at a step's stages, differentiated by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cnf.fields.activations import Activation
from cnf.fields.analytic.compiled import PerceptronFunctions
from cnf.fields.analytic.perceptron import Perceptron, StagedPerceptron
from cnf.ode.fused_step import ExplicitLinearization

# Adds the gradients that belong to the perceptron at some of the stages to those of its constants.
ConstantsVjp = Callable[[list[int], list[Perceptron]], None]


class PerceptronLinearization(ExplicitLinearization):
    """The velocity and trace of a perceptron at a step's stages, differentiated by hand.

    States and slopes have shape (rows, dim + 1): the last column is the log-density's.

    Args:
        staged: The perceptron at the stages.
        activations: The activations of its hidden layers.
        functions: How it is evaluated.
        constants_vjp: The vector-Jacobian product of what made it.
    """

    def __init__(
        self,
        staged: StagedPerceptron,
        activations: Sequence[Activation],
        functions: PerceptronFunctions,
        constants_vjp: ConstantsVjp,
    ) -> None:
        with torch.no_grad():
            stages = staged.stages()
        super().__init__(stages, activations, functions.stage, functions.fused)
        self.constants_vjp = constants_vjp
        tensors = zip(staged.net.tensors(), staged.timed(), strict=True)
        self.bytes = sum(tensor.nbytes for tensor, timed in tensors if timed)

    def finish(self) -> None:
        """Add the gathered gradients to those of the constants."""
        if self.cotangents:
            stages = sorted(self.cotangents)
            self.constants_vjp(stages, [self.cotangents[i] for i in stages])
            self.cotangents = {}


@lru_cache
def index_tensor(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an index tensor, made once for each device: to send one to a GPU is to wait for it."""
    return torch.tensor(places, device=device)


def autograd_vjp(staged: StagedPerceptron, stages: list[int], grads: list[Perceptron]) -> None:
    """Add the gradients of a perceptron's tensors to those of its constants by autograd."""
    tensors, gradients = [], []
    columns = zip(*(own.tensors() for own in grads), strict=True)
    for tensor, timed, own in zip(staged.net.tensors(), staged.timed(), columns, strict=True):
        if not tensor.requires_grad:
            continue
        grad = torch.stack(own)
        if timed:
            grad = torch.zeros_like(tensor).index_copy(
                0, index_tensor(tuple(stages), grad.device), grad
            )
        tensors.append(tensor)
        gradients.append(grad if timed else grad.sum(0))
    if tensors:
        torch.autograd.backward(tensors, gradients, retain_graph=True)
