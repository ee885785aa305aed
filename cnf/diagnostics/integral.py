"""The integral of a density over its support: by quadrature, or by importance sampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_t
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from cnf.diagnostics.axes import Axis, Circle

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]
"""Of rows (n, dim): log p, shape (n,); NaN where it is not known, which counts as none."""

# Of the samples' range, by which the box is wider on either side: a normal column's from ±3.3 to
# more than ±5 standard deviations.
WIDEN = 0.25
ONE_AXIS = 2048  # points are enough, however many are allowed
DEGREES = 8  # of freedom of the proposal's components: their tails are above most densities'
BROAD = 0.1  # the share of the one component that is as broad as all samples, and twice that
BROADER = 2.0
PER_COMPONENT = 20  # samples for each column of a component, at least
MOST_COMPONENTS = 30


@dataclass(frozen=True)
class Integral:
    """An integral, and how far it can be relied on.

    Attributes:
        value: Of the density.
        stderr: Its standard error; by quadrature that of the coarser grids that the grid is made
            of, which is more than its own.
        effective: Points as good as which the weighted ones are; infinite by quadrature.
        points: How many there were.
    """

    value: float
    stderr: float
    effective: float
    points: int


def integrate(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int, seed: int = 0
) -> Integral:
    """The integral of a density over its support.

    Up to two columns by the midpoint rule on a grid, above by importance sampling.

    Args:
        log_density: Log p of rows.
        axes: The columns.
        samples: Rows of about this density, (rows, dim), by which it is found where it is.
        points: The most that it is evaluated at.
        seed: Of importance sampling.

    Example:
        >>> from cnf.diagnostics.axes import Line
        >>> normal = lambda x: (-0.5 * x**2 - 0.5 * np.log(2 * np.pi)).sum(1)
        >>> samples = np.random.default_rng(0).normal(size=(500, 2))
        >>> round(integrate(normal, [Line(0.0, 2.0)] * 2, samples, 1000).value, 4)
        1.0
    """
    if len(axes) <= 2:
        return quadrature(log_density, axes, samples, points)
    return importance(log_density, axes, samples, points, seed)


def quadrature(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int
) -> Integral:
    """The integral by the midpoint rule, over a box that is wider than the samples'.

    Every second point along each axis makes a coarser grid; how far the integrals by these grids
    differ tells whether the grid is fine enough.
    """
    most = points if len(axes) > 1 else min(points, ONE_AXIS)
    each = max(2, 2 * int(most ** (1 / len(axes)) / 2))
    ends = [axis.ends(axis.u(column), WIDEN) for axis, column in zip(axes, samples.T, strict=True)]
    steps = [(high - low) / each for low, high in ends]
    middles = (np.arange(each) + 0.5) / each
    ticks = [low + (high - low) * middles for low, high in ends]
    u = np.stack([grid.ravel() for grid in np.meshgrid(*ticks, indexing="ij")], 1)
    masses = _exp(_log_density_of(log_density, axes, u)) * np.prod(steps)
    on_grid = masses.reshape([each] * len(axes))
    shifts = product(*([slice(0, None, 2), slice(1, None, 2)] for _ in axes))
    coarser = np.array([on_grid[shift].sum() * 2 ** len(axes) for shift in shifts])
    stderr = _stderr(coarser)
    return Integral(float(masses.sum()), stderr, inf, len(u))


def importance(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int, seed: int = 0
) -> Integral:
    """The integral as the mean of p(x) / q(x) over draws from a broad q that is fitted on samples.

    q is uniform around circles. Of the other columns it is a mixture of t distributions: where a
    Gaussian mixture that is fitted on the samples has its components, and one as broad as all.
    """
    rng = np.random.default_rng(seed)
    proposal = _Proposal.fit(axes, samples, seed)
    u, log_q = proposal.draw(points, rng)
    ratios = _exp(_log_density_of(log_density, axes, u) - log_q)
    total = float(ratios.sum())
    shares = ratios / total if 0 < total < inf else np.full(points, inf)
    effective = 1 / float(np.square(shares).sum())
    return Integral(total / points, _stderr(ratios), effective, points)


@dataclass(frozen=True, eq=False)
class _Proposal:
    """What importance sampling draws from, along the axes.

    Attributes:
        axes: Of all columns.
        others: Those that are no circles.
        weights: Of the components, shape (components,).
        components: Distributions of `scipy.stats` over the columns of `others`.
    """

    axes: Sequence[Axis]
    others: list[int]
    weights: Array
    components: list[Any]

    @staticmethod
    def fit(axes: Sequence[Axis], samples: Array, seed: int) -> _Proposal:
        """One that is broader than the samples."""
        others = [i for i, axis in enumerate(axes) if not isinstance(axis, Circle)]
        if not others:
            return _Proposal(axes, others, np.empty(0), [])
        u = np.stack([axes[i].u(samples[:, i]) for i in others], 1)
        scale = np.maximum(u.std(0), 1e-6)
        count = min(max(len(u) // (PER_COMPONENT * len(others)), 1), MOST_COMPONENTS)
        mixture = GaussianMixture(count, random_state=seed, reg_covar=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(u / scale)
        ridge = 1e-4 * np.eye(len(others))
        broad = BROADER * (np.cov(u.T / scale[:, None]).reshape(len(others), -1) + ridge)
        means = [*mixture.means_, (u / scale).mean(0)]
        shapes = [*mixture.covariances_, broad]
        components = [
            multivariate_t(mean * scale, scale[:, None] * shape * scale, df=DEGREES)
            for mean, shape in zip(means, shapes, strict=True)
        ]
        weights = np.append((1 - BROAD) * mixture.weights_, BROAD)
        return _Proposal(axes, others, weights, components)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draws (count, dim), and their log q."""
        circles = [i for i in range(len(self.axes)) if i not in self.others]
        u, log_q = np.empty((count, len(self.axes))), np.zeros(count)
        for i in circles:
            low, high = self.axes[i].ends(u[:, i], 0.0)
            u[:, i] = rng.uniform(low, high, count)
            log_q -= log(high - low)
        if self.others:
            counts = rng.multinomial(count, self.weights)
            drawn = [
                component.rvs(size=own, random_state=rng).reshape(own, len(self.others))
                for component, own in zip(self.components, counts, strict=True)
                if own
            ]
            u[:, self.others] = np.concatenate(drawn)
            log_q += self._log_prob(u[:, self.others])
        return u, log_q

    def _log_prob(self, u: Array) -> Array:
        each = np.stack([component.logpdf(u) for component in self.components])
        return np.asarray(logsumexp(each, axis=0, b=self.weights[:, None]), np.float64)


def _log_density_of(log_density: LogDensity, axes: Sequence[Axis], u: Array) -> Array:
    """Log of the density along the axes: log p(x) + Σ log dx/du; −∞ where it is not known."""
    columns = list(zip(axes, u.T, strict=True))
    x = np.stack([axis.x(own) for axis, own in columns], 1)
    slopes = np.sum([axis.log_slope(own) for axis, own in columns], axis=0)
    found: Array = np.nan_to_num(log_density(x), nan=-inf, posinf=inf, neginf=-inf) + slopes
    return found


def _exp(logs: Array) -> Array:
    """Too large ones are infinite, without a word."""
    with np.errstate(over="ignore"):
        found: Array = np.exp(logs)
    return found


def _stderr(values: Array) -> float:
    """Of a mean; NaN where a value is infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values.std(ddof=1) / sqrt(len(values)))
