"""`cnf train --resume`: killed at any moment, or out of disk, a run loses nothing that it saved."""

import errno
import json
import os
import random
import re
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from children import program, said, wait
from helpers import Stop, stopping
from test_scripts_running import complaint, done, run, tree, write_csv

import cnf
from cnf import storage
from cnf.training.callbacks import ProgressBar
from cnf.training.checkpoint import TrainingState

pytestmark = pytest.mark.usefixtures("undrawn")

STATE, METRICS, WEIGHTS = "training.safetensors", "metrics.jsonl", "model.safetensors"
NUMBERS = ("--hidden", "8", "--matching-batch", "64", "--batch-size", "64", "--validations", "5")
# Given a column, the other has a figure that is quick.
KILLED = (*NUMBERS, "--state-seconds", "0.05", "--steps", "40", "--context", "a")
SHORT = (*NUMBERS, "--state-seconds", "1e-9", "--steps", "20")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two columns, one of which bends with the other."""
    values = np.random.default_rng(0).normal(size=(400, 2)) * [1.0, 0.3]
    values[:, 1] += values[:, 0] ** 2
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", values, ("a", "b"))


def metrics(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for record in records:
        assert record.pop("seconds") > 0
    return records


def assert_same(folder: Path, expected: Path) -> None:
    """What was trained is the same, byte for byte, and nothing else lies about."""
    for name in (WEIGHTS, "config.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics(folder) == metrics(expected)
    names = [{str(path.relative_to(root)) for path in tree(root)} for root in (folder, expected)]
    assert names[0] == names[1]


def assert_nothing_is_torn(folder: Path) -> None:
    if (folder / STATE).exists():
        TrainingState.read(folder / STATE)
    if (folder / METRICS).exists():
        metrics(folder)
    if (folder / WEIGHTS).exists():
        cnf.load(folder)


@pytest.mark.parametrize(
    ("fresh", "kills"), [(False, 1), pytest.param(True, 20, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_moments_is_the_run_that_never_was(fresh, kills, rows, tmp_path):
    """Fresh processes with all their start-up, from their first import to their last figure."""

    def training(name):
        words = ("train", rows, "--out", tmp_path / name / "run", *KILLED, "--resume")
        return program(tmp_path / name, *words, fresh=fresh)

    def end(name):
        assert (wait(training(name)), said(tmp_path / name)[1]) == ([0], "")

    wait(program(tmp_path, "--version"))  # the server is up
    begin = time.monotonic()
    end("expected")
    seconds, seed = time.monotonic() - begin, random.randrange(10**9)
    print(f"seed {seed}, {seconds:.2f} s")
    moments = random.Random(seed)
    for kill in range(kills):
        name = f"run-{kill // 4}"
        process = training(name)
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), said(tmp_path / name)
        assert_nothing_is_torn(tmp_path / name / "run")
        if kill in (kills - 1, 4 * (kill // 4) + 3):
            end(name)
            assert_same(tmp_path / name / "run", tmp_path / "expected" / "run")


@pytest.mark.parametrize("left", [None, f".{STATE}.tmp", STATE])
def test_a_run_whose_start_or_end_was_lost_has_it_again(left, rows, short, tmp_path):
    """Killed within the first write, or after its last state, before the model was written."""
    out, words = tmp_path / "run", () if left == STATE else SHORT
    if left:
        out.mkdir()
        (out / left).write_bytes((short / STATE).read_bytes() if left == STATE else b"half")
    done("train", rows, "--out", out, *words, "--resume")
    if left and left != STATE:
        (out / left).unlink(missing_ok=True)
    assert_same(out, short)


def stopped(monkeypatch, out: Path, *words: object, at: int) -> None:
    """`cnf train` in this process, killed after a step."""
    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "__call__", staticmethod(stopping(at)))
        with pytest.raises(Stop):
            run("train", *words, "--out", out)


@pytest.fixture(scope="module")
def short(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    done("train", rows, "--out", out, *SHORT)
    return out


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (("--hidden", "8", *SHORT[4:], "--seed", "7", "--recipe", "ffjord-paper"), 8),
        ((*SHORT, "--context", "a"), 15),
    ],
)
def test_resume_keeps_a_seed_a_recipe_and_a_context(words, at, rows, monkeypatch, tmp_path):
    done("train", rows, *words, "--out", tmp_path / "a")
    stopped(monkeypatch, tmp_path / "b", rows, *words, at=at)
    context = words[-2:] if "--context" in words else ()
    done("train", rows, *context, "--out", tmp_path / "b", "--resume")
    assert_same(tmp_path / "b", tmp_path / "a")
    config = storage.load_config(tmp_path / "b")["metadata"]
    assert (config["steps"], config["budget"]) == (20, None)
    if "--seed" in words:
        assert (config["seed"], config["recipe"]["activation"]) == (7, "tanh")


def test_a_run_of_codes_resumes_as_it_was_begun(rows, monkeypatch, tmp_path):
    """Bit for bit, with its kind of model, which no option of a flow may change."""
    table = pd.read_csv(rows)
    mixed = tmp_path / "mixed.csv"
    table.assign(big=table.b > 0.5, size=table.a.round()).to_csv(mixed, index=False)
    numbers = ("--batch-size", "32", "--validations", "4", "--learning-rate", "0.01", "--seed", "7")
    words = (mixed, *numbers, "--steps", "8", "--state-seconds", "1e-9", "--context", "big")
    done("train", *words, "--out", tmp_path / "a")
    stopped(monkeypatch, tmp_path / "b", *words, at=5)
    again = ("train", mixed, "--context", "big", "--out", tmp_path / "b", "--resume")
    for changes, told in (
        (("--hidden", "8"), "no --hidden with the run in --out"),
        (("--recipe", "table"), "no --recipe table with the run in --out"),
        (("--learning-rate", "0.5"), "learning_rate"),
        (("--steps", "9"), "steps was 8"),
    ):
        assert told in complaint(*again, *changes)
    done(*again)
    assert_same(tmp_path / "b", tmp_path / "a")
    metadata = json.loads((tmp_path / "b/config.json").read_text())["metadata"]
    assert (metadata["seed"], metadata["steps"], metadata["budget"]) == (7, 8, None)
    assert (metadata["recipe"]["learning_rate"], metadata["objective"]) == (0.01, "code likelihood")
    told = complaint(*again, "--recipe", "codes")  # at its own learning rate
    assert "learning_rate" in told


def test_resume_keeps_a_budget(rows, monkeypatch, tmp_path):
    words = (rows, *NUMBERS, "--state-seconds", "1e-9", "--budget", "1")
    stopped(monkeypatch, tmp_path / "run", *words, at=5)
    spent = TrainingState.read(tmp_path / "run" / STATE).progress["seconds"]
    seen = []
    monkeypatch.setattr(ProgressBar, "__call__", lambda self, event: seen.append(event.seconds))
    assert "ended by budget" in done("train", rows, "--out", tmp_path / "run", "--resume")
    records = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert 0.4 < json.loads(records[-1])["seconds"] < 1.5
    assert seen[0] > spent > 0
    config = storage.load_config(tmp_path / "run")["metadata"]
    assert (config["steps"], config["budget"]) == (None, 1.0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--learning-rate", "0.5"), "learning_rate"),
        (("--hidden", "9"), "hidden"),
        (("--steps", "21"), "steps was 20, and now is 21"),
        (("--budget", "9"), "budget"),
        (("--seed", "3"), "seed was 0, and now is 3"),
        (("--recipe", "table-large"), "field was"),
        (("--context", "a"), "conditional flow"),  # the run has a coupling that it must not have
    ],
)
def test_resume_with_another_number_is_refused(words, named, rows, short):
    before = contents(short)
    assert named in complaint("train", rows, "--out", short, "--resume", *words)
    assert contents(short) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in tree(folder) if path.is_file()}


def test_resume_of_a_finished_run_is_over_at_once_but_refuses_other_data(
    rows, short, monkeypatch, tmp_path
):
    before = [(short / name).read_bytes() for name in (STATE, METRICS, WEIGHTS)]
    monkeypatch.setattr("cnf.training.learner.Learner.step", None)
    for words in ((), (*SHORT, "--seed", "0")):
        text = done("train", rows, "--out", short, "--resume", *words)
        assert "20 steps" in text
        assert "NLL" in text
    assert [(short / name).read_bytes() for name in (STATE, METRICS, WEIGHTS)] == before
    others = write_csv(tmp_path / "rows.csv", pd.read_csv(rows).to_numpy() + 1.0, ("a", "b"))
    assert "rows" in complaint("train", others, "--out", short, "--resume")


def test_folders_that_are_not_the_runs_are_refused(rows, short, tmp_path):
    before = tree(short)
    assert re.search("not empty.*--resume", complaint("train", rows, "--out", short, *SHORT))
    (tmp_path / "notes.txt").write_text("mine")
    words = ("train", rows, "--out", tmp_path)
    assert "not empty" in complaint(*words, *SHORT)
    assert STATE in complaint(*words, *SHORT, "--resume")
    assert [path.name for path in tree(tmp_path)] == ["notes.txt"]
    assert tree(short) == before
    for content in ((short / STATE).read_bytes()[:-100], (short / WEIGHTS).read_bytes()):
        (tmp_path / STATE).write_bytes(content)
        assert STATE in complaint(*words, "--resume")


def test_a_shown_recipe_trains_the_same(rows, short, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(done("train", rows, "--out", short, "--resume", "--show-recipe"))
    for name, given in (("a", file), ("b", short / "config.json")):
        done("train", rows, "--out", tmp_path / name, "--recipe", given, "--steps", "20")
        assert_same(tmp_path / name, short)


@dataclass
class Disk:
    """Lets `cnf.utils.serialization` open so many files for writing, and then no more."""

    room: float = float("inf")
    refused: str = ""

    def open(self, path, mode):
        self.room -= 1
        if self.room < 0 or Path(path).name == self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return open(path, mode)


def run_on(disk: Disk, monkeypatch, *words: object):
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("always")
        patched.setattr("cnf.utils.serialization.open", disk.open, raising=False)
        ended = run("train", *words)
    lines = ended.err.splitlines(keepends=True)
    warned = [line for line in lines if line.startswith("cnf train: warning: ")]
    return ended._replace(err="".join(line for line in lines if line not in warned)), warned


@pytest.mark.parametrize("room", [0, 7])
def test_a_disk_that_fills_up_loses_nothing_saved(room, rows, short, monkeypatch, tmp_path):
    """Training ends with status 1 and a line about it, and the run can be resumed."""
    out = tmp_path / "run"
    ended, warned = run_on(Disk(room), monkeypatch, rows, "--out", out, *SHORT)
    assert (ended.status, ended.err.count("\n")) == (1, 1), ended
    assert all("No space left" in text for text in (ended.err, *warned))
    assert any(re.search("training (continues|goes on)", text.lower()) for text in warned)
    assert not [path for path in tree(out) if path.name.endswith(".tmp")]
    assert_nothing_is_torn(out)
    assert (out / STATE).exists() == (room > 0)
    done("train", rows, "--out", out, *SHORT, "--resume")
    assert_same(out, short)


def test_records_that_could_not_be_written_are_there_in_the_end(rows, short, monkeypatch, tmp_path):
    """They are written again from the state, or after the last validation once there is room."""
    out, disk = tmp_path / "never", Disk(refused=f".{METRICS}.tmp")
    ended, _ = run_on(disk, monkeypatch, rows, "--out", out, *SHORT)
    assert ended.status == 1
    assert "No space left" in ended.err
    done("train", rows, "--out", out, "--resume")
    assert_same(out, short)
    disk, keep = Disk(), TrainingState.write

    def fill(self, event):
        disk.refused = f".{METRICS}.tmp" if event.step == 20 else ""

    def write(self, path):
        disk.refused = ""
        keep(self, path)

    monkeypatch.setattr(ProgressBar, "__call__", fill)
    monkeypatch.setattr(TrainingState, "write", write)
    ended, (warned,) = run_on(disk, monkeypatch, rows, "--out", tmp_path / "run", *SHORT)
    assert "No space left" in warned
    assert (ended.status, ended.err) == (0, "")
    assert_same(tmp_path / "run", short)
