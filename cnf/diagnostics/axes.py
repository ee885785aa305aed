"""The columns of a density as axes that it is integrated along, each without bounds or a circle.

Written anew beside the layers of columns, not by them: an integral is to show when one is wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, log, pi

import numpy as np
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.layers import Bounded, Circular, Concatenate, Layer, Positive

Array = NDArray[np.float64]

NEAREST = 1e-6  # to a bound, as a share of an interval's width: what lies nearer is taken for that


@dataclass(frozen=True)
class Axis(ABC):
    """A column x as an increasing function of a number u, with its slope dx/du."""

    @property
    def turn(self) -> float:
        """After how much x is the same again: infinite but on a circle."""
        return inf

    @abstractmethod
    def x(self, u: Array) -> Array:
        """The column's values."""

    @abstractmethod
    def u(self, x: Array) -> Array:
        """The way back."""

    @abstractmethod
    def log_slope(self, u: Array) -> Array:
        """Log dx/du."""

    def ends(self, u: Array, widen: float) -> tuple[float, float]:
        """An interval around values, wider than theirs by a share of it on either side."""
        margin = widen * max(float(np.ptp(u)), 1e-6)
        return float(u.min()) - margin, float(u.max()) + margin


@dataclass(frozen=True)
class Line(Axis):
    """x = center + scale sinh u: even in the bulk, and long tails are not far away.

    Example:
        >>> axis = Line(5.0, 2.0)
        >>> axis.x(axis.u(np.array([-100.0, 5.0]))).round(6).tolist()
        [-100.0, 5.0]
    """

    center: float
    scale: float

    def x(self, u: Array) -> Array:
        """Any number."""
        return self.center + self.scale * np.sinh(u)

    def u(self, x: Array) -> Array:
        """The way back."""
        return np.arcsinh((x - self.center) / self.scale)

    def log_slope(self, u: Array) -> Array:
        """Log (scale cosh u)."""
        return log(self.scale) + np.logaddexp(u, -u) - log(2)


@dataclass(frozen=True)
class HalfLine(Axis):
    """x = low + e^u."""

    low: float

    def x(self, u: Array) -> Array:
        """Above the bound."""
        return self.low + np.exp(u)

    def u(self, x: Array) -> Array:
        """The way back."""
        return np.log(np.maximum(x - self.low, np.finfo(np.float32).tiny))

    def log_slope(self, u: Array) -> Array:
        """Which is u."""
        return u


@dataclass(frozen=True)
class Interval(Axis):
    """x = low + (high − low) / (1 + e^(−u))."""

    low: float
    high: float

    def x(self, u: Array) -> Array:
        """Within the bounds."""
        return self.low + (self.high - self.low) * np.exp(-np.logaddexp(0.0, -u))

    def u(self, x: Array) -> Array:
        """The way back."""
        share = np.clip((x - self.low) / (self.high - self.low), NEAREST, 1 - NEAREST)
        return np.log(share) - np.log1p(-share)

    def log_slope(self, u: Array) -> Array:
        """Log of the logistic density, times the width."""
        return log(self.high - self.low) - np.logaddexp(0.0, -u) - np.logaddexp(0.0, u)


@dataclass(frozen=True)
class Circle(Axis):
    """x = u, from low to high, where it is the same again."""

    low: float
    high: float

    @property
    def turn(self) -> float:
        """Once around."""
        return self.high - self.low

    def x(self, u: Array) -> Array:
        """The same."""
        return u

    def u(self, x: Array) -> Array:
        """Between the ends."""
        return self.low + np.remainder(x - self.low, self.turn)

    def log_slope(self, u: Array) -> Array:
        """Zero."""
        return np.zeros_like(u)

    def ends(self, u: Array, widen: float) -> tuple[float, float]:
        """Once around, whatever the values."""
        return self.low, self.high


def axes_of(flow: Flow, values: Array) -> tuple[Axis, ...]:
    """The axes of a flow's columns, by what its layer next to the data says of them.

    Args:
        flow: The flow, whose columns all have a density.
        values: Rows (rows, dim), for the scale of columns without bounds.

    Example:
        >>> from cnf.flow import ffjord
        >>> [type(axis).__name__ for axis in axes_of(ffjord(2, circular=(1,)), np.zeros((1, 2)))]
        ['Line', 'Circle']
    """
    outermost = flow.layers[-1] if len(flow.layers) else None
    known: dict[int, Axis] = {}
    if isinstance(outermost, Concatenate):
        for layer, own in zip(outermost.layers, outermost.columns, strict=True):
            known |= _bounds(layer, own)
    elif outermost is not None:
        known = _bounds(outermost, list(range(flow.dim)))
    if not any(isinstance(axis, Circle) for axis in known.values()):
        known |= {column: Circle(-pi, pi) for column in flow.circular}
    return tuple(known.get(i) or _line(values[:, i]) for i in range(flow.dim))


def _bounds(layer: Layer, columns: list[int]) -> dict[int, Axis]:
    """The axes of a layer's own columns; none where it says nothing of them."""
    if isinstance(layer, Circular):
        return {column: Circle(layer.low, layer.high) for column in columns}
    if isinstance(layer, Positive):
        lows = layer.low.tolist()
        return {column: HalfLine(low) for column, low in zip(columns, lows, strict=True)}
    if isinstance(layer, Bounded):
        ends = zip(layer.low.tolist(), layer.high.tolist(), strict=True)
        return {column: Interval(*pair) for column, pair in zip(columns, ends, strict=True)}
    return {}


def _line(x: Array) -> Line:
    """About the median, and even where 95 % of the values are."""
    low, center, high = np.quantile(x, [0.025, 0.5, 0.975])
    return Line(float(center), max(float(high - low) / 2, 1e-6 * max(1.0, abs(float(center)))))
