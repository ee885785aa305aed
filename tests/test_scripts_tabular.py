"""The benchmarks that come divided, all the way: train, evaluate, sample, log-prob."""

import json

import numpy as np
import pandas as pd
import pytest
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done

from cnf.datasets import load_benchmark


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small file of POWER's layout, and a model of it."""
    place = tmp_path_factory.mktemp("power")
    (place / "data/power").mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(place / "data/power/data.npy", rng.normal(size=(1000, 8)) * np.arange(1, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnf.scripts.train.MAX_EVALUATED_ROWS", 30)
        said = done("train", "power", "--data-dir", place / "data", "--out", place / "out", *SMALL)
    (place / "said.txt").write_text(said)
    return place


def test_training_takes_the_published_parts_and_scores_some_of_them(place):
    said = (place / "said.txt").read_text()
    assert "power: 810 training rows of 6 columns" in said
    assert "nats per row (rows: 25)" in said
    assert "one in 4 of 100 held-out rows; cnf evaluate scores all" in said


def test_the_folder_with_the_files_is_remembered(place):
    found = evaluation(place / "out")
    assert found["n"] == 100
    assert evaluation(place / "out", "--data", "power") == found
    done("log-prob", place / "out", "--data", "power", "--out", place / "scores.csv")
    scores = pd.read_csv(place / "scores.csv")["log_prob"]
    assert -scores.mean() == pytest.approx(found["nll"], abs=1e-6)
    done("sample", place / "out", "-n", 5, "--out", place / "drawn.csv")
    assert list(pd.read_csv(place / "drawn.csv")) == [f"x{i}" for i in range(6)]


def test_benchmarks_are_real_numbers_whatever_they_look_like(place):
    schema = json.loads((place / "out/config.json").read_text())["metadata"]["schema"]
    assert {entry["kind"] for entry in schema.values()} == {"real"}


def test_files_that_changed_are_noticed(place, tmp_path):
    file = place / "data/power/data.npy"
    kept = file.read_bytes()
    np.save(file, np.load(file) + 1)
    assert "power has changed since" in complaint("evaluate", place / "out")
    file.write_bytes(kept)


def test_a_folder_without_the_files(tmp_path):
    told = complaint("train", "gas", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert f"Expected gas/ethylene_CO.parquet (or gas/ethylene_CO.txt) in {tmp_path}" in told


def test_the_parts_are_the_loaders(place):
    parts = load_benchmark("power", place / "data")
    assert [len(part.values) for part in vars(parts).values()] == [810, 90, 100]
