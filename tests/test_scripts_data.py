"""Rows to train on and rows to score share nothing; benchmarks come divided."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done

from cnf.datasets import CONDITIONAL_TOYS, TOYS, load_benchmark
from cnf.scripts.data import ColumnChoices, open_data, open_rows
from cnf.storage import load_config
from cnf.tables.schema import Column, Schema


@pytest.mark.parametrize("name", [*TOYS, *CONDITIONAL_TOYS])
@pytest.mark.parametrize("seed", [0, 5])
def test_fresh_rows_of_a_toy_share_no_number_with_the_others(name, seed):
    """Not a coordinate: the same stream of random numbers would show in one."""
    data = open_data(name, seed)
    fresh, toy = open_rows(name, data.schema, data.context_columns, seed)
    assert toy is data.toy is {**TOYS, **CONDITIONAL_TOYS}[name]
    parts = [rows.joined() for rows in (data.train, data.validation, data.test, fresh)]
    for i, part in enumerate(parts):
        for other in parts[:i]:
            assert not np.isin(part[:, 0], other[:, 0]).any()


@pytest.mark.parametrize(("column", "given"), ["yx", "xy"])
def test_a_toy_given_one_of_its_own_columns_has_its_rows(column, given):
    data, plain = open_data("moons", 0, ColumnChoices((given,))), open_data("moons", 0).test.x
    assert (data.schema.names, data.context_columns, data.toy) == ((column,), (given,), None)
    np.testing.assert_array_equal(data.test.x, plain[:, ["xy".index(column)]])
    np.testing.assert_array_equal(data.test.context, plain[:, ["xy".index(given)]])


@pytest.mark.parametrize(
    ("columns", "context"),
    [("y", "x"), ("x", "y"), ("yx", ""), ("x", ""), ("cx", "y"), ("c", "")],
)
def test_a_toy_is_the_truth_of_its_own_columns_only(columns, context):
    """In another order or given something else they have another density."""
    name = "rotor" if "c" in columns else "moons"
    schema = Schema(tuple(map(Column, columns)))
    assert open_rows(name, schema, tuple(context), 0)[1] is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small file of POWER's layout, and a model of it."""
    place = tmp_path_factory.mktemp("power")
    (place / "data/power").mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(place / "data/power/data.npy", rng.normal(size=(1000, 8)) * np.arange(1, 9))
    with mock.patch("cnf.scripts.training.MAX_EVALUATED_ROWS", 30):
        said = done("train", "power", "--data-dir", place / "data", "--out", place / "out", *SMALL)
    (place / "said.txt").write_text(said)
    return place


def test_training_takes_the_published_parts_and_scores_some_of_them(place):
    said = (place / "said.txt").read_text()
    assert "power: 810 training rows of 6 columns" in said
    assert "nats per row (rows: 25)" in said
    assert "one in 4 of 100 held-out rows; cnf evaluate scores all" in said
    schema = load_config(place / "out")["metadata"]["schema"]
    assert {entry["kind"] for entry in schema.values()} == {"real"}
    parts = load_benchmark("power", place / "data")
    assert [len(part.values) for part in vars(parts).values()] == [810, 90, 100]


def test_the_folder_with_the_files_is_remembered(place):
    found = evaluation(place / "out")
    assert found["n"] == 100
    assert evaluation(place / "out", "--data", "power") == found
    done("log-prob", place / "out", "--data", "power", "--out", place / "scores.csv")
    scores = pd.read_csv(place / "scores.csv")["log_prob"]
    assert -scores.mean() == pytest.approx(found["nll"], abs=1e-6)
    done("sample", place / "out", "-n", 5, "--out", place / "drawn.csv")
    assert list(pd.read_csv(place / "drawn.csv")) == [f"x{i}" for i in range(6)]


def test_files_that_changed_or_are_not_there_are_noticed(place, tmp_path):
    file = place / "data/power/data.npy"
    kept = file.read_bytes()
    np.save(file, np.load(file) + 1)
    assert "power has changed since" in complaint("evaluate", place / "out")
    file.write_bytes(kept)
    told = complaint("train", "gas", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert f"Expected gas/ethylene_CO.parquet or gas/ethylene_CO.txt in {tmp_path}" in told
