"""Folders without a readable model, or whose data is gone: status 2, one helpful line."""

import hashlib
import json
import shutil
from functools import reduce
from operator import getitem

import numpy as np
import pytest
import safetensors.numpy
from test_scripts_running import COLUMNS, complaint, done, rows_of_table, tree, write_csv

import cnf
from cnf.storage import with_checksum

ROWS = rows_of_table()
UTF16 = '{"format": "é"}'.encode("utf-16")
ARGUMENTS = {
    "evaluate": (),
    "sample": ("-n", 3, "--out", "made.csv"),
    "log-prob": ("--data", "rows.csv", "--out", "made.csv"),
    "plot": ("--figures", "learning_curve"),
    "check": ("--rows", 5, "--points", 100),
}


@pytest.fixture
def folder(table, tmp_path, monkeypatch):
    """A copy of a trained folder, to damage, next to its table and its configuration."""
    shutil.copy(table.parent / "rows.csv", tmp_path)
    shutil.copytree(table, tmp_path / "model", ignore=shutil.ignore_patterns("figures"))
    config = (table / "config.json").read_text()
    write(tmp_path / "model", json.loads(config.replace(str(table.parent), str(tmp_path))))
    shutil.copy(tmp_path / "model" / "config.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


def all_refuse(folder, *words):
    """Every program refuses the folder with all of these words, and writes nothing."""
    before = tree(folder.parent)
    for program, arguments in ARGUMENTS.items():
        line = complaint(program, folder, *arguments)
        assert [word for word in words if word not in line] == [], line
    assert tree(folder.parent) == before


def edit(folder, path, to):
    """Set an entry of config.json, such as `layers.0.rtol`."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    reduce(getitem, parents, config)[last] = to
    write(folder, config)


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(with_checksum(config)))


@pytest.mark.parametrize("removed", ["none", "context"])
def test_untouched_copy_is_taken_and_not_changed(removed, folder):
    """Models from before there were contexts have no entry of it."""
    config = json.loads((folder / "config.json").read_text())
    config["metadata"].pop(removed, None)
    write(folder, config)
    before = [path.read_bytes() for path in sorted(folder.glob("*.*"))]
    for program, arguments in ARGUMENTS.items():
        done(program, folder, *arguments)
    assert [path.read_bytes() for path in sorted(folder.glob("*.*"))] == before


def test_damaged_and_foreign_weights_are_refused(folder):
    """Foreign weights are refused even with their checksum."""
    path = folder / "model.safetensors"
    own, foreign = path.read_bytes(), safetensors.numpy.save({"other": np.zeros(3)})
    for content in (
        own[: len(own) // 2],
        b"",
        own[:-1] + bytes([own[-1] ^ 1]),
        bytes([own[0] ^ 128]) + own[1:],
        own + b"0",
        foreign,
    ):
        path.write_bytes(content)
        all_refuse(folder, "model.safetensors", "damaged")
    edit(folder, "sha256", hashlib.sha256(foreign).hexdigest())
    all_refuse(folder, str(folder))


def test_config_that_is_no_models_is_refused(folder):
    for content in (b"", b"{", b'{"format": 1,}', b"\0\1", b"[]", b"{}", b"null", b"7", UTF16):
        (folder / "config.json").write_bytes(content)
        all_refuse(folder, "config.json")


JUNK = (None, "junk", -1, [], {})
COMMAND = {"name": "os.system", "class": "os.system", "command": "touch marker"}
EDITS = [
    ("format", [2], ["format", "2", "version"]),
    # A name is looked up among what there is; it never reaches the interpreter.
    *(
        (path, [name], [name])
        for path in ("layers.0.name", "layers.0.field.name", "layers.0.field.activation",
                     "base.class", "dtype")
        for name in ("warp", "os.system", "__import__('os').system", "load")
    ),
    *((path, [COMMAND], []) for path in ("layers.0", "layers.0.field", "base")),
    *(
        (path, JUNK, [])
        for path in ("format", "sha256", "dtype", "metadata", "base", "base.class", "base.parts",
                     "base.numbers", "layers.0", "layers.0.method", "layers.0.rtol",
                     "layers.0.max_steps", "layers.0.field", "layers.0.field.dim",
                     "layers.0.field.hidden")
    ),
    # A model of three columns without a context is not one of something else given a column.
    ("metadata.context", [None, "", -1, {}, ["weight"], [1], [""], ["height"], [["weight"]]],
     ["config.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "values", "words"), EDITS)
def test_an_edited_configuration_is_refused(path, values, words, folder):
    for value in values:
        edit(folder, path, value)
        all_refuse(folder, *words)
        shutil.copy(folder.parent / "config.json", folder)


@pytest.mark.parametrize(
    ("programs", "key", "values"),
    [
        *(
            (["evaluate"], key, [None, -1, [], {}, [[]]])
            for key in ("data", "data_sha256", "seed", "columns", "gaussian")
        ),
        (["evaluate"], "gaussian.mean.1", [None]),
        (["sample", "log-prob"], "columns", [None, [], ["height"], [1, 2, 3]]),
    ],
)
def test_junk_in_what_train_wrote_down_is_refused(programs, key, values, folder):
    for value in values:
        edit(folder, f"metadata.{key}", value)
        for program in programs:
            line = complaint(program, folder, *ARGUMENTS[program])
            assert key != "gaussian.mean.1" or "config.json" in line
        shutil.copy(folder.parent / "config.json", folder)
    assert not (folder.parent / "made.csv").exists()


def test_folder_without_a_model_is_refused(folder, tmp_path):
    """Nothing says what a model of cnf.save alone was trained on."""
    (tmp_path / "empty").mkdir()
    cnf.save(cnf.ffjord(3, hidden=(8,)), tmp_path / "bare")
    for name in ("missing", "missing/deeper", "rows.csv", "empty", "bare"):
        all_refuse(tmp_path / name, name, "train")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        all_refuse(folder, name)


def test_held_out_rows_of_a_changed_table_are_not_known(folder, tmp_path):
    for changed in (ROWS[1:], ROWS[::-1], ROWS + 1e-9, ROWS[:, :2]):
        write_csv(tmp_path / "rows.csv", changed, COLUMNS[: changed.shape[1]])
        line = complaint("evaluate", folder)
        assert "changed" in line
        assert "--data" in line
        assert "--data" not in complaint("plot", folder)  # no option of plot


def test_folder_can_be_moved_and_serves_without_its_table(folder, tmp_path, monkeypatch):
    """Only the held-out rows need it, and programs advise what they can do instead."""
    expected = done("evaluate", folder, "--json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.rename("renamed")
    assert done("evaluate", "renamed", "--json") == expected
    (tmp_path / "rows.csv").rename("moved.csv")
    for program in ("evaluate", "plot"):
        assert "rows.csv" in complaint(program, "renamed")
    done("evaluate", "renamed", "--data", "moved.csv")
    done("sample", "renamed", "-n", 3, "--out", "drawn.csv")
    done("log-prob", "renamed", "--data", "drawn.csv", "--out", "scores.csv")
