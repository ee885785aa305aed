import datetime
import json
from dataclasses import asdict, replace
from decimal import Decimal

import drawn_columns
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dateutil.tz import gettz
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_series_equal

from cnf.datasets import ColumnType, decode_column, encode_column


@settings(max_examples=100, deadline=None)
@given(drawn_columns.columns())
def test_columns_return_from_numbers_exactly(column):
    values, categories, type = encode_column(column)
    stored = ColumnType(**json.loads(json.dumps(asdict(type))))
    assert (stored, values.dtype, np.isnan(values).tolist()) == (
        type,
        np.float64,
        column.isna().tolist(),
    )
    assert (categories is not None) == (type.family in ("text", "category"))
    assert_series_equal(decode_column(values, categories, stored), column)


@settings(max_examples=100, deadline=None)
@given(drawn_columns.columns(), st.lists(st.floats(allow_infinity=False), min_size=1, max_size=5))
def test_any_draws_become_values_of_the_type(column, draws):
    _, categories, type = encode_column(column)
    if categories is None:
        decoded = decode_column(np.array(draws), categories, type)
        gapless = column.dtype.kind in "iub" and isinstance(column.dtype, np.dtype)
        kept = str(decoded.dtype).lower().replace("boolean", "bool") if gapless else decoded.dtype
        assert kept == column.dtype
        assert decoded.isna().tolist() == np.isnan(draws).tolist()
        values, texts, _ = encode_column(decoded.rename("c"), type)  # what the type holds
        exact = ~(np.abs(values) > 2**53)
        returned = decode_column(values, texts, type)
        assert_series_equal(returned[exact], decoded[exact])


DAYS = pd.date_range("2024-03-30", periods=3, tz="Europe/Berlin").as_unit("us")  # one has 23 hours
ISO_FORMAT = "%Y-%m-%d %H:%M:%S%?f"  # as Python writes dates
BERLIN = "datetime64[s, Europe/Berlin]"
LAST = "2262-04-09 23:59:59.999999"  # in nanoseconds, near enough
DATE = datetime.date(2024, 2, 28)
SECOND = pd.Timedelta("1s")
DECIMALS = [Decimal("1.50"), None, Decimal("-0.125")]


@pytest.mark.parametrize(
    ("column", "numbers", "expected"),
    [
        ([True, False], [1, 0], ColumnType("bool")),
        (["02134", "01234", ""], [2, 1, 0], ColumnType("object")),
        (pd.Categorical([1, 5], [5, 3, 1]), [2, 0], "category"),
        (DAYS, [0, 1, 2], ColumnType("datetime64[us, Europe/Berlin]", "D", "2024-03-30")),
        (DAYS + pd.Timedelta("12h"), [0, 25, 48], "h"),
        (DAYS[::-1].as_unit("ns"), [2, 1, 0], "D"),
        (pd.Timestamp("2024-01-01 10:30") + SECOND * np.arange(2), [0, 1], "s"),
        (np.array(["1900-01-01", "1900-01-02T00:00:00.000001"], "M8[us]"), [0, 864e8 + 1], "us"),
        (np.array(["1900-01-01", "2024-01-01T00:00:00.000000001"], "M8[ns]"), [0, 3913056e9], "us"),
        (
            pd.to_timedelta(["-30min", "2h"]).as_unit("us"),
            [-30, 120],
            ColumnType("timedelta64[us]", "min"),
        ),
        ([DATE, DATE.replace(year=9999)], [0, 2912809], ColumnType("object[date]", "D", str(DATE))),
        ([np.datetime64("2024-01-02"), None], [0, np.nan], "D"),
        (DAYS[:1].tz_convert(gettz("Europe/Berlin")), [0], "D"),
        (DECIMALS, [1.5, np.nan, -0.125], ColumnType("decimal", format="0.001")),
        ([None, None], [np.nan, np.nan], ColumnType("object")),
    ],
)
def test_numbers_of_columns(column, numbers, expected):
    dtype = object if isinstance(column, list) and column[0] is not True else None
    series = pd.Series(column, dtype=dtype)
    values, categories, type = encode_column(series)
    np.testing.assert_array_equal(values, numbers)
    assert str(decode_column(values, categories, type).dtype) == str(series.dtype)
    if isinstance(expected, str):
        assert expected in (type.unit, type.dtype)
    else:
        assert type == expected


@pytest.mark.parametrize(
    ("texts", "numbers", "unit", "form"),
    [
        (["2024-03-01", "2024-02-29"], [1, 0], "D", "%Y-%m-%d"),
        (["2024-1-5", "2024-12-15"], [0, 345], "D", "%Y-%-m-%-d"),
        (["2024-01-01T00:00:00Z", "2024-01-01T12:00:00Z"], [0, 12], "h", "%Y-%m-%dT%H:%M:%SZ"),
        (["2024-01-01 00:00:00.250"], [0], "ms", "%Y-%m-%d %H:%M:%S.%3f"),
        (["2024-01-01 00:00:00.000000002"], [0], "ns", "%Y-%m-%d %H:%M:%S.%9f"),
        (["2024-01-01 00:01:01", "2024-01-01 00:01:00.500000"], [500, 0], "ms", ISO_FORMAT),
        (["31.12.2024", "01.01.2025"], [0, 1], "D", "%d.%m.%Y"),
        (["1.2.2024", "2.2.2024"], [0, 1], "D", "%-d.%-m.%Y"),
        (["31/12/2024 14:30", "01/01/2025 00:00"], [0, 570], "min", "%d/%m/%Y %H:%M"),
        (["12/31/24 2:05 PM", "1/1/25 12:05 AM"], [0, 600], "min", "%-m/%-d/%y %-I:%M %p"),
        (["31-12-1999", "13-12-1999"], [18, 0], "D", "%d-%m-%Y"),
        (["9999-12-31", "2024-01-01"], [2913173, 0], "D", "%Y-%m-%d"),
        (["31.12.99", "01.02.01"], [0, 398], "D", "%d.%m.%y"),
        (["02-Feb-2024", "01-Jan-2024"], [32, 0], "D", "%d-%b-%Y"),
        (["2 Feb 24 10:30", "13 Jan 24 09:00"], [28890, 0], "min", "%-d %b %y %H:%M"),
        (["2024-12", "2023-11"], [13, 0], "month", "%Y-%m"),
        (["01.02.2024", "01.01.2024"], [1, 0], "month", "%d.%m.%Y"),
    ],
)  # fmt: skip
def test_dates_in_text_keep_their_format(texts, numbers, unit, form):
    column = pd.Series([*texts, None], dtype="str")
    values, categories, type = encode_column(column)
    assert (values[:-1].tolist(), categories, type.unit, type.format) == (numbers, None, unit, form)
    assert_series_equal(decode_column(values, None, type), column)


def test_dates_of_several_offsets_become_utc():
    texts = ["2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]
    values, _, type = encode_column(pd.Series(texts))
    assert values.tolist() == [0, 1]
    assert decode_column(values, None, type)[1] == "2024-03-31T01:00:00+00:00"
    alone = encode_column(pd.Series(texts[:1]))[2]
    for model in (type, alone):  # which has one offset
        assert encode_column(pd.Series(texts), model)[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-02-30"],
        ["12-34-5678", "99-99-1000"],
        ["2024-01-01", "never"],
        ["٢٠٢٤-٠١-٠١"],  # noqa: RUF001
        ["2024-01-01", "2024/01/02"],
        ["2024-01-01", "2024-01-01 10:00"],
        ["2024-01-01 25:00"],
        ["2024-01-01 10:00 13:00"],
        ["31/12/2024 13:00 PM"],
        ["1.10.24"],
        ["2024-01-01 00:00:00.1", "2024-01-01 00:00:00.12"],
        ["2024-01-01 00:00:00Z", "2024-01-01 00:00:00"],
        ["1500-01-01 00:00:00.000000001"],
        ["1-2-2024", "2024-2-1"],
        ["2024-1-2024"],
        ["10:30"],
        ["2019-20", "2020-21"],
        ["02-Feb-2024", "02 Feb 2024"],
        ["32-Feb-2024"],
        ["2024-Feb-03"],
    ],
)
def test_other_texts_are_categories(texts):
    assert encode_column(pd.Series(texts))[1] == tuple(sorted(texts))


@pytest.mark.parametrize(
    ("odd", "at"), [("soon", 5), ("2024-02-30", 5), ("2024/01/02", 0), ("2024-01-01 10:00", 5)]
)
def test_an_odd_cell_among_many_dates_is_named(odd, at):
    texts = [str(day)[:10] for day in pd.date_range("2024-05-01", periods=150)]
    texts.insert(at, odd)
    with pytest.raises(ValueError, match="dates in one format, such as '2024-0.* in column 'day'"):
        encode_column(pd.Series([None, *texts, odd], name="day"))
    few = [*texts[:50], "soon"]  # which may be categories, as may be many other texts
    for names in (few, [*texts[:50], *map(str, range(100))]):
        assert encode_column(pd.Series(names))[1] == tuple(sorted(set(names)))


def test_months_are_counted_between_their_first_days_and_beyond():
    days = pd.Series(pd.to_datetime(["2024-03-01", "2024-01-01", None]))
    values, _, type = encode_column(days)
    np.testing.assert_array_equal(values, [2, 0, np.nan])
    assert (type.unit, type.origin) == ("month", "2024-01")
    assert encode_column(pd.Series(pd.to_datetime(["2024-04-16"])), type)[0].tolist() == [3.5]
    drawn = decode_column(np.array([1.4, 1e9, np.nan]), None, replace(type, dtype="datetime64[ns]"))
    assert drawn.astype("str").tolist()[:2] == ["2024-02-01", "2261-01-01"]
    assert drawn.isna().tolist() == [False, False, True]


def test_a_date_of_another_form_than_the_models_is_named():
    type = encode_column(pd.Series(["31.12.2024", "1.1.2024"]))[2]
    with pytest.raises(ValueError, match=r"got '2024-01-05' in row 3.*--drop day"):
        encode_column(pd.Series(["2.1.2024", "3.1.2024", "2024-01-05"], name="day"), type)


def test_an_odd_cell_among_dates_of_either_order_is_named():
    texts = [f"{day}/{month}/2024" for day in range(1, 13) for month in range(1, 13)]
    with pytest.raises(ValueError, match="dates in one format.*got 'soon' in row 145"):
        encode_column(pd.Series([*texts, "soon"]))


def test_dates_count_as_the_models_do():
    _, _, day = encode_column(pd.Series(["31.12.2024", "1.1.2024"]))
    for column, numbers in [
        (["2.1.2024"], [1]),  # one row proves no order
        (["2024-01-02", "2023-12-31"], [1, -1]),
        (pd.to_datetime(["2024-01-01 12:00", None]), [0.5, np.nan]),
        ([None], [np.nan]),
    ]:
        values, _, type = encode_column(pd.Series(column), day)
        np.testing.assert_array_equal(values, numbers)
        assert (type.unit, type.origin) == (day.unit, day.origin)
    berlin = ColumnType("timestamp[us, tz=Europe/Berlin][pyarrow]", "h", "2024-01-01")
    assert encode_column(pd.Series(pd.to_datetime(["2024-01-01"], utc=True)), berlin)[0] == 1
    assert encode_column(pd.Series(pd.to_datetime(["2024-01-01"])), berlin)[0] == 0
    nanoseconds = ColumnType("datetime64[ns]", "ns", "2024-01-01T00:00:00.000000001")
    values, *_ = encode_column(pd.Series(pd.to_datetime(["2024-01-01 00:00:01"])), nanoseconds)
    assert values.tolist() == [1e9 - 1]
    with pytest.raises(ValueError, match=r"dates such as 1\.1\.2024.*'soon' in row 2"):
        encode_column(pd.Series(["2.1.2024", "soon", None], dtype="string"), day)
    with pytest.raises(ValueError, match="dates such as 2024-01-01.*'soon' in row 1"):
        encode_column(pd.Series(["soon"]), nanoseconds)


@pytest.mark.parametrize(
    ("numbers", "type", "decoded"),
    [
        ([0.4, 2.6], ColumnType("datetime64[s]", "D", "2024-01-01"), ["2024-01-01", "2024-01-04"]),
        ([90], ColumnType("datetime64[s]", "ms", "2024-01-01"), ["2024-01-01"]),
        ([-1e300], ColumnType("datetime64[s]", "D", "2024-01-01"), ["0001-01-01"]),
        ([1e60], ColumnType("datetime64[us]", "us", "2024-01-01"), ["9999-12-31 23:59:59.999999"]),
        ([1e60], ColumnType("datetime64[ns]", "us", "2024-01-01"), [LAST]),
        ([1e60], ColumnType(BERLIN, "D", "2024-03-31"), ["9999-12-31 00:00+01:00"]),
        ([2], ColumnType(BERLIN, "h", "2024-03-31"), ["2024-03-31 03:00+02:00"]),
        ([2], ColumnType(BERLIN, "h", "2024-10-27"), ["2024-10-27 02:00+02:00"]),
        ([300.0, -5, np.nan], ColumnType("uint8"), [255, 0, pd.NA]),
        ([1.7, np.nan], ColumnType("bool"), [True, pd.NA]),
        ([1e60], ColumnType("decimal128(5, 2)[pyarrow]"), [Decimal("999.99")]),
        ([-1e60], ColumnType("decimal128(38, 2)[pyarrow]"), [-9999999999999999 * Decimal(10**20)]),
        ([1e60], ColumnType("decimal128(18, 2)[pyarrow]"), [Decimal("9999999999999998.00")]),
        ([1.006], ColumnType("decimal", format="0.01"), [Decimal("1.01")]),
        ([1.0], ColumnType("Sparse[int64, 0]"), [1]),
        ([np.nan], ColumnType("object"), [None]),
    ],
)  # fmt: skip
def test_draws_become_the_nearest_value(numbers, type, decoded):
    column = decode_column(np.array(numbers, dtype=np.float64), None, type)
    if type.family == "date":
        decoded = [pd.Timestamp(each) for each in decoded]
    assert column.tolist() == decoded


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        ([1, "1"], ("1", "'1'")),
        ([0.5, 2.0], ("0.5", "2.0")),
        (["z", "a"], ("z", "a")),
        (pd.Index(["z"], dtype="string[python]"), ("z",)),
        ([], ()),
        ([2**60], ("1152921504606846976",)),
        (pd.cut([0.5, 1.5], [0, 1, np.inf]).categories, ("(0.0, 1.0]", "(1.0, inf]")),
        (pd.interval_range(pd.Timestamp("2024-01-01"), periods=1), None),
        (pd.to_datetime(["2024-01-02", "2024-01-01"]), None),
        ([DATE], (str(DATE),)),
        ([Decimal("1.50")], ("1.50",)),
    ],
)
def test_categories_keep_their_labels_and_order(labels, texts):
    column = pd.Series(pd.Categorical.from_codes([], pd.Index(labels), ordered=True))
    values, found, type = encode_column(column)
    assert texts in (found, None)
    stored = ColumnType(**json.loads(json.dumps(asdict(type))))
    assert_series_equal(decode_column(values, found, stored), column)
    unknown = decode_column(np.array([-1.0]), found, type)  # a code that the schema does not know
    assert unknown.isna().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, np.inf], "finite numbers, text.* in column 'c'; got inf in row 2 .counting from 1"),
        ([Decimal(1), Decimal("-Infinity")], r"got Decimal\('-Infinity'\) in row 2"),
        ([None, [1.0]], r"got \[1.0\] in row 2"),
        ([1j], "got 1j in row 1.*: correct it, or leave the column out"),
        ([b"a"], "got b'a' in row 1"),
        ([datetime.time(1)], r"got datetime.time\(1, 0\) in row 1"),
        (pd.arrays.ArrowExtensionArray(pa.array([None, 1], pa.time64("ns"))), "in row 2"),
        (pd.period_range("2024", periods=2, freq="M"), r"got Period.* in row 1"),
        (pd.array([None], dtype="period[M]"), r"got period\[M\]: correct it"),
        (np.array([], dtype=complex), "got complex128: correct it"),
        ([1, 2**53 + 2], r"whole numbers up to 2\^53.* got 9007199254740994 in row 2"),
        ([None, 2**70], r"whole numbers up to 2\^53.* in row 2"),
        ([None, "a", 1], r"one class and time zone \(str in row 2\).*got 1 in row 3"),
        ([1, True], r"int in row 1.*got True in row 2"),
        ([DATE, datetime.datetime(2024, 1, 1)], r"date in row 1.*got datetime.datetime.* in row 2"),
        ([pd.Timestamp(0, tz=zone) for zone in ("UTC", "Asia/Tokyo")], "one class and time zone"),
        (["1/2/2024"], "whether the day or the month is first; got .*'1/2/2024': write them as"),
        (["13/2/2024", "2/13/2024"], "one order of day and month; got '2/13/2024' and '13/2/2024'"),
    ],
)
def test_other_values_are_refused_by_row(values, message):
    dtype = object if isinstance(values, list) and not isinstance(values[0], float) else None
    with pytest.raises(ValueError, match=message) as caught:
        encode_column(pd.Series(values, dtype=dtype, name="c"))
    assert "'c'" in str(caught.value)
    assert str(caught.value).endswith("leave the column out (--drop c).")
