"""Files: what is written is read back, and what cannot be read is refused in one line."""

import gzip
import os
import tempfile
from decimal import Decimal
from functools import partial
from pathlib import Path
from unittest.mock import Mock
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cnf.datasets import ColumnType, Table, check_writable, frame_table, read_table, write_table

ENDINGS = [".csv", ".npy", ".npz", ".parquet"]


def a_table(values, columns=("x",), **more):
    matrix = np.array(values, np.float64).reshape(-1, len(columns))
    return Table("t", matrix, tuple(columns), **more)


def refused(path, missing="refuse") -> str:
    with pytest.raises(ValueError, match=r"(?s)^(.*: )?Expected .*; got .*: ") as error:
        read_table(path, missing)
    assert "\n" not in str(error.value)
    return str(error.value)


def content(data):
    return lambda file: file.write_bytes(data if isinstance(data, bytes) else data.encode())


def saved(values):
    def write(file):
        with file.open("wb") as stream:
            np.save(stream, values, allow_pickle=True)

    return write


def archive(**arrays):
    return lambda file: np.savez(file, **arrays)


def frame(**columns):
    return lambda file: pd.DataFrame(columns).to_parquet(file)


def torn(file):
    rows = np.random.default_rng(0).normal(size=(500, 2))
    if file.suffix == ".xlsx":
        pd.DataFrame(rows).to_excel(file)
    else:
        write_table(file, a_table(rows, ("a", "b")))
    file.write_bytes(file.read_bytes()[:-1000])


def with_member(name):
    def write(file):
        np.savez(file, rows=np.ones((2, 1)))
        with ZipFile(file, "a") as zipped:
            zipped.writestr(name, "text")

    return write


TWO = archive(train=np.ones(2), test=np.zeros((3, 2)))


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=15, deadline=None)
@given(
    arrays(
        st.sampled_from([np.float64, np.float32, np.int32, np.bool_]),
        array_shapes(min_dims=2, max_dims=2, max_side=5),
    )
)
def test_what_is_written_is_read_back(ending, values):
    values = np.nan_to_num(values)
    columns = tuple(f'"c", {i}' for i in range(values.shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"table{ending}"
        write_table(file, a_table(values, columns))
        table = read_table(file)
        np.testing.assert_array_equal(table.values, values.astype(np.float64))
        assert [path.name for path in Path(folder).iterdir()] == [file.name]
    assert table.name == "table"
    if ending != ".npy":
        assert table.columns == columns


@pytest.mark.parametrize("ending", ENDINGS)
def test_writing_replaces_the_file(ending, tmp_path):
    file = tmp_path / f"t{ending.upper()}"
    write_table(file, a_table(np.zeros(18), ("a", "b")))
    write_table(file, a_table([1.0, 2.0]))
    assert read_table(str(file)).values.tolist() == [[1.0], [2.0]]
    if ending == ".csv":  # keeps the infinities that a log-density may have
        write_table(file, a_table([0.1, -np.inf, np.nan]))
        assert file.read_text() == "x\n0.1\n-inf\nnan\n"
        days = pd.to_datetime(["2024-02-29", None])
        typed = {"day": days, "c": pd.Categorical(["a, b", None]), "n": [1, None]}
        write_table(file, frame_table(pd.DataFrame({**typed, "b": [True, None]})))
        assert file.read_text() == 'day,c,n,b\n2024-02-29,"a, b",1.0,True\n,,nan,\n'
        write_table(file, frame_table(pd.DataFrame({"day": days})))
        assert np.isnan(read_table(file, "keep").values).tolist() == [[False], [True]]


LENIENT = '\ufeffx, "y, z",flag\r\n 1, 2e-3 ,True\r\n\r\n"3",+4,false\r\n\r\n'
NUMBERS = {"i": [1, 2], "b": [True, False], "f": np.float32([0.5, 0.25])}
INTEGERS = pd.array([3, 4], dtype="Int64")
ONES = [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "write", "columns", "values"),
    [
        ("t.csv", content(LENIENT), "x|y, z|flag", [[1.0, 0.002, 1.0], [3.0, 4.0, 0.0]]),
        ("t.npz", archive(rows=np.ones((2, 1))), "x0", [[1.0], [1.0]]),
        ("t.npz:rows", archive(rows=np.ones((2, 1))), "x0", [[1.0], [1.0]]),
        ("t.npz:test", TWO, "x0|x1", [[0.0, 0.0]] * 3),
        ("t.npz", archive(rows=np.ones((2, 2)), columns=np.array("a")), "x0|x1", ONES),
        ("t.npz", archive(rows=np.ones((2, 2)), columns=np.array([["a", "b"]])), "x0|x1", ONES),
        ("t.npz", archive(rows=np.ones((2, 2)), columns=np.arange(2)), "x0|x1", ONES),
        ("t.npz", archive(rows=np.ones((2, 2)), columns=np.array([b"b", b"a"])), "b|a", ONES),
        ("t.parquet", frame(**NUMBERS, n=INTEGERS), "i|b|f|n", [[1, 1, 0.5, 3], [2, 0, 0.25, 4]]),
        ("t.parquet", lambda file: pd.DataFrame(np.ones((2, 2))).to_parquet(file), "x0|x1", ONES),
    ],
)
def test_layouts_of_files(name, write, columns, values, tmp_path):
    write(tmp_path / name.partition(":")[0])
    table = read_table(tmp_path / name)
    assert (table.name, table.columns) == ("t", tuple(columns.split("|")))
    assert table.values.tolist() == values


def test_npy_is_mapped_and_never_changed(tmp_path):
    file = tmp_path / "t.npy"
    np.save(file, np.arange(6.0).reshape(3, 2))
    table = read_table(file)
    assert isinstance(table.values.base, np.memmap)
    assert table.columns == ("x0", "x1")
    table.values[0, 0] = 9.0
    assert np.load(file)[0, 0] == 0.0


GAPS = np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, np.nan], [5.0, 6.0]])
NULLABLE = [pd.array(column, "Float64") for column in GAPS.T]
KEPT = [[1.0, 2.0], [5.0, 6.0]]
PARTS = "1 in column 'a', 1 in column 'b', the first in row 2 ("
TEXTS = ("1 in column 'a', the first in row 2 (", [[1.0, 1.0], [0.0, 3.0]], {"a": ("u", "v")})


@pytest.mark.parametrize(
    ("name", "write", "message", "complete", "categories"),
    [
        ("t.csv", content("a,b\n1,2\n,3\n4,N/A\n5,6\n"), PARTS, KEPT, {}),
        ("t.npy", saved(GAPS), "1 in column 'x0', 1 in column 'x1', the first", KEPT, {}),
        ("t.npz", archive(values=GAPS, columns=["a", "b"]), PARTS, KEPT, {}),
        ("t.parquet", frame(a=GAPS[:, 0], b=GAPS[:, 1]), PARTS, KEPT, {}),
        ("t.parquet", frame(a=NULLABLE[0], b=NULLABLE[1]), PARTS, KEPT, {}),
        ("t.csv", content("a,x\nv,1\n,2\nu,3\n"), *TEXTS),
        ("t.parquet", frame(a=["v", None, "u"], x=[1.0, 2, 3]), *TEXTS),
    ],
)
def test_missing_values_are_counted_or_their_rows_dropped(
    name, write, message, complete, categories, tmp_path
):
    write(tmp_path / name)
    assert message in refused(tmp_path / name)
    table = read_table(tmp_path / name, missing="drop")
    assert (table.values.tolist(), table.categories) == (complete, categories)
    assert table.dropped == (1 if categories else 2)


def test_columns_of_text_are_categories_and_written_as_such(tmp_path):
    content("x,colour,age\n1, red,40-49\n2,blue,3+\n3,red,40-49\n")(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv")
    assert table.categories == {"colour": ("blue", "red"), "age": ("3+", "40-49")}
    assert table.values.tolist() == [[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [3.0, 1.0, 1.0]]
    values, categories = [[0.5, 3.0, 1.0], [1.5, 4.0, 0.0]], {"colour": ("blue", "red")}
    types = {"n": ColumnType("int64")}
    written = a_table(values, ("x", "n", "colour"), categories=categories, types=types)
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        file = tmp_path / f"t.{ending}"
        write_table(file, written)
        found, table = read(file), read_table(file)
        assert found["n"].dtype == np.int64
        assert found["colour"].tolist() == ["red", "blue"]
        assert (table.values.tolist(), table.categories) == (values, categories)


def test_types_of_parquet_return(tmp_path):
    sizes = pd.Categorical(["M", "S", None], categories=["S", "M", "L"], ordered=True)
    days = pd.date_range("2024-03-30", periods=3, tz="Europe/Berlin", unit="us")
    frame = pd.DataFrame(
        {
            "size": sizes,
            "grade": pd.Categorical([3, 1, 3]),
            "n": pd.array([1, None, 3], dtype="Int64"),
            "small": np.array([1, 2, 3], dtype=np.uint8),
            "single": np.array([0.5, 0.1, np.nan], dtype=np.float32),
            "flag": [True, False, True],
            "gaps": pd.array([True, None, False], dtype="boolean"),
            "price": [Decimal("1.50"), None, Decimal("0.25")],
            "day": days,
            "text": ["a", "01", None],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    write_table(tmp_path / "out.parquet", read_table(tmp_path / "t.parquet", "keep"))
    expected = pd.read_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), expected)


ABSENT = "1 in column 'y', the first in row"
SEPARATORLESS = "got one column 'x y' with cells such as '1 234': give --sep"
CSV = [
    (
        "x,y\n1,2\n\n3,abc\n4,5\n",
        "got 'abc' in column 'y' at data row 2 (line 4)",
        "gap, or",
        "--drop y.",
    ),
    ("y\nabc\n1\n2\n", "Expected finite numbers", "got 'abc' in column 'y' at data row 1 (line 2)"),
    ("x,y\n1,\n", "no missing values", f"{ABSENT} 1 (rows without any: 0 o"),
    ("x,y\n1,2\nNA,\nnan, null\n", "2 in column 'x', 2 in column 'y', the first in row 2 ("),
    ("x\n1\nNA\n4\n", "(rows without any: 2 of 3)", "--missing drop"),
    ("x\n-inf\n", "got '-inf'", "data row 1"),
    ("x\n1e999\n", "got '1e999'"),
    ("x\n2024_05\n", "got '2024_05'"),
    ("x\n9007199254740993\n1\n", "whole numbers below 2^53", "got '9007199254740993' in"),
    ("x,y\n1,2,3\n", "Expected 2 cells", "got 3 at data row 1 (line 2)", "--sep"),
    ("x,y\n1,2\n3\n", "Expected 2 cells", "got 1 at data row 2 (line 3)"),
    ("x;y\n1\n2\n", "Expected 2 cells", "got 1 at data row 1 (line 2)", "--sep"),
    ("x;y,z\na;b,c\n", "one separator", "got ',' and ';', which fit equally: give --sep"),
    ("x y\n1 2\n", "got '1 2' in column 'x y'", "--sep", "--drop 'x y'"),
    ("x y\n1 234\n2 345\n", SEPARATORLESS),
    ("1.5,2\n3,4\n", "Expected a header", "got only numbers, 1.5, 2"),
    ("", "Expected a header", "empty file"),
    ("# comments\n", "Expected a header", "empty file"),
    ("x,y\n", "Expected rows", "empty table"),
    ("x,x\n1,2\n", "['x'] repeated", "--drop x"),
    ("x;y\n1.5;2,5\n", "one decimal mark", "got '1.5' in column 'x' and '2,5' in column 'y'"),
    ('x\n"1,234"\n', "show their decimal mark", "'1,234' in column 'x'", "--decimal"),
    ("x;y\n1.234;2.345\n", "show their decimal mark", "'1.234' in column 'x'", "--decimal"),
    ('x\n"1,23,4"\n', "got '1,23,4'"),
    ("x\n\u22123\n", "got '\u22123'"),
    ("x\n12%\n", "got '12%'"),
    ('x,y\n"1"2,3\n', "readable .csv", "expected after"),
    ('x,y\n1,"3\n', "readable .csv", "unexpected end of data"),
    ("x,y\n1,2\n3\0,4\n", "readable .csv", "a NUL on line 3"),
    (f'x\n"{"1" * 200_000}"\n', "whole numbers below", f"got '{'1' * 79} in"),
    ("a\nred\n7\n", "Expected text in", ", such as 'red'; got '7' in column 'a' at data row 2"),
    ("a\n7\nred\n", "Expected finite numbers", "got 'red' in column 'a' at data row 2"),
    ("x\n1\n?\nred\n3\n", "Expected finite numbers", "got 'red' in column 'x' at data row 3"),
    ("größe\n1\n".encode() + b"\xff\n", "can't decode", "--encoding"),
    (b"x\n\x07\xff\n", "can't decode"),
    (b"x\n\x81\n", "can't decode"),
    (b"\xe3\xee\xf0\xee\xe4,x\na,1\n", "can't decode", "--encoding"),
    ("x,y\r1.2345,2\r".encode("cp037"), "can't decode"),
]
REFUSED = [
    *(("t.csv", content(text), *parts) for text, *parts in CSV),
    ("t.npy", saved(np.zeros(())), "shape ()"),
    ("t.npy", saved(np.zeros((2, 2, 2))), "shape (2, 2, 2)"),
    ("t.npy", saved(np.zeros((0, 2))), "empty table"),
    ("t.npy", saved(np.zeros((2, 0), "M8[D]")), "empty table"),
    ("t.parquet", frame(), "empty table"),
    ("t.npy", saved(np.array([[1.0], [np.inf]], np.float32)), "got inf in column 'x0' at row 2"),
    ("t.npy", saved(np.array([np.longdouble("1e400")])), "got inf"),
    ("t.npy", saved(np.array([["a", "b"]])), "got 'a' in column 'x0' at row 1"),
    ("t.npy", saved(np.array([1j])), "got '1j'"),
    ("t.npy", saved(np.array([{}], dtype=object)), "Python objects in dtype"),
    ("t.npz", TWO, "got 2 arrays: choose from train, test"),
    ("t.npz:tests", TWO, "no array 'tests': choose from test"),
    ("t.npz", archive(), "got 0 arrays: write it again"),
    ("t.npz", archive(rows=np.array([{}], dtype=object)), "readable .npz"),
    ("t.npz", saved(np.ones(3)), "readable .npz"),
    ("t.npz", with_member("notes.txt"), "notes.txt in it is no array"),
    ("t.npz", with_member("columns"), "columns in it is no array"),
    ("t.parquet", frame(x=[1.0, 2.0], y=[1.0, np.nan]), f"{ABSENT} 2"),
    ("t.parquet", frame(y=[True, None]), f"{ABSENT} 2"),
    ("t.parquet", frame(y=pd.array([1, None], dtype="Int64")), f"{ABSENT} 2"),
    ("t.parquet", frame(y=[[1.0], [2.0]]), "column 'y'"),
    ("t.parquet", frame(y=[{"a": 1}, {"a": 2}]), "column 'y'"),
    ("t.parquet", frame(y=[1.0, np.inf]), "in column 'y'; got inf in row 2", "--drop"),
    ("t.csv.gz", content(b"not gzip"), "Expected a readable .csv.gz file"),
    ("t.csv.gz", content(gzip.compress(b"x\n1\n" * 999)[:-9]), "Expected a readable .csv.gz file"),
    ("t.csv", lambda file: None, "no such file"),
    ("t.npz:rows", lambda file: None, "no such file"),
    ("t.csv", Path.mkdir, "a folder"),
    *((name, Path.touch, ".npz, .npz:ARRAY or .parquet") for name in ("t.xls", "t", "t.gz")),
    *(
        (f"t{ending}", write, f"Expected a readable {ending} file")
        for ending in (".npy", ".npz", ".parquet", ".xlsx")
        for write in (content(b""), content(b"not at all"), content(b"PK\x03\x04 torn"), torn)
    ),
]


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(case, tmp_path):
    name, write, *parts = case
    write(tmp_path / name.partition(":")[0])
    message = refused(tmp_path / name)
    assert all(part in message for part in parts), message


def test_rows_without_numbers_are_not_dropped(tmp_path):
    for text, missing, part in (
        ("x,y\n1,\n,2\n", "drop", "rows without any: 0 of 2"),
        ("x,y\n1,\n,2\n", "fill", "missing to be one of refuse, drop, model, keep; got 'fill'"),
        ("x,y\n1,inf\n,2\n", "drop", "got 'inf' in column 'y' at data row 1"),
        ("x,y\n1,2\n1,unknown\n", "drop", "got 'unknown'"),
    ):
        content(text)(tmp_path / "t.csv")
        assert part in refused(tmp_path / "t.csv", missing)


def test_array_beyond_memory_is_reported_with_its_file(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 1)}  # of a damaged file
    with ZipFile(tmp_path / "t.npz", "w") as zipped, zipped.open("rows.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(MemoryError, match="t.npz does not fit into memory, or is damaged"):
        read_table(tmp_path / "t.npz")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for name, got in {
        "pipe.csv": "a pipe or a device",
        "loop.csv": "too many levels of symbolic links",
        "x" * 300 + ".csv": "file name too long",
        "nul\0.csv": "embedded null byte",
    }.items():
        assert f"got {got}" in refused(tmp_path / name)
        with pytest.raises(ValueError, match=f"Expected a path for a file; got {got} at"):
            check_writable(tmp_path / name)


def test_unwritable_paths(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "t.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"folder.csv", "file"}
    for name, message in {
        "t.txt": r"Expected a path that ends in \.csv, \.npy, \.npz, \.parquet; got",
        "folder.csv": "Expected .*got a folder at",
        "missing/t.csv": "Expected .*create it first",
        "file/t.csv": "Expected .*create it first",
    }.items():
        for write in (check_writable, partial(write_table, table=a_table([1.0]))):
            with pytest.raises(ValueError, match=message):
                write(tmp_path / name)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    for error, raised, message in (
        (PermissionError(13, "Permission denied"), ValueError, r"\(Permission denied\): choose"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
    ):
        monkeypatch.setattr(Path, "touch", Mock(side_effect=error))
        with pytest.raises(raised, match=message):
            check_writable(tmp_path / "t.csv")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    def full(stream, values):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    write_table(tmp_path / "t.npy", a_table([1.0]))
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(tmp_path / "t.npy", a_table([2.0]))
    assert [np.load(path).tolist() for path in tmp_path.iterdir()] == [[[1.0]]]


def test_names_that_could_not_be_read_back(tmp_path):
    with pytest.raises(ValueError, match="only numbers, 1, 2"):
        write_table(tmp_path / "t.csv", a_table(np.ones(6), ["1", "2"]))
    assert not list(tmp_path.iterdir())
