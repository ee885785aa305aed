"""The benchmark of tables: what methods are given, what they reach, what is kept, how it ranks."""

import dataclasses
import json
import math
import re
import sys

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.neighbors import KernelDensity
from test_scripts_running import complaint, done, run

import cnf
from cnf.datasets import collinear_columns, split
from cnf.diagnostics.two_sample import TwoSample
from cnf.scripts.benchmarks import tables, trials
from cnf.scripts.benchmarks.autoregressive import AutoregressiveNetwork, AutoregressiveSettings
from cnf.scripts.benchmarks.density import DensityEstimator, FittedDensity
from cnf.scripts.benchmarks.kernel import KernelEstimator, KernelSettings, fit_kernel
from cnf.scripts.benchmarks.methods import (
    METHODS,
    EstimatorMethod,
    autoregressive_settings,
    warm_up_libraries,
)
from cnf.scripts.benchmarks.mixture import MixtureSettings, fit_mixture
from cnf.scripts.benchmarks.options import TABLE_RESULTS, BenchmarkOptions
from cnf.scripts.benchmarks.prepared import PreparedTable, repeated_gap
from cnf.scripts.benchmarks.ranking import (
    Average,
    best,
    is_near_best,
    is_worse,
    mean_ranks,
    ranks,
)
from cnf.scripts.benchmarks.trials import TableOutcome, outcome_of, run_trial, trial_of
from cnf.scripts.benchmarks.uci import UCI_FILE, UCI_TABLES, uci_table

NAN = math.nan
TRIAL = re.compile(r"  \w+ split \d ")  # how a trial's line begins


def bumps(rows: int = 1500, seed: int = 0) -> np.ndarray:
    """Two bumps of x0, x1 about x0, x2 by itself."""
    rng = np.random.default_rng(seed)
    x0 = rng.choice([-2.0, 2.0], rows) + 0.5 * rng.normal(size=rows)
    return np.stack([x0, x0 + rng.normal(size=rows), 3 * rng.normal(size=rows)], 1)


def bumps_log_prob(x: np.ndarray) -> np.ndarray:
    """Their density."""
    x0 = np.logaddexp(norm.logpdf(x[:, 0], -2, 0.5), norm.logpdf(x[:, 0], 2, 0.5)) - math.log(2)
    return x0 + norm.logpdf(x[:, 1] - x[:, 0]) + norm.logpdf(x[:, 2], scale=3)


def line(rows: int = 1500, seed: int = 0) -> np.ndarray:
    """Two columns that lie about a line, and one by itself."""
    x = np.random.default_rng(seed).normal(size=(rows, 3))
    return np.stack([x[:, 0], x[:, 0] + 0.3 * x[:, 1], 5 * x[:, 2]], 1)


def line_log_prob(x: np.ndarray) -> np.ndarray:
    """Its density."""
    given = norm.logpdf(x[:, 1] - x[:, 0], scale=0.3)
    return norm.logpdf(x[:, 0]) + given + norm.logpdf(x[:, 2], scale=5)


def true_nll(table: np.ndarray, log_prob) -> float:
    """Of the first split's test rows, in units in which its training rows have deviation 1."""
    indices = split(len(table), 0)
    scale = np.log(table[indices.train].std(0)).sum()
    return float(-log_prob(table[indices.test]).mean() - scale)


def tried(method: str, table: np.ndarray, budget: float = 60.0) -> TableOutcome:
    """The outcome of a method on a table's first split."""
    prepared = PreparedTable.of(table)
    warm_up_libraries([method])
    trial = trial_of(BenchmarkOptions(budget=budget), method, "wine", prepared, split=0)
    outcome = run_trial(trial, prepared.parts(0))
    assert outcome.reason == ""
    assert outcome.chosen
    assert outcome.seconds < budget + 10  # what runs beside the tests takes time too
    return outcome


class Normal(DensityEstimator):
    """The standard normal, or what breaks."""

    def __init__(self, scored: float = 0.0, sampled: float = 0.0) -> None:
        self.scored, self.sampled = scored, sampled

    def log_prob(self, rows):
        return norm.logpdf(rows).sum(1) + self.scored

    def sample(self, count, seed):
        return np.random.default_rng(seed).normal(size=(count, self.columns)) + self.sampled

    columns = 3


@pytest.fixture
def folder(tmp_path):
    """A folder with a file of two small tables."""
    tables = {"wine": bumps(60, 1), "energy": np.round(bumps(50, 2), 1)}
    np.savez(
        tmp_path / UCI_FILE, **{name: rows.astype(np.float32) for name, rows in tables.items()}
    )
    return tmp_path


@pytest.fixture
def fitted(monkeypatch):
    """One method that is the standard normal at once beside the Gaussian; what was fitted.

    Samples are not told from data: classifiers are trained below, where methods are.
    """
    calls = []

    def fit(parts, budget, seed, settings):
        calls.append((len(parts.train), budget, seed))
        density = Normal()
        density.columns = parts.dim
        return FittedDensity(density, "nothing")

    told = TwoSample(accuracy=0.5, stderr=0.1, rows=12)
    monkeypatch.setattr(trials, "two_sample_test", lambda *_: told)
    chosen = {"gaussian": METHODS["gaussian"], "cnf": EstimatorMethod(METHODS["cnf"].settings, fit)}
    for name in list(METHODS):
        monkeypatch.delitem(METHODS, name)
    for name, method in chosen.items():
        monkeypatch.setitem(METHODS, name, method)
    return calls


def command(folder, *more: object) -> tuple[object, ...]:
    """The benchmark of two small tables."""
    given = ("benchmark", "tables", "--data-dir", folder, "--tables", "wine,energy")
    return (*given, "--splits", 2, "--budget", 0.5, *more)


def without_trials(text: str) -> list[str]:
    """The lines that tell of no single trial, nor of what was there."""
    lines = (line.split("  cached")[0] for line in text.splitlines())
    return [line for line in lines if not TRIAL.match(line)]


# --- What methods are given -----------------------------------------------------------------------


def test_constant_and_collinear_columns_are_left_out():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32).astype(float)
    table = np.stack(
        [
            x[:, 0],
            np.full(200, 7.0),
            1e6 * x[:, 1],
            (3 * x[:, 0] - 2 * x[:, 1] + 1).astype(np.float32),  # but for rounding
            x[:, 2],
            x[:, 2] + 1e-3 * x[:, 0] * x[:, 1],  # nearly, which is not enough
            x[:, 0],
        ],
        1,
    )
    prepared = PreparedTable.of(table)
    assert prepared.constant == (1,)
    assert prepared.collinear == (3, 6)
    np.testing.assert_array_equal(prepared.values, table[:, [0, 2, 4, 5]])
    (line,) = prepared.lines("it")
    assert line == (
        "it: 200 rows, 4 columns; constant columns left out, counted from 0: 1; "
        "collinear columns left out, counted from 0: 3, 6"
    )


def test_collinear_columns_are_those_that_lower_the_rank():
    """NumPy's rank, by singular values, of the columns before and with each."""
    rng = np.random.default_rng(3)
    table = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 9)) + 5
    centred = table - table.mean(0)
    whole = [np.linalg.matrix_rank(centred[:, :i], tol=1e-8) for i in range(10)]
    assert sorted(collinear_columns(table)) == [i for i in range(9) if whole[i + 1] == whole[i]]


def test_noise_is_as_wide_as_the_smallest_gap_of_columns_with_repeated_values():
    rng = np.random.default_rng(0)
    tenths = rng.integers(0, 20, 500) / 10
    distinct = rng.normal(size=500)
    one_tie = np.append(np.arange(499) / 7, 0.0)
    one_tie[5] += 1e-4 - 1 / 7  # 1e-4 above its neighbour
    table = np.stack([tenths, distinct, one_tie], 1)
    prepared = PreparedTable.of(table)
    noise = prepared.values - table
    assert (noise[:, 1] == 0).all()
    for column, gap in ((0, 0.1), (2, 1e-4)):
        assert noise[:, column].min() >= 0
        assert 0.95 * gap < noise[:, column].max() < gap + 1e-12
        assert len(np.unique(prepared.values[:, column])) == 500
        assert prepared.gaps[column] == pytest.approx(gap / table[:, column].std())
    assert set(prepared.gaps) == {0, 2}
    assert repeated_gap(np.array([3.0, 1.0, 1.0])) == 2.0


def test_noise_is_one_for_all_and_its_gaps_are_shown():
    table = np.round(bumps(100), 1)
    first, second = PreparedTable.of(table), PreparedTable.of(table)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.digest() == second.digest() != PreparedTable.of(table, seed=1).digest()
    last = list(first.lines("it"))[-1]
    assert last.split("deviations: ")[1] == ", ".join(
        f"{i}: {0.1 / table[:, i].std():.2g}" for i in range(3)
    )


def test_splits_are_disjoint_and_standardised_by_their_training_rows():
    table = bumps(205)
    parts = PreparedTable.of(table).parts(seed=4)
    assert [len(each) for each in (parts.train, parts.validation, parts.test)] == [165, 20, 20]
    np.testing.assert_allclose(parts.train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(parts.train.std(0), 1)
    train = table[split(205, 4).train]
    rows = np.vstack([parts.train, parts.validation, parts.test]) * train.std(0) + train.mean(0)
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(table, axis=0))
    others = PreparedTable.of(table).parts(seed=5)
    assert not set(parts.test[:, 0]) & set(parts.validation[:, 0])
    assert not np.array_equal(others.test, parts.test)


# --- What they reach ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "off"), [("mixture", 0.1), ("kernel", 0.4)])
def test_mixture_and_kernel_come_near_bumps(method, off):
    outcome = tried(method, bumps(), budget=2.0)
    assert abs(outcome.nll - true_nll(bumps(), bumps_log_prob)) < off
    assert outcome.accuracy < 0.65


@pytest.mark.parametrize("method", ["spline", "maf", "cnf"])
def test_flows_come_near_a_line(method, monkeypatch):
    """Columns that are told apart from independent ones by more than a nat."""
    if method in ("spline", "maf"):
        pytest.importorskip("zuko")
        quick = dataclasses.replace(
            METHODS[method].settings(10_000, 3), batch=256, learning_rate=1e-2
        )
        small = dataclasses.replace(quick.networks[0], transforms=2, hidden=(32,))
        quick = dataclasses.replace(quick, networks=(small,))
        own = dataclasses.replace(METHODS[method], settings=lambda rows, dim: quick)
        monkeypatch.setitem(METHODS, method, own)
    outcome = tried(method, line(), budget=2.0)
    assert abs(outcome.nll - true_nll(line(), line_log_prob)) < 0.35
    assert outcome.stderr == pytest.approx(math.sqrt(1.5 / 150), rel=0.5)
    assert outcome.accuracy < 0.65


def test_gaussian_is_that_of_maximum_likelihood():
    table = bumps()
    parts = PreparedTable.of(table).parts(0)
    outcome = tried("gaussian", table)
    off = parts.test - parts.train.mean(0)
    covariance = np.cov(parts.train.T, bias=True)
    squares = np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
    exact = 0.5 * (squares + np.linalg.slogdet(2 * math.pi * covariance)[1])
    assert outcome.nll == pytest.approx(exact.mean(), abs=1e-6)
    assert outcome.stderr == pytest.approx(exact.std(ddof=1) / math.sqrt(len(exact)), abs=1e-6)
    assert outcome.nll > true_nll(table, bumps_log_prob) + 0.3
    assert outcome.accuracy > 0.55


def test_mixture_grows_no_further_than_it_brings_something():
    parts = PreparedTable.of(bumps(600)).parts(0)
    fitted = fit_mixture(parts, 20.0, 0, MixtureSettings(restarts=1))
    assert 2 <= fitted.density.model.n_components <= 10
    seen = [MixtureSettings(components=(1,), restarts=0, ridges=(0.1, 1.0), first_ridge=1.0)]
    assert fit_mixture(parts, 20.0, 0, seen[0]).density.model.reg_covar == 0.1


def test_mixture_and_kernel_end_with_their_time():
    parts = PreparedTable.of(bumps(20_000)).parts(0)  # which would take minutes
    for fit, settings in ((fit_mixture, MixtureSettings()), (fit_kernel, KernelSettings())):
        clock = trials.perf_counter()
        fitted = fit(parts, 0.3, 0, settings)
        assert trials.perf_counter() - clock < 10
        assert np.isfinite(fitted.density.log_prob(parts.test)).all()


def test_kernel_s_bandwidth_is_the_best_of_a_fine_grid():
    parts = PreparedTable.of(bumps(500)).parts(0)
    fitted = fit_kernel(parts, 30.0, 0, KernelSettings())
    found = fitted.density.bandwidth
    own = fitted.density.log_prob(parts.validation).mean()
    for ratio in (0.5, 0.9, 1.1, 2.0):
        other = type(fitted.density)(parts.train, ratio * found)
        assert other.log_prob(parts.validation).mean() < own
    assert "on all 400 rows" in fitted.chosen


def test_kernel_density_is_the_mean_of_the_kernels(monkeypatch):
    """One by one, and by scikit-learn where that is right."""
    monkeypatch.setattr("cnf.scripts.benchmarks.kernel.MAX_DISTANCES", 250)
    rows, x = bumps(100), 5 * bumps(30, seed=1)
    for bandwidth in (0.02, 0.5):
        own = KernelEstimator(rows, bandwidth)
        kernels = norm.logpdf(x[:, None], rows, bandwidth).sum(2)
        np.testing.assert_allclose(own.log_prob(x), logsumexp(kernels, 1) - math.log(100))
    reference = KernelDensity(bandwidth=0.5).fit(rows).score_samples(rows)
    np.testing.assert_allclose(own.log_prob(rows), reference)
    drawn = own.sample(20_000, 3)
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=0.1)
    expected = np.cov(rows.T, bias=True) + 0.25 * np.eye(3)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.3)
    np.testing.assert_array_equal(drawn, own.sample(20_000, 3))


def test_kernel_without_time_for_all_rows_says_so():
    parts = PreparedTable.of(bumps(4000)).parts(0)
    fitted = fit_kernel(parts, 0.05, 0, KernelSettings(fewest=100))
    rows = len(fitted.density.rows)
    assert rows < 3200
    assert f"on {rows} of 3200 rows" in fitted.chosen


def test_early_stopping_keeps_the_best_weights():
    pytest.importorskip("zuko")
    parts = PreparedTable.of(bumps(60)).parts(0)
    wild = AutoregressiveSettings(
        (AutoregressiveNetwork(2, (64, 64), 8),), learning_rate=2e-2, every=2, patience=3, cuts=1
    )
    fitted = METHODS["spline"].fit(parts, 20.0, 0, wild)
    assert "early stopping" in fitted.chosen
    step, last = (int(word.strip(",")) for word in fitted.chosen.split()[-5:-2:2])
    assert step < last
    assert -fitted.density.log_prob(parts.validation).mean() < 10
    np.testing.assert_array_equal(fitted.density.sample(5, 1), fitted.density.sample(5, 1))


def test_small_tables_have_two_networks_to_choose_from():
    small, large = (autoregressive_settings(8, rows, 12) for rows in (1000, 10_000))
    assert [str(each) for each in small.networks] == ["3 x 64-64, 8 bins", "5 x 128-128, 8 bins"]
    assert small.networks[1:] == large.networks
    assert str(autoregressive_settings(0, 10_000, 12).networks[0]) == "5 x 128-128"


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "reason", "scored"),
    [
        (Normal(scored=NAN), "scoring failed: Expected finite log-densities; got 6", False),
        (Normal(sampled=math.inf), "sampling failed: Expected finite samples; got 18", True),
        (cnf.training.TrainingError("nothing\nto keep"), "fitting failed: nothing to keep", False),
    ],
)
def test_failure_is_an_outcome_with_a_reason(density, reason, scored, fitted, monkeypatch):
    def fit(*_):
        if isinstance(density, Exception):
            raise density
        return FittedDensity(density, "it")

    monkeypatch.setitem(METHODS, "cnf", dataclasses.replace(METHODS["cnf"], fit=fit))
    prepared = PreparedTable.of(bumps(60))
    outcome = run_trial(trial_of(BenchmarkOptions(), "cnf", "wine", prepared, 0), prepared.parts(0))
    assert outcome.reason.startswith(reason)
    assert math.isfinite(outcome.nll) == scored
    assert math.isnan(outcome.accuracy)


def test_table_goes_on_after_a_failure_and_keeps_it(folder, fitted, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(METHODS, "cnf", dataclasses.replace(METHODS["cnf"], fit=fail))
    text = done(*command(folder, "--section", "nll", "--out", folder / "out"))
    assert text.count("fitting failed: no such luck") == 4
    assert "cnf is worse than the gaussian or failed on 2 of 2 tables" in text
    assert "cnf is the best, or within one standard error of it, on 0 of 2 tables" in text
    lines = (folder / "out" / TABLE_RESULTS).read_text().splitlines()
    cells = [json.loads(line) for line in lines]
    (first, *_) = [cell for cell in cells if cell["method"] == "cnf"]
    assert (first["nll"], first["accuracy"], first["reason"]) == (
        None,
        None,
        "fitting failed: no such luck",
    )
    assert "cached: 4 of 4" in done(*command(folder, "--out", folder / "out"))


def test_interrupted_method_is_no_cell_and_the_others_are_kept(folder, fitted, monkeypatch):
    own, calls = METHODS["cnf"], []

    def fit(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own.fit(*given)

    monkeypatch.setitem(METHODS, "cnf", dataclasses.replace(own, fit=fit))
    out = folder / "out"
    result = run(*command(folder, "--section", "nll", "--out", out))
    assert (result.status, result.err) == (1, "cnf benchmark: interrupted\n")
    kept = (out / TABLE_RESULTS).read_text().splitlines()
    assert len(kept) == 3  # all but the last of the first table
    assert sum(bool(TRIAL.match(line)) for line in result.out.splitlines()) == 3
    text = done(*command(folder, "--section", "nll", "--out", out))
    assert len(calls) == 5
    assert "cached: 3 of 4" in text


def test_interrupted_flow_is_an_interruption(monkeypatch):
    """`fit` takes Ctrl-C as an early end."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cnf.training.loop._Run.loop", interrupt)
    parts = PreparedTable.of(bumps(60)).parts(0)
    with pytest.raises(KeyboardInterrupt):
        METHODS["cnf"].fit(parts, 1.0, 0, METHODS["cnf"].settings(*parts.train.shape))


# --- Cells ----------------------------------------------------------------------------------------


def test_second_run_fits_nothing_and_says_the_same(folder, fitted):
    first = done(*command(folder, "--out", folder / "out"))
    assert len(fitted) == 4
    assert {seed for _, _, seed in fitted} == {0, 1}
    second = done(*command(folder, "--out", folder / "out"))
    assert len(fitted) == 4
    assert second.count("cached: 4 of 4") == 4  # two tables, two sections
    assert not any(TRIAL.match(line) for line in second.splitlines())
    assert without_trials(second) == without_trials(first)


def test_sections_share_their_cells_without_a_folder_too(folder, fitted):
    text = done(*command(folder))
    assert len(fitted) == 4
    assert text.count("cached: 4 of 4") == 2


def test_changed_budget_settings_or_rows_are_tried_again(folder, fitted, monkeypatch):
    prepared = PreparedTable.of(uci_table(folder / UCI_FILE, "wine"))
    options = BenchmarkOptions(out=folder, budget=1.0)

    def kept(options=options, prepared=prepared, split=0) -> bool:
        trial = trial_of(options, "cnf", "wine", prepared, split)
        return outcome_of(options, trial, prepared).cached

    assert [kept(), kept()] == [False, True]
    assert not kept(options=BenchmarkOptions(out=folder, budget=2.0))
    assert not kept(split=1)
    assert not kept(prepared=PreparedTable.of(prepared.values[::-1].copy()))
    with monkeypatch.context() as patch:
        other = dataclasses.replace(METHODS["cnf"].settings(48, 3), learning_rate=1e-4)
        changed = dataclasses.replace(METHODS["cnf"], settings=lambda rows, dim: other)
        patch.setitem(METHODS, "cnf", changed)
        assert not kept()
    monkeypatch.setattr(trials.torch, "get_num_threads", lambda: 64)
    assert not kept()
    assert len(fitted) == 6


def test_outcome_is_read_as_it_was_written(tmp_path, fitted):
    prepared = PreparedTable.of(bumps(60))
    options = BenchmarkOptions(out=tmp_path)
    trial = trial_of(options, "cnf", "wine", prepared, 0)
    made = outcome_of(options, trial, prepared)
    again = outcome_of(BenchmarkOptions(out=tmp_path), trial, prepared)
    assert again == dataclasses.replace(made, cached=True)
    assert TableOutcome.of(json.loads((tmp_path / TABLE_RESULTS).read_text())) == again


# --- Ranks ----------------------------------------------------------------------------------------


def test_average_is_over_splits():
    assert Average.of([1.0, 2.0, 6.0]) == Average(3.0, pytest.approx(math.sqrt(7 / 3)))
    assert str(Average.of([1.0, 1.0])) == "1.000 ± 0.000"
    assert str(Average.of([1.25])) == "1.250"
    assert str(Average.of([1.0, NAN])) == "failed"


def test_ranks_are_shared_by_equals_and_failures_come_last():
    numbers = {"a": [NAN, 1.0], "b": [3.0], "c": [1.0], "d": [NAN], "e": [3.0]}
    assert ranks(numbers) == {"c": 1, "b": 2.5, "e": 2.5, "a": 4.5, "d": 4.5}
    assert best(numbers) == {"c"}
    assert best({"a": [NAN], "b": [NAN]}) == set()
    assert mean_ranks([numbers, {name: [i] for i, name in enumerate("abcde")}]) == {
        "a": 2.75,
        "b": 2.25,
        "c": 2,
        "d": 4.25,
        "e": 3.75,
    }


def test_near_the_best_is_within_the_error_of_the_difference():
    """Splits differ by far more than methods do."""
    best_one = [10.0, 20.0, 30.0]
    near = {"best": best_one, "it": [10.2, 19.9, 30.05]}  # off by 0.05 ± 0.087
    far = {"best": best_one, "it": [10.2, 20.1, 30.15]}  # off by 0.15 ± 0.029
    assert is_near_best(near, "it")
    assert not is_near_best(far, "it")
    assert is_near_best(far, "best")
    assert not is_near_best({"best": [1.0], "it": [1.1]}, "it")
    assert not is_near_best({"it": [NAN]}, "it")


def test_worse_than_another():
    assert is_worse({"a": [1.0], "b": [0.9]}, "a", "b")
    assert not is_worse({"a": [1.0], "b": [1.1]}, "a", "b")
    assert not is_worse({"a": [1.0], "b": [NAN]}, "a", "b")
    assert not is_worse({"a": [1.0]}, "a", "b")
    assert is_worse({"a": [NAN], "b": [NAN]}, "a", "b")


def test_tables_and_the_verdict(monkeypatch, folder):
    """With numbers made up."""
    made = {
        ("wine", "gaussian"): (3.0, 3.2),
        ("wine", "cnf"): (1.0, 1.4),
        ("energy", "gaussian"): (-1.0, -1.0),
        ("energy", "cnf"): (-0.5, NAN),
    }

    def outcome(options, trial, prepared):
        return TableOutcome(
            nll=made[trial.table, trial.method][trial.split], cached=trial.split == 0
        )

    monkeypatch.setattr(tables, "outcome_of", outcome)
    text = done(*command(folder, "--section", "nll", "--methods", "gaussian,cnf"))
    rows = [line for line in text.splitlines() if line.startswith(("wine  ", "mean rank"))]
    assert rows[0].split("  cached")[0] == rows[1]
    assert rows[0].endswith("cached: 2 of 4")
    assert rows[1].split() == ["wine", "3.100", "±", "0.100", "2", "1.200", "±", "0.200", "*1"]
    assert rows[2].split() == ["mean", "rank", "1.50", "1.50"]
    assert "-1.000 ± 0.000 *1" in text
    assert "failed  2" in text
    assert "on 1 of 2 tables" in text
    assert "cnf is worse than the gaussian or failed on 1 of 2 tables" in text


def test_without_our_flow_there_is_no_verdict(folder, fitted):
    text = done(*command(folder, "--section", "nll", "--methods", "gaussian"))
    assert text.rstrip().splitlines()[-1].startswith("mean rank")


# --- The command line -----------------------------------------------------------------------------


def test_missing_file_is_one_line(tmp_path, monkeypatch):
    line = complaint("benchmark", "tables", "--data-dir", tmp_path)
    assert f"Expected {UCI_FILE} in {tmp_path}" in line
    assert "an array (rows, columns)" in line
    monkeypatch.delenv("CNF_DATA", raising=False)
    line = complaint("benchmark", "tables")
    assert "--data-dir DIR, or set CNF_DATA" in line


def test_environment_names_the_folder(folder, fitted, monkeypatch):
    monkeypatch.setenv("CNF_DATA", str(folder))
    text = done("benchmark", "tables", "--tables", "wine", "--splits", 1, "--section", "two-sample")
    assert "wine: 60 rows, 3 columns" in text


def test_damaged_or_missing_table_is_one_line_before_anything_is_fitted(folder, fitted):
    given = ("benchmark", "tables", "--data-dir", folder, "--tables")
    assert "'housing'" in complaint(*given, "wine,housing")
    np.savez(folder / UCI_FILE, wine=np.array([[1.0, NAN]]), energy=np.zeros(3))
    assert "1 of 2 finite" in complaint(*given, "wine")
    assert "shape (3,)" in complaint(*given, "energy")
    (folder / UCI_FILE).write_bytes(b"PK no such thing")
    assert "none that can be read" in complaint(*given, "wine")
    assert not fitted


@pytest.mark.parametrize(
    ("option", "known"), [("--tables", UCI_TABLES), ("--methods", tuple(METHODS))]
)
def test_unknown_table_or_method_is_refused(option, known):
    line = complaint("benchmark", "tables", option, f"{known[0]},nonesuch")
    assert "'nonesuch'" in line
    assert ", ".join(known) in line


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_splits_are_counted(value):
    assert "--splits" in complaint("benchmark", "tables", f"--splits={value}")


def test_options_of_other_subjects_are_refused():
    line = complaint("benchmark", "toys", "--data-dir", "somewhere")
    assert "got --data-dir, which it does not read" in line
    assert "--data-dir" in complaint("benchmark", "tables", "--toys", "moons")


def test_missing_library_is_asked_for_only_by_the_methods_that_need_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert "cnf-flows[bench]" in complaint(*command(folder))
    assert "mean rank" in done(*command(folder, "--methods", "gaussian"))
