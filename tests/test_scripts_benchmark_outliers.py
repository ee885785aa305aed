"""The benchmark of outlier detectors: its protocol, its cells, and what it keeps."""

import json

import numpy as np
import pytest
from test_scripts_running import complaint, done

from cnf.scripts.benchmarks import outliers
from cnf.scripts.benchmarks.outliers import CANDIDATES, DETECTORS, OutlierSplit


@pytest.fixture
def folder(tmp_path):
    """A folder with a small set, whose outliers lie far out, and another without outliers."""
    rng = np.random.default_rng(0)
    normal, far = rng.normal(size=(150, 3)), rng.normal(size=(20, 3)) + 6
    rows = np.concatenate([normal, far]) @ np.diag([1.0, 10.0, 0.0])
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "9_far.npz", X=rows, y=np.arange(170) >= 150)
    np.savez(tmp_path / "adbench" / "8_all_normal.npz", X=normal, y=np.zeros(150))
    return tmp_path


def command(folder, section, *more: object) -> tuple[object, ...]:
    given = ("--data-dir", folder, "--seeds", 1, "--budget", 0.3, "--section", section)
    return ("benchmark", "outliers", *given, *more)


def test_half_of_the_normal_rows_train_and_all_outliers_test():
    x, y = np.arange(40.0).reshape(20, 2) ** 2, np.arange(20) % 5 == 0
    split = OutlierSplit.of(x, y, 0)
    assert (len(split.train), len(split.test), split.outlier.sum()) == (8, 12, 4)
    assert split.contamination == 0
    np.testing.assert_allclose(split.train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(split.train.std(0), 1)
    again, other = OutlierSplit.of(x, y, 0), OutlierSplit.of(x, y, 1)
    assert np.array_equal(split.train, again.train)
    assert not np.array_equal(split.train, other.train)


def test_half_of_all_rows_train_where_they_are_contaminated():
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    split = OutlierSplit.of(x, y, 0, contaminated=True)
    assert (len(split.train), len(split.test)) == (20, 20)
    assert round(20 * split.contamination) + split.outlier.sum() == 20


def test_large_sets_are_cut(monkeypatch):
    monkeypatch.setattr(outliers, "MAX_SET_ROWS", 10)
    split = OutlierSplit.of(np.random.default_rng(0).random((40, 2)), np.zeros(40), 0)
    assert len(split.train) + len(split.test) == 10


@pytest.mark.parametrize("section", ["novelty", "contaminated"])
def test_each_detector_finds_far_rows_and_its_cell_is_kept(folder, section):
    given = command(folder, section, "--out", folder / "out")
    text = done(*given)
    (cells,) = (line.split() for line in text.splitlines() if line.startswith("9_far"))
    assert "8_all_normal" not in text
    if section == "novelty":
        assert min(map(float, cells[2::2])) > 95  # the others are seconds
    else:
        assert "cnf alone is told the share" in text
        assert float(cells[2]) > 95  # the others may take the group for normal
    kept = (folder / "out" / "outliers.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"]["detector"] for line in kept} == {*DETECTORS}
    (again,) = (line.split() for line in done(*given).splitlines() if line.startswith("9_far"))
    assert again == [*cells, "cached"]


def test_every_score_of_a_flow_is_compared(folder):
    text = done(*command(folder, "scores", "--sets", "9_far"))
    for name in CANDIDATES:
        assert name in text


def test_mistakes_are_named(folder):
    told = complaint(*command(folder, "novelty", "--sets", "gone"), status=2)
    assert "Expected --sets among 8_all_normal, 9_far; got 'gone'" in told
    told = complaint(*command(folder, "novelty", "--sets", "8_all_normal"), status=2)
    assert "Expected sets with outliers and normal rows to test; got 8_all_normal" in told
    told = complaint("benchmark", "outliers", "--data-dir", folder / "adbench", status=2)
    assert "Expected a folder with adbench/*.npz" in told
