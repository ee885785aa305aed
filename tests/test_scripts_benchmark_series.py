"""The benchmark of series: its tables at tiny settings, and latent_ode's own code."""

import sys
from pathlib import Path
from runpy import run_path
from subprocess import CompletedProcess
from unittest.mock import patch

import numpy as np
import pytest
from test_scripts_running import complaint, done

from cnf.scripts.benchmarks import memory, series, series_costs
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.series import Task

TINY = {"latent_dim": 3, "hidden": 8, "field": (8,)}
STAYS = 24


def write_stays(folder: Path) -> None:
    """Write arrays of PhysioNet's layout: three variables that are level in each stay."""
    rng, arrays = np.random.default_rng(0), {"param_names": np.array(["HR", "Temp", "pH"])}
    for first, name in ((0, "a"), (10_000, "b")):
        counts = rng.integers(20, 40, STAYS)
        offset = np.append(0, counts.cumsum())
        minute = rng.integers(0, 48 * 60, offset[-1])
        minute[offset[:-1]] = 0
        kind = rng.integers(0, 3, offset[-1])
        level = rng.normal(5, 1, STAYS).repeat(counts)
        outcomes = np.column_stack([offset[:-1] + first, np.ones((STAYS, 4)), np.arange(STAYS) % 2])
        outcomes[:, 1] = outcomes[:, 5]  # SAPS-I knows who dies
        values = level + kind + rng.normal(0, 0.1, offset[-1])
        found = (offset, minute.astype(np.int16), kind.astype(np.uint8), values.astype(np.float32))
        for key, each in zip(("offset", "minute", "param", "value"), found, strict=True):
            arrays[f"{name}_{key}"] = each
        arrays[f"{name}_record_id"] = outcomes[:, 0].astype(np.int32)
        arrays[f"{name}_outcomes"] = outcomes.astype(np.int32)
    np.savez(folder / "physionet2012_ab.npz", **arrays)


def table(section: str, *more: object) -> list[list[str]]:
    text = done("benchmark", "series", "--section", section, *more)
    return [line.split() for line in text.splitlines()]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name in ("STAY_MODEL", "MORTALITY_MODEL", "PERIODIC_MODEL", "LAW_MODEL"):
        monkeypatch.setattr(series, name, {**getattr(series, name), **TINY})
    monkeypatch.setattr(series, "DRAWS", 3)
    monkeypatch.setattr(series, "BOUND_DRAWS", 3)
    monkeypatch.setattr(series, "LAW_SERIES", (30, 10))
    monkeypatch.setattr(series, "PERIODIC_SERIES", 20)


def test_stays_are_scored_beside_baselines_and_cached(tmp_path):
    write_stays(tmp_path)
    given = ("--data-dir", tmp_path, "--budget", 0.3, "--seeds", 2, "--out", tmp_path / "out")
    text = done("benchmark", "series", "--section", "physionet", *given)
    for title in ("interpolation as published", "10% of the entries hidden", "after 24 h"):
        assert title in text
    assert text.count("\nown mean ") == text.count("linear interpolation") == 3
    rows = [line.split() for line in text.splitlines() if line.startswith("latent ODE")]
    assert [row[2] for row in rows] == ["0", "1", "median"] * 3
    for row in rows:
        if row[2] != "median":
            error, entry, cover, _, epochs = map(float, row[3:8])
            assert min(error, entry, epochs) > 0
            assert 0 <= cover <= 1
    again = done("benchmark", "series", "--section", "physionet", *given)
    assert again.count("cached") == 6
    deaths = table("mortality", *given[:-2], "--page", tmp_path / "page.md")
    assert next(row[2] for row in deaths if row[0] == "SAPS-I") == "1"
    assert len([row for row in deaths if row[:2] == ["latent", "ODE"]]) == 3
    assert "## series: mortality" in (tmp_path / "page.md").read_text()


def test_errors_of_a_question_are_those_of_its_baselines():
    options = BenchmarkOptions("series", budget=0.2, seeds=1)
    items = [each for each in series.periodic_lines(options) if not isinstance(each, str)]
    mean, own, *_, ours = items
    assert mean["method"] == "training mean"
    assert own["error"] == pytest.approx(0.5, abs=0.1)  # the variance of a sine
    assert ours["method"] == "latent ODE"
    assert 0 < ours["error"] < 2


def test_a_failed_fit_is_noted():
    def broken():
        raise RuntimeError("no\nmodel")

    options = BenchmarkOptions("series", budget=0.2)
    chosen = series.Series.from_frame(series.load_series("periodic", 4, 0)[0], id="id", time="time")
    row = series.fitted(options, {"seed": 0}, broken, chosen, {"task": Task()}, lambda _: {})
    assert row == {"note": "failed: no model"}


def test_gaps_to_the_exact_evidence():
    text = done("benchmark", "series", "--section", "laws", "--budget", 0.1, "--seeds", 1)
    rows = [line for line in text.splitlines() if line.startswith(("latent", "flow", "indep"))]
    names = ["independent normals", "latent ODE, gaussian posterior", "latent ODE, flow posterior"]
    assert [row.startswith(name) for row, name in zip(rows, names, strict=False)] == [True] * 3
    assert len(rows) == 6
    assert not any("failed" in row for row in rows)


LATENT_ODE = '''
import torch

class Model(torch.nn.Module):
    """Observed values, scaled, at the times that are asked for: times that all series show."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def get_reconstruction(self, asked, data, times, mask, n_traj_samples, mode):
        mean = data.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return self.scale * mean.expand(n_traj_samples, -1, len(asked), -1), {}

    def compute_all_losses(self, batch, n_traj_samples, kl_coef):
        found, _ = self.get_reconstruction(
            batch["tp_to_predict"], batch["observed_data"], batch["observed_tp"],
            batch["observed_mask"], n_traj_samples, "interp")
        return {"loss": (found - batch["data_to_predict"]).square().mean()}

def create_LatentODE_model(args, input_dim, prior, noise, device):
    assert (args.latents, input_dim) == (10, 1)
    return Model()
'''


def in_this_process(command, **_):
    """Run a command of Python without its start, which takes longer than all of the rest."""
    own = set(sys.modules)
    with patch.object(sys, "argv", command[1:]), patch.object(sys, "path", [*sys.path]):
        run_path(command[1], run_name="__main__")
    for name in {name for name in set(sys.modules) - own if name.split(".")[0] == "lib"}:
        del sys.modules[name]
    return CompletedProcess(command, 0)


@pytest.mark.parametrize("run", [in_this_process, pytest.param(series.run, marks=pytest.mark.slow)])
def test_latent_odes_own_code_is_run_by_its_file(run, tmp_path):
    (tmp_path / "lib").mkdir()
    given = ("benchmark", "series", "--section", "periodic", "--latent-ode", tmp_path)
    line = complaint(*given)
    assert f"Expected --latent-ode to be a copy of {series.LATENT_ODE_REPOSITORY[0]}" in line
    (tmp_path / "run_models.py").touch()
    (tmp_path / "lib" / "latent_ode.py").touch()
    (tmp_path / "lib" / "create_latent_ode_model.py").write_text(LATENT_ODE)
    frame, _ = series.load_series("periodic", 8, 0)
    test = series.Series.from_frame(frame, id="id", time="time")
    question = series.Question("", test, test, np.zeros(1), np.ones(1))
    x = test.values.reshape(8, -1)
    times = test.times[: x.shape[1]]
    arrays = {"times": times, "train": x, "test": x, "shown": np.ones(x.shape, bool)}
    given = (BenchmarkOptions("series", budget=0.1), tmp_path, arrays, question)
    with patch.object(series, "run", run):
        row = series._of_repository(*given, 0)
    assert 450 < row["error"] < 800  # 1/2 of a sine, and up to 1/4 of the mean as it learns
    failed = CompletedProcess((), 1, stderr="Traceback\nModuleNotFoundError: no lib")
    with patch.object(series, "run", return_value=failed):
        assert series._of_repository(*given, 1) == {"note": "failed: ModuleNotFoundError: no lib"}


def test_output_times_of_rows_agree_with_their_union():
    pytest.importorskip("torchdiffeq")
    tight = {"rtol": 1e-8, "atol": 1e-8}
    with patch.multiple(series_costs, SERIES_SHAPE=(4, 5, 2), MANY_OUTPUTS=20, TIGHT=tight):
        text = done("benchmark", "series", "--section", "ode", "--repeats", 1)
        assert max(series_costs.disagreement()) < 1e-5
    rows = [line for line in text.splitlines() if line.startswith(("times of each", "union"))]
    assert len(rows) == 3
    assert text.count("torchdiffeq") == 2


@patch.object(memory, "measure_memory", lambda gradient, run: {10: 2**16, 1000: 2**20})
@patch.object(memory, "STEP_COUNTS", (10, 1000))
def test_memory_of_depth():
    rows = table("memory")
    assert rows[-2][:3] == ["1000", "1", "1"]
    assert series_costs.differentiate_depth("backsolve", 2) == 2
