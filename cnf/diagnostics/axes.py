"""The columns of a density as axes of integration, each the real line or a circle.

They are written independently of the layers of columns, whose mistakes an integral is to show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.layers import Bounded, Circular, Concatenate, Layer, Positive

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
        """Return center + scale sinh u."""
        return self.center + self.scale * np.sinh(u)

    def u(self, x: Array) -> Array:
        """Return arsinh((x − center) / scale)."""
        return np.arcsinh((x - self.center) / self.scale)

    def log_slope(self, u: Array) -> Array:
        """Return log(scale cosh u)."""
        return log(self.scale) + np.logaddexp(u, -u) - log(2)


@dataclass(frozen=True)
class HalfLine(Axis):
    """The half-line x = low + e^u."""

    low: float

    def x(self, u: Array) -> Array:
        """Return low + e^u."""
        return self.low + np.exp(u)

    def u(self, x: Array) -> Array:
        """Return log(x − low), finite at the bound."""
        return np.log(np.maximum(x - self.low, np.finfo(np.float32).tiny))

    def log_slope(self, u: Array) -> Array:
        """Return u."""
        return u


@dataclass(frozen=True)
class Interval(Axis):
    """The interval x = low + (high − low) / (1 + e^(−u))."""

    low: float
    high: float

    def x(self, u: Array) -> Array:
        """Return low + (high − low) / (1 + e^(−u))."""
        return self.low + (self.high - self.low) * np.exp(-np.logaddexp(0.0, -u))

    def u(self, x: Array) -> Array:
        """Return the log odds of x, finite at the bounds."""
        share = np.clip((x - self.low) / (self.high - self.low), BOUND_MARGIN, 1 - BOUND_MARGIN)
        return np.log(share) - np.log1p(-share)

    def log_slope(self, u: Array) -> Array:
        """Return the log of the logistic density times the width."""
        return log(self.high - self.low) - np.logaddexp(0.0, -u) - np.logaddexp(0.0, u)


@dataclass(frozen=True)
class Circle(Axis):
    """The circle x = u, from low to high, which is the same point."""

    low: float
    high: float

    @property
    def period(self) -> float:
        """The circumference."""
        return self.high - self.low

    def x(self, u: Array) -> Array:
        """Return u."""
        return u

    def u(self, x: Array) -> Array:
        """Return the values in the turn from low to high."""
        return self.low + np.remainder(x - self.low, self.period)

    def log_slope(self, u: Array) -> Array:
        """Return zeros."""
        return np.zeros_like(u)

    def ends(self, u: Array, widen: float) -> tuple[float, float]:
        """Return the bounds, whatever the values."""
        return self.low, self.high


BOUNDED_AXES: dict[type[Layer], Callable[[Any], list[Axis]]] = {
    Circular: lambda layer: [Circle(layer.low, layer.high) for _ in range(layer.dim)],
    Positive: lambda layer: [HalfLine(low) for low in layer.low.tolist()],
    Bounded: lambda layer: [
        Interval(*ends) for ends in zip(layer.low.tolist(), layer.high.tolist(), strict=True)
    ],
}
"""The axes of the columns that a layer bounds, on the data's side."""


def axes_of(flow: Flow, values: Array) -> tuple[Axis, ...]:
    """Return the axes of a flow's columns, as its layer next to the data bounds them.

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
        for layer, columns in zip(outermost.layers, outermost.columns, strict=True):
            known |= _bounded_axes(layer, columns)
    elif outermost is not None:
        known = _bounded_axes(outermost, list(range(flow.dim)))
    if not any(isinstance(axis, Circle) for axis in known.values()):
        known |= {column: Circle(-pi, pi) for column in flow.circular}
    return tuple(known.get(i) or _line(values[:, i]) for i in range(flow.dim))


def _bounded_axes(layer: Layer, columns: list[int]) -> dict[int, Axis]:
    """Return the axes of a layer's columns, none where it does not bound them."""
    axes = next((axes for kind, axes in BOUNDED_AXES.items() if isinstance(layer, kind)), None)
    return {} if axes is None else dict(zip(columns, axes(layer), strict=True))


def _line(x: Array) -> Line:
    """Return an axis that is linear around the median, where 95 % of the values are."""
    low, center, high = np.quantile(x, [0.025, 0.5, 0.975])
    return Line(float(center), max(float(high - low) / 2, 1e-6 * max(1.0, abs(float(center)))))
