"""Folders that no model can be read from, or whose data is gone: status 2, one helpful line."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, tree, write_csv

import cnf
from cnf.storage import with_checksum

ROWS = rows_of_table(40)
ARGUMENTS = {
    "evaluate": (),
    "sample": ("-n", 3, "--out", "made.csv"),
    "log-prob": ("--data", "rows.csv", "--out", "made.csv"),
    "plot": (),
    "check": (),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    place = tmp_path_factory.mktemp("original")
    done("train", write_csv(place / "rows.csv", ROWS), "--out", place / "model", *SMALL)
    return place


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy of a trained folder, to damage; the table that it was trained on is beside it."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "model" / "config.json").read_text()
    write(tmp_path / "model", json.loads(config.replace(str(original), str(tmp_path))))
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
    place = config
    for key in parents:
        place = place[key]
    place[last] = to
    write(folder, config)


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(with_checksum(config)))


def test_untouched_copy_is_taken(folder):
    for program, arguments in ARGUMENTS.items():
        done(program, folder, *arguments)


# --- weights --------------------------------------------------------------------------------------


def foreign(_: bytes) -> bytes:
    return safetensors.numpy.save({"other": np.zeros(3)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: weights[: len(weights) // 2],
        lambda weights: b"",
        lambda weights: weights[:-1] + bytes([weights[-1] ^ 1]),
        lambda weights: bytes([weights[0] ^ 128]) + weights[1:],
        lambda weights: weights + b"0",
        foreign,
    ],
    ids=["truncated", "empty", "last bit", "first bit", "longer", "foreign"],
)
def test_damaged_weights_are_refused(damage, folder):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    all_refuse(folder, "model.safetensors", "damaged")


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    all_refuse(folder, "model.safetensors")


def test_foreign_weights_are_refused_even_with_their_checksum(folder):
    weights = foreign(b"")
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder, "sha256", hashlib.sha256(weights).hexdigest())
    all_refuse(folder, str(folder))


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", '{"format": 1,}', "\0\1", "[]", "{}", "null", "7"])
def test_config_that_is_no_models_is_refused(text, folder):
    (folder / "config.json").write_text(text)
    all_refuse(folder, "config.json")


def test_config_in_another_encoding_is_refused(folder):
    (folder / "config.json").write_bytes('{"format": "é"}'.encode("utf-16"))
    all_refuse(folder, "config.json")


def test_missing_config_is_refused(folder):
    (folder / "config.json").unlink()
    all_refuse(folder, "config.json", "train")


def test_newer_format_is_refused(folder):
    edit(folder, "format", 2)
    all_refuse(folder, "format", "2", "version")


@pytest.mark.parametrize("name", ["warp", "os.system", "__import__('os').system", "load"])
@pytest.mark.parametrize(
    "part",
    ["layers.0.name", "layers.0.field.name", "layers.0.field.activation", "base.class", "dtype"],
)
def test_unknown_part_is_refused_by_name(part, name, folder):
    """A name is looked up among what there is; it never reaches the interpreter."""
    edit(folder, part, name)
    all_refuse(folder, name)


@pytest.mark.parametrize("part", ["layers.0", "layers.0.field", "base"])
def test_no_command_in_a_config_is_run(part, folder):
    marker = folder.parent / "marker"
    edit(folder, part, {"name": "os.system", "class": "os.system", "command": f"touch {marker}"})
    all_refuse(folder)
    assert not marker.exists()


MODEL = (
    "format sha256 dtype base base.class base.parts base.numbers metadata layers.0 layers.0.field"
)
MODEL += (
    " layers.0.method layers.0.rtol layers.0.max_steps layers.0.field.dim layers.0.field.hidden"
)


@pytest.mark.parametrize("path", MODEL.split())
@pytest.mark.parametrize("junk", [None, "junk", -1, [], {}], ids=repr)
def test_junk_in_the_model_is_refused(path, junk, folder):
    edit(folder, path, junk)
    all_refuse(folder)


@pytest.mark.parametrize("junk", [None, -1, [], {}, [[]]], ids=repr)
@pytest.mark.parametrize("key", ["data", "data_sha256", "seed", "columns", "gaussian"])
def test_junk_in_what_train_wrote_down_is_refused(key, junk, folder):
    """By evaluate, which reads all of it; the others may do with less, but never with a crash."""
    edit(folder, f"metadata.{key}", junk)
    complaint("evaluate", folder)


def test_a_mean_that_is_not_finite_is_refused(folder):
    edit(folder, "metadata.gaussian.mean.1", None)
    assert "config.json" in complaint("evaluate", folder)


@pytest.mark.parametrize(
    "junk", [None, "", -1, {}, ["weight"], [1], [""], ["height"], [["weight"]]], ids=repr
)
def test_junk_in_the_context_is_refused(junk, folder):
    """A model of three columns without a context is not one of something else given a column."""
    edit(folder, "metadata.context", junk)
    all_refuse(folder, "config.json")


def test_folder_from_before_there_were_contexts_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["metadata"]["context"]
    write(folder, config)
    for program, arguments in ARGUMENTS.items():
        done(program, folder, *arguments)


@pytest.mark.parametrize("junk", [None, [], ["height"], [1, 2, 3]], ids=repr)
@pytest.mark.parametrize("program", ["sample", "log-prob"])
def test_junk_in_the_columns_is_refused(program, junk, folder):
    edit(folder, "metadata.columns", junk)
    complaint(program, folder, *ARGUMENTS[program])
    assert not (folder.parent / "made.csv").exists()


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "missing/deeper", "rows.csv", "empty"])
def test_folder_without_a_model_is_refused(name, folder):
    (folder.parent / "empty").mkdir()
    all_refuse(folder.parent / name, name, "train")


def test_model_that_train_did_not_write_is_refused(folder, tmp_path):
    """One of cnf.save alone: nothing says what it was trained on."""
    cnf.save(cnf.ffjord(3, hidden=(8,)), tmp_path / "bare")
    all_refuse(tmp_path / "bare", "bare", "train")


# --- the table that it was trained on -------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [ROWS[1:], ROWS[::-1], ROWS + 1e-9, ROWS[:, :2]],
    ids=["fewer rows", "another order", "other values", "fewer columns"],
)
def test_held_out_rows_of_a_changed_table_are_not_known(changed, folder, tmp_path):
    write_csv(tmp_path / "rows.csv", changed, COLUMNS[: changed.shape[1]])
    line = complaint("evaluate", folder)
    assert "changed" in line
    assert "--data" in line
    complaint("plot", folder)


def test_model_serves_without_its_table(folder, tmp_path):
    """Only the held-out rows need it: with the table gone, the rest still works."""
    (tmp_path / "rows.csv").rename(tmp_path / "moved.csv")
    assert "rows.csv" in complaint("evaluate", folder)
    assert "rows.csv" in complaint("plot", folder)
    done("evaluate", folder, "--data", "moved.csv")
    done("sample", folder, "-n", 3, "--out", "drawn.csv")
    done("log-prob", folder, "--data", "drawn.csv", "--out", "scores.csv")


def test_advice_of_plot_is_an_option_of_plot(folder, tmp_path):
    write_csv(tmp_path / "rows.csv", ROWS[1:])
    line = complaint("plot", folder)
    assert "--data" not in line or "--data" in done("plot", "--help")


def test_folder_can_be_moved(folder, tmp_path, monkeypatch):
    """The model's folder is wherever it is, and the table is found from anywhere."""
    expected = done("evaluate", folder, "--json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.rename(elsewhere / "renamed")
    monkeypatch.chdir(elsewhere)
    assert done("evaluate", "renamed", "--json") == expected


def test_reading_does_not_change_the_folder(folder):
    before = {path: path.read_bytes() for path in tree(folder) if path.is_file()}
    for program in ("evaluate", "sample", "log-prob"):
        done(program, folder, *ARGUMENTS[program])
    assert {path: path.read_bytes() for path in tree(folder) if path.is_file()} == before
