"""The bundled tables, names, and collinear columns."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine

from cnf.datasets import TABLES, Table, collinear_columns, load

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 400)) * [[1.0], [1e3], [1e-3]] + [[0.0], [5e4], [1.0]]


def test_tables_have_their_published_shapes(tmp_path):
    np.save(tmp_path / "pairs.npy", np.ones((3, 2)))
    assert load(str(tmp_path / "pairs.npy")).name == "pairs"
    tables = {name: load(name) for name in TABLES}
    assert {table.name: table.values.shape for table in tables.values()} == {
        "digits": (1797, 64),
        "wine": (178, 13),
        "breast_cancer": (569, 30),
        "diabetes": (442, 10),
        "iris": (150, 4),
    }
    assert all(np.isfinite(table.values).all() for table in tables.values())
    assert tables["wine"].columns == tuple(load_wine().feature_names)
    np.testing.assert_array_equal(tables["wine"].values, load_wine().data)


def test_digits_are_dequantised_with_fixed_noise():
    values = load("digits").values
    np.testing.assert_array_equal(values, load("digits").values)
    np.testing.assert_array_equal(np.floor(values), load_digits().data)
    noise = values % 1
    assert noise.mean() == pytest.approx(0.5, abs=0.005)
    assert noise.var() == pytest.approx(1 / 12, abs=0.002)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("8gausians", "got '8gausians': the closest names are 8gaussians, .*"),
        ("Moon", "got 'Moon': the closest names are moons, .*"),
        ("breastcancer", r"are breast_cancer, .*\.csv, .*\.npz:ARRAY or \.parquet also works"),
        ("moons", r"got the toy 'moons': use cnf\.datasets\.TOYS\['moons'\]"),
        ("fan", r"got the toy 'fan': use cnf\.datasets\.CONDITIONAL_TOYS\['fan'\]"),
        *((path, "") for path in ("missing.csv", "no/such/file", "notes.txt", ".", "")),
    ],
)
def test_names_and_paths_that_are_no_tables(name, message):
    with pytest.raises(ValueError, match=r"^Expected [^\n]*" + message):
        load(name)


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


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (np.stack([A, B, A, C, 2 * B - 1e6 * C, C + 1], 1), {2: (0,), 4: (1, 3), 5: (3,)}),
        (np.stack([A, B, A + B / 700], 1).astype(np.float32).astype(float), {2: (0, 1)}),
        (np.stack([A, A + 1e-4 * RNG.normal(size=400), B], 1), {}),
        (RNG.normal(size=(3, 5)), {2: (0, 1), 3: (0, 1), 4: (0, 1)}),  # fewer rows than columns
    ],
)
def test_collinear_columns(columns, found):
    assert collinear_columns(columns) == found
