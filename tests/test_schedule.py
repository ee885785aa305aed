"""The stages of a run: how fast, in what order, from which weights, until when."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import cnf
from cnf.training import loop
from cnf.training.learner import Learner
from cnf.training.objectives import FlowMatching, MaximumLikelihood
from cnf.training.recipes import Recipe
from cnf.training.schedule import Stage, stages

QUICK = Recipe(
    objective="hybrid",
    hidden=(8,),
    matching_batch=32,
    matching_rate=2e-2,
    matching=0.5,
    learning_rate=1e-2,
    batch_size=16,
    warmup=0.2,
    ema_decay=0.9,
    validations=10,
)
DATA = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10
MATCHING, LIKELIHOOD = "flow matching", "maximum likelihood"


def changed(**changes):
    return dataclasses.replace(QUICK, **changes)


def small_flow(dim=2):
    torch.manual_seed(0)
    return cnf.ffjord(dim, hidden=(8,))


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_rise_to_their_peak_and_fall_to_zero_or_stay(falling, warmup):
    stage = Stage(MaximumLikelihood(), 1.0, 0.3, 64, warmup, falling)
    assert stage.rate(warmup) == pytest.approx(0.3)
    if warmup:
        rising = [stage.rate(p) for p in np.linspace(0, warmup, 20)]
        assert 0 < rising[0] < 0.02
        assert rising == sorted(rising)
        assert stage.rate(warmup / 2) == pytest.approx(0.15, abs=0.01)
    later = np.linspace(warmup, 1, 20)
    rates = [stage.rate(p) for p in later]
    along = (later - warmup) / (1 - warmup)
    expected = 0.15 * (1 + np.cos(math.pi * along)) if falling else np.full(20, 0.3)
    np.testing.assert_allclose(rates, expected, atol=1e-12)


@pytest.mark.parametrize(("steps", "peak"), [(10, 0.3), (400, 0.3), (1600, 0.15), (40_000, 0.03)])
def test_the_peak_falls_with_the_root_of_the_steps_beyond_the_horizon(steps, peak):
    stage = Stage(MaximumLikelihood(), 1.0, 0.3, 64, 0.0, True, horizon=400)
    assert stage.rate(0.0, steps) == pytest.approx(peak)
    assert stage.rate(0.5, steps) == pytest.approx(peak / 2)


def test_a_run_knows_how_many_steps_it_comes_to(monkeypatch):
    """20 of matching, which has no horizon, then 20 of likelihood: four horizons of 5."""
    taken, original = [], Learner.step

    def step(self, objective, batch, rate, tolerance_factor):
        taken.append((rate, tolerance_factor))
        return original(self, objective, batch, rate, tolerance_factor)

    monkeypatch.setattr(Learner, "step", step)
    recipe = changed(horizon=5, initial_tolerance_factor=144.0, warmup=0.0, schedule="constant")
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=40)
    matching, likelihood = np.array(taken[:20]), np.array(taken[21:])
    np.testing.assert_allclose(matching[:, 0], 2e-2)
    np.testing.assert_allclose(likelihood[:, 0], 0.5e-2)
    np.testing.assert_allclose(matching[:, 1], 1.0)
    np.testing.assert_allclose(likelihood[:, 1], 9 ** (1 - np.arange(1, 20) / 20))
    assert history.learning_rate[-1] == pytest.approx(0.5e-2)


def test_tolerances_become_those_of_the_recipe(monkeypatch):
    seen = []
    original = MaximumLikelihood.__call__

    def call(self, flow, x, context=None):
        settings = flow.layers[0].settings
        seen.append((settings.rtol, settings.atol))
        return original(self, flow, x, context)

    monkeypatch.setattr(MaximumLikelihood, "__call__", call)
    recipe = changed(objective="mle", rtol=1e-4, atol=1e-5, initial_tolerance_factor=20.0)
    cnf.fit(small_flow(), DATA, recipe=recipe, steps=10)
    tolerance_factor = 20 ** (1 - np.arange(10) / 10)
    np.testing.assert_allclose(seen, np.outer(tolerance_factor, [1e-4, 1e-5]))


@pytest.mark.parametrize(
    ("objective", "names"),
    [("mle", [LIKELIHOOD]), ("matching", [MATCHING]), ("hybrid", [MATCHING, LIKELIHOOD])],
)
def test_the_stages_of_each_objective(objective, names):
    found = stages(changed(objective=objective))
    assert [stage.objective.name for stage in found] == names
    numbers = {MATCHING: (2e-2, 32), LIKELIHOOD: (1e-2, 16)}
    for stage in found:
        assert (stage.learning_rate, stage.batch_size) == numbers[stage.objective.name]
    if objective == "hybrid":
        assert found[0].share == 0.5
    assert all((stage.warmup, stage.falling) == (0.2, True) for stage in found)


def test_a_recipes_coupling_and_regularizers_reach_the_stages():
    matching, likelihood = stages(changed(coupling="optimal_transport", kinetic=0.1, steer=0.2))
    assert matching.objective == FlowMatching("optimal_transport")
    assert likelihood.objective.regularization.kinetic == 0.1
    assert likelihood.objective.regularization.steer == 0.2
    assert stages(changed(schedule="constant"))[1].falling is False


@pytest.mark.parametrize(
    ("steps", "share", "first"), [(20, 0.5, 10), (10, 0.7, 7), (30, 0.7, 21), (7, 0.5, 4)]
)
def test_hybrid_switches_after_its_share_of_the_steps(steps, share, first):
    events = []
    history = cnf.fit(
        small_flow(), DATA, recipe=changed(matching=share), steps=steps, callbacks=[events.append]
    )
    names = [event.stage.objective.name for event in events]
    assert names == [MATCHING] * first + [LIKELIHOOD] * (steps - first)
    # A stage ends with a validation, and its records are its own.
    assert events[first - 1].record.objective == MATCHING
    assert list(history.objective) == [names[step - 1] for step in history.step]
    assert (history.nfe[history.objective == MATCHING] == 0).all()
    assert (history.nfe[history.objective == LIKELIHOOD] > 0).all()
    assert (history.steps, history.reason) == (steps, "steps")


def test_each_stage_has_its_own_rates_and_batches(monkeypatch):
    taken = []
    original = Learner.step

    def step(self, objective, batch, rate, tolerance_factor):
        taken.append((objective.name, len(batch), rate))
        return original(self, objective, batch, rate, tolerance_factor)

    monkeypatch.setattr(Learner, "step", step)
    cnf.fit(small_flow(), DATA, recipe=QUICK, steps=40)
    for stage, peak, batch in ((MATCHING, 2e-2, 32), (LIKELIHOOD, 1e-2, 16)):
        own = [(rows, rate) for name, rows, rate in taken if name == stage]
        rates = [rate for _, rate in own]
        assert len(own) == 20
        assert {rows for rows, _ in own} == {batch}
        assert rates[0] < 0.05 * peak
        assert max(rates) == pytest.approx(peak, rel=0.02)
        assert rates.index(max(rates)) in (4, 5)
        assert rates[-1] < 0.05 * peak
        assert rates[5:] == sorted(rates[5:], reverse=True)


def scripted(monkeypatch, *nlls):
    """Have the validations find these, and then the last one on and on."""
    found = iter(nlls)
    monkeypatch.setattr(loop, "mean_nll", lambda flow, rows: next(found, nlls[-1]))


def test_maximum_likelihood_begins_from_the_best_averaged_weights(monkeypatch):
    """The best is validation 2 of 5; what follows it is forgotten, in the live weights too."""
    scripted(monkeypatch, 3.0, 1.0, 2.0, 2.5, 4.0, 9.0)
    flow, seen, live = small_flow(), {}, {}

    def remember(event):
        seen[event.step], live[event.step] = weights(event.flow), weights(flow)

    recipe = changed(learning_rate=1e-12, schedule="constant", weight_decay=0.0)
    history = cnf.fit(flow, DATA, recipe=recipe, steps=20, callbacks=[remember])
    assert history.step[:5].tolist() == [2, 4, 6, 8, 10]
    assert (seen[10] - seen[4]).abs().max() > 1e-3
    for step in (11, 20):
        torch.testing.assert_close(seen[step], seen[4], rtol=0, atol=1e-7)
        torch.testing.assert_close(live[step], seen[4], rtol=0, atol=1e-7)
    assert history.best_step == 4
    assert torch.equal(weights(flow), seen[4])


def test_the_optimizer_begins_anew_with_maximum_likelihood():
    """Adam's first step is of the learning rate's length, whatever the gradients were before."""
    flow, live, averaged = small_flow(), {}, {}

    def remember(event):
        live[event.step], averaged[event.step] = weights(flow), weights(event.flow)

    recipe = changed(warmup=0.0, schedule="constant", weight_decay=0.0, max_grad_norm=1e9)
    history = cnf.fit(flow, DATA, recipe=recipe, steps=20, callbacks=[remember])
    start = averaged[history.step[:5][np.argmin(history.validation_nll[:5])]]
    first = (live[11] - start).abs()
    torch.testing.assert_close(first.max().item(), 1e-2, rtol=1e-2, atol=0)
    assert (first > 0.98e-2).float().mean() > 0.8
    # And so does the average, which forgets its start fast: d = 1/10 at first.
    torch.testing.assert_close(averaged[11] - start, 0.9 * (live[11] - start), rtol=1e-3, atol=1e-6)


def test_patience_in_matching_leads_to_maximum_likelihood(monkeypatch):
    """Its end comes early, and what is left of the run is the likelihood's, at its own rates."""
    scripted(monkeypatch, 5.0, 6.0, 7.0, *range(4, -6, -1))
    events, rates = [], []
    original = Stage.rate
    monkeypatch.setattr(Stage, "rate", lambda self, p, n: rates.append(p) or original(self, p, n))
    history = cnf.fit(
        small_flow(), DATA, recipe=changed(patience=2), steps=40, callbacks=[events.append]
    )
    names = [event.stage.objective.name for event in events]
    assert names == [MATCHING] * 12 + [LIKELIHOOD] * 28
    assert (history.steps, history.reason) == (40, "steps")
    assert history.objective[:3].tolist() == [MATCHING] * 3
    # The second stage runs from its own 0 to its own 1.
    np.testing.assert_allclose(rates[12:], np.arange(28) / 28, atol=1e-12)


def test_patience_begins_anew_with_the_stage(monkeypatch):
    """One validation of matching without improvement does not count against the likelihood."""
    scripted(monkeypatch, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    recipe = changed(patience=3, matching=0.2)
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=50)
    # Matching: validations 1 and 2; then three of the likelihood without improvement.
    assert history.objective.tolist() == [MATCHING] * 2 + [LIKELIHOOD] * 3
    assert (history.reason, history.best_step) == ("early stopping", 5)


def test_patience_in_matching_alone_ends_the_run(monkeypatch):
    scripted(monkeypatch, 1.0, 2.0)
    recipe = changed(objective="matching", patience=2)
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=50)
    assert (history.reason, history.steps) == ("early stopping", 15)


def test_a_hybrid_run_with_a_budget_has_both():
    events = []
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, budget=1.0, callbacks=[events.append])
    names = [event.stage.objective.name for event in events]
    first = names.index(LIKELIHOOD)
    assert names == [MATCHING] * first + [LIKELIHOOD] * (len(names) - first)
    assert first > 0
    assert events[first - 1].progress >= 0.5 > events[first - 2].progress
    assert history.reason == "budget"


def test_one_step_of_a_hybrid_run_is_matching():
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, steps=1)
    assert (history.objective.tolist(), history.steps) == ([MATCHING], 1)


@pytest.mark.parametrize(
    "change", [{"kinetic": 0.1}, {"jacobian": 0.1}, {"path_l2": 0.1}, {"steer": 0.2}]
)
def test_matching_with_a_regularizer_is_refused(change):
    message = "no regularizer and no steer with objective matching.*hybrid or mle"
    with pytest.raises(ValueError, match=message) as refused:
        changed(objective="matching", **change)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=message):
        cnf.fit(small_flow(), DATA, objective="matching", recipe=changed(**change), steps=1)
    for objective in ("mle", "hybrid"):
        recipe = changed(objective=objective, **change)
        assert cnf.fit(small_flow(), DATA, recipe=recipe, steps=2).steps == 2


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "nll"},
        {"coupling": "random"},
        {"matching": 0.0},
        {"matching": 1.0},
        {"matching": math.nan},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"patience": 0},
    ],
)
def test_the_numbers_of_stages_are_checked(change):
    with pytest.raises(ValueError, match=f"recipe's {next(iter(change))}"):
        changed(**change)


def test_the_objective_of_fit_goes_before_the_recipes():
    history = cnf.fit(small_flow(), DATA, objective="mle", recipe=QUICK, steps=4)
    assert set(history.objective) == {LIKELIHOOD}
    history = cnf.fit(small_flow(), DATA, objective="matching", recipe=QUICK, steps=4)
    assert set(history.objective) == {MATCHING}
