"""The classifier of series, and summaries of what is seen, by which it and draws know series."""

from __future__ import annotations

from collections.abc import Iterable
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from cnf.series.batch import SeriesBatch
from cnf.series.series import Series

SUMMARIES = 9  # of each column, the last whether it was seen
PIECES = 6  # between quantiles, of each of the others
LEAST_WIDTH = 1e-6  # between quantiles: where they are equal a piece is a step
BOUND = 5.0  # of summaries, in standard deviations of a column
LEAST_SPREAD = 0.05  # the sum of squares of times, in spans, that halves a slope


def summaries(batch: SeriesBatch) -> Tensor:
    """Return summaries of each column of scaled series, shape (B, 9 D).

    They are the mean, the first, the last, the least and the greatest value, the standard
    deviation, the slope Σ (v − v̄)(t − t̄) / (Σ (t − t̄)² + 0.05), ln(1 + n) of the number n of
    values, and whether there is one; 0 without any. Values are cut to ±5.

    Example:
        >>> import torch
        >>> values = torch.tensor([[[1.0], [3.0], [0.0]]])
        >>> mask = torch.tensor([[[1.0], [1.0], [0.0]]])
        >>> parts = (torch.zeros(1, 3), values, mask, torch.zeros(1, 0), torch.tensor([3]))
        >>> batch = SeriesBatch(*parts)
        >>> summaries(batch)
        tensor([[2.0000, 1.0000, 3.0000, 1.0000, 3.0000, 1.0000, 0.0000, 1.0986, 1.0000]])
    """
    values, mask = batch.values.clamp(-BOUND, BOUND), batch.mask
    steps = torch.arange(1, mask.shape[1] + 1).to(mask)[:, None]
    count = mask.sum(1)
    seen = (count > 0).to(values)

    def means(entries: Tensor) -> Tensor:
        return (entries * mask).sum(1, keepdim=True) / count.clamp(min=1)[:, None]

    mean, times = means(values), batch.times[..., None]
    apart, away = values - mean, times - means(times)
    spread = means(away.square()) + LEAST_SPREAD / count.clamp(min=1)[:, None]
    last = (mask * steps).argmax(1, keepdim=True)
    first = (mask * steps.flip(0)).argmax(1, keepdim=True)
    missing = (1 - mask) * 2 * BOUND
    found = [
        mean[:, 0],
        values.gather(1, first)[:, 0] * seen,
        values.gather(1, last)[:, 0] * seen,
        (values + missing).amin(1) * seen,
        (values - missing).amax(1) * seen,
        means(apart.square()).sqrt()[:, 0],
        (means(apart * away) / spread)[:, 0],
        count.log1p(),
        seen,
    ]
    return torch.cat(found, 1)


def traits(series: Series) -> NDArray[np.float64]:
    """Return numbers that tell series apart, each a function of one alone, (n, 2 D + 1).

    Example:
        >>> values = np.array([[1.0], [3.0], [2.0]])
        >>> traits(Series(("x",), np.arange(2), np.array([0, 2, 3]), np.arange(3.0), values))
        array([[4., 3., 1.],
               [2., 4., 2.]])
    """
    values = np.nan_to_num(series.values)
    terms = np.concatenate([values, values * series.times[:, None], series.times[:, None]], 1)
    found = np.zeros((len(series), terms.shape[1]))
    filled = series.lengths > 0
    if filled.any():
        found[filled] = np.add.reduceat(terms, series.offsets[:-1][filled], axis=0)
    return found


class PiecewiseSummaries(nn.Module):
    """Summaries of series by their places between quantiles of those of training series.

    A summary s has K numbers, and its sum with weights is a piecewise linear function of s,

        e_k = min(max((s − q_k) / (q_{k+1} − q_k), 0), 1),   k = 0 … K − 1,

    with the quantiles q_0 … q_K of training series whose column was seen, and 0 where it was not.
    A risk that rises at both ends of a range, as that of a heart rate, needs no hidden units then.

    Args:
        columns: Number of columns D.

    Source: Gorishniy et al. (2022), On embeddings for numerical features, section 3.2.
    """

    quantiles: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.register_buffer("quantiles", torch.zeros(PIECES + 1, (SUMMARIES - 1) * columns))

    @property
    def size(self) -> int:
        """The number of numbers, (K · 8 + 1) D."""
        return self.columns * (PIECES * (SUMMARIES - 1) + 1)

    def fit(self, found: Tensor) -> None:
        """Take the quantiles of summaries of training series, shape (n, 9 D)."""
        values, seen = found.split([self.quantiles.shape[1], self.columns], 1)
        values = values.masked_fill(seen.repeat(1, SUMMARIES - 1) == 0, nan)
        shares = torch.linspace(0, 1, PIECES + 1, dtype=values.dtype, device=values.device)
        # Column by column: `nanquantile` takes 16 million numbers at most.
        found = torch.stack([column.nanquantile(shares) for column in values.unbind(1)], 1)
        self.quantiles.copy_(found.nan_to_num())

    def forward(self, found: Tensor) -> Tensor:
        """Return the encoded summaries, (B, 9 D) → (B, (8 K + 1) D)."""
        values, seen = found.split([self.quantiles.shape[1], self.columns], 1)
        low, high = self.quantiles[:-1], self.quantiles[1:]
        places = (values[:, None] - low) / (high - low).clamp(min=LEAST_WIDTH)
        known = seen.repeat(1, SUMMARIES - 1)[:, None]
        return torch.cat([(places.clamp(0, 1) * known).flatten(1), seen], 1)


class Classifier(nn.Module):
    """A linear map and a perceptron, whose sum are the logits of classes: A x + W silu(U x + b).

    The inputs x are the encoder's features, the places of a series' summaries and its latents.

    Args:
        columns: Number of columns.
        features: Number of the encoder's features.
        latents: Number of latents.
        hidden: Number of hidden units.
        classes: Number of classes.
    """

    def __init__(
        self, columns: int, features: int, latents: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        self.summaries = PiecewiseSummaries(columns)
        inputs = features + self.summaries.size + latents
        self.linear, self.hidden = nn.Linear(inputs, classes), nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, classes, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.last.weight)

    @torch.no_grad()
    def fit(self, batches: Iterable[SeriesBatch]) -> None:
        """Fit the places of summaries to batches of training series."""
        self.summaries.fit(torch.cat([summaries(batch) for batch in batches]))

    def forward(self, seen: SeriesBatch, h: Tensor, z: Tensor, rate: float = 0.0) -> Tensor:
        """Return the logits for each draw of the latents, where a share of the inputs is dropped.

        Shapes: series (B), features (B, H), latents (B, K, L) → (B, K, classes).
        """
        known = torch.cat([h, self.summaries(summaries(seen))], 1)
        x = dropout(torch.cat([known[:, None].expand(*z.shape[:2], -1), z], -1), rate)
        logits: Tensor = self.linear(x) + self.last(dropout(silu(self.hidden(x)), rate))
        return logits
