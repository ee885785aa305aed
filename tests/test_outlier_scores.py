"""The outlier detector: its mixture and flow against closed forms, its scores, and trimming."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.distributions import Categorical as Choice
from torch.distributions import MixtureSameFamily, MultivariateNormal

from cnf.outliers import noise_flow, noisy_mixture, training
from cnf.outliers.detector import core, fit_detector
from cnf.outliers.noise_flow import SIGMAS, NoiseFlow
from cnf.outliers.noisy_mixture import NoisyMixture
from cnf.outliers.training import train_network
from cnf.training.progress import TrainingBudget
from cnf.utils.random import seeded

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@pytest.fixture
def mixture():
    """Two components in the plane, in float64."""
    found = NoisyMixture(2, 2).double()
    found.log_weights.copy_(torch.tensor([0.3, 0.7]).log())
    found.means.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]))
    found.variances.copy_(torch.tensor([[0.1, 0.4], [0.3, 0.2]]))
    return found


def noisy(mixture, sigma):
    """The law of rows with noise, by PyTorch's distributions."""
    covariances = torch.diag_embed(mixture.variances + sigma**2)
    parts = MultivariateNormal(mixture.means, covariances)
    return MixtureSameFamily(Choice(logits=mixture.log_weights), parts)


@pytest.fixture
def ring():
    """Rows on a circle with a little noise, and rows inside it, in float64."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(400, generator=generator, dtype=torch.float64)
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    rows = rows + 0.05 * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    inside = 0.2 * torch.randn(100, 2, generator=generator, dtype=torch.float64)
    return rows, inside


def test_the_mixture_is_the_law_of_rows_with_noise(mixture):
    y = torch.randn(2, 5, 2, dtype=torch.float64)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    for level in range(2):
        found = mixture.log_prob(y[level], sigma[level])
        expected = noisy(mixture, sigma[level]).log_prob(y[level])
        torch.testing.assert_close(found - 2 * HALF_LOG_2PI, expected)


def test_the_expected_row_is_tweedies(mixture):
    y = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([0.7], dtype=torch.float64)
    (slope,) = torch.autograd.grad(noisy(mixture, sigma).log_prob(y).sum(), y)
    torch.testing.assert_close(mixture.denoise(y, sigma), y + sigma**2 * slope)


def test_expectation_maximisation_finds_components(mixture):
    with seeded(0):
        x = noisy(mixture, 0.0).sample((4000,))
        found = NoisyMixture.fit(x, 2, passes=60)
    order = found.means[:, 0].argsort()
    assert (found.means[order] - mixture.means).abs().max() < 0.06
    assert (found.variances[order] - mixture.variances).abs().max() < 0.06
    assert (found.log_weights[order] - mixture.log_weights).exp().sub(1).abs().max() < 0.1


def test_the_likelihood_never_falls_in_expectation_maximisation(mixture):
    with seeded(0):
        x = noisy(mixture, 0.0).sample((500,))
        found = NoisyMixture.fit(x, 3, passes=1)
    zero, values = torch.tensor(0.0).double(), []
    for _ in range(10):
        values.append(found.log_prob(x, zero).mean())
        found.improve(x)
    # A component's prior of four rows of the pooled variance may cost a little.
    assert (torch.stack(values).diff() > -2e-3).all()
    assert values[-1] > values[0]


def test_a_network_of_the_true_change_adds_the_expected_gain_in_log_p(monkeypatch):
    """Of two narrow clusters from N(0, 1), against quadrature, over many draws of noise."""
    true, wrong = NoisyMixture(2, 1).double(), NoisyMixture(1, 1).double()
    true.means.copy_(torch.tensor([[-1.0], [1.0]]))
    true.variances.fill_(0.0025)
    flow = NoiseFlow(wrong, torch.ones(1).double(), (8, 8))
    flow.denoise = lambda y, sigma: (wrong.denoise(y, sigma), true.denoise(y, sigma))
    monkeypatch.setattr(noise_flow, "LEVELS", 64)
    x = torch.tensor([[0.0], [0.5], [1.0], [3.0]]).double()
    found = []
    for seed in range(100):
        monkeypatch.setattr(noise_flow, "NOISE_SEED", seed)
        found.append(flow.score(x))
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(80))

    def gain(sigma):
        y, sigma = x + sigma * nodes, torch.tensor(sigma).double()
        by = [each.log_prob(y.reshape(-1, 1), sigma).view_as(y) for each in (true, wrong)]
        return (by[0] - by[1]) @ weights / weights.sum()

    expected = wrong.log_prob(x, torch.tensor(SIGMAS[0]).double())
    expected = expected + gain(SIGMAS[0]) - gain(SIGMAS[1])
    torch.testing.assert_close(torch.stack(found).mean(0), expected, atol=0.15, rtol=0)


def test_a_flow_without_a_change_scores_as_the_mixture(mixture):
    flow = NoiseFlow(mixture, torch.ones(2, dtype=torch.float64), (8, 8)).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    sigma = torch.tensor(SIGMAS[0], dtype=torch.float64)
    torch.testing.assert_close(flow.score(x), mixture.log_prob(x, sigma))


def test_the_velocity_takes_a_normal_law_along_its_path():
    """Of N(0, 1) data, x_t has variance t² + (1 − t)², and dx/dt = x ½ d ln variance / dt."""
    unit = NoisyMixture(1, 1).double()
    flow = NoiseFlow(unit, torch.ones(1, dtype=torch.float64), (8, 8)).double()
    t = torch.tensor(0.3, dtype=torch.float64)
    x = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    torch.testing.assert_close(flow.velocity(t, x), x * (2 * t - 1) / (t**2 + (1 - t) ** 2))


def test_rows_off_the_data_score_lower(ring):
    rows, inside = ring
    model = fit_detector(rows[:300], steps=30, budget=None, threads=1)
    tested = torch.cat([rows[300:], inside])
    outlier = torch.arange(200) >= 100
    assert roc_auc_score(outlier, -model.score(tested)) > 0.99


def test_a_score_depends_on_its_row_alone(ring):
    rows, inside = ring
    model = fit_detector(rows, steps=2, budget=None, threads=1)
    together = model.score(torch.cat([inside, rows]))
    alone = torch.cat([model.score(row[None]) for row in inside[:5]])
    assert together.dtype == torch.float64
    assert torch.equal(together[:5], alone)
    assert model.score(rows[:0]).shape == (0,)


def test_a_score_does_not_depend_on_the_number_of_rows():
    with seeded(0):
        wide = torch.randn(300, 30).double()
    model = fit_detector(wide, steps=2, budget=None, threads=1)
    every = model.score(wide)
    for count in (1, 9, 17, 31, 33, 127):
        assert torch.equal(model.score(wide[:count]), every[:count])


def test_the_same_seed_gives_the_same_model(ring):
    rows, inside = ring
    first, second = (
        fit_detector(rows, steps=3, budget=None, seed=4, threads=1).score(inside) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_gain_has_to_exceed_its_standard_error():
    true, wrong = NoisyMixture(2, 1), NoisyMixture(1, 1)
    true.means.copy_(torch.tensor([[-1.0], [1.0]]))
    true.variances.fill_(0.0025)
    with seeded(0):
        rows = torch.randn(60, 1).sign() + 0.05 * torch.randn(60, 1)
    better, worse = (NoiseFlow(each, torch.ones(1), (8, 8)) for each in (wrong, true))
    better.denoise = lambda y, sigma: (wrong.denoise(y, sigma), true.denoise(y, sigma))
    worse.denoise = lambda y, sigma: (true.denoise(y, sigma), wrong.denoise(y, sigma))
    assert training._gains(better, rows)
    assert not training._gains(worse, rows)
    assert not training._gains(better, rows[:1])
    assert not training._gains(better, rows[:0])


@pytest.mark.parametrize("kept", [True, False])
def test_a_network_without_a_gain_is_left_out(kept, monkeypatch):
    with seeded(0):
        rows = torch.randn(400, 8).sign() + 0.1 * torch.randn(400, 8)
        flow = NoiseFlow(NoisyMixture.fit(rows[100:], 1), rows.var(0), (32, 32))
    monkeypatch.setattr(training, "_gains", lambda *given: kept)
    train_network(flow, rows[100:], rows[:100], TrainingBudget.of(None, 150), threads=1)
    assert bool(flow.field.last.linear.weight.any()) == kept


def test_a_mixture_takes_no_more_time_than_it_is_given(ring):
    with seeded(0):
        one = NoisyMixture.fit(ring[0], 3, passes=1)
    with seeded(0):
        cut = NoisyMixture.fit(ring[0], 3, passes=15, seconds=0)
    assert torch.equal(one.means, cut.means)


def test_rows_are_taken_some_at_a_time(ring, monkeypatch):
    with seeded(0):
        whole = NoisyMixture.fit(ring[0], 3)
    monkeypatch.setattr(noisy_mixture, "PASS_ROWS", 70)
    with seeded(0):
        parts = NoisyMixture.fit(ring[0], 3)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_constant_columns_are_left_out(ring):
    rows, inside = ring
    wide = torch.cat([rows[:, :1], torch.full((400, 1), 7.0), rows[:, 1:]], 1)
    model = fit_detector(wide, steps=2, budget=None, threads=1)
    tested = torch.cat([inside[:, :1], inside, inside[:, 1:]], 1)[:, [0, 1, 3]]
    assert torch.equal(model.varying, torch.tensor([True, False, True]))
    plain = fit_detector(rows, steps=2, budget=None, threads=1)
    torch.testing.assert_close(model.score(tested), plain.score(inside))


def test_far_rows_have_finite_and_low_scores(ring):
    rows, _ = ring
    model = fit_detector(rows, steps=10, budget=None, threads=1)
    far = model.score(torch.tensor([[10.0, 0.0], [1e4, 0.0], [1e30, -1e30]]).double())
    assert far.isfinite().all()
    assert far[0] < model.score(rows).min()
    assert (far.diff() < 0).all()


QUICK = {"steps": 2, "budget": None, "threads": 1}


def test_the_core_has_no_outliers_and_sets_the_units():
    with seeded(0):
        normal, wide = torch.randn(300, 3).double(), 8.0 * torch.randn(60, 3).double()
    rows, outlier = torch.cat([normal, wide]), torch.arange(360) >= 300
    assert outlier[core(rows, 0.5)].sum() <= 2  # some are near the middle
    plain, trimmed = (fit_detector(rows, contamination=c, **QUICK) for c in (0.0, 0.15))
    assert plain.scale.min() > 2.5
    assert trimmed.scale.max() < 1.0
    assert roc_auc_score(outlier, -trimmed.score(rows)) > 0.95


def test_a_gross_outlier_hides_no_other():
    with seeded(0):
        rows = torch.randn(400, 3).double()
        rows[1:20, 0] = 30 * torch.randn(19).sign().double()
    rows[0, 0] = 1e6
    outlier = torch.arange(400) < 20
    model = fit_detector(rows, contamination=0.05, **QUICK)
    assert model.scale.max() < 1.5
    assert roc_auc_score(outlier, -model.score(rows)) > 0.999


@pytest.mark.parametrize("contamination", [0.01, 0.05])
def test_a_second_group_of_normal_rows_is_not_trimmed(contamination):
    """A narrow group of 600 rows, a wide one of 400, and outliers about both."""
    count = round(1000 * contamination / (1 - contamination))
    low, high = torch.tensor([-5.0, -6.0]), torch.tensor([13.0, 6.0])
    with seeded(0):
        groups = [0.1 * torch.randn(600, 2), torch.randn(400, 2) + torch.tensor([8.0, 0.0])]
        rows = torch.cat([*groups, low + (high - low) * torch.rand(count, 2)]).double()
    model = fit_detector(rows, contamination=contamination, **QUICK)
    assert roc_auc_score(torch.arange(len(rows)) >= 1000, -model.score(rows)) > 0.95


def test_tiny_units(ring):
    """Squares of such deviations are 0, or infinite, in float64."""
    rows, inside = ring
    expected = fit_detector(rows, **QUICK).score(inside)
    for unit in (1e-200, 1e-160, 1e200):
        found = fit_detector(rows * unit, **QUICK).score(inside * unit)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (torch.ones(5, 2), {}, "Expected columns that vary; got 5 equal rows: pass others"),
        (torch.rand(5, 2), {"contamination": 1.0}, "Expected contamination from 0 to below 1"),
        (torch.rand(5, 2), {"steps": 0}, "Expected steps to be above 0; got 0"),
    ],
)
def test_mistakes_are_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        fit_detector(rows, **options)


def test_a_few_rows_are_enough():
    model = fit_detector(torch.rand(3, 2), steps=2, budget=None, threads=1)
    assert model.score(torch.rand(4, 2)).isfinite().all()
