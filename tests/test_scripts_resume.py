"""`cnf train --resume`: killed at any moment, or out of disk, a run loses nothing that it saved."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from children import program, said, wait
from test_scripts_running import complaint, done, run, tree

import cnf
from cnf.training.callbacks import ProgressBar
from cnf.training.checkpoint import TrainingState
from cnf.training.recipes import RECIPES, recipe_of

STATE, METRICS, WEIGHTS = "training.safetensors", "metrics.jsonl", "model.safetensors"
NUMBERS = ("--hidden", "8", "--matching-batch", "64", "--batch-size", "64", "--validations", "5")
OFTEN = ("--state-seconds", "0.05")
KILLED = (*NUMBERS, *OFTEN, "--steps", "100")
SHORT = (*NUMBERS, "--state-seconds", "1e-9", "--steps", "20")


def write_rows(path: Path) -> Path:
    """Two columns, one of which bends with the other."""
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(400, 1))
    rows = np.hstack([x, x**2 + 0.3 * numbers.normal(size=x.shape)])
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.csv")


def metrics(folder: Path) -> list[dict]:
    """The records but for their seconds."""
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


# SIGKILL.


@pytest.fixture(scope="module")
def never_killed(rows, tmp_path_factory):
    """A run, and the seconds that its process took."""
    place = tmp_path_factory.mktemp("never")
    wait(program(place, "--version"))  # the server is up
    begin = time.monotonic()
    statuses = wait(program(place, "train", rows, "--out", place / "run", *KILLED))
    assert (statuses, said(place)[1]) == ([0], "")
    return place / "run", time.monotonic() - begin


def assert_nothing_is_torn(folder: Path) -> None:
    """Whatever a killed process left behind is whole."""
    if (folder / STATE).exists():
        TrainingState.read(folder / STATE)
    if (folder / METRICS).exists():
        metrics(folder)


def test_a_run_killed_at_random_moments_is_the_run_that_never_was(rows, never_killed, tmp_path):
    expected, seconds = never_killed
    seed = random.randrange(10**9)
    print(f"seed {seed}, {seconds:.2f} s")
    moments = random.Random(seed)
    words = ("train", rows, "--out", tmp_path / "run", *KILLED, "--resume")
    for _ in range(3):
        training = program(tmp_path, *words)
        training.join(moments.uniform(0, seconds))
        training.kill()
        training.join()
        assert training.exitcode in (-signal.SIGKILL, 0), said(tmp_path)
        assert_nothing_is_torn(tmp_path / "run")
    statuses = wait(program(tmp_path, *words))
    assert (statuses, said(tmp_path)[1]) == ([0], "")
    assert_same(tmp_path / "run", expected)


@pytest.mark.slow
def test_runs_killed_twenty_times_with_all_their_start_up(rows, tmp_path):
    """Processes of the command itself, from their first import to their last figure."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    moments = random.Random(seed)

    def command(out):
        words = (sys.executable, "-m", "cnf.scripts", "train", rows, "--out", tmp_path / out)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*map(str, words), *KILLED, "--resume"], cwd=tmp_path, env=environment, **pipes
        )

    def end(process):
        out, err = process.communicate(timeout=180)
        assert (process.returncode, err) == (0, ""), (out, err)

    begin = time.monotonic()
    end(command("expected"))
    seconds = time.monotonic() - begin
    for kill in range(20):
        name = f"run-{kill // 4}"
        with command(name) as training:
            try:
                training.wait(moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                training.kill()
                training.communicate()
        assert_nothing_is_torn(tmp_path / name)
        if kill % 4 == 3:
            end(command(name))
            assert_same(tmp_path / name, tmp_path / "expected")


@pytest.mark.parametrize("left", [".training.safetensors.tmp", ".model.safetensors.tmp"])
def test_killed_within_the_first_write_is_begun_anew(left, rows, short, tmp_path):
    """Then a part of a file under a temporary name is all that there is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_bytes(b"half")
    done("train", rows, "--out", tmp_path / "run", *SHORT, "--resume")
    (tmp_path / "run" / left).unlink(missing_ok=True)
    assert_same(tmp_path / "run", short)


# Going on.


class Stop(Exception):  # noqa: N818
    """What stops a run as a kill would, in this process."""


def stopped(monkeypatch, out: Path, *words: object, at: int) -> None:
    """`cnf train` in this process, killed after a step."""

    def stop(self, event):
        if event.step == at:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "__call__", stop)
        with pytest.raises(Stop):
            run("train", *words, "--out", out)


@pytest.fixture(scope="module")
def short(rows, tmp_path_factory):
    """A finished run of few steps."""
    out = tmp_path_factory.mktemp("short") / "run"
    done("train", rows, "--out", out, *SHORT)
    return out


def test_resume_needs_no_numbers(rows, short, monkeypatch, tmp_path):
    """The run's recipe, seed and steps are its own."""
    stopped(monkeypatch, tmp_path / "run", rows, *SHORT, at=8)
    text = done("train", rows, "--out", tmp_path / "run", "--resume")
    assert "20 steps" in text
    assert_same(tmp_path / "run", short)


def test_resume_keeps_a_seed_and_a_recipe(rows, monkeypatch, tmp_path):
    own = [word for word in SHORT if word != "--matching-batch"]
    own.remove("64")
    words = (rows, *own, "--seed", "7", "--recipe", "ffjord-paper")
    done("train", *words, "--out", tmp_path / "a")
    stopped(monkeypatch, tmp_path / "b", *words, at=8)
    done("train", rows, "--out", tmp_path / "b", "--resume")
    assert_same(tmp_path / "b", tmp_path / "a")
    config = json.loads((tmp_path / "b" / "config.json").read_text())["metadata"]
    assert (config["seed"], config["steps"], config["budget"]) == (7, 20, None)
    assert config["recipe"]["activation"] == "tanh"


def test_resume_keeps_a_budget(rows, monkeypatch, tmp_path):
    """Of which the seconds before the stop are spent."""
    words = (rows, *NUMBERS, "--state-seconds", "1e-9", "--budget", "4")
    stopped(monkeypatch, tmp_path / "run", *words, at=40)
    spent = TrainingState.read(tmp_path / "run" / STATE).progress["seconds"]
    seen = []
    monkeypatch.setattr(ProgressBar, "__call__", lambda self, event: seen.append(event.seconds))
    text = done("train", rows, "--out", tmp_path / "run", "--resume")
    assert "ended by budget" in text
    records = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert 2.0 < json.loads(records[-1])["seconds"] < 4.5
    assert seen[0] > spent > 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["metadata"]
    assert (config["steps"], config["budget"]) == (None, 4.0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--learning-rate", "0.5"), "learning_rate"),
        (("--hidden", "9"), "hidden"),
        (("--objective", "mle"), "objective"),
        (("--steps", "21"), "steps was 20, and now is 21"),
        (("--budget", "9"), "budget"),
        (("--seed", "3"), "seed was 0, and now is 3"),
        (("--recipe", "table-large"), "hidden"),
        (("--context", "a"), "conditional flow"),  # the run has a coupling that it must not have
    ],
)
def test_resume_with_another_number_is_refused(words, named, rows, short):
    before = {path: path.read_bytes() for path in tree(short) if path.is_file()}
    line = complaint("train", rows, "--out", short, "--resume", *words)
    assert re.search(named, line), line
    assert {path: path.read_bytes() for path in tree(short) if path.is_file()} == before


def test_resume_with_its_own_numbers_is_not_refused(rows, short):
    done("train", rows, "--out", short, "--resume", *SHORT, "--seed", "0")


def test_resume_with_other_data_is_refused(short, tmp_path):
    table = pd.read_csv(write_rows(tmp_path / "rows.csv"))
    table.iloc[5:, 0] += 1.0
    table.to_csv(tmp_path / "rows.csv", index=False)
    assert "rows" in complaint("train", tmp_path / "rows.csv", "--out", short, "--resume")


def test_resume_of_a_finished_run_is_over_at_once(rows, short, monkeypatch):
    def step(*_):
        raise AssertionError("a step")

    before = {name: (short / name).read_bytes() for name in (STATE, METRICS, WEIGHTS)}
    monkeypatch.setattr("cnf.training.learner.Learner.step", step)
    text = done("train", rows, "--out", short, "--resume")
    assert "20 steps" in text
    assert "NLL" in text
    assert {name: (short / name).read_bytes() for name in before} == before


def test_a_finished_run_whose_end_was_lost_has_it_again(rows, short, tmp_path):
    """Killed after its last state, before the model, the records and the figures were written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE).write_bytes((short / STATE).read_bytes())
    done("train", rows, "--out", tmp_path / "run", "--resume")
    assert_same(tmp_path / "run", short)


@pytest.mark.parametrize("made", [False, True])
def test_resume_with_a_new_folder_begins(made, rows, short, tmp_path):
    if made:
        (tmp_path / "run").mkdir()
    done("train", rows, "--out", tmp_path / "run", *SHORT, "--resume")
    assert_same(tmp_path / "run", short)


def test_folders_that_are_not_the_runs_are_refused(rows, short, tmp_path):
    before = tree(short)
    assert "not empty" in complaint("train", rows, "--out", short, *SHORT)
    assert "--resume" in complaint("train", rows, "--out", short, *SHORT)
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in complaint("train", rows, "--out", tmp_path, *SHORT)
    line = complaint("train", rows, "--out", tmp_path, *SHORT, "--resume")
    assert STATE in line
    assert [path.name for path in tree(tmp_path)] == ["notes.txt"]
    assert tree(short) == before


def test_resume_of_a_damaged_state_is_one_line(rows, short, tmp_path):
    (tmp_path / STATE).write_bytes((short / STATE).read_bytes()[:-100])
    line = complaint("train", rows, "--out", tmp_path, "--resume")
    assert STATE in line
    (tmp_path / STATE).write_bytes((short / WEIGHTS).read_bytes())
    assert STATE in complaint("train", rows, "--out", tmp_path, "--resume")


def test_a_conditional_run_goes_on(rows, monkeypatch, tmp_path):
    words = (rows, *SHORT, "--context", "a")
    done("train", *words, "--out", tmp_path / "a")
    stopped(monkeypatch, tmp_path / "b", *words, at=15)
    done("train", rows, "--context", "a", "--out", tmp_path / "b", "--resume")
    assert_same(tmp_path / "b", tmp_path / "a")


# Recipes.


@pytest.mark.parametrize("name", RECIPES)
def test_shown_recipes_are_the_recipes(name, rows, tmp_path):
    shown = done("train", rows, "--recipe", name, "--show-recipe")
    assert recipe_of(json.loads(shown)) == RECIPES[name]
    file = tmp_path / "recipe.json"
    file.write_text(shown)
    assert done("train", rows, "--recipe", file, "--show-recipe") == shown


def test_a_shown_recipe_trains_the_same(rows, short, tmp_path):
    """What --show-recipe prints, and a run's config.json; --show-recipe itself writes nothing."""
    out = tmp_path / "none"
    shown = done("train", rows, "--out", out, *SHORT, "--show-recipe")
    assert not out.exists()
    assert json.loads(shown)["hidden"] == [8]
    file = tmp_path / "recipe.json"
    file.write_text(shown)
    for name, given in (("a", file), ("b", short / "config.json")):
        done("train", rows, "--out", tmp_path / name, "--recipe", given, "--steps", "20")
        assert_same(tmp_path / name, short)
    # Of a run that was begun it is that run's.
    assert done("train", rows, "--out", short, "--resume", "--show-recipe") == shown
    # And the command line's numbers go before it.
    changed = done("train", rows, "--recipe", file, "--hidden", "9,9", "--show-recipe")
    assert json.loads(changed) == json.loads(shown) | {"hidden": [9, 9]}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '"toy"', "{}", '{"hidden": 3}', '{"metadata": {}}', '{"metadata": 3}'],
)
def test_what_is_no_recipe_is_refused(text, rows, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(text)
    line = complaint("train", rows, "--recipe", file, "--show-recipe")
    assert "recipe" in line


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": "8"},
        {"hidden": None},
        {"hidden": [8.5]},
        {"batch_size": "64"},
        {"batch_size": 64.5},
        {"learning_rate": None},
        {"objective": 3},
        {"objective": ["mle"]},
        {"steer": "no"},
        {"blocks": 1.5},
        {"learning_rate": -1},
    ],
)
def test_recipes_with_values_of_another_kind_are_refused(change, rows, tmp_path):
    shown = json.loads(done("train", rows, *SHORT, "--show-recipe"))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(shown | change))
    line = complaint("train", rows, "--recipe", file, "--steps", "1", "--out", tmp_path / "run")
    assert "recipe" in line


# Disks that are full.


class Disk:
    """Lets `cnf.utils.serialization` open so many files for writing, and then no more."""

    def __init__(self, room: float = float("inf"), refused: str = "") -> None:
        self.room, self.refused = room, refused

    def open(self, path, mode):
        self.room -= 1
        if self.room < 0 or Path(path).name == self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return open(path, mode)


def run_on(disk: Disk, monkeypatch, *words: object):
    """What the program ends with, and its warnings."""
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("always")
        patched.setattr("cnf.utils.serialization.open", disk.open, raising=False)
        ended = run("train", *words)
    lines = ended.err.splitlines(keepends=True)
    warned = [line for line in lines if line.startswith("cnf train: warning: ")]
    return ended._replace(err="".join(line for line in lines if line not in warned)), warned


@pytest.mark.parametrize("room", [0, 1, 2, 7, 15, 26])
def test_a_disk_that_fills_up_loses_nothing_that_was_saved(
    room, rows, short, monkeypatch, tmp_path
):
    """Training ends with status 1 and a line about it, and can be gone on with."""
    out = tmp_path / "run"
    ended, warned = run_on(Disk(room), monkeypatch, rows, "--out", out, *SHORT)
    assert ended.status == 1, ended
    assert ended.err.count("\n") == 1
    for text in (ended.err, *warned):
        assert "No space left" in text
    assert any(re.search("training (continues|goes on)", text.lower()) for text in warned)
    assert not [path for path in tree(out) if path.name.endswith(".tmp")]
    assert_nothing_is_torn(out)
    assert (out / STATE).exists() == (room > 0)
    if (out / WEIGHTS).exists():
        cnf.load(out)
    done("train", rows, "--out", out, *SHORT, "--resume")
    assert_same(out, short)


def test_records_that_could_not_be_written_are_there_in_the_end(rows, short, monkeypatch, tmp_path):
    """Room for all but them: what they tell is in the state, from which they are written again."""
    out = tmp_path / "run"
    disk = Disk(refused=f".{METRICS}.tmp")
    ended, _ = run_on(disk, monkeypatch, rows, "--out", out, *SHORT)
    assert ended.status == 1
    assert "No space left" in ended.err
    done("train", rows, "--out", out, "--resume")
    assert_same(out, short)


def test_records_of_the_last_validation_are_not_lost(rows, short, monkeypatch, tmp_path):
    """The disk is full just then, and has room again: "the end tries again"."""
    disk = Disk()

    def fill(self, event):
        disk.refused = f".{METRICS}.tmp" if event.step == 20 else ""

    monkeypatch.setattr("cnf.training.callbacks.ProgressBar.__call__", fill)
    keep = TrainingState.write

    def write(self, path):
        disk.refused = ""
        keep(self, path)

    monkeypatch.setattr(TrainingState, "write", write)
    ended, warned = run_on(disk, monkeypatch, rows, "--out", tmp_path / "run", *SHORT)
    assert len(warned) == 1
    assert "No space left" in warned[0]
    assert (ended.status, ended.err) == (0, "")
    assert_same(tmp_path / "run", short)
