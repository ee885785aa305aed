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
"""A function of rows (n, dim) to log p (n,), NaN where the density is unknown, and taken for 0."""

# The share of the samples' range by which the box is wider on either side: a normal column's box is
# then from ±3.3 to more than ±5 standard deviations.
BOX_MARGIN = 0.25
MAX_POINTS_ONE_AXIS = 2048  # which are enough, however many are allowed
DEGREES_OF_FREEDOM = 8  # of the proposal's components, whose tails are above most densities'
BROAD_WEIGHT = 0.1  # of the component with the covariance of all samples
BROAD_FACTOR = 2.0  # on that covariance
MIN_COMPONENT_SAMPLES = 20  # for each column
MAX_COMPONENTS = 30


@dataclass(frozen=True)
class Integral:
    """The integral of a density, and its error.

    Attributes:
        value: The integral.
        stderr: Its standard error; by quadrature an upper estimate, from coarser grids.
        effective: The effective sample size of the weighted points; infinite by quadrature.
        points: Number of points.
    """

    value: float
    stderr: float
    effective: float
    points: int


def integrate(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int, seed: int = 0
) -> Integral:
    """Return the integral of a density over its support.

    It is computed by the midpoint rule in up to two columns, by importance sampling in more.

    Args:
        log_density: Log p of rows.
        axes: The columns' axes.
        samples: Rows from about this density, (rows, dim), which show where its mass is.
        points: The most points that the density is evaluated at.
        seed: Seed of importance sampling.

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
    """Return the integral by the midpoint rule, over a box that is wider than the samples' range.

    Every second point along each axis makes a coarser grid; the spread of the integrals on these
    grids shows whether the grid is fine enough.
    """
    most = points if len(axes) > 1 else min(points, MAX_POINTS_ONE_AXIS)
    each = max(2, 2 * int(most ** (1 / len(axes)) / 2))
    ends = [
        axis.ends(axis.u(column), BOX_MARGIN) for axis, column in zip(axes, samples.T, strict=True)
    ]
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
    """Return the integral as the mean of p(x) / q(x) over draws from a proposal q.

    q is uniform on circles. In the other columns it is a mixture of t distributions, at the
    components of a Gaussian mixture that is fitted on the samples, and one as broad as all samples.
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
    """The proposal distribution of importance sampling, along the axes.

    Attributes:
        axes: The axes of all columns.
        others: The columns that are not circles.
        weights: The components' weights, shape (components,).
        components: Distributions of `scipy.stats` over the columns of `others`.
    """

    axes: Sequence[Axis]
    others: list[int]
    weights: Array
    components: list[Any]

    @staticmethod
    def fit(axes: Sequence[Axis], samples: Array, seed: int) -> _Proposal:
        """Return a proposal that is broader than the samples."""
        others = [i for i, axis in enumerate(axes) if not isinstance(axis, Circle)]
        if not others:
            return _Proposal(axes, others, np.empty(0), [])
        u = np.stack([axes[i].u(samples[:, i]) for i in others], 1)
        scale = np.maximum(u.std(0), 1e-6)
        count = min(max(len(u) // (MIN_COMPONENT_SAMPLES * len(others)), 1), MAX_COMPONENTS)
        mixture = GaussianMixture(count, random_state=seed, reg_covar=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(u / scale)
        ridge = 1e-4 * np.eye(len(others))
        broad = BROAD_FACTOR * (np.cov(u.T / scale[:, None]).reshape(len(others), -1) + ridge)
        means = [*mixture.means_, (u / scale).mean(0)]
        shapes = [*mixture.covariances_, broad]
        components = [
            multivariate_t(mean * scale, scale[:, None] * shape * scale, df=DEGREES_OF_FREEDOM)
            for mean, shape in zip(means, shapes, strict=True)
        ]
        weights = np.append((1 - BROAD_WEIGHT) * mixture.weights_, BROAD_WEIGHT)
        return _Proposal(axes, others, weights, components)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return draws (count, dim), and their log q."""
        circles = [i for i in range(len(self.axes)) if i not in self.others]
        u, log_q = np.empty((count, len(self.axes))), np.zeros(count)
        for i in circles:
            low, high = self.axes[i].ends(u[:, i], 0.0)
            u[:, i] = rng.uniform(low, high, count)
            log_q -= log(high - low)
        if self.others:
            counts = rng.multinomial(count, self.weights)
            drawn = [
                component.rvs(size=size, random_state=rng).reshape(size, len(self.others))
                for component, size in zip(self.components, counts, strict=True)
                if size
            ]
            u[:, self.others] = np.concatenate(drawn)
            log_q += self._log_prob(u[:, self.others])
        return u, log_q

    def _log_prob(self, u: Array) -> Array:
        each = np.stack([component.logpdf(u) for component in self.components])
        return np.asarray(logsumexp(each, axis=0, b=self.weights[:, None]), np.float64)


def _log_density_of(log_density: LogDensity, axes: Sequence[Axis], u: Array) -> Array:
    """Return the log-density along the axes, log p(x) + Σ log dx/du; −∞ where it is unknown."""
    columns = list(zip(axes, u.T, strict=True))
    x = np.stack([axis.x(column) for axis, column in columns], 1)
    slopes = np.sum([axis.log_slope(column) for axis, column in columns], axis=0)
    found: Array = np.nan_to_num(log_density(x), nan=-inf, posinf=inf, neginf=-inf) + slopes
    return found


def _exp(logs: Array) -> Array:
    """Return exponentials, infinite without a warning where they overflow."""
    with np.errstate(over="ignore"):
        found: Array = np.exp(logs)
    return found


def _stderr(values: Array) -> float:
    """Return the standard error of a mean, NaN where a value is infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values.std(ddof=1) / sqrt(len(values)))
