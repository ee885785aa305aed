"""A perceptron whose hidden layers are gated and shifted by time and context: FFJORD's family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from math import pi
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cnf.fields.activations import find_activation, waves
from cnf.fields.field import Traced, TracedField
from cnf.fields.gated_linear import GatedLinear
from cnf.fields.kernels import EAGER, Kernels, compiled_kernels
from cnf.fields.linearization import PerceptronLinearization
from cnf.fields.perceptron import Perceptron, Stacked, gated_matrices, trace_matrices
from cnf.fields.signals import check_hidden, check_sizes, combined, time_features
from cnf.ode import Linearization, PerRow


class Constants(NamedTuple):
    """What a gated perceptron needs for a whole solve; entries for its layers one after the other.

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
    gate_biases: Tensor | PerRow | None
    shift_times: Tensor | None
    shift_rows: Tensor | PerRow | None


class GatedPerceptron(TracedField):
    """A network whose hidden layers are gated and shifted by time and context.

    With h₀ = x, signals s = (t, features of t, c) and layers l = 1 … L,

        h_l = σ(z_l),   z_l = (W_l h_{l−1} + b_l) ∘ g_l(s) + B_l s,
        f(t, x, c) = W_{L+1} h_L + b_{L+1} + B_{L+1} s.

    A subclass says whether there are gates g, shifts B s, and the time among the signals. The last
    layer is never gated, so that the matrices of the trace (see `cnf.fields.perceptron`) are of the
    weights alone. With Fourier features of x, h₀ = (x, sin ωx, cos ωx): a layer with weights that
    are drawn and fixed, which counts as a hidden one.

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

    Raises:
        ValueError: A size is out of range or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Source: Grathwohl et al. (2019), FFJORD, appendix B.1, with the last layer ungated; Rahimi &
    Recht (2007), Random features for large-scale kernel machines.
    """

    gated: ClassVar[bool] = True
    shifted: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    kernels: Kernels = EAGER

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
    ) -> None:
        super().__init__()
        check_sizes(dim, context_dim, time_features=time_features, x_features=x_features)
        check_hidden(tuple(hidden))
        if not x_scale > 0:
            raise ValueError(f"Expected x_scale above 0; got {x_scale}")
        self.dim = dim
        self.hidden = tuple(hidden)
        self.context_dim = context_dim
        self.activation = activation
        self.time_features = time_features
        self.x_features = x_features
        self.x_scale = x_scale
        self.activations = (find_activation(activation),) * len(self.hidden)
        if x_features:
            frequencies = x_scale * torch.randn(x_features, dim)
            first = torch.cat([torch.eye(dim), frequencies, frequencies])
            phases = torch.cat([torch.zeros(dim + x_features), torch.full((x_features,), pi / 2)])
            self.register_buffer("frequencies", first)
            self.register_buffer("phases", phases)
            self.activations = (waves(dim), *self.activations)
        self.times = (1 + 2 * time_features) * self.timed  # signals that are of time
        signals = self.times + context_dim
        shifted = self.shifted and signals > 0
        sizes = [dim + 2 * x_features, *self.hidden]
        self.layers = nn.ModuleList(
            GatedLinear(inputs, outputs, signals, gate=self.gated, shift=shifted)
            for inputs, outputs in pairwise(sizes)
        )
        self.last = GatedLinear(sizes[-1], dim, signals, gate=False, shift=shifted)
        self.trace = "closed form" if len(self.activations) <= 2 else "tangents"
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def constants(self, context: Tensor | None) -> Constants:
        """The layers' parameters, joined, and what the context does to each row."""
        layers = [*self.layers, self.last]
        weights, biases = zip(*((p.linear.weight, p.linear.bias) for p in layers), strict=True)
        if self.x_features:
            weights, biases = (self.frequencies, *weights), (self.phases, *biases)
        gate_times = gate_biases = shift_times = shift_rows = None
        if self.gated:
            gate = torch.cat([layer.gate.weight for layer in self.layers])
            gate_times, rows = self._split(gate, context)
            gate_biases = torch.cat([layer.gate.bias for layer in self.layers])
            gate_biases = gate_biases if rows is None else PerRow(gate_biases + rows)
        if self.last.shift is not None:
            shift = torch.cat([layer.shift.weight for layer in layers])
            shift_times, rows = self._split(shift, context)
            shift_times = None if shift_times is None else pad(shift_times, (self.fixed, 0))
            shift_rows = None if rows is None else PerRow(pad(rows, (self.fixed, 0)))
        return Constants(
            weights, torch.cat(biases), gate_times, gate_biases, shift_times, shift_rows
        )

    def trace_constants(self) -> tuple[Tensor, ...]:
        """The matrices of the trace."""
        weights = [layer.linear.weight for layer in (*self.layers, self.last)]
        return trace_matrices([self.frequencies, *weights] if self.x_features else weights)

    def prepare(
        self, times: Tensor, constants: Constants, trace_constants: Any = None
    ) -> list[Perceptron]:
        """The perceptron at each time."""
        return self._stacked(times, constants, trace_constants).unstacked()

    def velocity(self, stage: Perceptron, x: Tensor) -> Tensor:
        """The velocity."""
        return self.kernels.velocity(stage, self.activations, x)

    def products(self, stage: Perceptron, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, and the Jacobian's products as tangents through the layers."""
        return self.kernels.tangents(stage, self.activations, x, vectors)

    def traced(self, stage: Perceptron, x: Tensor) -> Traced:
        """The velocity and the exact trace of its Jacobian, by the trace's matrices."""
        return Traced(*self.kernels.traced(stage, self.activations, x)[:2])

    def linearize(self, times: Tensor, constants: Any, trace_constants: Any) -> Linearization:
        """`traced`, differentiated by hand."""
        with torch.enable_grad():
            stacked = self._stacked(times, constants, trace_constants)
        return PerceptronLinearization(stacked, self.activations, self.kernels)

    def compiled(self) -> Self:
        """This field, sharing its parameters, with its evaluations compiled."""
        view = copy.copy(self)
        view.kernels = compiled_kernels()
        return view

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, but for the weights' start."""
        return {
            "dim": self.dim,
            "hidden": list(self.hidden),
            "context_dim": self.context_dim,
            "activation": self.activation,
            "time_features": self.time_features,
            "x_features": self.x_features,
            "x_scale": self.x_scale,
        }

    def extra_repr(self) -> str:
        """The sizes, for the module's repr."""
        return f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}"

    @property
    def fixed(self) -> int:
        """The width of the layer of Fourier features of x, 0 without one."""
        return self.dim + 2 * self.x_features if self.x_features else 0

    def _stacked(self, times: Tensor, constants: Constants, matrices: Any) -> Stacked:
        """The perceptron at all times; gates that are the same for all rows are folded in."""
        weights, biases, gate_times, gate_biases, shift_times, shift_rows = constants
        features = time_features(times, self.time_features)
        matrices = matrices or ()
        gates = None
        offsets = biases.expand(len(times), -1)
        if gate_biases is not None:
            gates = torch.sigmoid(_moved(features, gate_times, gate_biases))
            gates = pad(gates, (self.fixed, 0), value=1.0) if self.fixed else gates
            offsets = biases * pad(gates, (0, self.dim), value=1.0)
        if shift_times is not None or shift_rows is not None:
            shifts = _moved(features, shift_times, shift_rows)
            offsets = (offsets if offsets.ndim == shifts.ndim else offsets.unsqueeze(1)) + shifts
        if gates is None or gates.ndim > 2:
            return Stacked(Perceptron(weights, offsets, gates, matrices), len(times), folded=False)
        parts = gates.split([len(weight) for weight in weights[:-1]], 1)
        hidden = (w * g.unsqueeze(2) for w, g in zip(weights, parts, strict=False))
        net = Perceptron((*hidden, weights[-1]), offsets, None, gated_matrices(matrices, parts))
        return Stacked(net, len(times), folded=True)

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
