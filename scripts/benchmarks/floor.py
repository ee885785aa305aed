"""A lower bound on the time of exact-trace evaluations: matrix products and activations alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch


class _LayerProducts:
    """The products of a layer, forward and backward, into preallocated memory."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        self.x, self.weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        self.y, self.slope = torch.randn(rows, outputs), torch.randn(rows, outputs)
        self.x_grad, self.weight_grad = torch.empty_like(self.x), torch.empty_like(self.weight)

    def forward(self) -> None:
        torch.mm(self.x, self.weight.T, out=self.y)

    def backward(self) -> None:
        torch.mm(self.slope, self.weight, out=self.x_grad)
        torch.mm(self.slope.T, self.x, out=self.weight_grad)


class Floor:
    """An evaluation of a tanh network and its exact trace, with D tangents stacked in the batch.

    The products between hidden layers have (1 + D) rows for each row of the batch. The tangents of
    the first layer are the columns of its weights, and those of the last layer enter only by their
    sum, so neither needs a product.

    Args:
        sizes: Sizes of the input, the hidden layers and the output.
        rows: Rows of the batch.

    Example:
        >>> forward, backward = Floor((2, 8, 8, 2), rows=5).seconds(evaluations=3)
        >>> forward > 0, backward > 0
        (True, True)
    """

    def __init__(self, sizes: Sequence[int], rows: int) -> None:
        stacked = rows * (1 + sizes[0])
        between = [rows, *[stacked] * (len(sizes) - 3), rows]
        self.layers = [
            _LayerProducts(count, inputs, outputs)
            for count, (inputs, outputs) in zip(between, pairwise(sizes), strict=True)
        ]
        widths = sizes[1:-1]
        self.activations = [(torch.randn(rows, n), torch.empty(rows, n)) for n in widths]

    def seconds(self, evaluations: int) -> tuple[float, float]:
        """Return the seconds of a number of evaluations forward, and of as many backward."""
        begin = time.perf_counter()
        for _ in range(evaluations):
            self._forward()
        middle = time.perf_counter()
        for _ in range(evaluations):
            self._backward()
        return middle - begin, time.perf_counter() - middle

    def _forward(self) -> None:
        for layer in self.layers:
            layer.forward()
        for z, h in self.activations:
            torch.tanh(z, out=h)

    def _backward(self) -> None:
        for layer in self.layers:
            layer.backward()
        for z, h in self.activations:  # their derivatives, times the incoming gradient
            torch.mul(z, z, out=h)
