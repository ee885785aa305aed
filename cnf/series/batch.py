"""Padded batches of series, as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnf.series.series import Series

_TENSORS: WeakKeyDictionary[Series, dict[tuple[torch.dtype, torch.device], _Tensors]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class SeriesBatch:
    """Some series side by side, padded to the longest.

    Attributes:
        times: Times of the rows, padded by repeating the last one, shape (B, T); zeros for a series
            without rows. T is at least 1.
        values: Observations, 0 where there are none, shape (B, T, D).
        mask: 1 where there is an observation, 0 elsewhere and in the padding, shape (B, T, D).
        static: What does not change with time, NaN where unknown, shape (B, S).
        lengths: Numbers of rows, int64 of shape (B,).
        labels: A class or a number of each series, NaN where unknown, shape (B,), or None.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [7, 7, 8], "time": [0.0, 1.5, 0.2], "x": [1.0, 2.0, 3.0]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> batch = SeriesBatch.of(series, [1, 0], like=torch.zeros(()))
        >>> batch.times.tolist()
        [[0.20000000298023224, 0.20000000298023224], [0.0, 1.5]]
        >>> batch.mask[..., 0].tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    static: Tensor
    lengths: Tensor
    labels: Tensor | None = None

    @staticmethod
    def of(series: Series, rows: ArrayLike, like: Tensor) -> SeriesBatch:
        """Return the batch of the series at some places, with the dtype and device of a tensor.

        A series keeps its rows as tensors after the first call, so that later ones only gather.
        """
        kept = _tensors(series, like)
        places = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=like.device)
        starts, lengths = kept.starts[places], kept.lengths[places]
        longest = max(int(lengths.max()), 1) if len(places) else 1
        steps = torch.arange(longest, device=like.device)
        inside = steps < lengths[:, None]
        index = torch.where(inside, starts[:, None] + steps, len(series.times))
        last = torch.where(lengths > 0, starts + lengths - 1, len(series.times))
        shape = (len(places), longest, len(series.columns))
        flat = index.flatten()
        return SeriesBatch(
            times=kept.times[torch.minimum(index, last[:, None])],
            values=kept.values.index_select(0, flat).view(shape),
            mask=kept.mask.index_select(0, flat).view(shape).to(like.dtype),
            static=kept.static[places],
            lengths=lengths,
            labels=None if kept.labels is None else kept.labels[places],
        )


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The arrays of series as tensors; the last row of times, values and mask is the padding."""

    starts: Tensor
    lengths: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor
    static: Tensor
    labels: Tensor | None


def _tensors(series: Series, like: Tensor) -> _Tensors:
    made = _TENSORS.setdefault(series, {})
    key = like.dtype, like.device
    if key not in made:
        width = len(series.columns)
        values = torch.zeros(len(series.times) + 1, width, dtype=like.dtype)
        values[:-1] = torch.from_numpy(series.values)
        mask = torch.zeros(values.shape, dtype=torch.bool)
        mask[:-1] = torch.from_numpy(series.observed)
        times = torch.zeros(len(values), dtype=like.dtype)
        times[:-1] = torch.from_numpy(series.times)
        static = np.empty((len(series), 0)) if series.static is None else series.static
        labels = None if series.labels is None else torch.from_numpy(series.labels).to(like)
        made[key] = _Tensors(
            torch.from_numpy(series.offsets[:-1]).to(like.device),
            torch.from_numpy(series.lengths).to(like.device),
            times.to(like.device),
            values.nan_to_num_(nan=0.0).to(like.device),
            mask.to(like.device),
            torch.from_numpy(static).to(like),
            labels,
        )
    return made[key]
