"""Fields with layers that are affine at a given time; traces by tangents through the layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from cnf.fields.activations import find_activation
from cnf.fields.affine import Affine
from cnf.fields.features import Features
from cnf.fields.field import TracedField
from cnf.ode import PerRow


class TimedLayer(nn.Module):
    """A layer that is an affine map at each time, shifted by a context.

    Args:
        outputs: Size of its output.
        context_dim: Size of the context.
    """

    def __init__(self, outputs: int, context_dim: int) -> None:
        super().__init__()
        self.shift = nn.Linear(context_dim, outputs, bias=False) if context_dim else None

    def zero(self) -> None:
        """Set the parameters to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def shifted(self, context: Tensor | None) -> PerRow | None:
        """Return the shift of each row by the context; None without one."""
        return None if context is None or self.shift is None else PerRow(self.shift(context))

    @abstractmethod
    def constants(self) -> tuple[Tensor, ...]:
        """Return the tensors that the maps are made of."""

    @staticmethod
    @abstractmethod
    def at(times: Tensor, constants: tuple[Tensor, ...]) -> list[Affine]:
        """Return the maps at times of shape (times,) or (times, rows, 1)."""


class LayerwiseField(TracedField):
    """A perceptron of layers that depend on time, shifted by a context: h_l = σ(A_l(t) h_{l−1}).

    h₀ is x, where angles are replaced by their sines and cosines. Its Jacobian's products are
    tangents, propagated through the layers in one stack; an exact trace takes `dim` of them. A
    subclass gives the layers.

    Args:
        dim: Size of x.
        hidden: Widths of the hidden layers, at least one.
        context_dim: Size of the context c; 0 without one.
        activation: A name in `ACTIVATIONS`.
        zero_last: Whether the last layer starts at zero.
        circular: The columns of x that are angles θ, in radians.
        harmonics: The number of sines and of cosines kθ, k = 1 … harmonics, of each angle.

    Raises:
        ValueError: A size or a column is out of range, or the activation unknown.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).
    """

    trace = "tangents"

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        zero_last: bool = False,
        circular: Sequence[int] = (),
        harmonics: int = 3,
    ) -> None:
        super().__init__()
        self._set_arguments(dim, hidden, context_dim, activation, circular, harmonics=harmonics)
        self.features = Features(dim, self.circular, harmonics)
        self.sigma = find_activation(activation)
        sizes = [self.features.width, *self.hidden, dim]
        layers = nn.ModuleList(self.layer(*size) for size in pairwise(sizes))
        # For the type checker, what the module list holds.
        self.layers = cast("Sequence[TimedLayer]", layers)
        if zero_last:
            self.layers[-1].zero()

    @abstractmethod
    def layer(self, inputs: int, outputs: int) -> TimedLayer:
        """Return a new layer."""

    def constants(self, context: Tensor | None) -> list[tuple[Any, PerRow | None]]:
        """Return the tensors of each layer, and its shift by the context."""
        return [(layer.constants(), layer.shifted(context)) for layer in self.layers]

    def prepare(
        self, times: Tensor, constants: Any, trace_constants: Any = None
    ) -> list[tuple[Affine, ...]]:
        """Return the layers at each time."""
        layers = []
        for module, (own, shift) in zip(self.layers, constants, strict=True):
            maps = module.at(times, own)
            if shift is not None:
                maps = [affine._replace(offset=affine.offset + shift) for affine in maps]
            layers.append(maps)
        return [*zip(*layers, strict=True)]

    def velocity(self, stage: Sequence[Affine], x: Tensor) -> Tensor:
        """Return the velocity."""
        *hidden, last = stage
        x = self.features(x)
        for affine in hidden:
            x, _ = self.sigma.function(affine(x))
        return last(x)

    def products(
        self, stage: Sequence[Affine], x: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity, and the Jacobian's products."""
        *hidden, last = stage
        x, vectors = self.features.tangents(x, vectors)
        for affine in hidden:
            x, slope = self.sigma(affine(x))
            vectors = slope * affine.linear(vectors)
        return last(x), last.linear(vectors)
