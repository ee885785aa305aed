"""The interface of an encoder of series, and its input in reverse order of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnf.series.batch import SeriesBatch

MAX_FREQUENCY = 30.0  # radians over the span of a series: of up to five periods


class Encoder(nn.Module, ABC):
    """A map from the observations of each series to a vector, whatever their number and times.

    A subclass has an entry in `ENCODERS`, and `encode` for series with observations. A series
    without any has a learned vector, and known static values shift the vector,

        h = (encode(observations) or h₀) + A (s ∘ k, k),   k = 1 where a static value is known.

    The vector of a series depends on its observed entries and static values alone: not on padding,
    on other series of the batch, or on times at which nothing was observed.

    Args:
        columns: The number D of columns.
        hidden: The width of the encoder's layers, and the size of the vectors.
        static: The number S of static columns.

    Raises:
        ValueError: A number is out of range.

    Attributes:
        size: The size of the vectors.

    Shapes: a batch of times (B, T) in [0, 1], values and mask (B, T, D), static values (B, S), NaN
        where unknown → (B, size).
    """

    def __init__(self, columns: int, hidden: int, static: int = 0) -> None:
        super().__init__()
        if min(columns, hidden) < 1 or static < 0:
            raise ValueError(
                "Expected columns and hidden of at least 1, and static of at least 0; got "
                f"{columns}, {hidden} and {static}"
            )
        self.columns, self.size, self.static = columns, hidden, static
        self.unobserved = nn.Parameter(torch.zeros(hidden))
        self.shift = nn.Linear(2 * static, hidden, bias=False) if static else None

    @abstractmethod
    def encode(self, batch: SeriesBatch) -> Tensor:
        """Return the vectors of series with observations; others may be any finite numbers."""

    def forward(self, batch: SeriesBatch) -> Tensor:
        """Return the vector of each series, (B, size)."""
        encoded = self.unobserved.expand(len(batch.times), -1)
        if batch.times.shape[1]:
            observed = batch.mask.sum((1, 2)).unsqueeze(1) > 0
            encoded = torch.where(observed, self.encode(batch), encoded)
        if self.shift is None:
            return encoded
        known = batch.static.isfinite()
        static = batch.static.masked_fill(~known, 0.0)
        shift: Tensor = self.shift(torch.cat([static, known.to(static)], 1))
        return encoded + shift


def observed_times(batch: SeriesBatch) -> Tensor:
    """Return a mask of the times at which some column was observed, (B, T)."""
    return batch.mask.sum(-1) > 0  # `any` takes ten times as long


class TimeFeatures(nn.Module):
    """Learned features of time: an affine one, and waves sin(ωt + φ) of random frequencies.

    Args:
        size: The number of features.

    Shapes: (…) → (…, size).

    Source: Rahimi & Recht (2007), Random features for large-scale kernel machines; Shukla & Marlin
    (2021), whose embedding of times is the same.

    Example:
        >>> TimeFeatures(8)(torch.zeros(3, 5)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, size)
        nn.init.uniform_(self.linear.weight[1:], -MAX_FREQUENCY, MAX_FREQUENCY)

    def forward(self, times: Tensor) -> Tensor:
        angles = self.linear(times.unsqueeze(-1))
        return torch.cat([angles[..., :1], angles[..., 1:].sin()], -1)


class Reversed(NamedTuple):
    """The observations of a batch from the last to the first, without times of none.

    Attributes:
        times: Shape (B, T).
        values: Shape (B, T, D), 0 where a column was not observed.
        mask: Shape (B, T, D).
        counts: The number of times with an observation of each series, (B,), which come first.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    counts: Tensor

    @staticmethod
    def of(batch: SeriesBatch) -> Reversed:
        """Return the observations of a batch in reverse order."""
        observed = observed_times(batch)
        keys = batch.times.masked_fill(~observed, -inf)
        order = keys.sort(dim=1, descending=True, stable=True).indices
        columns = order.unsqueeze(-1).expand(-1, -1, batch.mask.shape[-1])
        return Reversed(
            batch.times.gather(1, order),
            batch.values.gather(1, columns),
            batch.mask.gather(1, columns),
            observed.sum(1),
        )
