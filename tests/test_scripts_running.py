"""How the programs are called: names, help, exit statuses. The other modules run them by this."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from cnf.scripts.__main__ import PROGRAMS, main

COLUMNS = ("height", "width", "depth")
SMALL = ("--steps", "5", "--hidden", "8")


class Result(NamedTuple):
    status: int
    out: str
    err: str


def called(program: Callable[[list[str]], int], words: list[str]) -> Result:
    """Call a program in this process; an exception that escapes is a traceback."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = program(words)
        except SystemExit as exited:
            status = exited.code
    return Result(status, out.getvalue(), err.getvalue())


def run(name: str, *arguments: object) -> Result:
    return called(main, [name, *map(str, arguments)])


def done(name: str, *arguments: object) -> str:
    """The standard output of a run that has to succeed in silence on standard error."""
    result = run(name, *arguments)
    assert (result.status, result.err) == (0, "")
    return result.out


def complaint(name: str, *arguments: object, status: int = 2) -> str:
    """The one line on standard error of a run that has to be refused, or to fail."""
    result = run(name, *arguments)
    assert (result.status, result.err.count("\n"), result.err[-1]) == (status, 1, "\n"), result
    assert "Traceback" not in result.err
    return result.err


def rows_of_table(rows: int = 200, seed: int = 0) -> np.ndarray:
    """Three correlated columns in different units."""
    random = np.random.default_rng(seed)
    mixing = np.array([[10.0, 3.0, 0.0], [0.0, 0.5, 0.1], [0.0, 0.0, 0.02]])
    return random.normal(size=(rows, 3)) @ mixing + [150.0, 40.0, -1.0]


def write_csv(path: Path, rows: np.ndarray, columns: tuple[str, ...] = COLUMNS) -> Path:
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_command_alone_lists_the_programs(arguments, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cnf", *arguments])
    assert main() == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in PROGRAMS)
    assert err == ""


@pytest.mark.parametrize("name", PROGRAMS)
def test_module_of_a_program_is_the_program(name):
    program = import_module(f"cnf.scripts.{name.replace('-', '_')}").main
    help, mistake = (run(name, option) for option in ("--help", "--no-such-option"))
    assert (help.status, help.err) == (0, "")
    assert "DIR" in help.out
    assert (mistake.status, mistake.out) == (2, "")
    assert called(program, ["--help"]) == help
    assert called(program, ["--no-such-option"]) == mistake
    for arguments in ([], ["a", "b", "c"]):
        assert "--help" in complaint(name, *arguments)


@pytest.mark.parametrize(
    ("typed", "meant"), [("evalute", "evaluate"), ("Train", "train"), ("log_prob", "log-prob")]
)
def test_unknown_program_suggests_the_closest(typed, meant):
    line = complaint(typed)
    assert typed in line
    assert meant in line


def test_interruption_before_there_is_a_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cnf.scripts.training.open_data", Mock(side_effect=KeyboardInterrupt))
    assert "interrupted" in complaint("train", "moons", "--out", tmp_path / "out", status=1)
