"""Gates folded into the weights of a perceptron and the matrices of its trace, and the way back.

Where all rows have the same gates, a product of the size of the weights for each time takes the
place of one of the size of the batch for each state. The way back is written out: autograd's costs
several times the arithmetic here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.fields.perceptron import Perceptron, Stacked


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
        return scaled if self.columns is None else scaled * self._wide(gates).unsqueeze(1)

    def back(self, gates: Sequence[Tensor], grad: Tensor, found: Sequence[Tensor]) -> Tensor:
        """The matrix's gradient for that of the scaled ones; the gates' are added to `found`."""
        if self.matrix.ndim == 1:
            found[self.rows].add_(grad * self.matrix)
            return (grad * gates[self.rows]).sum(0)
        if self.columns is not None:
            wide = self._wide(gates).unsqueeze(1)
            moved = (grad * (self.matrix * gates[self.rows].unsqueeze(2))).sum(1)
            columns = found[self.columns]
            columns.add_(moved.view(len(moved), -1, columns.shape[1]).sum(1))
            grad = grad * wide
        found[self.rows].add_((grad * self.matrix).sum(2))
        return (grad * gates[self.rows].unsqueeze(2)).sum(0)

    def _wide(self, gates: Sequence[Tensor]) -> Tensor:
        assert self.columns is not None
        gate = gates[self.columns]
        return gate.repeat(1, self.matrix.shape[1] // gate.shape[1])


def scalings(weights: Sequence[Tensor], matrices: Sequence[Tensor]) -> list[Scaled]:
    """How the hidden layers' weights and the trace's matrices are gated."""
    hidden = [Scaled(weight, i) for i, weight in enumerate(weights[:-1])]
    last = len(hidden) - 1
    match matrices, last:
        case [[vector], 0]:
            return [*hidden, Scaled(vector, 0)]
        case [[matrix], _]:
            return [*hidden, Scaled(matrix, 1, 0)]
        case [[N, M], _]:
            return [*hidden, Scaled(N, 0, 1), Scaled(M, last)]
    return hidden


class Folding:
    """A perceptron with its gates folded in, at several times.

    Args:
        weights: Of its layers.
        biases: Of them, one after the other, (width,).
        matrices: Of its trace.
        gates: Of the hidden layers, one after the other, (times, gated width).
        shifts: Of all layers, (times, width); None for none.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Tensor,
        matrices: Sequence[Tensor],
        gates: Tensor,
        shifts: Tensor | None,
    ) -> None:
        self.weights, self.biases, self.gates = weights, biases, gates
        self.parts = gates.split([len(weight) for weight in weights[:-1]], 1)
        self.scaled = scalings(weights, matrices)
        self.shifts = shifts

    def stacked(self) -> Stacked:
        """The perceptron."""
        gated = self.gates.shape[1]
        offsets = torch.cat([self.biases[:gated] * self.gates, self._last()], 1)
        offsets = offsets if self.shifts is None else offsets + self.shifts
        folded = [scaled.at(self.parts) for scaled in self.scaled]
        hidden, matrices = folded[: len(self.parts)], tuple(folded[len(self.parts) :])
        net = Perceptron((*hidden, self.weights[-1]), offsets, None, matrices)
        return Stacked(net, len(self.gates), folded=True)

    def back(self, grads: Perceptron) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
        """The gradients of weights, biases, matrices and gates for those of the stacked net."""
        gated, gates, offsets = self.gates.shape[1], self.gates, grads.offsets
        found = offsets[:, :gated] * self.biases[:gated]
        parts = found.split([part.shape[1] for part in self.parts], 1)
        own = [*grads.weights[:-1], *grads.matrices]
        back = [
            scaled.back(self.parts, grad, parts)
            for scaled, grad in zip(self.scaled, own, strict=True)
        ]
        biases = torch.cat([(offsets[:, :gated] * gates).sum(0), offsets[:, gated:].sum(0)])
        hidden = len(self.parts)
        return [*back[:hidden], grads.weights[-1]], biases, back[hidden:], found

    def _last(self) -> Tensor:
        """The last layer's biases, which have no gate."""
        return self.biases[self.gates.shape[1] :].expand(len(self.gates), -1)
