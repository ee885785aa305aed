"""Layers side by side."""

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
"""The layers of single columns, by name."""


class Concatenate(Layer):
    """Layers side by side, each with columns of the data of its own; their log |det| add up.

    On the base's side their columns follow one another in the layers' order.

    Args:
        layers: The layers, all in `COLUMN_LAYERS`, or their configurations with their names.
        columns: For each, which columns of the data are its own, counted from 0.

    Raises:
        ValueError: A column has no layer or more than one, or a layer not its number of columns.

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
        made = [layer if isinstance(layer, Layer) else _made(layer) for layer in layers]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(made))
        self.columns = [list(own) for own in columns]
        order = [column for own in self.columns for column in own]
        if len(made) != len(self.columns) or sorted(order) != list(range(len(order))):
            raise ValueError(
                f"Expected each column to have one of {len(made)} layers; got {self.columns}"
            )
        for layer, own in zip(made, self.columns, strict=True):
            if layer.widths is not None and layer.widths[1] != len(own):
                raise ValueError(
                    f"Expected {layer.widths[1]} columns for {type(layer).__name__}; got {own}"
                )
        self.place = [order.index(column) for column in range(len(order))]
        self.circular = self._angles() or None
        self.surjective = all(layer.surjective for layer in made)

    @property
    def noisy(self) -> bool:
        """Whether one of them is."""
        return any(layer.noisy for layer in self.layers)

    @property
    def widths(self) -> tuple[int, int]:
        """Their columns on the base's side and on the data's."""
        return sum(self._base_widths), len(self.place)

    @property
    def _base_widths(self) -> list[int]:
        pairs = zip(self.layers, self.columns, strict=True)
        return [len(own) if layer.widths is None else layer.widths[0] for layer, own in pairs]

    def _angles(self) -> tuple[int, ...]:
        """The columns on the base's side that layers of it take for angles."""
        starts = np.cumsum([0, *self._base_widths]).tolist()
        pairs = zip(self.layers, starts, strict=False)
        return tuple(start + own for layer, start in pairs for own in layer.circular or ())

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Each its own columns."""
        parts = z.split(self._base_widths, 1)
        mapped = [layer.push(part) for layer, part in zip(self.layers, parts, strict=True)]
        joined = _joined(mapped)
        return TransformResult(joined.value[:, self.place], joined.log_det)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Each its own columns."""
        return self._pull(x, lambda layer, own: layer.pull(own))

    def assess(self, x: Tensor, context: Tensor | None, care: ScoringOptions) -> ScoredTransform:
        """`pull` with the noise of `care`."""
        mapped = self._pull(x, lambda layer, own: layer.assess(own, None, care).mapped)
        return ScoredTransform(mapped, x.new_zeros(len(x)), np.full(len(x), Status.FINISHED))

    def in_range(self, x: Tensor) -> Tensor:
        """Those that each layer reaches its columns of."""
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.stack([layer.in_range(x[:, own]) for layer, own in pairs]).all(0)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Each its own columns."""
        pairs = zip(self.layers, self.columns, strict=True)
        return torch.cat([layer.preimage(x[:, own]) for layer, own in pairs], 1)

    def _pull(self, x: Tensor, one: Callable[[Layer, Tensor], TransformResult]) -> TransformResult:
        pairs = zip(self.layers, self.columns, strict=True)
        return _joined([one(layer, x[:, own]) for layer, own in pairs])

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        layers = [{"name": layer.name, **layer.config()} for layer in self.layers]
        return {"layers": layers, "columns": self.columns}


def _made(config: Mapping[str, Any]) -> Layer:
    """A layer by its name and configuration."""
    entries = dict(config)
    return COLUMN_LAYERS[entries.pop("name")](**entries)


def _joined(parts: Sequence[TransformResult]) -> TransformResult:
    value = torch.cat([part.value for part in parts], 1)
    return TransformResult(value, torch.stack([part.log_det for part in parts]).sum(0))
