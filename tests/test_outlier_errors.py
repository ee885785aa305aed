"""The benchmark of planted errors: `explain` names them on a small set."""

from dataclasses import replace

import numpy as np
import pytest

from cnf.scripts.benchmarks import outlier_errors
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.outlier_errors import SHIFT, ShiftedRows, lines


def test_a_row_has_one_shifted_value():
    normal = np.random.default_rng(0).normal(size=(50, 4)) * [1, 5, 0, 1]  # a constant column
    rows = ShiftedRows.of(normal)
    before = normal[np.random.default_rng(0).permutation(50)][:10]
    moved = np.abs(rows.test - before) / np.where(rows.train.std(0), rows.train.std(0), 1)
    expected = np.where(np.arange(4) == rows.places[:, None], SHIFT, 0)
    np.testing.assert_allclose(moved, expected, atol=1e-9)
    assert 2 not in rows.places


def test_planted_errors_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(outlier_errors, "ERROR_SETS", ("small",))
    options = BenchmarkOptions("outliers", budget=0.3, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"Expected a folder with adbench/\*.npz"):
        list(lines(options))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(150, 1)) + 0.1 * rng.normal(size=(150, 3))
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "small.npz", X=values, y=np.arange(150) >= 120)
    monkeypatch.setenv("CNF_DATA", str(tmp_path))
    title, row, mean = lines(replace(options, data_dir=None))
    assert title.startswith("Rows in which a column that was moved by 5 standard deviations")
    assert (row["training rows"], row["rows"]) == (96, 24)
    assert row["first"] > 0.8
    assert mean == f"Mean over the 1 sets: {row['first']:.3f}, the least: {row['first']:.3f}"
