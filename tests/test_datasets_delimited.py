"""Text files and sheets as people have them: read, with a note on what was found out."""

import builtins
import gzip
import re
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from cnf.datasets import ReadOptions, load, read_table, table_frame, write_table
from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser

NAN = float("nan")
CITY = "größe,ort\n1,Köln\n2,Bonn\n"
CITIES = {"größe": [1, 2], "ort": ["Köln", "Bonn"]}
XY = {"x": [1, 3], "y": [2, 4]}


def reading(file, content, code="utf-8", **options):
    """Return the frame that is read from a file, and the note."""
    data = content if isinstance(content, bytes) else content.encode(code)
    file.write_bytes(gzip.compress(data) if file.suffix.lower() == ".gz" else data)
    table = read_table(file, "keep", ReadOptions(**options))
    assert len(table.notes) <= 1
    return table_frame(table), "".join(table.notes)


@pytest.mark.parametrize(
    ("text", "note", "columns"),
    [
        ("x,y\n1,2\n3,4\n", "", XY),
        ("x;y\r\n1;2\r\n3;4\r\n", "separated by ';'", XY),
        ("x\ty\n1\t2\n3\t4\n", "separated by tabs", XY),
        ("x|y\n1|2\n3|4\n", "separated by '|'", XY),
        ("x;y,z\n1,5;2,5\n", "separated by ';', decimal comma", {"x": [1.5], "y,z": [2.5]}),
        ("sep=;\nx;y\n1;2\n3;4\n", "separated by ';'", XY),
        ('"x;y"\n1\n2\n', "", {"x;y": [1, 2]}),
        ("x;y\n1.234;1,5\n", "separated by ';', decimal comma, '.' between thousands",
         {"x": [1234], "y": [1.5]}),
        ('x,y\n0.5,"3,380.34"\n', "',' between thousands", {"x": [0.5], "y": [3380.34]}),
        ('x,y\n0.5,"1,234"\n', "',' between thousands", {"x": [0.5], "y": [1234]}),
        ('x\n"1,234,567"\n', "',' between thousands", {"x": [1234567]}),
        ('x\n"1.234,50"\n"-,5"\n', "decimal comma, '.' between thousands", {"x": [1234.5, -0.5]}),
        ("pay\n1 234\n12 345.5\n", "spaces between thousands", {"pay": [1234, 12345.5]}),
        ("pay\n1\u202f234\n5\n", "spaces between thousands", {"pay": [1234, 5]}),
        ("pay\n1'234\n5\n", '"\'" between thousands', {"pay": [1234, 5]}),
        ("x\n+1\n-.5\n2.\n1e3\n007.5\n", "", {"x": [1, -0.5, 2, 1000, 7.5]}),
        ("x\n1\n2.0\n", "", {"x": [1.0, 2.0]}),
        ("x,y\n1,\nNA,#N/A\n3,4\n", "",
         {"x": pd.array([1, None, 3]), "y": pd.array([None, None, 4])}),
        ("q,t\n?,?\n.,a\n1.5,None\n", "'?' for missing values, '.' for missing values",
         {"q": [NAN, NAN, 1.5], "t": ["?", "a", None]}),
        ("zip\n01234\n10115\n?\n",
         "'?' for missing values, column 'zip' is text, with leading zeros",
         {"zip": ["01234", "10115", None]}),
        ("b,c\nTrue,true\nFalse,\n", "", {"b": [True, False], "c": pd.array([True, None])}),
        ("v,ip\n1.2.3,10.0.0.1\n", "", {"v": ["1.2.3"], "ip": ["10.0.0.1"]}),
        ("t,n\n 3+ ,1\n12%,2\nred,3\n", "", {"t": ["3+", "12%", "red"], "n": [1, 2, 3]}),
        ('t,n\n"Smith, J.\nJr ""x""",1\nB,2\n', "", {"t": ['Smith, J.\nJr "x"', "B"], "n": [1, 2]}),
        ("# one, two\n#\n\nx,y\n1,2\n   \n# between\n#0.5,3\n3,4\n", "4 comment lines", XY),
        ("# x,y\n1,2\n3,4\n", "names from a comment", XY),
        ("c,y\n#ff0000,1\n#00ff00,2\n# note\n", "1 comment line",
         {"c": ["#ff0000", "#00ff00"], "y": [1, 2]}),
        ("c,y\nred,1\nblue,2\n#green,3\n", "1 comment line", {"c": ["red", "blue"], "y": [1, 2]}),
        (",\nx,y\n1,2\n3,4\n", "", XY),
        ("x,y\n#N/A,2\n3,4\n", "", {"x": pd.array([None, 3]), "y": [2, 4]}),
        ('t,n\n"a\n#b",1\n', "", {"t": ["a\n#b"], "n": [1]}),
        (",x,y\n1,1,2\n0,3,4\n", "row index left out", XY),
        ("Unnamed: 0,x,y\n1,1,2\n2,3,4\n", "row index left out", XY),
        (",x\n5,1\n5,2\n", "", {"Unnamed: 0": [5, 5], "x": [1, 2]}),
        (",x\na,1\nb,2\n", "", {"Unnamed: 0": ["a", "b"], "x": [1, 2]}),
        ("x,,y,\n1,,2,\n3,,4,\n", "empty columns without a name left out", XY),
        ("x,y\n1,2,\n3,4,\n", "empty columns without a name left out", XY),
        ("x\n" + "".join(f'"{i}",7\n' for i in range(1, 13)), "row index left out",
         {"x": [7] * 12}),
        ("d,t\n2024-01-02,-\n-,a\n", "'-' for missing values",
         {"d": ["2024-01-02", None], "t": ["-", "a"]}),
        ("x\n-\n1.5\n2.5\n", "'-' for missing values", {"x": [NAN, 1.5, 2.5]}),
        (f"t,n\n{'long ' * 40_000}end,1\n", "", {"t": ["long " * 40_000 + "end"], "n": [1]}),
    ],
)  # fmt: skip
def test_what_is_found_out_is_said(text, note, columns, tmp_path):
    found, said = reading(tmp_path / "t.csv", text)
    assert said == note
    assert_frame_equal(found, pd.DataFrame(columns))


@pytest.mark.parametrize(
    ("text", "options", "note", "columns"),
    [
        ("x y \n1  2\n 3 4  \n", {"sep": " "}, "separated by spaces", XY),
        ("x/y\n1/2\n3/4\n", {"sep": "/"}, "separated by '/'", XY),
        ("x\ty\n1\t2\n3\t4\n", {"sep": "tab"}, "separated by tabs", XY),
        ("x;y\na;b\n", {"sep": ","}, "", {"x;y": ["a;b"]}),
        ('x\n"1,234"\n', {"decimal": ","}, "decimal comma", {"x": [1.234]}),
        ('x\n"1,234"\n', {"thousands": ","}, "',' between thousands", {"x": [1234]}),
        ('x\n"1.234"\n', {"thousands": "."}, "decimal comma, '.' between thousands", {"x": [1234]}),
        ("x;y\n1.5;2,5\n", {"drop": ["y"]}, "separated by ';'", {"x": [1.5]}),
        ("x\n-999\n1.5\n-999.0\nfoo\n", {"na_values": ["-999", "foo"]}, "",
         {"x": [NAN, 1.5, NAN, NAN]}),
        (b"x,\xe9\n1,2\n", {"encoding": "latin-1"}, "encoding LATIN-1", {"x": [1], "é": [2]}),
        ("x,y,z\n1,abc,2\n3,7,4\n", {"drop": ["y"]}, "", {"x": [1, 3], "z": [2, 4]}),
        ("x,x,z\n1,abc,2\n", {"drop": ["x"]}, "", {"z": [2]}),
        ("x,y,z\n1,abc,2\n3,7,4\n", {"only": {"z", "x", "other"}}, "", {"x": [1, 3], "z": [2, 4]}),
        ("x,y\n1,2\n3,4\n", {"only": ["a", "b"]}, "", XY),
        (",x\n0,1\n1,3\n", {"drop": ["Unnamed: 0"]}, "", {"x": [1, 3]}),
        (",x\n0,1\n1,3\n", {"only": ["Unnamed: 0", "x"]}, "", {"Unnamed: 0": [0, 1], "x": [1, 3]}),
    ],
)  # fmt: skip
def test_options_override_what_is_found_out(text, options, note, columns, tmp_path):
    found, said = reading(tmp_path / "t.csv", text, **options)
    assert said == note
    assert_frame_equal(found, pd.DataFrame(columns))


@pytest.mark.parametrize(
    ("encoding", "note"),
    [("utf-8", ""), ("utf-8-sig", ""), ("cp1252", "encoding Windows-1252"),
     *((name, f"encoding {name.upper()}") for name in ("utf-16", "utf-16-le", "utf-16-be"))],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".txt"])
def test_encodings(encoding, note, ending, tmp_path):
    found, said = reading(tmp_path / f"t{ending}", CITY, encoding)
    assert said == note
    assert_frame_equal(found, pd.DataFrame(CITIES))


def test_endings(tmp_path):
    for name, text, note in (
        ("t.tsv", "x\ty\n1\t2\n3\t4\n", ""),
        ("t.TSV.GZ", "x\ty\n1\t2\n3\t4\n", ""),
        ("t.tsv", "x,y\n1,2\n3,4\n", "separated by ','"),
    ):
        found, said = reading(tmp_path / name, text)
        assert said == note
        assert_frame_equal(found, pd.DataFrame(XY))
        assert read_table(tmp_path / name).name == "t"


def test_spelling_of_booleans_is_written(tmp_path):
    text = "x,flag,low\n1,TRUE,true\n2,FALSE,false\n"
    (tmp_path / "t.csv").write_text(text)
    write_table(tmp_path / "out.csv", read_table(tmp_path / "t.csv"))
    assert (tmp_path / "out.csv").read_text() == text


def test_columns_are_chosen_in_all_files(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": ["a", "b"], "z": [3.0, 4.0]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_excel(tmp_path / "t.xlsx")
    np.savez(tmp_path / "t.npz", rows=frame[["x", "x", "z"]], columns=["x", "y", "z"])
    np.save(tmp_path / "t.npy", frame[["x", "x", "z"]])
    for name, drop in (("t.parquet", "y"), ("t.xlsx", "y"), ("t.npz", "y"), ("t.npy", "x1")):
        table = read_table(tmp_path / name, options=ReadOptions(drop=[drop]))
        assert table.values.tolist() == [[1.0, 3.0], [2.0, 4.0]], name
        with pytest.raises(ValueError, match="--drop to name columns of t; got 'w'"):
            read_table(tmp_path / name, options=ReadOptions(drop=["w"]))
    with pytest.raises(ValueError, match="--drop to leave a column of t to model; got all 3"):
        read_table(tmp_path / "t.npz", options=ReadOptions(drop=["x", "y", "z"]))
    assert load("iris", options=ReadOptions(only=["petal width (cm)"])).values.shape == (150, 1)


def test_types_of_a_model(tmp_path):
    (tmp_path / "t.csv").write_text("zip,day,x\n01234,2024-01-01,1\n10115,2024-01-03,2\n")
    types = read_table(tmp_path / "t.csv").types
    (tmp_path / "few.csv").write_text("zip,day,x\n10115,2024-01-05,1\n")
    few = read_table(tmp_path / "few.csv", options=ReadOptions(types=types))
    assert few.values.tolist() == [[0, 4, 1]]
    assert (few.categories, few.types) == ({"zip": ("10115",)}, types)


def test_sheets(tmp_path, monkeypatch):
    file = tmp_path / "t.xlsx"
    book = openpyxl.Workbook()
    rows = [
        ["# exported", None],
        [None, "i", "n", "f", "b", "when", "zip", "odd", "half"],
        [0, 1, 1, 0.5, True, datetime(2024, 12, 31, 14, 30), "01234", "1.5", 0.5],
        [None],
        [1, 2, None, 2, False, datetime(2025, 1, 1), "10115", 2, "?"],
    ]
    for row in rows:
        book.active.append(row)
    book.create_sheet("more")
    book.save(file)
    table = read_table(file, "keep")
    assert table.notes == (
        "sheet 'Sheet' of 2, column 'zip' is text, with leading zeros, '?' for missing values, "
        "row index left out",
    )
    when = pd.Series(["2024-12-31 14:30", "2025-01-01"]).astype("datetime64[us]")
    columns = {"i": [1, 2], "n": pd.array([1, None]), "f": [0.5, 2.0], "b": [True, False]}
    columns |= {"when": when, "zip": ["01234", "10115"], "odd": [1.5, 2.0], "half": [0.5, NAN]}
    assert_frame_equal(table_frame(table), pd.DataFrame(columns))
    coded = table_frame(read_table(file, "keep", ReadOptions(na_values=["2", "1.0"])))
    assert coded[["f", "b"]].isna().to_numpy().tolist() == [[False, False], [True, False]]
    assert coded["i"].tolist() == [pd.NA, pd.NA]
    book.active.append([2, "abc", *[None] * 7])
    book.save(file)
    with pytest.raises(ValueError, match=r"got 'abc' in column 'i' at data row 3 \(line 6\)"):
        read_table(file)
    openpyxl.Workbook().save(file)
    with pytest.raises(ValueError, match="got an empty sheet 'Sheet'"):
        read_table(file)
    plain = builtins.__import__
    absent = lambda name, *rest: plain("absent" if name == "openpyxl" else name, *rest)  # noqa: E731
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match="pip install 'openpyxl>=3.1'"):
        read_table(file)


def test_choices_that_are_refused():
    for options, message in (
        ({"sep": ";;"}, "sep to be one character, or tab; got ';;'"),
        ({"decimal": "-"}, "decimal to be one of '.' ','; got '-'"),
        ({"thousands": "_"}, "thousands to be one of"),
        ({"decimal": ",", "thousands": ","}, "different marks"),
        ({"encoding": "klingon"}, "an encoding that Python knows"),
    ):
        with pytest.raises(ValueError, match=f"^Expected {message}"):
            ReadOptions(**options)


def test_command_line():
    parser = Parser("read", description="")
    add_options(parser, *READ_OPTIONS)
    assert read_options(parser.parse_args([])) == ReadOptions()
    words = ["--sep", "\\t", "--decimal", ",", "--thousands", " ", "--na-values=-9,x"]
    chosen = read_options(parser.parse_args([*words, "--encoding", "cp1252"]), ("a",))
    assert chosen == ReadOptions("\t", ",", " ", "cp1252", ("-9", "x"), ("a",))


LETTERS = (
    st.text("abc ,;|\"'äé\n", min_size=1, max_size=6)
    .filter(lambda text: not re.search("[äé]{3}", text))  # in no language of Windows-1252
    .map(lambda text: f"t{text}t")
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.integers(0, 2**32).map(
    lambda seconds: datetime(1990, 1, 1) + timedelta(seconds=seconds)
)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_pandas_writes_is_read_in_its_types(data):
    rows = data.draw(st.integers(2, 9))
    columns = {"whole": st.integers(-(2**53) + 1, 2**53 - 1), "real": FLOATS, "text": LETTERS,
               "flag": st.booleans(), "day": SECONDS}  # fmt: skip
    drawn = {name: st.lists(each, min_size=rows, max_size=rows) for name, each in columns.items()}
    frame = pd.DataFrame(data.draw(st.fixed_dictionaries(drawn)))
    sep, decimal = data.draw(st.sampled_from([*((each, ".") for each in ",;\t|"), (";", ",")]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    frame.loc[0, "real"] = 0.5  # shows the decimal mark
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        frame.to_csv(file, index=False, sep=sep, decimal=decimal, encoding=encoding)
        table = read_table(file)
        found = table_frame(table)
        assert_frame_equal(found.drop(columns="day"), frame.drop(columns="day"), check_exact=True)
        assert pd.to_datetime(found["day"]).tolist() == frame["day"].tolist()
        write_table(file, table)
        again = read_table(file)
        np.testing.assert_array_equal(again.values, table.values)
        assert_frame_equal(table_frame(again), found, check_exact=True)
