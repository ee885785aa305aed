"""Integrals of densities that are known to be 1, and of others."""

import numpy as np
import pytest
from scipy.stats import beta, expon, multivariate_normal, norm, t, vonmises

from cnf.diagnostics.axes import Circle, HalfLine, Interval, Line
from cnf.diagnostics.integral import importance, integrate, quadrature

RNG = np.random.default_rng(0)
ONE_COLUMN = {
    "normal": (norm(3.0, 2.0), Line(3.0, 2.0)),
    "long tails": (t(1.5), Line(0.0, 1.0)),
    "exponential": (expon(), HalfLine(0.0)),
    "beta, infinite at its ends": (beta(0.5, 0.5), Interval(0.0, 1.0)),
    "von Mises": (vonmises(2.0), Circle(-np.pi, np.pi)),
}


def columns_of(distribution):
    return lambda x: distribution.logpdf(x).sum(1)


@pytest.mark.parametrize("name", ONE_COLUMN)
@pytest.mark.parametrize("dim", [1, 2])
def test_quadrature_of_what_is_known(name, dim):
    distribution, axis = ONE_COLUMN[name]
    samples = distribution.rvs(size=(2000, dim), random_state=RNG)
    found = quadrature(columns_of(distribution), [axis] * dim, samples, 10_000)
    assert found.value == pytest.approx(1.0, abs=3e-3)
    assert found.stderr < 1e-3
    assert found.points == (2048 if dim == 1 else 10_000)


def test_a_grid_that_is_too_coarse_says_so():
    distribution = norm(0.0, 0.05)  # half of the distance of two points
    samples = RNG.normal(size=(500, 2))
    found = quadrature(columns_of(distribution), [Line(0.0, 2.0)] * 2, samples, 2500)
    assert found.stderr > 0.1 * found.value


def two_normals(dim):
    """A mixture with correlation, by its log-density and its samples."""
    covariance = 0.3 * np.eye(dim) + 0.2
    parts = [multivariate_normal(np.full(dim, mean), covariance) for mean in (-2.0, 2.0)]
    samples = np.concatenate([part.rvs(500, random_state=RNG) for part in parts])
    return (lambda x: np.logaddexp(*(part.logpdf(x) for part in parts)) - np.log(2)), samples


@pytest.mark.parametrize("dim", [3, 8])
def test_importance_sampling_of_what_is_known(dim):
    log_density, samples = two_normals(dim)
    errors = []
    for seed in range(5):
        found = integrate(log_density, [Line(0.0, 4.0)] * dim, samples, 3000, seed)
        errors.append((found.value - 1) / found.stderr)
        assert found.effective > 500
        assert found.stderr < 0.05
    assert np.sqrt(np.mean(np.square(errors))) < 2.2  # χ² of 5 draws: beyond in one of 5000 runs
    assert integrate(log_density, [Line(0.0, 4.0)] * dim, samples, 3000, 4) == found


def test_importance_sampling_along_all_kinds_of_columns():
    kinds = [ONE_COLUMN[name] for name in ("von Mises", "exponential", "normal", "von Mises")]
    samples = np.stack([one.rvs(size=2000, random_state=RNG) for one, _ in kinds], 1)

    def log_density(x):
        return np.sum([one.logpdf(x[:, i]) for i, (one, _) in enumerate(kinds)], axis=0)

    axes = [axis for _, axis in kinds]
    found = importance(log_density, axes, samples, 8000)
    assert abs(found.value - 1) < 4 * found.stderr < 0.15
    circles = importance(
        lambda x: columns_of(vonmises(2.0))(x), [axes[0]] * 3, samples[:, [0, 0, 3]], 8000
    )
    assert abs(circles.value - 1) < 4 * circles.stderr < 0.15


def test_what_is_not_1_is_found_not_to_be():
    log_density, samples = two_normals(3)
    axes = [Line(0.0, 4.0)] * 3
    found = integrate(lambda x: log_density(x) + np.log(1.5), axes, samples, 3000)
    assert abs(found.value - 1.5) < 4 * found.stderr < 0.2


def test_rows_that_are_not_known_count_as_none():
    def half(x):
        return np.where(x[:, 0] > 0, norm.logpdf(x[:, 0]), np.nan)

    samples = RNG.normal(size=(500, 1))
    assert quadrature(half, [Line(0.0, 2.0)], samples, 2000).value == pytest.approx(0.5, abs=2e-3)


def test_infinite_densities_are_told_without_a_word():
    samples = RNG.normal(size=(500, 1))
    found = quadrature(lambda x: np.full(len(x), 1e4), [Line(0.0, 2.0)], samples, 100)
    assert found.value == np.inf


def test_density_of_width_zero_finds_no_effective_points():
    log_density = lambda x: np.full(len(x), -np.inf)  # noqa: E731
    found = importance(log_density, [Line(0.0, 1.0)] * 3, RNG.normal(size=(100, 3)), 50)
    assert (found.value, found.effective) == (0.0, 0.0)
