"""The concat-squash network: its perceptron at a step's times, and the adjoint of its gates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields.activations import Activation, fourier_phases
from cnf.fields.analytic.compiled import PerceptronFunctions
from cnf.fields.analytic.folding import UnfoldedPerceptron, fold
from cnf.fields.analytic.perceptron import Perceptron, StagedPerceptron, trace_matrices
from cnf.fields.features import affine_in_time, time_features
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
        if self.cotangents:
            stages = sorted(self.cotangents)
            self.constants_vjp(stages, [self.cotangents[i] for i in stages])
            self.cotangents = {}


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
    context enters a and B'.

    A network of tanh is evaluated as a logistic one, whose values and slopes σ' = p − p² cost the
    fewest passes. With tanh z = 2p − 1 and p = σ(2z), a layer of tanh after one of tanh has

        2z = (4W p + 2 (b − W 1)) ∘ g + 2s:

    the same network, with other weights, which are made once for each solve.

    Attributes:
        activations: Activations σ of the hidden layers; of the logistic network where `logistic`.
        gate: The gates' activation γ.
        dim: Size of x.
        sines: The number of sines and of cosines in the first layer where that is of Fourier
            features, whose gates are one and shifts zero; 0 without it.
        fixed: Width of that layer; 0 without it.
        logistic: Whether the weights that are given are those of a tanh network.
        time_features: The number of sines and of cosines among the features of time.
    """

    activations: tuple[Activation, ...]
    gate: Activation
    dim: int
    sines: int
    fixed: int
    logistic: bool
    time_features: int

    def weights(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the weights as they are evaluated, for those of all layers."""
        if not self.logistic:
            return weights
        first = int(self.fixed > 0)  # the number of layers before the first tanh
        hidden = [4 * weight for weight in weights[first + 1 : -1]]
        return [*weights[:first], 2 * weights[first], *hidden, 2 * weights[-1]]

    def biases(self, weights: Sequence[Tensor], biases: list[Tensor]) -> Tensor:
        """Return the biases (width,), for weights of all layers and biases of all but the fixed."""
        others = self.fixed - 2 * self.sines
        fixed = [fourier_phases(others, self.sines, biases[0])] if self.fixed else []
        if self.logistic:
            pairs = zip(weights[len(fixed) + 1 :], biases[1:], strict=True)
            *hidden, last = (bias - weight.sum(1) for weight, bias in pairs)
            biases = [2 * biases[0], *(2 * bias for bias in hidden), last]
        return torch.cat([*fixed, *biases])

    def shifts(self, part: Tensor | None) -> Tensor | None:
        """Return a part of the shifts, (..., width) of all layers but the fixed, for all layers."""
        if part is None:
            return None
        if self.logistic:  # doubled where a tanh follows
            twos = part.new_full((part.shape[-1] - self.dim,), 2.0)
            part = part * pad(twos, (0, self.dim), value=1.0)
        return pad(part, (self.fixed, 0)) if self.fixed else part

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
            made = (features, unfolded, auxiliary, constants, matrices)
            constants_vjp: ConstantsVjp = partial(self._folded_vjp, functions, *made)
        else:
            with torch.enable_grad():
                staged = self.staged(times, constants, matrices)
            constants_vjp = partial(autograd_vjp, staged)
        return PerceptronLinearization(staged, self.activations, functions, constants_vjp)

    def _foldable(self, times: Tensor, constants: NetworkConstants) -> bool:
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
        """Return the gates, (times, [rows,] gated width), and their auxiliary tensor."""
        if constants.gate_biases is None:
            return None, None
        arguments = affine_in_time(features, constants.gate_times, constants.gate_biases)
        gates, auxiliary = self.gate.function(arguments)
        return pad(gates, (self.fixed, 0), value=1.0) if self.fixed else gates, auxiliary

    def _shifts(self, features: Tensor, constants: NetworkConstants) -> Tensor | None:
        if constants.shift_times is None and constants.shift_rows is None:
            return None
        return affine_in_time(features, constants.shift_times, constants.shift_rows)

    def _folded_vjp(
        self,
        functions: PerceptronFunctions,
        features: Tensor,
        unfolded: UnfoldedPerceptron,
        auxiliary: Tensor | None,
        constants: NetworkConstants,
        matrices: Sequence[Tensor],
        stages: list[int],
        grads: list[Perceptron],
    ) -> None:
        """Add the gradients of the folded perceptron at some stages to those of the constants."""
        if len(stages) < len(features):
            index = index_tensor(tuple(stages), features.device)
            features = features[index]
            unfolded = unfolded._replace(gates=unfolded.gates[index])
            auxiliary = None if auxiliary is None else auxiliary[index]
        found, offsets = functions.fold_vjp(unfolded, grads)
        slope = self.gate.slope(unfolded.gates[:, self.fixed :], auxiliary)
        arguments = found.gates[:, self.fixed :] * slope
        pairs: list[tuple[Any, Tensor]] = [*zip(constants.weights, found.weights, strict=True)]
        pairs += [*zip(matrices, found.matrices, strict=True)]
        pairs += [(constants.biases, found.biases), (constants.gate_biases, arguments.sum(0))]
        pairs += [(constants.gate_times, features.T @ arguments)]
        if constants.shift_times is not None:
            pairs += [(constants.shift_times, features.T @ offsets)]
        if constants.shift_rows is not None:
            pairs += [(constants.shift_rows, offsets.sum(0))]
        for leaf, grad in pairs:
            if leaf.requires_grad:
                leaf.grad = grad if leaf.grad is None else leaf.grad.add_(grad)


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
        if timed:
            index = index_tensor(tuple(stages), tensor.device)
            grad = torch.zeros_like(tensor).index_copy(0, index, torch.stack(own))
        else:
            grad = reduce(Tensor.add, own)
        tensors.append(tensor)
        gradients.append(grad)
    if tensors:
        torch.autograd.backward(tensors, gradients, retain_graph=True)
