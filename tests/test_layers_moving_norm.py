"""Batch normalisation: its statistics move only by updates, also in a run."""

import pytest
import torch
from helpers import DOUBLE, near, refused
from torch.distributions import Normal
from torch.testing import assert_close

import cnf
from cnf.datasets import TOYS
from cnf.layers import CNF, MovingNorm
from cnf.training.data import Rows
from cnf.training.learner import Learner
from cnf.training.objectives import FlowMatching, MaximumLikelihood
from cnf.training.recipes import Recipe

RECIPE = Recipe(
    objective="mle",
    hidden=(16, 16),
    blocks=2,
    batch_norm=True,
    batch_size=128,
    learning_rate=2e-2,
    ema_decay=0.9,
    validations=2,
)
SPREAD, SHIFT = torch.tensor([0.1, 30.0], dtype=DOUBLE), torch.tensor([1e3, -2.0], dtype=DOUBLE)


def batch(rows):
    return torch.randn(rows, 2, dtype=DOUBLE) * SPREAD + SHIFT


def norms(flow):
    return [layer for layer in flow.layers if isinstance(layer, MovingNorm)]


def statistics(layer):
    return layer.mean.clone(), layer.variance.clone(), layer.updates.clone()


def step(learner, rows):
    return learner.step(MaximumLikelihood(), Rows(rows), rate=1e-2, tolerance_factor=1.0)


@pytest.mark.parametrize("rows", [1, 30])
def test_the_first_updates_give_the_statistics_of_all_rows(rows):
    """Until 1/k falls below the decay; batches of one row work too, though they do not vary."""
    layer, batches = MovingNorm(2, decay=0.25).double(), [batch(rows) for _ in range(4)]
    for k, some in enumerate(batches, 1):
        layer.update(layer.sums(some))
        seen = torch.cat(batches[:k])
        assert_close(layer.mean, seen.mean(0), rtol=1e-12, atol=0)
        assert_close(layer.variance, seen.var(0, correction=0), rtol=1e-9, atol=1e-15)


def test_later_updates_forget_by_the_decay():
    """The mean of batches of one value each is their exponential average."""
    layer, values = MovingNorm(1, decay=0.5).double(), torch.randn(12, dtype=DOUBLE)
    for value in values:
        layer.update(layer.sums(value.expand(5, 1)))
    weights = torch.tensor([0.5**11, *(0.5 ** (12 - k) for k in range(1, 12))], dtype=DOUBLE)
    expected = weights @ values
    assert_close(layer.mean[0], expected)
    assert_close(layer.variance[0], weights @ (values - expected).square())


def test_sums_add_up_over_the_parts_of_a_batch_in_any_precision():
    whole, parted, rows = MovingNorm(2).double(), MovingNorm(2).double(), batch(21)
    for _ in range(2):
        whole.update(whole.sums(rows))
        parted.update(parted.sums(rows[:4]) + parted.sums(rows[4:]))
    assert_close(statistics(whole), statistics(parted), rtol=1e-12, atol=0)
    # Single precision far from zero keeps the variance.
    layer = MovingNorm(1)
    for _ in range(3):
        layer.update(layer.sums(1e4 + 0.1 * torch.randn(1000, 1)))
    assert layer.variance.dtype == torch.float32
    assert layer.variance.sqrt().item() == pytest.approx(0.1, rel=0.1)
    # A column that does not vary stays finite.
    layer = MovingNorm(2)
    layer.update(layer.sums(torch.tensor([[1.0, 3.0], [2.0, 3.0]])))
    z, log_det = layer.inverse(torch.tensor([[1.0, 3.0]]))
    assert all(each.isfinite().all() for each in (z, log_det))
    # Where it is affine alone it learns.
    assert not [*MovingNorm(2, affine=False).parameters()]
    layer = MovingNorm(2)
    z, log_det = layer.inverse(torch.randn(5, 2))
    (z.square().sum() + log_det.sum()).backward()
    assert [(parameter.grad != 0).any().item() for parameter in layer.parameters()] == [True, True]


def test_wrong_numbers():
    refused("decay to be above 0 and at most 1; got 0.0", MovingNorm, 2, decay=0.0)
    refused("decay to be above 0", MovingNorm, 2, decay=1.5)
    refused("eps to be finite and above 0; got 0.0", MovingNorm, 2, eps=0.0)
    refused("eps to be finite", MovingNorm, 2, eps=float("inf"))


@pytest.fixture(scope="module")
def trained():
    """A flow, its history, and what all rows of its training had been."""
    torch.manual_seed(0)
    moons = torch.from_numpy(TOYS["moons"].sample(600, seed=0))
    flow, data = RECIPE.flow(2), (moons * SPREAD + SHIFT).float()
    return flow, cnf.fit(flow, data, recipe=RECIPE, steps=80), data


def test_nothing_but_update_moves_the_statistics(trained):
    flow, _, x = trained
    before = [statistics(layer) for layer in norms(flow)]
    for mode in (flow.train(), flow.eval(), flow.train()):
        mode.log_prob(x[:5])
        mode.score(x[:5])
        mode.sample_and_log_prob(5)
        MaximumLikelihood()(mode, x[:5]).value.backward()
    assert_close([statistics(layer) for layer in norms(flow)], before, rtol=0, atol=0)


def test_log_p_does_not_depend_on_the_batch_nor_on_the_mode(trained):
    flow, _, x = trained
    flow = flow.double()
    together = flow.train().log_prob(x[:8].double())
    alone = torch.cat([flow.eval().log_prob(x[i : i + 1].double()) for i in range(8)])
    near(together, alone, 1e-9)
    flow.float()
    x, log_prob = flow.sample_and_log_prob(100)
    near(flow.log_prob(x), log_prob, 1e-2)


def test_a_saved_flow_has_its_statistics(trained, tmp_path):
    flow, _, x = trained
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    assert torch.equal(loaded.log_prob(x[:20]), flow.log_prob(x[:20]))
    assert [layer.config() for layer in norms(loaded)] == [layer.config() for layer in norms(flow)]
    assert all(int(layer.updates) > 0 for layer in norms(loaded))
    # What each layer received is what the one before it returned.
    x, passed = x[:20], flow.score_rows(x[:20]).layer_inputs
    for layer, arrived in zip(reversed(flow.layers), reversed(passed), strict=True):
        assert_close(arrived, x, rtol=1e-3, atol=1e-4)
        x = layer.pull(arrived).value
        assert not arrived.requires_grad


def test_a_step_moves_the_statistics_by_what_came_to_the_layers():
    flow, rows = RECIPE.flow(2).double(), batch(300)
    flow.layers[-1].fit(rows)
    learner = Learner(flow, RECIPE)
    with torch.no_grad():
        passed = flow.score_rows(rows).layer_inputs
    assert step(learner, rows).failure == ""
    for layer, x in zip(flow.layers, passed, strict=True):
        if isinstance(layer, MovingNorm):
            assert int(layer.updates) == 1
            near(layer.mean, x.mean(0), 2e-2)
            assert_close(layer.variance, x.var(0, correction=0), rtol=2e-2, atol=0)
    # The averaged flow has averaged statistics: θ̄ ← θ̄ + (1 − d)(θ − θ̄); after one step d is 0.1.
    for layer, ema in zip(norms(flow), norms(learner.ema), strict=True):
        assert_close(ema.mean, 0.9 * layer.mean)
        assert_close(ema.variance, 0.1 + 0.9 * layer.variance)
        assert int(ema.updates) == 1
    # A step that is skipped moves none.
    flow = RECIPE.flow(2)
    assert step(Learner(flow, RECIPE), torch.full((10, 2), torch.nan)).failure
    assert all(int(layer.updates) == 0 for layer in norms(flow))


def test_statistics_of_a_run_are_those_of_what_comes_to_the_layers(trained):
    flow, history, x = trained
    assert history.skipped == 0
    with torch.no_grad():
        scored = flow.score_rows(x)
    gaussian = Normal(x.mean(0), x.std(0)).log_prob(x).sum(1)
    assert scored.log_prob.mean() > gaussian.mean() + 0.2  # it learns
    for layer, arrived in zip(flow.layers, scored.layer_inputs, strict=True):
        if isinstance(layer, MovingNorm):
            assert int(layer.updates) == history.best_step
            z = (layer.pull(arrived).value - layer.bias) / layer.log_weight.exp()
            near(z.mean(0), torch.zeros(2), 0.2)
            near(z.std(0), torch.ones(2), 0.2)


@pytest.mark.parametrize("objective", ["matching", "hybrid"])
def test_flow_matching_refuses_it(objective):
    flow = cnf.ffjord(2, hidden=(4,), batch_norm=True)
    told = r"no batch normalisation for flow matching.*mle.*\Z"
    refused(told, FlowMatching().check, flow, conditional=False)
    x, told = torch.randn(50, 2), f"objective mle with batch_norm.*got objective {objective}"
    refused("no batch normalisation", cnf.fit, flow, x, objective=objective, steps=1)
    refused(told, Recipe, objective=objective, batch_norm=True)


def test_it_follows_each_cnf_on_the_way_to_the_base_or_stands_next_to_the_data():
    names = [layer.name for layer in cnf.ffjord(2, blocks=2, batch_norm=True).layers]
    assert names == ["moving_norm", "cnf", "moving_norm", "cnf", "standardize"]
    assert not norms(cnf.ffjord(2, blocks=2))
    base, layers = cnf.ffjord(2).base, [CNF(cnf.ConcatSquash(2, (8,))), MovingNorm(2)]
    flow, x = cnf.Flow(base, layers).double(), batch(300)
    cnf.fit(flow, x, recipe=RECIPE, steps=20)
    assert_close(norms(flow)[0].variance.sqrt(), SPREAD, rtol=0.5, atol=0)
    assert flow.log_prob(x).isfinite().all()
