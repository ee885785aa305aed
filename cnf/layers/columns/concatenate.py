"""A concatenation of layers, each on columns of the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnf.layers import LAYERS
from cnf.layers.layer import ColumnRange, Layer, TransformResult
from cnf.utils.random import RowNoise


class Concatenate(Layer):
    """A concatenation of layers, each on separate columns of the data; log |det| is their sum.

    On the base's side the columns stand in the layers' order.

    Args:
        layers: Layers without a context, or their configurations with a `name` in `LAYERS`.
        columns: The data's columns of each layer, counted from 0.

    Raises:
        ValueError: A column has no layer or several, or a layer has a wrong number of columns.

    Example:
        >>> from cnf.layers import Identity, Positive
        >>> layer = Concatenate([Positive([0.0]), Identity(1)], [[1], [0]])
        >>> layer.inverse(torch.tensor([[3.0, 1.0]]))[0]
        tensor([[0., 3.]])
    """

    def __init__(
        self, layers: Sequence[Layer | Mapping[str, Any]], columns: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        built = [layer if isinstance(layer, Layer) else _build(**layer) for layer in layers]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(built))
        self.columns = [list(group) for group in columns]
        order = [column for group in self.columns for column in group]
        if len(built) != len(self.columns) or sorted(order) != list(range(len(order))):
            raise ValueError(
                f"Expected each column to have one of {len(built)} layers; got {self.columns}: "
                "give each layer its columns, counted from 0"
            )
        self.base_widths: list[int] = []
        angles: list[int] = []
        for layer, group in zip(built, self.columns, strict=True):
            before, after = layer.widths or (len(group), len(group))
            if after != len(group):
                raise ValueError(
                    f"Expected {after} columns for {type(layer).__name__}; got {group}: give it as "
                    "many"
                )
            angles += [sum(self.base_widths) + angle for angle in layer.circular or ()]
            self.base_widths.append(before)
        self.widths = sum(self.base_widths), len(order)
        self.positions = [order.index(column) for column in range(len(order))]
        self.circular = tuple(angles) or None
        pairs = zip(built, self.columns, strict=True)
        self.unread = tuple(group[i] for layer, group in pairs for i in layer.unread)
        self.surjective = all(layer.surjective for layer in built)
        self.stochastic = any(layer.stochastic for layer in built)

    @property
    def ranges(self) -> tuple[ColumnRange, ...]:
        found = [ColumnRange()] * len(self.positions)
        for layer, group in zip(self.layers, self.columns, strict=True):
            for column, each in zip(group, layer.ranges or (), strict=False):
                found[column] = each
        return tuple(found)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        parts = z.split(self.base_widths, 1)
        joined = _join([layer.push(part) for layer, part in zip(self.layers, parts, strict=True)])
        return TransformResult(joined.value[:, self.positions], joined.log_det)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return self._pull(x, lambda layer, part: layer.pull(part))

    def pull_with_noise(
        self, x: Tensor, context: Tensor | None, noise: RowNoise
    ) -> TransformResult:
        return self._pull(x, lambda layer, part: layer.pull_with_noise(part, None, noise))

    def in_range(self, x: Tensor) -> Tensor:
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.stack([layer.in_range(x[:, group]) for layer, group in pairs]).all(0)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.cat([layer.preimage(x[:, group]) for layer, group in pairs], 1)

    def _pull(self, x: Tensor, pull: Callable[[Layer, Tensor], TransformResult]) -> TransformResult:
        pairs = zip(self.layers, self.columns, strict=True)
        return _join([pull(layer, x[:, group]) for layer, group in pairs])

    def config(self) -> dict[str, Any]:
        layers = [{"name": layer.name, **layer.config()} for layer in self.layers]
        return {"layers": layers, "columns": self.columns}


def _build(name: str, **config: Any) -> Layer:
    return LAYERS[name](**config)


def _join(parts: Sequence[TransformResult]) -> TransformResult:
    value = torch.cat([part.value for part in parts], 1)
    return TransformResult(value, torch.stack([part.log_det for part in parts]).sum(0))
