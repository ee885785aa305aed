"""A perceptron whose hidden layers are gated and shifted by time and context: FFJORD's family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cnf.fields.activations import find_activation, waves
from cnf.fields.analytic.folding import Unfolded, fold
from cnf.fields.analytic.kernels import EAGER, Kernels, Sizes, compiled_kernels
from cnf.fields.analytic.linearization import (
    Back,
    PerceptronLinearization,
    index_tensor,
    pull_stacked,
)
from cnf.fields.analytic.logistic import (
    LOGISTIC,
    logistic_biases,
    logistic_shifts,
    logistic_weights,
)
from cnf.fields.analytic.perceptron import Perceptron, Stacked, trace_matrices
from cnf.fields.conditioning import combined, time_features
from cnf.fields.features import feature_matrix
from cnf.fields.field import Traced, TracedField
from cnf.fields.gated_linear import GatedLinear
from cnf.ode import Linearization, PerRow


class Constants(NamedTuple):
    """What a gated perceptron needs for a whole solve; entries for its layers one after the other.

    What belongs to rows is a `PerRow` until a solver unwraps it.

    Attributes:
        weights: Of all layers.
        biases: Shape (width,).
        gate_times: By which the features of time enter the gates, (features, gated width).
        gate_biases: What else does: (gated width,), or (rows, gated width) with a context.
        shift_times: By which the features of time enter the shifts, (features, width).
        shift_rows: What the context shifts by, (rows, width).
    """

    weights: tuple[Tensor, ...]
    biases: Tensor
    gate_times: Tensor | None
    gate_biases: Any
    shift_times: Tensor | None
    shift_rows: Any


class GatedPerceptron(TracedField):
    """A network whose hidden layers are gated and shifted by time and context.

    With h₀ = x, signals s = (t, features of t, c) and layers l = 1 … L,

        h_l = σ(z_l),   z_l = (W_l h_{l−1} + b_l) ∘ g_l(s) + B_l s,
        f(t, x, c) = W_{L+1} h_L + b_{L+1} + B_{L+1} s.

    A subclass says whether there are gates g, shifts B s, and the time among the signals. The last
    layer is never gated, so that the matrices of the trace (see `cnf.fields.analytic.perceptron`) are of the
    weights alone. With Fourier features of x, h₀ = (x, sin ωx, cos ωx): a layer with weights that
    are drawn and fixed, which counts as a hidden one. Angles θ enter by such a layer alone, as
    sin kθ and cos kθ in their place, and the frequencies that are drawn are rounded for them: the
    field is one on the circle.

    Args:
        dim: Size of x.
        hidden: Widths of the hidden layers, at least one.
        context_dim: Size of the context c; 0 without one.
        activation: A name in `ACTIVATIONS`.
        zero_last: Whether the last layer starts at zero, and so the field, and its flow as the
            identity.
        time_features: The number of sines and of cosines of 2πkt among the signals.
        x_features: The number of sines and of cosines ωx, with ω drawn from N(0, x_scale²).
        x_scale: The standard deviation of ω.
        circular: Which columns of x are angles, in radians.
        harmonics: k = 1 … harmonics of each of them.

    Raises:
        ValueError: A size or a column is out of range, or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Source: Grathwohl et al. (2019), FFJORD, appendix B.1, with the last layer ungated; Rahimi &
    Recht (2007), Random features for large-scale kernel machines.
    """

    gated: ClassVar[bool] = True
    shifted: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    kernels: Kernels = EAGER
    time_features: int
    x_features: int
    x_scale: float
    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        zero_last: bool = False,
        time_features: int = 0,
        x_features: int = 0,
        x_scale: float = 1.0,
        circular: Sequence[int] = (),
        harmonics: int = 3,
    ) -> None:
        super().__init__()
        features = {"time_features": time_features, "x_features": x_features, "x_scale": x_scale}
        self._set_arguments(
            dim, hidden, context_dim, activation, circular, harmonics=harmonics, **features
        )
        if time_features and not self.timed:
            raise ValueError(
                f"Expected no time_features for the field {self.name}, which time does not enter; "
                f"got {time_features}"
            )
        if not x_scale > 0:
            raise ValueError(f"Expected x_scale above 0; got {x_scale}")
        self.logistic = activation == "tanh"
        own = LOGISTIC if self.logistic else find_activation(activation)
        self.activations = (own,) * len(self.hidden)
        if self.sines:
            drawn = x_scale * torch.randn(x_features, dim)
            first = feature_matrix(self.circular, harmonics, drawn)
            self.register_buffer("frequencies", first)
            plain = dim - len(self.circular)
            self.activations = (waves(plain, self.sines), *self.activations)
        self.times = (1 + 2 * time_features) * self.timed  # signals that are of time
        signals = self.times + context_dim
        shifted = self.shifted and signals > 0
        sizes = [self.fixed or dim, *self.hidden]
        layers = nn.ModuleList(
            GatedLinear(inputs, outputs, signals, gate=self.gated, shift=shifted)
            for inputs, outputs in pairwise(sizes)
        )
        # For the type checker, what the module list holds.
        self.layers = cast("Sequence[GatedLinear]", layers)
        self.last = GatedLinear(sizes[-1], dim, signals, gate=False, shift=shifted)
        self.trace = "closed form" if len(self.activations) <= 2 else "tangents"
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def constants(self, context: Tensor | None) -> Constants:
        """The layers' parameters, joined, and what the context does to each row."""
        layers = [*self.layers, self.last]
        weights = self._weights()
        biases: list[Tensor] = [layer.linear.bias for layer in layers]
        biases = [biases[0].new_zeros(self.fixed), *biases] if self.fixed else biases
        gate_times = shift_times = None
        gate_biases: Any = None
        shift_rows = None
        gates = [layer.gate for layer in self.layers if layer.gate is not None]
        if gates:
            gate_times, rows = self._split(torch.cat([gate.weight for gate in gates]), context)
            gate_biases = torch.cat([gate.bias for gate in gates])
            gate_biases = gate_biases if rows is None else PerRow(gate_biases + rows)
        shifts = [layer.shift for layer in layers if layer.shift is not None]
        if shifts:
            shift = torch.cat([shift.weight for shift in shifts])
            shift_times, rows = (self._shift(part) for part in self._split(shift, context))
            shift_rows = None if rows is None else PerRow(rows)
        if self.logistic:
            first = 1 if self.fixed else 0
            biases = logistic_biases(weights, biases, first)
            weights = logistic_weights(weights, first)
        return Constants(
            tuple(weights), torch.cat(biases), gate_times, gate_biases, shift_times, shift_rows
        )

    def trace_constants(self) -> tuple[Tensor, ...]:
        """The matrices of the trace."""
        weights = self._weights()
        if self.logistic:
            weights = logistic_weights(weights, 1 if self.fixed else 0)
        return trace_matrices(weights)

    def prepare(
        self, times: Tensor, constants: Constants, trace_constants: Any = None
    ) -> list[Perceptron]:
        """The perceptron at each time."""
        return self._stacked(times, constants, trace_constants).unstacked()

    def velocity(self, stage: Perceptron, x: Tensor) -> Tensor:
        """The velocity."""
        value: Tensor = self.kernels.velocity(stage, self.activations, x)
        return value

    def products(self, stage: Perceptron, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, and the Jacobian's products as tangents through the layers."""
        value, products = self.kernels.tangents(stage, self.activations, x, vectors)
        return value, products

    def traced(self, stage: Perceptron, x: Tensor) -> Traced:
        """The velocity and the exact trace of its Jacobian, by the trace's matrices."""
        slope, _ = self.kernels.traced(stage, self.activations, x)
        return Traced(slope[:, :-1], slope[:, -1])

    def linearize(self, times: Tensor, constants: Any, trace_constants: Any) -> Linearization:
        """`traced`, differentiated by hand; so are gates, where they are folded in."""
        tensors = (*constants.weights, *constants[1:], *trace_constants)
        leaves = all(tensor is None or tensor.is_leaf for tensor in tensors)
        if leaves and self._foldable(times, constants):
            features = time_features(times, self.time_features)
            with torch.no_grad():
                plain = self._plain(features, constants, trace_constants)
                net = self.kernels.fold(plain, self._shifts(features, constants))
            stacked = Stacked(net, len(times), folded=True)
            back: Back = partial(self._pull_folded, plain, features, constants, trace_constants)
        else:
            with torch.enable_grad():
                stacked = self._stacked(times, constants, trace_constants)
            back = partial(pull_stacked, stacked)
        return PerceptronLinearization(stacked, self.activations, self.kernels, back)

    def compiled(self, sizes: Sizes) -> Self:
        """This field, sharing its parameters, with its evaluations compiled."""
        view = copy.copy(self)
        view.kernels = compiled_kernels(sizes, self.last.linear.weight.device.type)
        return view

    def eager(self) -> Self:
        """This field, sharing its parameters, with nothing compiled."""
        if self.kernels is EAGER:
            return self
        view = copy.copy(self)
        view.kernels = EAGER
        return view

    @property
    def sines(self) -> int:
        """The number of sines of x, and of cosines."""
        return self.x_features + self.harmonics * len(self.circular)

    @property
    def fixed(self) -> int:
        """The width of the layer of Fourier features of x, 0 without one."""
        return self.dim - len(self.circular) + 2 * self.sines if self.sines else 0

    def _stacked(self, times: Tensor, constants: Constants, matrices: Any) -> Stacked:
        """The perceptron at all times; gates that are the same for all rows are folded in."""
        features, matrices = time_features(times, self.time_features), matrices or ()
        shifts = self._shifts(features, constants)
        if self._foldable(times, constants):
            net = fold(self._plain(features, constants, matrices), shifts)
            return Stacked(net, len(times), folded=True)
        gates = self._gates(features, constants)
        offsets = constants.biases.expand(len(times), -1)
        if gates is not None:
            offsets = constants.biases * pad(gates, (0, self.dim), value=1.0)
        if shifts is not None:
            offsets = (offsets if offsets.ndim == shifts.ndim else offsets.unsqueeze(1)) + shifts
        net = Perceptron(constants.weights, offsets, gates, matrices)
        return Stacked(net, len(times), folded=False)

    def _foldable(self, times: Tensor, constants: Constants) -> bool:
        """Whether there are gates that are the same for all rows."""
        biases = constants.gate_biases
        return biases is not None and biases.ndim == 1 and times.ndim == 1

    def _plain(self, features: Tensor, constants: Constants, matrices: Any) -> Unfolded:
        """What the perceptron is folded of."""
        gates = self._gates(features, constants)
        assert gates is not None
        return Unfolded(constants.weights, constants.biases, tuple(matrices), gates)

    def _pull_folded(
        self,
        plain: Unfolded,
        features: Tensor,
        constants: Constants,
        matrices: Sequence[Tensor],
        stages: list[int],
        grads: list[Perceptron],
    ) -> None:
        """The way back of the folding and of its gates and shifts, to the constants."""
        if len(stages) < len(features):
            index = index_tensor(tuple(stages), features.device)
            features, plain = features[index], plain._replace(gates=plain.gates[index])
        found, offsets = self.kernels.fold_back(plain, grads)
        arguments = (found.gates * plain.gates * (1 - plain.gates))[:, self.fixed :]
        pairs: list[tuple[Any, Tensor]] = [*zip(constants.weights, found.weights, strict=True)]
        pairs += [*zip(matrices, found.matrices, strict=True)]
        pairs += [(constants.biases, found.biases), (constants.gate_biases, arguments.sum(0))]
        pairs += [(constants.gate_times, features.T @ arguments)]
        if constants.shift_times is not None:
            pairs += [(constants.shift_times, features.T @ offsets)]
        for leaf, grad in pairs:
            if leaf.requires_grad:
                leaf.grad = grad if leaf.grad is None else leaf.grad.add_(grad)

    def _gates(self, features: Tensor, constants: Constants) -> Tensor | None:
        """The gates, those of Fourier features of x being open: (times, [rows,] gated width)."""
        if constants.gate_biases is None:
            return None
        gates = torch.sigmoid(_moved(features, constants.gate_times, constants.gate_biases))
        return pad(gates, (self.fixed, 0), value=1.0) if self.fixed else gates

    def _shifts(self, features: Tensor, constants: Constants) -> Tensor | None:
        """The shifts, (times, [rows,] width)."""
        if constants.shift_times is None and constants.shift_rows is None:
            return None
        return _moved(features, constants.shift_times, constants.shift_rows)

    def _weights(self) -> list[Tensor]:
        """Of all layers, the Fourier features' first."""
        weights = [layer.linear.weight for layer in (*self.layers, self.last)]
        return [self.frequencies, *weights] if self.fixed else weights

    def _shift(self, part: Tensor | None) -> Tensor | None:
        """A part of the shifts, (..., width), for all layers that there are."""
        if part is None:
            return None
        part = pad(part, (self.fixed, 0)) if self.fixed else part
        return logistic_shifts(part, self.fixed, self.dim) if self.logistic else part

    def _split(self, weight: Tensor, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """By what the features of time enter, (features, width), and what the context makes."""
        times = weight[:, : self.times].T if self.times else None
        return times, None if context is None else context @ weight[:, self.times :].T


def _moved(features: Tensor, matrix: Tensor | None, rest: Tensor | None) -> Tensor:
    """What time and context come to: (times, width), or (times, rows, width)."""
    if matrix is not None:
        return combined(features @ matrix, rest)
    assert rest is not None
    return rest.expand(len(features), *rest.shape)
