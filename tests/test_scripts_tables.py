"""The programs on tables as people have them: read, trained on, scored, drawn and read back."""

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from test_scripts_running import complaint, done, run

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = 120
FAST = ("--steps", "2", "--hidden", "4")


def frame(**columns: object) -> pd.DataFrame:
    """Two real columns, and others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    return pd.DataFrame({"x": x, "y": 0.5 * x + rng.normal(size=ROWS), **columns})


def choice(*values: object) -> list:
    return [values[i] for i in np.random.default_rng(1).integers(0, len(values), ROWS)]


def dates(form: str) -> pd.Index:
    return pd.date_range("2024-01-01", periods=ROWS, freq="30min").strftime(form)


COMMA = {"decimal": ",", "sep": ";"}
FILES = {
    "decimal commas": (frame(), COMMA, "separated by ';', decimal comma"),
    "Windows-1252": (frame(größe=choice("groß", "klein")), {"encoding": "cp1252"}, "Windows-1252"),
    "pandas' index": (frame(), {"index": True}, "index"),
    "booleans": (frame(flag=choice(True, False)), {}, ""),
    "dates": (frame(when=dates("%Y-%m-%d %H:%M:%S")), {}, ""),
    "days first": (frame(when=dates("%d.%m.%Y")), {}, ""),
    "leading zeros": (frame(zip=choice("01234", "10115", "02134")), {}, ""),
    "hundreds": (frame(price=np.random.default_rng(2).integers(1, 9999, ROWS) * 700), {}, ""),
    "months": (
        frame(when=pd.date_range("2014-01", periods=ROWS, freq="MS").strftime("%Y-%m")),
        {},
        "",
    ),
    "counts": (frame(n=choice(0, 1, 2, 5, 9)), {}, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_a_text_file_is_read_trained_on_scored_and_drawn_in_its_types(name, tmp_path):
    table, options, note = FILES[name]
    data, out, drawn = tmp_path / "rows.csv", tmp_path / "run", tmp_path / "drawn.csv"
    table.to_csv(data, **{"index": False, **options})
    assert note in done("train", data, "--out", out, *FAST)
    done("sample", out, "-n", "200", "--out", drawn)
    draws = pd.read_csv(drawn, dtype={"zip": str})
    assert_frame_equal(draws.head(0), table.head(0))
    for column in ("flag", "zip", "größe"):
        if column in table:
            assert set(draws[column]) <= set(table[column])
    if name == "hundreds":
        assert (draws["price"] % 700 == 0).all()
    if name == "months":
        assert draws["when"].str.fullmatch(r"\d{4}-\d\d").all()
    if name in ("dates", "days first"):
        form = "%d.%m.%Y" if name == "days first" else "%Y-%m-%d %H:%M:%S"
        read = pd.to_datetime(draws["when"], format=form)
        assert (read.dt.minute % 30 == 0).all()
    done("log-prob", out, "--data", data, "--out", tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == ROWS
    assert np.isfinite(scores["log_prob"]).all()


def test_options_of_reading_without_a_file_of_text_are_refused(table, tmp_path):
    for words in (("evaluate", table), ("check", table)):
        assert "--data FILE" in complaint(*words, "--sep", ";")
    words = ("sample", table, "-n", "1", "--out", tmp_path / "a.csv", "--decimal", ",")
    assert "--context-data FILE" in complaint(*words)
    np.save(tmp_path / "rows.npy", np.zeros((20, 2)))
    for data in (tmp_path / "rows.npy", "wine", "moons"):
        assert "no --encoding with" in complaint("train", data, "--encoding", "latin-1")


def test_what_is_dropped_or_no_column_of_the_model_is_never_read(tmp_path):
    """A half-empty column and one of names would be refused; the folder knows what was dropped."""
    names = [f"name {i}" for i in range(ROWS)]
    table = frame(half=[np.nan, 1.0] * (ROWS // 2), **{"last, first": names})
    data, out = tmp_path / "rows.csv", tmp_path / "run"
    table.to_csv(data, index=False)
    assert "--drop half" in complaint("train", data, "--out", out, *FAST)
    words = ("train", data, "--out", out, "--drop", 'half,"last, first"', *FAST)
    assert f"{ROWS * 8 // 10} training rows of 2 columns" in done(*words)
    done("evaluate", out)
    for scored in (table, table.assign(**{"x": table.x.astype(str), "last, first": "?"})):
        scored.to_csv(tmp_path / "raw.csv", index=False)
        done("log-prob", out, "--data", tmp_path / "raw.csv", "--out", tmp_path / "scores.csv")
        assert np.isfinite(pd.read_csv(tmp_path / "scores.csv")["log_prob"]).all()
    assert "got 'nam': the closest names" in complaint(
        "train", data, "--out", tmp_path / "b", "--drop", "nam"
    )


@pytest.mark.filterwarnings("default:column:UserWarning")
def test_equal_rows_stay_in_one_part_and_unlikely_columns_are_named(tmp_path):
    few = frame().head(40)
    spent = np.where(np.arange(ROWS) % 4 > 0, 0.0, np.random.default_rng(3).uniform(1, 9, ROWS))
    for name, table, words in (
        ("few", pd.concat([few] * 3), ["80 rows of the table repeat others"]),
        ("spike", frame(spent=spent), ["column 'spent' is 0 in 75 % of rows: no density"]),
        ("id", frame(key=np.arange(ROWS)), ["'key'", "row numbers", "--drop key"]),
    ):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        said = run("train", tmp_path / f"{name}.csv", "--out", tmp_path / name, *FAST)
        assert said.status == 0
        assert all(word in said.out + said.err for word in words)
    assert "note  column 'spent' is 0 in" in run("check", tmp_path / "spike", "--rows", 20).out
