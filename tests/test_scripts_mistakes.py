"""Mistakes in the arguments and in the data: status 2, one helpful line, and nothing written."""

import errno
import os
import resource
import shutil
import signal
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from test_scripts_running import (
    COLUMNS,
    SMALL,
    complaint,
    done,
    rows_of_table,
    run,
    tree,
    write_csv,
)

from cnf.scripts.program import say

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = rows_of_table(40)
ENDINGS = ("csv", "npy", "npz", "parquet")
GOOD = "".join(f"{i},{i * i},{-i}\n" for i in range(12))


@contextmanager
def nothing_written(place: Path):
    before = tree(place)
    yield
    assert tree(place) == before


def refused_training(place: Path, *arguments: object) -> str:
    """The one line that a refused train says; its folder does not exist, or is empty."""
    before = tree(place)
    line = complaint("train", *arguments, "--out", place / "refused")
    assert tree(place) - {place / "refused"} == before
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--objective mle --coupling independent", "--coupling with objective mle"),
        ("--objective matching --batch-size 8", "--batch-size with objective matching"),
        ("--objective matching --path-l1 0.1", "no regularizer"),
        ("--objective matching --batch-norm true", "objective mle"),
        ("--x-features 0 --x-scale 2", "--x-scale with x_features 0"),
        ("--field hyper --x-scale 2", "--x-scale with x_features 0"),
        ("--recipe table-small --x-scale 2", "--x-scale with x_features 0"),
        ("--gradient backprop --activation-bytes 8", "--activation-bytes with gradient backprop"),
    ],
)
def test_a_number_without_a_use_is_refused(words, message, data, tmp_path):
    assert message in refused_training(tmp_path, data, *words.split(), *SMALL)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("marker",)


def text(rows, header="height,width,depth\n"):
    return lambda path: path.write_text(header + rows)


def saved(rows, columns=COLUMNS):
    """A function that writes rows in the format of a file's ending."""
    writers = {
        ".npy": lambda path: np.save(path, rows),
        ".npz": lambda path: np.savez(path, rows),
        ".csv": lambda path: write_csv(path, rows, columns),
        ".parquet": lambda path: pd.DataFrame(rows, columns=columns).to_parquet(path),
    }
    return lambda path: writers[path.suffix](path)


def with_hole(value):
    return np.where(np.arange(40)[:, None] * 3 + np.arange(3) == 13, value, ROWS)


UNTRAINABLE = [
    ("bad.csv", text("1,2,3\n4,tall,6\n" + GOOD), ["'tall'", "row 2", "'width'", "bad"]),
    ("bad.csv", text("1,2,nan\n" + GOOD), ["missing", "row 1", "'depth'"]),
    ("bad.csv", text("-inf,2,3\n" + GOOD), ["inf", "row 1", "'height'"]),
    ("bad.csv", text("1,,3\n" + GOOD), ["missing", "row 1", "'width'"]),
    ("bad.csv", text("1,2\n" + GOOD), ["row 1", "3", "2"]),
    ("bad.csv", text(GOOD, ""), ["header"]),
    ("bad.csv", text(""), ["rows"]),
    ("bad.csv", text("", ""), ["empty"]),
    *(
        (f"bad.{ending}", saved(with_hole(value), ["x0", "x1", "x2"]), [got, "row 5", "'x1'"])
        for ending in ENDINGS[1:]
        for value, got in ((np.nan, "1 in column"), (np.inf, "inf"))
    ),
    *(
        (f"bad.{each}", lambda path: path.write_bytes(bytes(range(256)) * 4), ["bad"])
        for each in ENDINGS
    ),
    *((f"bad.{each}", saved(np.array([[Dangerous()]])), []) for each in ("npy", "npz")),
    *(
        (name, lambda path: np.savez(path, first=ROWS, second=ROWS), ["first"])
        for name in ("bad.npz", "bad.npz:frist")
    ),
    *(
        (name, lambda path: None, ["no such file", "bad"])
        for name in ("bad.csv", "bad.npz:rows", "no/bad")
    ),
    ("bad.csv", saved(ROWS * 0 + [1.0, 2.0, 3.0]), ["constant: height 1; width 2; depth 3"]),
    ("bad.csv", saved(ROWS * [1.0, 1.0, 1e60]), ["depth"]),  # beyond single precision
    ("bad.csv", saved(ROWS[:1]), ["got 1"]),
]


@pytest.mark.parametrize(("name", "write", "words"), UNTRAINABLE)
def test_data_that_cannot_be_trained_on_is_refused(name, write, words, tmp_path, monkeypatch):
    """Pickled objects, which might do anything, are never loaded."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name.partition(":")[0])
    line = refused_training(tmp_path, tmp_path / name, *SMALL)
    assert [word for word in words if word not in line] == []


def test_column_that_is_constant_in_the_training_rows_is_named(tmp_path):
    """Width is too small for single precision."""
    rows = np.column_stack([ROWS[:, 0], ROWS[:, 1] * 1e-60, ROWS[:, 2]])
    path = write_csv(tmp_path / "rows.csv", rows)
    assert "constant    width " in done("train", path, "--out", tmp_path / "out", *SMALL)


@pytest.mark.parametrize(("typed", "meant"), [("mons", "moons"), ("Wine", "wine"), ("8gs", "8ga")])
def test_unknown_data_suggests_the_closest_names(typed, meant, tmp_path):
    line = refused_training(tmp_path, typed)
    assert repr(typed) in line
    assert meant in line


@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("bad.csv", UNTRAINABLE[0][1], UNTRAINABLE[0][2]),
        ("bad.csv", saved(ROWS[:, :2], COLUMNS[:2]), ["depth", "2 columns"]),
        ("bad.npy", saved(ROWS[:, :2]), ["depth", "2 columns"]),
        # By position, height would be taken for depth.
        ("bad.csv", saved(ROWS[:, ::-1], ("depth", "width", "hieght")), ["height"]),
        ("bad.csv", saved(ROWS[:, ::-1], ("DEPTH", "WIDTH", "HEIGHT")), ["'DEPTH'"]),
    ],
)
def test_rows_that_are_not_the_models_are_refused(program, name, write, words, table, tmp_path):
    write(tmp_path / name)
    out = ("--out", tmp_path / "scores.csv") if program == "log-prob" else ()
    with nothing_written(tmp_path):
        line = complaint(program, table, "--data", tmp_path / name, *out)
    assert [word for word in words if word not in line] == []


def test_folder_that_is_not_new_or_empty_is_left_alone(data, tmp_path):
    for name in ("full/notes.txt", "hidden/.hidden", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for out in ("full", "hidden", "file", "file/deeper/out"):
        with nothing_written(tmp_path):
            line = complaint("train", data, "--out", tmp_path / out, *SMALL)
        assert ("--out" if "file" in out else "not empty") in line


@pytest.mark.parametrize(
    ("program", "words", "ending"),
    [
        ("sample", ("-n", 3, "--out"), ".csv"),
        ("log-prob", ("--data", "rows.csv", "--out"), ".csv"),
        ("evaluate", ("--report",), ".html"),
    ],
)
def test_file_that_cannot_be_written_is_refused_before_rows_are_scored(
    program, words, ending, table, data, tmp_path, monkeypatch
):
    score = Mock(side_effect=AssertionError("rows are scored"))
    monkeypatch.setattr("cnf.scripts.trained.TrainedModel.score", score)
    monkeypatch.chdir(tmp_path)
    Path(f"file{ending}").write_text("mine")
    Path(f"folder{ending}").mkdir()
    for out, word in (
        ("rows.txt", "ends in ."),
        ("rows", "ends in ."),
        (f"missing/rows{ending}", "create"),
        (f"file{ending}/rows{ending}", "file"),
        (f"folder{ending}", "folder"),
    ):
        with nothing_written(tmp_path):
            assert word in complaint(program, table, *words, out)


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that may not be written to, not by root either; the current directory holds it."""
    tmp_path.chmod(0o755)
    (tmp_path / "locked").mkdir(mode=0o555)
    monkeypatch.chdir(tmp_path)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield Path("locked")
    os.seteuid(me)


def test_locked_folder_is_refused(data, locked):
    for out in (locked, locked / "out"):
        assert "ermission" in complaint("train", data.name, "--out", out, *SMALL)
    assert "ermission" in complaint("sample", "any", "-n", 3, "--out", locked / "rows.csv")
    assert not tree(locked)


@contextmanager
def full_disk(size: int):
    """No file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("program", "words", "name"),
    [
        *(("sample", ("-n", 500, "--out"), f"old.{ending}") for ending in ENDINGS),
        ("log-prob", ("--data", "many.csv", "--out"), "old.csv"),
        ("evaluate", ("--report",), "old.html"),
        ("plot", ("--figures", "pairs"), "figures/pairs.png"),
    ],
)
def test_full_disk_leaves_what_was_there(program, words, name, table, tmp_path, monkeypatch):
    """One line, status 1; the old file whole and no temporary one."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(table, "model", ignore=shutil.ignore_patterns("figures"))
    write_csv(Path("many.csv"), rows_of_table(500))
    old = Path(folder if program == "plot" else "", name)
    old.parent.mkdir(exist_ok=True)
    old.write_text("mine")
    with nothing_written(tmp_path), full_disk(2000):
        line = complaint(program, folder, *words, *[old] * (program != "plot"), status=1)
    assert os.strerror(errno.EFBIG) in line or old.name in line
    assert old.read_text() == "mine"


VAE = ("digits", "--epochs", 1, "--hidden", 16, "--samples", 1, "--posterior", "gaussian")


@pytest.mark.filterwarnings("default:.*raining (continues|goes on):UserWarning")
@pytest.mark.parametrize(
    ("program", "words", "size"),
    [
        ("train", ("rows.csv", "--steps", 5, "--hidden", "16,16"), 2000),  # fails at the weights
        ("train", ("rows.csv", "--steps", 5, "--hidden", "16,16"), 8000),  # at the first figure
        ("train-vae", VAE, 2000),
    ],
)
def test_full_disk_leaves_no_half_a_model(program, words, size, data, tmp_path, monkeypatch):
    """What was whole before may stay; warnings of what could not be written may come first."""
    monkeypatch.setattr("cnf.scripts.figures._default_figures", lambda trained: ["pairs"])
    monkeypatch.chdir(tmp_path)
    with full_disk(size):
        result = run(program, *words, "--out", "out")
    *warned, last = result.err.splitlines()
    assert result.status == 1
    assert all(line.startswith(f"cnf {program}: warning: ") for line in warned)
    assert last.startswith(f"cnf {program}: ")
    assert os.strerror(errno.EFBIG) in last
    assert [path.name for path in tree(tmp_path / "out") if path.name.startswith(".")] == []


@pytest.mark.parametrize("option", ["--schema", "--recipe"])
def test_file_of_settings_that_holds_none(option, data, tmp_path):
    """A pipe would be waited for; JSON may be too deep, or a number in it too long, to be read."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "digits.json").write_text("9" * 5000)
    for name in ("pipe.json", "deep.json", "digits.json"):
        assert name in refused_training(tmp_path, data, option, tmp_path / name)


def test_damaged_records_and_a_file_for_the_figures_are_named_by_plot(table, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(table, out, ignore=shutil.ignore_patterns("figures"))
    (out / "figures").write_text("mine")
    assert "figures" in complaint("plot", out, "--figures", "pairs")
    for line in ("{", "[]", "{}", '{"seconds": "x", "loss": 1}', "\\xff"):
        (out / "metrics.jsonl").write_text(line)
        assert "metrics.jsonl" in complaint("plot", out, "--figures", "learning_curve")


def test_folder_in_the_place_of_a_file_ends_no_run_at_its_end(table, data, tmp_path):
    shutil.copytree(table, tmp_path / "out", ignore=shutil.ignore_patterns("metrics.jsonl"))
    (tmp_path / "out" / "metrics.jsonl").mkdir()
    words = ("train", data, "--out", tmp_path / "out", *SMALL, "--resume")
    assert "metrics.jsonl is a folder" in complaint(*words)


def test_a_name_that_no_encoding_has_is_printed(tmp_path):
    """Linux has names of any bytes; what is said goes to UTF-8."""
    path = write_csv(tmp_path / "rows\udcff.csv", ROWS)
    out = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(out):
        say(path)
    assert out.buffer.getvalue().endswith(b"rows\\udcff.csv\n")
