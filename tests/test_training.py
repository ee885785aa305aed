"""The training loop: it learns, keeps the best, ends when it should, and survives failures."""

import dataclasses
import math
from time import sleep

import numpy as np
import pytest
import torch

import cnf
from cnf.fields.divergence import AutogradTrace, TangentTrace
from cnf.ode import Stats, backsolve, solve
from cnf.tables.schema import Schema
from cnf.training import loop
from cnf.training.data import BatchSampler, Rows
from cnf.training.objectives import Loss, MaximumLikelihood
from cnf.training.recipes import RECIPES, Recipe, choose_recipe, unused

QUICK = Recipe(
    objective="mle",
    hidden=(8,),
    batch_size=64,
    learning_rate=2e-2,
    max_grad_norm=5.0,
    ema_decay=0.995,
    validations=10,
    validation_rows=200,
)
DATA = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10


def small_flow():
    torch.manual_seed(0)
    return cnf.ffjord(2, hidden=(8,))


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def bimodal(n):
    """Two clusters, far from Gaussian: entropy ln 2 + 1 + ln 2π + 2 ln 0.5."""
    generator = torch.Generator().manual_seed(1)
    side = torch.randint(0, 2, (n, 1), generator=generator) * 4 - 2
    noise = 0.5 * torch.randn(n, 2, generator=generator)
    return torch.cat([side + noise[:, :1], noise[:, 1:]], 1)


def test_it_learns_what_a_gaussian_cannot():
    torch.manual_seed(0)
    flow, data = cnf.ffjord(2, hidden=(32, 32)), bimodal(4000)
    history = cnf.fit(flow, data, steps=150, recipe=dataclasses.replace(QUICK, batch_size=512))
    entropy = math.log(2) + 1 + math.log(2 * math.pi) + 2 * math.log(0.5)
    gaussian = 1 + math.log(2 * math.pi) + 0.5 * math.log(4.25 * 0.25)
    nll = -flow.log_prob(bimodal(2000)).mean().item()
    assert gaussian - entropy > 0.6
    assert nll < entropy + 0.12
    assert history.validation_nll[-1] < history.validation_nll[0]


def test_the_flow_is_left_with_the_weights_of_the_best_validation():
    seen = {}

    def remember(event):
        if event.record is not None:
            seen[event.step] = (
                event.record.validation_nll,
                event.improved,
                next(event.flow.parameters()).clone(),
            )

    flow = small_flow()
    history = cnf.fit(flow, DATA, recipe=QUICK, steps=40, callbacks=[remember])
    best = min(seen, key=lambda step: seen[step][0])
    assert history.best_step == best
    assert torch.equal(next(flow.parameters()), seen[best][2])
    assert [step for step, (_, improved, _) in seen.items() if improved][-1] == best


def test_history_is_what_the_callbacks_saw():
    events = []
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, steps=20, callbacks=[events.append])
    assert [event.step for event in events] == list(range(1, 21))
    records = [event.record for event in events if event.record is not None]
    for name in ("step", "seconds", "loss", "validation_nll", "nfe", "learning_rate"):
        np.testing.assert_array_equal(
            getattr(history, name), [getattr(record, name) for record in records]
        )
    last = records[-1].step - records[-2].step
    assert records[-1].loss == pytest.approx(np.mean([event.loss for event in events[-last:]]))
    assert (history.steps, history.reason, events[-1].progress) == (20, "steps", 1.0)


def test_validation_is_of_the_averaged_weights():
    """After the first step the average has moved nine tenths of what the weights have."""
    flow = small_flow()
    start = weights(flow)
    moved = {}

    def compare(event):
        moved["average"] = weights(event.flow) - start
        moved["weights"] = weights(flow) - start

    cnf.fit(flow, DATA, recipe=QUICK, steps=1, callbacks=[compare])
    assert moved["weights"].abs().max() > 0
    torch.testing.assert_close(moved["average"], 0.9 * moved["weights"], rtol=1e-3, atol=1e-6)


def test_standardisation_is_fitted_once_on_the_training_rows():
    flow = small_flow()
    cnf.fit(flow, DATA, recipe=QUICK, steps=1, validation=DATA[:50])
    torch.testing.assert_close(flow.layers[-1].loc, DATA.mean(0))
    cnf.fit(flow, DATA + 100, recipe=QUICK, steps=1)
    torch.testing.assert_close(flow.layers[-1].loc, DATA.mean(0))


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    def trained(seed):
        flow = small_flow()
        cnf.fit(flow, DATA, recipe=QUICK, steps=10, seed=seed)
        return weights(flow)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_conditional_flow_learns_its_condition():
    torch.manual_seed(0)
    context = torch.rand(3000, 1) * 4 - 2
    data = context + 0.3 * torch.randn(3000, 1)
    flow = cnf.ffjord(1, hidden=(16, 16), context_dim=1)
    cnf.fit(flow, data, context=context, recipe=QUICK, steps=150)
    fresh = torch.rand(1000, 1) * 4 - 2
    rows = fresh + 0.3 * torch.randn(1000, 1)
    nll = -flow.log_prob(rows, fresh).mean().item()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.09)
    assert nll < entropy + 0.1


@pytest.mark.parametrize("budget", [0.5, 2.0])
def test_a_budget_is_kept(budget):
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, budget=budget)
    assert history.reason == "budget"
    assert 0.5 * budget < history.duration < 1.1 * budget + 0.2
    assert history.step[-1] == history.steps  # the last step is validated


def test_it_stops_early_when_validation_gets_worse():
    """Fifteen rows to train on: the flow overfits them soon."""
    recipe = dataclasses.replace(QUICK, validations=100, patience=3, learning_rate=0.05)
    history = cnf.fit(small_flow(), DATA[:15], recipe=recipe, steps=2000, validation=DATA[100:300])
    assert history.reason == "early stopping"
    assert history.steps < 2000
    assert history.best_step == history.step[-4]


@pytest.mark.parametrize("at", [1, 7])
def test_ctrl_c_ends_it_cleanly_with_the_best_model(at):
    def interrupt(event):
        if event.step == at:
            raise KeyboardInterrupt

    flow = small_flow()
    start = weights(flow)
    history = cnf.fit(flow, DATA, recipe=QUICK, steps=50, callbacks=[interrupt])
    assert history.reason == "interrupted"
    assert history.steps == at
    assert not torch.equal(weights(flow), start)
    assert flow.log_prob(DATA[:5]).isfinite().all()


def fail(monkeypatch, steps, value):
    """Have the loss of maximum likelihood be `value` at the given calls."""
    calls = iter(range(1, 10_000))
    original = MaximumLikelihood.__call__

    def objective(self, flow, x, context=None):
        loss = original(self, flow, x, context)
        return Loss(loss.value * value, Stats()) if next(calls) in steps else loss

    monkeypatch.setattr(MaximumLikelihood, "__call__", objective)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(monkeypatch, value):
    fail(monkeypatch, {3, 4, 9}, value)
    flow = small_flow()
    history = cnf.fit(flow, DATA, recipe=QUICK, steps=20)
    assert history.skipped == 3
    assert history.reason == "steps"
    assert all(p.isfinite().all() for p in flow.parameters())


def test_failure_from_the_start_is_an_error_with_advice(monkeypatch):
    fail(monkeypatch, range(1, 1000), math.nan)
    recipe = dataclasses.replace(QUICK, validations=1)
    with pytest.raises(
        loop.TrainingError, match="20 steps in a row failed.*Lower the learning rate"
    ):
        cnf.fit(small_flow(), DATA, recipe=recipe, steps=100)


def test_a_run_that_no_validation_could_score_is_an_error(monkeypatch):
    """The untrained weights are not passed off as the best ones."""
    monkeypatch.setattr(loop, "mean_nll", lambda flow, rows: math.inf)
    with pytest.raises(loop.TrainingError, match="none of 10 validations could be scored"):
        cnf.fit(small_flow(), DATA, recipe=QUICK, steps=20)


def test_a_flow_without_a_solve_is_trained_too():
    class Shift(cnf.layers.Layer):
        name = "shift"

        def __init__(self):
            super().__init__()
            self.by = torch.nn.Parameter(torch.zeros(2))

        def push(self, z, context=None):
            return cnf.layers.TransformResult(z + self.by, z.new_zeros(len(z)))

        def pull(self, x, context=None):
            return cnf.layers.TransformResult(x - self.by, x.new_zeros(len(x)))

        def config(self):
            return {}

    flow = cnf.Flow(small_flow().base, [Shift()])
    assert cnf.fit(flow, DATA, recipe=QUICK, steps=5).nfe[-1] == 0
    assert flow.layers[0].by.min() > 0  # towards the data's mean of 10


def test_failure_later_on_keeps_the_best_model(monkeypatch):
    fail(monkeypatch, range(30, 1000), math.nan)
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, steps=100)
    assert history.reason.startswith("diverged: The loss is nan")
    assert history.steps == 29 + loop.MAX_FAILURES
    assert 0 < history.best_step <= 29 + loop.MAX_FAILURES


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
        (
            {"recipe": "toys"},
            "recipe among toy, picture, table-tiny, table-small, table-large, .*; got 'toys'",
        ),
        ({"budget": -1.0}, "budget to be above 0"),
        ({"steps": 0}, "steps to be above 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnf.fit(small_flow(), **{"data": DATA, **arguments})


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"learning_rate": -1e-3},
        {"learning_rate": math.nan},
        {"hidden": ()},
        {"hidden": (8, 0)},
        {"warmup": 1.0},
        {"ema_decay": 1.0},
        {"weight_decay": -1.0},
        {"rtol": 0.0},
        {"horizon": 0},
        {"initial_tolerance_factor": 0.9},
        {"max_grad_norm": math.inf},
    ],
)
def test_recipes_check_their_numbers(change):
    with pytest.raises(ValueError, match=f"recipe's {next(iter(change))}"):
        Recipe(**change)


def test_the_recipe_is_chosen_by_size_and_dimension():
    assert choose_recipe(None, 1000, 2) == ("toy", RECIPES["toy"])
    assert choose_recipe(None, 300, 3) == ("table-tiny", RECIPES["table-tiny"])
    assert choose_recipe(None, 1000, 3) == ("table-small", RECIPES["table-small"])
    assert choose_recipe(None, 100_000, 3) == ("table-large", RECIPES["table-large"])
    assert choose_recipe("toy", 10, 30) == ("toy", RECIPES["toy"])


def test_matching_goes_without_a_recipes_regularizers():
    own = RECIPES["table-small"]
    assert own.regularization is not None
    _, found = choose_recipe(None, 1000, 3, objective="matching")
    assert found == dataclasses.replace(own, objective="matching", kinetic=0.0, jacobian=0.0)
    assert choose_recipe(None, 1000, 3, objective="mle")[1].kinetic == own.kinetic
    history = cnf.fit(
        cnf.ffjord(3, hidden=(8,)), torch.randn(100, 3), objective="matching", steps=3
    )
    assert history.steps == 3


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_for_conditional_data_has_a_coupling_for_it(name):
    _, recipe = choose_recipe(name, 1000, 2, conditional=True)
    assert recipe == dataclasses.replace(RECIPES[name], coupling="independent")


def test_a_way_back_that_fails_is_a_step_skipped(monkeypatch):
    """As backsolve's may, which solves backwards."""
    calls, original = iter(range(1, 1000)), backsolve._Backsolve.backward

    def backward(ctx, *gradients):
        if next(calls) in (2, 3):
            solve(lambda t, y, _: y * y, torch.ones(1, 1), [0.0, 2.0])  # blows up at 1
        return original(ctx, *gradients)

    monkeypatch.setattr(backsolve._Backsolve, "backward", staticmethod(backward))
    recipe = dataclasses.replace(QUICK, gradient="backsolve")
    flow = small_flow()
    history = cnf.fit(flow, DATA, recipe=recipe, steps=5)
    assert (history.steps, history.skipped, history.reason) == (5, 2, "steps")
    assert weights(flow).isfinite().all()


def test_a_validation_that_takes_most_of_the_budget_is_the_last(monkeypatch):
    """Another one would overrun it."""

    def slow(flow, rows):
        sleep(0.6)
        return 1.0

    monkeypatch.setattr(loop, "mean_nll", slow)
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, budget=1.0)
    assert history.reason == "budget"
    assert len(history.step) == 1


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(x_features=4), {}),
        (Recipe(), {"x_scale": "x_features 0"}),
        (Recipe(x_features=4, gradient="backprop"), {"activation_bytes": "gradient backprop"}),
    ],
)
def test_numbers_without_a_use_are_named(recipe, expected):
    assert unused(recipe) == expected


def test_batches_go_through_all_rows_in_a_new_order_each_time():
    rows = Rows(torch.arange(10.0).unsqueeze(1), torch.arange(10.0).unsqueeze(1))
    order = BatchSampler(rows, torch.Generator().manual_seed(0))
    first, second = ([order.batch(5), order.batch(5)] for _ in range(2))
    for epoch in (first, second):
        assert sorted(torch.cat([batch.x for batch in epoch]).flatten().tolist()) == list(range(10))
        assert all(torch.equal(batch.x, batch.context) for batch in epoch)
    assert not torch.equal(first[0].x, second[0].x)
    # Fewer rows than a batch: all of them.
    assert len(BatchSampler(rows, torch.Generator()).batch(64)) == 10


def test_an_order_goes_on_where_it_stood():
    rows = Rows(torch.arange(10.0).unsqueeze(1))
    order = BatchSampler(rows, torch.Generator().manual_seed(0))
    for _ in range(4):  # into the second time through
        order.batch(3)
    other = BatchSampler(rows, torch.Generator().manual_seed(1))
    other.restore(order.state())
    for _ in range(8):
        assert torch.equal(order.batch(3).x, other.batch(3).x)


def test_a_flows_own_divergence_is_used_unless_the_recipe_says_otherwise(monkeypatch):
    used = []
    for way in (AutogradTrace, TangentTrace):
        original = way.__call__

        def counted(self, *arguments, original=original):
            used.append(type(self).__name__)
            return original(self, *arguments)

        monkeypatch.setattr(way, "__call__", counted)
    flow = small_flow().with_solver(divergence="autograd")
    cnf.fit(flow, DATA, recipe=QUICK, steps=2)
    assert set(used) == {"AutogradTrace"}
    used.clear()
    cnf.fit(flow, DATA, recipe=dataclasses.replace(QUICK, divergence="tangents"), steps=2)
    assert set(used) == {"AutogradTrace", "TangentTrace"}  # validation is the flow's own


def test_regularization_without_a_layer_to_regularize():
    flow = cnf.Flow(small_flow().base, [cnf.Standardize(2)])
    with pytest.raises(ValueError, match="CNF layer to regularize"):
        cnf.fit(flow, DATA, recipe=dataclasses.replace(QUICK, kinetic=1.0), steps=1)


def test_rows_come_as_often_as_their_weights_say():
    """12 rows with weights that sum to 24: half as often as the weight, rounded up or down."""
    weight = torch.tensor([4.0, 1, 1, 1, 1, 1, 6, 2, 2, 2, 2, 1])
    rows = Rows(torch.arange(12.0).unsqueeze(1), weight=weight)
    order = BatchSampler(rows, torch.Generator().manual_seed(0))
    counts = torch.zeros(400, 12)
    for i in range(400):
        found = order.batch(12).x.flatten().long()
        counts[i] = torch.bincount(found, minlength=12)
    assert ((counts - weight / 2).abs() < 1).all()
    torch.testing.assert_close(counts.mean(0), weight / 2, rtol=0, atol=0.1)


def test_equal_weights_are_no_weights():
    rows = Rows(torch.arange(7.0).unsqueeze(1), weight=torch.full((7,), 0.3))
    order = BatchSampler(rows, torch.Generator().manual_seed(0))
    for _ in range(20):
        assert sorted(order.batch(7).x.flatten().tolist()) == list(range(7))


def test_validation_counts_rows_by_their_weights():
    flow = small_flow().double()
    x, weight = DATA[:40].double(), torch.arange(1.0, 41.0).double()
    weighted = loop.mean_nll(flow, Rows(x, weight=weight))
    repeated = loop.mean_nll(flow, Rows(x.repeat_interleave(weight.long(), 0)))
    assert weighted == pytest.approx(repeated, abs=1e-9)
    assert weighted != pytest.approx(loop.mean_nll(flow, Rows(x)), abs=1e-3)


def test_weights_reach_scaling_and_training():
    """All the weight on one of two clusters: the flow is the density of that one alone."""
    data = torch.cat([DATA, DATA + 1000])
    weight = torch.cat([torch.ones(len(DATA)), torch.zeros(len(DATA))])
    flow, alone = small_flow(), small_flow()
    validation = DATA[:50]
    cnf.fit(flow, data, recipe=QUICK, steps=5, weight=weight, validation=validation)
    cnf.fit(alone, DATA, recipe=QUICK, steps=5, validation=validation)
    torch.testing.assert_close(flow.layers[-1].scale, alone.layers[-1].scale)
    torch.testing.assert_close(flow.log_prob(DATA), alone.log_prob(DATA), rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"weights of shape \(600,\) for data; got \(3,\)"),
        (torch.zeros(600), "a weight above zero for data; got zeros alone"),
        (-torch.ones(600), "finite weights of at least 0"),
        (torch.full((600,), math.nan), "finite weights of at least 0"),
    ],
)
def test_weights_are_checked(weight, message):
    with pytest.raises(ValueError, match=message):
        cnf.fit(small_flow(), DATA, recipe=QUICK, steps=1, weight=weight)


def test_the_clock_has_no_say_where_the_steps_run_out_first(monkeypatch):
    """Even where a budget is given too, and validations take most of the time."""
    original = loop.mean_nll

    def slow(flow, rows):
        sleep(0.02)
        return original(flow, rows)

    monkeypatch.setattr(loop, "mean_nll", slow)
    history = cnf.fit(small_flow(), DATA, recipe=QUICK, steps=20, budget=1000.0)
    assert history.step.tolist() == list(range(2, 21, 2))


@pytest.mark.parametrize("objective", ["mle", "matching"])
def test_noise_of_columns_is_the_seeds_and_leaves_the_generator_alone(objective):
    values = np.random.default_rng(0).poisson(5.0, size=(300, 2)).astype(float)
    schema = Schema.infer(values, ["a", "b"])

    def fitted():
        torch.manual_seed(0)
        flow = QUICK.flow(schema.width, columns=schema.layers(values))
        before = torch.get_rng_state()
        cnf.fit(flow, torch.from_numpy(values), objective=objective, recipe=QUICK, steps=5)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([tensor.double().flatten() for tensor in flow.state_dict().values()])

    first = fitted()
    torch.rand(7)
    assert torch.equal(first, fitted())
