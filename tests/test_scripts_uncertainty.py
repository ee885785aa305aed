"""Errors of log p in the programs and in the estimator."""

import json
from math import hypot, sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts_running import done, write_csv

import cnf
from cnf.scripts.rows import ContextRows
from cnf.scripts.trained import ERROR_SAMPLE_ROWS, TrainedModel
from cnf.tables.schema import Column, Schema

pytestmark = pytest.mark.usefixtures("undrawn")

COLUMNS = ("x", "y")
ERRORS = ["log_prob", "stderr", "solver_error", "uncertainty"]
ROWS = np.random.default_rng(0).normal(size=(40, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a flow without curves, which bring far rows back, was trained, as `out`."""
    place = tmp_path_factory.mktemp("place")
    few = ("--steps", 5, "--hidden", "8,8", "--scaling", "standardize")
    rows = write_csv(place / "rows.csv", np.tile(ROWS, (5, 1)), COLUMNS)
    done("train", rows, "--out", place / "out", *few)
    return place


def written(place, rows, ending, *arguments):
    data, out = write_csv(place / "data.csv", rows, COLUMNS), place / f"scores.{ending}"
    said = done("log-prob", place / "out", "--data", data, "--out", out, "--errors", *arguments)
    return out, said


def test_errors_are_written_with_log_p(place):
    out, said = written(place, ROWS, "csv")
    frame = pd.read_csv(out)
    scores = cnf.load(place / "out").score(torch.from_numpy(ROWS).float())
    assert (list(frame), set(frame["status"])) == ([*ERRORS, "status"], {"FINISHED"})
    assert np.abs(frame["log_prob"] - scores.log_prob.numpy()).max() < 1e-5
    assert (frame["stderr"] == 0).all()
    assert 0 < frame["uncertainty"].median() < 1e-4
    assert f"mean log p {frame['log_prob'].mean():.4f}\n" in said
    estimated = pd.read_csv(written(place, ROWS, "csv", "--divergence", "hutchinson")[0])
    assert (estimated["stderr"] > 0).all()
    assert (estimated["uncertainty"] > 2 * estimated["stderr"]).all()


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy", "npz"])
def test_a_failing_row_is_nan_in_its_place_and_ends_nothing(ending, place):
    failed = np.arange(6) == 2
    out, said = written(place, np.where(failed[:, None], 1e30, ROWS[:6]), ending)
    if ending in ("csv", "parquet"):
        frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert frame["status"].tolist() == ["FINISHED"] * 2 + ["NOT_FINITE"] + ["FINISHED"] * 3
        log_prob = frame["log_prob"]
    else:
        stored = np.load(out)
        assert ending == "npy" or stored["columns"].tolist() == ERRORS
        log_prob = (stored if ending == "npy" else stored["values"])[:, 0]
    assert np.isnan(log_prob).tolist() == failed.tolist()
    assert "1 failed" in said


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_evaluate_knows_the_parts_of_its_uncertainty(divergence, place):
    arguments = ("evaluate", place / "out", "--divergence", divergence)
    numbers, text = json.loads(done(*arguments, "--json")), done(*arguments)
    assert (numbers["probe_stderr"] > 0) == (divergence == "hutchinson")
    assert numbers["probe_stderr"] < numbers["stderr"]
    assert 0 < abs(numbers["solver_error"]) < 1e-4
    least = 2 * hypot(numbers["stderr"], numbers["solver_error"])
    assert least <= numbers["uncertainty"] < 1.01 * least
    assert f"{numbers['uncertainty']:.4f} at two standard errors" in text


def test_the_solvers_part_is_what_a_tight_solve_changes(place):
    """With its sign: at a loose tolerance the NLL comes down, or up, by about that."""
    trained = TrainedModel.read(str(place / "out"))
    rows = ContextRows(ROWS, np.empty((len(ROWS), 0)))
    scores = trained.score_with_errors(rows)
    exact = cnf.load(place / "out").double().with_solver(rtol=1e-10, atol=1e-10)
    change = exact.log_prob(torch.from_numpy(ROWS).float().double()) - scores.log_prob
    found = (scores.tighter - scores.log_prob).mean()
    assert found.item() == pytest.approx(change.mean().item(), abs=1e-7)


def test_one_row_has_parts_and_no_uncertainty(place):
    data = write_csv(place / "one.csv", ROWS[:1], COLUMNS)
    words = ("evaluate", place / "out", "--data", data)
    numbers = json.loads(done(*words, "--json"))
    assert {"probe_stderr", "solver_error"} < set(numbers)
    assert not {"uncertainty", "stderr", "gain_stderr"} & set(numbers)  # NaN would be no JSON
    done(*words)


def test_some_rows_stand_for_many(place):
    trained = TrainedModel.read(str(place / "out"))
    many = ContextRows(np.arange(2.0 * 3000).reshape(-1, 2), np.arange(3000.0)[:, None])
    some = trained.error_sample(many)
    assert len(some) == len(np.unique(some.context)) == ERROR_SAMPLE_ROWS
    assert np.array_equal(some.x[:, 0], 2 * some.context[:, 0])
    assert trained.error_sample(many[:10]).x.tolist() == many[:10].x.tolist()


def test_one_draw_of_noise_is_assessed_by_two(tmp_path):
    counts = np.random.default_rng(0).poisson(4, size=(60, 2)).astype(float)
    data = write_csv(tmp_path / "counts.csv", counts, COLUMNS)
    done("train", data, "--out", tmp_path / "out", "--steps", 2, "--hidden", 8)
    numbers = json.loads(done("evaluate", tmp_path / "out", "--json", "--draws", 1))
    assert 0 < numbers["probe_stderr"] < sqrt(2) * numbers["stderr"]


def test_an_estimator_tells_how_far_it_may_be_off():
    density = cnf.CNFDensity(max_steps=3, random_state=0).fit(ROWS)
    log_prob, uncertainty = density.score_samples_uncertainty(ROWS)
    assert np.allclose(log_prob, density.score_samples(ROWS), rtol=0, atol=1e-9)
    assert log_prob.shape == uncertainty.shape == (40,)
    assert 0 < np.median(uncertainty) < 1e-4


def test_bounds_that_single_precision_rounds_are_in_a_fitted_density():
    """A row on a bound has a density in double precision too, in which the estimator scores."""
    X = np.clip(np.random.default_rng(0).normal(0.5, 0.3, size=(100, 1)), 0.1, 0.9)
    schema = Schema((Column("x0", "bounded", low=0.1, high=0.9),))
    density = cnf.CNFDensity(max_steps=2, random_state=0, schema=schema).fit(X)
    assert np.isfinite(density.score_samples(X)).all()
