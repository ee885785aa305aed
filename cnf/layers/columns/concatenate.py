"""A concatenation of layers, each on columns of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from cnf.layers.columns.argmax import Argmax
from cnf.layers.columns.bounded import Bounded
from cnf.layers.columns.circular import Circular
from cnf.layers.columns.constant import Constant
from cnf.layers.columns.dequantize import Dequantize
from cnf.layers.columns.identity import Identity
from cnf.layers.columns.positive import Positive
from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.ode import Status

COLUMN_LAYERS: dict[str, type[Layer]] = {
    layer.name: layer
    for layer in (Identity, Constant, Positive, Bounded, Circular, Dequantize, Argmax)
}
"""The layers of single columns, by the name in a configuration."""


class Concatenate(Layer):
    """A concatenation of layers, each on separate columns of the data; log |det| is their sum.

    On the base's side the columns stand in the layers' order.

    Args:
        layers: Layers of kinds in `COLUMN_LAYERS`, or their configurations with a `name`.
        columns: The data's columns of each layer, counted from 0.

    Raises:
        ValueError: A column has no layer or several, or a layer has a wrong number of columns.

    Example:
        >>> from cnf.layers.columns.identity import Identity
        >>> layer = Concatenate([Positive([0.0]), Identity(1)], [[1], [0]])
        >>> layer.inverse(torch.tensor([[3.0, 1.0]]))[0]
        tensor([[0., 3.]])
    """

    name: ClassVar[str] = "concatenate"

    def __init__(
        self, layers: Sequence[Layer | Mapping[str, Any]], columns: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        built = [layer if isinstance(layer, Layer) else _build(layer) for layer in layers]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(built))
        self.columns = [list(group) for group in columns]
        order = [column for group in self.columns for column in group]
        if len(built) != len(self.columns) or sorted(order) != list(range(len(order))):
            raise ValueError(
                f"Expected each column to have one of {len(built)} layers; got {self.columns}: "
                "give each layer its columns, counted from 0"
            )
        for layer, group in zip(built, self.columns, strict=True):
            if layer.widths is not None and layer.widths[1] != len(group):
                raise ValueError(
                    f"Expected {layer.widths[1]} columns for {type(layer).__name__}; got "
                    f"{group}: give it as many"
                )
        self.positions = [order.index(column) for column in range(len(order))]
        self.circular = self._angles() or None
        self.surjective = all(layer.surjective for layer in built)

    @property
    def stochastic(self) -> bool:
        """Whether one of the layers is stochastic."""
        return any(layer.stochastic for layer in self.layers)

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of columns on the base's and the data's side."""
        return sum(self._base_widths), len(self.positions)

    @property
    def _base_widths(self) -> list[int]:
        pairs = zip(self.layers, self.columns, strict=True)
        return [len(group) if layer.widths is None else layer.widths[0] for layer, group in pairs]

    def _angles(self) -> tuple[int, ...]:
        """Return the columns on the base's side that are angles."""
        starts = np.cumsum([0, *self._base_widths]).tolist()
        pairs = zip(self.layers, starts, strict=False)
        return tuple(start + angle for layer, start in pairs for angle in layer.circular or ())

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Push each layer's columns."""
        parts = z.split(self._base_widths, 1)
        results = [layer.push(part) for layer, part in zip(self.layers, parts, strict=True)]
        joined = _join(results)
        return TransformResult(joined.value[:, self.positions], joined.log_det)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Pull each layer's columns."""
        return self._pull(x, lambda layer, part: layer.pull(part))

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        """Pull each layer's columns with the noise of `options`."""
        result = self._pull(x, lambda layer, part: layer.pull_scored(part, None, options).result)
        return ScoredTransform(result, x.new_zeros(len(x)), np.full(len(x), Status.FINISHED))

    def in_range(self, x: Tensor) -> Tensor:
        """Return a mask of the rows whose columns are in the range of their layers."""
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.stack([layer.in_range(x[:, group]) for layer, group in pairs]).all(0)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a preimage of each layer's columns."""
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.cat([layer.preimage(x[:, group]) for layer, group in pairs], 1)

    def _pull(self, x: Tensor, pull: Callable[[Layer, Tensor], TransformResult]) -> TransformResult:
        pairs = zip(self.layers, self.columns, strict=True)
        return _join([pull(layer, x[:, group]) for layer, group in pairs])

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        layers = [{"name": layer.name, **layer.config()} for layer in self.layers]
        return {"layers": layers, "columns": self.columns}


def _build(config: Mapping[str, Any]) -> Layer:
    """Build a layer from its configuration."""
    entries = dict(config)
    return COLUMN_LAYERS[entries.pop("name")](**entries)


def _join(parts: Sequence[TransformResult]) -> TransformResult:
    value = torch.cat([part.value for part in parts], 1)
    return TransformResult(value, torch.stack([part.log_det for part in parts]).sum(0))
