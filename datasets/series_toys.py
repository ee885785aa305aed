"""Toy series of known laws at irregular times, two of them with exact log-densities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.table import Array
from cnf.datasets.toy import generator_for

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

Whole = NDArray[np.int64]
SERIES_KEYS = ("id", "time")  # the first columns of every frame of series


@dataclass(frozen=True, kw_only=True)
class SeriesToy(ABC):
    """A law of series that are observed at random times.

    Each series has a number of rows from `rows`, at sorted times from U(0, span).

    Attributes:
        rows: The least and the greatest number of rows of a series.
        span: The end of the times.
        noise: Standard deviation of the noise of an observation.
        shared_times: Whether all series are observed at the times of the first, with 0 among them.

    Example:
        >>> frame = LinearGaussianSeries(rows=(2, 4)).sample(100, seed=0)
        >>> frame.columns.tolist(), frame.groupby("id").size().agg(["min", "max"]).tolist()
        (['id', 'time', 'x'], [2, 4])
    """

    rows: tuple[int, int] = (5, 30)
    span: float = 5.0
    noise: float = 0.1
    shared_times: bool = False
    columns: ClassVar[tuple[str, ...]] = ("x",)

    def sample(self, n: int = 1000, seed: int | np.random.Generator = 0) -> pd.DataFrame:
        """Draw n series as a frame with the columns `id`, `time` and those of the law.

        Raises:
            ValueError: `n` or `seed` is negative.
        """
        import pandas as pd

        rng = generator_for(n, seed)
        low, high = self.rows
        counts = rng.integers(low, high + 1, n)
        if self.shared_times:
            counts = np.full(n, high)
            times = np.tile(np.sort(np.append(0.0, rng.uniform(0.0, self.span, high - 1))), n)
            ids = np.repeat(np.arange(n), counts)
        else:
            ids = np.repeat(np.arange(n), counts)
            times = rng.uniform(0.0, self.span, len(ids))
            times = times[np.lexsort((times, ids))]
        values = self._draw(n, ids, times, rng)
        keys = pd.DataFrame(dict(zip(SERIES_KEYS, (ids, times), strict=True)))
        return pd.concat([keys, pd.DataFrame(values, columns=[*self.columns])], axis=1)

    @abstractmethod
    def _draw(self, n: int, ids: Whole, times: Array, rng: np.random.Generator) -> Array:
        """Return the observations (rows, columns) of n series, by the rows' ids and times."""


@dataclass(frozen=True, kw_only=True)
class PeriodicSeries(SeriesToy):
    """Sine waves of random frequency around a random level.

    x(t) = c + sin(2π f t) + ε, f ~ U(0.4, 0.8), c ~ N(1, 0.1²), ε ~ U(0, noise), at 100 times on
    [0, 5] that are common to all series.

    Source: the periodic set of Rubanova, Chen and Duvenaud (2019), https://arxiv.org/abs/1907.03907.
    """

    rows: tuple[int, int] = (100, 100)
    noise: float = 0.01
    shared_times: bool = True

    def _draw(self, n: int, ids: Whole, times: Array, rng: np.random.Generator) -> Array:
        frequency, level = rng.uniform(0.4, 0.8, n)[ids], rng.normal(1.0, 0.1, n)[ids]
        wave = level + np.sin(2 * np.pi * frequency * times)
        return (wave + rng.uniform(0.0, self.noise, len(times)))[:, None]


@dataclass(frozen=True, kw_only=True)
class SpiralSeries(SeriesToy):
    """Spirals in the plane that are run through in either direction.

    (x, y) = φ/2π (cos φ, sin φ) + N(0, noise² I), φ = φ₀ ± t, φ₀ ~ U(2π, 4π), t from 0 to 2π.
    Series with even ids run outwards, counter-clockwise, the others inwards: their states are on
    one curve, so that only the path tells them apart.

    Source: in the manner of Chen et al. (2018), https://arxiv.org/abs/1806.07366, section 5.1.
    """

    rows: tuple[int, int] = (50, 100)
    span: float = 2 * np.pi
    columns: ClassVar[tuple[str, ...]] = ("x", "y")

    def _draw(self, n: int, ids: Whole, times: Array, rng: np.random.Generator) -> Array:
        start = rng.uniform(2 * np.pi, 4 * np.pi, n)
        angle = start[ids] + np.where(ids % 2 == 0, times, -times)
        curve = np.column_stack([np.cos(angle), np.sin(angle)])
        spiral: Array = angle[:, None] / (2 * np.pi) * curve
        return spiral + rng.normal(0.0, self.noise, curve.shape)


@dataclass(frozen=True, kw_only=True)
class OrnsteinUhlenbeckSeries(SeriesToy):
    """A stationary Ornstein–Uhlenbeck process with measurement noise.

    dz = −rate z dt + scale √(2 rate) dW, z₀ ~ N(0, scale²), x = z + N(0, noise²).

    Attributes:
        rate: The rate of return to 0.
        scale: The standard deviation of z at any time.
    """

    rate: float = 1.0
    scale: float = 1.0

    def _draw(self, n: int, ids: Whole, times: Array, rng: np.random.Generator) -> Array:
        state, values = rng.normal(0.0, self.scale, n), np.empty(len(times))
        noise, kicks = rng.normal(0.0, self.noise, len(times)), rng.normal(size=len(times))
        for rows, decay in self._steps(ids, times):
            spread = self.scale * np.sqrt(1 - decay**2)
            state[ids[rows]] = decay * state[ids[rows]] + spread * kicks[rows]
            values[rows] = state[ids[rows]]
        return (values + noise)[:, None]

    def log_prob(self, frame: pd.DataFrame) -> Array:
        """Return log p(x | times) of each series, by the Kalman filter; gaps are left out.

        Shape (n,), in nats, in the order in which ids first appear.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"id": [3, 3], "time": [0.0, 50.0], "x": [0.0, 0.0]})
            >>> OrnsteinUhlenbeckSeries().log_prob(frame)  # -log(2 pi 1.01), of two that are apart
            array([-1.8478274])
        """
        n, ids, times, x = _observations(frame)
        mean, variance, total = np.zeros(n), np.full(n, self.scale**2), np.zeros(n)
        for rows, decay in self._steps(ids, times):
            at = ids[rows]
            predicted = decay * mean[at]
            spread = decay**2 * variance[at] + (1 - decay**2) * self.scale**2
            evidence = spread + self.noise**2
            error, gain = x[rows] - predicted, spread / evidence
            total[at] -= 0.5 * (error**2 / evidence + np.log(2 * np.pi * evidence))
            mean[at], variance[at] = predicted + gain * error, gain * self.noise**2
        return total

    def _steps(self, ids: Whole, times: Array) -> list[tuple[Whole, Array]]:
        """Return the first rows of all series, their second, …, with the decay since the last."""
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        ranks = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
        decay = np.exp(-self.rate * np.where(ranks > 0, np.diff(times, prepend=0.0), 0.0))
        order = np.argsort(ranks, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(ranks))[:-1]) if len(ids) else []
        return [(rows, decay[rows]) for rows in parts]


@dataclass(frozen=True, kw_only=True)
class LinearGaussianSeries(SeriesToy):
    """A damped rotation from a Gaussian start, one coordinate of which is observed with noise.

    z₀ ~ N(0, I₂), dz/dt = A z with A = [[−damping, −ω], [ω, −damping]], ω = 2π frequency,
    x = z₁ + N(0, noise²).

    Attributes:
        damping: The rate at which the rotation shrinks.
        frequency: Turns in a unit of time.
    """

    damping: float = 0.2
    frequency: float = 0.5

    def _draw(self, n: int, ids: Whole, times: Array, rng: np.random.Generator) -> Array:
        start = rng.normal(size=(n, 2))
        x: Array = (self._readout(times) * start[ids]).sum(1)
        return np.asarray(x + rng.normal(0.0, self.noise, len(times)))[:, None]

    def _readout(self, times: Array) -> Array:
        """Return the first row of exp(A t), shape (rows, 2)."""
        angle = 2 * np.pi * self.frequency * times
        shrunk = np.exp(-self.damping * times)
        return np.stack([shrunk * np.cos(angle), -shrunk * np.sin(angle)], axis=1)

    def log_prob(self, frame: pd.DataFrame) -> Array:
        """Return log p(x | times) of each series, z₀ integrated out; gaps are left out.

        With rows h_t of the readout H, M = I + HᵀH / noise² and b = Hᵀx / noise²,

            log p = −½ (m log(2π noise²) + log|M| + xᵀx / noise² − bᵀ M⁻¹ b).

        Shape (n,), in nats, in the order in which ids first appear.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"id": [3], "time": [0.0], "x": [0.0]})
            >>> LinearGaussianSeries().log_prob(frame)  # -log(2 pi 1.01) / 2
            array([-0.9239137])
        """
        n, ids, times, x = _observations(frame)
        h, precision = self._readout(times), self.noise**-2

        def total(values: Array) -> Array:
            return np.asarray(np.bincount(ids, values, n) * precision)

        m11, m12, m22 = (total(h[:, i] * h[:, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
        b1, b2 = (total(h[:, i] * x) for i in (0, 1))
        determinant = (1 + m11) * (1 + m22) - m12**2
        explained = ((1 + m22) * b1**2 - 2 * m12 * b1 * b2 + (1 + m11) * b2**2) / determinant
        constant = np.bincount(ids, minlength=n) * np.log(2 * np.pi / precision)
        return np.asarray(-0.5 * (constant + np.log(determinant) + total(x**2) - explained))


def _observations(frame: pd.DataFrame) -> tuple[int, Whole, Array, Array]:
    """Return the number of series, and places, times and values of observations, in their order."""
    import pandas as pd

    codes, uniques = pd.factorize(frame["id"])
    times, x = (frame[name].to_numpy(dtype=np.float64) for name in ("time", "x"))
    order = np.lexsort((times, codes))
    order = order[~np.isnan(x[order])]
    return len(uniques), codes[order].astype(np.int64), times[order], x[order]
