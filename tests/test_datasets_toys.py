"""The toys' densities integrate to one, and are those of their samplers."""

import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import chi2, norm

from cnf import datasets
from cnf.datasets import TOYS, Toy, curves
from cnf.datasets.curves import smeared_mixture_log_prob
from cnf.datasets.pinwheel import Pinwheel
from cnf.datasets.toys import Circles, NoisyCurves, Spirals

EDGES = np.linspace(-5.0, 5.0, 81)  # every second integer is an edge, as for the checkerboard
NODES = 3
ROWS = 100_000


@pytest.fixture(scope="module", params=TOYS)
def toy_and_bins(request) -> tuple[Toy, np.ndarray]:
    """A toy, and the probability of each bin: its density integrated by Gauss-Legendre."""
    toy = TOYS[request.param]
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half, middle = np.diff(EDGES) / 2, (EDGES[1:] + EDGES[:-1]) / 2
    axis, weights = (middle[:, None] + half[:, None] * nodes).ravel(), np.outer(half, weights)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    density = np.exp(toy.log_prob(grid.reshape(-1, 2)))
    density = density.reshape(*weights.shape, *weights.shape)
    return toy, np.einsum("iajb,ia,jb->ij", density, weights, weights)


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


def with_more_noise(toy: Toy) -> Toy:
    name = "tangential_noise" if isinstance(toy, Pinwheel) else "noise"
    return dataclasses.replace(toy, **{name: 1.1 * getattr(toy, name)})


def test_density_integrates_to_one(toy_and_bins):
    _, probability = toy_and_bins
    assert probability.sum() == pytest.approx(1.0, abs=2e-5)


def test_sampler_draws_from_the_density(toy_and_bins):
    toy, probability = toy_and_bins
    assert p_value(toy.sample(ROWS, seed=0), probability) > 1e-3


def test_a_tenth_more_noise_is_noticed(toy_and_bins):
    toy, probability = toy_and_bins
    if toy.name == "checkerboard":
        pytest.skip("it has no noise")
    assert p_value(with_more_noise(toy).sample(ROWS, seed=0), probability) < 1e-9


@pytest.mark.parametrize("name", TOYS)
def test_most_rows_are_in_the_plot_window(name):
    toy = TOYS[name]
    low, high = np.array(toy.bounds).T
    rows = toy.sample(10_000, seed=0)
    assert ((rows >= low) & (rows <= high)).all(axis=1).mean() > 0.95


@pytest.mark.parametrize("name", TOYS)
def test_a_seed_gives_the_same_rows(name):
    toy = TOYS[name]
    rows = toy.sample(64, seed=3)
    assert rows.shape == (64, 2)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, toy.sample(64, np.random.default_rng(3)))
    assert not np.array_equal(rows, toy.sample(64, seed=4))


@pytest.mark.parametrize("name", TOYS)
def test_a_generator_is_advanced(name):
    rng = np.random.default_rng(0)
    first, second = (TOYS[name].sample(64, rng) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", TOYS)
def test_no_rows(name):
    assert TOYS[name].sample(0, seed=0).shape == (0, 2)
    assert TOYS[name].log_prob(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("name", TOYS)
def test_rows_do_not_depend_on_their_chunk(name, monkeypatch):
    toy = TOYS[name]
    rows = toy.sample(40, seed=0)
    together = toy.log_prob(rows)
    monkeypatch.setattr("cnf.datasets.toy.LOG_PROB_CHUNK_ROWS", 7)
    np.testing.assert_allclose(toy.log_prob(rows), together, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(TOYS.keys() - {"checkerboard"}))
def test_far_away_the_density_is_finite_and_falls(name):
    distances = np.array([0.0, 10.0, 20.0, 40.0, 80.0])
    log_p = TOYS[name].log_prob(np.outer(distances, [0.6, 0.8]))
    assert np.isfinite(log_p).all()
    assert (np.diff(log_p[1:]) < -100).all()


@pytest.mark.parametrize("name", ["swissroll", "moons", "2spirals"])
def test_twice_the_nodes_change_nothing(name, monkeypatch):
    toy = TOYS[name]
    rows = toy.sample(1000, seed=0)
    far = np.random.default_rng(0).uniform(-12, 12, (200, 2))
    log_p, log_p_far = toy.log_prob(rows), toy.log_prob(far)
    monkeypatch.setattr(curves, "PANEL_NODES", 2 * curves.PANEL_NODES)
    np.testing.assert_allclose(toy.log_prob(rows), log_p, atol=1e-9)
    np.testing.assert_allclose(toy.log_prob(far), log_p_far, rtol=1e-6)


def test_curve_agrees_with_bessel():
    circle = Circles(name="circle", radii=(2.0,), noise=0.2)
    curve = NoisyCurves(
        name="curve",
        curves=(lambda t: np.column_stack([2 * np.cos(t), 2 * np.sin(t)]),),
        interval=(0.0, 2 * np.pi),
        noise=0.2,
    )
    points = np.random.default_rng(0).uniform(-4, 4, (100, 2))
    np.testing.assert_allclose(curve.log_prob(points), circle.log_prob(points), rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 2.0])
def test_smeared_square_against_log_ndtr(noise):
    width = 0.5 / 3
    x = np.linspace(-6.0, 6.0, 101)[:, None] * [1.0, 0.3]
    upper = (width / 2 - np.abs(x - width / 2)) / noise
    near, far = log_ndtr(upper), log_ndtr(upper - width / noise)
    expected = (near + np.log1p(-np.exp(far - near)) - np.log(width)).sum(axis=1)
    log_p = smeared_mixture_log_prob(x, np.zeros((1, 2)), np.ones(1), width, noise)
    np.testing.assert_allclose(log_p, expected, rtol=1e-11, atol=1e-11)


def spiral_density(x: float, y: float, noise: float) -> float:
    """The definition, by another quadrature: U(0, 1) itself is the variable."""
    side = 0.5 / 3

    def kernel(u: float, sign: float) -> float:
        t = 3 * np.pi * np.sqrt(u)
        offsets = np.array([sign * x + t * np.cos(t) / 3, sign * y - t * np.sin(t) / 3])
        smear = norm.cdf(offsets / noise) - norm.cdf((offsets - side) / noise)
        return float(smear.prod()) / side**2

    return 0.5 * sum(quad(kernel, 0, 1, args=(s,), limit=500, epsabs=1e-11)[0] for s in (1.0, -1.0))


def test_spirals_against_adaptive_quadrature():
    toy = Spirals(name="2spirals", noise=0.1)
    rows = toy.sample(4, seed=0)
    expected = [spiral_density(*row, noise=0.1) for row in rows]
    np.testing.assert_allclose(np.exp(toy.log_prob(rows)), expected, rtol=1e-7)


def pinwheel_density(x: np.ndarray) -> float:
    """The definition with FFJORD's constants, root by root on a fine grid."""
    r, alpha = np.hypot(*x) / 2, np.arctan2(x[1], x[0])
    total = 0.0
    for arm in range(5):

        def miss(psi: float, arm: int = arm) -> float:
            angle = psi - arm * 2 * np.pi / 5 - 0.25 * np.exp(r * np.cos(psi)) - alpha
            return float(np.sin(angle / 2))  # zero where the angle is a multiple of 2 pi

        grid = np.linspace(-np.pi, np.pi, 4001)
        values = [miss(psi) for psi in grid]
        for (p, f), (q, g) in itertools.pairwise(zip(grid, values, strict=True)):
            if f * g < 0:
                psi = brentq(miss, p, q, xtol=1e-15)
                a, b = r * np.cos(psi), r * np.sin(psi)
                slope = abs(1 + 0.25 * np.exp(a) * b)
                total += norm.pdf(a, 1, 0.3) * norm.pdf(b, 0, 0.1) / (5 * 4 * slope)
    return total


@pytest.mark.parametrize("radius", [0.3, 2.0, 4.0, 6.0])  # from about 3.4 on the map folds
def test_pinwheel_against_a_search_for_every_root(radius):
    angle = np.array([0.4, 2.0, 5.0])
    x = radius * np.column_stack([np.cos(angle), np.sin(angle)])
    expected = [np.log(pinwheel_density(row)) for row in x]
    np.testing.assert_allclose(TOYS["pinwheel"].log_prob(x), expected, rtol=1e-8)


def test_pinwheel_finds_every_preimage():
    x = np.array([[4.0, 1.0], [-5.0, 2.0]])
    radius, angle = np.hypot(*x.T) / 2, np.arctan2(x[:, 1], x[:, 0])
    row, psi = TOYS["pinwheel"]._preimages(radius, angle)
    turns = TOYS["pinwheel"]._turns(radius[row], angle[row], psi)
    np.testing.assert_allclose(turns, turns.round(), atol=1e-12)
    grid = np.linspace(-np.pi, np.pi, 100_001)
    for i in range(2):
        steps = np.diff(np.floor(TOYS["pinwheel"]._turns(radius[i], angle[i], grid)))
        assert (row == i).sum() == np.abs(steps).sum()
    assert (row == 1).sum() > 5  # the second point lies beyond a fold


def test_pinwheel_at_the_origin():
    assert np.isfinite(TOYS["pinwheel"].log_prob(np.zeros((1, 2)))).all()


def test_checkerboard_is_uniform_on_its_squares():
    toy = TOYS["checkerboard"]
    assert set(toy.log_prob(toy.sample(10_000, seed=0))) == {-np.log(32)}
    assert toy.log_prob([[-1.0, 1.0], [5.0, 5.0], [-4.1, -3.9]]).tolist() == [-np.inf] * 3


@pytest.mark.parametrize(
    "x", [np.zeros(2), np.zeros((3, 3)), np.zeros((2, 3, 2)), [[0.0, np.nan]], [[np.inf, 0.0]]]
)
def test_wrong_points(x):
    with pytest.raises(ValueError, match=r"^Expected (finite )?points.*; got .*"):
        TOYS["moons"].log_prob(x)


def test_negative_counts_and_seeds():
    with pytest.raises(ValueError, match="got -1: ask for 0 or more"):
        TOYS["moons"].sample(-1, seed=0)
    with pytest.raises(ValueError, match="got -2: give 0 or more"):
        TOYS["moons"].sample(1, seed=-2)


def test_the_registry_knows_each_toy_by_its_name():
    assert all(toy.name == name for name, toy in TOYS.items())
    assert len(TOYS) == 8


def test_the_bare_name_is_refused():
    spec = importlib.util.spec_from_file_location("datasets", datasets.__file__)
    with pytest.raises(ImportError, match=r"import cnf\.datasets"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
