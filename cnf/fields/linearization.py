"""Evaluations of a perceptron with its trace, with ways back by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves

from cnf.fields.activations import Activation
from cnf.fields.kernels import Kernels
from cnf.fields.perceptron import Gradients, Perceptron
from cnf.ode import Linearization


class PerceptronLinearization(Linearization):
    """The velocity and trace of a perceptron at a step's stages, differentiated by hand.

    States are (rows, dim + 1), slopes alike: the last column is the log-density's.

    Args:
        stages: The perceptron at each stage, as autograd knows it.
        activations: Of its hidden layers.
        kernels: How it is evaluated.
    """

    def __init__(
        self, stages: Sequence[Perceptron], activations: Sequence[Activation], kernels: Kernels
    ) -> None:
        self.stages, self.activations, self.kernels = stages, activations, kernels
        self.gathered: list[tuple[Perceptron, Gradients]] = []

    def push(self, i: int, y: Tensor) -> tuple[Tensor, Any]:
        """The slope, and what its way back needs."""
        x = y[:, :-1]
        with torch.no_grad():
            velocity, trace, saved = self.kernels.traced(self.stages[i], self.activations, x)
        if not self.bytes:
            self.bytes = len(self.stages) * sum(
                t.nbytes for t in tree_leaves(saved) if t is not None
            )
        return torch.cat([velocity, trace.unsqueeze(1)], 1), (x, saved)

    def pull(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """The way back; what belongs to the perceptron is kept for `finish`."""
        x, rest = saved
        velocity, trace = cotangent[:, :-1], cotangent[:, -1]
        gradient, own = self.kernels.pull(
            self.stages[i], self.activations, x, rest, velocity, trace
        )
        self.gathered.append((self.stages[i], own))
        return pad(gradient, (0, 1))

    def finish(self) -> None:
        """The way back of what the perceptrons were made of."""
        tensors, grads = [], []
        for stage, own in self.gathered:
            for tensor, grad in zip(tree_leaves(stage), tree_leaves(own), strict=True):
                if tensor is not None and tensor.requires_grad:
                    tensors.append(tensor)
                    grads.append(grad)
        if tensors:
            torch.autograd.backward(tensors, grads, retain_graph=True)
        self.gathered = []
