"""The bundled tables, names, and splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_wine

from cnf.datasets import TABLES, Table, closest, load, split

SHAPES = {
    "digits": (1797, 64),
    "wine": (178, 13),
    "breast_cancer": (569, 30),
    "diabetes": (442, 10),
    "iris": (150, 4),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    table = load(name)
    assert table.name == name
    assert table.values.shape == SHAPES[name]
    assert np.isfinite(table.values).all()


def test_wine_has_its_own_names_and_values():
    table, bunch = load("wine"), load_wine()
    assert table.columns == tuple(bunch.feature_names)
    np.testing.assert_array_equal(table.values, bunch.data)


def test_digits_are_dequantised_with_fixed_noise():
    table = load("digits")
    np.testing.assert_array_equal(table.values, load("digits").values)
    np.testing.assert_array_equal(np.floor(table.values), load_digits().data)
    noise = table.values % 1
    assert noise.mean() == pytest.approx(0.5, abs=0.005)
    assert noise.var() == pytest.approx(1 / 12, abs=0.002)


def test_load_reads_a_path(tmp_path):
    file = tmp_path / "pairs.npy"
    np.save(file, np.ones((3, 2)))
    assert load(str(file)).name == "pairs"


@pytest.mark.parametrize(
    ("name", "near"),
    [("8gausians", "8gaussians"), ("Moon", "moons"), ("breastcancer", "breast_cancer")],
)
def test_an_unknown_name_lists_the_closest(name, near):
    with pytest.raises(ValueError, match=f"got '{name}': the closest names are {near}, ") as error:
        load(name)
    assert ".csv, .npy, .npz, .npz:ARRAY or .parquet also works" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_toy_is_no_table():
    with pytest.raises(ValueError, match="got the toy 'moons': use"):
        load("moons")


@pytest.mark.parametrize("path", ["missing.csv", "no/such/file", "notes.txt", ".", ""])
def test_what_looks_like_a_path_is_read_as_one(path):
    with pytest.raises(ValueError, match=r"^Expected"):
        load(path)


def test_closest_is_blind_to_case_and_always_has_an_answer():
    assert closest("WINE", ["iris", "wine"])[0] == "wine"
    assert len(closest("???", ["a", "b", "c", "d"])) == 3


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        (np.zeros(3), ("x",), r"got float64 of shape \(3,\)"),
        (np.zeros((3, 1), np.float32), ("x",), "got float32"),
        (np.zeros((3, 2)), ("x",), "each of 2 columns; got 1 names"),
        (np.zeros((3, 2)), ("x", "x"), r"got \['x'\] repeated"),
        (np.zeros((3, 2)), ("x", " "), r"blank names at columns \[2\]"),
    ],
)
def test_a_table_checks_itself(values, columns, message):
    with pytest.raises(ValueError, match=message):
        Table("table", values, columns)


@pytest.mark.parametrize("rows", [1, 9])
def test_too_few_rows(rows):
    with pytest.raises(ValueError, match=f"at least 10 rows, .*; got {rows}: add rows"):
        split(rows, seed=0)


@given(rows=st.integers(10, 500), seed=st.integers(0, 2**32))
def test_split_is_disjoint_exhaustive_and_repeatable(rows, seed):
    parts, again = split(rows, seed), split(rows, seed)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(rows))
    assert len(parts.validation) == len(parts.test) == rows // 10
    np.testing.assert_array_equal(parts.train, again.train)
    np.testing.assert_array_equal(parts.test, again.test)


def test_split_depends_on_the_seed():
    assert not np.array_equal(split(100, 0).test, split(100, 1).test)


@pytest.mark.parametrize(
    ("rows", "seed", "message"), [(9, 0, "at least 10 rows"), (10, -1, "a seed; got -1")]
)
def test_split_refuses(rows, seed, message):
    with pytest.raises(ValueError, match=message):
        split(rows, seed)
