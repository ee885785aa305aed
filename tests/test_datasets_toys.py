"""The toys' densities integrate to one, and are those of their samplers."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import chi2, kstest, norm

from cnf import datasets
from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS, ConditionalToy, Toy, curves
from cnf.datasets.curves import smeared_mixture_log_prob
from cnf.datasets.pinwheel import Pinwheel
from cnf.datasets.toys import Circles, NoisyCurves, Spirals

EDGES = np.linspace(-5.0, 5.0, 81)  # every second integer is an edge, as for the checkerboard
EVERY = {**TOYS, **CONDITIONAL_TOYS}


def draw(toy: Toy | ConditionalToy, n: int, seed) -> tuple[np.ndarray, ...]:
    """Rows, with their contexts where the toy is conditional."""
    drawn = toy.sample(n, seed)
    return drawn if isinstance(toy, ConditionalToy) else (drawn,)


def bin_probabilities(toy: Toy) -> np.ndarray:
    """Integrate a density over bins by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(2)
    half, middle = np.diff(EDGES) / 2, (EDGES[1:] + EDGES[:-1]) / 2
    axis, weights = (middle[:, None] + half[:, None] * nodes).ravel(), np.outer(half, weights)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    density = np.exp(toy.log_prob(grid.reshape(-1, 2)))
    density = density.reshape(*weights.shape, *weights.shape)
    return np.einsum("iajb,ia,jb->ij", density, weights, weights)


def p_value(rows: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's test that rows fall into bins as expected; rare bins are pooled into one."""
    count = np.histogram2d(*rows.T, bins=EDGES)[0]
    common = probability * len(rows) >= 5
    observed = np.append(count[common], len(rows) - count[common].sum())
    expected = np.append(probability[common], 1 - probability[common].sum()) * len(rows)
    if expected[-1] < 5:  # nothing is rare, as on the checkerboard
        assert observed[-1] == pytest.approx(expected[-1], abs=5)
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(chi2.sf(statistic, len(expected) - 1))


@pytest.mark.parametrize("name", TOYS)
def test_density_integrates_to_one_and_is_that_of_the_sampler(name):
    toy, probability = TOYS[name], bin_probabilities(TOYS[name])
    assert probability.sum() == pytest.approx(1.0, abs=2e-5)
    assert p_value(toy.sample(100_000, seed=0), probability) > 1e-3
    if toy.name != "checkerboard":  # which has no noise
        name = "tangential_noise" if isinstance(toy, Pinwheel) else "noise"
        noisier = dataclasses.replace(toy, **{name: 1.1 * getattr(toy, name)})
        assert p_value(noisier.sample(100_000, seed=0), probability) < 1e-9


@pytest.mark.parametrize("name", EVERY)
def test_rows_depend_on_the_seed_alone_and_densities_on_their_rows(name, monkeypatch):
    toy, rng = EVERY[name], np.random.default_rng(3)
    rows = draw(toy, 1000, seed=3)
    low, high = np.array(getattr(toy, "bounds", [(-4, 4)] * len(rows[0].T))).T
    assert ((rows[0] >= low) & (rows[0] <= high)).all(axis=1).mean() > 0.95
    assert (rows[0].shape, rows[0].dtype) == ((1000, len(low)), np.float64)
    np.testing.assert_array_equal(rows[0], draw(toy, 1000, rng)[0])
    np.testing.assert_array_equal(rows[-1], draw(toy, 1000, seed=3)[-1])
    for other in (rng, 4):  # a generator is advanced
        assert not np.isin(draw(toy, 1000, other)[0], rows[0]).any()
    assert toy.log_prob(*draw(toy, 0, seed=0)).shape == (0,)
    together = toy.log_prob(*rows)
    monkeypatch.setattr("cnf.datasets.toy.LOG_PROB_CHUNK_ROWS", 7)
    few = toy.log_prob(*(part[:40] for part in rows))
    np.testing.assert_allclose(few, together[:40], rtol=1e-12)
    assert toy.name == name
    assert (name in TOYS) + (name in CONDITIONAL_TOYS) + (name in TABLES) == 1
    for n, seed, message in ((-1, 0, "-1: ask for 0 or more"), (1, -2, "-2: give 0 or more")):
        with pytest.raises(ValueError, match=f"got {message}"):
            toy.sample(n, seed)


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"checkerboard"}))
def test_far_away_the_density_is_finite_and_falls(name):
    toy = EVERY[name]
    given, dim = ([np.full((5, 1), 0.5)], len(toy.columns)) if name in CONDITIONAL_TOYS else ([], 2)
    log_p = toy.log_prob(np.outer([10.0, 20.0, 40.0, 80.0, 0.0], [0.6, 0.8][:dim]), *given)
    assert np.isfinite(log_p).all()
    assert (np.diff(log_p[:-1]) < -100).all()


@pytest.mark.parametrize("name", ["swissroll", "moons", "2spirals"])
def test_twice_the_nodes_change_nothing(name, monkeypatch):
    toy, far = TOYS[name], np.random.default_rng(0).uniform(-12, 12, (200, 2))
    rows = toy.sample(1000, seed=0)
    log_p, log_p_far = toy.log_prob(rows), toy.log_prob(far)
    monkeypatch.setattr(curves, "PANEL_NODES", 2 * curves.PANEL_NODES)
    np.testing.assert_allclose(toy.log_prob(rows), log_p, atol=1e-9)
    np.testing.assert_allclose(toy.log_prob(far), log_p_far, rtol=1e-6)


def test_curve_agrees_with_bessel():
    def around(t):
        return np.column_stack([2 * np.cos(t), 2 * np.sin(t)])

    curve = NoisyCurves(name="curve", curves=(around,), interval=(0.0, 2 * np.pi), noise=0.2)
    points = np.random.default_rng(0).uniform(-4, 4, (100, 2))
    expected = Circles(name="circle", radii=(2.0,), noise=0.2).log_prob(points)
    np.testing.assert_allclose(curve.log_prob(points), expected, rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 2.0])
def test_smeared_square_against_log_ndtr(noise):
    width, x = 0.5 / 3, np.linspace(-6.0, 6.0, 101)[:, None] * [1.0, 0.3]
    upper = (width / 2 - np.abs(x - width / 2)) / noise
    near, far = log_ndtr(upper), log_ndtr(upper - width / noise)
    expected = (near + np.log1p(-np.exp(far - near)) - np.log(width)).sum(axis=1)
    log_p = smeared_mixture_log_prob(x, np.zeros((1, 2)), np.ones(1), width, noise)
    np.testing.assert_allclose(log_p, expected, rtol=1e-11, atol=1e-11)


def spiral_density(x: float, y: float) -> float:
    """The definition, by another quadrature: U(0, 1) itself is the variable."""
    side, noise = 0.5 / 3, 0.1

    def kernel(u: float, sign: float) -> float:
        t = 3 * np.pi * np.sqrt(u)
        offsets = np.array([sign * x + t * np.cos(t) / 3, sign * y - t * np.sin(t) / 3])
        smear = norm.cdf(offsets / noise) - norm.cdf((offsets - side) / noise)
        return float(smear.prod()) / side**2

    return 0.5 * sum(quad(kernel, 0, 1, args=(s,), limit=500, epsabs=1e-11)[0] for s in (1.0, -1.0))


def test_spirals_against_adaptive_quadrature():
    toy = Spirals(name="2spirals", noise=0.1)
    rows = toy.sample(4, seed=0)
    expected = [spiral_density(*row) for row in rows]
    np.testing.assert_allclose(np.exp(toy.log_prob(rows)), expected, rtol=1e-7)


def pinwheel_density(x: np.ndarray) -> float:
    """The definition with FFJORD's constants, root by root on a fine grid."""
    r, alpha = np.hypot(*x) / 2, np.arctan2(x[1], x[0])
    total = 0.0
    for arm in range(5):

        def miss(psi, arm=arm):
            angle = psi - arm * 2 * np.pi / 5 - 0.25 * np.exp(r * np.cos(psi)) - alpha
            return np.sin(angle / 2)  # zero where the angle is a multiple of 2 pi

        grid = np.linspace(-np.pi, np.pi, 1001)
        for i in np.flatnonzero(np.diff(np.sign(miss(grid)))):
            psi = brentq(miss, grid[i], grid[i + 1], xtol=1e-15)
            a, b = r * np.cos(psi), r * np.sin(psi)
            slope = abs(1 + 0.25 * np.exp(a) * b)
            total += norm.pdf(a, 1, 0.3) * norm.pdf(b, 0, 0.1) / (5 * 4 * slope)
    return total


@pytest.mark.parametrize("radius", [0.3, 2.0, 4.0, 6.0])  # from about 3.4 on the map folds
def test_pinwheel_against_a_search_for_every_root(radius):
    angle = np.array([0.4, 2.0, 5.0])
    x = radius * np.column_stack([np.cos(angle), np.sin(angle)])
    expected = np.log([*map(pinwheel_density, x)])
    np.testing.assert_allclose(TOYS["pinwheel"].log_prob(x), expected, rtol=1e-8)
    assert np.isfinite(TOYS["pinwheel"].log_prob(np.zeros((1, 2)))).all()


def test_checkerboard_is_uniform_on_its_squares():
    toy = TOYS["checkerboard"]
    assert set(toy.log_prob(toy.sample(10_000, seed=0))) == {-np.log(32)}
    assert toy.log_prob([[-1.0, 1.0], [5.0, 5.0], [-4.1, -3.9]]).tolist() == [-np.inf] * 3


def mixture_cdf(x, center, noise):
    return (norm.cdf(x, center, noise) + norm.cdf(x, -center, noise)) / 2


@pytest.mark.parametrize("c", [0.0, 0.3, 1.1, 2.0])
def test_conditional_toys_are_two_gaussians_opposite_each_other(c):
    for name, center, noise in (
        ("rotor", [1.5 * np.cos(c), 1.5 * np.sin(c)], 0.2),
        ("fan", [c], 0.1 + 0.05 * c**2),
    ):
        x = np.random.default_rng(0).normal(size=(50, len(center)))
        parts = [norm.logpdf(x, np.multiply(sign, center), noise).sum(1) for sign in (-1, 1)]
        log_p = CONDITIONAL_TOYS[name].log_prob(x, np.full((50, 1), c))
        np.testing.assert_allclose(log_p, np.logaddexp(*parts) - np.log(2), rtol=1e-10)


def test_rows_of_conditional_toys_are_those_of_their_densities():
    """Through the distribution function of p(x | c) every row is uniform, whatever its context."""
    x, c = (rows[:, 0] for rows in CONDITIONAL_TOYS["fan"].sample(20_000, seed=0))
    pairs, angle = CONDITIONAL_TOYS["rotor"].sample(20_000, seed=0)
    turned = pairs @ [1, 1j] * np.exp(-1j * angle[:, 0])  # back onto the first axis
    fan, rotor = mixture_cdf(x, c, 0.1 + 0.05 * c**2), mixture_cdf(turned.real, 1.5, 0.2)
    for uniform in (c / 2, fan, angle[:, 0] / np.pi, rotor, norm.cdf(turned.imag, 0, 0.2)):
        assert kstest(uniform, "uniform").pvalue > 1e-3
    assert kstest(mixture_cdf(x, c, 0.15 + 0.05 * c**2), "uniform").pvalue < 1e-6


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        *(("moons", [np.zeros(shape)], "points of shape") for shape in ((2,), (3, 3), (2, 3, 2))),
        ("moons", [[[0.0, np.nan]]], "finite points"),
        ("moons", [[[np.inf, 0.0]]], "finite points"),
        ("rotor", [np.zeros(2), np.zeros((2, 1))], r"points of shape \(n, 2\)"),
        ("rotor", [np.zeros((2, 1)), np.zeros((2, 1))], r"points of shape \(n, 2\)"),
        ("rotor", [np.zeros((2, 2)), np.zeros(2)], r"contexts of shape \(n, 1\)"),
        ("rotor", [np.zeros((2, 2)), np.zeros((3, 1))], "a context for each of 2 points"),
        ("rotor", [[[0.0, np.nan]], [[0.0]]], "finite points"),
        ("rotor", [[[0.0, 0.0]], [[np.inf]]], "finite contexts"),
    ],
)
def test_wrong_points_and_contexts(name, rows, message):
    with pytest.raises(ValueError, match=f"^Expected {message}.*; got"):
        EVERY[name].log_prob(*rows)


def test_the_bare_name_is_refused():
    spec = importlib.util.spec_from_file_location("datasets", datasets.__file__)
    with pytest.raises(ImportError, match=r"import cnf\.datasets"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
