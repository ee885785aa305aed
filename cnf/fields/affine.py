"""Layers of a field at one time: affine maps of rows, and chains of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cnf.fields.activations import Activation


class Affine(NamedTuple):
    """The map x → (W x + U V x + m Δ x) ∘ g + o.

    Attributes:
        weight: W, shape (out, in), or (rows, out, in).
        offset: o, shape (out,), or (rows, out).
        gate: g, shape (out,), or (rows, out); None for one.
        change: Δ, shape (out, in); None for none.
        mix: m, shape (rows, 1).
        left: U, shape (rows, out, rank); None for none.
        right: V, shape (rows, rank, in).
    """

    weight: Tensor
    offset: Tensor
    gate: Tensor | None = None
    change: Tensor | None = None
    mix: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    def linear(self, x: Tensor) -> Tensor:
        """Return the linear part of the map of x (..., rows or 1, in)."""
        y = x @ self.weight.T if self.weight.ndim == 2 else row_matmul(self.weight, x)
        if self.change is not None and self.mix is not None:
            y = y + self.mix * (x @ self.change.T)
        if self.left is not None and self.right is not None:
            y = y + row_matmul(self.left, row_matmul(self.right, x))
        return y if self.gate is None else y * self.gate

    def __call__(self, x: Tensor) -> Tensor:
        """Return the map of x, shape (rows, in) → (rows, out)."""
        return self.linear(x) + self.offset


def chain(maps: Sequence[Affine], activation: Activation, x: Tensor) -> Tensor:
    """Return the value of a perceptron of affine maps at x (rows, in)."""
    *hidden, last = maps
    for affine in hidden:
        x, _ = activation.function(affine(x))
    return last(x)


def chain_products(
    maps: Sequence[Affine], activation: Activation, x: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a perceptron's value, and its Jacobian's products with vectors (K, rows or 1, in)."""
    *hidden, last = maps
    for affine in hidden:
        x, slope = activation(affine(x))
        vectors = slope * affine.linear(vectors)
    return last(x), last.linear(vectors)


def row_matmul(matrices: Tensor, x: Tensor) -> Tensor:
    """Return each row's matrix (rows, out, in) times x (..., rows or 1, in): (..., rows, out)."""
    if x.ndim == 2:  # a batched product takes twice as long, and its adjoint three times
        return (matrices * x.unsqueeze(1)).sum(-1)
    return torch.einsum("...ri,roi->...ro", x, matrices)
