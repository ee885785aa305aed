"""An addition is one file: each of `tests/additions` works in every place without another edit."""

import json
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts_running import SMALL, complaint, done, rows_of_table, write_csv

import cnf
from cnf import CNFDensity
from cnf.datasets import TOYS, Table
from cnf.diagnostics.axes import Interval, axes_of
from cnf.fields import FIELDS
from cnf.fields.regularizers import REGULARIZERS
from cnf.layers import LAYERS
from cnf.ode import TABLEAUS
from cnf.tables.kinds import KINDS, Looks
from cnf.tables.schema import Column, Schema

REGISTRIES = (TABLEAUS, FIELDS, REGULARIZERS, LAYERS, KINDS, TOYS)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    before = [set(registry) for registry in REGISTRIES]
    for name in ("method", "field", "regularizer", "kind", "toy"):
        import_module(f"additions.{name}")
    yield
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - names:
            del registry[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, undrawn):
    """Two runs with all of the additions: of the toy, and of a table with the kind of column."""
    place = tmp_path_factory.mktemp("additions")
    words = ("--field", "linear", "--method", "ralston", "--distance", "0.1", *SMALL[:2])
    done("train", "blob", "--out", place / "toy", *words)
    rows = np.tanh(rows_of_table() - rows_of_table().mean(0))
    table = write_csv(place / "table.csv", rows)
    kinds = {"depth": {"kind": "arctan", "low": -1.0, "high": 1.0}}
    (place / "schema.json").write_text(json.dumps(kinds))
    schema = ("--schema", place / "schema.json")
    done("train", table, *schema, "--out", place / "table", *words)
    return place


@pytest.mark.parametrize("run", ["toy", "table"])
def test_additions_are_trained_saved_and_loaded(runs, run):
    recipe = json.loads((runs / run / "config.json").read_text())["metadata"]["recipe"]
    assert (recipe["field"], recipe["method"]) == ("linear", "ralston")
    assert "distance" in json.dumps(recipe)
    flow = cnf.load(runs / run).with_solver(method="ralston", rtol=1e-3, atol=1e-3)
    x, log_prob = flow.sample_and_log_prob(5)
    assert (flow.log_prob(x) - log_prob).abs().max() < 0.1


@pytest.mark.parametrize("run", ["toy", "table"])
def test_additions_are_checked_and_drawn_from(runs, run, tmp_path):
    assert json.loads(done("check", runs / run, "--json"))["verdict"] != "fail"
    done("sample", runs / run, "-n", 20, "--out", tmp_path / "draws.npy")
    draws = np.load(tmp_path / "draws.npy")
    assert run == "toy" or (np.abs(draws[:, 2]) < 1).all()


def test_a_number_that_the_field_does_not_take_is_refused(tmp_path):
    given = ("train", "blob", "--out", tmp_path / "out", "--field", "linear", "--steps", "1")
    assert "no --hidden with field linear, which does not use it" in complaint(*given, *SMALL[2:])
    assert "no --x-features with field linear" in complaint(*given, "--x-features", "2")


def test_help_names_additions():
    text = " ".join(done("train", "--help-all").split())
    assert all(name in text for name in ("blob", "arctan", "linear", "ralston", "--distance"))
    assert "weight of the paths' squared distance from the origin" in text
    assert "blob" in done("train", "--help")


def test_a_kind_of_column_works_in_schemas_and_estimators(monkeypatch):
    def infer(column):
        return Looks(-1.0, 1.0) if np.abs(column.known).max() < 1 else None

    monkeypatch.setattr(KINDS["arctan"], "infer", infer)
    rows = np.tanh(np.random.default_rng(0).normal(size=(300, 2))) * [1.0, 5.0]
    schema = Schema.infer(Table("t", rows, ("x", "y")))
    assert schema.summary() == ["real        y", "arctan      x from -1 to 1"]
    assert schema.real(rows)[1] == ["y"]
    with pytest.raises(ValueError, match="both bounds for kind arctan in column 'x'; got 1"):
        Column("x", "arctan", 0.0)
    with pytest.raises(ValueError, match="of x: arctan from -1 to 1; got 1.5 in row 1"):
        schema.check(np.array([[1.5, 0.0]]))
    density = CNFDensity(schema=schema, max_steps=3, random_state=0)
    density.fit(pd.DataFrame(rows, columns=["x", "y"]))
    schema.check(density.sample(100, random_state=0).to_numpy())
    outside = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
    assert density.flow_.log_prob(outside).item() == -torch.inf
    assert axes_of(density.flow_, rows)[0] == Interval(-1.0, 1.0)
