"""Rivals' programs, and log-masses from parameters as their libraries have them."""

import json
import os
import sys
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import truncnorm

from cnf.scripts.benchmarks import rival_programs
from cnf.scripts.benchmarks.compared import TABLE_RIVALS
from cnf.scripts.benchmarks.density import StandardizedSplit
from cnf.scripts.benchmarks.rival_programs import fit_rival, table_rivals
from cnf.scripts.benchmarks.rivals.exchange import Exchange
from cnf.scripts.benchmarks.rivals.forest import answers, cell_log_mass, log_mass
from cnf.scripts.benchmarks.rivals.vine import ended_within

STEPS = {"x": 0.5, "k": 1.0, "c": None}


def leaves(**columns):
    return pd.DataFrame(columns)


def test_the_cells_of_a_truncated_normal_sum_to_one_and_are_integrals():
    low, high, mean, sd = -1.25, 7.25, 0.3, 2.0
    x = np.arange(-3, 10, 0.5)
    each = pd.DataFrame([{"mean": mean, "sd": sd, "min": low, "max": high}] * len(x))
    found = np.exp(cell_log_mass(x, 0.5, each))
    truth = truncnorm((low - mean) / sd, (high - mean) / sd, mean, sd)
    np.testing.assert_allclose(found, truth.cdf(x + 0.25) - truth.cdf(x - 0.25), atol=1e-12)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    far = cell_log_mass(np.array([40.0]), 1.0, each[:1].assign(mean=0.0, sd=1.0, max=np.inf))
    assert far[0] == pytest.approx(truncnorm(-1.25, np.inf).logsf(39.5), abs=1e-6)


def test_a_leaf_of_equal_rows_has_a_mass_at_their_value():
    each = pd.DataFrame([{"mean": 3.0, "sd": 0.0, "min": -np.inf, "max": np.inf}] * 3)
    assert np.exp(cell_log_mass(np.array([2.0, 3.0, 4.0]), 1.0, each)).tolist() == [0, 1, 0]


def test_a_step_of_zero_gives_the_density_of_a_truncated_normal():
    low, high, mean, sd = -1.25, 7.25, 0.3, 2.0
    x = np.linspace(-2, 8, 41)
    each = pd.DataFrame([{"mean": mean, "sd": sd, "min": low, "max": high}] * len(x))
    truth = truncnorm((low - mean) / sd, (high - mean) / sd, mean, sd).logpdf(x)
    np.testing.assert_allclose(cell_log_mass(x, 0.0, each), truth, atol=1e-10)
    inside = np.abs(x - 3) < 4
    narrow = cell_log_mass(x[inside], 1e-4, each[inside]) - np.log(1e-4)
    np.testing.assert_allclose(narrow, truth[inside], atol=1e-6)
    equal = cell_log_mass(np.array([0.3, 0.4]), 0.0, each[:2].assign(sd=0.0))
    assert equal.tolist() == [np.inf, -np.inf]


@pytest.fixture
def forest():
    """Two trees of two leaves, split by k at 1.5."""
    bounds = leaves(tree=[0, 0, 1, 1], nodeid=[1, 2, 1, 2], cvg=[0.25, 0.75, 0.5, 0.5])
    params = pd.DataFrame(
        [
            {"tree": t, "nodeid": n, "variable": v, "mean": m, "sd": 1.0, "min": a, "max": b}
            for t in (0, 1)
            for n, m, cut in ((1, 1.0, (-np.inf, 1.5)), (2, 2.0, (1.5, np.inf)))
            for v, a, b in (("x", -np.inf, np.inf), ("k", *cut))
        ]
    )
    shares = leaves(
        tree=[0, 0, 0, 1, 1], nodeid=[1, 2, 2, 1, 2], variable="c", value=[0, 0, 1, 0, 1]
    )
    shares["prob"] = [1.0, 0.4, 0.6, 1.0, 1.0]
    return SimpleNamespace(bnds=bounds, params=params, class_probs=shares)


def _grid():
    """Rows of all cells of the grid that have some mass."""
    grid = [(x, k, c) for x in np.arange(-8, 12, 0.5) for k in range(-6, 11) for c in (0, 1)]
    return pd.DataFrame(grid, columns=[*STEPS])


def test_the_mass_of_a_forest_is_the_mean_of_its_trees(forest):
    rows = _grid()
    leaf = np.where(rows["k"] < 1.5, 1, 2)[:, None].repeat(2, 1)
    found = log_mass(rows, leaf, forest, STEPS)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-6)
    assert (found[(rows["k"] < 1.5) & (rows["c"] == 1)] == -np.inf).all()


def test_the_density_of_a_forest_integrates_to_one(forest):
    """Both columns by their density; no row of the grid is on the bound at 1.5."""
    width, steps = 0.05, {"x": 0.0, "k": 0.0}
    grid = np.stack(np.meshgrid(*[np.arange(-6, 10, width) + width / 2] * 2), -1).reshape(-1, 2)
    rows = pd.DataFrame(grid, columns=[*steps])
    leaf = np.where(rows["k"] < 1.5, 1, 2)[:, None].repeat(2, 1)
    density = np.exp(log_mass(rows, leaf, forest, steps))
    assert density.sum() * width**2 == pytest.approx(1.0, abs=1e-3)
    below = density[rows["k"] < 1.5].sum() * width**2
    assert below == pytest.approx((0.25 + 0.5) / 2, abs=1e-3)


def test_answers_of_a_forest_are_those_of_its_masses(forest):
    rows = _grid()
    masks = np.array([[2, 2, 2], [2, 0, 1], [0, 2, 1], [1, 1, 2]])
    whole, *found = map(pd.Series, np.exp(answers(rows, forest, STEPS, masks)).T)
    assert whole.sum() == pytest.approx(1.0, abs=1e-6)
    leaf = np.where(rows["k"] < 1.5, 1, 2)[:, None].repeat(2, 1)
    np.testing.assert_allclose(whole, np.exp(log_mass(rows, leaf, forest, STEPS)), atol=1e-12)
    for mine, (asked, given) in zip(
        found, [("x", ["c"]), ("k", ["c"]), ("c", ["x", "k"])], strict=True
    ):
        both = whole.groupby([rows[name] for name in (asked, *given)]).transform("sum")
        alone = whole.groupby([rows[name] for name in given]).transform("sum")
        np.testing.assert_allclose(mine, both / alone, atol=1e-6)
    nothing = answers(rows[:1].assign(c=5), forest, STEPS, masks[1:2])
    assert np.isnan(nothing).all()


PROGRAM = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert sys.argv[2:] == ["--budget", "1.5", "--seed", "3"], sys.argv
header, *train = (folder / "train.csv").read_text().split()
_, *test = (folder / "test.csv").read_text().split()
_, *validation = (folder / "validation.csv").read_text().split()
assert json.loads((folder / "columns.json").read_text()) == {"x0": 0.0, "x1": 0.0}
(folder / "draws.csv").write_text("\\n".join([header, *train]))
log_prob = [-sum(map(float, each.split(","))) for each in test]
(folder / "log_mass.csv").write_text("\\n".join(["log_mass", *map(repr, log_prob)]))
(folder / "chosen.txt").write_text(f"{len(validation)} rows to choose by")
(folder / "seconds.json").write_text('{"training": 0.25}')
"""


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    return StandardizedSplit(*(rng.normal(size=(count, 2)) for count in (30, 4, 5)))


def test_a_program_gives_a_density_of_the_test_rows(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(rival_programs, "program_of", lambda _: tmp_path / "program.py")
    (tmp_path / "program.py").write_text(PROGRAM)
    fitted = fit_rival(parts, 1.5, 3, method="vine", python=Path(sys.executable))
    np.testing.assert_array_equal(fitted.log_prob(parts.test), -(parts.test.sum(1)))
    np.testing.assert_array_equal(fitted.sample(5, 0), parts.train[:5])
    assert (fitted.chosen, fitted.seconds) == ("4 rows to choose by", 0.25)
    with pytest.raises(ValueError, match="Expected the test rows; got others: vine has scored"):
        fitted.log_prob(parts.train)
    with pytest.raises(RuntimeError, match="vine ended with status 1: AssertionError"):
        fit_rival(parts, 1.0, 3, method="vine", python=Path(sys.executable))


def test_rivals_without_densities_or_libraries_are_one_line(monkeypatch):
    monkeypatch.setitem(TABLE_RIVALS, "vine", "numpy")
    monkeypatch.setitem(TABLE_RIVALS, "arf", "no-such-library")
    found = table_rivals([f"vine={sys.executable}"])
    assert found == {"vine": (Path(sys.executable), f"numpy {np.__version__}")}
    with pytest.raises(ValueError, match="among arf, vine, circuit; got argn, which does not"):
        table_rivals(["argn=python"])
    with pytest.raises(ValueError, match="no-such-library in the environment of arf; got none by"):
        table_rivals([f"arf={sys.executable}"])


def test_programs_of_densities_refuse_categories(tmp_path):
    (tmp_path / "train.csv").write_text("x,c\n1.5,2\n")
    real = Exchange(tmp_path, 1.0, 0, {"x": 0.0, "c": 0.0})
    assert real.read_numbers("train").tolist() == [[1.5, 2.0]]
    for step in (None, 1.0):
        with pytest.raises(ValueError, match="Expected columns of real numbers; got c"):
            Exchange(tmp_path, 1.0, 0, {"x": 0.0, "c": step}).read_numbers("train")
    real.write(real.frame([[1.0, 2.0]]), [0.5], "all")
    assert (tmp_path / "draws.csv").read_text().split() == ["x,c", "1.0,2.0"]
    assert (tmp_path / "chosen.txt").read_text() == "all"
    assert json.loads((tmp_path / "seconds.json").read_text()) == {}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fit_counts_where_it_ends_in_time(tmp_path):
    assert ended_within(60, (tmp_path / "file").touch)
    assert (tmp_path / "file").exists()
    assert not ended_within(60, lambda: os._exit(1))
    assert not ended_within(0.1, lambda: sleep(600))


@pytest.mark.parametrize("method", TABLE_RIVALS)
def test_densities_of_rivals_integrate_to_one(method):
    """With CNF_RIVALS=NAME=PYTHON,…, as --rivals has it, by the programs themselves."""
    given = [each for each in os.environ.get("CNF_RIVALS", "").split(",") if each]
    pythons = {name: python for name, (python, _) in table_rivals(given).items()}
    if method not in pythons:
        pytest.skip(f"CNF_RIVALS names no environment of {method}")
    rng, width = np.random.default_rng(0), 0.1
    x = rng.normal(size=(700, 1)) + 0.3 * rng.normal(size=(700, 2))
    grid = np.stack(np.meshgrid(*[np.arange(-6, 6, width) + width / 2] * 2), -1).reshape(-1, 2)
    split = StandardizedSplit(x[:600], x[600:], grid)
    fitted = fit_rival(split, 5.0, 0, method=method, python=pythons[method])
    assert np.exp(fitted.log_prob(grid)).sum() * width**2 == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(np.cov(fitted.sample(600, 0).T), np.cov(x.T), atol=0.25)
