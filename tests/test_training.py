"""The training loop: it learns, keeps the best, ends when it should, and survives failures."""

import dataclasses
import math
from time import sleep

import numpy as np
import pytest
import torch
from helpers import stopping

import cnf
from cnf.datasets import Table
from cnf.fields.divergence import AutogradTrace, TangentTrace
from cnf.ode import Stats, backsolve, solve
from cnf.tables.schema import Schema
from cnf.training import flow_run
from cnf.training.data import BatchSampler, Rows
from cnf.training.learner import Learner
from cnf.training.objectives import Loss, MaximumLikelihood
from cnf.training.recipes import Recipe
from cnf.training.run import MAX_FAILURES

NUMBERS = {"batch_size": 64, "learning_rate": 2e-2, "max_grad_norm": 5.0, "ema_decay": 0.995}
QUICK = Recipe(objective="mle", hidden=(8,), validations=10, validation_rows=200, **NUMBERS)
FIXED = cnf.Flow(cnf.ffjord(2).base, [cnf.Standardize(2)])
DATA = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10


def small_flow():
    torch.manual_seed(0)
    return cnf.ffjord(2, hidden=(8,))


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def test_fit_trains_on_the_view_for_training():
    """Its parameters are the flow's; under autograd neither evaluates anything twice."""
    flow = small_flow()
    view, fits = flow.for_training(), Learner(flow, Recipe()).losses.flow
    assert view.layers[0].settings == fits.layers[0].settings != flow.layers[0].settings
    assert flow.for_training(rtol=0.1).layers[0].settings.rtol == 0.1
    assert all(a is b for a, b in zip(view.parameters(), flow.parameters(), strict=True))
    for each in (flow, view):
        scored = each.score_rows(torch.randn(20, 2))
        scored.log_prob.mean().backward()
        assert not np.any(scored.stats.backward)


@pytest.mark.parametrize("context_dim", [0, 1])
def test_it_learns_what_a_gaussian_cannot(context_dim):
    """Two clusters in the plane, or a line that the context moves."""
    if context_dim:
        context = torch.rand(1300, 1) * 4 - 2
        data = context + 0.3 * torch.randn(1300, 1)
        entropy, gaussian = 0.5 * math.log(2 * math.pi * math.e * 0.09), 1.4
    else:
        side = torch.randint(0, 2, (1300, 1)) * 4 - 2
        data, context = 0.5 * torch.randn(1300, 2) + side * torch.tensor([1.0, 0.0]), None
        entropy = math.log(2) + 1 + math.log(2 * math.pi) + 2 * math.log(0.5)
        gaussian = 1 + math.log(2 * math.pi) + 0.5 * math.log(4.25 * 0.25)
    seen, fresh = (None, None) if context is None else (context[:1000], context[1000:])
    flow = cnf.ffjord(data.shape[1], hidden=(16, 16), context_dim=context_dim)
    recipe = dataclasses.replace(QUICK, learning_rate=5e-2)
    history = cnf.fit(flow, data[:1000], context=seen, recipe=recipe, steps=60)
    assert -flow.log_prob(data[1000:], fresh).mean().item() < entropy + 0.45 < gaussian
    assert history.validation_nll[-1] < history.validation_nll[0]


def test_history_and_weights_are_those_of_the_events():
    """The flow is left with the weights of the best validation."""
    events, kept = [], {}

    def remember(event):
        events.append(event)
        if event.record is not None:
            kept[event.step] = weights(event.flow)

    flow = small_flow()
    history = cnf.fit(flow, DATA, recipe=QUICK, steps=20, callbacks=[remember])
    assert [event.step for event in events] == list(range(1, 21))
    records = [event.record for event in events if event.record is not None]
    for name in ("step", "seconds", "loss", "validation_nll", "nfe", "learning_rate"):
        expected = [getattr(record, name) for record in records]
        np.testing.assert_array_equal(getattr(history, name), expected)
    last = records[-1].step - records[-2].step
    assert records[-1].loss == pytest.approx(np.mean([event.loss for event in events[-last:]]))
    assert (history.steps, history.reason, events[-1].progress) == (20, "steps", 1.0)
    best = min(records, key=lambda record: record.validation_nll).step
    assert history.best_step == best
    assert torch.equal(weights(flow), kept[best])
    assert [event.step for event in events if event.improved][-1] == best


def test_it_stops_early_when_validation_gets_worse():
    """Fifteen rows to train on: the flow overfits them soon."""
    recipe = dataclasses.replace(QUICK, validations=100, patience=3, learning_rate=0.1)
    history = cnf.fit(small_flow(), DATA[:15], recipe=recipe, steps=800, validation=DATA[100:200])
    assert history.reason == "early stopping"
    assert history.steps < 800
    assert history.best_step == history.step[-4]


@pytest.mark.parametrize("at", [1, 7])
def test_ctrl_c_ends_it_cleanly_with_the_best_model(at):
    flow, start = small_flow(), weights(small_flow())
    callbacks = [stopping(at, KeyboardInterrupt)]
    history = cnf.fit(flow, DATA, recipe=QUICK, steps=50, callbacks=callbacks)
    assert (history.reason, history.steps) == ("interrupted", at)
    assert not torch.equal(weights(flow), start)
    assert flow.log_prob(DATA[:5]).isfinite().all()


def fail(patch, steps, value):
    """Have the loss of maximum likelihood be `value` at the given calls."""
    calls, original = iter(range(1, 10_000)), MaximumLikelihood.__call__

    def objective(self, flow, x, context=None):
        loss = original(self, flow, x, context)
        return Loss(loss.value * value, Stats()) if next(calls) in steps else loss

    patch.setattr(MaximumLikelihood, "__call__", objective)


def fail_backwards(patch, steps, value):
    """Have backsolve's solve back fail at the given calls."""
    calls, original = iter(range(1, 1000)), backsolve._Backsolve.backward

    def backward(ctx, *gradients):
        if next(calls) in steps:
            solve(lambda t, y, _: y * y, torch.ones(1, 1), [0.0, value])  # blows up at 1
        return original(ctx, *gradients)

    patch.setattr(backsolve._Backsolve, "backward", staticmethod(backward))


@pytest.mark.parametrize(
    ("failing", "value", "gradient"),
    [
        (fail, math.nan, "checkpoint"),
        (fail, math.inf, "checkpoint"),
        (fail_backwards, 2.0, "backsolve"),
    ],
)
def test_a_step_that_fails_is_skipped_and_counted(failing, value, gradient, monkeypatch):
    failing(monkeypatch, {3, 4, 9}, value)
    flow, recipe = small_flow(), dataclasses.replace(QUICK, gradient=gradient)
    history = cnf.fit(flow, DATA, recipe=recipe, steps=12)
    assert (history.steps, history.skipped, history.reason) == (12, 3, "steps")
    assert weights(flow).isfinite().all()


def test_failures_end_a_run_with_the_best_weights_or_with_advice(monkeypatch):
    """Untrained weights are not passed off as the best ones."""
    options = {"data": DATA, "recipe": dataclasses.replace(QUICK, validations=4)}
    with monkeypatch.context() as patched:
        fail(patched, range(1, 1000), math.nan)
        with pytest.raises(cnf.training.TrainingError, match="20 steps in a row failed.*Lower the"):
            cnf.fit(small_flow(), **options, steps=100)
    with monkeypatch.context() as patched:
        fail(patched, range(6, 1000), math.nan)
        history = cnf.fit(small_flow(), **options, steps=40)
    assert history.reason.startswith("diverged: The loss is nan")
    assert history.steps == 5 + MAX_FAILURES >= history.best_step > 0
    monkeypatch.setattr(flow_run, "mean_nll", lambda flow, rows: math.inf)
    with pytest.raises(cnf.training.TrainingError, match="none of 4 validations could be scored"):
        cnf.fit(small_flow(), **options, steps=4)


class Shift(cnf.layers.Layer):
    name = "shift"

    def __init__(self):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(2))

    def pull(self, x, context=None):
        return cnf.layers.TransformResult(x - self.by, x.new_zeros(len(x)))

    push = pull  # which training does not call


def test_a_flow_without_a_solve_is_trained_too():
    flow = cnf.Flow(small_flow().base, [Shift()])
    assert cnf.fit(flow, DATA, recipe=QUICK, steps=5).nfe[-1] == 0
    assert flow.layers[0].by.min() > 0  # towards the data's mean of 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": torch.zeros(5, 3)}, r"data of shape \(rows, 2\).*got \(5, 3\)"),
        ({"data": torch.zeros(0, 2)}, "at least one row"),
        ({"data": torch.randn(1, 2)}, "at least 3 rows"),
        ({"data": torch.tensor([[1.0, 2.0], [math.nan, 1.0]])}, "nan in row 1, column 0"),
        ({"data": torch.ones(20, 2)}, "constant: column 0, 1"),
        ({"context": torch.zeros(3, 1)}, r"context of shape \(600, context_dim\)"),
        ({"validation": torch.zeros(3, 1)}, "validation of shape"),
        ({"objective": "mel"}, "objective to be one of mle, matching, hybrid; got 'mel'"),
        ({"recipe": "toys"}, "recipe among toy, picture, table-narrow, table-tiny, .*; got 'toys'"),
        ({"budget": -1.0}, "budget to be above 0"),
        ({"steps": 0}, "steps to be above 0"),
        ({"weight": torch.ones(3)}, r"weights of shape \(600,\) for data; got \(3,\)"),
        ({"weight": torch.zeros(600)}, "a weight above zero for data; got zeros alone"),
        ({"weight": -torch.ones(600)}, "finite weights of at least 0"),
        ({"weight": torch.full((600,), math.nan)}, "finite weights of at least 0"),
        ({"flow": FIXED, "recipe": dataclasses.replace(QUICK, kinetic=1.0)}, "to regularize"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnf.fit(**{"flow": small_flow(), "data": DATA, **arguments})


def test_slow_validations_end_a_run_by_its_budget_but_not_one_by_steps(monkeypatch):
    """Another one would overrun the budget; the clock has no say where the steps run out first."""
    original, pauses = flow_run.mean_nll, iter([0.3])
    monkeypatch.setattr(flow_run, "mean_nll", lambda *_: sleep(next(pauses, 0.02)) or original(*_))
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, budget=0.5)
    assert (history.reason, len(history.step)) == ("budget", 1)
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, steps=20, budget=1000.0)
    assert history.step.tolist() == list(range(2, 21, 2))


def test_batches_go_through_all_rows_in_a_new_order_each_time():
    rows = Rows(torch.arange(10.0).unsqueeze(1), torch.arange(10.0).unsqueeze(1))
    order = BatchSampler(rows, torch.Generator().manual_seed(0))
    first, second = ([order.batch(5), order.batch(5)] for _ in range(2))
    for epoch in (first, second):
        assert sorted(torch.cat([batch.x for batch in epoch]).flatten().tolist()) == list(range(10))
        assert all(torch.equal(batch.x, batch.context) for batch in epoch)
    assert not torch.equal(first[0].x, second[0].x)
    assert len(BatchSampler(rows, torch.Generator()).batch(64)) == 10  # all there are
    order.batch(3)
    other = BatchSampler(rows, torch.Generator().manual_seed(1))
    other.restore(order.state())
    assert all(torch.equal(order.batch(3).x, other.batch(3).x) for _ in range(8))


def test_a_flows_own_divergence_is_used_unless_the_recipe_says_otherwise(monkeypatch):
    used = set()
    for way in (AutogradTrace, TangentTrace):
        original = way.__call__

        def counted(self, *arguments, original=original):
            used.add(type(self))
            return original(self, *arguments)

        monkeypatch.setattr(way, "__call__", counted)
    flow = small_flow().with_solver(divergence="autograd")
    cnf.fit(flow, DATA, recipe=QUICK, steps=2)
    assert used == {AutogradTrace}
    used.clear()
    cnf.fit(flow, DATA, recipe=dataclasses.replace(QUICK, divergence="tangents"), steps=2)
    assert used == {AutogradTrace, TangentTrace}  # validation is the flow's own


def test_rows_come_as_often_as_their_weights_say():
    """12 rows with weights that sum to 24: half as often as the weight, rounded up or down."""
    weight = torch.tensor([4.0, 1, 1, 1, 1, 1, 6, 2, 2, 2, 2, 1])
    rows = Rows(torch.arange(12.0).unsqueeze(1), weight=weight)
    for given, batches in ((weight, 400), (torch.full((12,), 0.3), 20)):
        order = BatchSampler(Rows(rows.x, weight=given), torch.Generator().manual_seed(0))
        drawn = [order.batch(12).x.flatten().long() for _ in range(batches)]
        counts = torch.stack([torch.bincount(batch, minlength=12) for batch in drawn])
        expected = 12 * given / given.sum()
        assert ((counts - expected).abs() < 1 - 1e-5).all()
        torch.testing.assert_close(counts.float().mean(0), expected, rtol=0, atol=0.1)


def test_validation_counts_rows_by_their_weights():
    flow = small_flow().double()
    x, weight = DATA[:40].double(), torch.arange(1.0, 41.0).double()
    weighted = flow_run.mean_nll(flow, Rows(x, weight=weight))
    repeated = flow_run.mean_nll(flow, Rows(x.repeat_interleave(weight.long(), 0)))
    assert weighted == pytest.approx(repeated, abs=1e-9)
    assert weighted != pytest.approx(flow_run.mean_nll(flow, Rows(x)), abs=1e-3)


def test_weights_reach_scaling_and_training():
    """All the weight on one of two clusters: the flow is the density of that one alone."""
    data, flow, alone = torch.cat([DATA, DATA + 1000]), small_flow(), small_flow()
    weight = torch.cat([torch.ones(len(DATA)), torch.zeros(len(DATA))])
    options = {"recipe": QUICK, "steps": 5, "validation": DATA[:50]}
    cnf.fit(flow, data, weight=weight, **options)
    cnf.fit(alone, DATA, **options)
    torch.testing.assert_close(alone.layers[-1].loc, DATA.mean(0))
    torch.testing.assert_close(flow.layers[-1].scale, alone.layers[-1].scale)
    torch.testing.assert_close(flow.log_prob(DATA), alone.log_prob(DATA), rtol=0, atol=0.2)
    cnf.fit(alone, DATA + 100, recipe=QUICK, steps=1)  # scalings are fitted once
    torch.testing.assert_close(alone.layers[-1].loc, DATA.mean(0))


@pytest.mark.parametrize("objective", ["mle", "matching"])
def test_a_run_is_its_seeds_bit_for_bit_and_leaves_the_generator_alone(objective):
    """The noise of columns too."""
    values = np.random.default_rng(0).poisson(5.0, size=(300, 2)).astype(float)
    schema, options = (
        Schema.infer(Table("counts", values, ("a", "b"))),
        {"objective": objective, "recipe": QUICK},
    )

    def fitted(seed):
        torch.manual_seed(0)
        flow = QUICK.flow(schema.width, columns=schema.layers(values))
        before = torch.get_rng_state()
        cnf.fit(flow, torch.from_numpy(values), **options, steps=5, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([tensor.double().flatten() for tensor in flow.state_dict().values()])

    first = fitted(1)
    torch.rand(7)
    assert torch.equal(first, fitted(1))
    assert not torch.equal(first, fitted(2))
