"""Collinear columns: found where they are exact, and only there."""

import numpy as np

from cnf.datasets.collinear import collinear_columns

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 400)) * [[1.0], [1e3], [1e-3]] + [[0.0], [5e4], [1.0]]


def test_combinations_of_columns_before_are_named():
    columns = [A, B, A, C, 2 * B - 1e6 * C, C + 1]
    found = collinear_columns(np.stack(columns, axis=1))
    assert found == {2: (0,), 4: (1, 3), 5: (3,)}


def test_single_precision_hides_none():
    columns = np.stack([A, B, A + B / 700], axis=1).astype(np.float32).astype(np.float64)
    assert collinear_columns(columns) == {2: (0, 1)}


def test_near_duplicates_have_a_density():
    assert collinear_columns(np.stack([A, A + 1e-4 * RNG.normal(size=400), B], axis=1)) == {}


def test_fewer_rows_than_columns_determine_the_later_ones():
    found = collinear_columns(RNG.normal(size=(3, 5)))
    assert set(found) == {2, 3, 4}
