"""Marginals of columns of numbers, which make them standard normal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf, log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from cnf.layers.scalings.quantiles import normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic

Array = NDArray[np.float64]

CORE = (0.01, 0.99)  # quantiles between which a column is standardised
MAX_EXPONENT = 700.0  # that double precision does not overflow at


@dataclass(frozen=True)
class Marginal:
    """The increasing map s = Φ⁻¹(F(x)) of a column with the distribution function F.

    Numbers above a bound are modelled by their logarithm, and between two by their log odds; then
    standardised, and mapped by a curve with exponential tails.

    Attributes:
        low: Lower bound, exclusive; None for no bound.
        high: Upper bound, exclusive; None for no bound.
        loc: Center of the numbers on the line.
        scale: Width of these.
        knots: Positions, values and slopes of the curve's knots.

    Example:
        >>> x = np.random.default_rng(0).exponential(size=1000)
        >>> marginal = Marginal.fit(x, 0.0, None)
        >>> s, _ = marginal.forward(x)
        >>> bool(abs(s.std() - 1) < 0.05), bool(np.allclose(marginal.inverse(s), x))
        (True, True)
    """

    low: float | None
    high: float | None
    loc: float
    scale: float
    knots: tuple[tuple[float, ...], ...]

    @staticmethod
    def fit(values: Array, low: float | None, high: float | None) -> Marginal:
        """Return the map of values (rows,) between bounds, at least two of them distinct."""
        start = Marginal(low, high, 0.0, 1.0, ())
        line = start._to_line(values)[0]
        loc, scale = center(line)
        curve = normalizing_curve((line - loc) / scale, np.ones(len(line)))
        knots = tuple(tuple(each[0].tolist()) for each in (curve.x, curve.y, curve.slope))
        return Marginal(low, high, loc, scale, knots)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return s and ln ∂s/∂x at numbers x, all of shape (rows,)."""
        line, log_slope = self._to_line(x)
        standard = torch.from_numpy((line - self.loc) / self.scale).unsqueeze(0)
        s, log_curve = self._curve.forward(standard)
        return s[0].numpy(), log_slope + log_curve[0].numpy() - log(self.scale)

    def inverse(self, s: Array) -> Array:
        """Return the numbers x of s, both of shape (rows,)."""
        standard = self._curve.inverse(torch.from_numpy(s).unsqueeze(0))[0].numpy()
        return self._from_line(self.loc + self.scale * standard)

    @cached_property
    def _curve(self) -> RationalQuadratic:
        x, y, slope = (torch.tensor([each], dtype=torch.float64) for each in self.knots)
        return RationalQuadratic(x, y, slope, torch.tensor([[x.shape[1] - 1]]))

    def _to_line(self, x: Array) -> tuple[Array, Array]:
        """Return numbers on the line, and the logarithm of the map's slope."""
        if self.low is None:
            return x, np.zeros(len(x))
        x = np.maximum(x, np.nextafter(self.low, inf))
        above = np.log(x - self.low)
        if self.high is None:
            return above, -above
        below = np.log(self.high - np.minimum(x, np.nextafter(self.high, -inf)))
        return above - below, log(self.high - self.low) - above - below

    def _from_line(self, line: Array) -> Array:
        if self.low is None:
            return line
        if self.high is None:
            return np.asarray(self.low + np.exp(np.minimum(line, MAX_EXPONENT)))
        return np.asarray(self.low + (self.high - self.low) * expit(line))


def center(values: Array) -> tuple[float, float]:
    """Return the median and the standard deviation of values without their tails."""
    core = np.clip(values, *np.quantile(values, CORE))
    scale = float(core.std()) or float(values.std()) or 1.0
    return float(np.median(values)), scale
