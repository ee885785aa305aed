"""Stiff and odd densities: trained to a sensible result, or refused with a precise reason."""

import os
import re
import resource
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from scipy import stats
from test_scripts_running import SMALL, complaint, run

import cnf
from cnf.datasets import TABLES, TOYS, degeneracies, load
from cnf.datasets.degenerate import on_surface
from cnf.layers import Standardize
from cnf.layers.scalings.scaling import coarse_columns
from cnf.scripts.data import ColumnChoices, open_data
from cnf.scripts.rows import no_context
from cnf.scripts.trained import TrainedModel
from cnf.training.loop import MAX_SCALING_ROWS
from cnf.training.recipes import RECIPES, choose_recipe


def rng(seed=0):
    return np.random.default_rng(seed)


def line(rows):
    x = rng().normal(size=rows)
    return np.stack([x, 2 * x + 1], axis=1)


def sphere(rows, columns):
    x = rng().normal(size=(rows, columns))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clusters(rows, columns, share, seed=0):
    """Two of unit width, a thousand apart in the first column, and their log p."""
    x = rng(seed).normal(size=(rows, columns))
    right = rng(seed + 1).random(rows) < share
    log_prob = stats.norm.logpdf(x).sum(1) + np.where(right, log(share), log(1 - share))
    x[right, 0] += 1000
    return x, log_prob


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a small flow on rows by the program: the model, finite draws, and what was said."""
    monkeypatch.setattr("cnf.scripts.training.plot", lambda *_, **__: [])

    def train(rows):
        np.save(tmp_path / "rows.npy", rows)
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # said, and no error
            found = run("train", tmp_path / "rows.npy", "--out", tmp_path / "out", *SMALL)
        assert found.status == 0, found.err
        model = TrainedModel.read(str(tmp_path / "out"))
        drawn = model.sample(no_context(300), seed=0)
        assert np.isfinite(drawn).all()
        return model, drawn, found

    return train


def density(rows):
    """Fit a small estimator with the scaling that is chosen for the rows; return it and draws."""
    _, chosen = choose_recipe(None, *rows.shape, values=rows)
    recipe = replace(chosen, hidden=(8, 8), x_features=0)
    fitted = cnf.CNFDensity(recipe=recipe, max_steps=8, random_state=0).fit(rows)
    drawn = fitted.sample(4000, random_state=0)
    assert np.isfinite(drawn).all()
    assert np.isfinite(fitted.score_samples(rows[:50])).all()
    return fitted, drawn


def test_a_line_is_reported_and_its_samples_lie_near_it(trained):
    model, drawn, said = trained(line(3000))
    assert "'x1' is a linear combination of 'x0'" in said.err
    assert "--drop x1" in said.err
    assert np.quantile(np.abs(drawn[:, 1] - 2 * drawn[:, 0] - 1), 0.9) < 0.5
    assert np.isfinite(model.score(model.data().test)[0]).all()


def test_columns_on_a_line_are_each_named_and_those_of_ordinary_tables_are_not():
    x = rng().normal(size=(500, 1)) * [1, 2, -1, 3, 0.1] + [0, 1, 0, -4, 5]
    for noise in (0.0, 1e-9):
        found = degeneracies(x + noise * rng(1).normal(size=(500, 5)), list("abcde"))
        assert [each.column for each in found] == ["b", "c", "d", "e"]
        assert all("of 'a': the rows have no density" in str(each) for each in found)
    # Fewer rows than columns lie on a plane.
    (found,) = degeneracies(rng().normal(size=(4, 6)), list("abcdef"))
    assert str(found).startswith("4 training rows of 6 columns lie on a plane: the rows have no")
    for table in map(load, ("wine", "diabetes", "iris", "breast_cancer")):
        assert degeneracies(table.values, table.columns) == []


@pytest.mark.parametrize("columns", [2, 3])
def test_a_circle_and_a_sphere_are_reported_and_fitted_nevertheless(columns):
    with pytest.warns(UserWarning, match="'x0', 'x1'.* on a curve or a curved surface"):
        radius = np.linalg.norm(density(sphere(1500, columns))[1], axis=1)
    assert 0.5 < np.median(radius) < 1.5
    assert radius.max() < 10


def test_curves_and_surfaces_are_found():
    for rows in (1000, 10_000):
        t = rng().normal(size=rows)
        spiral = np.stack([np.cos(3 * t), np.sin(3 * t), t], axis=1)
        assert all(map(on_surface, (sphere(rows, 2), sphere(rows, 3), line(rows) ** 2, spiral)))


@pytest.mark.parametrize(("count", "seed"), [(300, 0), (3000, 1)])
def test_a_density_is_no_surface(count, seed):
    random = rng(seed)
    named = {
        **{name: load(name).values for name in TABLES},
        **{name: toy.sample(count, random) for name, toy in TOYS.items()},
        "ring": sphere(count, 2) * (1 + 0.03 * random.normal(size=(count, 1))),
        "clusters": clusters(count, 2, 0.1, seed)[0],
        "cauchy": random.standard_cauchy((count, 3)),
        "normal": random.normal(size=(count, 5)),
        "skewed": random.lognormal(0, 2, (count, 2)),
    }
    found = [name for name, rows in named.items() if on_surface(rows)]
    assert found == [] or (found == ["ring"] and count == 300)


@pytest.mark.parametrize(("truth", "columns"), [(stats.cauchy(), 3), (stats.t(1.5), 1)])
def test_heavy_tails(truth, columns):
    rows = truth.rvs(size=(5000, columns), random_state=0)
    held_out = truth.rvs(size=(500, columns), random_state=1)
    fitted, drawn = density(rows)
    excess = truth.logpdf(held_out).sum(1) - fitted.score_samples(held_out)
    assert abs(excess.mean()) < 0.1 * columns
    # In the first and the last bin the curve knows of the extreme value alone.
    for share, factor in {0.01: 6, 0.05: 1.5, 0.25: 1.25, 0.75: 1.25, 0.95: 1.5, 0.99: 6}.items():
        ratio = np.quantile(drawn, share, axis=0) / truth.ppf(share)
        assert ((1 / factor < ratio) & (ratio < factor)).all()


@pytest.mark.parametrize(("columns", "share"), [(1, 0.1), (2, 0.5)])
def test_clusters_a_thousand_deviations_apart(columns, share):
    held_out, log_prob = clusters(500, columns, share, seed=5)
    fitted, drawn = density(clusters(3000, columns, share)[0])
    assert abs((log_prob - fitted.score_samples(held_out)).mean()) < 0.2
    x, right = drawn[:, 0], drawn[:, 0] > 500
    assert abs(right.mean() - share) < 0.05
    assert (np.abs(x - 1000 * right) < 6).mean() > 0.97
    assert np.std(x[np.abs(x) < 6]) < 1.5


def test_toys_and_plain_columns_are_standardised_and_odd_ones_made_normal():
    for name, toy in TOYS.items():
        rows = toy.sample(3000, rng())
        assert choose_recipe(None, *rows.shape, values=rows) == (
            "table-narrow",
            RECIPES["table-narrow"],
        ), name
    for odd in (line(300), clusters(300, 2, 0.1)[0], rng().standard_cauchy((300, 1))):
        assert choose_recipe(None, *odd.shape, values=odd)[1].scaling == "gaussianize"
        assert choose_recipe("toy", *odd.shape, values=odd)[1].scaling == "standardize"


def test_the_program_says_that_it_makes_columns_normal(trained):
    said = trained(rng().standard_cauchy((500, 2)))[-1].out
    assert "recipe table-narrow (scaling gaussianize, as columns are far from normal)" in said


def test_units_of_1e9_with_1e_9(trained):
    model, *_ = trained(rng().normal(size=(500, 2)) @ [[1.0, 0.5], [0.0, 1.0]] * [1e9, 1e-9])
    test = model.data().test
    assert abs(model.score(test)[0].mean() - model.gaussian_log_prob(test).mean()) < 0.5


def far(spread):
    """Two columns, the first of which varies by five spreads about 1e9."""
    return rng().normal(size=(300, 2)) * [5.0 * spread, 1.0] + [1e9, 0.0]


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_numbers_that_single_precision_does_not_tell_apart_are_refused(spread, tmp_path):
    """Left to it, one column of them was modelled as a constant, and the NLL was of the other."""
    told = r"got 'x0', which varies by .* float32 has one number in 64: subtract 1e\+09 from it"
    path = tmp_path / "far.npy"
    np.save(path, far(spread))
    assert re.search(told, complaint("train", path, "--out", tmp_path / "out", *SMALL))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=told):
        cnf.CNFDensity(max_steps=1).fit(far(spread))
    with pytest.raises(ValueError, match=told):
        open_data(str(path), 0, ColumnChoices(context=("x0",)))
    x = torch.from_numpy(far(20.0))
    with pytest.raises(ValueError, match="column 0, which varies by .* subtract"):
        Standardize(2).fit(x.float())
    # What the precision tells apart is taken.
    assert Standardize(2).double().fit(x).fitted
    assert coarse_columns(x, torch.float64) == {}
    for taken in (torch.from_numpy(far(10_000.0)), torch.full((50, 1), 1e9, dtype=torch.float64)):
        assert coarse_columns(taken) == {}


def test_few_rows_and_rows_that_are_the_same(tmp_path):
    density(rng().normal(size=(5, 2)))
    few = rng().normal(size=(2, 2))
    np.save(tmp_path / "few.npy", few)
    said = complaint("train", tmp_path / "few.npy", "--out", tmp_path / "out")
    assert "at least 10 rows, to split them 80/10/10; got 2" in said
    with pytest.raises(ValueError, match="at least 3 rows, two to train on and one .*got 2"):
        cnf.fit(cnf.ffjord(2, hidden=(8,)), torch.from_numpy(few).float(), steps=1)
    same = np.ones((5, 2))
    for rows, message in ((few, "2 sample.* minimum of 3"), (same, "a constant has no density")):
        with pytest.raises(ValueError, match=message):
            cnf.CNFDensity(max_steps=1).fit(rows)


def write_rows(path, rows):
    found = np.lib.format.open_memmap(path, "w+", np.float64, (rows, 2))
    for start in range(0, rows, 100_000):
        x = rng(start).normal(size=min(100_000, rows - start))
        found[start : start + len(x)] = np.stack([x, np.sin(2 * x) + 0.3 * x[::-1]], axis=1)
    found.flush()
    return found.nbytes


def test_a_mapped_file_is_not_held_many_times(tmp_path, monkeypatch):
    scaled, fit, size = [], Standardize.fit, write_rows(tmp_path / "many.npy", 300_000)
    tracemalloc.start()
    data = open_data(str(tmp_path / "many.npy"), 0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.train) == 240_000
    assert kept < 2 * size
    assert peak < 7 * size
    monkeypatch.setattr(Standardize, "fit", lambda *rows: scaled.append(len(rows[1])) or fit(*rows))
    flow = cnf.ffjord(2, hidden=(8,))
    cnf.fit(flow, torch.from_numpy(data.train.x).float(), objective="matching", steps=2)
    assert scaled == [MAX_SCALING_ROWS]
    np.testing.assert_allclose(flow.layers[-1].scale, data.train.x.std(0), rtol=0.01)


@pytest.mark.slow
def test_ten_million_rows(tmp_path):
    """In a process of its own, whose peak is then its own."""
    write_rows(tmp_path / "many.npy", 10_000_000)
    words = ["-m", "cnf.scripts", "train", "many.npy", "--out", "out", "--steps", "20"]
    options = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = subprocess.check_output([sys.executable, *words], **options)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "of 1000000 held-out rows one in 50" in said
    assert used.ru_maxrss < 2 * 2**20  # KiB
    assert used.ru_utime - before < 180
