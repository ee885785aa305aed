import drawn_columns
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from cnf.datasets import ColumnType, Table, frame_table, from_any, table_frame

LABELS = (["a", "b", "c"], [0, 1, 2], [("a", 0), ("a", 1), ("b", 0)], [1.5, "x", None])
POLARS = {
    pl.Enum(["z", "a", "b"]): st.sampled_from("ab"),
    pl.Categorical(): st.sampled_from("ab"),
    pl.Int64(): drawn_columns.whole("int64"),
    pl.UInt8(): drawn_columns.whole("uint8"),
    pl.Float32(): drawn_columns.real(32, 2.0**100),
    pl.Boolean(): st.booleans(),
    pl.String(): drawn_columns.TEXT,
    pl.Decimal(9, 3): st.decimals(1 - 10**6, 10**6 - 1, places=3),
    pl.Date(): st.dates(),
    pl.Datetime("ms", "Europe/Berlin"): st.integers(0, 40_000).map(lambda n: n * 86_400_000),
    pl.Datetime("us"): drawn_columns.DATES,
    pl.Duration("us"): drawn_columns.DURATIONS,
    pl.Null(): st.none(),
}


@st.composite
def frames(draw):
    rows = draw(st.integers(1, 4))
    drawn = draw(st.lists(drawn_columns.columns(rows), min_size=3, max_size=3))
    labels = draw(st.sampled_from(LABELS))
    return pd.concat(drawn, axis=1).set_axis(pd.Index(labels), axis=1)


def lists(values, rows):
    return st.lists(st.none() | values, min_size=rows, max_size=rows)


@st.composite
def arrow_tables(draw):
    kinds = draw(st.lists(st.sampled_from(list(drawn_columns.ARROW)), min_size=1, max_size=4))
    rows = draw(st.integers(1, 4))
    arrays = [pa.array(draw(lists(drawn_columns.ARROW[kind], rows)), type=kind) for kind in kinds]
    return pa.table(arrays, names=[f"c{i}" for i in range(len(kinds))])


@st.composite
def polars_tables(draw):
    kinds = draw(st.lists(st.sampled_from(list(POLARS)), min_size=1, max_size=4))
    rows = draw(st.integers(1, 4))
    return pl.DataFrame(
        [
            pl.Series(f"c{i}", draw(lists(POLARS[kind], rows)), dtype=kind)
            for i, kind in enumerate(kinds)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(frames())
def test_frames_return_from_tables_with_their_labels_and_types(frame):
    named, _ = from_any(frame)
    _, restore = from_any(frame.head(0))
    table = frame_table(named)
    returned = restore(table_frame(table))
    assert_frame_equal(returned, frame)
    assert_frame_equal(returned.head(0), frame.head(0))
    assert set(table.types) | set(table.categories) <= set(table.columns)


@settings(max_examples=60, deadline=None)
@given(arrow_tables() | polars_tables())
def test_tables_of_other_libraries_return_from_tables(X):
    frame, _ = from_any(X)
    _, restore = from_any(X[:0])  # which a fitted model keeps
    returned = restore(table_frame(frame_table(frame)))
    assert type(returned) is type(X)
    assert returned.schema == X.schema
    assert returned.equals(X)


def test_draws_take_the_types_of_the_table():
    X = pa.table({"n": pa.array([1], pa.int8()), "d": pa.array([None], pa.string_view())})
    frame, restore = from_any(X)
    table = frame_table(frame)
    drawn = Table("draws", np.array([[300.0, np.nan]]), table.columns, 0, {"d": ()}, table.types)
    returned = restore(table_frame(drawn))
    assert (returned.schema, returned.to_pylist()) == (X.schema, [{"n": 127, "d": None}])
    frame = pd.DataFrame({"n": [1, 2], "b": [True, False]})
    table = frame_table(frame)
    drawn = Table("draws", np.array([[np.nan, np.nan]]), table.columns, types=table.types)
    returned = from_any(frame)[1](table_frame(drawn))
    assert returned.dtypes.astype(str).tolist() == ["Int64", "boolean"]


def test_tables_without_types_are_numbers_and_text():
    values = np.array([[1.5, 1.0], [2.0, np.nan]])
    table = Table("t", values, ("x", "c"), categories={"c": ("a", "b")})
    expected = pd.DataFrame({"x": [1.5, 2.0], "c": ["b", None]})
    assert_frame_equal(table_frame(table), expected)
    assert table_frame(Table("none", np.empty((2, 0)), ())).shape == (2, 0)
    assert frame_table(expected).types == {"c": ColumnType(str(expected["c"].dtype))}


def test_models_types_count_the_dates_of_other_frames():
    types = frame_table(pd.DataFrame({"day": ["2024-01-01"]})).types
    table = frame_table(pd.DataFrame({"day": ["2024-02-01"], "x": [1.0]}), types=types)
    assert table.values.tolist() == [[31.0, 1.0]]


LAZY = pl.LazyFrame({"x": [1]})


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=[*"aa"]), r"distinct column names; got \['a'\] repeated"),
        (pd.DataFrame([[1, 2]], columns=[0, "x0"]), r"distinct column names; got \['x0'\]"),
        (pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]), r"got \['a'\] repeated: rename"),
        (np.ones((2, 2)), "a table of pandas, polars or pyarrow; got numpy.ndarray: convert"),
        (pl.DataFrame({"n": pl.Series([{}], dtype=pl.Object)}), "got Object in column 'n'"),
        (LAZY, "got polars.*LazyFrame: convert it, or collect a lazy one"),
    ],
)  # fmt: skip
def test_other_tables_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        from_any(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (pd.DataFrame({"x": [1, 2], "y": [0.5, np.inf]}), "^t: Expected .*'y'; got inf in row 2"),
        (pl.DataFrame({"y": [[1], [2]]}), "^t: Expected .* column 'y'; got .* in row 1"),
        (pl.DataFrame({"y": pl.Series([None, 1], dtype=pl.Time)}), "column 'y'; got .* in row 2"),
        (pl.DataFrame({"y": [b"a"]}), "column 'y'; got b'a' in row 1"),
        (pd.DataFrame({("a", "b"): [1j]}), "column 'a.b'; got 1j in row 1"),
    ],
)  # fmt: skip
def test_values_that_are_no_numbers_are_refused(X, message):
    frame, _ = from_any(X)
    with pytest.raises(ValueError, match=message):
        frame_table(frame, "t")
