"""Batch normalisation: its statistics move only by updates, also in a run."""

import dataclasses

import pytest
import torch

import cnf
from cnf.datasets import TOYS
from cnf.layers import CNF, MovingNorm
from cnf.training.data import Rows
from cnf.training.learner import Learner
from cnf.training.objectives import FlowMatching, MaximumLikelihood
from cnf.training.recipes import Recipe

DOUBLE = torch.float64
RECIPE = Recipe(
    objective="mle",
    hidden=(8,),
    blocks=2,
    batch_norm=True,
    batch_size=64,
    learning_rate=2e-2,
    ema_decay=0.9,
    validations=5,
)
SPREAD, SHIFT = torch.tensor([0.1, 30.0], dtype=DOUBLE), torch.tensor([1e3, -2.0], dtype=DOUBLE)


def batch(rows):
    return torch.randn(rows, 2, dtype=DOUBLE) * SPREAD + SHIFT


def norms(flow):
    return [layer for layer in flow.layers if isinstance(layer, MovingNorm)]


def statistics(layer):
    return layer.mean.clone(), layer.variance.clone(), layer.updates.clone()


def test_the_first_updates_give_the_statistics_of_all_rows():
    """Compare with the statistics of all rows at once, until 1/k falls below the decay."""
    layer, batches = MovingNorm(2, decay=0.25).double(), [batch(30) for _ in range(4)]
    for k, rows in enumerate(batches, 1):
        layer.update(layer.sums(rows))
        seen = torch.cat(batches[:k])
        torch.testing.assert_close(layer.mean, seen.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(layer.variance, seen.var(0, correction=0), rtol=1e-9, atol=0)


def test_later_updates_forget_by_the_decay():
    """The mean of batches of one value each is their exponential average."""
    layer, expected = MovingNorm(1, decay=0.5).double(), torch.tensor(0.0, dtype=DOUBLE)
    values = torch.randn(12, dtype=DOUBLE)
    for k, value in enumerate(values):
        expected = value if k == 0 else 0.5 * expected + 0.5 * value
        layer.update(layer.sums(value.expand(5, 1)))
    torch.testing.assert_close(layer.mean[0], expected)
    weights = torch.tensor([0.5**11, *(0.5 ** (12 - k) for k in range(1, 12))], dtype=DOUBLE)
    variance = weights @ (values - expected).square()
    torch.testing.assert_close(layer.variance[0], variance)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_statistics_converge_to_those_of_the_data(rows):
    """Batches of one row work too, though their variance is zero."""
    layer = MovingNorm(2, decay=2e-3, eps=1e-9).double()
    for _ in range(1500):
        layer.update(layer.sums(batch(rows)))
    torch.testing.assert_close(layer.variance.sqrt(), SPREAD, rtol=0.1, atol=0)
    z = layer.inverse(batch(5000))[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(2, dtype=DOUBLE), rtol=0, atol=0.2)
    torch.testing.assert_close(z.std(0), torch.ones(2, dtype=DOUBLE), rtol=0, atol=0.15)


def test_sums_add_up_over_the_parts_of_a_batch():
    whole, parted, rows = MovingNorm(2).double(), MovingNorm(2).double(), batch(21)
    for _ in range(2):
        whole.update(whole.sums(rows))
        parted.update(parted.sums(rows[:4]) + parted.sums(rows[4:]))
    torch.testing.assert_close(statistics(whole), statistics(parted), rtol=1e-12, atol=0)


def test_single_precision_far_from_zero_keeps_the_variance():
    layer = MovingNorm(1)
    for _ in range(3):
        x = 1e4 + 0.1 * torch.randn(1000, 1)
        layer.update(layer.sums(x))
    assert layer.variance.dtype == torch.float32
    assert layer.variance.sqrt().item() == pytest.approx(0.1, rel=0.1)


def test_a_column_that_does_not_vary_stays_finite():
    layer = MovingNorm(2)
    layer.update(layer.sums(torch.tensor([[1.0, 3.0], [2.0, 3.0]])))
    z, log_det = layer.inverse(torch.tensor([[1.0, 3.0]]))
    assert z.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize("affine", [True, False])
def test_it_learns_where_it_is_affine_alone(affine):
    layer = MovingNorm(2, affine=affine)
    assert len(list(layer.parameters())) == 2 * affine
    if affine:
        z, log_det = layer.inverse(torch.randn(5, 2))
        (z.square().sum() + log_det.sum()).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 0.0}, "decay to be above 0 and at most 1; got 0.0"),
        ({"decay": 1.5}, "decay to be above 0"),
        ({"eps": 0.0}, "eps to be finite and above 0; got 0.0"),
        ({"eps": float("inf")}, "eps to be finite"),
    ],
)
def test_wrong_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        MovingNorm(2, **arguments)


# In a flow.


@pytest.fixture(scope="module")
def trained():
    """A flow, its history, and what all rows of its training had been."""
    torch.manual_seed(0)
    flow, data = RECIPE.flow(2), batch(600)
    history = cnf.fit(flow, data, recipe=RECIPE, steps=40)
    return flow, history, data.float()


def test_each_cnf_is_followed_by_one_on_the_way_to_the_base():
    names = [layer.name for layer in cnf.ffjord(2, blocks=2, batch_norm=True).layers]
    assert names == ["moving_norm", "cnf", "moving_norm", "cnf", "standardize"]
    assert not norms(cnf.ffjord(2, blocks=2))


def test_nothing_but_update_moves_the_statistics(trained):
    flow, _, x = trained
    before = [statistics(layer) for layer in norms(flow)]
    for mode in (flow.train(), flow.eval(), flow.train()):
        mode.log_prob(x[:20])
        mode.score(x[:20])
        mode.sample_and_log_prob(20)
        MaximumLikelihood()(mode, x[:20]).value.backward()
    for old, layer in zip(before, norms(flow), strict=True):
        assert all(torch.equal(*pair) for pair in zip(old, statistics(layer), strict=True))


def test_log_p_does_not_depend_on_the_batch_nor_on_the_mode(trained):
    flow, _, x = trained
    flow = flow.double()
    together = flow.train().log_prob(x[:50].double())
    alone = torch.cat([flow.eval().log_prob(x[i : i + 1].double()) for i in range(50)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    flow.float()


def test_samples_and_their_log_p_go_together(trained):
    flow, _, _ = trained
    x, log_prob = flow.sample_and_log_prob(200)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-2)


def test_the_density_integrates_to_one(trained):
    flow, _, x = trained
    low, high = x.amin(0) - 2 * x.std(0), x.amax(0) + 2 * x.std(0)
    axes = [torch.linspace(*ends, 150) for ends in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    with torch.no_grad():
        density = flow.with_solver(step="joint").log_prob(grid).double().exp().reshape(150, 150)
    mass = torch.trapezoid(torch.trapezoid(density, axes[1].double()), axes[0].double())
    assert mass.item() == pytest.approx(1, abs=0.01)


def test_a_saved_flow_has_its_statistics(trained, tmp_path):
    flow, _, x = trained
    cnf.save(flow, tmp_path)
    loaded = cnf.load(tmp_path)
    assert torch.equal(loaded.log_prob(x[:20]), flow.log_prob(x[:20]))
    assert [layer.config() for layer in norms(loaded)] == [layer.config() for layer in norms(flow)]
    assert all(int(layer.updates) > 0 for layer in norms(loaded))


def test_what_passed_each_layer_is_what_came_to_it(trained):
    flow, _, x = trained
    passed = flow.score_rows(x[:20]).layer_inputs
    assert len(passed) == len(flow.layers)
    for layer, arrived in zip(reversed(flow.layers), reversed(passed), strict=True):
        torch.testing.assert_close(arrived, x[:20], rtol=1e-3, atol=1e-4)
        x = layer.pull(arrived).value
        assert not arrived.requires_grad


# In a run.


def test_a_step_moves_the_statistics_by_what_came_to_the_layers():
    torch.manual_seed(0)
    flow, rows = RECIPE.flow(2).double(), batch(300)
    flow.layers[-1].fit(rows)
    learner = Learner(flow, RECIPE)
    with torch.no_grad():
        passed = flow.score_rows(rows).layer_inputs
    outcome = learner.step(MaximumLikelihood(), Rows(rows), rate=1e-2, tolerance_factor=1.0)
    assert outcome.failure == ""
    for layer, x in zip(flow.layers, passed, strict=True):
        if isinstance(layer, MovingNorm):
            assert int(layer.updates) == 1
            torch.testing.assert_close(layer.mean, x.mean(0), rtol=0, atol=2e-2)
            torch.testing.assert_close(layer.variance, x.var(0, correction=0), rtol=2e-2, atol=0)


def test_a_step_that_is_skipped_moves_no_statistics():
    flow = RECIPE.flow(2)
    learner = Learner(flow, RECIPE)
    rows = torch.full((10, 2), torch.nan)
    assert learner.step(MaximumLikelihood(), Rows(rows), rate=1e-2, tolerance_factor=1.0).failure
    assert all(int(layer.updates) == 0 for layer in norms(flow))


def test_the_averaged_flow_has_averaged_statistics():
    """θ̄ ← θ̄ + (1 − d)(θ − θ̄) for weights and statistics; after one step d is a tenth."""
    torch.manual_seed(0)
    flow, rows = RECIPE.flow(2).double(), batch(300)
    learner = Learner(flow, RECIPE)
    learner.step(MaximumLikelihood(), Rows(rows), rate=1e-2, tolerance_factor=1.0)
    for layer, ema in zip(norms(flow), norms(learner.ema), strict=True):
        torch.testing.assert_close(ema.mean, 0.9 * layer.mean)
        torch.testing.assert_close(ema.variance, 0.1 + 0.9 * layer.variance)
        assert int(ema.updates) == 1


def test_statistics_of_a_run_are_those_of_what_comes_to_the_layers(trained):
    flow, history, x = trained
    assert history.skipped == 0
    with torch.no_grad():
        passed = flow.score_rows(x).layer_inputs
    for layer, arrived in zip(flow.layers, passed, strict=True):
        if isinstance(layer, MovingNorm):
            assert int(layer.updates) == history.best_step
            z = layer.pull(arrived).value
            z = (z - layer.bias) / layer.log_weight.exp()
            torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=0.2)
            torch.testing.assert_close(z.std(0), torch.ones(2), rtol=0.2, atol=0)


def test_a_stack_trains_with_it_about_as_well_as_without():
    data, fresh = (torch.from_numpy(TOYS["moons"].sample(2000, seed=seed)) for seed in (0, 1))
    recipe = dataclasses.replace(RECIPE, blocks=3, hidden=(16, 16), batch_size=256)
    nll = []
    for batch_norm in (False, True):
        torch.manual_seed(0)
        flow = dataclasses.replace(recipe, batch_norm=batch_norm).flow(2)
        gaussian = cnf.fit(flow, data, recipe=recipe, steps=1).validation_nll[0]
        cnf.fit(flow, data, recipe=recipe, steps=60)
        with torch.no_grad():
            nll.append(-flow.with_solver(step="joint").log_prob(fresh.float()).mean().item())
    assert nll[1] < gaussian - 0.3
    assert nll[1] < nll[0] + 0.1


@pytest.mark.parametrize("objective", ["matching", "hybrid"])
def test_flow_matching_refuses_it(objective):
    flow = cnf.ffjord(2, hidden=(4,), batch_norm=True)
    with pytest.raises(ValueError, match="no batch normalisation for flow matching.*mle") as error:
        FlowMatching().check(flow, conditional=False)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no batch normalisation"):
        cnf.fit(flow, torch.randn(50, 2), objective=objective, steps=1)
    with pytest.raises(
        ValueError, match=f"objective mle with batch_norm.*got objective {objective}"
    ):
        Recipe(objective=objective, batch_norm=True)


def test_it_may_stand_next_to_the_data():
    """A moving norm replaces a scaling."""
    base, layers = cnf.ffjord(2).base, [CNF(cnf.ConcatSquash(2, (8,))), MovingNorm(2)]
    flow, x = cnf.Flow(base, layers).double(), batch(300)
    cnf.fit(flow, x, recipe=RECIPE, steps=20)
    layer = norms(flow)[0]
    torch.testing.assert_close(layer.variance.sqrt(), SPREAD, rtol=0.5, atol=0)
    assert flow.log_prob(x).isfinite().all()
