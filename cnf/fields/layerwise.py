"""Fields with layers that are affine at a given time; traces by tangents through the layers."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from cnf.fields.affine import Affine, chain, chain_products
from cnf.fields.features import Features
from cnf.fields.field import TracedField
from cnf.ode import PerRow


class TimedLayer(nn.Module):
    """A layer that is an affine map at each time, shifted by a context."""

    def __init__(self, inputs: int, outputs: int, context_dim: int) -> None:
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

    h₀ is x, where angles are replaced by their sines and cosines. The Jacobian's products are
    tangents through the layers, in one stack; an exact trace takes `dim` of them. A subclass gives
    the kind of layer.

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
    layer: ClassVar[type[TimedLayer]]

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
        self._set_arguments(dim, hidden, activation, context_dim, circular, harmonics)
        self.features = Features(dim, self.circular, harmonics)
        sizes = pairwise([self.features.width, *self.hidden, dim])
        layers = nn.ModuleList(self.layer(*size, context_dim) for size in sizes)
        self.layers = cast("Sequence[TimedLayer]", layers)
        if zero_last:
            self.layers[-1].zero()

    def constants(self, context: Tensor | None) -> list[tuple[Any, PerRow | None]]:
        return [(layer.constants(), layer.shifted(context)) for layer in self.layers]

    def prepare(
        self, times: Tensor, constants: Any, trace_constants: Any = None
    ) -> list[tuple[Affine, ...]]:
        layers = []
        for module, (own, shift) in zip(self.layers, constants, strict=True):
            maps = module.at(times, own)
            if shift is not None:
                maps = [affine._replace(offset=affine.offset + shift) for affine in maps]
            layers.append(maps)
        return [*zip(*layers, strict=True)]

    def velocity(self, stage: Sequence[Affine], x: Tensor) -> Tensor:
        return chain(stage, self.sigma, self.features(x))

    def products(
        self, stage: Sequence[Affine], x: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        return chain_products(stage, self.sigma, *self.features.tangents(x, vectors))
