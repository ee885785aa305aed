"""The stages of a run: how fast, in what order, from which weights, until when."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_training import small_flow, weights

import cnf
from cnf.training import flow_run
from cnf.training.learner import Learner
from cnf.training.objectives import FlowMatching, MaximumLikelihood
from cnf.training.recipes import Recipe
from cnf.training.schedule import Stage, stages

MATCHED = {"matching_batch": 32, "matching_rate": 2e-2, "matching": 0.5, "ema_decay": 0.9}
NUMBERS = {"learning_rate": 1e-2, "batch_size": 16, "warmup": 0.2, "validations": 10}
QUICK = Recipe(objective="hybrid", hidden=(8,), **MATCHED, **NUMBERS)
DATA = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10
MATCHING, LIKELIHOOD = "flow matching", "maximum likelihood"


def changed(**changes):
    return dataclasses.replace(QUICK, **changes)


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_rise_to_their_peak_and_fall_to_zero_or_stay(falling, warmup):
    """The peak falls with the root of the steps beyond the horizon."""
    stage = Stage(MaximumLikelihood(), 1.0, 0.3, 64, warmup, falling, horizon=400)
    if warmup:
        rising = [stage.rate(p) for p in np.linspace(0, warmup, 20)]
        assert 0 < rising[0] < 0.02
        assert rising == sorted(rising)
        assert stage.rate(warmup / 2) == pytest.approx(0.15, abs=0.01)
    along = np.linspace(0, 1, 20)
    expected = 0.15 * (1 + np.cos(math.pi * along)) if falling else np.full(20, 0.3)
    for steps, factor in ((0.0, 1), (10, 1), (400, 1), (1600, 1 / 2), (40_000, 1 / 10)):
        rates = [stage.rate(p, steps) for p in warmup + (1 - warmup) * along]
        np.testing.assert_allclose(rates, factor * expected, atol=1e-12)


@pytest.fixture
def taken(monkeypatch):
    """Objective, rows, learning rate and tolerance factor of each step."""
    found, original = [], Learner.step

    def step(self, objective, batch, rate, tolerance_factor):
        found.append((objective.name, len(batch), rate, tolerance_factor))
        return original(self, objective, batch, rate, tolerance_factor)

    monkeypatch.setattr(Learner, "step", step)
    return found


def test_a_run_knows_how_many_steps_it_will_have(taken):
    """20 of matching, which has no horizon, then 20 of likelihood: four horizons of 5."""
    recipe = changed(horizon=5, initial_tolerance_factor=144.0, warmup=0.0, schedule="constant")
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=40)
    numbers = np.array([step[2:] for step in taken])
    np.testing.assert_allclose(numbers[:20], [[2e-2, 1.0]] * 20)
    np.testing.assert_allclose(numbers[21:, 0], 0.5e-2)
    np.testing.assert_allclose(numbers[21:, 1], 9 ** (1 - np.arange(1, 20) / 20))
    assert history.learning_rate[-1] == pytest.approx(0.5e-2)


def test_tolerances_become_those_of_the_recipe(monkeypatch):
    seen, original = [], MaximumLikelihood.__call__

    def call(self, flow, *rows):
        seen.append((flow.layers[0].settings.rtol, flow.layers[0].settings.atol))
        return original(self, flow, *rows)

    monkeypatch.setattr(MaximumLikelihood, "__call__", call)
    recipe = changed(objective="mle", rtol=1e-4, atol=1e-5, initial_tolerance_factor=20.0)
    cnf.fit(small_flow(), DATA, recipe=recipe, steps=10)
    np.testing.assert_allclose(seen, np.outer(20 ** (1 - np.arange(10) / 10), [1e-4, 1e-5]))


@pytest.mark.parametrize(
    ("objective", "names"),
    [("mle", [LIKELIHOOD]), ("matching", [MATCHING]), ("hybrid", [MATCHING, LIKELIHOOD])],
)
def test_the_stages_of_each_objective(objective, names):
    found = stages(changed(objective=objective))
    numbers = {MATCHING: (2e-2, 32, 0.2, True), LIKELIHOOD: (1e-2, 16, 0.2, True)}
    assert {
        stage.objective.name: (stage.learning_rate, stage.batch_size, stage.warmup, stage.falling)
        for stage in found
    } == {name: numbers[name] for name in names}
    assert objective != "hybrid" or found[0].share == 0.5
    history = cnf.fit(small_flow(), DATA, objective=objective, recipe=QUICK, steps=4)
    assert list(dict.fromkeys(history.objective)) == names  # fit's goes before the recipe's


def test_a_recipes_numbers_reach_the_stages():
    recipe = changed(coupling="optimal_transport", kinetic=0.1, steer=0.2, schedule="constant")
    matching, likelihood = stages(recipe)
    assert matching.objective == FlowMatching("optimal_transport")
    regularization = likelihood.objective.regularization
    assert (regularization.active, regularization.steer) == ({"kinetic": 0.1}, 0.2)
    assert not likelihood.falling


@pytest.mark.parametrize(("steps", "share", "first"), [(10, 0.7, 7), (7, 0.5, 4), (1, 0.5, 1)])
def test_hybrid_switches_after_its_share_of_the_steps(steps, share, first):
    events, recipe = [], changed(matching=share)
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=steps, callbacks=[events.append])
    names = [event.stage.objective.name for event in events]
    assert names == [MATCHING] * first + [LIKELIHOOD] * (steps - first)
    # A stage ends with a validation, and its records are its own.
    assert events[first - 1].record.objective == MATCHING
    assert list(history.objective) == [names[step - 1] for step in history.step]
    assert ((history.nfe == 0) == (history.objective == MATCHING)).all()
    assert (history.steps, history.reason) == (steps, "steps")


def test_each_stage_has_its_own_rates_and_batches(taken):
    cnf.fit(small_flow(), DATA, recipe=QUICK, steps=40)
    for stage, peak, batch in ((MATCHING, 2e-2, 32), (LIKELIHOOD, 1e-2, 16)):
        own = [step[1:3] for step in taken if step[0] == stage]
        rates = [rate for _, rate in own]
        assert [rows for rows, _ in own] == [batch] * 20
        assert max(rates) == pytest.approx(peak, rel=0.02)
        assert rates.index(max(rates)) in (4, 5)
        assert max(rates[0], rates[-1]) < 0.05 * peak
        assert rates[5:] == sorted(rates[5:], reverse=True)


def scripted(monkeypatch, *nlls):
    """Have the validations find these, and then the last one on and on."""
    found = iter(nlls)
    monkeypatch.setattr(flow_run, "mean_nll", lambda flow, rows: next(found, nlls[-1]))


def remembered(recipe):
    """A trained flow, its history and by steps its live and its averaged weights."""
    flow, live, averaged = small_flow(), {}, {}

    def remember(event):
        live[event.step], averaged[event.step] = weights(flow), weights(event.flow)

    history = cnf.fit(flow, DATA, recipe=recipe, steps=20, callbacks=[remember])
    return flow, history, live, averaged


def test_maximum_likelihood_begins_from_the_best_averaged_weights(monkeypatch):
    """The best is validation 2 of 5; what follows it is forgotten, in the live weights too."""
    scripted(monkeypatch, 3.0, 1.0, 2.0, 2.5, 4.0, 9.0)
    recipe = changed(learning_rate=1e-12, schedule="constant", weight_decay=0.0)
    flow, history, live, seen = remembered(recipe)
    assert history.step[:5].tolist() == [2, 4, 6, 8, 10]
    assert (seen[10] - seen[4]).abs().max() > 1e-3
    for weight in (seen[11], seen[20], live[11], live[20]):
        torch.testing.assert_close(weight, seen[4], rtol=0, atol=1e-7)
    assert history.best_step == 4
    assert torch.equal(weights(flow), seen[4])


def test_the_optimizer_begins_anew_with_maximum_likelihood():
    """Adam's first step is of the learning rate's length, whatever the gradients were before."""
    recipe = changed(warmup=0.0, schedule="constant", weight_decay=0.0, max_grad_norm=1e9)
    _, history, live, averaged = remembered(recipe)
    start = averaged[history.step[:5][np.argmin(history.validation_nll[:5])]]
    first = (live[11] - start).abs()
    assert first.max().item() == pytest.approx(1e-2, rel=1e-2)
    assert (first > 0.98e-2).float().mean() > 0.8
    # And so does the average, which forgets its start fast: d = 1/10 at first.
    torch.testing.assert_close(averaged[11] - start, 0.9 * (live[11] - start), rtol=1e-3, atol=1e-6)


def test_patience_in_matching_leads_to_maximum_likelihood(monkeypatch):
    """Its end comes early, and what is left of the run is the likelihood's, at its own rates."""
    scripted(monkeypatch, 5.0, 6.0, 7.0, *range(4, -6, -1))
    events, rates, recipe = [], [], changed(patience=2)
    original = Stage.rate
    monkeypatch.setattr(Stage, "rate", lambda self, p, n: rates.append(p) or original(self, p, n))
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=40, callbacks=[events.append])
    names = [event.stage.objective.name for event in events]
    assert names == [MATCHING] * 12 + [LIKELIHOOD] * 28
    assert (history.steps, history.reason) == (40, "steps")
    assert history.objective[:3].tolist() == [MATCHING] * 3
    # The second stage runs from its own 0 to its own 1.
    np.testing.assert_allclose(rates[12:], np.arange(28) / 28, atol=1e-12)


def test_patience_begins_anew_with_the_stage(monkeypatch):
    """One validation of matching without improvement does not count against the likelihood."""
    scripted(monkeypatch, 1.0, 2.0)
    history = cnf.fit(small_flow(), DATA, recipe=changed(patience=3, matching=0.2), steps=50)
    # Matching: validations 1 and 2; then three of the likelihood without improvement.
    assert history.objective.tolist() == [MATCHING] * 2 + [LIKELIHOOD] * 3
    assert (history.reason, history.best_step) == ("early stopping", 5)
    scripted(monkeypatch, 1.0, 2.0)
    recipe = changed(objective="matching", patience=2)
    history = cnf.fit(small_flow(), DATA, recipe=recipe, steps=50)
    assert (history.reason, history.steps) == ("early stopping", 15)


def test_a_hybrid_run_with_a_budget_has_both():
    events = []
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, budget=2.0, callbacks=[events.append])
    names = [event.stage.objective.name for event in events]
    first = names.index(LIKELIHOOD)
    assert names == [MATCHING] * first + [LIKELIHOOD] * (len(names) - first)
    assert events[first - 1].progress >= 0.5 > events[first - 2].progress
    assert (first > 0, history.reason) == (True, "budget")
    assert 1.0 < history.duration < 3.0
    assert history.step[-1] == history.steps  # the last step is validated
