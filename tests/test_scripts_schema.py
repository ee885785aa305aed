"""Tables of mixed columns: train, evaluate, sample, log-prob, plot."""

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done, run

import cnf
from cnf.datasets import read_table, split
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.trained import TrainedModel, continuous_columns

pytestmark = pytest.mark.usefixtures("undrawn")

KINDS = {"percent": {"kind": "bounded", "low": 0, "high": 100}, "stars": {"kind": "categorical"}}


def mixed(rows=600, seed=0):
    rng = np.random.default_rng(seed)
    category = rng.choice(3, p=[0.6, 0.3, 0.1], size=rows)
    return pd.DataFrame(
        {
            "colour": np.array(["red", "green", "blue"])[category],
            "price": np.exp(rng.normal(category, 1.0)),
            "count": rng.poisson(30 + 20 * category),
            "stars": rng.integers(1, 6, rows),
            "percent": rng.beta(0.5, 0.5, rows) * 100,
            "height": rng.normal(170.0, 10.0, rows),
            "unit": "cm",
            "zero": 0.25,
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table, a schema, models of codes and a flow, and what training said."""
    place = tmp_path_factory.mktemp("mixed")
    mixed().to_csv(place / "rows.csv", index=False)
    (place / "schema.json").write_text(json.dumps(KINDS))
    words = ("train", place / "rows.csv", "--schema", place / "schema.json", "--steps", 2, "--out")
    (place / "said.txt").write_text(done(*words, place / "out"))
    (place / "flow.txt").write_text(done(*words, place / "flow", "--hidden", 8))
    return place


def test_training_says_and_writes_down_what_it_takes_columns_for(place):
    said = (place / "said.txt").read_text()
    for line in [
        "480 training rows of 8 columns",
        "real        height",
        "positive    price",
        "bounded     percent from 0 to 100",
        "integer     count",
        "categorical colour one of blue, green, red; stars one of 1, 2, 3, 4, 5",
        "constant    unit cm; zero 0.25",
    ]:
        assert line in said, said
        assert line in (place / "flow.txt").read_text()
    assert re.search("recipe codes, .* weights, 2.. codes of 6 columns", said)
    assert "a flow over dequantized columns, by --hidden" in (place / "flow.txt").read_text()
    assert "dequantized" not in said
    percent = {"kind": "bounded", "low": 0, "high": 100, "categories": []}
    assert (
        json.loads((place / "out/config.json").read_text())["metadata"]["schema"]["percent"]
        == percent
    )
    x = torch.tensor(TrainedModel.read(str(place / "out")).data().test.x[:5])
    assert cnf.load(place / "out").log_prob(x).isfinite().all()
    metrics = [json.loads(line) for line in (place / "out/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2
    assert metrics[-1]["nfe"] == 0


def test_draws_have_the_tables_own_columns_and_types_and_can_be_scored(place):
    found = []
    for ending in (".csv", ".parquet", ".npy", ".npz"):
        drawn = place / f"drawn{ending}"
        done("sample", place / "out", "-n", 50, "--out", drawn)
        found.append(evaluation(place / "out", "--data", drawn))
    assert found[0]["n"] == 50
    assert found[1:] == found[:1] * 3
    for drawn in (pd.read_csv(place / "drawn.csv"), pd.read_parquet(place / "drawn.parquet")):
        assert list(drawn) == list(mixed())
        assert drawn["count"].dtype == drawn["stars"].dtype == np.int64
        assert set(drawn["colour"]) <= {"red", "green", "blue"}
        assert set(drawn["stars"]) <= {1, 2, 3, 4, 5}
        assert drawn["percent"].between(0, 100).all()
        assert (drawn["price"] > 0).all()
        assert set(drawn["unit"]) | set(drawn["zero"]) == {"cm", 0.25}


def test_the_nll_is_the_bound_of_held_out_rows_and_tightens_with_draws(place):
    found = {draws: evaluation(place / "flow", "--draws", draws) for draws in (1, 4, 16)}
    assert [each["draws"] for each in found.values()] == [1, 4, 16]
    assert found[1]["nll"] > found[4]["nll"] > found[16]["nll"]
    scores = place / "scores.csv"
    mixed().iloc[split(600, seed=0).test].to_csv(place / "test.csv", index=False)
    words = ("--data", place / "test.csv", "--draws", 16, "--out", scores)
    done("log-prob", place / "flow", *words)
    assert -pd.read_csv(scores)["log_prob"].mean() == pytest.approx(found[16]["nll"], abs=0.3)
    exact = evaluation(place / "out")  # a model of codes draws no noise and solves nothing
    assert (exact["nfe"], "draws" in exact) == (0, False)
    assert "evaluations" not in done("evaluate", place / "out")
    done("log-prob", place / "out", *words, "--errors")
    assert -pd.read_csv(scores)["log_prob"].mean() == pytest.approx(exact["nll"], abs=1e-4)


def test_the_gaussian_and_the_units_are_of_dequantized_numbers(place):
    trained = TrainedModel.read(str(place / "out"))
    data, found = trained.data(), evaluation(place / "out")
    flow = trained.dequantizing
    train, _ = continuous_columns(flow, trained.schema, data.train, trained.seed, to_fit=True)
    test, log_det = continuous_columns(flow, trained.schema, data.test, trained.seed)
    assert train.x.shape[1] == 4 + 2 + 4  # four of one column, three and five categories
    expected = -(GaussianBaseline.fit(train).log_prob(test) + log_det).mean()
    assert found["gaussian_nll"] == pytest.approx(expected, rel=1e-5)
    scales = train.x.std(0)[[2, 3, 8, 9]]  # two of colour, price, count, four of stars, …
    assert evaluation(place / "flow")["gaussian_nll"] == pytest.approx(expected, rel=1e-5)
    assert found["nll_standardized"] == pytest.approx(found["nll"] - np.log(scales).sum(), abs=1e-4)


def test_constant_columns_need_not_be_there_and_are_not_drawn(place):
    rows, found = mixed(30, seed=1), []
    for table in (rows, rows.drop(columns=["unit", "zero"])):
        table.to_csv(place / "new.csv", index=False)
        found.append(evaluation(place / "out", "--data", place / "new.csv"))
    assert found[0] == found[1]
    done("plot", place / "out", "--figures", "pairs")
    assert (place / "out" / "figures" / "pairs.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("default:.* rows have:UserWarning")
def test_some_columns_given_others(place):
    """The given ones may be categories, by their names or as the schema says."""
    out, rows, drawn = place / "given", place / "rows.csv", place / "g.csv"
    schema = place / "given.json"
    schema.write_text('{"stars": {"kind": "categorical"}}')
    words = ("--context", "height,colour,stars", "--drop", "zero,unit", "--schema", schema)
    said = done("train", rows, *words, "--steps", 2, "--out", out)
    assert "given categorical colour one of blue, green, red; stars one of 1, 2, 3" in said
    done("sample", out, "-n", 2, "--context-data", rows, "--out", drawn)
    table, found = mixed(), pd.read_csv(drawn)
    assert list(found) == ["height", "colour", "stars", "price", "count", "percent"]
    for name in ("height", "colour", "stars"):
        assert (found[name] == np.repeat(table[name].to_numpy(), 2)).all()
    held_out = evaluation(out)
    assert held_out["gaussian_nll"] < evaluation(place / "flow")["gaussian_nll"]  # it is given more
    done("plot", out, "--figures", "pairs")
    table.loc[[1, 4], "colour"] = "mauve"
    table.to_csv(place / "odd.csv", index=False)
    words = ("--context-data", place / "odd.csv", "--out", drawn)
    assert "got 'mauve' in row 2" in complaint("sample", out, "-n", 2, *words)
    ended = run("log-prob", out, "--data", place / "odd.csv", "--out", drawn)
    assert "2 of 600 rows have gaps, or a context or given cells of" in ended.err
    assert np.flatnonzero(pd.read_csv(drawn)["log_prob"].isna()).tolist() == [1, 4]
    done("log-prob", out, "--data", place / "odd.csv", "--out", drawn, "--errors")
    assert np.flatnonzero(pd.read_csv(drawn)["status"] == "MISSING").tolist() == [1, 4]


def test_a_recipe_of_codes_is_shown_read_and_chosen_by_name(place, tmp_path):
    words = ("train", place / "rows.csv", "--steps", 2, "--out")
    changes = ("--learning-rate", "0.01", "--batch-size", "32")
    shown = done(*words, tmp_path / "a", *changes, "--show-recipe")
    assert (json.loads(shown)["learning_rate"], json.loads(shown)["canonical"]) == (0.01, 0.5)
    (tmp_path / "recipe.json").write_text(shown)
    done(*words, tmp_path / "a", *changes)
    done(*words, tmp_path / "b", "--recipe", tmp_path / "recipe.json")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    said = done("train", "diabetes", "--recipe", "codes", "--steps", 2, "--out", tmp_path / "d")
    assert "recipe codes" in said
    assert '"ema_decay": 0.9,' in done(*words, tmp_path / "e", "--ema-decay", 0.9, "--show-recipe")
    assert "flow over dequantized columns, by --recipe table" in done(
        *words, tmp_path / "e", "--recipe", "table", "--batch-size", 16
    )
    assert "the model in" in complaint("distil", tmp_path / "b", "--out", tmp_path / "f")


def test_parts_of_dates_are_columns_once_they_are_named(tmp_path):
    rows, times = np.random.default_rng(0), pd.date_range("2024-01-01", periods=200, freq="5h")
    pd.DataFrame({"x": rows.normal(size=200), "when": times}).to_csv(
        tmp_path / "rows.csv", index=False
    )
    (tmp_path / "schema.json").write_text(
        '{"when_hour": {"kind": "circular", "low": 0, "high": 24}}'
    )
    out, data = tmp_path / "out", tmp_path / "rows.csv"
    choices = ("--schema", tmp_path / "schema.json", "--context", "when_weekday")
    assert "circular    when_hour from 0 to 24" in done(
        "train", data, *choices, "--out", out, *SMALL
    )
    done("sample", out, "-n", 1, "--context-data", data, "--out", tmp_path / "drawn.csv")
    drawn = pd.read_csv(tmp_path / "drawn.csv")
    assert list(drawn) == ["when_weekday", "x", "when", "when_hour"]
    assert (drawn["when_weekday"] == times.day_of_week).all()
    for table in ("rows.csv", "drawn.csv"):
        done("log-prob", out, "--data", tmp_path / table, "--out", tmp_path / "scores.csv")
        assert np.isfinite(pd.read_csv(tmp_path / "scores.csv")["log_prob"]).sum() == 200


@pytest.mark.filterwarnings("default:column 'double'")
def test_collinear_columns_are_named(place):
    table = mixed()[["height", "price"]].assign(double=lambda own: 2 * own["height"] + 1)
    table.to_csv(place / "collinear.csv", index=False)
    told = run("train", place / "collinear.csv", "--out", place / "collinear", *SMALL).err
    found = re.findall("column 'double' is a linear combination of 'height'.*--drop double", told)
    assert told.count("\n") == len(found) == 1


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "to hold a schema in JSON"),
        ("[1]", "to hold an object of columns"),
        ('{"weight": {"kind": "real"}}', "got 'weight', which is none of colour"),
        ('{"height": {"kind": "tall"}}', "a kind among real, .* in column 'height'; got 'tall'"),
        ('{"height": {"sort": "real"}}', "kind, low, high and categories for column 'height'"),
        ('{"height": {"kind": "integer"}}', "values of height: integer; got .* in row 1"),
        ('{"price": {"kind": "bounded", "low": 0, "high": 1}}', "values of price: bounded from 0"),
        ('{"colour": {"kind": "real"}}', "numbers .* in column 'colour'; got text, 'blue'"),
        ('{"colour": {"kind": "categorical", "categories": ["red", "blue"]}}',
         "one of red, blue in column 'colour'; got 'green' in row"),
        ('{"stars": {"kind": "categorical", "categories": ["1", "2"]}}',
         "one of 1, 2 in column 'stars'; got . in row"),
    ],
)  # fmt: skip
def test_mistakes_in_a_schema(schema, message, place, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(schema)
    told = complaint("train", place / "rows.csv", "--schema", file, "--out", tmp_path / "out")
    assert re.search(message, told), told


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("rows.csv", ["--schema", "none.json"], "a schema in none.json; got: No such file"),
        ("rows.csv", ["--drop", "width"], "--drop to name columns of rows; got 'width'"),
        ("rows.csv", ["--drop", "height", "--context", "height"], "no column of the context to be"),
        ("rows.csv", ["--context", "colour", "--recipe", "table"], "text in column 'colour'"),
        ("rows.csv", ["--recipe", "codes", "--hidden", "8"], "no --hidden with --recipe codes"),
        ("rows.csv", ["--recipe", "codes", "--discretize", "2"], "no --discretize with --recipe"),
        ("rows.csv", ["--context", "zero"], "a context that varies among the training"),
        ("rows.csv", ["--drop", ",".join([*mixed(1)][:6])], "constant: unit cm; zero 0.25"),
        ("moons", ["--drop", "x"], "Expected no --drop with the toy moons"),
        ("moons", ["--schema", "x"], "Expected no --schema with the toy moons"),
        ("word:I", ["--drop", "x"], "Expected no --drop"),
    ],
)
def test_mistakes_with_columns(data, arguments, message, place, monkeypatch):
    monkeypatch.chdir(place)
    assert message in complaint("train", data, *arguments, "--out", "refused")


@pytest.mark.filterwarnings("default:.* rows have:UserWarning")
@pytest.mark.parametrize("trained", ["out", "flow"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": "mauve"}, "unknown categories, .* the first is row 3 .*: log p is -inf"),
        ({"percent": 101.0}, ".*values that their columns cannot have; .* log p is -inf"),
        ({"height": np.nan}, "gaps, .* the first is row 3 .*: log p is NaN"),
    ],
)
def test_a_row_that_cannot_be_is_told_of_and_ends_nothing(changes, told, trained, place, tmp_path):
    file, scores = tmp_path / "odd.csv", tmp_path / "scores.csv"
    odd, good = mixed(10).assign(**{name: mixed(10)[name] for name in changes}), np.arange(10) != 2
    for name, value in changes.items():
        odd.loc[2, name] = value
    odd.to_csv(file, index=False)
    words = ("log-prob", place / trained, "--data", file, "--out", scores)
    warned = "warning: 1 of 10 rows have " + told
    ended = run(*words)
    assert (ended.status, ended.err.count("\n")) == (0, 1)
    assert re.search(warned, ended.err), ended.err
    log_prob = pd.read_csv(scores)["log_prob"]
    assert np.isfinite(log_prob).tolist() == good.tolist()
    if "height" in changes:
        assert "--missing drop" in complaint("evaluate", place / trained, "--data", file)
        return
    assert np.isneginf(log_prob[2])
    ended = run("evaluate", place / trained, "--data", file, "--json")
    assert re.search(warned, ended.err), ended.err
    numbers = json.loads(ended.out)
    assert (numbers["n"], numbers["nll"], numbers["impossible"]) == (10, None, 1)
    assert numbers["nll_unfolded"] == pytest.approx(-log_prob[good].mean(), abs=0.3)
    assert "1 rows, without a density" in run("evaluate", place / trained, "--data", file).out


@pytest.mark.filterwarnings("default:.* rows have:UserWarning")
def test_numbers_between_those_of_a_grid_are_told_of_with_errors_too(place, tmp_path):
    mixed(10).astype({"count": float}).to_csv(tmp_path / "near.csv", index=False)
    odd = mixed(10).astype({"count": float})
    odd.loc[2, "count"] += 0.2
    odd.to_csv(tmp_path / "odd.csv", index=False)
    told = "1 of 10 rows have numbers between those of a grid; the first is row 3 (counting from 1)"
    scores = []
    for name, errors in product(("near", "odd"), ([], ["--errors"])):
        file, out = tmp_path / f"{name}.csv", tmp_path / "scores.csv"
        ended = run("log-prob", place / "out", "--data", file, "--out", out, *errors)
        assert (ended.status, told in ended.err) == (0, name == "odd"), ended.err
        scores.append(pd.read_csv(out)["log_prob"])
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-4)


def test_read_table_and_the_model_agree_on_categories(place):
    rows = mixed(40, seed=2).query("colour != 'blue'").sort_values("colour", ascending=False)
    rows.to_csv(place / "two.csv", index=False)
    assert read_table(place / "two.csv").categories["colour"] == ("green", "red")
    scored, _ = TrainedModel.read(str(place / "out")).rows(str(place / "two.csv"), None)
    names = np.array(["blue", "green", "red"])[scored.x[:, 0].astype(int)]
    assert names.tolist() == rows["colour"].tolist()
