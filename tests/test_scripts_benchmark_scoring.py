"""The benchmarks of scoring, of discretised flows, and of trainings beside busy processes."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from helpers import standard
from test_scripts_running import complaint, done

import cnf
from cnf.scripts import data
from cnf.scripts.benchmarks import busy, scoring, toys
from cnf.scripts.benchmarks.compared import UCI_FILE
from cnf.scripts.benchmarks.measure import Average
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.training.recipes import RECIPES

pytest.importorskip("zuko")
LENGTHS = ("--budget", "0.2", "--repeats", "1")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Small recipes and numbers of rows, and a folder with a small table; trainings are counted."""
    monkeypatch.setitem(data.TOY_ROWS, "train", 300)
    monkeypatch.setitem(data.TOY_ROWS, "validation", 50)
    recipe = replace(RECIPES["toy"], hidden=(8, 8), time_features=0)
    monkeypatch.setitem(RECIPES, "toy", recipe)
    monkeypatch.setattr(scoring, "choose_recipe", lambda *_: ("small", recipe))
    monkeypatch.setattr(scoring, "BENCHMARK_CHUNK_ROWS", 30)
    monkeypatch.setattr(toys, "KL_ROWS", 60)
    monkeypatch.delenv("CNF_DATA", raising=False)
    table = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    np.savez(tmp_path / UCI_FILE, bike=table, protein=table)
    with patch.object(scoring, "trained_flow", wraps=scoring.trained_flow) as trained:
        yield SimpleNamespace(data=tmp_path, trained=trained)


def table_of(section, *given):
    return done("benchmark", "flow", "--section", section, *LENGTHS, *given)


def test_scoring_has_two_rows_for_each_flow_which_are_kept(small, tmp_path):
    given = ("--out", tmp_path / "out", "--data-dir", small.data)
    given = (*given, "--toys", "moons", "--tables", "bike")
    text = table_of("scoring", *given)
    for kind in ("log_prob", "sampling"):
        (header, *_) = [line for line in text.splitlines() if line.startswith(f"{kind}, rows/s")]
        names = [*scoring.SCORING_VIEWS, "NSF", "note"]
        assert header.split()[2:] == " ".join(names).split()
    rows = [line.split() for line in text.splitlines() if line.startswith(("moons", "bike"))]
    assert [row[0] for row in rows] == ["moons", "moons", "bike", "bike"]
    assert all(float(rate) > 1 for row in rows for rate in row[1:])
    assert small.trained.call_count == 2
    assert table_of("scoring", *given).count("cached") == 4
    table_of("scoring", *given, "--repeats", "2")  # measured anew on the flows that were kept
    assert small.trained.call_count == 2


def test_flow_without_a_folder_is_trained_each_time(small):
    options = BenchmarkOptions("flow", budget=0.1, toys=("moons",))
    (moons,) = scoring.scored_data(options)
    for _ in range(2):
        scoring.flow_of(options, moons)
    assert small.trained.call_count == 2
    assert moons.x.shape == (30, 2)
    assert len(replace(moons, test=moons.test[:7]).x) == 30


def test_toys_and_two_tables_are_scored_unless_some_are_named(small):
    every = BenchmarkOptions("flow", data_dir=str(small.data))
    found = [part.name for part in scoring.scored_data(every)]
    assert found == [*cnf.datasets.TOYS, *scoring.SCORED_TABLES]
    named = replace(every, tables=("bike",))
    assert [part.name for part in scoring.scored_data(named)] == ["bike"]
    assert UCI_FILE in complaint("benchmark", "flow", "--section", "scoring")
    small.trained.assert_not_called()


def test_rates_are_rows_by_seconds(monkeypatch):
    """Of models that sleep for known times."""
    model = Mock()
    model.log_prob.side_effect = lambda x: time.sleep(0.01)
    model.sample.side_effect = lambda shape: time.sleep(0.03)
    rates = scoring.rates_of({"slow": model}, torch.zeros(50, 2), repeats=3)
    assert rates["log_prob"]["slow"] == pytest.approx(5000, rel=0.3)
    assert rates["sampling"]["slow"] == pytest.approx(5000 / 3, rel=0.3)
    assert rates["note"] == ""


def test_rows_that_fail_are_noted():
    flow = cnf.ffjord(2, hidden=(8,), zero_last=False, max_steps=1, first_step=1e-3)
    rates = scoring.rates_of({"short": flow}, torch.zeros(3, 2), repeats=1)
    assert rates["note"] == "short, log_prob: 3 rows failed; short, sampling: 3 rows failed"


@pytest.mark.parametrize("failing", [False, True])
def test_discretised_flows_stand_beside_adaptive_ones(failing, small, tmp_path, monkeypatch):
    from cnf.scripts.benchmarks import discretised

    # Compiling takes most of the time, and has tests of its layer.
    monkeypatch.setattr("cnf.layers.Steps.with_solver", lambda layer, **changes: layer)
    for name, number in (("KL_ROWS", 50), ("GRID_POINTS", 30), ("ROUND_TRIP_DRAWS", 40)):
        monkeypatch.setattr(discretised, name, number)
    wrapped = patch.object(discretised, "distil", wraps=discretised.distil)
    given = ("--toys", "moons", "--tables", "bike", "--steps", "3", "--data-dir", small.data)
    with wrapped as distilled:
        if failing:
            distilled.side_effect = cnf.training.TrainingError("it folds")
        text = table_of("discretised", *given, "--out", tmp_path / "out")
    (call,) = distilled.call_args_list  # of the table: toys take their steps from the start
    assert call.kwargs["steps"] == 3
    assert call.kwargs["budget"] == 0.2
    if failing:
        assert text.count("failed: it folds") == 3
        return
    headers = [line for line in text.splitlines() if line.startswith(("log_prob,", "quality"))]
    assert "to adaptive" in headers[0]
    assert "z -> x -> z" in headers[1]
    assert table_of("discretised", *given, "--out", tmp_path / "out").count("cached") == 6


def test_grid_integral_and_round_trip_of_a_normal_flow(monkeypatch):
    from cnf.scripts.benchmarks import discretised

    monkeypatch.setattr(discretised, "GRID_POINTS", 80)
    monkeypatch.setattr(discretised, "ROUND_TRIP_DRAWS", 50)
    flow = cnf.Flow(standard(), [])
    corners = np.array([[-2.5, -1.5], [2.5, 1.5]])  # doubled: five by three deviations
    inside = math.erf(5 / 2**0.5) * math.erf(3 / 2**0.5)
    assert discretised.grid_integral(flow, corners) == pytest.approx(inside, abs=1e-4)
    assert discretised.round_trip(flow) == 0.0


def is_running(process_id):
    """Whether a process runs; one that ended may wait for its parent to take its exit status."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_busy_processes_end_with_the_context_and_with_their_parent():
    with busy.busy_processes(2) as ids:
        assert all(map(is_running, ids))
    assert not any(map(is_running, ids))
    with pytest.raises(KeyboardInterrupt), busy.busy_processes(1) as ids:
        raise KeyboardInterrupt
    assert not is_running(*ids)
    parent = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-c', {busy.SPIN!r}, str(os.getpid())]\n"
        "print(subprocess.Popen(command).pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        orphan = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 20
    while is_running(orphan) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(orphan)


def test_each_training_is_quiet_or_beside_busy_processes_and_kept(small, tmp_path, monkeypatch):
    """Training is left to `cnf train`'s tests: here a process that writes what it writes."""
    counts, running = [], 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def process(words, env, **_):
        assert not set(busy.THREAD_VARIABLES) & set(env)
        assert words[1:6] == ["-m", "cnf", "train", "moons", "--budget"]
        counts.append(running)
        if len(counts) == 3:
            return SimpleNamespace(returncode=1, stderr="cnf train: no space\n")
        out = Path(words[-1])
        cnf.save(cnf.ffjord(2, hidden=(8,)), out)
        (out / busy.METRICS_FILE).write_text(json.dumps({"step": 7, "threads": 1}) + "\n")
        return SimpleNamespace(returncode=0, stderr="")

    class Busy:
        def __init__(self, count):
            self.count = count

        def __enter__(self):
            nonlocal running
            running = self.count

        def __exit__(self, *_):
            nonlocal running
            running = 0

    monkeypatch.setattr(busy.subprocess, "run", process)
    monkeypatch.setattr(busy, "busy_processes", Busy)
    kls = iter((0.1, 0.3))
    monkeypatch.setattr(busy, "distance_of", lambda *_: (Average(next(kls), 0.01), running))
    for cached in (0, 3):
        words = ("--section", "busy", "--toys", "moons", "--budget", "1", "--out", tmp_path)
        text = done("benchmark", "toys", *words)
        rows = [line.split() for line in text.splitlines() if line.startswith("moons")]
        assert counts == [0, 1, 2]
        assert [row[:4] for row in rows[:2]] == [
            ["moons", "0", "1", "0.1"],
            ["moons", "1", "3", "0.3"],
        ]
        assert rows[2][1:4] == ["2", "nan", "nan"]
        assert "cnf train: no space" in text
        assert text.count("cached") == cached
