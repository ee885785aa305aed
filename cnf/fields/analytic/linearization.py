"""Evaluations of a perceptron with its trace, with ways back by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cnf.fields.activations import Activation
from cnf.fields.analytic.kernels import Kernels
from cnf.fields.analytic.perceptron import Perceptron, Stacked
from cnf.ode import Linearization
from cnf.ode.dynamics import Evaluation
from cnf.ode.tableaus import Tableau

# Takes the gradients of the perceptron at some of the stages to what it was made of.
Back = Callable[[list[int], list[Perceptron]], None]


class PerceptronLinearization(Linearization):
    """The velocity and trace of a perceptron at a step's stages, differentiated by hand.

    States are (rows, dim + 1), slopes alike: the last column is the log-density's.

    Args:
        stacked: The perceptron at the stages.
        activations: Of its hidden layers.
        kernels: How it is evaluated.
        back: The way back of what made it.
    """

    def __init__(
        self, stacked: Stacked, activations: Sequence[Activation], kernels: Kernels, back: Back
    ) -> None:
        self.activations, self.kernels, self.back = activations, kernels, back
        with torch.no_grad():
            self.stages = stacked.unstacked()
        self.gathered: dict[int, Perceptron] = {}
        tensors = zip(stacked.net.tensors(), stacked.differ(), strict=True)
        self.bytes = sum(tensor.nbytes for tensor, differs in tensors if differs)

    def push(self, i: int, y: Tensor, *, inner: bool = False) -> tuple[Tensor, Any]:
        """The slope, and what its way back needs."""
        evaluate = self.kernels.bare if inner else self.kernels.traced
        x = y[:, :-1]
        with torch.no_grad():
            slope, saved = evaluate(self.stages[i], self.activations, x)
        self.bytes += saved.nbytes
        return slope, (x, saved, self._way_back(inner))

    def pull(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """The way back; what belongs to the perceptron is gathered for `finish`."""
        x, rest, pull = saved
        gradient: Tensor
        gradient, own = pull(self.stages[i], self.activations, x, rest, cotangent)
        self.gathered[i] = own
        return gradient

    def push_step(
        self, tableau: Tableau, count: int, y: Tensor, slope: Tensor, h: Tensor
    ) -> tuple[list[Tensor], Tensor, list[Any]] | None:
        """The step by one compiled function."""
        steps = self.kernels.steps(tableau)
        if steps is None:
            return None
        with torch.no_grad():
            step = steps.push(count, self.stages, self.activations, y, slope, h)
        slopes, end, states, kept = step
        self.bytes += sum(saved.nbytes for saved in kept)
        pulls = [self._way_back(inner) for inner in tableau.inner[1:]]
        xs = [state[:, :-1] for state in states]
        return slopes, end, [*zip(xs, kept, pulls, strict=False)]

    def pull_step(
        self, tableau: Tableau, evaluations: Sequence[Evaluation], cotangent: Tensor, size: float
    ) -> Tensor | None:
        """Its way back by another."""
        steps = self.kernels.steps(tableau)
        if steps is None:
            return None
        nets, gatherers = [], []
        for evaluation in evaluations:
            owner = evaluation.linearization
            assert isinstance(owner, PerceptronLinearization)
            nets.append(owner.stages[evaluation.stage])
            gatherers.append(owner.gathered)
        xs, kept, _ = zip(*(evaluation.saved for evaluation in evaluations), strict=True)
        h = cotangent.new_full((), size)  # which does not wait for a GPU
        start: Tensor
        start, found = steps.pull(nets, self.activations, xs, kept, cotangent, h)
        for gathered, evaluation, own in zip(gatherers, evaluations, found, strict=True):
            gathered[evaluation.stage] = own
        return start

    def finish(self) -> None:
        """The way back of what the perceptrons were made of."""
        if self.gathered:
            stages = sorted(self.gathered)
            self.back(stages, [self.gathered[i] for i in stages])
            self.gathered = {}

    def _way_back(self, inner: bool) -> Callable[..., tuple[Tensor, Perceptron]]:
        return self.kernels.pull_bare if inner else self.kernels.pull


@lru_cache
def index_tensor(places: tuple[int, ...], device: torch.device) -> Tensor:
    """An index, made once for each device: to bring one to a GPU is to wait for it."""
    return torch.tensor(places, device=device)


def pull_stacked(stacked: Stacked, stages: list[int], grads: list[Perceptron]) -> None:
    """The way back that autograd knows of a perceptron's tensors."""
    tensors, found = [], []
    columns = zip(*(own.tensors() for own in grads), strict=True)
    for tensor, differs, own in zip(stacked.net.tensors(), stacked.differ(), columns, strict=True):
        if not tensor.requires_grad:
            continue
        grad = torch.stack(own)
        if differs:
            grad = torch.zeros_like(tensor).index_copy(
                0, index_tensor(tuple(stages), grad.device), grad
            )
        tensors.append(tensor)
        found.append(grad if differs else grad.sum(0))
    if tensors:
        torch.autograd.backward(tensors, found, retain_graph=True)
