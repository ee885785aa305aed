"""The way of a user: train, evaluate, sample, log-prob, plot, on a toy and on tables."""

import json
from math import log, sqrt
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, tree, write_csv

import cnf
from cnf.datasets import TOYS, read_table, split
from cnf.fields import FIELDS

ENDINGS = ("csv", "npy", "npz", "parquet")
ROWS = rows_of_table()
PARTS = split(len(ROWS), seed=0)


def strict_json(text: str) -> dict:
    """JSON as the standard has it, which knows no NaN and no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON: {text}")

    return json.loads(text, parse_constant=refuse)


def evaluation(folder: Path, *arguments: object) -> dict:
    """What `evaluate --json` prints: one object, and nothing else."""
    out = done("evaluate", folder, "--json", *arguments)
    assert out.count("\n") == 1
    return strict_json(out)


def log_probs(folder: Path, data: Path, out: Path) -> np.ndarray:
    done("log-prob", folder, "--data", data, "--out", out)
    return read_table(out).values[:, 0]


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A folder trained on a toy."""
    folder = tmp_path_factory.mktemp("moons") / "out"
    done("train", "moons", "--out", folder, *SMALL)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder trained on a table with named columns."""
    place = tmp_path_factory.mktemp("table")
    done("train", write_csv(place / "rows.csv", ROWS), "--out", place / "out", *SMALL)
    return place / "out"


@pytest.mark.parametrize("trained", ["moons", "table"])
def test_train_leaves_the_model_its_metrics_and_figures(trained, request):
    folder = request.getfixturevalue(trained)
    names = {path.relative_to(folder).as_posix() for path in tree(folder)}
    assert {"model.safetensors", "config.json", "metrics.jsonl", "figures"} <= names
    assert not [name for name in names if "tmp" in name or "/." in name or name.startswith(".")]
    records = [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps, seconds = ([record[key] for record in records] for key in ("step", "seconds"))
    assert steps[-1] == 5
    assert steps == sorted(set(steps))
    assert seconds == sorted(seconds)
    assert all({"loss", "validation_nll", "nfe"} <= set(record) for record in records)


def test_evaluation_of_a_toy_knows_the_truth(moons):
    numbers = evaluation(moons)
    fresh = TOYS["moons"].sample(20_000, seed=12345)
    gaussian = multivariate_normal(*multivariate_normal.fit(fresh)).logpdf(fresh)
    assert numbers["n"] == 10_000
    assert numbers["kl"] == pytest.approx(numbers["nll"] - numbers["entropy"])
    assert numbers["kl"] > 5 * numbers["kl_stderr"] > 0
    assert numbers["bits_per_dim"] == pytest.approx(numbers["nll"] / (2 * log(2)))
    assert numbers["entropy"] == pytest.approx(-TOYS["moons"].log_prob(fresh).mean(), abs=0.05)
    assert numbers["gaussian_nll"] == pytest.approx(-gaussian.mean(), abs=0.05)
    assert numbers["nll_standardized"] == pytest.approx(
        numbers["nll"] - np.log(fresh.std(0)).sum(), abs=0.03
    )
    assert numbers["nfe"] > 0


def test_evaluation_of_a_table_is_of_its_held_out_rows(table, tmp_path):
    numbers = evaluation(table)
    train, test = ROWS[PARTS.train], ROWS[PARTS.test]
    scores = log_probs(table, write_csv(tmp_path / "test.csv", test), tmp_path / "scores.csv")
    gaussian = multivariate_normal(*multivariate_normal.fit(train)).logpdf(test)
    assert numbers["n"] == len(test)
    assert numbers["nll"] == pytest.approx(-scores.mean(), abs=1e-4)
    assert numbers["stderr"] == pytest.approx(scores.std(ddof=1) / sqrt(len(test)), abs=1e-4)
    assert numbers["bits_per_dim"] == pytest.approx(numbers["nll"] / (3 * log(2)))
    assert numbers["gaussian_nll"] == pytest.approx(-gaussian.mean(), rel=1e-6)
    gain = (scores - gaussian).std(ddof=1) / sqrt(len(test))
    assert numbers["gain_stderr"] == pytest.approx(gain, abs=1e-4)
    assert numbers["nll_standardized"] == pytest.approx(
        numbers["nll"] - np.log(train.std(0)).sum(), abs=0.01
    )
    assert not {"entropy", "kl", "kl_stderr"} & set(numbers)


@pytest.mark.parametrize("trained", ["moons", "table"])
def test_evaluation_for_people_has_the_same_numbers(trained, request):
    folder = request.getfixturevalue(trained)
    numbers, text = evaluation(folder), done("evaluate", folder)
    known = {"nll", "stderr", "bits_per_dim", "gaussian_nll", "gain_stderr", "entropy", "kl"}
    shown = known & set(numbers)
    assert all(f"{numbers[name]:.4f}" in text for name in shown)


def test_evaluation_of_one_row_is_json_still(table, tmp_path):
    """Of one row there is no standard error; NaN would be no JSON."""
    numbers = evaluation(table, "--data", write_csv(tmp_path / "one.csv", ROWS[:1]))
    assert numbers["n"] == 1
    assert not {"stderr", "gain_stderr"} & set(numbers)


def test_toy_is_data_for_evaluate_as_for_train(moons):
    numbers = evaluation(moons, "--data", "moons")
    assert numbers["nll"] == pytest.approx(evaluation(moons)["nll"], abs=0.1)


def test_columns_are_matched_by_name(table, tmp_path):
    """Another order of the columns, and one column more, change nothing."""
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS))
    ordered, mixed = tmp_path / "ordered.csv", tmp_path / "mixed.csv"
    frame.to_csv(ordered, index=False)
    frame.assign(weight=7.0)[["depth", "weight", "height", "width"]].to_csv(mixed, index=False)
    assert evaluation(table, "--data", mixed) == evaluation(table, "--data", ordered)
    left, right = (
        log_probs(table, data, data.with_suffix(".scores.npy")) for data in (ordered, mixed)
    )
    assert np.array_equal(left, right)


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
    done("train", tmp_path / f"rows.{kind}", "--out", tmp_path / "out", *SMALL)
    assert evaluation(tmp_path / "out") == evaluation(table)
    done("sample", tmp_path / "out", "-n", 2, "--out", tmp_path / "drawn.csv")
    names = ("x0", "x1", "x2") if kind == "npy" else COLUMNS
    assert read_table(tmp_path / "drawn.csv").columns == names


def test_bundled_table_goes_all_the_way(tmp_path):
    done("train", "iris", "--out", tmp_path / "out", *SMALL)
    assert evaluation(tmp_path / "out")["n"] == 15
    assert evaluation(tmp_path / "out", "--data", "iris")["n"] == 150


@pytest.mark.parametrize("ending", ENDINGS)
def test_samples_are_reproducible_rows_with_names(ending, table, tmp_path):
    def draw(name: str, *arguments: object) -> np.ndarray:
        path = tmp_path / f"{name}.{ending}"
        done("sample", table, "-n", 7, "--out", path, *arguments)
        drawn = read_table(path)
        assert drawn.columns == (COLUMNS if ending != "npy" else ("x0", "x1", "x2"))
        return drawn.values

    first = draw("first", "--seed", 3)
    assert first.shape == (7, 3)
    assert np.array_equal(first, draw("again", "--seed", 3))
    assert not np.isclose(first, draw("other", "--seed", 4)).any()
    assert np.array_equal(draw("default"), draw("zero", "--seed", 0))


@pytest.mark.parametrize("n", [1, 2001])
def test_any_number_of_samples(n, table, tmp_path):
    """One, and more than are drawn in one solve; all of them distinct."""
    done("sample", table, "-n", n, "--out", tmp_path / "drawn.npy")
    assert len(np.unique(np.load(tmp_path / "drawn.npy"), axis=0)) == n


@pytest.mark.parametrize("ending", ENDINGS)
def test_log_prob_is_the_loaded_flows(ending, table, tmp_path):
    rows = rows_of_table(2003, seed=1)  # more than are scored in one solve
    data, out = write_csv(tmp_path / "rows.csv", rows), tmp_path / f"scores.{ending}"
    scores = log_probs(table, data, out)
    assert read_table(out).columns == (("x0",) if ending == "npy" else ("log_prob",))
    expected = cnf.load(table).log_prob(torch.from_numpy(rows).float()).detach().numpy()
    assert np.abs(scores - expected).max() < 1e-4


def test_log_prob_does_not_depend_on_the_rows_beside(table, tmp_path):
    together = log_probs(table, write_csv(tmp_path / "a.csv", ROWS), tmp_path / "a.npy")
    alone = log_probs(table, write_csv(tmp_path / "b.csv", ROWS[5:6]), tmp_path / "b.npy")
    assert alone[0] == pytest.approx(together[5], abs=1e-4)


@pytest.mark.parametrize(
    ("trained", "names"),
    [("moons", ["density", "learning_curve", "strip"]), ("table", ["learning_curve", "pairs"])],
)
def test_figures_are_drawn_anew_and_show_something(trained, names, request):
    folder = request.getfixturevalue(trained)
    paths = [folder / "figures" / f"{name}.png" for name in names]
    for path in paths:
        path.unlink()
    assert sorted(done("plot", folder).split()) == [str(path) for path in paths]
    assert sorted((folder / "figures").iterdir()) == paths
    for path in paths:
        image = matplotlib.image.imread(path)[..., :3]
        assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 3000
        assert (image.min(-1) < 0.9).mean() > 0.005, "the figure is all but blank"


@pytest.mark.parametrize("name", ["$\\frac$", "a_{b}^", "100%", "x" * 300])
def test_figures_take_columns_of_any_name(name, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS, (name, "width", "depth"))
    done("train", data, "--out", tmp_path / "out", *SMALL)
    assert (tmp_path / "out" / "figures" / "pairs.png").exists()


def test_recipe_takes_its_numbers_from_the_command_line(tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    numbers = ("--hidden", "8,4", "--blocks", 2, "--activation", "softplus")
    done("train", data, "--out", tmp_path / "out", "--steps", 2, *numbers)
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["layers"]
    fields = [layer["field"] for layer in layers if layer["name"] == "cnf"]
    assert [(field["hidden"], field["activation"]) for field in fields] == [
        ([8, 4], "softplus")
    ] * 2


def test_without_a_folder_a_run_goes_into_one_called_after_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "my table.csv", rows_of_table(60))
    for data, folder in (("moons", "moons"), ("my table.csv", "my_table")):
        assert f"runs/{folder}/figures" in done("train", data, *SMALL)
        assert "NLL" in done("evaluate", f"runs/{folder}")
    assert "runs/moons is not empty (or --resume)" in complaint("train", "moons", *SMALL)
    done("train", "moons", "--resume")


def test_seed_decides_the_model(table, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    for seed in (0, 1):
        done("train", data, "--out", tmp_path / str(seed), "--seed", seed, *SMALL)
    weights = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "0", table)]
    assert weights[0] == weights[1]
    assert weights[0] != (tmp_path / "1" / "model.safetensors").read_bytes()


def test_budget_ends_the_training(tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    out = done("train", data, "--out", tmp_path / "out", "--budget", 0.5, "--hidden", 8)
    assert "budget" in out
    last = strict_json((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0.2 < last["seconds"] < 1.5


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_asked_for(field, tmp_path):
    """With a recipe whose own field has features that not every field can have."""
    few = ("--recipe", "toy", "--steps", 2)
    done("train", "iris", *few, "--field", field, "--out", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["layers"][0]["field"]["name"] == field


def test_diverged_training_says_so_and_its_metrics_are_json(tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    wild = ("--objective", "mle", "--learning-rate", "1e30", "--max-grad-norm", "1e30")
    wild = (*wild, "--hidden", 8, "--steps", 30)
    line = complaint("train", data, "--out", tmp_path / "out", *wild, status=1)
    assert "learning rate" in line
    for record in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        strict_json(record)


def test_an_estimated_trace_gives_the_same_numbers_again(tmp_path):
    folder = tmp_path / "run"
    done("train", "moons", "--out", folder, "--steps", "3", "--hidden", "8,8")
    table = tmp_path / "rows.csv"
    np.savetxt(table, [[0.1, 0.2], [1.0, -0.5]], delimiter=",", header="x,y", comments="")
    found = []
    for i, way in enumerate(("hutchinson", "hutchinson", "exact")):
        out = tmp_path / f"{i}.npy"
        done("log-prob", folder, "--data", table, "--out", out, "--divergence", way)
        found.append(np.load(out))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert np.abs(found[0] - found[2]).max() < 0.5
