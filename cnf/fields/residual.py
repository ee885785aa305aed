"""A residual network whose blocks are gated and shifted by time and context."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from cnf.fields.affine import Affine
from cnf.fields.features import Features, affine_in_time, time_features
from cnf.fields.field import TracedField
from cnf.fields.gated_linear import GatedLinear
from cnf.ode import PerRow


class Residual(TracedField):
    """A residual network: a stream of one width that blocks add to.

    With conditioning s = (t, features of t, c) and y = x, where angles are replaced by their sines
    and cosines,

        h₀ = (A y + a) ∘ g₀(s) + B₀ s,
        h_k = h_{k−1} + U_k σ((V_k h_{k−1} + v_k) ∘ g_k(s) + B_k s) + u_k,
        f(t, x, c) = C σ(h_K) + b.

    Args:
        dim: Size of x.
        hidden: The stream's width, then each block's; at least the stream's.
        context_dim: Size of the context c; 0 without one.
        activation: A name in `ACTIVATIONS`.
        zero_last: Whether the last layer starts at zero.
        time_features: The number of sines and of cosines of 2πkt in s.
        circular: The columns of x that are angles θ, in radians.
        harmonics: The number of sines and of cosines kθ, k = 1 … harmonics, of each angle.

    Raises:
        ValueError: A size or a column is out of range, or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Source: He et al. (2016), Identity mappings in deep residual networks.

    Example:
        >>> Residual(2, hidden=(32, 64, 64)).trace
        'tangents'
    """

    trace = "tangents"
    time_features: int

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        zero_last: bool = False,
        time_features: int = 0,
        circular: Sequence[int] = (),
        harmonics: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"time_features": time_features}
        self._set_arguments(dim, hidden, activation, context_dim, circular, harmonics, **sizes)
        self.times = 1 + 2 * time_features
        self.features = Features(dim, self.circular, harmonics)
        stream, *widths = self.hidden
        conditioning = self.times + context_dim
        self.first = GatedLinear(self.features.width, stream, conditioning, gate=True, shift=True)
        inside = (GatedLinear(stream, size, conditioning, gate=True, shift=True) for size in widths)
        self.inside = cast("Sequence[GatedLinear]", nn.ModuleList(inside))
        outside = (nn.Linear(size, stream) for size in widths)
        self.outside = cast("Sequence[nn.Linear]", nn.ModuleList(outside))
        self.last = nn.Linear(stream, dim)
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def constants(self, context: Tensor | None) -> Any:
        plain = [(layer.weight, layer.bias) for layer in (*self.outside, self.last)]
        return plain, [self._gated(layer, context) for layer in (self.first, *self.inside)]

    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> list[Any]:
        plain, gated = constants
        *outside, last = (Affine(*parameters) for parameters in plain)
        features = time_features(times, self.time_features)
        stages = zip(*(_at(features, own) for own in gated), strict=True)
        return [(first, [*zip(inside, outside, strict=True)], last) for first, *inside in stages]

    def velocity(self, stage: Any, x: Tensor) -> Tensor:
        first, blocks, last = stage
        h = first(self.features(x))
        for inside, outside in blocks:
            h = h + outside(self.sigma.function(inside(h))[0])
        velocity: Tensor = last(self.sigma.function(h)[0])
        return velocity

    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        first, blocks, last = stage
        x, vectors = self.features.tangents(x, vectors)
        h, vectors = first(x), first.linear(vectors)
        for inside, outside in blocks:
            value, slope = self.sigma(inside(h))
            h = h + outside(value)
            vectors = vectors + outside.linear(slope * inside.linear(vectors))
        value, slope = self.sigma(h)
        return last(value), last.linear(slope * vectors)

    def _gated(self, layer: GatedLinear, context: Tensor | None) -> tuple[Any, ...]:
        """Return weight and bias, then the matrix and constant of the gate, and of the shift."""
        assert layer.gate is not None
        assert layer.shift is not None
        gate, shift, bias = layer.gate.weight, layer.shift.weight, layer.gate.bias
        gate_constant: Any = bias
        shift_constant = None
        if context is not None:
            gate_constant = PerRow(context @ gate[:, self.times :].T + bias)
            shift_constant = PerRow(context @ shift[:, self.times :].T)
        gates = gate[:, : self.times].T, gate_constant
        shifts = shift[:, : self.times].T, shift_constant
        return layer.linear.weight, layer.linear.bias, gates, shifts


def _at(features: Tensor, constants: tuple[Any, ...]) -> list[Affine]:
    weight, bias, (gate, gate_constant), (shift, shift_constant) = constants
    gates, _ = GatedLinear.gate_activation.function(affine_in_time(features, gate, gate_constant))
    offsets = bias * gates + affine_in_time(features, shift, shift_constant)
    return [Affine(weight, o, g) for o, g in zip(offsets.unbind(), gates.unbind(), strict=True)]
