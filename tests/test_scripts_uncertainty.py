"""Errors of log p in the programs and in the estimator."""

import json
from math import hypot, sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts_running import done, write_csv

import cnf
from cnf.scripts.output import write_scores
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
def test_a_row_with_a_gap_is_nan_in_its_place_and_ends_nothing(ending, place):
    missing = np.arange(6) == 2
    out, said = written(place, np.where(missing[:, None], np.nan, ROWS[:6]), ending)
    if ending in ("csv", "parquet"):
        frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert frame["status"].tolist() == ["FINISHED"] * 2 + ["MISSING"] + ["FINISHED"] * 3
        log_prob = frame["log_prob"]
    else:
        stored = np.load(out)
        assert ending == "npy" or stored["columns"].tolist() == ERRORS
        log_prob = (stored if ending == "npy" else stored["values"])[:, 0]
    assert np.isnan(log_prob).tolist() == missing.tolist()
    assert "1 with a gap are NaN" in said


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


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A model of a category, a count from 0 to 4, a bounded and a real column, and its rows."""
    place, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "colour": rng.choice(["blue", "green", "red"], size=300),
            "count": rng.binomial(4, 0.5, size=300),
            "share": rng.uniform(size=300),
            "x": rng.normal(size=300),
        }
    )
    table.to_csv(place / "rows.csv", index=False)
    schema = place / "schema.json"
    schema.write_text(json.dumps({"share": {"kind": "bounded", "low": 0, "high": 1}}))
    words = ("--schema", schema, "--steps", 20, "--hidden", 8, "--seed", 1)
    done("train", place / "rows.csv", "--out", place / "out", *words)
    trained = TrainedModel.read(str(place / "out"))
    return place, trained, trained.rows(str(place / "rows.csv"), None)[0]


def test_a_row_scores_the_same_alone_and_among_others(kinds, monkeypatch):
    """With noise in its columns, of which only its values and the seed decide."""
    place, trained, rows = kinds
    rows = rows[:60]
    assert trained.model.noisy
    double, probed = trained.in_double(), TrainedModel.read(str(place / "out"), "hutchinson")
    ways = {  # and what rounding may change
        "log p": (lambda chosen: double.score(chosen, 4)[0], 1e-9),
        "with errors": (lambda chosen: double.score_with_errors(chosen, 4).log_prob.numpy(), 1e-9),
        "in single precision": (lambda chosen: trained.score(chosen, 4)[0], 1e-5),
        "with probes": (lambda chosen: probed.score(chosen, 4)[0], 1e-5),
        "gaussian": (trained.gaussian_log_prob, 1e-5),
    }
    whole = {name: find(rows) for name, (find, _) in ways.items()}
    assert np.allclose(whole["log p"], whole["with errors"], rtol=0, atol=1e-9)
    assert np.allclose(whole["log p"], whole["in single precision"], rtol=0, atol=1e-4)
    monkeypatch.setattr("cnf.scripts.trained.SCORE_CHUNK_ROWS", 17)
    backwards = ContextRows(rows.x[::-1].copy(), rows.context)
    for name, (find, close) in ways.items():
        assert np.abs(find(backwards)[::-1] - whole[name]).max() < close
        for i in (0, 59):
            assert abs(find(rows[i : i + 1])[0] - whole[name][i]) < close


def test_bad_rows_have_a_status_each_and_leave_the_others_their_scores(kinds):
    place, trained, rows = kinds
    bad = {  # row: column, value, log p and status
        1: (3, np.nan, np.nan, "MISSING"),
        2: (0, np.nan, np.nan, "MISSING"),
        3: (1, np.nan, np.nan, "MISSING"),
        4: (2, np.nan, np.nan, "MISSING"),
        5: (0, -1.0, -np.inf, "IMPOSSIBLE"),
        6: (1, 1.5, -np.inf, "IMPOSSIBLE"),
        7: (1, 5.0, -np.inf, "IMPOSSIBLE"),
        8: (2, 1.01, -np.inf, "IMPOSSIBLE"),
        9: (3, np.inf, np.nan, "NOT_FINITE"),
    }
    x = rows.x[:12].copy()
    for row, (column, value, *_) in bad.items():
        x[row, column] = value
    x[4, 0] = -1.0  # a gap and an unknown category are a gap
    out = place / "scores.csv"
    said = write_scores(str(out), trained, ContextRows(x, rows.context[:12]), 2)
    found, good = pd.read_csv(out), trained.in_double().score(rows[:12], 2)[0]
    expected = [bad.get(i, (0, 0, good[i], "FINISHED"))[2:] for i in range(12)]
    assert found["status"].tolist() == [status for _, status in expected]
    log_probs = [log_prob for log_prob, _ in expected]
    assert np.allclose(found["log_prob"], log_probs, rtol=0, atol=1e-9, equal_nan=True)
    fine = [0, 10, 11]
    assert found["uncertainty"][fine].notna().all()
    assert f"12 rows in {out}, mean log p {good[fine].mean():.4f}, 1 failed and are NaN" in said
    assert "4 with a gap are NaN, 4 of unknown categories or out of bounds are -inf" in said


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
    options = {"max_steps": 2, "random_state": 0, "recipe": "table-small"}
    density = cnf.CNFDensity(schema=schema, **options)
    with pytest.warns(UserWarning, match="column 'x0' is 0.9 in 13 % of rows: no density"):
        density.fit(X)
    assert np.isfinite(density.score_samples(X)).all()
