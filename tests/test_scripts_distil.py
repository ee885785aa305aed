"""`cnf distil` and `cnf train --discretize`, and the other programs on what they write."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import enlarged
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, run, write_csv

import cnf
from cnf import storage
from cnf.datasets import TOYS, read_table
from cnf.layers import Steps
from cnf.training.run import TrainingError

pytestmark = pytest.mark.usefixtures("undrawn")

FEW = ("--updates", 3)
ROWS = rows_of_table()


def metadata(folder: Path) -> dict:
    return storage.load_config(folder)["metadata"]


def steps_of(folder: Path) -> Steps:
    (layer,) = (layer for layer in cnf.load(folder).layers if isinstance(layer, Steps))
    return layer


@pytest.fixture(scope="module")
def distilled(table, tmp_path_factory):
    """The folder of explicit steps tuned to the table's flow, and what was said."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    return out, done("distil", table, "--steps", 3, "--method", "heun2", "--out", out, *FEW)


def test_a_table_is_distilled_on_its_training_rows(distilled, table):
    out, text = distilled
    for words in (
        "160 training rows to tune on",
        "3 heun2 steps tuned by 3 updates",
        "rows: 20",
        "adaptive NLL",
        "fold mass",
        "the density integrates to",
        "by steps",
    ):
        assert words in text
    assert {path.name for path in out.iterdir()} >= {"config.json", "metrics.jsonl", "figures"}
    layer = steps_of(out)
    assert (layer.count, layer.method, layer.learnt, layer.towards) == (3, "heun2", True, "base")
    known = metadata(out)
    assert known.pop("distilled") == {
        "model": str(table.resolve()),
        **{"steps": 3, "method": "heun2", "budget": None, "updates": 3, "seed": 0},
        **{"threads": "auto", "complete": True, "weights": storage.load_config(table)["sha256"]},
    }
    assert known == metadata(table)
    again = out.parent / "again"
    done("distil", table, "--steps", 3, "--method", "heun2", "--out", again, *FEW)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_other_programs_use_it_as_any_model(distilled, tmp_path):
    out, _ = distilled
    data = write_csv(tmp_path / "rows.csv", ROWS)
    expected = cnf.load(out).in_double().log_prob(torch.from_numpy(ROWS)).detach()
    done("log-prob", out, "--data", data, "--out", tmp_path / "scores.csv")
    np.testing.assert_allclose(
        read_table(tmp_path / "scores.csv").values[:, 0], expected, atol=1e-9
    )
    numbers = json.loads(done("evaluate", out, "--json"))
    assert (numbers["n"], numbers["nfe"], numbers["folded"]) == (20, 6, 0)
    assert "nll_unfolded" not in numbers
    assert "folded" not in done("evaluate", out, "--report", tmp_path / "page.html")
    done("sample", out, "-n", 7, "--out", tmp_path / "drawn.csv")
    assert read_table(tmp_path / "drawn.csv").values.shape == (7, 3)
    assert "pairs.png" in done("plot", out, "--figures", "pairs")
    found = json.loads(run("check", out, "--rows", 10, "--points", 300, "--json").out)
    verdicts = {each["name"]: each["verdict"] for each in found["findings"]}
    assert verdicts["mass of folds"] == "pass"
    assert "fail" not in verdicts.values()
    assert "exact; got exact: leave it out" in complaint("evaluate", out, "--divergence", "exact")


def test_a_toy_has_its_truth_and_a_conditional_model_its_contexts(moons, given, tmp_path):
    text = done("distil", moons, "--out", tmp_path / "moons", *FEW)
    assert "KL" in text
    assert "2 midpoint steps" in text
    assert "trained  NLL" in text  # of the toy's own explicit steps, not of a solver
    assert "strip.png" in done("plot", tmp_path / "moons", "--figures", "strip,field")
    assert "fold mass" in done("distil", given, "--out", tmp_path / "given", *FEW)
    data = tmp_path / "other.csv"
    write_csv(data, ROWS + 1.0)
    text = done("distil", given, "--data", data, "--out", tmp_path / "again", "--budget", 60, *FEW)
    assert f"{data}: 160 rows to tune on" in text


def moved(folder: Path, place: Path) -> Path:
    """A copy of a model whose data is gone."""
    copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    config["metadata"]["data"] = "nowhere.csv"
    (place / "config.json").write_text(json.dumps(storage.with_checksum(config)))
    return place


def test_without_its_data_a_model_is_distilled_on_its_own_draws(table, given, tmp_path):
    model = moved(table, tmp_path / "moved")
    text = done("distil", model, "--out", tmp_path / "out", *FEW)
    assert "nowhere.csv cannot be read: the steps are tuned on the flow's own draws" in text
    assert "rows: 5000" in text
    model = moved(given, tmp_path / "given")
    line = complaint("distil", model, "--out", tmp_path / "refused")
    assert "name them with --data" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "a whole number above 0"),
        ("--steps x", "a whole number above 0"),
        ("--method euler", "at least 2 stages among"),
        ("--method leapfrog", "got 'leapfrog': unknown"),
        ("--budget 0", "a number above 0"),
        ("--data nowhere.csv", "nowhere.csv"),
        ("--sep ;", "--data FILE with options on how a file is read"),
        ("--context-data nowhere.csv", "--data with --context-data"),
    ],
)
def test_mistakes_are_one_line(words, message, table, tmp_path):
    assert message in complaint("distil", table, "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_distilled(distilled, table, tmp_path):
    out, _ = distilled
    line = complaint("distil", out, "--out", tmp_path / "out")
    assert "name the folder of the model that it was distilled from" in line
    assert "is not empty" in complaint("distil", table, "--out", table)
    assert "--out" in complaint("distil", table)


def table_of(kind: str, path: Path) -> tuple[Path, list[str]]:
    """A table whose flow has no explicit steps, and options for its training."""
    rng, schema = np.random.default_rng(0), path.with_suffix(".json")
    frame = pd.DataFrame(rng.normal(size=(200, 33 if kind == "columns" else 2)))
    frame.columns = [f"c{i}" for i in frame]
    if kind == "integers":
        frame["c0"] = rng.poisson(20, 200)
    if kind == "angles":
        frame["c0"] = rng.uniform(-3, 3, 200)
        schema.write_text('{"c0": {"kind": "circular", "low": -4, "high": 4}}')
    frame.to_csv(path, index=False)
    return path, ["--schema", str(schema)] if kind == "angles" else []


@pytest.mark.parametrize(
    ("kind", "message"),
    [("integers", "whole numbers"), ("angles", "without angles"), ("columns", "at most 32")],
)
def test_flows_without_explicit_steps_are_refused_before_their_training(kind, message, tmp_path):
    data, options = table_of(kind, tmp_path / "rows.csv")
    words = ("train", data, *options, "--discretize", 2, "--out", tmp_path / "out", *SMALL)
    line = complaint(*words)
    assert message in line
    assert "without --discretize" in line
    assert not (tmp_path / "out").exists()


def test_train_discretizes_and_resumes(data, tmp_path):
    out = tmp_path / "out"
    words = ("train", data, "--out", out, *SMALL, "--flows", 1)
    text = done(*words, "--discretize", 2)
    assert "5 steps of training, then 1 updates of tuning 2 explicit steps" in text
    assert "adaptive NLL" in text
    assert (steps_of(out).count, metadata(out)["distilled"]["updates"]) == (2, 1)
    adaptive = out / "adaptive"
    assert cnf.load(adaptive).solves == 1
    assert "NLL" in done("evaluate", adaptive)
    before = (out / "model.safetensors").read_bytes()
    assert "tuned by" not in done(*words, "--resume")  # complete
    assert (out / "model.safetensors").read_bytes() == before
    (out / "config.json").unlink()  # as if killed while it tuned
    assert "tuned by" in done(*words, "--resume")
    assert (out / "model.safetensors").read_bytes() == before
    for left in ({"complete": False}, {"weights": "of another flow"}):
        known = metadata(out)
        storage.save(cnf.load(out), out, {**known, "distilled": {**known["distilled"], **left}})
        assert "tuned by" in done(*words, "--resume")
    line = complaint(*words, "--resume", "--discretize", 3)
    assert "begun in" in line
    assert "with --discretize 2; got --discretize 3" in line


def test_a_run_without_steps_is_not_resumed_with_them(data, tmp_path):
    words = ("train", data, "--out", tmp_path / "out", *SMALL)
    done(*words)
    line = complaint(*words, "--resume", "--discretize", 2)
    assert "without --discretize; got --discretize 2" in line
    assert "0" in complaint("train", data, "--discretize", 0)


def test_the_budget_is_shared_and_kept(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("train", data, "--out", out, "--hidden", "8", "--steps", 8)
    text = done(*words, "--budget", 100, "--discretize", 2)
    assert "50 s or 8 steps of training, then 50 s or 2 updates of tuning" in text
    assert metadata(out)["budget"] == 100
    (out / "config.json").unlink()

    def failing(*_, **__):
        raise TrainingError("Expected weights without folds: take more steps")

    monkeypatch.setattr("cnf.training.mixture.distil_run", failing)
    line = complaint("train", data, "--out", out, "--hidden", "8", "--resume", status=1)
    assert f"The trained flow is in {out / 'adaptive'}: cnf distil" in line
    assert "--steps 4" in line


@pytest.fixture
def folded(moons, tmp_path):
    """A model whose explicit steps fold."""
    flow = cnf.load(moons)
    enlarged(flow.layers[0].field, 4.0)
    with torch.no_grad():
        for parameter in flow.layers[0].field.parameters():
            parameter.add_(torch.randn_like(parameter))
    cnf.save(flow.discretized(1), tmp_path / "folded", metadata(moons))
    return tmp_path / "folded"


def test_rows_in_a_fold_are_counted_and_never_left_out(folded, tmp_path):
    numbers = json.loads(done("evaluate", folded, "--json"))
    assert 0 < numbers["folded"] < numbers["n"]
    assert numbers["nll"] is None
    assert numbers["nll_unfolded"] > 0
    text = done("evaluate", folded)
    assert f"{numbers['folded']} rows, where explicit steps fold: log p -inf" in text
    assert f"{numbers['nll_unfolded']:.4f} is the NLL of the others" in text
    out = tmp_path / "scores.csv"
    data = write_csv(tmp_path / "rows.csv", TOYS["moons"].sample(200, seed=0), ("x", "y"))
    assert "-inf: " in done("log-prob", folded, "--data", data, "--out", out)
    said = done("log-prob", folded, "--data", data, "--out", out, "--errors")
    assert "lie where the explicit steps fold and are -inf" in said
    scores = pd.read_csv(out)
    assert set(scores["status"]) == {"FINISHED", "FOLDED"}
    assert ((scores["status"] == "FOLDED") == (scores["log_prob"] == -np.inf)).all()


def test_names_of_columns_are_kept(distilled, tmp_path):
    out, _ = distilled
    done("sample", out, "-n", 2, "--out", tmp_path / "drawn.csv")
    assert read_table(tmp_path / "drawn.csv").columns == COLUMNS
