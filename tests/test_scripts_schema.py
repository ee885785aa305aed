"""Tables of mixed columns, all the way: train, evaluate, sample, log-prob, plot."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done, run

import cnf
from cnf.datasets import read_table, split
from cnf.scripts.trained import TrainedModel, continuous_columns
from cnf.tables.schema import Schema

KINDS = {"percent": {"kind": "bounded", "low": 0, "high": 100}, "stars": {"kind": "categorical"}}


def mixed(rows=600, seed=0):
    """A column of each kind."""
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
    """A folder with a table, a schema, and a model of both."""
    place = tmp_path_factory.mktemp("mixed")
    mixed().to_csv(place / "rows.csv", index=False)
    (place / "schema.json").write_text(json.dumps(KINDS))
    arguments = ("--schema", place / "schema.json", "--out", place / "out", *SMALL)
    (place / "said.txt").write_text(done("train", place / "rows.csv", *arguments))
    return place


def test_training_says_what_it_takes_columns_for(place):
    said = (place / "said.txt").read_text()
    assert "480 training rows of 8 columns" in said
    for line in [
        "real        height",
        "positive    price",
        "bounded     percent from 0 to 100",
        "integer     count",
        "categorical colour one of blue, green, red; stars one of 1, 2, 3, 4, 5",
        "constant    unit cm; zero 0.25",
    ]:
        assert line in said, said


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_draws_have_the_tables_own_columns_and_types(place, ending):
    done("sample", place / "out", "-n", 300, "--out", place / f"drawn{ending}")
    read = pd.read_csv if ending == ".csv" else pd.read_parquet
    drawn, table = read(place / f"drawn{ending}"), mixed()
    assert list(drawn) == list(table)
    for name in ("count", "stars"):
        assert drawn[name].dtype == np.int64
    assert set(drawn["colour"]) <= {"red", "green", "blue"}
    assert set(drawn["stars"]) <= {1, 2, 3, 4, 5}
    assert drawn["percent"].between(0, 100).all()
    assert (drawn["price"] > 0).all()
    assert (drawn["unit"] == "cm").all()
    assert (drawn["zero"] == 0.25).all()


def test_draws_can_be_scored_from_every_file(place):
    for ending in (".csv", ".npy", ".npz", ".parquet"):
        done("sample", place / "out", "-n", 20, "--out", place / f"few{ending}")
    found = [evaluation(place / "out", "--data", place / f"few{ending}") for ending in
             (".csv", ".npy", ".npz", ".parquet")]  # fmt: skip
    assert found[0]["n"] == 20
    assert found[1:] == found[:1] * 3


def test_the_nll_is_the_bound_of_held_out_rows_and_tightens_with_draws(place):
    found = {draws: evaluation(place / "out", "--draws", draws) for draws in (1, 8, 64)}
    assert [each["draws"] for each in found.values()] == [1, 8, 64]
    assert found[1]["nll"] > found[8]["nll"] > found[64]["nll"]
    scores = place / "scores.csv"
    done("log-prob", place / "out", "--data", place / "rows.csv", "--draws", 64, "--out", scores)
    log_prob = pd.read_csv(scores)["log_prob"].to_numpy()
    test = split(600, seed=0).test
    assert -log_prob[test].mean() == pytest.approx(found[64]["nll"], abs=0.3)


def test_the_gaussian_sees_what_the_flow_does(place):
    """Its own formula, on numbers that have a density."""
    trained = TrainedModel.read(str(place / "out"))
    data = trained.data()
    train, _ = continuous_columns(trained.flow, trained.schema, data.train, trained.seed)
    test, log_det = continuous_columns(trained.flow, trained.schema, data.test, trained.seed)
    assert train.x.shape[1] == 4 + 2 + 4  # four of one column, three and five categories
    law = multivariate_normal(train.x.mean(0), np.cov(train.x.T, bias=True))
    expected = -(law.logpdf(test.x) + log_det).mean()
    assert evaluation(place / "out")["gaussian_nll"] == pytest.approx(expected, rel=1e-5)


def test_standardised_units_leave_categories_and_constants_alone(place):
    trained = TrainedModel.read(str(place / "out"))
    train, _ = continuous_columns(trained.flow, trained.schema, trained.data().train, trained.seed)
    scales = train.x.std(0)[[2, 3, 8, 9]]  # two of colour, price, count, four of stars, …
    found = evaluation(place / "out")
    assert found["nll_standardized"] == pytest.approx(found["nll"] - np.log(scales).sum(), abs=1e-4)


def test_constant_columns_need_not_be_there(place):
    mixed(30, seed=1).drop(columns=["unit", "zero"]).to_csv(place / "new.csv", index=False)
    mixed(30, seed=1).to_csv(place / "whole.csv", index=False)
    left, right = (evaluation(place / "out", "--data", place / name) for name in
                   ("new.csv", "whole.csv"))  # fmt: skip
    assert left == right


def test_plots_leave_constant_columns_out(place):
    done("plot", place / "out")
    assert (place / "out" / "figures" / "pairs.png").stat().st_size > 10_000


def test_the_schema_reproduces_the_model(place):
    """The flow in the folder, rebuilt by hand from the schema in config.json."""
    config = json.loads((place / "out" / "config.json").read_text())
    schema = config["metadata"]["schema"]
    assert schema["percent"] == {
        "kind": "bounded", "low": 0, "high": 100, "categories": [],
    }  # fmt: skip
    flow = cnf.load(place / "out")
    x = torch.tensor(TrainedModel.read(str(place / "out")).data().test.x[:5]).float()
    assert flow.log_prob(x).isfinite().all()


def test_some_columns_given_others(place):
    out = place / "given"
    arguments = ("--context", "height", "--drop", "zero,unit", "--out", out, *SMALL)
    done("train", place / "rows.csv", *arguments)
    done("sample", out, "-n", 2, "--context-data", place / "rows.csv", "--out", place / "g.csv")
    drawn = pd.read_csv(place / "g.csv")
    assert list(drawn) == ["height", "colour", "price", "count", "stars", "percent"]
    np.testing.assert_allclose(drawn["height"], np.repeat(mixed()["height"], 2))


@pytest.mark.filterwarnings("default:column 'double'")
def test_collinear_columns_are_named(place):
    table = mixed()[["height", "price"]].assign(double=lambda own: 2 * own["height"] + 1)
    table.to_csv(place / "collinear.csv", index=False)
    told = run("train", place / "collinear.csv", "--out", place / "collinear", *SMALL).err
    assert told.count("\n") == 1
    assert "column 'double' is a linear combination of 'height'" in told
    assert "--drop double" in told


def test_whole_numbers_too_large_for_noise_are_real():
    values = np.arange(100.0)[:, None] * 1e7
    assert Schema.infer(values, ["id"]).columns[0].kind == "real"


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
    ("arguments", "message"),
    [
        (["--schema", "none.json"], "Expected a schema in none.json; got: No such file"),
        (["--drop", "width"], "Expected --drop to name columns of rows; got 'width'"),
        (["--drop", "height", "--context", "height"], "no column of the context to be left out"),
        (["--context", "colour"], "Expected numbers in the context; got text in column 'colour'"),
        (["--context", "zero"], "a context that varies among the training rows of rows"),
        (["--drop", "colour,price,count,stars,percent,height"], "constant: unit cm; zero 0.25"),
    ],
)
def test_mistakes_with_columns(arguments, message, place, tmp_path):
    told = complaint("train", place / "rows.csv", *arguments, "--out", tmp_path / "out")
    assert message in told


@pytest.mark.parametrize("option", ["--drop", "--schema"])
def test_a_toy_has_its_own_columns(option, tmp_path):
    told = complaint("train", "moons", option, "x", "--out", tmp_path / "out")
    assert f"Expected no {option} with the toy moons" in told


def test_rows_that_the_columns_cannot_have(place, tmp_path):
    rows = mixed(10)
    rows.assign(colour="mauve").to_csv(tmp_path / "mauve.csv", index=False)
    told = complaint("evaluate", place / "out", "--data", tmp_path / "mauve.csv")
    assert "one of blue, green, red in column 'colour'; got 'mauve' in row 1" in told
    rows.assign(percent=101.0).to_csv(tmp_path / "more.csv", index=False)
    told = complaint("evaluate", place / "out", "--data", tmp_path / "more.csv")
    assert "Expected values of percent: bounded from 0 to 100; got 101 in row 1" in told
    done("log-prob", place / "out", "--data", tmp_path / "more.csv", "--out", tmp_path / "s.csv")
    assert np.isneginf(pd.read_csv(tmp_path / "s.csv")["log_prob"]).all()


def test_read_table_and_the_model_agree_on_categories(place):
    """A table whose categories come in another order, and not all of them."""
    rows = mixed(40, seed=2)
    rows = rows[rows["colour"] != "blue"].sort_values("colour", ascending=False)
    rows.to_csv(place / "two.csv", index=False)
    assert read_table(place / "two.csv").categories["colour"] == ("green", "red")
    trained = TrainedModel.read(str(place / "out"))
    scored, _ = trained.rows(str(place / "two.csv"), None)
    names = np.array(["blue", "green", "red"])[scored.x[:, 0].astype(int)]
    assert names.tolist() == rows["colour"].tolist()
