"""Mistakes in the arguments and in the data: status 2, one helpful line, and nothing written."""

import errno
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path

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

from cnf.datasets import split
from cnf.scripts.program import say

ROWS = rows_of_table(40)
ENDINGS = ("csv", "npy", "npz", "parquet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    done("train", write_csv(place / "rows.csv", ROWS), "--out", place / "out", *SMALL)
    return place / "out"


@pytest.fixture
def data(tmp_path):
    return write_csv(tmp_path / "rows.csv", ROWS)


@contextmanager
def nothing_written(place: Path):
    """Nothing appears in a folder, and nothing in it disappears."""
    before = tree(place)
    yield
    assert tree(place) == before


def refused_training(place: Path, *arguments: object) -> str:
    """The one line that a refused train says; its folder does not exist, or is empty."""
    before = tree(place)
    line = complaint("train", *arguments, "--out", place / "refused")
    assert tree(place) - {place / "refused"} == before
    return line


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "mle", "--coupling", "independent"), "--coupling with objective mle"),
        (("--objective", "matching", "--batch-size", "8"), "--batch-size with objective matching"),
        (("--x-features", "0", "--x-scale", "2"), "--x-scale with x_features 0"),
        (("--field", "hyper", "--x-scale", "2"), "--x-scale with x_features 0"),
        (
            ("--gradient", "backprop", "--activation-bytes", "8"),
            "--activation-bytes with gradient backprop",
        ),
    ],
)
def test_a_number_without_a_use_is_refused(words, message, data, tmp_path):
    assert message in refused_training(tmp_path, data, *words, *SMALL)


# --- data -----------------------------------------------------------------------------------------

GOOD = "".join(f"{i},{i * i},{-i}\n" for i in range(12))
CSV = {
    "text": ("height,width,depth\n1,2,3\n4,tall,6\n" + GOOD, ["'tall'", "row 2", "'width'"]),
    "nan": ("height,width,depth\n1,2,nan\n" + GOOD, ["missing", "row 1", "'depth'"]),
    "infinity": ("height,width,depth\n-inf,2,3\n" + GOOD, ["inf", "row 1", "'height'"]),
    "empty cell": ("height,width,depth\n1,,3\n" + GOOD, ["missing", "row 1", "'width'"]),
    "ragged": ("height,width,depth\n1,2\n" + GOOD, ["row 1", "3", "2"]),
    "no header": (GOOD, ["header"]),
    "no rows": ("height,width,depth\n", ["rows"]),
    "empty": ("", ["empty"]),
}


@pytest.mark.parametrize("content", CSV)
@pytest.mark.parametrize("program", ["train", "evaluate", "log-prob"])
def test_table_that_holds_no_numbers_is_refused(program, content, trained, tmp_path):
    text, words = CSV[content]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with nothing_written(tmp_path):
        if program == "train":
            line = refused_training(tmp_path, path)
        elif program == "evaluate":
            line = complaint("evaluate", trained, "--data", path)
        else:
            scores = tmp_path / "scores.csv"
            line = complaint("log-prob", trained, "--data", path, "--out", scores)
    assert [word for word in [*words, "bad.csv"] if word not in line] == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_binary_table_with_a_hole_is_refused(ending, value, tmp_path):
    rows, path = ROWS.copy(), tmp_path / f"bad.{ending}"
    rows[4, 1] = value
    if ending == "parquet":
        pd.DataFrame(rows, columns=["x0", "x1", "x2"]).to_parquet(path)
    else:
        {"npy": np.save, "npz": np.savez}[ending](path, rows)
    line = refused_training(tmp_path, path)
    got = "inf" if np.isinf(value) else "1 in column"
    assert all(word in line for word in (got, "row 5", "'x1'"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_file_of_another_kind_than_its_ending_is_refused(ending, tmp_path):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(bytes(range(256)) * 4)
    assert path.name in refused_training(tmp_path, path)


class Dangerous:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(("ending", "write"), [("npy", np.save), ("npz", np.savez)])
def test_pickled_objects_in_data_are_never_loaded(ending, write, tmp_path):
    path = tmp_path / f"bad.{ending}"
    write(path, np.array([[Dangerous(tmp_path / "marker")]], dtype=object))
    refused_training(tmp_path, path)
    assert not (tmp_path / "marker").exists()


def test_column_that_is_constant_in_the_training_rows_is_named(tmp_path):
    """Only one row differs, and the seed is one that holds it out."""
    rows = ROWS.copy()
    rows[:, 2] = np.eye(40)[0] + 0.5
    path = write_csv(tmp_path / "rows.csv", rows)
    held_out = next(seed for seed in range(100) if 0 not in split(40, seed).train)
    said = done("train", path, "--out", tmp_path / "out", "--seed", held_out, *SMALL)
    assert "constant    depth 0.5" in said


def test_column_too_small_for_single_precision_is_constant(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ROWS * [1.0, 1.0, 1e-60])
    assert "constant    depth -" in done("train", path, "--out", tmp_path / "out", *SMALL)


def test_table_of_constants_is_refused(tmp_path):
    line = refused_training(tmp_path, write_csv(tmp_path / "bad.csv", ROWS * 0.0 + [1.0, 2.0, 3.0]))
    assert "constant: height 1; width 2; depth 3" in line


def test_column_beyond_single_precision_is_named(tmp_path):
    path = write_csv(tmp_path / "bad.csv", ROWS * [1.0, 1.0, 1e60])
    assert "depth" in refused_training(tmp_path, path, *SMALL)


def test_single_row_is_refused(tmp_path):
    assert "got 1" in refused_training(tmp_path, write_csv(tmp_path / "one.csv", ROWS[:1]))


@pytest.mark.parametrize("name", ["missing.csv", "missing.npz:rows", "no/such/folder.parquet"])
def test_missing_file_is_refused(name, tmp_path):
    path = tmp_path / name
    line = refused_training(tmp_path, path)
    assert "no such file" in line
    assert str(path).partition(":")[0] in line


def test_missing_array_is_refused_with_those_there_are(tmp_path):
    np.savez(tmp_path / "some.npz", first=ROWS, second=ROWS)
    for name in ("some.npz", "some.npz:frist"):
        assert "first" in refused_training(tmp_path, tmp_path / name)


@pytest.mark.parametrize(("typed", "meant"), [("mons", "moons"), ("Wine", "wine"), ("8gs", "8ga")])
def test_unknown_data_suggests_the_closest_names(typed, meant, tmp_path):
    line = refused_training(tmp_path, typed)
    assert repr(typed) in line
    assert meant in line


@pytest.mark.parametrize("ending", ["csv", "npy"])
@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
def test_table_without_a_column_of_the_models_is_refused(program, ending, trained, tmp_path):
    path, out = tmp_path / f"narrow.{ending}", tmp_path / "scores.csv"
    if ending == "csv":
        write_csv(path, ROWS[:, :2], COLUMNS[:2])
    else:
        np.save(path, ROWS[:, :2])
    with nothing_written(tmp_path):
        extra = ("--out", out) if program == "log-prob" else ()
        line = complaint(program, trained, "--data", path, *extra)
    assert "depth" in line
    assert "2 columns" in line


@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
def test_misspelt_column_is_not_taken_by_its_position(program, trained, tmp_path):
    """Names of which some are the model's: by position, height would be taken for depth."""
    path = write_csv(tmp_path / "typo.csv", ROWS[:, ::-1], ("depth", "width", "hieght"))
    extra = ("--out", tmp_path / "scores.csv") if program == "log-prob" else ()
    assert "height" in complaint(program, trained, "--data", path, *extra)


# --- folders and files to write to ----------------------------------------------------------------


@pytest.mark.parametrize("occupant", ["notes.txt", ".hidden"])
def test_folder_that_is_not_empty_is_left_alone(occupant, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / occupant).write_text("mine")
    with nothing_written(tmp_path):
        assert "not empty" in complaint("train", data, "--out", tmp_path / "out", *SMALL)


@pytest.mark.parametrize("out", ["file", "file/out", "file/deeper/out"])
def test_folder_cannot_be_a_file_or_under_one(out, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    with nothing_written(tmp_path):
        assert "--out" in complaint("train", data, "--out", tmp_path / out, *SMALL)


@pytest.mark.parametrize("program", ["sample", "log-prob"])
@pytest.mark.parametrize(
    ("out", "word"),
    [
        ("rows.txt", ".csv"),
        ("rows", ".csv"),
        ("missing/rows.csv", "create"),
        ("file.csv/rows.csv", "file.csv"),
        ("folder.csv", "folder"),
    ],
)
def test_file_that_cannot_be_written_is_refused(program, out, word, trained, data, tmp_path):
    (tmp_path / "file.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    extra = ("-n", 3) if program == "sample" else ("--data", data)
    with nothing_written(tmp_path):
        assert word in complaint(program, trained, "--out", tmp_path / out, *extra)


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


def test_locked_folder_is_refused_by_train(data, locked):
    for out in (locked, locked / "out"):
        assert "ermission" in complaint("train", data.name, "--out", out, *SMALL)
    assert not tree(locked)


def test_locked_folder_is_refused_by_sample(locked):
    assert "ermission" in complaint("sample", "any", "-n", 3, "--out", locked / "rows.csv")


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


@pytest.mark.parametrize("ending", ENDINGS)
def test_full_disk_leaves_no_half_a_file(ending, trained, tmp_path):
    with nothing_written(tmp_path), full_disk(2000):
        out = tmp_path / f"rows.{ending}"
        line = complaint("sample", trained, "-n", 500, "--out", out, status=1)
    assert os.strerror(errno.EFBIG) in line or out.name in line


@pytest.mark.filterwarnings("default:.*raining (continues|goes on):UserWarning")
@pytest.mark.parametrize("size", [2000, 8000])
def test_full_disk_leaves_no_half_a_model(size, data, tmp_path):
    """It fails at the weights, or at the first figure; what was whole before may stay."""
    with full_disk(size):
        wide = ("--steps", 5, "--hidden", "16,16")
        result = run("train", data, "--out", tmp_path / "out", *wide)
    *warned, last = result.err.splitlines()
    assert result.status == 1
    assert all(line.startswith("cnf train: warning: ") for line in warned)
    assert last.startswith("cnf train: ")
    assert os.strerror(errno.EFBIG) in last
    hidden = [path.name for path in tree(tmp_path / "out") if path.name.startswith(".")]
    assert hidden == []


# --- what fuzzing found: each once, so that it stays found


@pytest.mark.parametrize("program", ["evaluate", "log-prob"])
def test_names_in_capitals_and_another_order_are_not_taken_by_position(program, trained, tmp_path):
    path = write_csv(tmp_path / "cased.csv", ROWS[:, ::-1], ("DEPTH", "WIDTH", "HEIGHT"))
    extra = ("--out", tmp_path / "scores.csv") if program == "log-prob" else ()
    assert "'DEPTH'" in complaint(program, trained, "--data", path, *extra)


def test_names_in_capitals_and_the_models_order_are_taken(trained, tmp_path):
    path = write_csv(tmp_path / "cased.csv", ROWS, ("Height", "Width", "Depth"))
    done("evaluate", trained, "--data", path)


@pytest.mark.parametrize("option", ["--schema", "--recipe"])
@pytest.mark.parametrize("kind", ["pipe", "deep", "digits"])
def test_file_of_settings_that_holds_none(option, kind, data, tmp_path):
    """A pipe would be waited for; JSON may be too deep, or a number in it too long, to be read."""
    path = tmp_path / "settings"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000 if kind == "deep" else "9" * 5000)
    assert "settings" in refused_training(tmp_path, data, option, path)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"seconds": "x", "loss": 1}', "\\xff"])
def test_records_that_are_none_are_named_by_plot(line, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "metrics.jsonl").write_text(line)
    assert "metrics.jsonl" in complaint("plot", tmp_path / "out")


def test_file_in_the_place_of_the_figures(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out", ignore=shutil.ignore_patterns("figures"))
    (tmp_path / "out" / "figures").write_text("mine")
    assert "figures" in complaint("plot", tmp_path / "out")


def test_folder_in_the_place_of_a_file_ends_no_run_at_its_end(data, tmp_path):
    done("train", data, "--out", tmp_path / "out", *SMALL)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    (tmp_path / "out" / "metrics.jsonl").mkdir()
    line = complaint("train", data, "--out", tmp_path / "out", *SMALL, "--resume")
    assert "metrics.jsonl is a folder" in line


def test_a_name_that_no_encoding_has_is_printed(tmp_path):
    """Linux has names of any bytes; what is said goes to UTF-8."""
    path = write_csv(tmp_path / "rows\udcff.csv", ROWS)
    out = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(out):
        say(path)
    assert out.buffer.getvalue().endswith(b"rows\\udcff.csv\n")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip(f"mounting is not allowed: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("program", ["sample", "log-prob", "plot", "evaluate"])
def test_disk_without_room_leaves_what_was_there(program, trained, data, small_disk):
    """One line, status 1; the old file whole and no temporary one."""
    wide, old = write_csv(data.parent / "wide.csv", rows_of_table(9000)), small_disk / "old.csv"
    folder = trained
    if program == "plot":
        folder = small_disk / "out"
        unneeded = shutil.ignore_patterns("figures", "training.safetensors")
        shutil.copytree(trained, folder, ignore=unneeded)
        (small_disk / "full").write_bytes(bytes(24 * 1024))
    elif program == "evaluate":
        old = small_disk / "old.html"
    old.write_text("mine")
    before = tree(small_disk)
    words = {
        "sample": ("-n", 9000, "--out", old),
        "log-prob": ("--data", wide, "--out", old),
        "plot": (),
        "evaluate": ("--report", old),
    }
    line = complaint(program, folder, *words[program], status=1)
    assert os.strerror(errno.ENOSPC) in line or old.name in line
    assert old.read_text() == "mine"
    assert {path for path in tree(small_disk) - before if path.name != "figures"} == set()


@pytest.mark.filterwarnings("default:.*raining (continues|goes on):UserWarning")
@pytest.mark.parametrize("program", ["train", "train-vae"])
def test_disk_without_room_ends_a_training_in_one_line(program, data, small_disk):
    """Warnings of what could not be written may come before; nothing is left half written."""
    (small_disk / "full").write_bytes(bytes(56 * 1024))
    vae = ("digits", "--epochs", 1, "--hidden", 16, "--samples", 1, "--posterior", "gaussian")
    words = vae if program == "train-vae" else (data, "--steps", 2, "--hidden", "16,16")
    result = run(program, *words, "--out", small_disk / "out")
    *warned, last = result.err.splitlines()
    assert result.status == 1
    assert all(line.startswith(f"cnf {program}: warning: ") for line in warned)
    assert os.strerror(errno.ENOSPC) in last
    assert [path for path in tree(small_disk) if path.name.startswith(".")] == []
