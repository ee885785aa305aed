"""Conditional densities p(x | c): train, evaluate, sample, log-prob."""

import json
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression
from test_scripts_programs import evaluation, log_probs
from test_scripts_running import (
    COLUMNS,
    SMALL,
    complaint,
    done,
    rows_of_table,
    run,
    tree,
    write_csv,
)

import cnf
from cnf.datasets import CONDITIONAL_TOYS, read_table, split
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.rows import ContextRows

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = rows_of_table()
PARTS = split(len(ROWS), seed=0)
X, CONTEXT = [0, 2], [1]  # height and depth given width


@pytest.fixture(scope="module", params=CONDITIONAL_TOYS)
def toy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    done("train", request.param, "--out", folder, *SMALL)
    return folder


def expected_log_prob(folder: Path, rows: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(rows).float()
    return cnf.load(folder).log_prob(tensor[:, X], tensor[:, CONTEXT]).detach().numpy()


def drawn(folder: Path, context: Path, out: Path, n: int = 2, *arguments: object):
    done("sample", folder, "-n", n, "--context-data", context, "--out", out, *arguments)
    return read_table(out)


def test_context_has_an_influence_and_its_order_none(data, tmp_path):
    """A model given (a, b) reads a and b by their names, which it writes down."""
    words = ("--context", "depth,height", "--out", tmp_path / "out", *SMALL)
    assert "1 columns given depth, height" in done("train", data, *words).splitlines()[0]
    metadata = cnf.storage.load_config(tmp_path / "out")["metadata"]
    assert (metadata["columns"], metadata["context"]) == (["width"], ["depth", "height"])
    flow, rows = cnf.load(tmp_path / "out"), torch.from_numpy(ROWS[PARTS.test]).float()
    log_prob = flow.log_prob(rows[:, [1]], rows[:, [2, 0]])
    numbers = evaluation(tmp_path / "out")
    assert numbers["nll"] == pytest.approx(-log_prob.mean().item(), abs=1e-4)
    assert (flow.log_prob(rows[:1, [1]], rows[:, [2, 0]]).std() > 0).item()


def test_evaluation_of_a_table_is_given_the_context(given):
    """Its Gaussian is least squares on the training rows, and the covariance of what it leaves."""
    numbers, train, test = evaluation(given), ROWS[PARTS.train], ROWS[PARTS.test]
    fit = LinearRegression().fit(train[:, CONTEXT], train[:, X])
    errors, left = (rows[:, X] - fit.predict(rows[:, CONTEXT]) for rows in (train, test))
    gaussian = multivariate_normal(np.zeros(2), np.cov(errors.T, bias=True)).logpdf(left)
    standardized = numbers["nll"] - np.log(train[:, X].std(0)).sum()
    expected = {
        "n": len(test),
        "nll": pytest.approx(-expected_log_prob(given, test).mean(), abs=1e-4),
        "bits_per_dim": pytest.approx(numbers["nll"] / (2 * log(2))),
        "nll_standardized": pytest.approx(standardized, abs=1e-4),
        "gaussian_nll": pytest.approx(-gaussian.mean(), abs=1e-6),
    }
    assert {name: numbers[name] for name in expected} == expected
    assert not {"entropy", "kl", "kl_stderr"} & set(numbers)


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
    # x is a multiple of one context, and the other is the first again.
    rows = ContextRows(1e3 * joint[:, :1], joint[:, [0, 0]])
    assert np.isfinite(GaussianBaseline.fit(rows).log_prob(rows)).all()


def test_evaluation_of_a_conditional_toy_knows_the_truth(toy):
    numbers = evaluation(toy)
    known = CONDITIONAL_TOYS[toy.name]
    fresh = known.log_prob(*known.sample(20_000, seed=12345)).mean()
    assert (numbers["n"], numbers["entropy"]) == (3_000, pytest.approx(-fresh, abs=0.05))
    assert numbers["kl"] == pytest.approx(numbers["nll"] - numbers["entropy"])
    assert numbers["kl"] > 5 * numbers["kl_stderr"] > 0
    other = evaluation(toy, "--data", toy.name)
    assert other["entropy"] == pytest.approx(numbers["entropy"], abs=0.1)
    assert other["entropy"] != numbers["entropy"]


def test_contexts_are_found_by_name_position_or_number(given, data, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    done("train", tmp_path / "rows.npy", "--context", "x1", "--out", tmp_path / "out", *SMALL)
    assert evaluation(tmp_path / "out") == evaluation(given)
    rows = write_csv(tmp_path / "narrow.csv", ROWS[:, X], ("height", "depth"))
    context = write_csv(tmp_path / "context.csv", ROWS[:, ::-1], COLUMNS[::-1])
    other = ROWS + np.array([0, 2, 0])
    np.save(tmp_path / "context.npy", ROWS[:, 1])
    write_csv(tmp_path / "other.csv", other)
    together = evaluation(given, "--data", data)
    for words, full in (
        ((rows, "--context-data", context), ROWS),
        ((rows, "--context-data", tmp_path / "context.npy"), ROWS),
        ((data, "--context-data", tmp_path / "other.csv"), other),
        ((data,), ROWS),
    ):
        assert (evaluation(given, "--data", *words) == together) == (full is ROWS)
        scores = log_probs(given, words[0], tmp_path / "scores.npy", *words[1:])
        assert np.abs(scores - expected_log_prob(given, full)).max() < 1e-4


def test_samples_are_written_with_their_contexts(given, tmp_path):
    context = write_csv(tmp_path / "context.csv", ROWS[:5])
    samples = drawn(given, context, tmp_path / "drawn.csv", 3)
    assert samples.columns == ("width", "height", "depth")
    np.testing.assert_array_equal(samples.values[:, 0], np.repeat(ROWS[:5, 1], 3))
    assert len(np.unique(samples.values[:, 1])) == 15
    again = drawn(given, context, tmp_path / "again.npy", 3, "--seed", 0)
    np.testing.assert_array_equal(again.values, samples.values)
    other = drawn(given, context, tmp_path / "other.npy", 3, "--seed", 1)
    assert not np.isclose(other.values[:, 1:], samples.values[:, 1:]).any()
    many = drawn(given, context, tmp_path / "many.csv", 500).values  # more than in one solve
    np.testing.assert_array_equal(many[:, 0], np.repeat(ROWS[:5, 1], 500))
    assert len(np.unique(many, axis=0)) == 2500
    assert np.isfinite(log_probs(given, tmp_path / "many.csv", tmp_path / "scores.csv")).all()


def test_samples_follow_their_contexts(tmp_path):
    """After some training a row for a large context lies where large contexts' rows do."""
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, 500)
    rows = np.column_stack([5 * c + 0.1 * rng.normal(size=500), c])
    data = write_csv(tmp_path / "rows.csv", rows, ("x", "c"))
    arguments = ("--steps", 60, "--hidden", 16, "--batch-size", 100)
    done("train", data, "--context", "c", "--out", tmp_path / "out", *arguments)
    contexts = write_csv(tmp_path / "c.csv", np.array([[-0.8], [0.8]]), ("c",))
    samples = drawn(tmp_path / "out", contexts, tmp_path / "drawn.csv", 50).values
    low, high = samples[samples[:, 0] < 0, 1], samples[samples[:, 0] > 0, 1]
    assert low.mean() < -1 < 1 < high.mean()


def test_contexts_of_whole_numbers_are_written_as_such(given, tmp_path):
    for values, cells in (((1001, 7), ["1001", "7"]), ((1001, 0.5), ["1001.0", "0.5"])):
        context = write_csv(tmp_path / "context.csv", np.array(values)[:, None], ("width",))
        drawn(given, context, tmp_path / "drawn.csv", 1)
        _, *lines = (tmp_path / "drawn.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == cells


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
def test_wrong_names_in_the_context_are_refused(context, words, data, tmp_path):
    line = complaint("train", data, "--context", context, "--out", tmp_path / "out", *SMALL)
    assert [word for word in ["Expected the context to", *words, "; got"] if word not in line] == []
    for name in CONDITIONAL_TOYS:
        line = complaint("train", name, "--context", context, "--out", tmp_path / "out")
        assert f"Expected no --context with {name}" in line
    assert tree(tmp_path) == {data}


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf, 1e60])
def test_constant_or_infinite_context_is_refused(value, tmp_path):
    data = write_csv(tmp_path / "rows.csv", np.where([0, 1, 0], value, ROWS))
    words = ("--context", "width", "--out", tmp_path / "out", *SMALL)
    assert "'width'" in complaint("train", data, *words)


SCORING = {"evaluate": (), "log-prob": ("--out", "made.csv")}
SAMPLE = ("sample", "-n", 2, "--out", "made.csv")
GIVEN = "--context-data"
REFUSED = [
    *(
        (trained, (program, "--data", *words, *SCORING[program]), expected)
        for program in SCORING
        for trained, words, expected in [
            ("table", ("rows.csv", GIVEN, "rows.csv"), ["Expected no --context-data"]),
            ("given", ("rows.csv", GIVEN, "one.csv"), ["got 1 rows in one.csv", "200"]),
            ("given", ("rows.csv", GIVEN, "less.csv"), ["got 199 rows in less.csv", "200"]),
            # In one table with x the context is found by its name alone.
            ("given", ("narrow.csv",), ["width", GIVEN]),
            ("given", ("unnamed.npy",), ["width", GIVEN]),
        ]
    ),
    *(
        (trained, ("evaluate", GIVEN, "rows.csv"), ["--data with"])
        for trained in ("table", "given")
    ),
    ("table", (*SAMPLE, GIVEN, "rows.csv"), ["Expected no --context-data"]),
    ("given", SAMPLE, ["Expected --context-data", "width"]),
    ("given", (*SAMPLE, GIVEN, "narrow.csv"), ["without width"]),
    *(
        ("given", (*words, GIVEN, "rows.csv", "--out", "rows.csv"), [GIVEN])  # overwritten
        for words in (("sample", "-n", 2), ("log-prob", "--data", "narrow.csv"))
    ),
]


@pytest.mark.parametrize(("trained", "words", "expected"), REFUSED)
def test_contexts_that_do_not_serve_are_refused(
    trained, words, expected, data, request, monkeypatch
):
    monkeypatch.chdir(data.parent)
    for name, rows in (("one.csv", ROWS[:1]), ("less.csv", ROWS[1:])):
        write_csv(Path(name), rows)
    write_csv(Path("narrow.csv"), ROWS[:, X], ("height", "depth"))
    np.save("unnamed.npy", ROWS)
    before = {path: path.read_bytes() for path in tree(data.parent)}
    line = complaint(words[0], request.getfixturevalue(trained), *words[1:])
    assert [word for word in expected if word not in line] == []
    assert {path: path.read_bytes() for path in tree(data.parent)} == before


@pytest.mark.parametrize("junk", [None, [], ["width", "weight"], ["height"], [7]], ids=repr)
def test_junk_in_the_context_written_down_is_refused(junk, given, tmp_path):
    flow, metadata = cnf.load(given), cnf.storage.load_config(given)["metadata"]
    cnf.save(flow, tmp_path / "out", {**metadata, "context": junk})
    assert "config.json" in complaint("evaluate", tmp_path / "out")


def test_held_out_rows_of_a_changed_table_are_not_known(data, tmp_path):
    done("train", data, "--context", "width", "--out", tmp_path / "out", *SMALL)
    for columns in ((0, 1), (0, 2), (2, 1, 0)):
        write_csv(data, ROWS[:, columns], tuple(COLUMNS[i] for i in columns))
        for program in ("evaluate", "plot"):
            line = complaint(program, tmp_path / "out")
            assert "changed" in line or "'width'" in line


@pytest.mark.filterwarnings("default:.* rows have:UserWarning")
def test_a_category_of_the_context_that_no_row_has(tmp_path):
    """Its column in the Gaussian baseline is constant."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=200), "place": rng.choice(["a", "b"], 200)})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    schema = {"place": {"kind": "categorical", "categories": ["a", "b", "c"]}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    given = ("--context", "place", "--schema", tmp_path / "schema.json", "--steps", 3)
    done("train", tmp_path / "rows.csv", *given, "--out", tmp_path / "run")
    assert "Gaussian NLL" in done("evaluate", tmp_path / "run")
    frame.assign(place=["z", *frame["place"][1:]]).to_csv(tmp_path / "new.csv", index=False)
    given = ("evaluate", tmp_path / "run", "--data", tmp_path / "new.csv", "--report")
    status, told, warned = run(*given)
    assert status == 0
    assert "the first is row 1 (counting from 1): log p is NaN" in warned
    assert "1 rows, without a density" in told
    page = (tmp_path / "run/report.html").read_text()
    assert "<dt>rows</dt><dd>199</dd>" in page
    assert "is nan" not in page


def test_a_recipe_of_codes_may_name_some_of_its_numbers(tmp_path):
    (tmp_path / "recipe.json").write_text('{"canonical": 0.25}')
    shown = done("train", "iris", "--recipe", tmp_path / "recipe.json", "--show-recipe")
    assert json.loads(shown)["canonical"] == 0.25
    assert json.loads(shown)["batch_size"] == 256
    told = complaint("train", "iris", "--recipe", "code", "--out", tmp_path / "run", status=2)
    assert "Expected --recipe to be a file or among codes, table, toy" in told
