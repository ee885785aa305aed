"""Mixtures of flows: density, draws, weights, storage, training and its resumption."""

import dataclasses
from math import log
from time import sleep
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import DOUBLE, near
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.mixture import GaussianMixture
from test_scripts_running import complaint, done

import cnf
from cnf.flow import Flow, FlowMixture
from cnf.flow.folds import fold_mass
from cnf.flow.mixture_base import mixture_base, unfitted_mixture
from cnf.flow.proposals import propose
from cnf.layers import Dequantize, Standardize, Steps
from cnf.mixtures import NormalMixture
from cnf.training import distil_flows
from cnf.training.recipes import RECIPES, Recipe

QUICK = Recipe(objective="mle", hidden=(8,), batch_size=16, flows=3, validations=2)


def shifted(*means, context_dim=0, weights=None):
    """A mixture of fields that are zero: each flow is a normal distribution around its mean."""
    flows = [cnf.ffjord(2, hidden=(4,), context_dim=context_dim).double() for _ in means]
    for flow, mean in zip(flows, means, strict=True):
        flow.layers[-1].loc.fill_(mean)
        flow.layers[-1].fitted = torch.tensor(True)
    return FlowMixture(flows, weights)


def normal(x, mean):
    return -0.5 * ((x - mean) ** 2).sum(-1) - log(2 * np.pi)


def test_the_density_is_the_weighted_mean_of_the_flows():
    weights = torch.tensor([1.0, 0.0, 3.0])
    mixture = shifted(-2.0, 5.0, 1.0, weights=weights)
    near(mixture.weights, torch.tensor([0.25, 0.0, 0.75], dtype=DOUBLE), 1e-12)
    assert len(mixture.weighted) == 2
    x = 3 * torch.randn(7, 3, 2, dtype=DOUBLE)
    parts = np.stack([normal(x.numpy(), mean) for mean in (-2.0, 1.0)])
    expected = torch.from_numpy(logsumexp(parts, 0, b=np.array([0.25, 0.75])[:, None, None]))
    near(mixture.log_prob(x).detach(), expected, 1e-9)
    near(mixture.log_prob(x, max_batch=4).detach(), expected, 1e-9)
    scores = mixture.score(x, seed=0)
    near(scores.log_prob, expected, 1e-9)
    assert scores.solver_error.max() < 1e-9
    assert (scores.stderr == 0).all()
    assert mixture.score_draws(x.reshape(-1, 2)).stats.evaluations.shape == (21,)


def test_draws_follow_the_weights_and_the_contexts():
    torch.manual_seed(0)
    mixture = shifted(-30.0, 30.0, weights=torch.tensor([0.2, 0.8]))
    x, log_prob = mixture.sample_and_log_prob((50, 80))
    assert x.shape == (50, 80, 2)
    assert 0.77 < (x[..., 0] > 0).double().mean() < 0.83
    near(log_prob, mixture.log_prob(x), 1e-12)
    assert mixture.sample().shape == (2,)
    assert mixture.sample(0).shape == (0, 2)
    given = torch.randn(4, 3, 1)
    mixture = shifted(-30.0, 30.0, context_dim=1)
    drawn = mixture.sample((6,), given)
    assert drawn.shape == (6, 4, 3, 2)
    assert drawn.dtype == torch.float32
    assert mixture.log_prob(drawn, given).shape == (6, 4, 3)


def test_a_single_flow_is_its_mixture():
    flow = cnf.ffjord(2, hidden=(4,))
    mixture, x = FlowMixture([flow]), torch.randn(5, 2)
    near(mixture.log_prob(x), flow.log_prob(x), 1e-6)
    assert mixture.with_solver(rtol=1e-8, atol=1e-8).flows[0].layers[0].settings.rtol == 1e-8
    assert mixture.in_double().like.dtype == DOUBLE
    assert mixture.support().check(x).all()
    assert (mixture.dim, mixture.context_dim, mixture.solves, mixture.noisy) == (2, 0, 1, False)


def test_a_base_may_be_a_mixture(tmp_path):
    """It is fitted before the field, which starts from what it is."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300, 2) - 4, torch.randn(300, 2) @ torch.tensor([[1, 1], [0, 1.0]])])
    flow = cnf.ffjord(2, hidden=(8,), base="mixture")
    assert flow.sample(0).shape == (0, 2)
    recipe = Recipe(learning_rate=1e-9)
    history = cnf.fit(flow, x, recipe=recipe, steps=1)
    assert history.step.tolist() == [0, 1]
    assert flow.base.component_distribution.batch_shape[0] in (2, 5)
    expected = GaussianMixture(2, random_state=0).fit(x).score(x)
    assert abs(flow.log_prob(x).mean().item() - expected) < 0.05
    means = flow.base.component_distribution.loc.clone()
    cnf.fit(flow, x, recipe=recipe, steps=1)  # a base that is fitted stays
    assert torch.equal(flow.base.component_distribution.loc, means)
    cnf.save(flow, tmp_path)
    assert torch.equal(cnf.load(tmp_path).log_prob(x), flow.log_prob(x))
    near(flow.score(x[:5]).log_prob, flow.log_prob(x[:5]).detach(), 1e-5)
    assert cnf.ffjord(2, base="mixture", circular=(0,)).circular == (0,)  # which has none
    with pytest.raises(ValueError, match="base to be one of normal, mixture; got 'cauchy'"):
        cnf.ffjord(2, base="cauchy")


def test_the_base_is_kept_where_the_field_is_worse():
    x = torch.randn(100, 2)
    flow, held_out = cnf.ffjord(2, hidden=(8,), base="mixture"), torch.randn(500, 2)
    recipe = Recipe(objective="mle", learning_rate=1.0, ema_decay=0.0, max_grad_norm=1e9)
    history = cnf.fit(flow, x, validation=held_out, recipe=recipe, steps=40)
    assert (history.best_step, history.validation_nll.argmin()) == (0, 0)
    near(flow.pull(x).value[:, 0], flow.layers[-1].pull(x).value[:, 0], 1e-6)


def test_flows_of_a_mixture_take_turns():
    recipe = Recipe(flows=6, scaling="whiten")
    found = [recipe.of_flow(k) for k in range(6)]
    assert found[0] == found[5] == recipe
    uneven = "gaussianize_uneven"
    assert [each.scaling for each in found[1:5]] == ["whiten", uneven, uneven, "standardize"]
    assert [each.base for each in found[1:5]] == ["mixture", "normal", "mixture", "mixture"]


def test_noise_is_the_same_for_all_flows():
    columns = [Dequantize([None])]
    mixture = FlowMixture(cnf.ffjord(1, hidden=(4,), columns=columns) for _ in range(2))
    x = torch.tensor([[0.0], [3.0]])
    assert mixture.noisy
    found = torch.stack([flow.log_prob(x, seed=1, draws=3) for flow in mixture.flows])
    near(mixture.log_prob(x, seed=1, draws=3), found.logsumexp(0) - log(2), 1e-5)
    copies = FlowMixture([mixture.flows[0]] * 4)
    one, four = (each.score(x, seed=1) for each in (mixture.flows[0], copies))
    near(four.stderr, one.stderr, 1e-6)  # their noise is not independent


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 30))
def test_weights_are_the_most_likely_ones(seed, count, rows):
    rng = np.random.default_rng(seed)
    log_probs, row_weights = rng.normal(size=(count, rows)), rng.exponential(size=rows) + 0.01
    mixture = FlowMixture(cnf.ffjord(1, hidden=(2,)).double() for _ in range(count))
    mixture.fit_weights(torch.from_numpy(log_probs), torch.from_numpy(row_weights))
    scaled = row_weights / row_weights.mean()

    def loss(logits):
        weights = softmax(logits)
        mixed = logsumexp(log_probs, 0, b=weights[:, None])
        return -(scaled * mixed).sum() - np.log(weights).sum()

    best = minimize(loss, np.zeros(count), tol=1e-10)
    assert loss(mixture.weights.log().numpy()) < best.fun + 1e-3


def test_flows_without_a_number_have_no_weight():
    mixture = shifted(0.0, 0.0, 0.0)
    log_probs = torch.zeros(2, 5)
    log_probs[0] = torch.nan
    log_probs[1, 0] = -torch.inf  # of a row that is impossible
    mixture.fit_weights(log_probs)
    assert mixture.weights.tolist() == [0.0, 1.0, 0.0]
    mixture.fit_weights(torch.full((3, 1), torch.nan))
    assert mixture.weights.tolist() == [0.0, 1.0, 0.0]


def test_a_mixture_is_saved_and_loaded(tmp_path):
    mixture = shifted(-1.0, 1.0, weights=torch.tensor([1.0, 2.0]))
    x = torch.randn(4, 2, dtype=DOUBLE)
    cnf.save(mixture, tmp_path)
    loaded = cnf.load(tmp_path)
    assert isinstance(loaded, FlowMixture)
    assert torch.equal(loaded.log_prob(x), mixture.log_prob(x))
    torch.testing.assert_close(loaded.state_dict(), mixture.state_dict(), rtol=0, atol=0)
    weights, means = torch.rand(10), torch.randn(10, 2)  # which would round when normalised again
    base = mixture_base(weights, means, torch.eye(2).expand(10, 2, 2))
    flow = Flow(base, cnf.ffjord(2).layers)
    cnf.save(flow, tmp_path)
    assert torch.equal(cnf.load(tmp_path).log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize(
    ("flows", "weights", "message"),
    [
        ([], None, "at least one flow; got none"),
        ([cnf.ffjord(1), cnf.ffjord(2)], None, "as many columns"),
        ([cnf.ffjord(1), cnf.ffjord(1, context_dim=1)], None, "contexts of one size"),
        ([cnf.ffjord(1), cnf.ffjord(1).double()], None, "in one dtype"),
        ([cnf.ffjord(1)], torch.ones(2), "Expected 1 weights, at least 0"),
        ([cnf.ffjord(1)], torch.zeros(1), "not all 0"),
        ([cnf.ffjord(1)], torch.tensor([-1.0]), "at least 0"),
        ([cnf.ffjord(1)], torch.tensor([torch.nan]), "at least 0"),
    ],
)
def test_mistakes_are_named(flows, weights, message):
    with pytest.raises(ValueError, match=message):
        FlowMixture(flows, weights)


def test_fit_names_the_function_for_a_mixture():
    with pytest.raises(TypeError, match=r"a flow; got FlowMixture: .* by cnf.fit_mixture"):
        cnf.fit(shifted(0.0), torch.zeros(5, 2), steps=1)


def data(rows=60):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)) * 2 + 3


@pytest.mark.parametrize("last", [3, 6], ids=["in the first flow", "after a base was fitted"])
def test_a_run_resumes_where_it_stopped(last, tmp_path, monkeypatch):
    options = {"recipe": QUICK, "steps": 13, "threads": 1}
    whole, resumed, events = QUICK.model(2), QUICK.model(2), []

    def stop(event):
        if event.step == last:
            raise ZeroDivisionError

    resumed.load_state_dict(whole.state_dict())
    history = cnf.fit_mixture(whole, data(), callbacks=[events.append], **options)
    files = {"state": tmp_path / "state.safetensors", "state_seconds": 0.0}
    with pytest.raises(ZeroDivisionError):
        cnf.fit_mixture(resumed, data(), **options, **files, callbacks=[stop])
    if last == 6:  # another search for the base would find another one
        monkeypatch.setattr("cnf.training.loop.MAX_BASE_COMPONENTS", 1)
        resumed.flows[1].base = unfitted_mixture(2)
    again = cnf.fit_mixture(resumed, data(), **options, **files)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert torch.equal(resumed.log_prob(data()), whole.log_prob(data()))
    assert len([*tmp_path.iterdir()]) == 3
    assert history.steps == again.steps == 12  # at most 13
    assert [event.step for event in events] == [*range(1, 13)]
    near(torch.tensor([event.progress for event in events]), torch.arange(1, 13) / 12, 1e-6)
    assert [len(event.model.flows) for event in events] == [1] * 4 + [2] * 4 + [3] * 4
    assert [record.step for record in events[-1].records] == history.step.tolist()
    assert [*map(repr, history.records)] == [*map(repr, events[-1].records)]
    scalings = [type(flow.layers[-1]).__name__ for flow in whole.flows]
    assert scalings == ["Standardize", "Standardize", "GaussianizeUneven"]


def test_ctrl_c_between_two_runs_keeps_the_flows_so_far(monkeypatch):
    mixture = QUICK.model(2)
    monkeypatch.setattr("cnf.training.loop.fit_base", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cnf.fit_mixture(QUICK.model(2), data(), recipe=QUICK, steps=6)
    fitted = [False, False, KeyboardInterrupt]
    monkeypatch.setattr("cnf.training.loop.fit_base", Mock(side_effect=fitted))
    history = cnf.fit_mixture(mixture, data(), recipe=QUICK, steps=6)
    assert (history.reason, history.steps) == ("interrupted", 4)
    assert (mixture.weights > 0).tolist() == [True, True, False]
    assert mixture.solves == 2


def test_a_base_takes_a_share_of_the_budget_and_leaves_the_generator(monkeypatch):
    flow = cnf.ffjord(1, hidden=(4,), columns=[Dequantize(1)], base="mixture")
    choose = Mock(wraps=NormalMixture.choose)
    monkeypatch.setattr("cnf.mixtures.NormalMixture.choose", choose)
    rows, before = torch.randint(9, (80, 1)).float(), torch.get_rng_state()
    cnf.fit(flow, rows, recipe=Recipe(batch_size=16), budget=40.0, steps=2)
    assert choose.call_args.kwargs["seconds"] == 10.0
    assert torch.equal(torch.get_rng_state(), before)


def test_flows_are_distilled_one_after_the_other(monkeypatch):
    mixture, x, events = shifted(0.0, 1.0, weights=torch.tensor([1.0, 3.0])), 2 * data(200), []
    fast, history = distil_flows(mixture, x, steps=2, updates=5, callbacks=[events.append])
    assert torch.equal(fast.weights, mixture.weights)
    assert [event.step for event in events] == [1, 2, 3, 4] == [*range(1, history.steps + 1)]
    found = fold_mass(fast)
    assert found.mass == 0
    assert abs(found.integral - 1) < 0.1
    with pytest.raises(ValueError, match="no proposal for a mixture"):
        fold_mass(fast, proposal=propose(fast.flows[0], 10))

    def slow(*given, **named):  # so that a validation ends each flow's part of the budget
        sleep(0.3)
        return fold_mass(*given, **named)

    monkeypatch.setattr("cnf.training.unfolded_run.fold_mass", slow)
    assert len(distil_flows(mixture, x, steps=2, budget=1.0)[0].flows) == 2
    for call, other in ((cnf.distil, mixture), (cnf.fit_mixture, mixture.flows[0])):
        with pytest.raises(TypeError, match="Expected a .*flow"):
            call(other, x)


def test_row_weights_reach_the_flows_and_their_weights():
    rows = torch.cat([data(40), data(40) + 100])
    weight = torch.cat([torch.ones(40), torch.zeros(40)])
    recipe = dataclasses.replace(QUICK, flows=2)
    mixture = FlowMixture(recipe.flow(2) for _ in range(2))
    cnf.fit_mixture(mixture, rows, weight=weight, recipe=recipe, steps=4)
    for flow in mixture.flows:
        assert isinstance(flow.layers[-1], Standardize)
        assert (flow.layers[-1].loc < 10).all()


def test_a_flow_whose_training_fails_has_no_weight(monkeypatch):
    mixture = QUICK.model(2)
    real, calls = cnf.fit, []

    def fit(flow, *arguments, **options):
        calls.append(flow)
        if len(calls) == 2:
            raise cnf.training.TrainingError("it diverged")
        return real(flow, *arguments, **options)

    monkeypatch.setattr("cnf.training.mixture.fit", fit)
    with pytest.warns(UserWarning, match="1 flows of 3 have no weight: it diverged"):
        cnf.fit_mixture(mixture, data(), recipe=QUICK, steps=6)
    assert (mixture.weights > 0).tolist() == [True, False, True]


def test_a_run_without_a_trained_flow_fails(monkeypatch):
    def fit(flow, *arguments, **options):
        raise cnf.training.TrainingError("it diverged")

    monkeypatch.setattr("cnf.training.mixture.fit", fit)
    with pytest.raises(cnf.training.TrainingError, match="it diverged"):
        cnf.fit_mixture(QUICK.model(2), data(), recipe=QUICK, steps=6)


def test_small_tables_get_a_mixture():
    assert RECIPES["table-tiny"].flows == RECIPES["table-small"].flows == 5
    assert isinstance(RECIPES["table-large"].model(3), Flow)
    density = cnf.CNFDensity(max_steps=5, random_state=0).fit(
        np.random.default_rng(0).normal(size=(60, 3))
    )
    assert isinstance(density.flow_, FlowMixture)
    assert density.sample(3).shape == (3, 3)
    assert density.history_.steps == 5


def test_programs_take_a_mixture(tmp_path):
    file, out = tmp_path / "t.csv", tmp_path / "out"
    rows = np.random.default_rng(0).normal(size=(90, 3))
    np.savetxt(file, rows, delimiter=",", header="a,b,c", comments="")
    text = done("train", file, "--out", out, "--steps", 10)
    assert "5 flows, divergence exact" in text
    assert "nats per row" in done("evaluate", out)
    assert done("train", file, "--out", out, "--resume").count("10 steps in")
    done("sample", out, "-n", 5, "--out", tmp_path / "drawn.csv")
    done("log-prob", out, "--data", file, "--out", tmp_path / "scores.csv")
    assert "worst of 5" in done("check", out, "--rows", 9, "--points", 500)
    fast = tmp_path / "fast"
    text = done("distil", out, "--steps", 2, "--updates", 5, "--out", fast)
    assert "tuned by 5 updates" in text
    assert "the density integrates to" in text
    assert all(isinstance(flow.layers[0], Steps) for flow in cnf.load(fast).flows)
    done("train", file, "--out", tmp_path / "both", "--steps", 4, "--discretize", 2)
    for words, message in (
        (("impute", out, "--data", file, "--out", tmp_path / "i.csv"), "got a mixture of 5 flows"),
        (("plot", out, "--figures", "density"), "Expected a flow over two real columns"),
    ):
        assert message in complaint(*words)
