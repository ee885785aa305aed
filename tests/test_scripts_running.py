"""How the programs are called: names, help, exit statuses. The other modules run them by this."""

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS
from cnf.scripts.__main__ import PROGRAMS, main
from cnf.training.recipes import Recipe

COLUMNS = ("height", "width", "depth")
SMALL = ("--steps", "5", "--hidden", "8")


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(name: str, *arguments: object) -> Result:
    """What `cnf NAME ARGUMENTS` does, in this process; an exception that escapes is a traceback."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([name, *map(str, arguments)])
        except SystemExit as exited:
            status = exited.code
    return Result(status, out.getvalue(), err.getvalue())


def done(name: str, *arguments: object) -> str:
    """The standard output of a run that has to succeed in silence on standard error."""
    result = run(name, *arguments)
    assert result.status == 0, result.err
    assert result.err == "", result.err
    return result.out


def complaint(name: str, *arguments: object, status: int = 2) -> str:
    """The one line on standard error of a run that has to be refused, or to fail."""
    result = run(name, *arguments)
    assert result.status == status, result
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
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
    """Everything in a folder, hidden files too."""
    return set(folder.rglob("*"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_command_alone_lists_the_programs(arguments, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cnf", *arguments])
    assert main() == 0
    printed = capsys.readouterr()
    assert all(name in printed.out for name in PROGRAMS)
    assert printed.err == ""


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_has_help(name):
    result = run(name, "--help")
    assert result.status == 0
    assert result.err == "", result.err
    assert "DIR" in result.out


def test_help_of_train_names_all_data_and_all_numbers():
    text = run("train", "--help-all").out
    assert all(name in text for name in (*TOYS, *CONDITIONAL_TOYS, *TABLES))
    assert all(f"--{field.name.replace('_', '-')}" in text for field in fields(Recipe))


@pytest.mark.parametrize("name", PROGRAMS)
def test_module_of_a_program_is_the_program(name):
    """`cnf NAME` and NAME's own main say the same."""
    own = import_module(f"cnf.scripts.{name.replace('-', '_')}").main
    err = StringIO()
    with redirect_stderr(err), pytest.raises(SystemExit) as exited:
        own(["--no-such-option"])
    assert (exited.value.code, err.getvalue()) == (2, run(name, "--no-such-option").err)


@pytest.mark.parametrize(
    ("typed", "meant"), [("evalute", "evaluate"), ("Train", "train"), ("log_prob", "log-prob")]
)
def test_unknown_program_suggests_the_closest(typed, meant):
    line = complaint(typed)
    assert typed in line
    assert meant in line


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["--no-such-option"]])
def test_wrong_arguments_are_refused(name, arguments):
    assert "--help" in complaint(name, *arguments)


def test_interruption_before_there_is_a_model_is_one_line(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cnf.scripts.train.open_data", interrupt)
    line = complaint("train", "moons", "--out", tmp_path / "out", status=1)
    assert "interrupted" in line
