"""The units that a model of series works in: times from 0 to 1, columns of mean 0 and scale 1."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.datasets import ColumnType
from cnf.series.clock import encoded_times
from cnf.series.metrics import column_scales
from cnf.series.series import Series

Array = NDArray[np.float64]

LATE_START = 0.05  # of the span: a first time this little above 0 counts as a start at 0
MARGIN = 0.01  # of the span: times this little before the start count as the start
FARTHEST = 100.0  # spans from the start beyond which a time is taken for a mistake
FAR = 1.5  # spans from the start beyond which predictions are extrapolations in time


class SeriesScaling(nn.Module):
    """The scales of training series, kept as buffers in double precision.

        u = (t − start) / span,   z = (x − center) / scale

    The start is the first time, or 0 where that is a little above 0; the span ends at the last
    time. A column that has one value in all training series has scale 1, and is left out of
    `varying` (D,), the columns that have a likelihood.

    Args:
        columns: Names of the columns.
        static: Names of the static columns.

    Example:
        >>> series = Series(("x",), np.array([7]), np.array([0, 2]), np.array([0.0, 4.0]),
        ...                 np.array([[1.0], [5.0]]))
        >>> scaling = SeriesScaling(("x",)).fit(series)
        >>> scaled = scaling.scaled(series)
        >>> scaled.times.tolist(), scaled.values.tolist()
        ([0.0, 1.0], [[-1.0], [1.0]])
    """

    start: Tensor
    span: Tensor
    center: Tensor
    scale: Tensor
    largest: Tensor
    varying: Tensor
    static_center: Tensor
    static_scale: Tensor

    def __init__(self, columns: tuple[str, ...], static: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.columns, self.static = columns, static
        self.clock: ColumnType | None = None  # of the training series
        for prefix, count in (("", len(columns)), ("static_", len(static))):
            self.register_buffer(f"{prefix}center", torch.zeros(count, dtype=torch.float64))
            self.register_buffer(f"{prefix}scale", torch.ones(count, dtype=torch.float64))
        self.register_buffer("largest", torch.ones(len(columns), dtype=torch.float64))
        self.register_buffer("varying", torch.ones(len(columns), dtype=torch.bool))
        self.register_buffer("start", torch.zeros((), dtype=torch.float64))
        self.register_buffer("span", torch.ones((), dtype=torch.float64))

    def fit(self, series: Series) -> SeriesScaling:
        """Take the scales of series, in place, with observations in every column.

        Raises:
            ValueError: All observations are at one time.
        """
        self.clock = series.clock
        first, last = float(series.times.min()), float(series.times.max())
        if not last > first:
            raise ValueError(
                f"Expected observations at different times; got {first:g} alone: add later ones"
            )
        if 0 < first <= LATE_START * last:
            first = 0.0
        self.start.fill_(first)
        self.span.fill_(last - first)
        constant = self._fit_columns("", series.values)
        self.largest.copy_(torch.from_numpy(column_scales(series)))
        self.varying.copy_(~constant)
        if series.static is not None and self.static:
            self._fit_columns("static_", series.static)
        return self

    def _fit_columns(self, prefix: str, values: Array) -> Tensor:
        """Take means and standard deviations; return which columns have one value."""
        known = ~np.isnan(values)
        count = np.maximum(known.sum(0), 1)
        center = np.where(known, values, 0.0).sum(0) / count
        deviation = np.where(known, values - center, 0.0)
        scale = np.sqrt(np.square(deviation).sum(0) / count)
        constant = ~(scale > 1e-12 * np.maximum(1.0, np.abs(center)))
        getattr(self, f"{prefix}center").copy_(torch.from_numpy(center))
        getattr(self, f"{prefix}scale").copy_(torch.from_numpy(np.where(constant, 1.0, scale)))
        return torch.from_numpy(constant)

    def aligned(self, series: Series) -> Series:
        """Return series with the columns of training in their order, and times by its clock.

        Raises:
            ValueError: A column is unknown, static columns are others, or times are no dates where
                those of training are, or the reverse.
        """
        if self.static and series.static_columns != self.static:
            raise ValueError(
                f"Expected the static columns {', '.join(self.static)}; got "
                f"{', '.join(series.static_columns) or 'none'}: give those that the model was made "
                "for, in order"
            )
        series = series.select(self.columns)
        return series if self.clock is None else series.with_clock(self.clock)

    def scaled(self, series: Series) -> Series:
        """Return series in the model's units.

        Raises:
            ValueError: An error of `aligned` or `times`.
        """
        series = self.aligned(series)
        values = (series.values - _numpy(self.center)) / _numpy(self.scale)
        static = None
        if self.static and series.static is not None:
            static = (series.static - _numpy(self.static_center)) / _numpy(self.static_scale)
        return replace(
            series,
            times=self.times(series.times, series),
            values=values,
            static=static,
            static_columns=self.static,
        )

    def times(self, times: Array, series: Series | None = None) -> Array:
        """Return times in spans from the start.

        Args:
            times: Times: of any series; of the rows of series, (N,); or asked of each, (n, T).
            series: The series, for the message.

        Raises:
            ValueError: Nothing was fitted, or a time is not finite, before the start, or over a
                hundred spans after it.
        """
        # A fit takes a clock, which a saved model keeps; weights alone bring the numbers.
        if self.clock is None and self.span == 1 and (self.scale == 1).all():
            raise ValueError(
                "Expected a model that has been fitted; got a new one: call fit first, or load one"
            )
        found: Array = (times - self.start.item()) / self.span.item()
        wrong = ~((found >= -MARGIN) & (found <= FARTHEST))
        if wrong.any():
            place, whose = int(np.flatnonzero(wrong.ravel())[0]), ""
            if series is not None:
                row = place // times.shape[1] if times.ndim > 1 else int(series.owners[place])
                whose = f" in series {series.name(row)}"
            got = f"got {times.ravel()[place]:g}{whose}"
            if found.ravel()[place] > FARTHEST and np.isfinite(found.ravel()[place]):
                raise ValueError(
                    f"Expected times up to {self.start.item() + FARTHEST * self.span.item():g}, "
                    f"{FARTHEST:g} times the span of the training series; {got}: correct it, or "
                    "leave it out"
                )
            raise ValueError(
                f"Expected finite times from the start, {self.start.item():g}, where the model's "
                f"time begins; {got}: leave earlier times out, or train on series that begin there"
            )
        return np.maximum(found, 0.0)

    def sample_times(self, times: Any, n: int) -> tuple[Array, Array]:
        """Return times that n samples are asked at, as the clock counts, and in spans.

        Raises:
            ValueError: There is no time, they do not increase, n is below 1, or an error of
                `times`.
        """
        found = encoded_times(times, self.clock or ColumnType())
        if found.ndim != 1 or not len(found) or not (np.diff(found) > 0).all() or n < 1:
            raise ValueError(
                f"Expected times that increase, shape (times,), and n of at least 1; got {times!r} "
                f"and {n}: sort them"
            )
        return found, self.times(found)

    def warn_far(self, times: Array) -> None:
        """Warn of times, in spans from the start, far beyond those of training."""
        if times.size and times.max() > FAR:
            end = (self.start + self.span).item()
            warnings.warn(
                f"Predictions up to {times.max() * self.span.item() + self.start.item():g} are far "
                f"beyond the training series, which end at {end:g}: nothing was learned about them",
                stacklevel=3,
            )

    def relative_square(self) -> Tensor:
        """Return the square of each column's scale over its largest value, 0 where constant, (D,).

        Squared errors of scaled values times it are those of `series_errors`.
        """
        return (self.scale / self.largest).square() * self.varying

    def values(self, scaled: Array) -> Array:
        """Return values (…, D) in the data's own units."""
        return scaled * _numpy(self.scale) + _numpy(self.center)

    def log_det(self, *, times: bool = False) -> Tensor:
        """Return log |dz / dx| of each column, 0 of those of one value, (D,).

        With times it is that of an entry and its time.
        """
        log_det = -self.scale.log() * self.varying
        return log_det - self.span.log() if times else log_det


def _numpy(tensor: Tensor) -> Array:
    found: Array = tensor.double().cpu().numpy()
    return found
