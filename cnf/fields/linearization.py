"""Evaluations of a perceptron with its trace, with ways back by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields.activations import Activation
from cnf.fields.kernels import Kernels
from cnf.fields.perceptron import Perceptron, Stacked
from cnf.ode import Linearization


class PerceptronLinearization(Linearization):
    """The velocity and trace of a perceptron at a step's stages, differentiated by hand.

    States are (rows, dim + 1), slopes alike: the last column is the log-density's.

    Args:
        stacked: The perceptron at the stages, as autograd knows it.
        activations: Of its hidden layers.
        kernels: How it is evaluated.
        back: Takes the gradients of the stacked tensors to what they were made of.
    """

    def __init__(
        self,
        stacked: Stacked,
        activations: Sequence[Activation],
        kernels: Kernels,
        back: Callable[[Perceptron], None],
    ) -> None:
        self.stacked, self.activations, self.kernels = stacked, activations, kernels
        self.back = back
        with torch.no_grad():
            self.stages = stacked.unstacked()
        self.gathered: list[Tensor] = []

    def push(self, i: int, y: Tensor) -> tuple[Tensor, Any]:
        """The slope, and what its way back needs."""
        x = y[:, :-1]
        with torch.no_grad():
            velocity, trace, saved = self.kernels.traced(self.stages[i], self.activations, x)
            slope = torch.cat([velocity, trace.unsqueeze(1)], 1)
        if not self.bytes:
            self.bytes = len(self.stages) * saved.nbytes
        return slope, (x, saved)

    def pull(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """The way back; what belongs to the perceptron is gathered for `finish`."""
        x, rest = saved
        stage, parts = self.stages[i], (cotangent[:, :-1], cotangent[:, -1])
        gradient, own = self.kernels.pull(stage, self.activations, x, rest, *parts)
        if not self.gathered:
            self.gathered = [torch.zeros_like(tensor) for tensor in self.stacked.net.tensors()]
        grads = zip(self.gathered, own.tensors(), self.stacked.differ(), strict=True)
        for total, grad, differs in grads:
            (total[i] if differs else total).add_(grad)
        return pad(gradient, (0, 1))

    def finish(self) -> None:
        """The way back of what the perceptrons were made of."""
        if self.gathered:
            self.back(self.stacked.net.of(self.gathered))
            self.gathered = []


def pull_stacked(net: Perceptron, grads: Perceptron) -> None:
    """The way back that autograd knows of a perceptron's tensors."""
    pairs = zip(net.tensors(), grads.tensors(), strict=True)
    wanted = [(tensor, grad) for tensor, grad in pairs if tensor.requires_grad]
    if wanted:
        tensors, own = zip(*wanted, strict=True)
        torch.autograd.backward(tensors, own, retain_graph=True)
