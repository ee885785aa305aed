"""Conditional densities p(x | c), all the way: train, evaluate, sample, log-prob, plot."""

import json
from math import log
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from test_scripts_programs import evaluation
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, tree, write_csv

import cnf
from cnf.datasets import CONDITIONAL_TOYS, read_table, split
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.rows import ContextRows
from cnf.scripts.sample import whole_contexts

ROWS = rows_of_table()
PARTS = split(len(ROWS), seed=0)
X, CONTEXT = [0, 2], [1]  # height and depth given width


@pytest.fixture(scope="module", autouse=True)
def _coarse():
    """Figures of fewer pixels: they are scored one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnf.plotting.conditional.DENSITY_PIXELS", 16)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder trained on a table with one of its columns as the context."""
    place = tmp_path_factory.mktemp("table")
    data = write_csv(place / "rows.csv", ROWS)
    done("train", data, "--context", "width", "--out", place / "out", *SMALL)
    return place / "out"


@pytest.fixture(scope="module", params=CONDITIONAL_TOYS)
def toy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    done("train", request.param, "--out", folder, *SMALL)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder trained without a context."""
    place = tmp_path_factory.mktemp("plain")
    done("train", write_csv(place / "rows.csv", ROWS), "--out", place / "out", *SMALL)
    return place / "out"


def expected_log_prob(folder: Path, rows: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(rows).float()
    return cnf.load(folder).log_prob(tensor[:, X], tensor[:, CONTEXT]).detach().numpy()


def drawn(folder: Path, context: Path, out: Path, n: int = 2, *arguments: object):
    done("sample", folder, "-n", n, "--context-data", context, "--out", out, *arguments)
    return read_table(out)


# --- train and evaluate ---------------------------------------------------------------------------


def test_training_writes_down_the_context(table):
    metadata = json.loads((table / "config.json").read_text())["metadata"]
    assert (metadata["columns"], metadata["context"]) == (["height", "depth"], ["width"])


def test_training_says_what_is_given(tmp_path):
    said = done("train", "iris", "--context", "petal width (cm)", "--out", tmp_path / "a", *SMALL)
    assert "3 columns given petal width (cm)" in said.splitlines()[0]


def test_context_has_an_influence_and_its_order_none(tmp_path):
    """A model given (a, b) reads a and b by their names."""
    data = write_csv(tmp_path / "rows.csv", ROWS)
    done("train", data, "--context", "depth,height", "--out", tmp_path / "out", *SMALL)
    columns = cnf.storage.load_config(tmp_path / "out")["metadata"]["context"]
    assert columns == ["depth", "height"]
    flow, rows = cnf.load(tmp_path / "out"), torch.from_numpy(ROWS[PARTS.test]).float()
    log_prob = flow.log_prob(rows[:, [1]], rows[:, [2, 0]])
    numbers = evaluation(tmp_path / "out")
    assert numbers["nll"] == pytest.approx(-log_prob.mean().item(), abs=1e-4)
    assert (flow.log_prob(rows[:1, [1]], rows[:, [2, 0]]).std() > 0).item()


def test_evaluation_of_a_table_is_given_the_context(table):
    numbers = evaluation(table)
    log_prob = expected_log_prob(table, ROWS[PARTS.test])
    assert numbers["n"] == len(PARTS.test)
    assert numbers["nll"] == pytest.approx(-log_prob.mean(), abs=1e-4)
    assert numbers["bits_per_dim"] == pytest.approx(numbers["nll"] / (2 * log(2)))
    assert numbers["nll_standardized"] == pytest.approx(
        numbers["nll"] - np.log(ROWS[PARTS.train][:, X].std(0)).sum(), abs=1e-4
    )
    assert not {"entropy", "kl", "kl_stderr"} & set(numbers)


def test_gaussian_of_a_table_is_linear_regression(table):
    """Least squares on the training rows, and the covariance of what it leaves."""
    train, test = ROWS[PARTS.train], ROWS[PARTS.test]
    train_design, test_design = (np.column_stack([np.ones(len(r)), r[:, 1]]) for r in (train, test))
    weights = np.linalg.lstsq(train_design, train[:, X])[0]
    errors = train[:, X] - train_design @ weights
    density = multivariate_normal(np.zeros(2), np.cov(errors.T, bias=True))
    expected = -density.logpdf(test[:, X] - test_design @ weights).mean()
    assert evaluation(table)["gaussian_nll"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("width", [0, 1, 3])
def test_gaussian_is_the_joint_one_over_that_of_the_context(width):
    rng = np.random.default_rng(0)
    joint = rng.normal(size=(200, width + 2)) @ rng.normal(size=(width + 2, width + 2)) + 7
    rows = ContextRows(joint[:, width:], joint[:, :width])
    gaussian = GaussianBaseline.fit(rows)
    expected = multivariate_normal(gaussian.mean, gaussian.covariance).logpdf(joint)
    if width:
        own = (gaussian.mean[:width], gaussian.covariance[:width, :width])
        expected = expected - multivariate_normal(*own).logpdf(joint[:, :width])
    np.testing.assert_allclose(gaussian.log_prob(rows), expected, rtol=1e-8)


def test_gaussian_of_what_the_context_decides_is_finite():
    """X is a multiple of one context, and the other is the first again."""
    context = np.random.default_rng(0).normal(size=(100, 1))
    rows = ContextRows(1e3 * context, np.hstack([context, context]))
    assert np.isfinite(GaussianBaseline.fit(rows).log_prob(rows)).all()


def test_evaluation_of_a_conditional_toy_knows_the_truth(toy):
    numbers = evaluation(toy)
    known = CONDITIONAL_TOYS[toy.name]
    fresh = known.log_prob(*known.sample(20_000, seed=12345))
    assert numbers["n"] == 10_000
    assert numbers["entropy"] == pytest.approx(-fresh.mean(), abs=0.05)
    assert numbers["kl"] == pytest.approx(numbers["nll"] - numbers["entropy"])
    assert numbers["kl"] > 5 * numbers["kl_stderr"] > 0
    other = evaluation(toy, "--data", toy.name)
    assert other["entropy"] == pytest.approx(numbers["entropy"], abs=0.1)
    assert other["entropy"] != numbers["entropy"]


def test_toy_given_one_of_its_columns_goes_all_the_way(tmp_path):
    done("train", "moons", "--context", "x", "--out", tmp_path / "out", *SMALL)
    numbers = evaluation(tmp_path / "out")
    assert numbers["n"] == 10_000
    assert "kl" not in numbers
    assert "kl" not in evaluation(tmp_path / "out", "--data", "moons")


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_every_kind_of_file_has_contexts(ending, table, tmp_path):
    path = tmp_path / f"rows.{ending}"
    if ending == "npy":
        np.save(path, ROWS)
    elif ending == "npz":
        np.savez(path, rows=ROWS, columns=np.array(COLUMNS))
    else:
        pd.DataFrame(ROWS, columns=list(COLUMNS)).to_parquet(path)
    name = "x1" if ending == "npy" else "width"
    done("train", path, "--context", name, "--out", tmp_path / "out", *SMALL)
    assert evaluation(tmp_path / "out") == evaluation(table)


# --- contexts in the data, or in a file of their own ----------------------------------------------


@pytest.mark.parametrize("kind", ["by name", "by position"])
def test_contexts_of_their_own_file_are_those_of_the_data(kind, table, tmp_path):
    together = write_csv(tmp_path / "together.csv", ROWS)
    rows = write_csv(tmp_path / "rows.csv", ROWS[:, X], ("height", "depth"))
    context = write_csv(tmp_path / "context.csv", ROWS[:, ::-1], COLUMNS[::-1])
    if kind == "by position":
        context = tmp_path / "context.npy"
        np.save(context, ROWS[:, 1])
    apart = (rows, "--context-data", context)
    assert evaluation(table, "--data", *apart) == evaluation(table, "--data", together)
    done("log-prob", table, "--data", *apart, "--out", tmp_path / "apart.npy")
    done("log-prob", table, "--data", together, "--out", tmp_path / "together.npy")
    scores = np.load(tmp_path / "apart.npy")
    assert np.array_equal(scores, np.load(tmp_path / "together.npy"))
    assert np.abs(scores[:, 0] - expected_log_prob(table, ROWS)).max() < 1e-4


def test_context_data_goes_before_the_datas_own(table, tmp_path):
    rows = write_csv(tmp_path / "rows.csv", ROWS)
    other = ROWS.copy()
    other[:, 1] += 2
    context = write_csv(tmp_path / "context.csv", other)
    out = tmp_path / "scores.npy"
    done("log-prob", table, "--data", rows, "--context-data", context, "--out", out)
    assert np.abs(np.load(out)[:, 0] - expected_log_prob(table, other)).max() < 1e-4


def test_samples_are_written_beside_what_they_were_drawn_for(table, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS[:5])
    samples = drawn(table, context, tmp_path / "drawn.csv", 3)
    assert samples.columns == ("width", "height", "depth")
    np.testing.assert_array_equal(samples.values[:, 0], np.repeat(ROWS[:5, 1], 3))
    assert len(np.unique(samples.values[:, 1])) == 15
    again = drawn(table, context, tmp_path / "again.npy", 3, "--seed", 0)
    np.testing.assert_array_equal(again.values, samples.values)
    other = drawn(table, context, tmp_path / "other.npy", 3, "--seed", 1)
    assert not np.isclose(other.values[:, 1:], samples.values[:, 1:]).any()


def test_samples_follow_their_contexts(tmp_path):
    """After some training: a row for a large context lies where large contexts' rows do."""
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, 500)
    rows = np.column_stack([5 * c + 0.1 * rng.normal(size=500), c])
    data = write_csv(tmp_path / "rows.csv", rows, ("x", "c"))
    arguments = ("--steps", 80, "--hidden", 16, "--batch-size", 200)
    done("train", data, "--context", "c", "--out", tmp_path / "out", *arguments)
    contexts = write_csv(tmp_path / "c.csv", np.array([[-0.8], [0.8]]), ("c",))
    samples = drawn(tmp_path / "out", contexts, tmp_path / "drawn.csv", 50).values
    low, high = samples[samples[:, 0] < 0, 1], samples[samples[:, 0] > 0, 1]
    assert low.mean() < -1 < 1 < high.mean()


def test_contexts_of_whole_numbers_are_written_as_such(table, tmp_path):
    for values, cells in (((1001, 7), ["1001", "7"]), ((1001, 0.5), ["1001.0", "0.5"])):
        context = write_csv(tmp_path / "context.csv", np.array(values)[:, None], ("width",))
        drawn(table, context, tmp_path / "drawn.csv", 1)
        _, *lines = (tmp_path / "drawn.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == cells


def test_numbers_too_large_to_be_told_apart_are_not_called_whole():
    assert whole_contexts(np.array([[1.0, 2.0**60, 0.5]]), ("a", "b", "c")) == ("a",)


def test_more_samples_than_are_drawn_in_one_solve(table, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS[:3])
    samples = drawn(table, context, tmp_path / "drawn.npy", 700).values
    np.testing.assert_array_equal(samples[:, 0], np.repeat(ROWS[:3, 1], 700))
    assert len(np.unique(samples, axis=0)) == 2100


def test_samples_can_be_scored_as_they_are(table, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS[:5])
    drawn(table, context, tmp_path / "drawn.csv")
    done("log-prob", table, "--data", tmp_path / "drawn.csv", "--out", tmp_path / "scores.csv")
    assert np.isfinite(read_table(tmp_path / "scores.csv").values).all()


# --- figures --------------------------------------------------------------------------------------


def test_figures_of_a_conditional_toy(toy):
    (toy / "figures" / "density.png").unlink()
    done("plot", toy)
    image = matplotlib.image.imread(toy / "figures" / "density.png")[..., :3]
    assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 3000
    assert (image.min(-1) < 0.9).mean() > 0.005, "the figure is all but blank"


@pytest.mark.parametrize(
    ("context", "figure"),
    [("height,width,depth", "density"), ("height,width", "density"), ("depth", "pairs")],
)
def test_figures_of_one_two_and_more_columns(context, figure, tmp_path):
    rows = np.column_stack([ROWS, ROWS[::-1, 0]])
    data = write_csv(tmp_path / "rows.csv", rows, (*COLUMNS, "x" * 300))
    done("train", data, "--context", context, "--out", tmp_path / "out", *SMALL)
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {figure, "learning_curve"}


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("weight", ["'weight'", "height"]),
        ("width,weight", ["'weight'"]),
        ("width,", ["''"]),
        ("", ["''"]),
        ("height,width,depth", ["all 3"]),
        ("width,width", ["'width'", "once"]),
    ],
)
def test_context_that_is_no_part_of_the_columns_is_refused(context, words, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    before = tree(tmp_path)
    line = complaint("train", data, "--context", context, "--out", tmp_path / "out", *SMALL)
    assert "Expected the context to" in line
    assert [word for word in [*words, "; got"] if word not in line] == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf, 1e60])
def test_constant_or_infinite_context_is_refused(value, tmp_path):
    rows = ROWS.copy()
    rows[:, 1] = value
    data = tmp_path / "rows.csv"
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(data, index=False, na_rep="nan")
    line = complaint("train", data, "--context", "width", "--out", tmp_path / "out", *SMALL)
    assert "'width'" in line


@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
@pytest.mark.parametrize("context", ["c", "x"])
def test_conditional_toy_takes_no_other_context(name, context, tmp_path):
    line = complaint("train", name, "--context", context, "--out", tmp_path / "out")
    assert f"Expected no --context with {name}" in line
    assert not tree(tmp_path)


@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
@pytest.mark.parametrize("rows", [1, len(ROWS) - 1])
def test_every_row_needs_its_context(program, rows, table, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    context = write_csv(tmp_path / "context.csv", ROWS[:rows])
    before = tree(tmp_path)
    out = ("--out", tmp_path / "scores.csv") if program == "log-prob" else ()
    line = complaint(program, table, "--data", data, "--context-data", context, *out)
    assert f"got {rows} rows in {context}" in line
    assert str(len(ROWS)) in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("program", ["evaluate", "log-prob", "sample"])
def test_model_without_a_context_takes_none(program, plain, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    before = tree(tmp_path)
    arguments = {
        "evaluate": ("--data", data),
        "log-prob": ("--data", data, "--out", tmp_path / "out.csv"),
        "sample": ("-n", 2, "--out", tmp_path / "out.csv"),
    }[program]
    line = complaint(program, plain, "--context-data", data, *arguments)
    assert "Expected no --context-data" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("trained", ["plain", "table"])
def test_held_out_rows_take_no_other_contexts(trained, request, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS)
    folder = request.getfixturevalue(trained)
    assert "--data with" in complaint("evaluate", folder, "--context-data", context)


def test_sampling_needs_contexts(table, tmp_path):
    line = complaint("sample", table, "-n", 3, "--out", tmp_path / "drawn.csv")
    assert "Expected --context-data" in line
    assert "width" in line
    assert not tree(tmp_path)


@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_data_without_the_context_says_where_it_may_be(program, ending, table, tmp_path):
    """Where x and its context come from one table they are told apart by their names alone."""
    if ending == "csv":
        data = write_csv(tmp_path / "rows.csv", ROWS[:, X], ("height", "depth"))
    else:
        data = tmp_path / "rows.npy"
        np.save(data, ROWS)
    out = ("--out", tmp_path / "scores.csv") if program == "log-prob" else ()
    line = complaint(program, table, "--data", data, *out)
    assert "width" in line
    assert "--context-data" in line


def test_context_data_without_the_context_is_refused(table, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS[:, X], ("height", "depth"))
    out = ("--out", tmp_path / "drawn.csv")
    line = complaint("sample", table, "-n", 2, "--context-data", context, *out)
    assert "without width" in line


@pytest.mark.parametrize("program", ["sample", "log-prob"])
def test_contexts_are_never_overwritten(program, table, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS)
    written = context.read_bytes()
    data = write_csv(tmp_path / "rows.csv", ROWS)
    arguments = ("-n", 2) if program == "sample" else ("--data", data)
    line = complaint(program, table, "--context-data", context, "--out", context, *arguments)
    assert "--context-data" in line
    assert context.read_bytes() == written


@pytest.mark.parametrize("junk", [None, [], ["width", "weight"], ["height"], [7]], ids=repr)
def test_junk_in_the_context_written_down_is_refused(junk, table, tmp_path):
    flow, metadata = cnf.load(table), cnf.storage.load_config(table)["metadata"]
    cnf.save(flow, tmp_path / "out", {**metadata, "context": junk})
    assert "config.json" in complaint("evaluate", tmp_path / "out")


@pytest.mark.parametrize("columns", [(0, 1), (0, 2), (2, 1, 0)], ids=str)
def test_held_out_rows_of_a_changed_table_are_not_known(columns, tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    done("train", data, "--context", "width", "--out", tmp_path / "out", *SMALL)
    write_csv(data, ROWS[:, columns], tuple(COLUMNS[i] for i in columns))
    for program in ("evaluate", "plot"):
        line = complaint(program, tmp_path / "out")
        assert "changed" in line or "'width'" in line
