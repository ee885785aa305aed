"""The benchmark of tables of mixed types: its rows, its cache, and folders without its files."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_scripts_running import complaint, done

from cnf.datasets import load
from cnf.scripts.benchmarks import mixed
from cnf.scripts.benchmarks.options import BenchmarkOptions


@pytest.fixture
def folder(tmp_path):
    """A folder with a small table of a number that depends on a category."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 600)
    frame = pd.DataFrame({"group": np.array(["a", "b"])[group], "x": rng.normal(8 * group)})
    (tmp_path / "mixed").mkdir()
    frame.to_csv(tmp_path / "mixed" / "magic.csv", index=False)
    return tmp_path


def command(folder, *more: object) -> tuple[object, ...]:
    given = ("--data-dir", folder, "--tables", "magic", "--splits", 1, "--budget", 1)
    return ("benchmark", "mixed", *given, *more)


def test_a_table_is_printed_put_on_the_page_and_cached(folder):
    given = command(folder, "--out", folder / "out", "--page", folder / "page.md")
    text = done(*given)
    header, cells = (line.split() for line in text.strip().splitlines()[-2:])
    assert text.startswith("Log-mass of held-out rows on a grid, in nats")
    assert "1 s each, splits: 1, threads: 1\n" in text
    assert (header[0], cells[:4]) == ("table", ["magic", "0", "ours", "600"])
    page = (folder / "page.md").read_text()
    assert "## mixed: rows\n" in page
    assert text.strip().splitlines()[-1] in page
    assert done(*given).strip().splitlines()[-1].split() == [*cells, "cached"]


def test_the_nll_is_near_the_truth(folder):
    options = BenchmarkOptions("mixed", budget=3.0)
    table = load(str(folder / "mixed" / "magic.csv"))
    row = mixed._trial_of(options, "magic", table, 0)
    step = 1e-3  # of a number whose standard deviation is above 1
    truth = np.log(2) + 0.5 * np.log(2 * np.pi * np.e) - np.log(step)
    assert row["NLL"] == pytest.approx(truth, abs=0.5)  # without the category, 0.7 more
    assert 0 < row["± NLL"] < 0.3
    assert row["detection"] > 0.5
    assert row["shape error"] < 0.15
    assert row["nearer"] == pytest.approx(0.5, abs=0.2)
    assert row["training s"] < 10


def test_a_rival_without_its_library_is_named_with_its_error(folder):
    options = BenchmarkOptions("mixed", budget=1.0)
    table = load(str(folder / "mixed" / "magic.csv"))
    row = mixed._trial_of(options, "magic", table, 0, "arf", Path(sys.executable))
    assert row["note"].endswith("ModuleNotFoundError: No module named 'arfpy'")
    assert np.isnan(row["NLL"])


def test_a_rival_is_given_by_its_interpreter(folder):
    told = complaint(*command(folder, "--rivals", "arf=gone"), status=2)
    assert "expected NAME=PYTHON, a name among arf, argn, vine, circuit and the" in told


def test_a_folder_without_the_file_is_named_in_one_line(folder, monkeypatch):
    given = f"Expected a folder with mixed/adult.csv; got {folder}: give --data-dir DIR"
    assert given in complaint(
        *("benchmark", "mixed", "--data-dir", folder, "--tables", "adult"), status=2
    )
    monkeypatch.delenv("CNF_DATA", raising=False)
    with pytest.raises(ValueError, match="got none"):
        mixed.mixed_file(None, "adult")
