"""The columns of a density as axes of integration, each the real line or a circle.

They are written independently of the layers of columns, whose mistakes an integral is to show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, isfinite, log, pi

import numpy as np
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.layers.layer import ColumnRange

Array = NDArray[np.float64]

BOUND_MARGIN = 1e-6  # as a share of an interval's width: values nearer to a bound are moved there


@dataclass(frozen=True)
class Axis(ABC):
    """A column x as an increasing function of a number u, with its slope dx/du."""

    @property
    def period(self) -> float:
        """The period of x, infinite where x is not periodic."""
        return inf

    @abstractmethod
    def x(self, u: Array) -> Array:
        """Return the column's values."""

    @abstractmethod
    def u(self, x: Array) -> Array:
        """Return the inverse of `x`."""

    @abstractmethod
    def log_slope(self, u: Array) -> Array:
        """Return log dx/du."""

    def ends(self, u: Array, widen: float) -> tuple[float, float]:
        """Return an interval around values, with margins of a share of their range."""
        margin = widen * max(float(np.ptp(u)), 1e-6)
        return float(u.min()) - margin, float(u.max()) + margin


@dataclass(frozen=True)
class Line(Axis):
    """The real line as x = center + scale sinh u: linear in the bulk, exponential in the tails.

    Example:
        >>> axis = Line(5.0, 2.0)
        >>> axis.x(axis.u(np.array([-100.0, 5.0]))).round(6).tolist()
        [-100.0, 5.0]
    """

    center: float
    scale: float

    def x(self, u: Array) -> Array:
        return self.center + self.scale * np.sinh(u)

    def u(self, x: Array) -> Array:
        return np.arcsinh((x - self.center) / self.scale)

    def log_slope(self, u: Array) -> Array:
        return log(self.scale) + np.logaddexp(u, -u) - log(2)


@dataclass(frozen=True)
class HalfLine(Axis):
    """The half-line x = low + e^u."""

    low: float

    def x(self, u: Array) -> Array:
        return self.low + np.exp(u)

    def u(self, x: Array) -> Array:
        return np.log(np.maximum(x - self.low, np.finfo(np.float32).tiny))

    def log_slope(self, u: Array) -> Array:
        return u


@dataclass(frozen=True)
class Interval(Axis):
    """The interval x = low + (high − low) / (1 + e^(−u))."""

    low: float
    high: float

    def x(self, u: Array) -> Array:
        return self.low + (self.high - self.low) * np.exp(-np.logaddexp(0.0, -u))

    def u(self, x: Array) -> Array:
        share = np.clip((x - self.low) / (self.high - self.low), BOUND_MARGIN, 1 - BOUND_MARGIN)
        return np.log(share) - np.log1p(-share)

    def log_slope(self, u: Array) -> Array:
        return log(self.high - self.low) - np.logaddexp(0.0, -u) - np.logaddexp(0.0, u)


@dataclass(frozen=True)
class Circle(Axis):
    """The circle x = u, from low to high, which is the same point."""

    low: float
    high: float

    @property
    def period(self) -> float:
        return self.high - self.low

    def x(self, u: Array) -> Array:
        return u

    def u(self, x: Array) -> Array:
        return self.low + np.remainder(x - self.low, self.period)

    def log_slope(self, u: Array) -> Array:
        return np.zeros_like(u)

    def ends(self, u: Array, widen: float) -> tuple[float, float]:
        return self.low, self.high


def axes_of(flow: Flow, values: Array) -> tuple[Axis, ...]:
    """Return the axes of a flow's columns, by their ranges in the layer next to the data.

    The scale of columns without bounds is that of values (rows, dim).

    Example:
        >>> from cnf.flow import ffjord
        >>> [type(axis).__name__ for axis in axes_of(ffjord(2, circular=(1,)), np.zeros((1, 2)))]
        ['Line', 'Circle']
    """
    outermost = flow.layers[-1].ranges if len(flow.layers) else None
    ranges = list(outermost or [ColumnRange()] * flow.dim)
    if not any(each.circular for each in ranges):
        for column in flow.circular:
            ranges[column] = ColumnRange(-pi, pi, circular=True)
    return tuple(_axis(*each) for each in zip(ranges, values.T, strict=True))


def _axis(values: ColumnRange, x: Array) -> Axis:
    """Return the axis of a column: a line is linear in the middle 95 % of its values x."""
    low, high, circular = values
    if circular:
        return Circle(low, high)
    if isfinite(low):
        return Interval(low, high) if isfinite(high) else HalfLine(low)
    least, center, most = np.quantile(x, [0.025, 0.5, 0.975]).tolist()
    return Line(center, max((most - least) / 2, 1e-6 * max(1.0, abs(center))))
