"""Making columns normal: the curves, their tails, how many knots, and the layer in a flow."""

import time
from math import log, pi

import numpy as np
import pytest
import torch
from helpers import DOUBLE, max_difference, near
from scipy.interpolate import PchipInterpolator
from scipy.stats import expon, gaussian_kde, norm
from torch.testing import assert_close

import cnf
from cnf.layers import Gaussianize, GaussianizeUneven, Whiten
from cnf.layers.scalings.quantiles import curve_gains, normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic
from cnf.training.recipes import Recipe


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


def test_curve_passes_through_its_knots_increases_and_goes_back():
    curve = curve_through([-2.0, -0.5, 0.1, 0.2, 3.0], [-1.0, 0.0, 0.5, 0.9, 1.0])
    assert_close(curve.forward(curve.x)[0], curve.y)
    x = torch.linspace(-50, 50, 5001, dtype=DOUBLE).repeat(2, 1)
    y, _ = curve.forward(x)
    assert (y.diff(dim=1) > 0).all()
    near(curve.inverse(y), x, 1e-10)
    y = torch.tensor([[-9.0, 0.3, 0.9, 12.0], [-2.0, -1.0, 0.3, 9.0]], dtype=DOUBLE)
    assert torch.autograd.gradcheck(curve.inverse, y.requires_grad_())


def test_curve_lies_close_to_scipys_monotone_cubic_between_exponential_tails():
    knots, within = np.linspace(-2, 2, 33), np.linspace(-2, 2, 101)
    y, _ = curve_through(knots).forward(torch.from_numpy(within).unsqueeze(0))
    expected = PchipInterpolator(knots, np.sinh(knots))(within)
    assert np.abs(y[0].numpy() - expected).max() < 0.01
    # Its slope is the one that it returns, within and beyond its ends.
    curve = curve_through([-2.0, -0.5, 0.1, 0.2, 3.0])
    x = torch.linspace(-8, 8, 60, dtype=DOUBLE).unsqueeze(0).requires_grad_()
    y, log_slope = curve.forward(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert_close(log_slope.exp(), slope)
    # Beyond its last knot the density of a normal y is that of an exponential, nearly.
    curve = curve_through([-2.0, 0.0, 2.0])
    x = torch.linspace(10, 60, 6, dtype=DOUBLE).unsqueeze(0)
    y, log_slope = curve.forward(x)
    log_density = log_slope - 0.5 * y.square()
    slopes = (log_density.diff() / x.diff())[0]
    rate = (curve.y[0, -1] * curve.slope[0, -1]).item()
    assert slopes[-1].item() == pytest.approx(-rate, rel=0.02)


def test_more_rows_come_closer_to_the_density():
    """KL of an exponential column from what is made of it, by rows held out."""
    held_out = expon.rvs(size=20_000, random_state=1)
    excess = []
    for count in (30, 300, 3000):
        curve = normalizing_curve(expon.rvs(size=count, random_state=2), np.ones(count))
        y, log_slope = curve.forward(torch.from_numpy(held_out).unsqueeze(0))
        log_density = norm.logpdf(y[0].numpy()) + log_slope[0].numpy()
        excess.append((expon.logpdf(held_out) - log_density).mean())
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 0.04


def test_as_good_as_a_kernel_density_on_a_smooth_column_and_better_on_a_spike():
    train, test = drawn(2000), drawn(2000, 1)
    layer = Gaussianize(3).double().fit(train)
    z, log_det = layer.inverse(test)
    for column, least in ((0, 1.0), (2, -0.02)):
        own, change = Gaussianize(1).double().fit(train[:, [column]]).inverse(test[:, [column]])
        log_prob = (change - 0.5 * own.square().sum(1) - 0.5 * log(2 * pi)).mean().item()
        kernel = gaussian_kde(train[:, column].numpy()).logpdf(test[:, column].numpy())
        assert log_prob - kernel.mean() > least
    near(layer(z)[0], test, 1e-9)
    near(layer(z)[1], -log_det, 1e-9)
    spiky, _, smooth = layer.last.flatten().tolist()
    assert smooth < 32 <= spiky  # knots


def test_rows_far_from_all_others_get_a_finite_density():
    layer = Gaussianize(3).fit(drawn(500).float())
    x = torch.tensor([[1e6, -1e6, 1e6], [-1e3, 1e3, -1e3]])
    z, log_det = layer.inverse(x)
    assert all(each.isfinite().all() for each in (z, log_det))
    assert_close(layer(z)[0], x, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 40 + [1.0, 2.0, 3.0]])
def test_columns_of_few_values_or_many_equal_ones(values):
    x = torch.tensor(values, dtype=DOUBLE).unsqueeze(1)
    layer = Gaussianize(1).double().fit(x)
    z, log_det = layer.inverse(x)
    assert all(each.isfinite().all() for each in (z, log_det))
    near(layer(z)[0], x, 1e-9)
    assert (z.flatten().unique().diff() > 0).all()


def test_rows_of_weight_zero_are_not_there_and_precision_matters_little():
    x, weight = drawn(300), torch.cat([torch.ones(200), torch.zeros(100)])
    weighted = Gaussianize(3).double().fit(x, weight)
    assert_close(weighted.pull(x).value, Gaussianize(3).double().fit(x[:200]).pull(x).value)
    # Single precision agrees with double.
    x = drawn(2000)
    z, log_det = Gaussianize(3).double().fit(x).inverse(x)
    found, log_found = Gaussianize(3).fit(x.float()).inverse(x.float())
    assert max_difference(z, found.double()) < 1e-2
    assert (log_det - log_found.double()).abs().median() < 1e-3


def test_a_flow_that_gaussianizes_makes_rows_normal_and_uncorrelated_before_its_field(tmp_path):
    x = drawn(3000)
    x[:, 2] += x[:, 1].clamp(-3, 3)
    recipe = Recipe(objective="matching", scaling="gaussianize", hidden=(8,))
    flow = recipe.flow(3).double()
    cnf.fit(flow, x, recipe=recipe, steps=1)
    assert [type(layer) for layer in flow.layers[-2:]] == [Whiten, Gaussianize]
    z = x
    for layer in reversed(flow.layers[-2:]):
        z = layer.pull(z).value
    near(z.T.cov(), torch.eye(3).double(), 0.1)
    assert z.abs().max() < 6
    # A saved flow keeps its curves.
    cnf.save(flow, tmp_path)
    assert_close(cnf.load(tmp_path).log_prob(x[:20]), flow.log_prob(x[:20]))


def test_only_columns_far_from_normal_are_gaussianized_where_that_is_asked():
    rng = np.random.default_rng(0)
    rounded = rng.normal(size=(3000, 1)).round() + rng.uniform(-0.25, 0.25, (3000, 1))
    uniform = rng.random((3000, 1))
    x = torch.cat([torch.from_numpy(rounded), drawn(3000), torch.from_numpy(uniform)], 1)
    x[:, 2] = x[:, 2].exp()
    layer, whole = GaussianizeUneven(5).double().fit(x), Gaussianize(5).double().fit(x)
    # Neither the normal nor the uniform column has a curve.
    assert layer.shaped.tolist() == [True, True, True, False, False]
    (z, log_det), (every, _) = layer.inverse(x), whole.inverse(x)
    assert_close(z[:, :3], every[:, :3])
    assert_close(z[:, 3:], ((x - x.mean(0)) / x.std(0, correction=0))[:, 3:])
    assert_close(layer(z)[1], -log_det)


def test_gains_of_edges_are_over_smooth_distributions():
    rng = np.random.default_rng(0)
    # Noise fills half of the distance between whole numbers, log 2 nats, which curves blur.
    rounded = rng.normal(size=4000).round() + rng.uniform(-0.25, 0.25, 4000)
    assert 0.3 < curve_gains(rounded).edges < np.log(2)
    smooth = [rng.uniform(size=4000), rng.gamma(3.0, size=4000), rng.normal(size=4000)]
    assert max(curve_gains(each).edges for each in smooth) < 0.05


def test_gain_of_weighted_rows_is_that_of_rows_repeated():
    values = np.random.default_rng(1).exponential(size=4000)
    low = values < np.median(values)
    whole = curve_gains(values)
    assert curve_gains(values, np.full(4000, 3.0)) == pytest.approx(whole)
    # The rows of the lower half alone are nearly uniform.
    found = curve_gains(values, low.astype(float))
    assert found == pytest.approx(curve_gains(values[low]), abs=0.06)
    assert found.normal < 0.25 < whole.normal


def test_the_time_to_fit_curves_is_part_of_a_runs_budget(monkeypatch):
    fitted = Gaussianize.fit

    def slow(self, *rows):
        time.sleep(0.3)
        return fitted(self, *rows)

    monkeypatch.setattr(Gaussianize, "fit", slow)
    recipe = Recipe(objective="matching", scaling="gaussianize", hidden=(8,))
    for budget, ended in {0.2: (1, "budget"), 30.0: (3, "steps")}.items():
        history = cnf.fit(recipe.flow(3), drawn(100).float(), recipe=recipe, budget=budget, steps=3)
        assert (history.steps, history.reason) == ended
