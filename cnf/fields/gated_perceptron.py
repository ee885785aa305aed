"""A perceptron whose hidden layers are gated and shifted by time and context: FFJORD's family."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from cnf.fields.activations import LOGISTIC, fourier_activation
from cnf.fields.analytic import (
    EAGER,
    BatchSizes,
    GatedNetwork,
    NetworkConstants,
    Perceptron,
    PerceptronFunctions,
    compiled_functions,
)
from cnf.fields.features import feature_matrix
from cnf.fields.field import Traced, TracedField
from cnf.fields.gated_linear import GatedLinear
from cnf.ode import Linearization, PerRow


class GatedPerceptron(TracedField):
    """A network whose hidden layers are gated and shifted by time and context.

    With h₀ = x, conditioning s = (t, features of t, c) and layers l = 1 … L,

        h_l = σ(z_l),   z_l = (W_l h_{l−1} + b_l) ∘ g_l(s) + B_l s,
        f(t, x, c) = W_{L+1} h_L + b_{L+1} + B_{L+1} s.

    A subclass says whether there are gates g, shifts B s, and the time in s. The last layer is
    never gated, so that the matrices of the trace (see `cnf.fields.analytic.perceptron`) depend on
    the weights alone. With Fourier features, h₀ = (x, sin ωx, cos ωx) is a hidden layer of random,
    fixed weights. Angles θ enter as sin kθ and cos kθ alone, and random frequencies are rounded for
    them, so that the field is one on the circle.

    Args:
        dim: Size of x.
        hidden: Widths of the hidden layers, at least one.
        context_dim: Size of the context c; 0 without one.
        activation: A name in `ACTIVATIONS`.
        zero_last: Whether the last layer starts at zero, and so the flow as the identity.
        time_features: The number of sines and of cosines of 2πkt in s.
        x_features: The number of sines and of cosines ωx, with ω drawn from N(0, x_scale²).
        x_scale: The standard deviation of ω.
        circular: The columns of x that are angles, in radians.
        harmonics: The number of sines and of cosines kθ, k = 1 … harmonics, of each angle.

    Raises:
        ValueError: A size or a column is out of range, or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Source: Grathwohl et al. (2019), FFJORD, appendix B.1, with the last layer ungated; Rahimi &
    Recht (2007), Random features for large-scale kernel machines.
    """

    gated: ClassVar[bool] = True
    shifted: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    functions: PerceptronFunctions = EAGER
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
        others = {"time_features": time_features, "x_features": x_features, "x_scale": x_scale}
        self._set_arguments(dim, hidden, activation, context_dim, circular, harmonics, **others)
        if not x_scale > 0:
            raise ValueError(f"Expected x_scale above 0; got {x_scale}")
        self.times = (1 + 2 * time_features) * self.timed  # the part of s that depends on time
        sines = x_features + harmonics * len(self.circular)
        self.fixed = 0  # the width of the layer of Fourier features
        activations = (LOGISTIC if activation == "tanh" else self.sigma,) * len(self.hidden)
        if sines:
            linear = dim - len(self.circular)
            self.fixed = linear + 2 * sines
            activations = (fourier_activation(linear, sines), *activations)
            drawn = x_scale * torch.randn(x_features, dim)
            self.register_buffer("frequencies", feature_matrix(self.circular, harmonics, drawn))
        self.network = GatedNetwork(
            activations,
            GatedLinear.gate_activation,
            dim,
            sines,
            self.fixed,
            logistic=activation == "tanh",
            time_features=time_features,
        )
        conditioning = self.times + context_dim
        shifted = self.shifted and conditioning > 0
        sizes = [self.fixed or dim, *self.hidden]
        layers = nn.ModuleList(
            GatedLinear(inputs, outputs, conditioning, gate=self.gated, shift=shifted)
            for inputs, outputs in pairwise(sizes)
        )
        self.layers = cast("Sequence[GatedLinear]", layers)
        self.last = GatedLinear(sizes[-1], dim, conditioning, gate=False, shift=shifted)
        self.trace = "closed form" if len(self.network.activations) <= 2 else "tangents"
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def constants(self, context: Tensor | None) -> NetworkConstants:
        layers = [*self.layers, self.last]
        weights = self._weights()
        biases = self.network.biases(weights, [layer.linear.bias for layer in layers])
        gate_times = shift_times = shift_rows = None
        gate_biases: Any = None
        gates = [layer.gate for layer in self.layers if layer.gate is not None]
        if gates:
            gate_times, rows = self._split(torch.cat([gate.weight for gate in gates]), context)
            gate_biases = torch.cat([gate.bias for gate in gates])
            gate_biases = gate_biases if rows is None else PerRow(gate_biases + rows)
        shifts = [layer.shift for layer in layers if layer.shift is not None]
        if shifts:
            parts = self._split(torch.cat([shift.weight for shift in shifts]), context)
            shift_times, rows = (self.network.shifts(part) for part in parts)
            shift_rows = None if rows is None else PerRow(rows)
        own = tuple(self.network.weights(weights))
        return NetworkConstants(own, biases, gate_times, gate_biases, shift_times, shift_rows)

    def trace_constants(self) -> tuple[Tensor, ...]:
        return self.network.trace_matrices(self._weights())

    def prepare(
        self, times: Tensor, constants: NetworkConstants, trace_constants: Any = None
    ) -> list[Perceptron]:
        return self.network.staged(times, constants, trace_constants).stages()

    def velocity(self, stage: Perceptron, x: Tensor) -> Tensor:
        return self.functions.velocity(stage, self.network.activations, x)

    def products(self, stage: Perceptron, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return self.functions.jacobian_products(stage, self.network.activations, x, vectors)

    def jacobian(self, stage: Perceptron, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.functions.jacobian(stage, self.network.activations, x)

    def traced(self, stage: Perceptron, x: Tensor) -> Traced:
        slope, _ = self.functions.stage.forward(stage, self.network.activations, x)
        return Traced(slope[:, :-1], slope[:, -1])

    def linearize(
        self, times: Tensor, constants: Any, trace_constants: Any
    ) -> Linearization | None:
        return self.network.linearize(times, constants, trace_constants, self.functions)

    def compiled(self, sizes: BatchSizes) -> Self:
        return self._with(compiled_functions(sizes, self.last.linear.weight.device.type))

    def eager(self) -> Self:
        return self if self.functions is EAGER else self._with(EAGER)

    def _with(self, functions: PerceptronFunctions) -> Self:
        """Return this field, sharing its parameters, evaluated by other functions."""
        view = copy.copy(self)
        view.functions = functions
        return view

    def _weights(self) -> list[Tensor]:
        weights = [layer.linear.weight for layer in (*self.layers, self.last)]
        return [self.frequencies, *weights] if self.fixed else weights

    def _split(self, weight: Tensor, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights of the features of time, (features, width), and the context's part."""
        times = weight[:, : self.times].T if self.times else None
        return times, None if context is None else context @ weight[:, self.times :].T
