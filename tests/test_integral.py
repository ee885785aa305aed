"""Integrals of densities that are known to be 1, and of others, along axes of columns."""

import numpy as np
import pytest
from scipy.stats import beta, expon, multivariate_normal, norm, t, vonmises

import cnf
from cnf.diagnostics.axes import Circle, HalfLine, Interval, Line, axes_of
from cnf.diagnostics.integral import importance, integrate, quadrature
from cnf.layers import Bounded, Circular, Concatenate, Identity, Positive

RNG = np.random.default_rng(0)
ONE_COLUMN = {
    "normal": (norm(3.0, 2.0), Line(3.0, 2.0)),
    "long tails": (t(1.5), Line(0.0, 1.0)),
    "exponential": (expon(), HalfLine(0.0)),
    "beta, infinite at its ends": (beta(0.5, 0.5), Interval(0.0, 1.0)),
    "von Mises": (vonmises(2.0), Circle(-np.pi, np.pi)),
}


def test_the_inverse_and_the_slope_of_an_axis():
    u, shifted = np.linspace(0.1, 4.0, 20), np.linspace(-3.0, 3.0, 13)
    for axis in (Line(3.0, 2.0), HalfLine(-1.0), Interval(-2.0, 5.0), Circle(0.0, 24.0)):
        np.testing.assert_allclose(axis.u(axis.x(u)), u, rtol=1e-9)
        slope = (axis.x(shifted + 1e-5) - axis.x(shifted - 1e-5)) / 2e-5
        np.testing.assert_allclose(axis.log_slope(shifted), np.log(slope), atol=1e-8)


def test_axes_at_bounds_and_a_turn_away_and_of_the_layer_next_to_the_data():
    assert np.isfinite(HalfLine(1.0).u(np.array([1.0, 0.0]))).all()
    assert np.isfinite(Interval(0.0, 1.0).u(np.array([0.0, 1.0, 2.0]))).all()
    assert Circle(0.0, 360.0).u(np.array([-90.0, 270.0, 630.0])).tolist() == [270.0] * 3
    assert (Circle(0.0, 360.0).period, Line(0.0, 1.0).period) == (360.0, float("inf"))
    mixed = [Positive([2.0]), Bounded([0.0, 1.0], [1.0, 4.0]), Circular(1, 0.0, 24.0)]
    of_mixed = [Interval(1.0, 4.0), Interval(0.0, 1.0), Circle(0.0, 24.0), HalfLine(2.0)]
    constant = Concatenate([Identity(1), Positive([2.0])], [[1], [0]])
    for layer, axes in (
        (Positive([1.0]), [HalfLine(1.0)]),
        (Bounded([0.0], [2.0]), [Interval(0.0, 2.0)]),
        (Concatenate(mixed, [[3], [1, 0], [2]]), of_mixed),
        (constant, [HalfLine(2.0), Line(1.0, 1e-6)]),
    ):
        dim = len(axes)
        base = cnf.ffjord(dim, circular=(3,) if dim > 3 else ()).base
        assert list(axes_of(cnf.Flow(base, [layer]), np.ones((10, dim)))) == axes


def columns_of(distribution):
    return lambda x: distribution.logpdf(x).sum(1)


@pytest.mark.parametrize("name", ONE_COLUMN)
@pytest.mark.parametrize("dim", [1, 2])
def test_quadrature_of_known_densities(name, dim):
    distribution, axis = ONE_COLUMN[name]
    samples = distribution.rvs(size=(2000, dim), random_state=RNG)
    found = quadrature(columns_of(distribution), [axis] * dim, samples, 10_000)
    assert found.value == pytest.approx(1.0, abs=3e-3)
    assert found.stderr < 1e-3
    assert found.points == (2048 if dim == 1 else 10_000)


def test_quadrature_of_coarse_grids_unknown_rows_and_infinite_densities():
    samples, lines = RNG.normal(size=(500, 2)), [Line(0.0, 2.0)] * 2
    narrow = norm(0.0, 0.05)  # half of the distance of two points
    found = quadrature(columns_of(narrow), lines, samples, 2500)
    assert found.stderr > 0.1 * found.value

    def half(x):
        return np.where(x[:, 0] > 0, norm.logpdf(x[:, 0]), np.nan)

    found = quadrature(half, lines[:1], samples[:, :1], 2000)
    assert found.value == pytest.approx(0.5, abs=2e-3)
    found = quadrature(lambda x: np.full(len(x), 1e4), lines[:1], samples[:, :1], 100)
    assert found.value == np.inf


@pytest.mark.parametrize("dim", [3, 8])
def test_importance_sampling_of_a_mixture(dim):
    covariance = 0.3 * np.eye(dim) + 0.2
    parts = [multivariate_normal(np.full(dim, mean), covariance) for mean in (-2.0, 2.0)]
    samples = np.concatenate([part.rvs(500, random_state=RNG) for part in parts])
    lines = [Line(0.0, 4.0)] * dim

    def log_density(x):
        return np.logaddexp(*(part.logpdf(x) for part in parts)) - np.log(2)

    errors = []
    for seed in range(5):
        found = integrate(log_density, lines, samples, 3000, seed)
        errors.append((found.value - 1) / found.stderr)
        assert found.effective > 500
        assert found.stderr < 0.05
    assert np.sqrt(np.mean(np.square(errors))) < 2.2  # χ² of 5 draws: beyond in one of 5000 runs
    assert integrate(log_density, lines, samples, 3000, 4) == found
    more = integrate(lambda x: log_density(x) + np.log(1.5), lines, samples, 3000)
    assert abs(more.value - 1.5) < 4 * more.stderr < 0.3
    nowhere = integrate(lambda x: np.full(len(x), -np.inf), lines, samples, 50)
    assert (nowhere.value, nowhere.effective) == (0.0, 0.0)


def test_importance_sampling_along_all_kinds_of_columns():
    kinds = [ONE_COLUMN[name] for name in ("von Mises", "exponential", "normal", "von Mises")]
    samples = np.stack([one.rvs(size=2000, random_state=RNG) for one, _ in kinds], 1)

    def log_density(x):
        return np.sum([one.logpdf(x[:, i]) for i, (one, _) in enumerate(kinds)], axis=0)

    axes = [axis for _, axis in kinds]
    found = importance(log_density, axes, samples, 8000)
    assert abs(found.value - 1) < 4 * found.stderr < 0.15
    circles = importance(columns_of(vonmises(2.0)), [axes[0]] * 3, samples[:, [0, 0, 3]], 8000)
    assert abs(circles.value - 1) < 4 * circles.stderr < 0.15
