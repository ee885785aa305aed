"""Tables of mixed columns: train, evaluate, sample, log-prob, plot."""

import json
import re

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
    """A folder with a table, a schema, a model of both, and what its training said."""
    place = tmp_path_factory.mktemp("mixed")
    mixed().to_csv(place / "rows.csv", index=False)
    (place / "schema.json").write_text(json.dumps(KINDS))
    arguments = ("--schema", place / "schema.json", "--out", place / "out", *SMALL)
    (place / "said.txt").write_text(done("train", place / "rows.csv", *arguments))
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
    percent = {"kind": "bounded", "low": 0, "high": 100, "categories": []}
    assert cnf.storage.load_config(place / "out")["metadata"]["schema"]["percent"] == percent
    x = torch.tensor(TrainedModel.read(str(place / "out")).data().test.x[:5]).float()
    assert cnf.load(place / "out").log_prob(x).isfinite().all()


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
    found = {draws: evaluation(place / "out", "--draws", draws) for draws in (1, 4, 16)}
    assert [each["draws"] for each in found.values()] == [1, 4, 16]
    assert found[1]["nll"] > found[4]["nll"] > found[16]["nll"]
    scores = place / "scores.csv"
    mixed().iloc[split(600, seed=0).test].to_csv(place / "test.csv", index=False)
    done("log-prob", place / "out", "--data", place / "test.csv", "--draws", 16, "--out", scores)
    assert -pd.read_csv(scores)["log_prob"].mean() == pytest.approx(found[16]["nll"], abs=0.3)


def test_the_gaussian_and_the_units_are_of_the_flows_own_numbers(place):
    trained = TrainedModel.read(str(place / "out"))
    data, found = trained.data(), evaluation(place / "out")
    train, _ = continuous_columns(
        trained.flow, trained.schema, data.train, trained.seed, to_fit=True
    )
    test, log_det = continuous_columns(trained.flow, trained.schema, data.test, trained.seed)
    assert train.x.shape[1] == 4 + 2 + 4  # four of one column, three and five categories
    expected = -(GaussianBaseline.fit(train).log_prob(test) + log_det).mean()
    assert found["gaussian_nll"] == pytest.approx(expected, rel=1e-5)
    scales = train.x.std(0)[[2, 3, 8, 9]]  # two of colour, price, count, four of stars, …
    assert found["nll_standardized"] == pytest.approx(found["nll"] - np.log(scales).sum(), abs=1e-4)


def test_constant_columns_need_not_be_there_and_are_not_drawn(place):
    rows, found = mixed(30, seed=1), []
    for table in (rows, rows.drop(columns=["unit", "zero"])):
        table.to_csv(place / "new.csv", index=False)
        found.append(evaluation(place / "out", "--data", place / "new.csv"))
    assert found[0] == found[1]
    done("plot", place / "out", "--figures", "pairs")
    assert (place / "out" / "figures" / "pairs.png").stat().st_size > 10_000


def test_some_columns_given_others(place):
    out = place / "given"
    arguments = ("--context", "height", "--drop", "zero,unit", "--out", out, *SMALL)
    done("train", place / "rows.csv", *arguments)
    done("sample", out, "-n", 2, "--context-data", place / "rows.csv", "--out", place / "g.csv")
    drawn = pd.read_csv(place / "g.csv")
    assert list(drawn) == ["height", "colour", "price", "count", "stars", "percent"]
    np.testing.assert_allclose(drawn["height"], np.repeat(mixed()["height"], 2))


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
        ("rows.csv", ["--context", "colour"], "in the context; got text in column 'colour'"),
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


def test_rows_that_the_columns_cannot_have(place, tmp_path):
    file, words = tmp_path / "odd.csv", ("evaluate", place / "out", "--data", tmp_path / "odd.csv")
    mixed(10).assign(colour="mauve").to_csv(file, index=False)
    told = complaint(*words)
    assert "one of blue, green, red in column 'colour'; got 'mauve' in row 1" in told
    mixed(10).assign(percent=101.0).to_csv(file, index=False)
    told = complaint(*words)
    assert "Expected values of percent: bounded from 0 to 100; got 101 in row 1" in told
    done("log-prob", place / "out", "--data", file, "--out", tmp_path / "s.csv")
    assert np.isneginf(pd.read_csv(tmp_path / "s.csv")["log_prob"]).all()


def test_read_table_and_the_model_agree_on_categories(place):
    rows = mixed(40, seed=2).query("colour != 'blue'").sort_values("colour", ascending=False)
    rows.to_csv(place / "two.csv", index=False)
    assert read_table(place / "two.csv").categories["colour"] == ("green", "red")
    scored, _ = TrainedModel.read(str(place / "out")).rows(str(place / "two.csv"), None)
    names = np.array(["blue", "green", "red"])[scored.x[:, 0].astype(int)]
    assert names.tolist() == rows["colour"].tolist()
