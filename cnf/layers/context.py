"""Encoders of a flow's context, trained with its fields."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from cnf.utils.registry import Registry, constructor_arguments

HARMONICS = 2  # of the Fourier features of ordered codes

CONTEXTS: "Registry[type[ContextEncoder]]" = Registry(
    {
        "codes": "cnf.layers.context:CodeContext",
        "data": "cnf.layers.data_context:DataContext",
    }
)
"""The encoders of a flow's context, by the name in its configuration."""


class ContextEncoder(nn.Module, ABC):
    """A map from the context that users give to that of a flow's layers.

    A subclass has an entry in `CONTEXTS`; what `config` leaves out is in the state dict.

    Attributes:
        dim: Size of the context that users give.
    """

    dim: int

    def fit(self, context: Tensor, weight: Tensor | None = None) -> None:
        """Fit statistics to the contexts of training rows, once; do nothing where there are none.

        Shapes: (rows, dim), weights of the rows (rows,).
        """

    @abstractmethod
    def forward(self, context: Tensor) -> Tensor:
        """Return the layers' context, (rows, dim) → (rows, size of the layers' context)."""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, those in attributes of their names, JSON-ready."""
        return constructor_arguments(self)


class CodeContext(ContextEncoder):
    """An embedding of a row's codes, followed by its mask: (d, m) → (e(d), m).

    With a vector v_k of each code of coordinate k, and features φ_k of ordered codes,

        e(d) = silu(B silu(Σ_k v_k(d_k) + A_k φ_k(d_k)) + b).

    Args:
        sizes: The number of codes of each of the K coordinates.
        continuous: The number C of entries of the mask.
        embedding: The width E of the embedding.
        features: Features of each coordinate's codes, (size, 2) in [−1, 1]; None where unordered.
            They are in the state dict.

    Raises:
        ValueError: A size or the features' number does not fit, or a code is out of range.

    Shapes: (rows, K + C) → (rows, E + C).

    Example:
        >>> encoder = CodeContext([3, 2], continuous=1, embedding=8)
        >>> encoder(torch.tensor([[2.0, 0.0, 1.0]])).shape
        torch.Size([1, 9])
    """

    first: Tensor
    counts: Tensor
    table: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        continuous: int,
        embedding: int = 32,
        features: Sequence[Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.sizes, self.continuous, self.embedding = tuple(sizes), continuous, embedding
        if not self.sizes or min(*self.sizes, embedding, 1) < 1:
            raise ValueError(
                f"Expected sizes and an embedding of at least 1; got {self.sizes} and {embedding}"
            )
        given = [None] * len(self.sizes) if features is None else list(features)
        if len(given) != len(self.sizes):
            raise ValueError(
                f"Expected features or None for each of {len(self.sizes)} coordinates; "
                f"got {len(given)}"
            )
        self.dim = len(self.sizes) + continuous
        table = torch.cat([_features(s, f) for s, f in zip(self.sizes, given, strict=True)])
        counts = torch.tensor(self.sizes)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("table", table)
        self.vectors = nn.EmbeddingBag(sum(self.sizes), embedding, mode="sum")
        self.ordered = nn.Linear(len(self.sizes) * table.shape[1], embedding)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())

    def forward(self, context: Tensor) -> Tensor:
        codes = context[:, : len(self.sizes)].long()
        if ((codes < 0) | (codes >= self.counts)).any():
            raise ValueError(
                f"Expected codes from 0 below {self.sizes} in the context's first columns; got "
                f"{codes.amin(0).tolist()} to {codes.amax(0).tolist()}"
            )
        index = codes + self.first
        summed = self.vectors(index) + self.ordered(self.table[index].flatten(1))
        return torch.cat([self.mix(summed), context[:, len(self.sizes) :]], 1)


def _features(size: int, features: Tensor | None) -> Tensor:
    """Return the features of codes with their sines and cosines; zeros where unordered."""
    if features is None:
        return torch.zeros(size, 2 * (1 + 2 * HARMONICS))
    values = torch.as_tensor(features).to(torch.get_default_dtype())
    if values.shape != (size, 2):
        raise ValueError(f"Expected features of shape ({size}, 2); got {tuple(values.shape)}")
    angles = [pi * k * values for k in range(1, HARMONICS + 1)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat([values, *waves], 1)
