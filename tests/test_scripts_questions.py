"""Tables with gaps, and questions about parts of rows, by all programs."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from test_scripts_programs import evaluation
from test_scripts_running import complaint, done, run

from cnf.datasets import read_table
from cnf.scripts.trained import TrainedModel
from cnf.tables.row_model import RowModel

pytestmark = pytest.mark.usefixtures("undrawn")

GAPPY = ("--missing", "model", "--steps", 2, "--out")
COLOURS, PLACES = ("red", "green", "blue"), list("abc")


def mixed(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Text, prices of two decimals, whole numbers, real ones, booleans and days, without gaps."""
    rng = np.random.default_rng(seed)
    group = rng.choice(3, p=[0.5, 0.3, 0.2], size=rows)
    days = pd.to_timedelta(rng.integers(0, 300, rows), "D")
    return pd.DataFrame(
        {
            "colour": np.array(COLOURS)[group],
            "price": np.exp(rng.normal(group, 0.5)).round(2) + 0.01,
            "count": pd.array(rng.poisson(30 + 20 * group), "Int64"),
            "height": rng.normal(170 + 5 * group, 10.0),
            "flag": pd.array(rng.random(rows) < 0.3 + 0.2 * group, "boolean"),
            "day": pd.Timestamp("2024-01-01") + days,
        }
    )


def with_gaps(frame: pd.DataFrame, share: float = 0.15, seed: int = 1) -> pd.DataFrame:
    """The frame with gaps at random places, the first row full of them, the second without."""
    gaps = np.random.default_rng(seed).random(frame.shape) < share
    gaps[0], gaps[1] = True, False
    return frame.mask(gaps)


def numbers(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Three dependent columns of real numbers."""
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    values = np.random.default_rng(seed).normal(size=(rows, 3)) @ mixing
    return pd.DataFrame(values, columns=PLACES)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files with gaps, models of codes and of values that were trained on them, and one on none."""
    place = tmp_path_factory.mktemp("questions")
    gappy = with_gaps(mixed())
    gappy.to_csv(place / "rows.csv", index=False)
    gappy.astype({"colour": "category"}).to_parquet(place / "rows.parquet", index=False)
    with_gaps(numbers()).to_csv(place / "numbers.csv", index=False)
    mixed().to_csv(place / "whole.csv", index=False)
    (place / "said.txt").write_text(done("train", place / "rows.csv", *GAPPY, place / "codes"))
    (place / "told.txt").write_text(done("train", place / "numbers.csv", *GAPPY, place / "values"))
    done("train", place / "whole.csv", "--steps", 2, "--out", place / "whole")
    return place


def scored(model, data, out, *words) -> np.ndarray:
    done("log-prob", model, "--data", data, "--out", out, *words)
    return pd.read_csv(out)["log_prob"].to_numpy()


def test_training_takes_rows_with_gaps(place):
    said, told = ((place / name).read_text() for name in ("said.txt", "told.txt"))
    assert re.search(r"160 training rows \(1\d\.\d% of their cells are gaps\) of 6 columns", said)
    assert "recipe answers" in said
    assert re.search(r"5 codes of 2 columns, a flow of any of 4 columns given any others", said)
    assert "categorical colour one of blue, green, red" in said
    assert "recipe answers" in told
    assert "a flow of any of 3 columns given any others" in told
    for text in (said, told):
        assert re.search(r"of what is there: \d+\.\d% of cells are gaps", text)
        assert "Gaussian NLL" in text
    done("train", place / "rows.csv", *GAPPY, place / "bins", "--recipe", "codes")
    for name, values in (("codes", True), ("values", True), ("bins", False)):
        config = json.loads((place / name / "config.json").read_text())
        assert config["metadata"]["missing"] == "model"
        model = TrainedModel.read(str(place / name)).model
        assert isinstance(model, RowModel)
        assert (model.values is not None) == values


def test_a_recipe_of_answers_is_shown_read_and_resumed(place, tmp_path):
    words = ("train", place / "numbers.csv", "--missing", "model", "--steps", 2, "--out")
    shown = done(*words, tmp_path / "a", "--learning-rate", "0.01", "--show-recipe")
    assert json.loads(shown)["learning_rate"] == 0.01
    assert "group_rows" in shown
    (tmp_path / "recipe.json").write_text(shown)
    done(*words, tmp_path / "a", "--learning-rate", "0.01")
    done(*words, tmp_path / "b", "--recipe", tmp_path / "recipe.json")
    done(*words, tmp_path / "c", "--recipe", tmp_path / "a/config.json")
    kept = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert kept[0] == kept[1] == kept[2]
    assert "of the run in --out" in done(*words, tmp_path / "a", "--resume")
    assert (tmp_path / "a/model.safetensors").read_bytes() == kept[0]
    recipe = ("--recipe", tmp_path / "recipe.json", "--out", tmp_path / "d")
    got = "got that of a model of answers in"
    words = ("train", place / "rows.csv", "--missing", "model", "--drop")
    told = complaint(*words, "price,count,height,day", *recipe)
    assert re.search(f"a recipe of a model of codes, .* {got} --recipe", told), told
    told = complaint("train", "iris", *recipe)
    assert re.search(f"a recipe of a flow, .* {got} --recipe", told), told
    words = ("train", place / "whole.csv", "--out", tmp_path / "a", "--resume", "--drop")
    told = complaint(*words, "colour,flag,day,count,price")
    assert "its training rows was" in told  # with --missing model, as the run had it
    words = ("train", place / "numbers.csv", "--missing", "model", "--out")
    assert "no --batch-size with --missing model" in complaint(
        *words, tmp_path / "d", "--batch-size", 16
    )


@pytest.mark.parametrize(
    ("name", "data", "given"),
    [("codes", "rows.csv", "colour,height"), ("values", "numbers.csv", "b")],
)
def test_log_prob_is_of_what_is_there_given_some(name, data, given, place, tmp_path):
    trained, file = TrainedModel.read(str(place / name)).in_double(), place / data
    rows, _ = trained.rows(str(file), None)
    x = torch.from_numpy(rows.x)
    mask = torch.tensor([each in given.split(",") for each in trained.schema.names])
    found = scored(place / name, file, tmp_path / "a.csv", "--draws", 2)
    asked = scored(place / name, file, tmp_path / "b.csv", "--draws", 2, "--given", given)
    with torch.no_grad():
        options = {"seed": trained.seed, "draws": 2}
        answers = [trained.model.log_prob(x, given=g, **options) for g in (None, mask)]
        expected = [each.numpy() for each in answers]
    np.testing.assert_allclose([found, asked], expected, atol=1e-4)
    assert found[0] == asked[0] == 0.0  # a row of gaps
    assert np.isfinite(found).all()
    names = ",".join(trained.schema.names)
    assert not scored(place / name, file, tmp_path / "c.csv", "--given", names).any()
    words = ("--given", given, "--errors", "--draws", 2)
    with_errors = scored(place / name, file, tmp_path / "d.csv", *words)
    np.testing.assert_allclose(with_errors, asked, atol=1e-4)
    assert set(pd.read_csv(tmp_path / "d.csv")["status"]) == {"FINISHED"}


@pytest.mark.filterwarnings("default:.* rows have gaps")
def test_a_model_of_whole_rows_answers_questions_about_these_alone(place, tmp_path):
    out, gaps = tmp_path / "a.csv", pd.read_csv(place / "rows.csv").isna().any(axis=1).to_numpy()
    words = ("log-prob", place / "whole", "--data", place / "rows.csv", "--given", "day")
    assert "rows have gaps" in run(*words, "--out", out).err
    assert np.array_equal(pd.read_csv(out)["log_prob"].isna(), gaps)
    done(*words, "--out", out, "--errors")
    assert np.array_equal(pd.read_csv(out)["status"] == "MISSING", gaps)
    assert "--missing model" in complaint("evaluate", place / "whole", "--data", place / "rows.csv")
    done("impute", place / "whole", "--data", place / "rows.csv", "--out", out)
    assert not pd.read_csv(out).isna().any(axis=None)


def test_imputed_text_keeps_its_cells_and_fills_gaps_in_their_format(place, tmp_path):
    """Columns that the model does not have stay, and so do formats of numbers and the separator."""
    raw = pd.read_csv(place / "rows.csv", dtype=str, keep_default_na=False)
    raw["price"] = [cell and f"{float(cell):.2f}".replace(".", ",") for cell in raw["price"]]
    raw["height"] = raw["height"].str.replace(".", ",")
    raw = raw.assign(note=["x;y", *["0"] * 199])[["note", *raw.columns[::-1]]]
    raw.to_csv(tmp_path / "in.csv", sep=";", index=False)
    words = ("impute", place / "codes", "--data", tmp_path / "in.csv", "--out")
    said = done(*words, tmp_path / "a.csv")
    gaps = (raw == "").to_numpy()
    assert said.startswith(f"{gaps.sum()} gaps in {gaps.any(axis=1).sum()} of 200 rows filled in ")
    found = pd.read_csv(tmp_path / "a.csv", sep=";", dtype=str, keep_default_na=False)
    assert found.columns.tolist() == raw.columns.tolist()
    assert (found == raw).to_numpy()[~gaps].all()
    kinds = {
        "colour": "red|green|blue",
        "price": r"\d+(,\d\d?)?",
        "count": r"\d+",
        "height": r"\d+,\d+",
        "flag": "True|False",
        "day": r"202\d-\d\d-\d\d",
    }
    for name, pattern in kinds.items():
        assert found[name].str.fullmatch(pattern).all(), found[name][
            gaps[:, raw.columns.get_loc(name)]
        ]
    done(*words, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    done(*words, tmp_path / "b.csv", "--seed", 3, "--draws", 4)
    draws = pd.read_csv(tmp_path / "b.csv", sep=";", dtype=str, keep_default_na=False)
    assert draws.columns.tolist() == ["draw", *raw.columns]
    assert draws["draw"].tolist() == np.repeat(list("1234"), 200).tolist()
    tables = [each.drop(columns="draw").to_numpy() for _, each in draws.groupby("draw")]
    assert all((each == raw.to_numpy())[~gaps].all() for each in tables)
    heights = [each[0, raw.columns.get_loc("height")] for each in tables]
    assert len(set(heights)) == 4


def test_imputed_parquet_keeps_its_schema(place, tmp_path):
    words = ("impute", place / "codes", "--data", place / "rows.parquet", "--out")
    done(*words, tmp_path / "a.parquet")
    done(*words, tmp_path / "b.parquet", "--draws", 2)
    first, found, twice = (
        pyarrow.parquet.read_table(file)
        for file in (place / "rows.parquet", tmp_path / "a.parquet", tmp_path / "b.parquet")
    )
    assert found.schema == first.schema
    assert twice.column_names == ["draw", *first.column_names]
    assert twice.schema.field("draw").type == "int64"
    before, after = first.to_pandas(), found.to_pandas()
    assert after["colour"].dtype == "category"
    assert not after.isna().any(axis=None)
    assert (before.isna() | (before == after)).all(axis=None)
    again = twice.drop_columns("draw").to_pandas()
    both = pd.concat([before, before], ignore_index=True)
    assert (both.isna() | (both == again)).all(axis=None)
    assert after["day"].between("2023-06-01", "2025-06-01").all()
    before.assign(colour=None).to_parquet(tmp_path / "c.parquet")  # of the type null
    done(*words[:3], tmp_path / "c.parquet", "--out", tmp_path / "d.parquet")
    assert pd.read_parquet(tmp_path / "d.parquet")["colour"].isin(COLOURS).all()


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_text_is_imputed_into_other_kinds_of_files(ending, place, tmp_path):
    out = tmp_path / f"out.{ending}"
    done("impute", place / "codes", "--data", place / "rows.csv", "--out", out, "--draws", 2)
    before, after = read_table(place / "rows.csv", "keep"), read_table(out)
    assert after.columns == ("draw", *before.columns)
    if ending == "npz":
        both = np.tile(before.values, (2, 1))
        seen = ~np.isnan(both)
        assert np.array_equal(after.values[:, 1:][seen], both[seen])
    else:
        own = pd.read_parquet(out)
        text = pd.concat([pd.read_csv(place / "rows.csv")] * 2)
        for name in text:
            seen = text[name].notna().to_numpy()
            assert (own[name][seen].array == text[name][seen].array).all(), name
        assert own.dtypes[["draw", "count", "flag"]].tolist() == ["int64", "Int64", "boolean"]
        assert own["colour"].isin(COLOURS).all()


@pytest.mark.filterwarnings("default:.* stay as they are")
def test_columns_of_arrays_are_matched_in_order_and_odd_rows_keep_their_gaps(place, tmp_path):
    values = pd.read_csv(place / "numbers.csv").to_numpy()
    np.save(tmp_path / "a.npy", values)
    done("impute", place / "values", "--data", tmp_path / "a.npy", "--out", tmp_path / "b.npy")
    found = np.load(tmp_path / "b.npy")
    assert np.isfinite(found).all()
    assert (np.isnan(values) | (values == found)).all()
    odd = pd.read_csv(place / "rows.csv").assign(colour="mauve")[:3]  # the second has no gaps
    odd.to_csv(tmp_path / "odd.csv", index=False)
    out = tmp_path / "c.csv"
    ended = run("impute", place / "codes", "--data", tmp_path / "odd.csv", "--out", out)
    assert "3 of 3 rows stay as they are, with new categories, values that" in ended.err
    assert ended.out.startswith("0 gaps in 0 of 3 rows filled")
    assert pd.read_csv(out).equals(odd)


def test_samples_keep_the_cells_that_are_given(place, tmp_path):
    given = pd.DataFrame(
        {"height": [150.123456789, 199.5, np.nan], "colour": ["blue", None, "red"]}
    )
    given.to_csv(tmp_path / "given.csv", index=False)
    words = ("sample", place / "codes", "-n", 4, "--given", tmp_path / "given.csv", "--out")
    assert "12 rows in" in done(*words, tmp_path / "a.csv")
    found = pd.read_csv(tmp_path / "a.csv")
    assert list(found) == list(mixed())
    assert not found.isna().any(axis=None)
    assert found["height"].to_list()[:8] == [150.123456789] * 4 + [199.5] * 4
    assert (
        found["colour"].to_list()[:4] + found["colour"].to_list()[8:] == ["blue"] * 4 + ["red"] * 4
    )
    assert found["count"].dtype == np.int64
    assert found["height"].nunique() == 6
    done(
        "sample",
        place / "values",
        "-n",
        2,
        "--given",
        place / "numbers.csv",
        "--out",
        tmp_path / "b.csv",
    )
    drawn, own = pd.read_csv(tmp_path / "b.csv"), pd.read_csv(place / "numbers.csv")
    own = own.loc[own.index.repeat(2)].reset_index(drop=True)
    assert (own.isna() | (own == drawn)).all(axis=None)
    assert not drawn.isna().any(axis=None)


@pytest.mark.parametrize("name", ["codes", "values"])
def test_evaluation_says_how_consistent_the_answers_are(name, place):
    found, text = evaluation(place / name), done("evaluate", place / name)
    assert 0 < found["gaps"] < 0.4
    assert f"of what is there: {found['gaps']:.1%} of cells are gaps" in text
    assert 0 <= found["consistency_gap"] <= found["consistency_gap95"]
    assert f"consistency   {found['consistency_gap']:10.4f} nats a column" in text
    trained = TrainedModel.read(str(place / name))
    rows = trained.data().test
    seen = (~np.isnan(rows.x)).sum() / len(rows)
    assert found["bits_per_dim"] == pytest.approx(found["nll"] / (seen * np.log(2)))
    log_p, _ = trained.score(rows, found.get("draws", 1))
    assert found["nll"] == pytest.approx(-log_p.mean(), rel=1e-6)


def test_the_gaussian_of_rows_with_gaps_is_that_of_all_that_is_there(place):
    """Its moments are near those of the rows before some cells were hidden."""
    trained = TrainedModel.read(str(place / "values"))
    whole = numbers().to_numpy()
    np.testing.assert_allclose(trained.gaussian.mean, whole.mean(0), atol=0.2)
    np.testing.assert_allclose(trained.gaussian.covariance, np.cov(whole.T), atol=0.3)
    rows = trained.data().test
    found, seen = trained.gaussian_log_prob(rows), ~np.isnan(rows.x)
    for row, there, log_p in zip(rows.x, seen, found, strict=True):
        mean, covariance = (
            trained.gaussian.mean[there],
            trained.gaussian.covariance[there][:, there],
        )
        apart = row[there] - mean
        square = apart @ np.linalg.solve(covariance, apart) if there.any() else 0.0
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1] if there.any() else 0.0
        assert log_p == pytest.approx(-0.5 * (square + log_det), abs=1e-6)


def test_checks_and_figures_take_rows_with_gaps(place):
    """Of codes and of values, which a model of mixed columns has both."""
    words = ("--rows", 5, "--points", 100)
    found = json.loads(run("check", place / "codes", "--json", *words).out)
    assert any("consisten" in each["name"] for each in found["findings"])
    done("plot", place / "codes", "--figures", "pairs")


def test_the_report_names_the_oddest_cell_of_the_lowest_rows(place, tmp_path, monkeypatch):
    few = {"MIN_SAMPLES": 200, "MAX_CLASSIFIER_ROWS": 60}
    for name, number in few.items():
        monkeypatch.setattr(f"cnf.scripts.report.{name}", number)
    monkeypatch.setattr("cnf.diagnostics.similarity.TREES", 5)
    monkeypatch.setattr("cnf.scripts.report.png", lambda *_: b"")  # whose drawing takes long
    odd = mixed()
    odd.loc[7, "height"] = 500.0
    for name in ("price", "count", "height", "day"):
        odd.loc[9, name] = None
    odd.to_csv(tmp_path / "odd.csv", index=False)
    page = tmp_path / "page.html"
    done("evaluate", place / "codes", "--data", tmp_path / "odd.csv", "--report", page)
    text = page.read_text("utf-8")
    assert "with the gaps of the rows" in text
    assert "By chance alone a correlation of 199 rows" in text
    assert "Log p of a row with gaps is that of the cells that are there" in text
    head, first = re.findall("<tr.*?</tr>", text.split("<table")[-1], re.DOTALL)[:2]
    names, cells = (re.findall("<t[dh]>(.*?)</t[dh]>", each) for each in (head, first))
    assert names[:5] == [
        "row",
        "log p",
        "samples below",
        "oddest cell",
        "expected",
    ]
    assert (cells[0], cells[3]) == ("7", "height")
    assert 130 < float(cells[4]) < 220


def test_gaps_that_are_a_value_are_modelled_and_stay(place, tmp_path):
    schema, out = tmp_path / "schema.json", tmp_path / "out"
    schema.write_text('{"height": {"kind": "real", "gaps": "value"}}')
    words = ("train", place / "rows.csv", "--schema", schema)
    assert "height or missing" in done(*words, *GAPPY, out)
    rows = pd.read_csv(place / "rows.csv")
    log_p = scored(out, place / "rows.csv", tmp_path / "a.csv")
    assert log_p[0] == pytest.approx(np.log(rows["height"].isna().mean()), abs=1.5)
    assert log_p[0] < 0
    done("impute", out, "--data", place / "rows.csv", "--out", tmp_path / "b.csv")
    found = pd.read_csv(tmp_path / "b.csv")
    assert np.array_equal(found["height"].isna(), rows["height"].isna())
    assert not found.drop(columns="height").isna().any(axis=None)
    rows[["colour"]].iloc[1:2].to_csv(tmp_path / "given.csv", index=False)
    words = ("--given", tmp_path / "given.csv", "--out", tmp_path / "c.csv")
    done("sample", out, "-n", 200, *words)
    assert 0 < pd.read_csv(tmp_path / "c.csv")["height"].isna().mean() < 1


@pytest.mark.filterwarnings("default:.* stay as they are")
def test_columns_given_others_may_have_gaps(place, tmp_path):
    """But a context may not; in a file to impute its row keeps its gaps."""
    rows, out = pd.read_csv(place / "rows.csv"), tmp_path / "out"
    told = complaint("train", place / "rows.csv", "--context", "colour", *GAPPY, out)
    assert re.search("colour.* got a gap", told), told
    known = rows.assign(colour=mixed()["colour"])
    known.to_csv(tmp_path / "known.csv", index=False)
    done("train", tmp_path / "known.csv", "--context", "colour", *GAPPY, out)
    log_p = scored(out, tmp_path / "known.csv", tmp_path / "a.csv", "--given", "price")
    assert log_p[0] == 0
    assert np.isfinite(log_p).all()
    words = ("sample", out, "-n", 2, "--out", tmp_path / "b.csv", "--given")
    done(*words, tmp_path / "known.csv")
    drawn = pd.read_csv(tmp_path / "b.csv")
    assert drawn["colour"].tolist() == np.repeat(known["colour"], 2).tolist()
    assert "a context for each of the 200 rows" in complaint(
        *words, tmp_path / "known.csv", "--context-data", _written(tmp_path, known[["colour"]][:9])
    )
    known.loc[3, "colour"] = None
    known.loc[3, "day"] = None
    known.to_csv(tmp_path / "known.csv", index=False)
    assert "context without gaps" in complaint("evaluate", out, "--data", tmp_path / "known.csv")
    told = run("impute", out, "--data", tmp_path / "known.csv", "--out", tmp_path / "c.csv").err
    assert re.search("warning: 1 of 200 rows stay as they are.*row 4", told), told
    assert pd.read_csv(tmp_path / "c.csv").isna().to_numpy().nonzero()[0].tolist() == [3, 3]


def _written(folder, frame):
    frame.to_csv(folder / "written.csv", index=False)
    return folder / "written.csv"


TRAIN = ("train", "rows.csv", "--missing", "model", "--out", "refused")
SAMPLE = ("sample", "codes", "-n", 1, "--out", "a.csv", "--given")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--recipe", "table"), "no --recipe table with --missing model, .* flow does not"),
        ((*TRAIN, "--hidden", 8), "no --hidden with --missing model"),
        ((*TRAIN, "--discretize", 2), "no --discretize with --missing model"),
        (("train", "empty.csv", *TRAIN[2:]), "values in column 'nothing'; got none: leave it out"),
        (("train", "rows.csv", "--out", "refused"), "--missing model, drop their rows with"),
        (("log-prob", "codes", "--data", "rows.csv", "--out", "a.csv", "--given", "colour,hieght"),
         "--given to name columns that are modelled; got 'hieght': the closest names are height"),
        (("log-prob", "codes", "--data", "rows.csv", "--out", "a.csv", "--given", ""),
         "an empty name"),
        (("log-prob", "codes", "--data", "rows.csv", "--out", "a.csv", "--given", "day,flag,"),
         "columns in --given; got 'day,flag,', with an empty name"),
        (("log-prob", "FLOW", "--data", "rows.csv", "--out", "a.csv", "--given", "width"),
         "answers questions about parts of a row; got a flow: train with --missing model"),
        (("sample", "FLOW", "-n", 1, "--out", "a.csv", "--given", "rows.csv"), "got a flow"),
        (("impute", "FLOW", "--data", "numbers.csv", "--out", "a.csv"), "got a flow"),
        (("impute", "codes", "--data", "rows.csv", "--out", "a.csv", "--draws", 0), "above 0"),
        (("impute", "codes", "--data", "numbers.csv", "--out", "a.csv"), "the 6 columns that"),
        (("impute", "values", "--data", "drawn.csv", "--out", "a.csv", "--draws", 2),
         "no column 'draw' with --draws above 1, which the file in --data has"),
        (("impute", "codes", "--data", "rows.csv", "--out", "rows.csv"), "other file than --data"),
        ((*SAMPLE, "odd.csv"), "columns of the model in odd.csv; got 'weight'"),
        ((*SAMPLE, "numbers.csv"), "columns of the model in numbers.csv; got 'a'"),
        ((*SAMPLE, "mauve.csv"), "one of blue, green, red in column 'colour'; got 'mauve'"),
        ((*SAMPLE, "empty.csv", "--context-data", "rows.csv"), "got 'nothing'|without a context"),
        ((*SAMPLE, "none.csv"), "a file at none.csv"),
    ],
)  # fmt: skip
def test_mistakes(words, message, table, place, monkeypatch):
    monkeypatch.chdir(place)
    rows = pd.read_csv("rows.csv")
    rows.assign(nothing=np.nan).to_csv("empty.csv", index=False)
    numbers(20).assign(draw=1.0).to_csv("drawn.csv", index=False)
    rows[["colour"]].assign(weight=1.0).to_csv("odd.csv", index=False)
    rows[["colour"]].assign(colour="mauve").to_csv("mauve.csv", index=False)
    told = complaint(*(table if word == "FLOW" else word for word in words))
    assert re.search(message, told), told


def test_a_run_of_two_parts_resumes(place, tmp_path):
    words = ("train", place / "rows.csv", "--steps", 6, "--missing", "model", "--out")
    done(*words, tmp_path / "a")
    weights = (tmp_path / "a/model.safetensors").read_bytes()
    lines = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({each["objective"] for each in records}) == 2
    assert [each["step"] for each in records] == sorted(each["step"] for each in records)
    again = done("train", place / "rows.csv", "--out", tmp_path / "a", "--resume")
    assert "of the run in --out" in again
    assert (tmp_path / "a/model.safetensors").read_bytes() == weights
    told = complaint(*words[:2], "--steps", 7, *words[4:], tmp_path / "a", "--resume")
    assert re.search(r"its (whole )?steps was 6, and now is 7", told), told
