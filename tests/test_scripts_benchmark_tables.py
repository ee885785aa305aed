"""The benchmark of tables: what methods are given and reach, what is cached, how they rank."""

import math
import re
import sys
from dataclasses import replace
from itertools import count
from time import perf_counter
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import pytest
from scipy.stats import gaussian_kde, multivariate_normal, norm
from test_scripts_running import complaint, done
from torch.distributions import Distribution

import cnf
from cnf.datasets import split
from cnf.scripts.benchmarks import density, own_density, tables
from cnf.scripts.benchmarks.compared import METHODS, UCI_FILE
from cnf.scripts.benchmarks.density import FittedDensity
from cnf.scripts.benchmarks.options import BenchmarkOptions, ResultCache
from cnf.scripts.benchmarks.tables import prepare, standardized
from cnf.training.recipes import RECIPES

NAN = math.nan
SMALL_ZUKO = {"SMALL_NETWORK": {"transforms": 2, "hidden_features": (32,)}}
SMALL_ZUKO["SMALL_TRAINING"] = {"lr": 2e-2, "weight_decay": 1e-4}


def bumps(rows: int = 1500, seed: int = 0) -> np.ndarray:
    """Two bumps of x0, x1 about x0, and an independent x2."""
    rng = np.random.default_rng(seed)
    x0 = rng.choice([-2.0, 2.0], rows) + 0.5 * rng.normal(size=rows)
    return np.stack([x0, x0 + rng.normal(size=rows), 3 * rng.normal(size=rows)], 1)


def bumps_nll() -> float:
    """The true NLL of the first split's test rows, in its units."""
    table, indices = bumps(), split(1500, 0)
    x0, x1, x2 = table[indices.test].T
    mixed = np.logaddexp(norm.logpdf(x0, -2, 0.5), norm.logpdf(x0, 2, 0.5)) - math.log(2)
    log_prob = mixed + norm.logpdf(x1 - x0) + norm.logpdf(x2, scale=3)
    return float(-log_prob.mean() - np.log(table[indices.train].std(0)).sum())


def fit_normal(parts, budget, seed):
    """A method that is the standard normal."""
    size = parts.train.shape[1]
    return FittedDensity(
        lambda rows: norm.logpdf(rows).sum(1),
        lambda count, seed: np.random.default_rng(seed).normal(size=(count, size)),
        "nothing",
    )


def trial(table=None, split=0, method="cnf", budget=1.0):
    rows = bumps(60) if table is None else table
    options = BenchmarkOptions("tables", budget=budget, methods=(method,))
    return tables.trial_of(options, "wine", rows, split, method, tables.methods_of(options)[method])


@pytest.fixture
def folder(tmp_path):
    """A folder with a file of two small tables."""
    given = {"wine": bumps(60, 1), "energy": np.round(bumps(50, 2), 1)}
    np.savez(tmp_path / UCI_FILE, **{name: rows.astype(np.float32) for name, rows in given.items()})
    return tmp_path


@pytest.fixture
def fitted(monkeypatch):
    """The Gaussian, and a standard normal for cnf; its fits are counted, and no classifier runs."""
    test = SimpleNamespace(accuracy=0.5, stderr=0.1)
    monkeypatch.setattr(tables, "two_sample_test", lambda *_: test)
    for name in METHODS.keys() - {"gaussian", "cnf"}:
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setitem(METHODS, "cnf", Mock(wraps=fit_normal))
    return METHODS["cnf"]


def command(folder, *more: object) -> tuple[object, ...]:
    given = ("--data-dir", folder, "--tables", "wine,energy", "--splits", 2, "--budget", 0.5)
    return ("benchmark", "tables", *given, *more)


def test_columns_without_a_density_are_left_out():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32).astype(float)
    near = x[:, 2] + 1e-3 * x[:, 0] * x[:, 1]  # which is not enough
    combination = (3 * x[:, 0] - 2 * x[:, 1] + 1).astype(np.float32)
    first, second, third = x.T
    columns = [first, np.full(200, 7.0), 1e6 * second, combination, third, near, first]
    values, description = prepare(table := np.stack(columns, 1))
    np.testing.assert_array_equal(values, table[:, [0, 2, 4, 5]])
    assert description == (
        "200 rows, 4 columns; constant: 1; collinear: 3, 6; noise, in deviations: none"
    )


def test_noise_is_as_wide_as_the_smallest_gap_of_repeated_values():
    rng, gaps = np.random.default_rng(0), {0: 0.1, 2: 1e-4}
    one_tie = np.append(np.arange(499) / 7, 0.0)
    one_tie[5] += 1e-4 - 1 / 7  # 1e-4 above its neighbour
    table = np.stack([rng.integers(0, 20, 500) / 10, rng.normal(size=500), one_tie], 1)
    values, description = prepare(table)
    noise = values - table
    assert (noise[:, 1] == 0).all()
    for column, gap in gaps.items():
        assert noise[:, column].min() >= 0
        assert 0.95 * gap < noise[:, column].max() < gap + 1e-12
        assert len(np.unique(values[:, column])) == 500
    shown = ", ".join(f"{i}: {gap / table[:, i].std():.2g}" for i, gap in gaps.items())
    assert description.endswith(f"noise, in deviations: {shown}")
    again, other = (prepare(table, seed=seed)[0] for seed in (0, 1))
    assert (np.array_equal(values, again), np.array_equal(values, other)) == (True, False)


def test_splits_are_disjoint_and_standardised_by_their_training_rows():
    table = bumps(205)
    parts, train = standardized(table, seed=4), table[split(205, 4).train]
    assert [len(each) for each in parts] == [165, 20, 20]
    np.testing.assert_allclose(parts.train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(parts.train.std(0), 1)
    rows = np.vstack(parts) * train.std(0) + train.mean(0)
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(table, axis=0))
    assert not np.array_equal(standardized(table, seed=5).test, parts.test)


@pytest.mark.parametrize(
    ("method", "off"),
    [("mixture", 0.1), ("kernel", 0.3), ("spline", 0.4), ("maf", 0.7), ("cnf", 0.5)],
)
@patch.multiple(density, **SMALL_ZUKO)
def test_methods_come_near_the_truth(method, off, monkeypatch):
    """A single Gaussian is worse by 0.75 nats, independent ones for each column by 1.6."""
    if method in ("spline", "maf"):
        pytest.importorskip("zuko")
        monkeypatch.setattr(density, "perf_counter", count(step=0.03).__next__)  # 66 steps
    tables._warm_up()
    row = trial(bumps(), method=method, budget=2.0)
    assert row["note"] == ""
    assert abs(row["NLL"] - bumps_nll()) < off
    assert row["± NLL"] == pytest.approx(math.sqrt(1.5 / 150), rel=0.5)
    assert row["accuracy"] < 0.67


def test_gaussian_is_that_of_maximum_likelihood():
    parts = standardized(bumps(), 0)
    exact = multivariate_normal(parts.train.mean(0), np.cov(parts.train.T, bias=True))
    own = density.fit_gaussian(parts, 1.0, 0).log_prob(parts.test)
    np.testing.assert_allclose(own, exact.logpdf(parts.test), atol=1e-6)
    assert -own.mean() > bumps_nll() + 0.3


@patch.multiple(density, RIDGES=(1e-3, 1e-2, 1.0), FIRST_RIDGE=1.0, RESTARTS=1)
@patch.multiple(density, COMPONENTS=(1, 2, 60))
def test_mixture_and_kernel_choose_by_validation_rows():
    parts = standardized(bumps(500), 0)
    mixture, kernel = (fit(parts, 20.0, 0) for fit in (density.fit_mixture, density.fit_kernel))
    assert re.fullmatch(r"components: [23], ridge 0\.0+1", mixture.chosen)
    np.testing.assert_array_equal(mixture.sample(5, 1), mixture.sample(5, 1))
    with pytest.raises(ValueError, match="Expected a mixture that can be fitted"):
        density.fit_mixture(parts._replace(train=np.full((48, 3), NAN)), 1.0, 0)
    bandwidth = float(kernel.chosen.split()[1])
    scores = [
        gaussian_kde(parts.train.T, ratio * bandwidth).logpdf(parts.validation.T).mean()
        for ratio in (1.0, 0.5, 0.9, 1.1, 2.0)
    ]
    assert scores.index(max(scores)) == 0
    drawn, expected = kernel.sample(5000, 3), (1 + bandwidth**2) * np.cov(parts.train.T)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.1)


@pytest.mark.parametrize("fit", [density.fit_mixture, density.fit_kernel])
@patch.multiple(density, COMPONENTS=(1, 200, 400), BANDWIDTH_ROWS=50)
def test_mixture_and_kernel_end_with_their_time(fit):
    parts, begin = standardized(bumps(6000), 0), perf_counter()  # would take a minute
    fitted = fit(parts, 0.2, 0)
    assert perf_counter() - begin < 10
    assert np.isfinite(fitted.log_prob(parts.test)).all()


@patch.multiple(density, **SMALL_ZUKO, VALIDATION_STEPS=2, PATIENCE=3)
def test_zuko_returns_to_its_best_weights(monkeypatch):
    pytest.importorskip("zuko")
    monkeypatch.setattr(density, "perf_counter", count(step=0.02).__next__)  # 50 steps
    monkeypatch.setitem(density.SMALL_NETWORK, "hidden_features", (64, 64))
    parts = standardized(bumps(60), 0)
    fitted = density.fit_spline(parts, 1.0, 0)
    step, last = map(int, re.findall(r"\d+", fitted.chosen))
    assert step < last
    assert -fitted.log_prob(parts.validation).mean() < 10
    np.testing.assert_array_equal(fitted.sample(5, 1), fitted.sample(5, 1))
    # As zuko leaves it on import, whatever another test has restored.
    monkeypatch.setattr(Distribution, "_validate_args", False)
    with pytest.raises(ValueError, match="Expected a finite validation NLL"):
        density.fit_spline(parts._replace(validation=np.full((6, 3), NAN)), 0.01, 0)


def test_failures_are_noted_and_cached_and_do_not_end_the_table(folder, fitted, monkeypatch):
    broken = fit_normal(standardized(bumps(60), 0), 1.0, 0)
    for wrong, note, scored in (
        ({"log_prob": lambda x: NAN * x[:, 0]}, "6 log-dens", False),
        ({"sample": lambda count, seed: 1 / 0}, "division by zero", True),
    ):
        monkeypatch.setitem(METHODS, "cnf", lambda *_, wrong=wrong: replace(broken, **wrong))
        row = trial()
        assert note in row["note"]
        assert (math.isfinite(row["NLL"]), math.isnan(row["accuracy"])) == (scored, True)

    fitted.side_effect = cnf.training.TrainingError("no\nsuch luck")
    monkeypatch.setitem(METHODS, "cnf", fitted)
    given = command(folder, "--section", "nll", "--out", folder / "out")
    text = done(*given)
    assert "cnf is worse than the gaussian or failed on 2 of 2 tables" in text
    assert "of it, on 0 of 2 tables\n" in text
    counts = text.count("failed: no such luck"), done(*given).count("luck, cached")
    assert counts == (4, 4)


def test_interrupted_method_is_not_cached_and_the_others_are(folder, fitted, monkeypatch):
    fitted.side_effect = [DEFAULT, KeyboardInterrupt, *[DEFAULT] * 3]
    given = command(folder, "--section", "nll", "--out", folder / "out")
    assert complaint(*given, status=1) == "cnf benchmark: interrupted\n"
    assert len((folder / "out" / "tables.jsonl").read_text().splitlines()) == 3
    assert done(*given).count("cached") == 3
    assert fitted.call_count == 5
    # `fit` takes Ctrl-C as early stopping.
    interrupted = SimpleNamespace(reason="interrupted")
    monkeypatch.setattr(own_density, "fit_flows", lambda *_, **__: interrupted)
    with pytest.raises(KeyboardInterrupt):
        own_density.fit_cnf(standardized(bumps(60), 0), 1.0, 0)


def test_second_run_and_section_fit_nothing_and_print_the_same(folder, fitted):
    first = done(*command(folder, "--out", folder / "out"))
    assert first.count("cached") == 8  # the second section; it shares its results without --out too
    second = done(*command(folder, "--out", folder / "out"))
    assert [given.args[-1] for given in fitted.call_args_list] == [0, 1] * 2  # the seeds
    assert second.count("cached") == 16
    assert second.replace("cached", "").split() == first.replace("cached", "").split()
    alone = done(*command(folder, "--methods", "gaussian"))
    assert alone.count("cached") == 4
    assert alone.rstrip().splitlines()[-1].split() == ["mean", "rank", "1.00"]


def test_another_budget_split_table_or_recipe_is_another_result(fitted, monkeypatch):
    keys = []
    monkeypatch.setattr(ResultCache, "recall", lambda _, key, __: keys.append(str(key)))
    for given in ({}, {"budget": 2.0}, {"split": 1}, {"table": bumps(60)[::-1]}):
        trial(**given)
    for name, recipe in list(RECIPES.items()):
        monkeypatch.setitem(RECIPES, name, replace(recipe, learning_rate=1e-4))
    trial()
    assert len(set(keys)) == len(keys) == 5


def test_a_change_of_our_recipe_leaves_the_others_results(monkeypatch):
    keys = {}

    def kept(_, key, measure):
        keys.setdefault(key["method"], set()).add(key["settings"])

    monkeypatch.setattr(ResultCache, "recall", kept)
    for rate in (1e-3, 1e-4):
        for name, recipe in list(RECIPES.items()):
            monkeypatch.setitem(RECIPES, name, replace(recipe, learning_rate=rate))
        for method in ("cnf", "mixture"):
            trial(method=method)
    assert {name: len(each) for name, each in keys.items()} == {"cnf": 2, "mixture": 1}


@pytest.mark.parametrize("out", [True, False])
def test_log_prob_of_test_rows_is_cached_beside_the_results(out, tmp_path, fitted):
    options = BenchmarkOptions("tables", out=tmp_path if out else None, methods=("cnf",))
    method = tables.methods_of(options)["cnf"]
    first, second = (
        tables.trial_of(options, "wine", bumps(60), 0, "cnf", method) for _ in range(2)
    )
    assert (second["note"], fitted.call_count) == ("cached", 1)
    np.testing.assert_array_equal(first["log_prob"], second["log_prob"])
    assert first["NLL"] == -first["log_prob"].mean() == second["NLL"]
    assert len([*tmp_path.rglob("*.npz")]) == out


def test_rivals_are_compared_after_the_methods_and_cached_by_their_programs(
    folder, fitted, monkeypatch, tmp_path
):
    program, versions = tmp_path / "program.py", iter(("1", "1", "2", "2"))
    rival = Mock(side_effect=lambda parts, budget, seed, **_: fit_normal(parts, budget, seed))
    monkeypatch.setattr(tables, "fit_rival", rival)
    monkeypatch.setattr(tables, "program_of", lambda name: program)
    monkeypatch.setattr(tables, "table_rivals", lambda _: {"vine": ("python", next(versions))})
    given = (*command(folder, "--section", "nll", "--out", folder / "out"), "--splits", 1)
    for text, fits in (("one", 2), ("one", 2), ("one", 4), ("two", 6)):
        program.write_text(text)
        printed = done(*given, "--rivals", f"vine={sys.executable}")
        assert rival.call_count == fits
    assert rival.call_args.kwargs == {"method": "vine", "python": "python"}
    lines = [line.split() for line in printed.splitlines()]
    assert [each[1] for each in lines if each[:1] == ["0"]] == ["gaussian", "cnf", "vine"] * 2
    assert ["table", "gaussian", "cnf", "vine", "cnf", "-", "best", "other"] in lines


def made(*, failed=(), **log_prob):
    """Trials of a split, by log p of their test rows."""
    return {
        name: {"NLL": NAN if name in failed else -np.mean(each), "log_prob": np.array(each)}
        for name, each in log_prob.items()
    }


def test_comparison_ranks_and_summarizes():
    found = {
        ("wine", 0): made(gaussian=[-3.0], maf=[-3.1], cnf=[-1.0]),
        ("wine", 1): made(gaussian=[-3.2], maf=[-3.1], cnf=[-1.4]),
        ("energy", 0): made(gaussian=[1.0, 1.0], maf=[0.5, 0.5], cnf=[0.5, 0.7], failed=["maf"]),
        ("energy", 1): made(gaussian=[1.0, 1.0], maf=[9.0, 9.0], cnf=[0.5, 0.5]),
    }
    _, wine, energy, mean, near, lost, worse = tables.compare(found, "NLL")
    assert wine["cnf"] == "1.2000 ± 0.2000  *1"
    assert wine["gaussian"].split() == ["3.1000", "±", "0.1000", "2.5"]
    assert wine["cnf - best other"].mean == pytest.approx(-1.9)
    assert (energy["gaussian"], energy["maf"]) == ("-1.0000 ± 0.0000  *1", "failed  3")
    ranks = {"gaussian": "1.75", "maf": "2.75", "cnf": "1.50"}
    assert mean == {"table": "mean rank", **ranks, "cnf - best other": ""}
    assert "on 0 of 2 tables" in near  # one test row of wine has no error
    assert lost == "cnf is 0.4500 nats behind the best at most, on energy"
    assert worse == "cnf is worse than the gaussian or failed on 1 of 2 tables"
    *_, failed = tables.compare(
        {("wine", 0): made(cnf=[1.0], gaussian=[0.5], failed=["cnf"])}, "NLL"
    )
    assert failed == "cnf is worse than the gaussian or failed on 1 of 1 tables"


def test_errors_of_differences_are_paired_over_test_rows():
    """Rows differ by far more than methods do: off by 0.1 ± 0.2 and 0.3 ± 0.1 in two splits."""
    rng, off = np.random.default_rng(0), np.array([1.0, -1.0] * 13)
    off /= off.std(ddof=1) / np.sqrt(26)  # a standard error of 1
    splits = []
    for mean, error in ((0.1, 0.2), (0.3, 0.1)):
        rows = 100 * rng.normal(size=26)
        splits.append(made(best=rows, far=rows - 50, cnf=rows - mean - error * off))
    found = tables.behind_best(splits)
    assert found.mean == pytest.approx(0.2)
    assert found.stderr == pytest.approx(np.hypot(0.2, 0.1) / 2)
    ahead = tables.behind_best(
        [{**split, "cnf": split["best"], "best": split["far"]} for split in splits]
    )
    assert (ahead.mean, ahead.stderr) == (pytest.approx(-50), pytest.approx(0, abs=1e-12))
    without = [made(best=[1.0], cnf=[2.0], failed=["best"])]
    assert tables.behind_best(without).mean == -math.inf
    assert math.isnan(tables.behind_best([made(best=[1.0], cnf=[2.0], failed=["cnf"])]).mean)


def test_damaged_or_missing_tables_are_one_line_before_anything_is_fitted(
    folder, fitted, monkeypatch
):
    monkeypatch.setenv("CNF_DATA", str(folder))
    given = ("benchmark", "tables", "--tables")
    assert "wine: 60 rows, 3 columns" in done(*given, "wine", "--splits", 1, "--section", "nll")
    fitted.reset_mock()
    assert "'housing'" in complaint(*given, "wine,housing")
    file = folder / UCI_FILE
    np.savez(file, wine=np.array([[1.0, NAN]]), energy=np.zeros((3, 1, 1)))
    assert str(file) in complaint(*given, "wine")
    assert "shape (3, 1, 1)" in complaint(*given, "energy")
    file.write_bytes(b"PK no such thing")
    assert str(file) in complaint(*given, "wine")
    fitted.assert_not_called()


def test_missing_library_is_asked_for_only_by_the_methods_that_need_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    given = command(folder, "--section", "nll", "--methods")
    assert "cnf-flows[bench]" in complaint(*given, "gaussian,maf")
    assert "mean rank" in done(*given, "gaussian")
