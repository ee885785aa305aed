"""Behaviour that needs real processes: signals, pipes, other directories, the same bits."""

import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from children import PATIENCE, program, said, start, wait
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, write_csv

import cnf

SCRIPTS = Path(__file__).parents[1] / "scripts"
CNF = (str(Path(sysconfig.get_path("scripts")) / "cnf"),)
ROWS = rows_of_table()[:, :1]  # one column, whose figure is quick
# The first validation, which writes the first model, is soon, and none ends the run.
TRAINING = ("--hidden", 8, "--budget", 60, "--validations", 500, "--patience", 500)


@pytest.fixture
def data(tmp_path):
    return write_csv(tmp_path / "rows.csv", ROWS, COLUMNS[:1])


def options(cwd: Path, **pipes: object) -> dict:
    """Options of a process whose standard output is buffered, as in a user's pipe."""
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return {"cwd": cwd, "env": environment, "text": True, "timeout": 120, **streams}


def run_script(folder: Path, path: Path, *words: object) -> None:
    """Run a file as `python FILE …` does; what it says is in FOLDER/out and FOLDER/err."""
    torch.set_num_threads(1)
    sys.argv = [str(path), *map(str, words)]
    with open(folder / "out", "w") as sys.stdout, open(folder / "err", "w") as sys.stderr:
        runpy.run_path(str(path), run_name="__main__")


def test_script_is_the_command(data, tmp_path, monkeypatch):
    """Both train the same model, in the user's directory; without a terminal there is no bar."""
    monkeypatch.chdir(tmp_path)
    words = (*SMALL, "--objective", "mle")  # a hybrid run says when its objective changes
    file = SCRIPTS / "train.py"
    script = start(run_script, tmp_path / "said", file, "rows.csv", "--out", "a", *words)
    assert wait(script) == [0]
    out, err = said(tmp_path / "said")
    assert err == ""
    own = out.splitlines()
    command = done("train", "rows.csv", "--out", "b", *words).splitlines()
    assert own[0] == command[0]  # the data and the flow
    assert own[2:-2] == command[2:-2]  # the scores; the line between has the time
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_no_script_has_the_name_of_a_module_that_it_hides():
    """The folder of a script that is run is the first in which Python looks for modules."""
    scripts = {path.stem for path in SCRIPTS.glob("*.py")} - {"__init__", "__main__"}
    imported = {name for name in sys.modules if "." not in name}
    assert not scripts & (imported | sys.stdlib_module_names)


def finite(folder: Path) -> bool:
    return cnf.load(folder).log_prob(torch.from_numpy(ROWS).float()).isfinite().all().item()


def wait_for(path: Path, training) -> None:
    end = time.monotonic() + PATIENCE
    while not (path.exists() and "\n" in path.read_text()):
        assert time.monotonic() < end
        assert training.is_alive(), said(path.parents[1])
        time.sleep(0.02)


def test_interrupted_training_keeps_a_model(data, tmp_path):
    """Ctrl-C, or a scheduler, ends it within seconds, with status 0 and all that it leaves."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        place = tmp_path / stop.name
        training = program(place, "train", data, "--out", place / "run", *TRAINING)
        wait_for(place / "run" / "metrics.jsonl", training)
        os.kill(training.pid, stop)
        assert wait(training) == [0]
        out, err = said(place)
        assert ("interrupted" in out, err) == (True, "")
        assert finite(place / "run")
        assert sorted(os.listdir(place / "run/figures")) == ["learning_curve.png", "pairs.png"]


def test_a_folder_is_one_trainings_at_a_time(data, tmp_path):
    words = ("train", data, "--out", tmp_path / "run", *TRAINING)
    training = program(tmp_path, *words)
    try:
        wait_for(tmp_path / "run" / "config.json", training)  # which is written last
        for second in (words, (*words, "--resume")):
            assert "another run is writing to" in complaint(*second)
        assert "NLL" in done("evaluate", tmp_path / "run", "--data", data)
    finally:
        training.kill()
        training.join()
    assert finite(tmp_path / "run")  # though a kill may come while a temporary file is written


@pytest.mark.parametrize("arguments", [("--help",), ("--print-completion", "bash")])
def test_closed_standard_output_is_no_crash(arguments, tmp_path):
    """As with `| head -1`: the reader is gone before the program prints."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run((*CNF, *arguments), **options(tmp_path, stdout=write))
    os.close(write)
    assert ended.stderr == ""
