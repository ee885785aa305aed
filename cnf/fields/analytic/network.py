"""The concat-squash network: its perceptron at a step's times, and the adjoint of its gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields.activations import Activation
from cnf.fields.analytic.compiled import PerceptronFunctions
from cnf.fields.analytic.folding import UnfoldedPerceptron, fold
from cnf.fields.analytic.linearization import (
    ConstantsVjp,
    PerceptronLinearization,
    autograd_vjp,
    index_tensor,
)
from cnf.fields.analytic.logistic import logistic_biases, logistic_shifts, logistic_weights
from cnf.fields.analytic.perceptron import Perceptron, StagedPerceptron, trace_matrices
from cnf.fields.conditioning import affine_in_time, time_features


class NetworkConstants(NamedTuple):
    """The tensors of a network for a whole solve; entries for its layers one after the other.

    Tensors that belong to rows are wrapped in `PerRow` until a solver unwraps them.

    Attributes:
        weights: Weights of all layers.
        biases: Shape (width,).
        gate_times: Weights of the features of time in the gates, (features, gated width).
        gate_biases: Constant part of the gates, (gated width,); (rows, gated width) with a context.
        shift_times: Weights of the features of time in the shifts, (features, width).
        shift_rows: The context's part of the shifts, (rows, width).
    """

    weights: tuple[Tensor, ...]
    biases: Tensor
    gate_times: Tensor | None
    gate_biases: Any
    shift_times: Tensor | None
    shift_rows: Any


@dataclass(frozen=True)
class GatedNetwork:
    """The form of a concat-squash network, whose tensors are arguments of its methods.

        h_l = σ(z_l),   z_l = (W_l h_{l−1} + b_l) ∘ g_l + s_l,   f = W_{L+1} h_L + b_{L+1} + s_{L+1}

    with gates g = γ(A φ(t) + a) and shifts s = B φ(t) + B', where φ are features of time and the
    context enters a and B'. A network of tanh is evaluated as a logistic one.

    Attributes:
        activations: Activations σ of the hidden layers; of the logistic network where `logistic`.
        gate: The gates' activation γ.
        dim: Size of x.
        fixed: Width of the first layer where that is of Fourier features, whose gates are one and
            shifts zero; 0 without it.
        logistic: Whether the weights that are given are those of a tanh network.
        time_features: The number of sines and of cosines among the features of time.
    """

    activations: tuple[Activation, ...]
    gate: Activation
    dim: int
    fixed: int
    logistic: bool
    time_features: int

    def weights(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the weights as they are evaluated, for those of all layers."""
        return logistic_weights(weights, self._first) if self.logistic else weights

    def biases(self, weights: Sequence[Tensor], biases: list[Tensor]) -> Tensor:
        """Return the biases (width,), for weights of all layers and biases of all but the fixed."""
        if self.fixed:
            biases = [biases[0].new_zeros(self.fixed), *biases]
        if self.logistic:
            biases = logistic_biases(weights, biases, self._first)
        return torch.cat(biases)

    def shifts(self, part: Tensor | None) -> Tensor | None:
        """Return a part of the shifts, (..., width) of all layers but the fixed, for all layers."""
        if part is None:
            return None
        part = pad(part, (self.fixed, 0)) if self.fixed else part
        return logistic_shifts(part, self.fixed, self.dim) if self.logistic else part

    def trace_matrices(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the matrices of the trace, for the weights of all layers."""
        return trace_matrices(self.weights(weights))

    def staged(self, times: Tensor, constants: NetworkConstants, matrices: Any) -> StagedPerceptron:
        """Return the perceptron at all times; gates that all rows share are folded in."""
        features, matrices = time_features(times, self.time_features), matrices or ()
        shifts = self._shifts(features, constants)
        if self._foldable(times, constants):
            unfolded, _ = self._unfolded(features, constants, matrices)
            return StagedPerceptron(fold(unfolded, shifts), len(times), folded=True)
        gates, _ = self._gates(features, constants)
        offsets = constants.biases.expand(len(times), -1)
        if gates is not None:
            offsets = constants.biases * pad(gates, (0, self.dim), value=1.0)
        if shifts is not None:
            offsets = (offsets if offsets.ndim == shifts.ndim else offsets.unsqueeze(1)) + shifts
        net = Perceptron(constants.weights, offsets, gates, matrices)
        return StagedPerceptron(net, len(times), folded=False)

    def linearize(
        self,
        times: Tensor,
        constants: NetworkConstants,
        matrices: Sequence[Tensor],
        functions: PerceptronFunctions,
    ) -> PerceptronLinearization:
        """Return the velocity and trace at times, differentiated by hand.

        The gates are, too, where they are folded in; the rest is differentiated by autograd.
        """
        tensors = (*constants.weights, *constants[1:], *matrices)
        leaves = all(tensor is None or tensor.is_leaf for tensor in tensors)
        if leaves and self._foldable(times, constants):
            features = time_features(times, self.time_features)
            with torch.no_grad():
                unfolded, auxiliary = self._unfolded(features, constants, matrices)
                net = functions.fold(unfolded, self._shifts(features, constants))
            staged = StagedPerceptron(net, len(times), folded=True)
            made = FoldedStages(features, unfolded, auxiliary, constants, matrices)
            constants_vjp: ConstantsVjp = partial(self._folded_vjp, made, functions)
        else:
            with torch.enable_grad():
                staged = self.staged(times, constants, matrices)
            constants_vjp = partial(autograd_vjp, staged)
        return PerceptronLinearization(staged, self.activations, functions, constants_vjp)

    @property
    def _first(self) -> int:
        """The number of layers before the first tanh."""
        return 1 if self.fixed else 0

    def _foldable(self, times: Tensor, constants: NetworkConstants) -> bool:
        """Return whether there are gates that all rows share."""
        biases = constants.gate_biases
        return biases is not None and biases.ndim == 1 and times.ndim == 1

    def _unfolded(
        self, features: Tensor, constants: NetworkConstants, matrices: Any
    ) -> tuple[UnfoldedPerceptron, Tensor | None]:
        """Return the perceptron with its gates apart, and the auxiliary tensor of the gates."""
        gates, auxiliary = self._gates(features, constants)
        assert gates is not None
        weights, biases = constants.weights, constants.biases
        return UnfoldedPerceptron(weights, biases, tuple(matrices), gates), auxiliary

    def _gates(
        self, features: Tensor, constants: NetworkConstants
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gates, (times, [rows,] gated width), and their activation's auxiliary tensor.

        Gates of Fourier features of x are one.
        """
        if constants.gate_biases is None:
            return None, None
        arguments = affine_in_time(features, constants.gate_times, constants.gate_biases)
        gates, auxiliary = self.gate.function(arguments)
        return pad(gates, (self.fixed, 0), value=1.0) if self.fixed else gates, auxiliary

    def _shifts(self, features: Tensor, constants: NetworkConstants) -> Tensor | None:
        """Return the shifts, (times, [rows,] width)."""
        if constants.shift_times is None and constants.shift_rows is None:
            return None
        return affine_in_time(features, constants.shift_times, constants.shift_rows)

    def _folded_vjp(
        self,
        made: FoldedStages,
        functions: PerceptronFunctions,
        stages: list[int],
        grads: list[Perceptron],
    ) -> None:
        """Add the gradients of the folded perceptron at some stages to those of the constants."""
        features, unfolded, auxiliary, constants, matrices = made.select(stages)
        found, offsets = functions.fold_vjp(unfolded, grads)
        slope = self.gate.slope(unfolded.gates[:, self.fixed :], auxiliary)
        arguments = found.gates[:, self.fixed :] * slope
        pairs: list[tuple[Any, Tensor]] = [*zip(constants.weights, found.weights, strict=True)]
        pairs += [*zip(matrices, found.matrices, strict=True)]
        pairs += [(constants.biases, found.biases), (constants.gate_biases, arguments.sum(0))]
        pairs += [(constants.gate_times, features.T @ arguments)]
        if constants.shift_times is not None:
            pairs += [(constants.shift_times, features.T @ offsets)]
        for leaf, grad in pairs:
            if leaf.requires_grad:
                leaf.grad = grad if leaf.grad is None else leaf.grad.add_(grad)


class FoldedStages(NamedTuple):
    """The tensors that a perceptron with folded gates is made of at some times.

    Attributes:
        features: Features of the times.
        unfolded: The perceptron with its gates apart.
        auxiliary: The auxiliary tensor of the gates' activation.
        constants: The network's constants, leaves.
        matrices: The matrices of the trace, leaves.
    """

    features: Tensor
    unfolded: UnfoldedPerceptron
    auxiliary: Tensor | None
    constants: NetworkConstants
    matrices: Sequence[Tensor]

    def select(self, stages: list[int]) -> FoldedStages:
        """Return these tensors at some of the times."""
        if len(stages) == len(self.features):
            return self
        index = index_tensor(tuple(stages), self.features.device)
        return self._replace(
            features=self.features[index],
            unfolded=self.unfolded._replace(gates=self.unfolded.gates[index]),
            auxiliary=None if self.auxiliary is None else self.auxiliary[index],
        )
