"""The conditional toys' densities integrate to one at any context, and are those of their rows."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS, load

CONTEXTS = np.array([0.0, 0.3, 1.1, 2.0])


def given(context: float, rows: int) -> np.ndarray:
    return np.full((rows, 1), context)


def mixture_cdf(x: np.ndarray, center: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return (norm.cdf(x, center, noise) + norm.cdf(x, -center, noise)) / 2


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_density_integrates_to_one_given_a_context(name, context):
    toy = CONDITIONAL_TOYS[name]
    axis = np.linspace(-5, 5, 501)  # smooth, and nothing at the ends: a plain sum is exact
    grid = np.stack(np.meshgrid(*[axis] * len(toy.columns)), -1).reshape(-1, len(toy.columns))
    density = np.exp(toy.log_prob(grid, given(context, len(grid))))
    step = (axis[1] - axis[0]) ** len(toy.columns)
    assert density.sum() * step == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("context", CONTEXTS)
def test_rotor_is_two_gaussians_opposite_each_other(context):
    x = np.random.default_rng(0).normal(size=(50, 2))
    center = 1.5 * np.array([np.cos(context), np.sin(context)])
    parts = [norm.pdf(x, sign * center, 0.2).prod(1) for sign in (-1, 1)]
    log_p = CONDITIONAL_TOYS["rotor"].log_prob(x, given(context, 50))
    np.testing.assert_allclose(log_p, np.log(np.mean(parts, 0)), rtol=1e-10)


def test_rows_of_fan_are_those_of_its_density():
    """Through p(x | c)'s distribution function every row is uniform, whatever its context."""
    x, context = CONDITIONAL_TOYS["fan"].sample(20_000, seed=0)
    uniform = mixture_cdf(x, context, 0.1 + 0.05 * context**2)[:, 0]
    assert kstest(uniform, "uniform").pvalue > 1e-3
    wider = mixture_cdf(x, context, 0.15 + 0.05 * context**2)[:, 0]
    assert kstest(wider, "uniform").pvalue < 1e-6


def test_rows_of_rotor_are_those_of_its_density():
    """Turned back by its context, a row lies on the first axis."""
    x, context = CONDITIONAL_TOYS["rotor"].sample(20_000, seed=0)
    cos, sin = np.cos(context[:, 0]), np.sin(context[:, 0])
    along, across = x[:, 0] * cos + x[:, 1] * sin, x[:, 1] * cos - x[:, 0] * sin
    assert kstest(mixture_cdf(along, 1.5, 0.2), "uniform").pvalue > 1e-3
    assert kstest(across, norm(0, 0.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_contexts_are_uniform_on_their_interval(name):
    toy = CONDITIONAL_TOYS[name]
    low, high = toy.interval
    _, context = toy.sample(20_000, seed=1)
    assert kstest(context[:, 0], "uniform", args=(low, high - low)).pvalue > 1e-3


def test_mean_log_density_of_fan_is_minus_its_entropy():
    toy = CONDITIONAL_TOYS["fan"]

    def surprise(x: float, context: float) -> float:
        log_p = toy.log_prob([[x]], [[context]])[0]
        return -float(np.exp(log_p) * log_p)

    nodes, weights = np.polynomial.legendre.leggauss(8)
    inner = [quad(surprise, -6, 6, args=(1 + node,), points=[-1, 0, 1])[0] for node in nodes]
    log_p = toy.log_prob(*toy.sample(50_000, seed=0))
    assert -log_p.mean() == pytest.approx(weights @ inner / 2, abs=0.01)


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_a_seed_gives_the_same_rows_and_a_generator_is_advanced(name):
    toy = CONDITIONAL_TOYS[name]
    rng = np.random.default_rng(3)
    for left, right in zip(toy.sample(64, seed=3), toy.sample(64, rng), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.isin(toy.sample(64, rng)[0], toy.sample(64, seed=3)[0]).any()


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_no_rows(name):
    toy = CONDITIONAL_TOYS[name]
    x, context = toy.sample(0, seed=0)
    assert (x.shape, context.shape) == ((0, len(toy.columns)), (0, 1))
    assert toy.log_prob(x, context).shape == (0,)


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_far_away_the_density_is_finite_and_falls(name):
    toy = CONDITIONAL_TOYS[name]
    x = np.outer([5.0, 50.0, 500.0], np.ones(len(toy.columns)))
    log_p = toy.log_prob(x, given(0.5, 3))
    assert np.isfinite(log_p).all()
    assert (np.diff(log_p) < -100).all()


@pytest.mark.parametrize(
    ("x", "context", "words"),
    [
        (np.zeros(2), np.zeros((2, 1)), "points of shape (n, 2)"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "points of shape (n, 2)"),
        (np.zeros((2, 2)), np.zeros(2), "contexts of shape (n, 1)"),
        (np.zeros((2, 2)), np.zeros((3, 1)), "a context for each of 2 points; got 3"),
        ([[0.0, np.nan]], [[0.0]], "finite points"),
        ([[0.0, 0.0]], [[np.inf]], "finite contexts"),
    ],
)
def test_wrong_points_and_contexts(x, context, words):
    with pytest.raises(ValueError, match="^Expected .*; got .*") as error:
        CONDITIONAL_TOYS["rotor"].log_prob(x, context)
    assert words in str(error.value)


def test_negative_counts_and_seeds():
    with pytest.raises(ValueError, match="got -1: ask for 0 or more"):
        CONDITIONAL_TOYS["fan"].sample(-1, seed=0)
    with pytest.raises(ValueError, match="got -2: give 0 or more"):
        CONDITIONAL_TOYS["fan"].sample(1, seed=-2)


def test_the_registry_knows_each_toy_by_a_name_of_its_own():
    assert all(toy.name == name for name, toy in CONDITIONAL_TOYS.items())
    assert not CONDITIONAL_TOYS.keys() & {*TOYS, *TABLES}


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_a_conditional_toy_is_no_table(name):
    with pytest.raises(ValueError, match="CONDITIONAL_TOYS"):
        load(name)
