"""Making columns normal: the curves, their tails, how many knots, and the layer in a flow."""

import time
from math import log, pi

import numpy as np
import pytest
import torch
from helpers import max_difference
from scipy.interpolate import PchipInterpolator
from scipy.stats import expon, gaussian_kde, norm

import cnf
from cnf.layers import Gaussianize, Whiten
from cnf.layers.scalings.quantiles import normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic
from cnf.training.recipes import Recipe

DOUBLE = torch.float64


def curve_through(*columns):
    """The curve whose columns have these knots x, and y = sinh(x)."""
    x = torch.tensor(np.array(columns))
    return RationalQuadratic.through(x, x.sinh())


def drawn(count, seed=0):
    """Rows with a spike, a heavy tail and a column that is normal already."""
    rng = np.random.default_rng(seed)
    spiky = np.where(rng.random(count) < 0.4, 1e-3 * rng.random(count), 1 + rng.random(count))
    return torch.from_numpy(
        np.stack([spiky, rng.standard_t(3, count), 7 + 2 * rng.standard_normal(count)], 1)
    )


def nll(layer, x):
    """Mean −log p of rows whose columns the layer makes independent normal ones."""
    z, log_det = layer.inverse(x)
    return (0.5 * z.square() + 0.5 * log(2 * pi)).sum(1).sub(log_det).mean().item()


def test_curve_passes_through_its_knots_and_increases():
    curve = curve_through([-2.0, -0.5, 0.1, 0.2, 3.0], [-1.0, 0.0, 0.5, 0.9, 1.0])
    y, _ = curve.forward(curve.x)
    torch.testing.assert_close(y, curve.y)
    along, _ = curve.forward(torch.linspace(-9, 9, 5001, dtype=DOUBLE).repeat(2, 1))
    assert (along.diff(dim=1) > 0).all()


def test_curve_lies_close_to_scipys_monotone_cubic():
    knots = np.linspace(-2, 2, 33)
    within = np.linspace(-2, 2, 101)
    y, _ = curve_through(knots).forward(torch.from_numpy(within).unsqueeze(0))
    expected = PchipInterpolator(knots, np.sinh(knots))(within)
    assert np.abs(y[0].numpy() - expected).max() < 0.01


def test_curve_has_the_slope_that_it_says_within_and_beyond_its_ends():
    curve = curve_through([-2.0, -0.5, 0.1, 0.2, 3.0])
    x = torch.linspace(-8, 8, 60, dtype=DOUBLE).unsqueeze(0).requires_grad_()
    y, log_slope = curve.forward(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope)


def test_curve_goes_back():
    curve = curve_through([-2.0, -0.5, 0.1, 0.2, 3.0], [-1.0, -0.9, 0.0, 1.0, 1.5])
    x = torch.linspace(-50, 50, 1001, dtype=DOUBLE).repeat(2, 1)
    assert max_difference(curve.inverse(curve.forward(x)[0]), x) < 1e-10
    y = torch.tensor([[-9.0, 0.3, 0.9, 12.0], [-2.0, -1.0, 0.3, 9.0]], dtype=DOUBLE)
    assert torch.autograd.gradcheck(curve.inverse, y.requires_grad_())


def test_tails_are_exponential():
    """Beyond its last knot the density of a normal y is that of an exponential, nearly."""
    curve = curve_through([-2.0, 0.0, 2.0])
    x = torch.linspace(10, 60, 6, dtype=DOUBLE).unsqueeze(0)
    y, log_slope = curve.forward(x)
    log_density = log_slope - 0.5 * y.square()
    slopes = (log_density.diff() / x.diff())[0]
    rate = (curve.y[0, -1] * curve.slope[0, -1]).item()
    np.testing.assert_allclose(slopes[-1].item(), -rate, rtol=0.02)


def test_more_rows_come_closer_to_the_density():
    """KL of an exponential column from what is made of it, by rows held out."""
    held_out = expon.rvs(size=20_000, random_state=1)
    excess = []
    for count in (30, 300, 3000, 30_000):
        curve = normalizing_curve(expon.rvs(size=count, random_state=2), np.ones(count))
        y, log_slope = curve.forward(torch.from_numpy(held_out).unsqueeze(0))
        log_density = norm.logpdf(y[0].numpy()) + log_slope[0].numpy()
        excess.append((expon.logpdf(held_out) - log_density).mean())
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 0.02


def test_as_good_as_a_kernel_density_on_a_smooth_column_and_better_on_a_spike():
    train, test = drawn(2000), drawn(2000, 1)
    layer = Gaussianize(3).double().fit(train)
    z, log_det = layer.inverse(test)
    for column, least in ((0, 1.0), (2, -0.02)):
        one = Gaussianize(1).double().fit(train[:, [column]])
        kernel = gaussian_kde(train[:, column].numpy()).logpdf(test[:, column].numpy())
        assert -nll(one, test[:, [column]]) - kernel.mean() > least
    assert max_difference(layer(z)[0], test) < 1e-9
    assert max_difference(layer(z)[1], -log_det) < 1e-9


def test_a_smooth_column_gets_few_knots_and_a_spiky_one_many():
    layer = Gaussianize(3).fit(drawn(4000))
    spiky, _, smooth = layer.last.flatten().tolist()
    assert smooth < 32 <= spiky


def test_rows_far_from_all_others_get_a_finite_density():
    layer = Gaussianize(3).fit(drawn(500).float())
    x = torch.tensor([[1e6, -1e6, 1e6], [-1e3, 1e3, -1e3]])
    z, log_det = layer.inverse(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer(z)[0], x, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 40 + [1.0, 2.0, 3.0]])
def test_columns_of_few_values_or_many_equal_ones(values):
    x = torch.tensor(values, dtype=DOUBLE).unsqueeze(1)
    layer = Gaussianize(1).double().fit(x)
    z, log_det = layer.inverse(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert max_difference(layer(z)[0], x) < 1e-9
    assert (z.flatten().unique().diff() > 0).all()


def test_rows_of_weight_zero_are_not_there():
    x = drawn(300)
    weight = torch.cat([torch.ones(200), torch.zeros(100)])
    weighted = Gaussianize(3).double().fit(x, weight)
    fewer = Gaussianize(3).double().fit(x[:200])
    torch.testing.assert_close(weighted.pull(x).value, fewer.pull(x).value)


def test_single_precision_agrees_with_double():
    x = drawn(2000)
    double, single = Gaussianize(3).double().fit(x), Gaussianize(3).fit(x.float())
    z, log_det = double.inverse(x)
    found, log_found = single.inverse(x.float())
    assert max_difference(z, found.double()) < 1e-2
    assert (log_det - log_found.double()).abs().median() < 1e-3


def test_a_flow_that_gaussianizes_makes_rows_normal_and_uncorrelated_before_its_field():
    x = drawn(3000)
    x[:, 2] += x[:, 1].clamp(-3, 3)
    flow = Recipe(scaling="gaussianize", hidden=(8,)).flow(3).double()
    cnf.fit(flow, x, recipe=Recipe(objective="matching", scaling="gaussianize"), steps=1)
    assert [type(layer) for layer in flow.layers[-2:]] == [Whiten, Gaussianize]
    z = x
    for layer in reversed(flow.layers[-2:]):
        z = layer.pull(z).value
    assert max_difference(z.T.cov(), torch.eye(3).double()) < 0.1
    assert z.abs().max() < 6


def test_a_saved_flow_keeps_its_curves(tmp_path):
    flow = Recipe(scaling="gaussianize", hidden=(8,)).flow(3)
    flow.layers[-1].fit(drawn(500).float())
    cnf.save(flow, tmp_path / "model")
    again = cnf.load(tmp_path / "model")
    x = drawn(20, 3).float()
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))


def test_the_time_to_fit_curves_is_part_of_a_runs_budget(monkeypatch):
    fitted = Gaussianize.fit

    def slow(self, *rows):
        time.sleep(0.5)
        return fitted(self, *rows)

    monkeypatch.setattr(Gaussianize, "fit", slow)
    recipe = Recipe(objective="matching", scaling="gaussianize", hidden=(8,))
    ended = {}
    for budget in (0.4, 30.0):
        history = cnf.fit(recipe.flow(3), drawn(100).float(), recipe=recipe, budget=budget, steps=3)
        ended[budget] = history.steps, history.reason
    assert ended == {0.4: (1, "budget"), 30.0: (3, "steps")}
