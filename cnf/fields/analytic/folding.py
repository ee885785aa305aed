"""Gates folded into the weights of a perceptron and the matrices of its trace, and the adjoint.

Where all rows have the same gates, a product of the size of the weights for each time replaces one
of the size of the batch for each state. The adjoint is written out: autograd's costs several times
the arithmetic here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cnf.fields.analytic.perceptron import Perceptron


class UnfoldedPerceptron(NamedTuple):
    """A perceptron with gates (times, gated width) apart, and biases (width,) of all layers."""

    weights: tuple[Tensor, ...]
    biases: Tensor
    matrices: tuple[Tensor, ...]
    gates: Tensor


@dataclass(frozen=True)
class GatedMatrix:
    """A matrix with its rows scaled by one gate and its columns by another, at several times.

    Attributes:
        matrix: Shape (out, in), or (out,).
        rows: The number of the gate of the rows.
        columns: That of the columns, repeated where they are a multiple of it; None for no gate.
    """

    matrix: Tensor
    rows: int
    columns: int | None = None

    def at(self, gates: Sequence[Tensor]) -> Tensor:
        """Return the scaled matrices, (times, out, in), for gates of shape (times, width)."""
        if self.matrix.ndim == 1:
            return self.matrix * gates[self.rows]
        scaled = self.matrix * gates[self.rows].unsqueeze(2)
        return scaled if self.columns is None else scaled * self._wide(gates[self.columns])

    def vjp(self, gates: Sequence[Tensor], grad: Tensor, gate_grads: list[Tensor]) -> Tensor:
        """Return the matrix's gradient for the scaled ones', and add to those of the gates."""
        if self.matrix.ndim == 1:
            gate_grads[self.rows] = gate_grads[self.rows] + grad * self.matrix
            return (grad * gates[self.rows]).sum(0)
        rows = gates[self.rows].unsqueeze(2)
        if self.columns is not None:
            width = gates[self.columns].shape[1]
            summed = (grad * (self.matrix * rows)).sum(1).unflatten(1, (-1, width)).sum(1)
            gate_grads[self.columns] = gate_grads[self.columns] + summed
            grad = grad * self._wide(gates[self.columns])
        gate_grads[self.rows] = gate_grads[self.rows] + (grad * self.matrix).sum(2)
        return (grad * rows).sum(0)

    def _wide(self, gate: Tensor) -> Tensor:
        """Return a gate for all columns, (times, 1, in)."""
        return gate.repeat(1, self.matrix.shape[1] // gate.shape[1]).unsqueeze(1)


def fold(unfolded: UnfoldedPerceptron, shifts: Tensor | None) -> Perceptron:
    """Return the perceptron with folded gates and shifts of all layers, (times, width).

    All tensors but the last weight have an axis of times.
    """
    weights, biases, _, gates = unfolded
    gated = gates.shape[1]
    last = biases[gated:].expand(gates.shape[0], -1)
    offsets = torch.cat([biases[:gated] * gates, last], 1)
    offsets = offsets if shifts is None else offsets + shifts
    folded = [gated.at(_parts(unfolded)) for gated in _gated_matrices(unfolded)]
    hidden = len(weights) - 1
    return Perceptron((*folded[:hidden], weights[-1]), offsets, None, tuple(folded[hidden:]))


def fold_vjp(
    unfolded: UnfoldedPerceptron, grads: Sequence[Perceptron]
) -> tuple[UnfoldedPerceptron, Tensor]:
    """Return the gradients of the unfolded perceptron and of the shifts, for those at the times."""
    biases, gates = unfolded.biases, unfolded.gates
    gated, parts = gates.shape[1], _parts(unfolded)
    offsets = torch.stack([own.offsets for own in grads])
    gate_grads = [*(offsets[:, :gated] * biases[:gated]).split([p.shape[1] for p in parts], 1)]
    own = [[*one.weights[:-1], *one.matrices] for one in grads]
    found = [
        matrix.vjp(parts, torch.stack(stages), gate_grads)
        for matrix, stages in zip(_gated_matrices(unfolded), zip(*own, strict=True), strict=True)
    ]
    hidden = len(unfolded.weights) - 1
    last = torch.stack([one.weights[-1] for one in grads]).sum(0)
    bias = torch.cat([(offsets[:, :gated] * gates).sum(0), offsets[:, gated:].sum(0)])
    weights, matrices = (*found[:hidden], last), tuple(found[hidden:])
    return UnfoldedPerceptron(weights, bias, matrices, torch.cat(gate_grads, 1)), offsets


def _parts(unfolded: UnfoldedPerceptron) -> Sequence[Tensor]:
    sizes = [weight.shape[0] for weight in unfolded.weights[:-1]]
    return [*unfolded.gates.split(sizes, 1)]


def _gated_matrices(unfolded: UnfoldedPerceptron) -> list[GatedMatrix]:
    """Return the hidden layers' weights and the trace's matrices with their gates."""
    hidden = [GatedMatrix(weight, i) for i, weight in enumerate(unfolded.weights[:-1])]
    last = len(hidden) - 1
    if len(unfolded.matrices) == 2:
        N, M = unfolded.matrices
        return [*hidden, GatedMatrix(N, 0, 1), GatedMatrix(M, last)]
    columns = 0 if last else None
    return [*hidden, *(GatedMatrix(matrix, last, columns) for matrix in unfolded.matrices)]
