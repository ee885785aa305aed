"""Recipes: their numbers, on the command line too, and those of FFJORD's benchmarks."""

import copy
import dataclasses
import json
import math
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import Stop, stopping
from test_scripts_running import complaint, done, rows_of_table, run, write_csv

import cnf
from cnf.datasets import BENCHMARKS
from cnf.fields.regularizers import REGULARIZERS, Regularizer
from cnf.layers import MovingNorm
from cnf.tables.schema import Column, Schema
from cnf.training.checkpoint import TrainingState
from cnf.training.data import uneven_columns
from cnf.training.recipes import OLD_NAMES, RECIPES, Recipe, choose_recipe, recipe_of, unused

pytestmark = pytest.mark.usefixtures("undrawn")

# Table 4 of the paper: columns, activation, hidden layers and their width by columns, blocks, rows.
PAPER = {
    "power": (6, "tanh", 3, 10, 5, 10_000),
    "gas": (8, "tanh", 3, 20, 5, 1000),
    "hepmass": (21, "softplus", 2, 10, 10, 10_000),
    "miniboone": (43, "softplus", 2, 20, 1, 1000),
    "bsds300": (63, "softplus", 3, 20, 2, 10_000),
}
OF_ALL = {"objective": "mle", "field": "concat_squash", "method": "dopri5", "rtol": 1e-6}
OF_ALL |= {"atol": 1e-8, "learning_rate": 1e-3, "weight_decay": 1e-6, "batch_norm": False}
OF_ALL |= {"divergence": "hutchinson-gaussian"}
SMALL = ("--hidden", 8, "--batch-size", 32, "--matching-batch", 32, "--steps", 4)
BEFORE = {new: old for old, new in OLD_NAMES.items()}


def in_json(recipe, names=None):
    """Its entries, as JSON has them; under the names of version 0.1.0 with those."""
    entries = json.loads(json.dumps(recipe.entries()))
    return {(names or {}).get(name, name): value for name, value in entries.items()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", rows_of_table(80))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_its_papers_recipe_which_takes_a_step(name):
    dim, activation, layers, factor, blocks, batch = PAPER[name]
    recipe = RECIPES[f"ffjord-paper-{name}"]
    numbers = {"hidden": (factor * dim,) * layers, "activation": activation, "blocks": blocks}
    assert recipe == dataclasses.replace(recipe, **numbers, **OF_ALL, batch_size=batch)
    assert recipe.patience < recipe.validations
    recipe = dataclasses.replace(recipe, batch_size=2, rtol=0.1, atol=0.1)
    flow = recipe.flow(dim)
    before = [parameter.detach().clone() for parameter in flow.parameters()]
    data = torch.randn(6, flow.dim)
    history = cnf.fit(flow, data, recipe=recipe, validation=data[:1], steps=1)
    assert (history.steps, history.skipped, flow.solves) == (1, 0, recipe.blocks)
    assert any(not torch.equal(*pair) for pair in zip(before, flow.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        *({"batch_size": 0}, {"learning_rate": -1e-3}, {"learning_rate": math.nan}),
        *({"learning_rate": 0.0}, {"hidden": ()}, {"hidden": (8, 0)}, {"warmup": 1.0}),
        *({"ema_decay": 1.0}, {"weight_decay": -1.0}, {"rtol": 0.0}, {"horizon": 0}),
        *({"initial_tolerance_factor": 0.9}, {"max_grad_norm": math.inf}, {"objective": "nll"}),
        *({"coupling": "random"}, {"matching": 0.0}, {"matching": 1.0}, {"matching": math.nan}),
        *({"patience": 0}, {"kinetic": -0.1}, {"steer": 1.0}, {"method": "euler"}),
        *({"divergence": "exactly"}, {"batch_norm": "false"}, {"batch_norm": 1}),
    ],
)
def test_numbers_are_checked(change):
    with pytest.raises(ValueError, match=f"recipe's {next(iter(change))} to be") as refused:
        Recipe(**change)
    assert "\n" not in str(refused.value)


def test_recipes_are_values():
    recipe = Recipe(objective="mle", kinetic=0.1, jacobian=0.0)
    assert recipe == dataclasses.replace(Recipe(objective="mle"), kinetic=0.1)
    assert recipe != Recipe(objective="mle")
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe
    assert (recipe.kinetic, recipe.jacobian, len({recipe, copy.copy(recipe)})) == (0.1, 0.0, 1)
    with pytest.raises(TypeError, match="Expected a recipe's numbers; got batchsize"):
        Recipe(batchsize=3)
    with pytest.raises(AttributeError, match="no attribute 'batchsize'"):
        recipe.batchsize  # noqa: B018
    assert "horizon: steps beyond which the peak falls" in Recipe.__doc__


@pytest.mark.parametrize("change", [{"kinetic": 0.1}, {"path_l2": 0.1}, {"steer": 0.2}])
def test_matching_with_a_regularizer_is_refused(change):
    options, message = {"objective": "matching"}, r"no regularizer and no steer.*hybrid or mle"
    with pytest.raises(ValueError, match=message):
        Recipe(**options, **change)
    with pytest.raises(ValueError, match=message):
        cnf.fit(cnf.ffjord(2), torch.zeros(5, 2), **options, recipe=Recipe(**change), steps=1)


def test_numbers_without_a_use_are_named():
    features = Recipe(x_features=4)
    assert unused(features) == {}
    assert unused(Recipe()) == {"x_scale": "x_features 0"}
    without = {"activation_bytes": "gradient backprop"}
    assert unused(dataclasses.replace(features, gradient="backprop")) == without
    matching = {"matching", "matching_batch", "matching_rate", "coupling", "path"}
    assert unused(dataclasses.replace(features, objective="mle")).keys() == matching
    found = unused(dataclasses.replace(features, objective="matching"))
    assert found.keys() >= {"matching", "batch_size", "steer", "gradient", *REGULARIZERS}
    assert set(found.values()) == {"objective matching"}
    assert not found.keys() & {"coupling", "hidden", "warmup"}


def test_the_recipe_is_chosen_by_size_and_dimension():
    for name, rows, dim, chosen in (
        (None, 1000, 2, "table-narrow"),
        (None, 300, 3, "table-tiny"),
        (None, 1000, 3, "table-small"),
        (None, 10_000, 3, "table-medium"),
        (None, 100_000, 3, "table-large"),
        ("toy", 10, 30, "toy"),
    ):
        assert choose_recipe(name, rows, dim) == (chosen, RECIPES[chosen])
    uneven = np.random.default_rng(0).standard_cauchy((500, 1))
    assert choose_recipe(None, 1000, 2, values=uneven)[1].scaling == "gaussianize"
    assert choose_recipe("toy", 1000, 2, values=uneven)[1].scaling == "standardize"
    # Whole numbers, positive and bounded ones are judged as they are modelled; angles are not.
    rng = np.random.default_rng(0)
    spread, even = np.round(1000 * rng.standard_cauchy(500)), rng.poisson(30, 500)
    columns = np.stack([spread, even, even / 100, rng.random(500) < 0.5, rng.random(500)], 1)
    kinds = ("integer", {}), ("integer", {"low": 0}), ("bounded", {"low": 0, "high": 1})
    kinds += ("categorical", {"categories": ("a", "b")}), ("circular", {"low": 0, "high": 1})
    schema = Schema(tuple(Column(f"x{i}", kind, **given) for i, (kind, given) in enumerate(kinds)))
    found = schema.continuous(columns)
    assert found.shape == (500, 4)
    assert np.array_equal(np.floor(found[:, 0]), spread)
    assert np.array_equal(np.floor(np.exp(found[:, 1])), even)
    assert [uneven_columns(column[:, None]) for column in found.T] == [True, False, False, False]
    assert np.array_equal(found, schema.continuous(columns))
    # Matching goes without a recipe's regularizers.
    own = RECIPES["table-small"]
    assert own.regularization
    _, found = choose_recipe(None, 1000, 3, objective="matching")
    assert found == dataclasses.replace(own, objective="matching", kinetic=0.0, jacobian=0.0)
    assert choose_recipe(None, 1000, 3, objective="mle")[1].kinetic == own.kinetic


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_in_json_are_the_recipes_and_conditional_data_has_its_coupling(name):
    assert recipe_of(in_json(RECIPES[name])) == RECIPES[name]
    _, recipe = choose_recipe(name, 1000, 2, conditional=True)
    assert recipe == dataclasses.replace(RECIPES[name], coupling="independent")


def test_missing_numbers_take_their_defaults_and_others_are_ignored():
    recipe, missing = Recipe(objective="mle", kinetic=0.5), {"batch_norm", "patience", "jacobian"}
    entries = {name: value for name, value in in_json(recipe).items() if name not in missing}
    assert recipe_of(entries | {"depth": 3}) == recipe
    recipe = Recipe(ema_decay=0.5, max_grad_norm=3.0, activation_bytes=7)
    entries = in_json(recipe, BEFORE)
    assert {"average", "clip", "keep", "loosening"} < entries.keys()
    assert recipe_of(entries) == recipe


@pytest.mark.parametrize("missing", [None, "patience", "path_l1"])
def test_states_of_older_versions_resume(missing, tmp_path):
    """Under the names of version 0.1.0, or without a number that came later."""
    data, recipe = torch.randn(40, 2), Recipe(objective="mle", hidden=(4,), batch_size=8)
    state, options = tmp_path / "state", {"recipe": recipe, "steps": 4}
    whole, killed, resumed = (recipe.flow(2) for _ in range(3))
    for flow in (killed, resumed):
        flow.load_state_dict(whole.state_dict())

    with pytest.raises(Stop):
        cnf.fit(killed, data, **options, state=state, state_seconds=0, callbacks=[stopping(2)])
    new, names = TrainingState.read(state), {} if missing else BEFORE
    run = {names.get(name, name): value for name, value in new.run.items() if name != missing}
    dataclasses.replace(new, run=run).write(state)
    with pytest.raises(ValueError, match="patience was 20, and now is 3"):
        cnf.fit(killed, data, recipe=dataclasses.replace(recipe, patience=3), steps=4, state=state)
    cnf.fit(whole, data, **options)
    cnf.fit(resumed, data, **options, state=state)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_recipes_are_shown_and_read_again(rows, tmp_path):
    file, out = tmp_path / "recipe.json", tmp_path / "none"
    words = ("train", rows, "--out", out, "--show-recipe")
    shown = done(*words, "--recipe", "table-small", "--hidden", "8,8", "--batch-norm", "False")
    assert not out.exists()
    expected = dataclasses.replace(RECIPES["table-small"], hidden=(8, 8))
    assert recipe_of(json.loads(shown)) == expected
    file.write_text(shown)
    assert done(*words, "--recipe", file) == shown
    changed = json.loads(done(*words, "--recipe", file, "--kinetic", "0", "--blocks", 2))
    assert changed == json.loads(shown) | {"kinetic": 0.0, "blocks": 2}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", '"toy"', "{}", '{"hidden": 3}', '{"metadata": {}}'),
        *('{"metadata": 3}', '{"hidden": "8"}', '{"hidden": null}', '{"hidden": [8.5]}'),
        *('{"batch_size": "64"}', '{"batch_size": 64.5}', '{"learning_rate": null}'),
        *('{"objective": 3}', '{"objective": ["mle"]}', '{"steer": "no"}', '{"blocks": 1.5}'),
        *('{"learning_rate": -1}', '{"batch_norm": 1}', '{"kinetic": "0.1"}'),
    ],
)
def test_what_is_no_recipe_is_refused(text, rows, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(text)
    assert "recipe" in complaint("train", rows, "--recipe", file, "--show-recipe")


def test_batch_norm_trains_on_the_command_line(rows, tmp_path):
    words = ("train", rows, "--objective", "mle", "--out", tmp_path / "run", *SMALL[:4])
    message = "--batch-norm to be false or true; got 'maybe'"
    assert message in complaint(*words, "--batch-norm", "maybe")
    done(*words, "--batch-norm", "true", "--blocks", 2, "--flows", 1, "--steps", 1)
    assert sum(isinstance(layer, MovingNorm) for layer in cnf.load(tmp_path / "run").layers) == 2


def test_a_new_regularizer_has_its_option_and_is_trained_with(rows, monkeypatch, tmp_path):
    dummy = mock.Mock(side_effect=lambda point: point.x.square().sum(1))
    monkeypatch.setitem(REGULARIZERS, "dummy", Regularizer(dummy, help="weight of a dummy"))
    assert "--dummy X" in (text := run("train", "--help-all").out)
    assert "weight of a dummy (0.0)" in text
    words = ("train", rows, "--flows", 1, "--out", tmp_path / "run")
    done(*words, *SMALL, "--dummy", "0.5", "--state-seconds", "1e-9")
    dummy.assert_called()
    metadata = json.loads((tmp_path / "run" / "config.json").read_text())["metadata"]
    assert metadata["recipe"]["dummy"] == 0.5
    assert TrainingState.read(tmp_path / "run" / "training.safetensors").run["dummy"] == 0.5
    assert "4 steps" in done(*words, "--resume")
    assert "dummy was 0.5, and now is 0.1" in complaint(*words, "--resume", "--dummy", "0.1")
    assert Recipe().dummy == 0.0


def test_the_recipe_of_a_table_is_the_one_of_its_size():
    assert choose_recipe("table", 2000, 5) == choose_recipe(None, 2000, 5)
