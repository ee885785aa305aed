"""Recipes: batch normalisation as one of their entries, and FFJORD's own for the benchmarks."""

import dataclasses
import json

import pytest
import torch
from test_scripts_running import complaint, done

import cnf
from cnf.datasets import BENCHMARKS
from cnf.layers import MovingNorm
from cnf.scripts import train
from cnf.training.checkpoint import TrainingState
from cnf.training.recipes import OLD_NAMES, RECIPES, Recipe, recipe_of

# Table 4 of the paper: columns, activation, hidden layers and their width by columns, blocks, rows.
PAPER = {
    "power": (6, "tanh", 3, 10, 5, 10_000),
    "gas": (8, "tanh", 3, 20, 5, 1000),
    "hepmass": (21, "softplus", 2, 10, 10, 10_000),
    "miniboone": (43, "softplus", 2, 20, 1, 1000),
    "bsds300": (63, "softplus", 3, 20, 2, 10_000),
}


def test_each_benchmark_has_its_papers_recipe():
    assert PAPER.keys() == BENCHMARKS.keys()
    assert {f"ffjord-paper-{name}" for name in BENCHMARKS} <= RECIPES.keys()


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_are_the_papers(name):
    recipe = RECIPES[f"ffjord-paper-{name}"]
    dim, activation, layers, factor, blocks, rows = PAPER[name]
    assert recipe.hidden == (factor * dim,) * layers
    assert (recipe.activation, recipe.blocks, recipe.batch_size) == (activation, blocks, rows)
    assert (recipe.objective, recipe.field, recipe.batch_norm) == ("mle", "concat_squash", False)
    assert (recipe.method, recipe.rtol, recipe.atol) == ("dopri5", 1e-6, 1e-8)
    assert (recipe.learning_rate, recipe.weight_decay) == (1e-3, 1e-6)
    assert recipe.divergence == "hutchinson-gaussian"
    assert recipe.patience < recipe.validations


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_take_a_step(name):
    recipe = dataclasses.replace(RECIPES[f"ffjord-paper-{name}"], batch_size=4)
    flow = recipe.flow(PAPER[name][0])
    before = [parameter.detach().clone() for parameter in flow.parameters()]
    data = torch.randn(12, flow.dim)
    history = cnf.fit(flow, data, recipe=recipe, validation=data[:2], steps=1)
    assert (history.steps, history.skipped, flow.solves) == (1, 0, recipe.blocks)
    assert history.validation_nll.shape == (1,)
    assert any(not torch.equal(*pair) for pair in zip(before, flow.parameters(), strict=True))


def test_batch_norm_makes_a_flow_of_it():
    flow = Recipe(objective="mle", blocks=3, batch_norm=True).flow(2)
    assert sum(isinstance(layer, MovingNorm) for layer in flow.layers) == 3


@pytest.mark.parametrize("value", ["false", 1, None])
def test_batch_norm_is_true_or_false(value):
    with pytest.raises(ValueError, match="batch_norm to be True or False"):
        Recipe(objective="mle", batch_norm=value)
    with pytest.raises(ValueError, match="batch_norm to be true or false"):
        recipe_of(dataclasses.asdict(Recipe()) | {"hidden": [8], "batch_norm": value})


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("True", True), ("false", False)])
def test_batch_norm_on_the_command_line(text, expected):
    words = ("train", "moons", "--objective", "mle", "--batch-norm", text, "--show-recipe")
    found = json.loads(done(*words))
    assert found["batch_norm"] is expected
    assert recipe_of(found).batch_norm is expected


def test_batch_norm_trains_on_the_command_line(tmp_path):
    words = ("--objective", "mle", "--batch-norm", "true", "--blocks", 2, "--hidden", 8)
    done("train", "moons", *words, "--batch-size", 32, "--steps", 3, "--out", tmp_path / "run")
    assert sum(isinstance(layer, MovingNorm) for layer in cnf.load(tmp_path / "run").layers) == 2


def test_what_is_no_truth_is_refused(tmp_path):
    words = ("train", "moons", "--out", tmp_path / "run", "--objective", "mle")
    line = complaint(*words, "--batch-norm", "maybe")
    assert "--batch-norm to be false or true; got 'maybe'" in line
    line = complaint("train", "moons", "--out", tmp_path / "run", "--batch-norm", "true")
    assert "objective mle" in line


def test_a_run_that_was_begun_without_an_entry_is_refused_in_one_line():
    begun = dataclasses.asdict(Recipe())
    del begun["batch_norm"]
    with pytest.raises(ValueError, match="'batch_norm'; it was started by another version"):
        train._resumed_recipe(json.loads(json.dumps(begun)))


def old_entries(recipe):
    """The entries of a recipe under the names of version 0.1.0."""
    names = {new: old for old, new in OLD_NAMES.items()}
    entries = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {names.get(name, name): value for name, value in entries.items()}


def test_recipes_of_version_0_1_0_are_read():
    recipe = Recipe(ema_decay=0.5, max_grad_norm=3.0, activation_bytes=7)
    entries = old_entries(recipe)
    assert {"average", "clip", "keep", "loosening"} < entries.keys()
    assert recipe_of(entries) == recipe


def test_training_states_of_version_0_1_0_resume(tmp_path):
    data, recipe = torch.randn(40, 2), Recipe(objective="mle", hidden=(4,), batch_size=8)
    state, options = tmp_path / "state", {"recipe": recipe, "steps": 4}
    whole, killed, resumed = (recipe.flow(2) for _ in range(3))
    for flow in (killed, resumed):
        flow.load_state_dict(whole.state_dict())

    def kill(event):
        if event.step == 2:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cnf.fit(killed, data, **options, state=state, state_seconds=0.0, callbacks=[kill])
    new = TrainingState.read(state)
    renamed = {name: new.run[name] for name in new.run if name not in OLD_NAMES.values()}
    old = {name: value for name, value in old_entries(recipe).items() if name in OLD_NAMES}
    TrainingState(renamed | old, new.progress, new.tensors).write(state)
    cnf.fit(whole, data, **options)
    cnf.fit(resumed, data, **options, state=state)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
