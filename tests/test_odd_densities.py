"""Stiff and odd densities: trained to a sensible result, or refused with a precise reason."""

import os
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
from test_scripts_running import SMALL, run

import cnf
from cnf.datasets import TABLES, TOYS, degeneracies, load
from cnf.datasets.surface import on_surface
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
    """Trains a small flow on rows by the program: the folder as a model, and what was said."""
    monkeypatch.setattr("cnf.scripts.train.plot", lambda *_, **__: [])

    def train(rows):
        np.save(tmp_path / "rows.npy", rows)
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # said, and no error
            found = run("train", tmp_path / "rows.npy", "--out", tmp_path / "out", *SMALL)
        assert found.status == 0, found.err
        return TrainedModel.read(str(tmp_path / "out")), found

    return train


def density(rows, **options):
    """A small estimator with the scaling that is chosen for the rows, fitted in a few steps."""
    _, chosen = choose_recipe(None, *rows.shape, values=rows)
    recipe = replace(chosen, hidden=(8, 8), x_features=0)
    return cnf.CNFDensity(recipe=recipe, max_steps=8, random_state=0, **options).fit(rows)


# --- rows without a density -----------------------------------------------------------------------


def test_a_line_is_reported_and_its_samples_lie_near_it(trained):
    model, said = trained(line(3000))
    assert "'x1' is a linear combination of 'x0'" in said.err
    assert "--drop x1" in said.err
    drawn = model.sample(no_context(300), seed=0)
    assert np.isfinite(drawn).all()
    assert np.quantile(np.abs(drawn[:, 1] - 2 * drawn[:, 0] - 1), 0.9) < 0.5
    assert np.isfinite(model.score(model.data().test)[0]).all()


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_five_columns_on_a_line_are_each_named(noise):
    x = rng().normal(size=(500, 1))
    rows = x * [1, 2, -1, 3, 0.1] + [0, 1, 0, -4, 5] + noise * rng(1).normal(size=(500, 5))
    found = degeneracies(rows, ["a", "b", "c", "d", "e"])
    assert [each.column for each in found] == ["b", "c", "d", "e"]
    assert all("of 'a': the rows have no density" in str(each) for each in found)


@pytest.mark.parametrize("columns", [2, 3])
def test_a_circle_and_a_sphere_are_reported_and_fitted_nevertheless(columns):
    rows = sphere(1500, columns)
    with pytest.warns(UserWarning, match="'x0', 'x1'.* on a curve or a curved surface"):
        fitted = density(rows)
    assert np.isfinite(fitted.score_samples(rows[:50])).all()
    drawn = np.linalg.norm(fitted.sample(300, random_state=0), axis=1)
    assert 0.5 < np.median(drawn) < 1.5
    assert drawn.max() < 10


def test_fewer_rows_than_columns_lie_on_a_plane():
    (found,) = degeneracies(rng().normal(size=(4, 6)), list("abcdef"))
    assert str(found).startswith("4 training rows of 6 columns lie on a plane: the rows have no")


def curve(rows):
    t = rng().normal(size=rows)
    return np.stack([np.cos(3 * t), np.sin(3 * t), t], axis=1)


@pytest.mark.parametrize("rows", [1000, 30_000])
@pytest.mark.parametrize(
    "made", [lambda n: sphere(n, 2), lambda n: sphere(n, 3), lambda n: line(n) ** 2, curve]
)
def test_curves_and_surfaces_are_found(made, rows):
    assert on_surface(made(rows))


def test_a_density_is_no_surface():
    named = {name: load(name).values for name in TABLES}
    for count in (300, 1000, 5000):
        for seed in range(2):
            random = rng(seed)
            named |= {name: toy.sample(count, random) for name, toy in TOYS.items()}
            named["ring"] = sphere(count, 2) * (1 + 0.03 * random.normal(size=(count, 1)))
            named["clusters"] = clusters(count, 2, 0.1, seed)[0]
            named["cauchy"] = random.standard_cauchy((count, 3))
            named["normal"] = random.normal(size=(count, 5))
            named["skewed"] = random.lognormal(0, 2, (count, 2))
            found = [name for name, rows in named.items() if on_surface(rows)]
            assert found == [] or (found == ["ring"] and count == 300)


def test_columns_of_ordinary_tables_have_no_warning():
    for name in ("wine", "diabetes", "iris", "breast_cancer"):
        table = load(name)
        assert degeneracies(table.values, table.columns) == []


# --- heavy tails, and clusters far apart ----------------------------------------------------------

HEAVY = {"cauchy": stats.cauchy(), "student": stats.t(1.5)}


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_tails(name, columns):
    truth = HEAVY[name]
    rows = truth.rvs(size=(5000, columns), random_state=0)
    held_out = truth.rvs(size=(500, columns), random_state=1)
    fitted = density(rows)
    excess = truth.logpdf(held_out).sum(1) - fitted.score_samples(held_out)
    assert abs(excess.mean()) < 0.1 * columns
    drawn = fitted.sample(4000, random_state=0)
    assert np.isfinite(drawn).all()
    # In the first and the last bin the curve knows of the extreme value alone.
    factors = {0.01: 4, 0.05: 1.5, 0.25: 1.25, 0.75: 1.25, 0.95: 1.5, 0.99: 4}
    for share, factor in factors.items():
        ratio = np.quantile(drawn, share, axis=0) / truth.ppf(share)
        assert ((1 / factor < ratio) & (ratio < factor)).all()


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("columns", [1, 2])
def test_clusters_a_thousand_deviations_apart(columns, share):
    held_out, log_prob = clusters(500, columns, share, seed=5)
    fitted = density(clusters(5000, columns, share)[0])
    assert abs((log_prob - fitted.score_samples(held_out)).mean()) < 0.2
    drawn = fitted.sample(2000, random_state=0)[:, 0]
    right = drawn > 500
    assert abs(right.mean() - share) < 0.05
    assert (np.abs(drawn - 1000 * right) < 6).mean() > 0.97
    assert np.std(drawn[np.abs(drawn) < 6]) < 1.5


def test_toys_and_plain_columns_are_standardised_and_odd_ones_made_normal():
    for name, toy in TOYS.items():
        rows = toy.sample(3000, rng())
        assert choose_recipe(None, *rows.shape, values=rows) == ("toy", RECIPES["toy"]), name
    for odd in (line(300), clusters(300, 2, 0.1)[0], rng().standard_cauchy((300, 1))):
        assert choose_recipe(None, *odd.shape, values=odd)[1].scaling == "gaussianize"
        assert choose_recipe("toy", *odd.shape, values=odd)[1].scaling == "standardize"


def test_the_program_says_that_it_makes_columns_normal(trained):
    model, said = trained(rng().standard_cauchy((500, 2)))
    assert "recipe toy (scaling gaussianize, as columns are far from normal)" in said.out
    assert np.isfinite(model.sample(no_context(200), seed=0)).all()


# --- units ----------------------------------------------------------------------------------------


def test_units_of_1e9_with_1e_9(trained):
    rows = rng().normal(size=(500, 2)) @ [[1.0, 0.5], [0.0, 1.0]] * [1e9, 1e-9]
    model, _ = trained(rows)
    test = model.data().test
    assert abs(model.score(test)[0].mean() - model.gaussian_log_prob(test).mean()) < 0.5
    assert np.isfinite(model.sample(no_context(100), seed=0)).all()


FAR = rng().normal(size=(300, 2)) * [5.0, 1.0] + [1e9, 0.0]
ADVICE = "where float32 has one number in 64: subtract 1e+09 from it"


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_numbers_that_single_precision_does_not_tell_apart_are_refused(spread, tmp_path):
    """Left to it, one column of them was modelled as a constant, and the NLL was of the other."""
    rows = FAR * [spread, 1] + [1e9 * (1 - spread), 0]
    np.save(tmp_path / "far.npy", rows)
    said = run("train", tmp_path / "far.npy", "--out", tmp_path / "out", *SMALL)
    assert said.status == 2
    assert "got 'x0', which varies by" in said.err
    assert ADVICE in said.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"'x0', which varies by .* subtract 1e\+09 from it"):
        cnf.CNFDensity(max_steps=1).fit(rows)


def test_what_single_precision_tells_apart_is_taken():
    assert coarse_columns(torch.from_numpy(FAR * [10_000.0, 1] + [-1e13 + 1e9, 0])) == {}
    assert coarse_columns(torch.from_numpy(FAR), torch.float64) == {}
    assert coarse_columns(torch.full((50, 1), 1e9, dtype=torch.float64)) == {}


def test_a_layer_refuses_what_its_precision_does_not_tell_apart():
    x = torch.from_numpy(FAR * [20, 1] + [-19e9, 0])
    with pytest.raises(ValueError, match="column 0, which varies by .* subtract"):
        Standardize(2).fit(x.float())
    assert Standardize(2).double().fit(x).fitted


def test_a_context_too(tmp_path):
    np.save(tmp_path / "far.npy", FAR)
    with pytest.raises(ValueError, match="'x0', which varies by .* subtract"):
        open_data(str(tmp_path / "far.npy"), 0, ColumnChoices(context=("x0",)))


# --- few rows and many ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_too_few_rows_in_a_file(rows, tmp_path):
    np.save(tmp_path / "few.npy", rng().normal(size=(rows, 2)))
    said = run("train", tmp_path / "few.npy", "--out", tmp_path / "out")
    assert said.status == 2
    assert f"at least 10 rows, to split them 80/10/10; got {rows}" in said.err


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_in_python(rows):
    few = torch.randn(rows, 2)
    with pytest.raises(ValueError, match=f"at least 3 rows, two to train on and one .*got {rows}"):
        cnf.fit(cnf.ffjord(2, hidden=(8,)), few, steps=1)
    with pytest.raises(ValueError, match=f"{rows} sample.* minimum of 3"):
        cnf.CNFDensity(max_steps=1).fit(few.numpy())


def test_rows_that_are_all_the_same():
    with pytest.raises(ValueError, match="a constant has no density"):
        cnf.CNFDensity(max_steps=1).fit(np.ones((5, 2)))


def test_five_rows_are_fitted():
    rows = rng().normal(size=(5, 2))
    fitted = density(rows)
    assert np.isfinite(fitted.score_samples(rows)).all()
    assert np.isfinite(fitted.sample(20, random_state=0)).all()


def write_rows(path, rows):
    """Two columns that depend on each other."""
    found = np.lib.format.open_memmap(path, "w+", np.float64, (rows, 2))
    for start in range(0, rows, 100_000):
        x = rng(start).normal(size=min(100_000, rows - start))
        found[start : start + len(x)] = np.stack([x, np.sin(2 * x) + 0.3 * x[::-1]], axis=1)
    found.flush()
    return found.nbytes


def test_a_mapped_file_is_not_held_many_times(tmp_path, monkeypatch):
    size = write_rows(tmp_path / "many.npy", 300_000)
    tracemalloc.start()
    data = open_data(str(tmp_path / "many.npy"), 0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.train) == 240_000
    assert kept < 2 * size
    assert peak < 5 * size
    scaled = []
    fit = Standardize.fit
    monkeypatch.setattr(Standardize, "fit", lambda *rows: scaled.append(len(rows[1])) or fit(*rows))
    flow = cnf.ffjord(2, hidden=(8,))
    cnf.fit(flow, torch.from_numpy(data.train.x).float(), objective="matching", steps=2)
    assert scaled == [MAX_SCALING_ROWS]
    torch.testing.assert_close(
        flow.layers[-1].scale.double().numpy(), data.train.x.std(0), rtol=0.01, atol=0
    )


@pytest.mark.slow
def test_ten_million_rows(tmp_path):
    """In a process of its own, whose peak is then its own."""
    write_rows(tmp_path / "many.npy", 10_000_000)
    words = ["train", str(tmp_path / "many.npy"), "--out", str(tmp_path / "out"), "--steps", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "cnf.scripts", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "of 1000000 held-out rows one in 50" in done.stdout
    assert used.ru_maxrss < 2 * 2**20  # KiB
    assert used.ru_utime - before < 180
