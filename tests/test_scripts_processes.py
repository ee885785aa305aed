"""What shows only in real processes: signals, pipes, other directories, other processes' bits."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_scripts_running import COLUMNS, SMALL, done, rows_of_table, write_csv

import cnf

SCRIPTS = Path(__file__).parents[1] / "scripts"
CNF = (str(Path(sysconfig.get_path("scripts")) / "cnf"),)
MODULE = (sys.executable, "-m", "cnf.scripts")
ROWS = rows_of_table(300)


def script(name: str) -> tuple[str, ...]:
    return sys.executable, str(SCRIPTS / f"{name}.py")


def options(cwd: Path, **pipes: object) -> dict:
    """Of a process whose standard output is buffered, as in a user's pipe."""
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return {"cwd": cwd, "env": environment, "text": True, **streams}


def process(cwd: Path, *words: object) -> str:
    """The standard output of a process that has to end well and in silence on standard error."""
    ended = subprocess.run([str(word) for word in words], timeout=60, **options(cwd))
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    done("train", write_csv(place / "rows.csv", ROWS), "--out", place / "out", *SMALL)
    return place / "out"


def test_script_is_the_command(tmp_path, monkeypatch):
    """The same model and the same words, in a directory of the user's own; and no progress bar on
    a standard error that is no terminal.
    """
    write_csv(tmp_path / "rows.csv", ROWS)
    monkeypatch.chdir(tmp_path)
    words = (*SMALL, "--objective", "mle")  # a hybrid run says when it goes over
    said = [
        process(tmp_path, *script("train"), "rows.csv", "--out", "a", *words).splitlines(),
        done("train", "rows.csv", "--out", "b", *words).splitlines(),
    ]
    assert said[0][0] == said[1][0]  # what is trained
    assert said[0][2:-2] == said[1][2:-2]  # how it does; between them, how long it took
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert done("evaluate", "a") == done("evaluate", "b")


def test_log_density_is_the_same_bits_in_every_process(trained, tmp_path):
    """In the process that saves a model, and in two that load it."""
    flow = cnf.ffjord(3, hidden=(16, 16), blocks=2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    rows = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    cnf.save(flow, tmp_path / "model", cnf.storage.load_config(trained)["metadata"])
    write_csv(tmp_path / "rows.csv", rows.astype(float), COLUMNS)
    expected = flow.log_prob(torch.from_numpy(rows)).detach().double().numpy()
    assert np.isfinite(expected).all()
    for out, command in {"a.npy": script("log_prob"), "b.npy": (*MODULE, "log-prob")}.items():
        process(tmp_path, *command, "model", "--data", "rows.csv", "--out", out)
        assert np.array_equal(np.load(tmp_path / out)[:, 0], expected)


@contextmanager
def interruptible():
    """Let children take SIGINT, though who runs the tests may ignore it (as `nohup … &` does)."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def wait_for(path: Path, training: subprocess.Popen) -> None:
    """Until a file has a line in it."""
    end = time.monotonic() + 45
    while not (path.exists() and "\n" in path.read_text()):
        assert time.monotonic() < end
        assert training.poll() is None, training.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_keeps_a_model(stop, tmp_path):
    """Ctrl-C, or a scheduler, ends it within seconds, with status 0 and all that it leaves."""
    write_csv(tmp_path / "rows.csv", ROWS)
    command = (*CNF, "train", "rows.csv", "--out", "out", "--budget", "60", "--hidden", "8")
    with interruptible():
        training = subprocess.Popen(command, **options(tmp_path))
    with training:
        try:
            wait_for(tmp_path / "out" / "metrics.jsonl", training)
            training.send_signal(stop)
            out, err = training.communicate(timeout=15)
        finally:
            training.kill()
    assert (training.returncode, err) == (0, "")
    assert "interrupted" in out
    assert cnf.load(tmp_path / "out").log_prob(torch.from_numpy(ROWS).float()).isfinite().all()
    assert "NLL" in done("evaluate", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == [
        "learning_curve.png",
        "pairs.png",
    ]


def test_a_folder_is_one_trainings_at_a_time(tmp_path):
    """A second one is refused, and what is there can be scored while the first one goes on."""
    write_csv(tmp_path / "rows.csv", ROWS)
    command = ("train", "rows.csv", "--out", "out", "--hidden", "8")
    with subprocess.Popen((*CNF, *command, "--budget", "60"), **options(tmp_path)) as training:
        try:
            wait_for(tmp_path / "out" / "metrics.jsonl", training)
            fresh, resumed = (
                subprocess.run((*CNF, *command, *more), **options(tmp_path))
                for more in ((), ("--resume",))
            )
            assert "NLL" in done("evaluate", tmp_path / "out", "--data", tmp_path / "rows.csv")
        finally:
            training.kill()
    for second in (fresh, resumed):
        assert second.returncode == 2
        assert "another run is writing to out" in second.stderr
        assert "\n" not in second.stderr.strip()


def test_a_killed_training_leaves_its_folder_to_the_next(tmp_path):
    write_csv(tmp_path / "rows.csv", ROWS)
    command = (*CNF, "train", "rows.csv", "--out", "out", "--hidden", "8", "--steps", "200")
    with subprocess.Popen(command, **options(tmp_path)) as training:
        wait_for(tmp_path / "out" / "config.json", training)  # which is written last
        training.kill()
    assert cnf.load(tmp_path / "out").log_prob(torch.from_numpy(ROWS).float()).isfinite().all()
    assert not list((tmp_path / "out").glob("*.tmp"))
    resumed = subprocess.run((*command, "--resume"), **options(tmp_path))
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.parametrize("arguments", [("--help",), ("evaluate", "out", "--json")])
def test_closed_standard_output_is_no_crash(arguments, trained):
    """As with `| head -1`: whoever reads has gone before the program prints."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run((*CNF, *arguments), timeout=60, **options(trained.parent, stdout=write))
    os.close(write)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert ended.stderr.count("\n") <= 1
