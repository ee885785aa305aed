"""The way of a user: train, evaluate, sample, log-prob, plot, on a toy and on tables."""

import json
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal, sem
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, tree, write_csv

import cnf
from cnf.datasets import TOYS, read_table, split
from cnf.fields import FIELDS

pytestmark = pytest.mark.usefixtures("undrawn")

ENDINGS = ("csv", "npy", "npz", "parquet")
ROWS = rows_of_table()
PARTS = split(len(ROWS), seed=0)


def strict_json(text: str) -> dict:
    """JSON as the standard has it, which knows no NaN and no Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


def evaluation(folder: Path, *arguments: object) -> dict:
    """The one object that `evaluate --json` prints."""
    out = done("evaluate", folder, "--json", *arguments)
    assert out.count("\n") == 1
    return strict_json(out)


def evaluated(folder: Path) -> dict:
    """What `evaluate` prints with --json, after a check that it prints the same for people."""
    numbers, text = evaluation(folder), done("evaluate", folder)
    known = ("nll", "stderr", "bits_per_dim", "gaussian_nll", "gain_stderr", "entropy", "kl")
    assert all(f"{numbers[name]:.4f}" in text for name in known if name in numbers)
    return numbers


def log_probs(folder: Path, data: Path | str, out: Path, *arguments: object) -> np.ndarray:
    done("log-prob", folder, "--data", data, "--out", out, *arguments)
    return read_table(out).values[:, 0]


@pytest.mark.parametrize("trained", ["moons", "table"])
def test_train_leaves_the_model_its_metrics_and_figures(trained, request):
    folder = request.getfixturevalue(trained)
    names = {path.relative_to(folder).as_posix() for path in tree(folder)}
    assert {"model.safetensors", "config.json", "metrics.jsonl", "figures"} <= names
    assert not [name for name in names if "tmp" in name or "/." in name or name.startswith(".")]
    records = [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps, seconds = ([record[key] for record in records] for key in ("step", "seconds"))
    assert (steps[-1], steps, seconds) == (5, sorted(set(steps)), sorted(seconds))
    assert all({"loss", "validation_nll", "nfe"} <= set(record) for record in records)


def test_evaluation_of_a_toy_knows_the_truth(moons):
    numbers, other = evaluated(moons), evaluation(moons, "--data", "moons")
    fresh, nll = TOYS["moons"].sample(20_000, seed=12345), numbers["nll"]
    gaussian = multivariate_normal(*multivariate_normal.fit(fresh)).logpdf(fresh)
    expected = {
        "n": 3_000,
        "kl": pytest.approx(nll - numbers["entropy"]),
        "bits_per_dim": pytest.approx(nll / (2 * log(2))),
        "entropy": pytest.approx(-TOYS["moons"].log_prob(fresh).mean(), abs=0.05),
        "gaussian_nll": pytest.approx(-gaussian.mean(), abs=0.05),
        "nll_standardized": pytest.approx(nll - np.log(fresh.std(0)).sum(), abs=0.03),
    }
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["kl"] > 5 * numbers["kl_stderr"] > 0 < numbers["nfe"]
    assert other["nll"] == pytest.approx(nll, abs=0.1)


def test_evaluation_of_a_table_is_of_its_held_out_rows(table, tmp_path):
    numbers = evaluated(table)
    train, test = ROWS[PARTS.train], ROWS[PARTS.test]
    scores = log_probs(table, write_csv(tmp_path / "test.csv", test), tmp_path / "scores.csv")
    gaussian = multivariate_normal(*multivariate_normal.fit(train)).logpdf(test)
    standardized = numbers["nll"] - np.log(train.std(0)).sum()
    expected = {
        "n": len(test),
        "nll": pytest.approx(-scores.mean(), abs=1e-4),
        "stderr": pytest.approx(sem(scores), abs=1e-4),
        "bits_per_dim": pytest.approx(numbers["nll"] / (3 * log(2))),
        "gaussian_nll": pytest.approx(-gaussian.mean(), rel=1e-6),
        "gain_stderr": pytest.approx(sem(scores - gaussian), abs=1e-4),
        "nll_standardized": pytest.approx(standardized, abs=0.01),
    }
    assert {name: numbers[name] for name in expected} == expected
    assert not {"entropy", "kl", "kl_stderr"} & set(numbers)


def test_columns_are_matched_by_name(table, tmp_path):
    mixed = tmp_path / "mixed.csv"
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS)).assign(weight=7.0)
    frame[["depth", "weight", "height", "width"]].to_csv(mixed, index=False)
    ordered = write_csv(tmp_path / "ordered.csv", ROWS)
    cased = write_csv(tmp_path / "cased.csv", ROWS, tuple(map(str.title, COLUMNS)))
    first, *others = (evaluation(table, "--data", data) for data in (ordered, mixed, cased))
    assert others == [first] * 2
    scores = [log_probs(table, data, tmp_path / "scores.npy") for data in (ordered, mixed)]
    assert np.array_equal(*scores)


@pytest.mark.parametrize("kind", ["npy", "npz", "npz:rows", "parquet"])
def test_every_kind_of_file_trains_the_same_model(kind, table, tmp_path):
    path = tmp_path / f"rows.{kind.partition(':')[0]}"
    if kind == "npy":
        np.save(path, ROWS)
    elif kind == "parquet":
        pd.DataFrame(ROWS, columns=list(COLUMNS)).to_parquet(path)
    else:
        others = {"others": np.zeros((4, 2))} if ":" in kind else {}
        np.savez(path, rows=ROWS, columns=np.array(COLUMNS), **others)
    words = ("train", tmp_path / f"rows.{kind}", "--out", tmp_path / "out")
    done(*words, *SMALL, "--flows", 1)
    assert evaluation(tmp_path / "out") == evaluation(table)
    done("sample", tmp_path / "out", "-n", 2, "--out", tmp_path / "drawn.csv")
    names = ("x0", "x1", "x2") if kind == "npy" else COLUMNS
    assert read_table(tmp_path / "drawn.csv").columns == names


def test_samples_are_reproducible_distinct_rows_with_names(table, tmp_path):
    def draw(name: str, n: int, *arguments: object) -> np.ndarray:
        done("sample", table, "-n", n, "--out", tmp_path / name, *arguments)
        drawn = read_table(tmp_path / name)
        assert drawn.columns == (("x0", "x1", "x2") if name == "a.npy" else COLUMNS)
        return drawn.values

    first = draw("a.csv", 7)
    assert all(np.array_equal(first, draw(f"a.{ending}", 7)) for ending in ENDINGS)
    assert np.array_equal(first, draw("a.csv", 7, "--seed", 0))
    assert not np.isclose(first, draw("a.csv", 7, "--seed", 4)).any()
    for n in (1, 2001):  # more than are drawn in one solve
        assert len(np.unique(draw("a.npy", n), axis=0)) == n


def test_log_prob_is_the_loaded_flows_whatever_rows_are_with_it(table, tmp_path):
    rows = rows_of_table(2003, seed=1)  # more than are scored in one solve
    scores = log_probs(table, write_csv(tmp_path / "rows.csv", rows), tmp_path / "scores.csv")
    expected = cnf.load(table).log_prob(torch.from_numpy(rows).float()).detach().numpy()
    assert np.abs(scores - expected).max() < 1e-4
    data = write_csv(tmp_path / "few.csv", rows[5:7])
    for ending in ENDINGS:
        few = log_probs(table, data, tmp_path / f"few.scores.{ending}")
        assert few == pytest.approx(scores[5:7], abs=1e-4)
        names = read_table(tmp_path / f"few.scores.{ending}").columns
        assert names == (("x0",) if ending == "npy" else ("log_prob",))


def test_seed_and_numbers_of_the_command_line_decide_the_model(table, tmp_path):
    words = ("train", table.parent / "rows.csv", "--flows", 1, "--out")
    done(*words, tmp_path / "seed", "--seed", 1, *SMALL)
    left, right = ((out / "model.safetensors").read_bytes() for out in (table, tmp_path / "seed"))
    assert left != right
    numbers = ("--hidden", "8,4", "--blocks", 2, "--activation", "softplus", "--steps", 2)
    done(*words, tmp_path / "out", *numbers)
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["layers"]
    fields = [layer["field"] for layer in layers if layer["name"] == "cnf"]
    assert [(each["hidden"], each["activation"]) for each in fields] == [([8, 4], "softplus")] * 2


def test_without_a_folder_a_run_goes_into_one_called_after_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "my table.csv", rows_of_table(60))
    done("train", "my table.csv", *SMALL)
    assert "NLL" in done("evaluate", "runs/my_table")
    assert "runs/my_table is not empty (or --resume)" in complaint("train", "my table.csv", *SMALL)
    done("train", "my table.csv", "--resume")


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_asked_for(field, tmp_path):
    """With a recipe whose own field has features that not every field can have."""
    few = ("--recipe", "toy", "--steps", 1)
    done("train", "iris", *few, "--field", field, "--out", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["layers"][0]["field"]["name"] == field


def test_diverged_training_says_so_and_its_metrics_are_json(table, tmp_path):
    wild = ("--objective", "mle", "--learning-rate", "1e30", "--max-grad-norm", "1e30")
    wild += ("--hidden", 8, "--flows", 1)
    words = (table.parent / "rows.csv", "--out", tmp_path / "out", *wild)
    assert "learning rate" in complaint("train", *words, "--steps", 30, status=1)
    for record in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        strict_json(record)


def test_an_estimated_trace_gives_the_same_numbers_again(tmp_path):
    folder = tmp_path / "run"  # two layers, whose trace is not constant
    done("train", "iris", "--out", folder, "--steps", "3", "--hidden", "8,8")
    estimated, again, exact = (
        log_probs(folder, "iris", tmp_path / "scores.npy", "--divergence", way)
        for way in ("hutchinson", "hutchinson", "exact")
    )
    assert np.array_equal(estimated, again)
    assert 0 < np.abs(estimated - exact).mean() < 0.5
    assert evaluation(folder)["n"] == 15
    assert evaluation(folder, "--data", "iris")["n"] == 150
