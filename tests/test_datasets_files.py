"""Files: what is written is read back, and what cannot be read is refused in one line."""

import os
import tempfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cnf.datasets import check_writable, read_table, write_table

ENDINGS = [".csv", ".npy", ".npz", ".parquet"]


def refused(path) -> str:
    with pytest.raises(ValueError, match=r"^Expected .*; got .*: ") as error:
        read_table(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def text_file(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_bytes(text.encode())
    return file


# --- round trips


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=30, deadline=None)
@given(
    values=st.sampled_from([np.float64, np.float32, np.int32, np.bool_]).flatmap(
        lambda dtype: arrays(
            dtype,
            array_shapes(min_dims=2, max_dims=2, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False}
            if np.issubdtype(dtype, np.floating)
            else None,
        )
    )
)
def test_what_is_written_is_read_back(ending, values):
    columns = tuple(f'"c", {i}' for i in range(values.shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"table{ending}"
        write_table(file, values, columns)
        table = read_table(file)
        np.testing.assert_array_equal(table.values, values.astype(np.float64))
        assert [path.name for path in Path(folder).iterdir()] == [file.name]
    assert table.name == "table"
    if ending != ".npy":
        assert table.columns == columns


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_dimension_is_one_column(ending, tmp_path):
    write_table(tmp_path / f"t{ending}", [1.0, 2.0], ["log_prob"])
    assert read_table(str(tmp_path / f"t{ending}")).values.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("ending", ENDINGS)
def test_writing_replaces_the_file(ending, tmp_path):
    file = tmp_path / f"t{ending.upper()}"
    write_table(file, np.zeros((9, 2)), ["a", "b"])
    write_table(file, np.ones((1, 1)), ["a"])
    assert read_table(file).values.tolist() == [[1.0]]


def test_csv_keeps_infinities_that_a_log_density_may_have(tmp_path):
    write_table(tmp_path / "t.csv", [0.1, -np.inf, np.nan], ["log_prob"])
    assert (tmp_path / "t.csv").read_text() == "log_prob\n0.1\n-inf\nnan\n"


# --- missing values


def with_gaps(folder, ending):
    """A file of four rows, the second and the third with gaps, as other programs write them."""
    file = folder / f"t{ending}"
    values = np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, np.nan], [5.0, 6.0]])
    if ending == ".csv":
        file.write_text("a,b\n1,2\n,3\n4,N/A\n5,6\n")
    elif ending == ".parquet":
        columns = {"a": [1, None, 4, 5], "b": [2.0, 3.0, None, 6.0]}
        pd.DataFrame(columns, dtype="Float64").to_parquet(file)
    else:
        write_table(file, values, ["a", "b"])
    return file


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_values_are_refused_by_their_number(ending, tmp_path):
    message = refused(with_gaps(tmp_path, ending))
    first, second = ("'x0'", "'x1'") if ending == ".npy" else ("'a'", "'b'")
    assert f"1 in column {first}, 1 in column {second}, the first in row 2 (" in message


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_with_missing_values_are_dropped_where_that_is_asked_for(ending, tmp_path):
    table = read_table(with_gaps(tmp_path, ending), missing="drop")
    assert table.values.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert table.dropped == 2


def test_a_table_of_nothing_but_gaps_is_refused_even_so(tmp_path):
    file = text_file(tmp_path, "x,y\n1,\n,2\n")
    with pytest.raises(ValueError, match="rows without any: 0 of 2"):
        read_table(file, missing="drop")
    with pytest.raises(ValueError, match="missing to be one of refuse, drop; got 'fill'"):
        read_table(file, missing="fill")


def test_infinity_and_text_are_no_missing_values(tmp_path):
    with pytest.raises(ValueError, match="got 'inf' in column 'y' at data row 1"):
        read_table(text_file(tmp_path, "x,y\n1,inf\n,2\n"), missing="drop")
    with pytest.raises(ValueError, match="got 'unknown'"):
        read_table(text_file(tmp_path, "x,y\n1,2\n1,unknown\n"), missing="drop")


# --- categories


def test_columns_of_text_are_categories(tmp_path):
    table = read_table(text_file(tmp_path, "x,colour,age\n1, red,40-49\n2,blue,3+\n3,red,40-49\n"))
    assert table.categories == {"colour": ("blue", "red"), "age": ("3+", "40-49")}
    assert table.values.tolist() == [[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [3.0, 1.0, 1.0]]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_categories_and_whole_numbers_are_written_as_such(ending, tmp_path):
    file, values = tmp_path / f"t{ending}", [[0.5, 3.0, 1.0], [1.5, 4.0, 0.0]]
    categories = {"colour": ("blue", "red")}
    write_table(file, values, ["x", "n", "colour"], categories, whole=["n"])
    frame = (pd.read_csv if ending == ".csv" else pd.read_parquet)(file)
    assert frame["n"].dtype == np.int64
    assert frame["colour"].tolist() == ["red", "blue"]
    table = read_table(file)
    assert table.categories == categories
    assert table.values.tolist() == values


def test_gaps_between_texts_are_missing(tmp_path):
    pd.DataFrame({"a": ["v", None, "u"], "x": [1.0, 2, 3]}).to_parquet(tmp_path / "t.parquet")
    for file in (tmp_path / "t.parquet", text_file(tmp_path, "a,x\nv,1\n,2\nu,3\n")):
        with pytest.raises(ValueError, match="1 in column 'a', the first in row 2"):
            read_table(file)
        table = read_table(file, missing="drop")
        assert (table.values[:, 0].tolist(), table.dropped) == ([1.0, 0.0], 1)
        assert table.categories == {"a": ("u", "v")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["red", "7"], "Expected text in .*, as above; got '7' in column 'a' at data row 2"),
        (["7", "red"], "Expected finite numbers in .*; got 'red' in column 'a' at data row 2"),
        (["1,5"], "got '1,5' in column 'a' at data row 1"),
        ([f"id{i}" for i in range(101)], "at most 100 categories .* 'a' by data row 101"),
    ],
)
def test_text_that_is_no_category(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_table(text_file(tmp_path, "a\n" + "".join(f'"{row}"\n' for row in rows)))


def test_too_many_texts_in_parquet(tmp_path):
    pd.DataFrame({"a": [f"id{i}" for i in range(101)]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="at most 100 categories"):
        read_table(tmp_path / "t.parquet")


# --- csv


def test_csv_is_read_leniently_where_nothing_is_in_doubt(tmp_path):
    file = text_file(tmp_path, '\ufeffx, "y, z",flag\r\n 1, 2e-3 ,True\r\n\r\n"3",+4,false\r\n\r\n')
    table = read_table(file)
    assert table.columns == ("x", "y, z", "flag")
    assert table.values.tolist() == [[1.0, 0.002, 1.0], [3.0, 4.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x,y\n1,2\n\n3,abc\nq,4\n", ["got 'abc'", "column 'y'", "data row 2 (line 4)"]),
        ("x,y\n1,\n", ["no missing values", "1 in column 'y'", "row 1 (rows without any: 0 of 1)"]),
        (
            "x,y,z\n1,2,3\nNA,2,\nnan, null,5\n4,5,6\n",
            [
                "2 in column 'x', 1 in column 'y', 1 in column 'z'",
                "the first in row 2 (rows without any: 2 of 4)",
                "--missing drop",
            ],
        ),
        ("x\n-inf\n", ["got '-inf'", "data row 1"]),
        ("x\n1e999\n", ["got '1e999'"]),
        ("x\n2024_05\n", ["got '2024_05'"]),
        ("x,y\n1,2,3\n", ["Expected 2 cells", "got 3 at data row 1 (line 2)"]),
        ("x,y\n1,2\n3\n", ["Expected 2 cells", "got 1 at data row 2 (line 3)"]),
        ("1.5,2\n3,4\n", ["Expected a header", "got only numbers, 1.5, 2"]),
        ("", ["Expected a header", "empty file"]),
        ("x,y\n", ["Expected rows", "empty table"]),
        ("x,x\n1,2\n", ["['x'] repeated"]),
        (",x\n0,2\n", ["blank names at columns [1]", "row index"]),
        ("x;y\n1;2\n", ["got '1;2'"]),
        ("x\n1'234\n", ['got "1\'234"']),
        ("x\n\u22123\n", ["got '\u22123'"]),
        ("x\n12%\n", ["got '12%'"]),
        ('x,y\n"1"2,3\n', ["readable .csv", "expected after"]),
        ('x,y\n1,"3\n', ["readable .csv", "unexpected end of data"]),
        ("x,y\n1,2\n3\0,4\n", ["readable .csv", "a NUL on line 3"]),
        (f'x\n"{"1" * 200_000}"\n', ["readable .csv", "field larger than"]),
    ],
)
def test_csv_errors(text, parts, tmp_path):
    message = refused(text_file(tmp_path, text))
    assert all(part in message for part in parts), message


def test_csv_in_another_encoding(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes("x,größe\n1,2\n".encode("latin-1"))
    assert "can't decode" in refused(file)


# --- npy and npz


def test_npy_is_mapped_and_never_changed(tmp_path):
    file = tmp_path / "t.npy"
    np.save(file, np.arange(6.0).reshape(3, 2))
    table = read_table(file)
    assert isinstance(table.values.base, np.memmap)
    assert table.columns == ("x0", "x1")
    table.values[0, 0] = 9.0
    assert np.load(file)[0, 0] == 0.0


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (np.zeros(()), "shape ()"),
        (np.zeros((2, 2, 2)), "shape (2, 2, 2)"),
        (np.zeros((0, 2)), "empty table"),
        (
            np.array([[1.0, 2.0], [3.0, np.nan]]),
            "1 in column 'x1', the first in row 2",
        ),
        (np.array([[1.0], [np.inf]], np.float32), "got inf in column 'x0' at row 2"),
        (np.array([["a", "b"]]), "got 'a' in column 'x0' at row 1"),
        (np.array([1j]), "got '1j'"),
        (np.array([{}], dtype=object), "Python objects in dtype"),
    ],
)
def test_npy_errors(values, part, tmp_path):
    file = tmp_path / "t.npy"
    np.save(file, values, allow_pickle=True)
    assert part in refused(file)


def test_npz_with_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.ones((2, 1)))
    assert read_table(tmp_path / "t.npz").values.tolist() == [[1.0], [1.0]]
    assert read_table(f"{tmp_path / 't.npz'}:rows").name == "t"


def test_npz_with_several_arrays_wants_a_name(tmp_path):
    file = tmp_path / "t.npz"
    np.savez(file, train=np.ones(2), test=np.zeros((3, 2)))
    assert read_table(f"{file}:test").values.shape == (3, 2)
    assert "got 2 arrays: choose from train, test" in refused(file)
    assert "no array 'tests': choose from test" in refused(f"{file}:tests")


def test_npz_without_arrays(tmp_path):
    np.savez(tmp_path / "t.npz")
    assert "got 0 arrays: write it again" in refused(tmp_path / "t.npz")


def test_npz_with_pickled_objects(tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.array([{}], dtype=object))
    assert "readable .npz" in refused(tmp_path / "t.npz")


# --- parquet


def test_parquet_converts_numbers_and_booleans(tmp_path):
    frame = pd.DataFrame({"i": [1, 2], "b": [True, False], "f": np.float32([0.1, 0.2])})
    frame["nullable"] = pd.array([3, 4], dtype="Int64")
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.columns == ("i", "b", "f", "nullable")
    np.testing.assert_array_equal(table.values, frame.to_numpy(np.float64))


def test_parquet_without_names(tmp_path):
    pd.DataFrame(np.ones((2, 2))).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").columns == ("x0", "x1")


@pytest.mark.parametrize(
    ("column", "part"),
    [
        ([1.0, np.nan], "1 in column 'y', the first in row 2"),
        ([True, None], "1 in column 'y', the first in row 2"),
        (pd.array([1, None], dtype="Int64"), "in column 'y', the first in row 2"),
        (pd.to_datetime(["2024-01-01", "2024-01-02"]), "got Timestamp"),
    ],
)
def test_parquet_errors(column, part, tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": column})
    frame.to_parquet(tmp_path / "t.parquet")
    assert part in refused(tmp_path / "t.parquet")


# --- any file


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"not at all", b"PK\x03\x04 torn"])
def test_damaged_files(ending, content, tmp_path):
    file = tmp_path / f"t{ending}"
    file.write_bytes(content)
    assert f"Expected a readable {ending} file" in refused(file)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
def test_torn_files(ending, tmp_path):
    file = tmp_path / f"t{ending}"
    write_table(file, np.random.default_rng(0).normal(size=(500, 2)), ["a", "b"])
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"Expected a readable {ending} file" in refused(file)


def test_an_array_under_an_archives_name(tmp_path):
    with (tmp_path / "t.npz").open("wb") as stream:
        np.save(stream, np.ones(3))
    assert "readable .npz" in refused(tmp_path / "t.npz")


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "t.csv")
    assert "no such file" in refused(f"{tmp_path}/t.npz:rows")


def test_a_folder(tmp_path):
    (tmp_path / "t.csv").mkdir()
    assert "a folder" in refused(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.txt", "t", "t.csv.gz"])
def test_unknown_ending(name, tmp_path):
    (tmp_path / name).touch()
    assert ".csv, .npy, .npz, .npz:ARRAY or .parquet" in refused(tmp_path / name)


# --- writing


def test_unwritable_paths(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for name, part in {
        "t.txt": "Expected a path that ends in .csv, .npy, .npz, .parquet; got",
        "folder.csv": "got a folder at",
        "missing/t.csv": "create it first",
        "file/t.csv": "create it first",
    }.items():
        with pytest.raises(ValueError, match=r"^Expected") as error:
            check_writable(tmp_path / name)
        assert part in str(error.value)
        with pytest.raises(ValueError, match=r"^Expected"):
            write_table(tmp_path / name, [1.0], ["x"])


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def touch(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(ValueError, match=r"\(Permission denied\): choose another"):
        check_writable(tmp_path / "t.csv")


def test_a_full_disk_is_no_mistake_of_the_users(tmp_path, monkeypatch):
    def touch(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(OSError, match="No space left"):
        check_writable(tmp_path / "t.csv")


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "t.npy"
    write_table(file, [1.0], ["x"])

    def full(stream, values):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(file, [2.0], ["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["t.npy"]
    assert np.load(file).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("columns", "message"), [(["a"], "each of 2 columns"), (["1", "2"], "only numbers, 1, 2")]
)
def test_names_that_could_not_be_read_back(columns, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_table(tmp_path / "t.csv", np.ones((3, 2)), columns)
    assert not list(tmp_path.iterdir())


# --- what fuzzing found: each once, so that it stays found


def test_utf_16_without_a_mark_is_no_table_of_categories(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes("x,y\n1,2\n3,4\n".encode("utf-16-le"))
    assert "a NUL on line 1" in refused(file)


@pytest.mark.parametrize("name", ["notes.txt", "columns"])
def test_zip_with_something_else_in_it(name, tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.ones((2, 1)))
    with ZipFile(tmp_path / "t.npz", "a") as archive:
        archive.writestr(name, "text")
    assert f"{name} in it is no array" in refused(tmp_path / "t.npz")


@pytest.mark.parametrize("names", [np.array("a"), np.array([["a", "b"]]), np.arange(2)])
def test_names_that_name_no_columns_are_left_aside(names, tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.ones((2, 2)), columns=names)
    assert read_table(tmp_path / "t.npz").columns == ("x0", "x1")


def test_names_in_bytes_are_names(tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.ones((2, 2)), columns=np.array([b"b", b"a"]))
    assert read_table(tmp_path / "t.npz").columns == ("b", "a")


def test_longer_numbers_than_float64_are_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.array([np.longdouble("1e400")]))
    assert "got inf" in refused(tmp_path / "t.npy")


@pytest.mark.parametrize("cells", [[[1.0], [2.0]], [{"a": 1}, {"a": 2}]])
def test_parquet_with_lists_or_objects(cells, tmp_path):
    pd.DataFrame({"x": [1.0, 2.0], "y": cells}).to_parquet(tmp_path / "t.parquet")
    assert "in column 'y' at row 1" in refused(tmp_path / "t.parquet")


def test_array_beyond_memory_is_reported_with_its_file(tmp_path):
    """As a damaged header may claim."""
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 1)}
    with ZipFile(tmp_path / "t.npz", "w") as archive, archive.open("rows.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(MemoryError, match="t.npz does not fit into memory, or is damaged"):
        read_table(tmp_path / "t.npz")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for name, got in (
        ("pipe.csv", "a pipe or a device"),
        ("loop.csv", "too many levels of symbolic links"),
        ("x" * 300 + ".csv", "file name too long"),
        ("nul\0.csv", "embedded null byte"),
    ):
        assert f"got {got}" in refused(tmp_path / name)
        with pytest.raises(ValueError, match=f"Expected a path for a file; got {got} at"):
            check_writable(tmp_path / name)
