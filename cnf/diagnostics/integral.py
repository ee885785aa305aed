"""The integral of a density over its support: by quadrature, or by importance sampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_t, sem
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
    """Return the integral of a density, by quadrature in up to two columns, else by sampling.

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


@np.errstate(over="ignore", invalid="ignore")
def quadrature(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int
) -> Integral:
    """Return the integral by the midpoint rule, over a box that is wider than the samples' range.

    The spread of the integrals on coarser grids, of every second point along each axis, shows
    whether the grid is fine enough.
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
    masses = np.exp(_log_density_of(log_density, axes, u)) * np.prod(steps)
    on_grid = masses.reshape([each] * len(axes))
    shifts = product(*([slice(0, None, 2), slice(1, None, 2)] for _ in axes))
    coarser = np.array([on_grid[shift].sum() * 2 ** len(axes) for shift in shifts])
    return Integral(float(masses.sum()), float(sem(coarser)), inf, len(u))


@np.errstate(over="ignore", invalid="ignore")
def importance(
    log_density: LogDensity, axes: Sequence[Axis], samples: Array, points: int, seed: int = 0
) -> Integral:
    """Return the integral as the mean of p(x) / q(x) over draws from a proposal q.

    q is uniform on circles. In the other columns it is a mixture of t distributions, at the
    components of a Gaussian mixture that is fitted on the samples, and one as broad as all samples.
    """
    u, log_q = _proposed(axes, samples, points, seed)
    return mean_ratio(_log_density_of(log_density, axes, u) - log_q)


@np.errstate(over="ignore", invalid="ignore")
def mean_ratio(log_ratios: Array) -> Integral:
    """Return the integral as the mean of p(x) / q(x), given log p − log q at draws from q.

    Example:
        >>> mean_ratio(np.zeros(4))
        Integral(value=1.0, stderr=0.0, effective=4.0, points=4)
    """
    ratios, points = np.exp(log_ratios), len(log_ratios)
    total = float(ratios.sum())
    shares = ratios / total if 0 < total < inf else np.full(points, inf)
    effective = 1 / float(np.square(shares).sum())
    return Integral(total / points, float(sem(ratios)), effective, points)


def _proposed(axes: Sequence[Axis], samples: Array, points: int, seed: int) -> tuple[Array, Array]:
    """Return draws (points, dim) from the proposal along the axes, and their log q."""
    rng = np.random.default_rng(seed)
    u, log_q = np.empty((points, len(axes))), np.zeros(points)
    others = []
    for i, axis in enumerate(axes):
        if isinstance(axis, Circle):
            u[:, i] = rng.uniform(axis.low, axis.high, points)
            log_q -= log(axis.period)
        else:
            others.append(i)
    if others:
        along = np.stack([axes[i].u(samples[:, i]) for i in others], 1)
        weights, components = _components(along, seed)
        counts = rng.multinomial(points, weights)
        drawn = [
            component.rvs(size=count, random_state=rng).reshape(count, len(others))
            for component, count in zip(components, counts, strict=True)
            if count
        ]
        u[:, others] = np.concatenate(drawn)
        each = np.stack([component.logpdf(u[:, others]) for component in components])
        log_q += logsumexp(each, axis=0, b=weights[:, None])
    return u, log_q


def _components(u: Array, seed: int) -> tuple[Array, list[Any]]:
    """Return the weights and t distributions of a mixture that is broader than samples u."""
    scale, dim = np.maximum(u.std(0), 1e-6), u.shape[1]
    count = min(max(len(u) // (MIN_COMPONENT_SAMPLES * dim), 1), MAX_COMPONENTS)
    mixture = GaussianMixture(count, random_state=seed, reg_covar=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(u / scale)
    broad = BROAD_FACTOR * (np.cov(u.T / scale[:, None]).reshape(dim, -1) + 1e-4 * np.eye(dim))
    means = [*mixture.means_, (u / scale).mean(0)]
    shapes = [*mixture.covariances_, broad]
    components = [
        multivariate_t(mean * scale, scale[:, None] * shape * scale, df=DEGREES_OF_FREEDOM)
        for mean, shape in zip(means, shapes, strict=True)
    ]
    return np.append((1 - BROAD_WEIGHT) * mixture.weights_, BROAD_WEIGHT), components


def _log_density_of(log_density: LogDensity, axes: Sequence[Axis], u: Array) -> Array:
    """Return the log-density along the axes, log p(x) + Σ log dx/du; −∞ where it is unknown."""
    columns = list(zip(axes, u.T, strict=True))
    x = np.stack([axis.x(column) for axis, column in columns], 1)
    slopes = np.sum([axis.log_slope(column) for axis, column in columns], axis=0)
    known = np.nan_to_num(log_density(x), nan=-inf, posinf=inf, neginf=-inf)
    return np.asarray(known + slopes)
