"""A perceptron with separate weights for each row, which do not change with time."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnf.fields.affine import Affine, chain, chain_products, row_matmul
from cnf.fields.analytic import trace_matrices
from cnf.fields.field import Traced, TracedField
from cnf.ode import PerRow


class RowLayer(NamedTuple):
    """A layer x → (W + U V) x + b + t a, where b and either U and V or W and a belong to each row.

    Attributes:
        weight: W, shape (out, in) or (rows, out, in).
        bias: b, shape (rows, out).
        slope: a, shape (out,) or (rows, out).
        left: U, shape (rows, out, rank); None for none.
        right: V, shape (rows, rank, in).
    """

    weight: Tensor
    bias: Tensor
    slope: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def dense(self) -> Tensor:
        """Return W + U V, shape (rows, out, in)."""
        if self.left is None or self.right is None:
            return self.weight
        return torch.baddbmm(self.weight, self.left, self.right)

    def constants(self) -> tuple[Any, ...]:
        """Return its tensors, those that belong to rows wrapped in `PerRow`."""
        shared = (2, 1, 1, 2, 2)  # the axes of a tensor of all rows
        pairs = zip(self, shared, strict=True)
        return tuple(each if each is None or each.ndim == n else PerRow(each) for each, n in pairs)


class RowPerceptron(TracedField):
    """A perceptron for each row, whose weights the context gives, number by number.

    With layers x → W x + b + t a that differ between the rows and not in time,

        h_l = σ(W_l h_{l−1} + b_l + t a_l),   h₀ = x,
        f(t, x, c) = W_{L+1} h_L + b_{L+1} + t a_{L+1}.

    The trace of one or two hidden layers has a closed form (see `cnf.fields.analytic.perceptron`)
    with a vector p or a matrix P for each row, once for each solve. Deeper ones carry `dim`
    tangents.

    The context consists of weights, not of features: `generator` makes the linear map from features
    to them, which is applied once for a datum, however many rows it has in a solve.

    Args:
        dim: Size of x.
        hidden: Widths of the hidden layers, at least one.
        activation: A name in `ACTIVATIONS`.

    Raises:
        ValueError: A size is out of range, or the activation unknown.

    Attributes:
        context_dim: The number of weights of a row.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).
    """

    def __init__(self, dim: int, hidden: Sequence[int], activation: str, **sizes: Any) -> None:
        super().__init__()
        self._set_arguments(dim, hidden, activation, **sizes)
        self.shapes = [*pairwise([dim, *self.hidden, dim])]
        self.parts = [self.numbers(*shape) for shape in self.shapes]
        self.context_dim = sum(sum(parts) for parts in self.parts)
        self.trace = "closed form" if len(self.hidden) <= 2 else "tangents"

    @abstractmethod
    def numbers(self, inputs: int, outputs: int) -> list[int]:
        """Return how many numbers the context has for each part of a layer."""

    @abstractmethod
    def layer(self, place: int, parts: Sequence[Tensor]) -> RowLayer:
        """Return the layer of this place, for parts of the context of shape (rows, numbers)."""

    @abstractmethod
    def start(self, place: int, parts: Sequence[nn.Linear]) -> None:
        """Initialize the maps from features to a layer's parts."""

    def generator(self, features: int) -> nn.Linear:
        """Return a linear map from features to the context that starts the field at zero.

        Raises:
            ValueError: There is no feature.
        """
        if features < 1:
            raise ValueError(f"Expected at least 1 feature; got {features}")
        maps = [[nn.Linear(features, size) for size in parts] for parts in self.parts]
        for place, parts in enumerate(maps):
            self.start(place, parts)
        joined = nn.Linear(features, self.context_dim)
        with torch.no_grad():
            joined.weight.copy_(torch.cat([own.weight for parts in maps for own in parts]))
            joined.bias.copy_(torch.cat([own.bias for parts in maps for own in parts]))
        return joined

    def constants(self, context: Tensor | None) -> tuple[Any, ...]:
        if context is None:
            raise ValueError(f"Expected a context of shape (rows, {self.context_dim}); got none")
        numbers = iter(context.split([size for parts in self.parts for size in parts], 1))
        layers = [self.layer(i, [*islice(numbers, len(p))]) for i, p in enumerate(self.parts)]
        matrix = None
        if self.trace == "closed form":
            (rows,) = torch.vmap(trace_matrices)([layer.dense() for layer in layers])
            matrix = PerRow(rows)
        return tuple(layer.constants() for layer in layers), matrix

    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> list[Any]:
        layers, matrix = constants
        times = times.reshape(len(times), -1, 1)
        maps = []
        for weight, bias, slope, left, right in layers:
            offsets = bias + times * slope
            maps.append([Affine(weight, o, left=left, right=right) for o in offsets.unbind()])
        return [(stage, matrix) for stage in zip(*maps, strict=True)]

    def velocity(self, stage: Any, x: Tensor) -> Tensor:
        maps, _ = stage
        return chain(maps, self.sigma, x)

    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        maps, _ = stage
        return chain_products(maps, self.sigma, x, vectors.expand(len(vectors), *x.shape))

    def traced(self, stage: Any, x: Tensor) -> Traced:
        (*hidden, last), matrix = stage
        if matrix is None:
            return super().traced(stage, x)
        slopes = []
        for affine in hidden:
            x, slope = self.sigma(affine(x))
            slopes.append(slope)
        ends = row_matmul(matrix, slopes[0]) if len(slopes) == 2 else matrix
        return Traced(last(x), (slopes[-1] * ends).sum(1))
