"""Gates folded into the weights of a perceptron and the matrices of its trace, and the way back.

Where all rows have the same gates, a product of the size of the weights for each time takes the
place of one of the size of the batch for each state. The way back is written out: autograd's costs
several times the arithmetic here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cnf.fields.analytic.perceptron import Perceptron


class Unfolded(NamedTuple):
    """What a perceptron with folded gates is made of.

    Attributes:
        weights: Of its layers.
        biases: Of them, one after the other, (width,).
        matrices: Of its trace.
        gates: Of the hidden layers, one after the other, (times, gated width).
    """

    weights: tuple[Tensor, ...]
    biases: Tensor
    matrices: tuple[Tensor, ...]
    gates: Tensor


@dataclass(frozen=True)
class Scaled:
    """A matrix with its rows scaled by one gate and its columns by another, at several times.

    Attributes:
        matrix: Shape (out, in), or (out,).
        rows: Which gate the rows have.
        columns: Which one the columns have, one after the other where they are a multiple; None for
            none.
    """

    matrix: Tensor
    rows: int
    columns: int | None = None

    def at(self, gates: Sequence[Tensor]) -> Tensor:
        """The scaled matrices, (times, out, in), for gates of shape (times, width)."""
        if self.matrix.ndim == 1:
            return self.matrix * gates[self.rows]
        scaled = self.matrix * gates[self.rows].unsqueeze(2)
        return scaled if self.columns is None else scaled * self._wide(gates[self.columns])

    def back(self, gates: Sequence[Tensor], grad: Tensor, found: list[Tensor]) -> Tensor:
        """The matrix's gradient for that of the scaled ones; the gates' are added to `found`."""
        if self.matrix.ndim == 1:
            found[self.rows] = found[self.rows] + grad * self.matrix
            return (grad * gates[self.rows]).sum(0)
        rows = gates[self.rows].unsqueeze(2)
        if self.columns is not None:
            width = gates[self.columns].shape[1]
            moved = (grad * (self.matrix * rows)).sum(1).unflatten(1, (-1, width)).sum(1)
            found[self.columns] = found[self.columns] + moved
            grad = grad * self._wide(gates[self.columns])
        found[self.rows] = found[self.rows] + (grad * self.matrix).sum(2)
        return (grad * rows).sum(0)

    def _wide(self, gate: Tensor) -> Tensor:
        """A gate for all columns, (times, 1, in)."""
        return gate.repeat(1, self.matrix.shape[1] // gate.shape[1]).unsqueeze(1)


def fold(plain: Unfolded, shifts: Tensor | None) -> Perceptron:
    """The perceptron at all times, each of its tensors but the last weight with an axis for them.

    Args:
        plain: What it is made of.
        shifts: Of all layers, (times, width); None for none.
    """
    weights, biases, _, gates = plain
    gated = gates.shape[1]
    last = biases[gated:].expand(gates.shape[0], -1)
    offsets = torch.cat([biases[:gated] * gates, last], 1)
    offsets = offsets if shifts is None else offsets + shifts
    folded = [scaled.at(_parts(plain)) for scaled in _scaled(plain)]
    hidden = len(weights) - 1
    return Perceptron((*folded[:hidden], weights[-1]), offsets, None, tuple(folded[hidden:]))


def fold_back(plain: Unfolded, grads: Sequence[Perceptron]) -> tuple[Unfolded, Tensor]:
    """The gradients of what a perceptron is made of and of the shifts, for its own at the times."""
    biases, gates = plain.biases, plain.gates
    gated, parts = gates.shape[1], _parts(plain)
    offsets = torch.stack([own.offsets for own in grads])
    found = [*(offsets[:, :gated] * biases[:gated]).split([p.shape[1] for p in parts], 1)]
    own = [[*one.weights[:-1], *one.matrices] for one in grads]
    back = [
        scaled.back(parts, torch.stack(stages), found)
        for scaled, stages in zip(_scaled(plain), zip(*own, strict=True), strict=True)
    ]
    hidden = len(plain.weights) - 1
    last = torch.stack([one.weights[-1] for one in grads]).sum(0)
    bias = torch.cat([(offsets[:, :gated] * gates).sum(0), offsets[:, gated:].sum(0)])
    weights = (*back[:hidden], last)
    return Unfolded(weights, bias, tuple(back[hidden:]), torch.cat(found, 1)), offsets


def _parts(plain: Unfolded) -> Sequence[Tensor]:
    """The gates of each hidden layer."""
    sizes = [weight.shape[0] for weight in plain.weights[:-1]]
    parts: Sequence[Tensor] = plain.gates.split(sizes, 1)
    return parts


def _scaled(plain: Unfolded) -> list[Scaled]:
    """How the hidden layers' weights and the trace's matrices are gated."""
    hidden = [Scaled(weight, i) for i, weight in enumerate(plain.weights[:-1])]
    last = len(hidden) - 1
    if len(plain.matrices) == 2:
        N, M = plain.matrices
        return [*hidden, Scaled(N, 0, 1), Scaled(M, last)]
    return [*hidden, *(Scaled(matrix, last, 0 if last else None) for matrix in plain.matrices)]
