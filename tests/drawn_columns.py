"""Strategies that draw columns of all dtypes, gaps and empty columns among them."""

import datetime
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC+02:00")
FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f", "%Y/%m/%d %H:%M")
RESOLUTIONS = ("s", "ms", "us")
YEARS = 50 * 366 * 86_400 * 10**6  # 50, in microseconds

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5)
DATES = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
DURATIONS = st.timedeltas(datetime.timedelta(-9999), datetime.timedelta(9999))
TICKS = st.integers(-YEARS, YEARS)


def whole(name):
    limits = np.iinfo(name.lower())
    return st.integers(max(limits.min, -(2**53)), min(limits.max, 2**53))


def real(width, largest=None):
    return st.floats(-(largest or 3e38), largest or 3e38, width=width)


INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
NULLABLE = {
    **{name.replace("i", "I").replace("u", "U"): whole(name) for name in INTEGERS},
    "float32": real(32, 2.0**100),
    "float64": real(64),
    "Float32": real(32, 2.0**100),
    "Float64": real(64),
    "boolean": st.booleans(),
    **dict.fromkeys(("str", "object", "string[pyarrow]", "string[python]"), TEXT),
}
PLAIN = {"bool": st.booleans(), **{name: whole(name) for name in INTEGERS}}  # have no gaps
OBJECTS = (
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(-1e300, 1e300),
    st.decimals(-(10**9), 10**9, places=4),
    st.dates(),
    DATES,
    DURATIONS,
)
LABELS = (
    TEXT,
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.floats(-1e9, 1e9),
    TEXT | st.integers(0, 9),
    st.decimals(-1000, 1000, places=2),
    st.dates(),
    DATES.map(pd.Timestamp),
    st.integers(0, 9).map(lambda left: pd.Interval(left, left + 1)),
)
ARROW = {
    pa.int16(): whole("int16"),
    pa.uint64(): whole("uint64"),
    pa.float32(): real(32, 2.0**100),
    pa.bool_(): st.booleans(),
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.decimal128(9, 3): st.decimals(1 - 10**6, 10**6 - 1, places=3),
    pa.date32(): st.dates(),
    pa.timestamp("s"): DATES.map(lambda date: date.replace(microsecond=0)),
    pa.timestamp("us", "Asia/Kolkata"): DATES,
    pa.duration("us"): DURATIONS,
    pa.dictionary(pa.int32(), pa.string()): TEXT,
    pa.dictionary(pa.int8(), pa.int64(), ordered=True): st.integers(0, 9),
}


def lists(values, rows):
    return st.lists(values, min_size=rows or 0, max_size=4 if rows is None else rows)


def times(ticks, unit, zone=""):
    """Return a column of dates from local times in microseconds, in summer if they are repeated."""
    wall = np.array(["NaT" if each is None else each for each in ticks], "M8[us]")
    column = pd.Series(wall.astype(f"M8[{unit}]"))
    if not zone:
        return column
    first = np.ones(len(column), dtype=bool)
    return column.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")


def durations(ticks, unit):
    gaps = ["NaT" if each is None else each for each in ticks]
    return pd.Series(np.array(gaps, "m8[us]").astype(f"m8[{unit}]"))


def arrow_column(values, dtype):
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, type=dtype)))


@st.composite
def categorical(draw, rows):
    drawn = draw(st.sampled_from(LABELS).flatmap(lambda each: st.lists(each, max_size=4)))
    labels = list(dict.fromkeys(drawn))
    codes = draw(lists(st.integers(-1, len(labels) - 1), rows))
    values = pd.Categorical.from_codes(codes, pd.Index(labels), ordered=draw(st.booleans()))
    return pd.Series(values)


@st.composite
def written(draw, rows):
    form = draw(st.sampled_from(FORMATS))
    texts = DATES.map(lambda date: date.strftime(form))
    return pd.Series(draw(lists(st.none() | texts, rows)), dtype="str")


@cache
def columns(rows=None):
    """Draw columns of any dtype with so many rows, or up to four."""

    def drawn(build, values, **settings):
        given = {key: st.just(value) for key, value in settings.items()}
        return st.builds(build, lists(values, rows), **given)

    return st.one_of(
        *(drawn(pd.Series, st.none() | each, dtype=name) for name, each in NULLABLE.items()),
        *(drawn(pd.Series, each, dtype=name) for name, each in PLAIN.items()),
        *(drawn(pd.Series, st.none() | each, dtype=object) for each in OBJECTS),
        *(drawn(arrow_column, st.none() | each, dtype=kind) for kind, each in ARROW.items()),
        *(drawn(times, st.none() | TICKS, unit=unit) for unit in RESOLUTIONS),
        *(drawn(times, st.none() | TICKS, unit="us", zone=zone) for zone in ZONES),
        *(drawn(durations, st.none() | TICKS, unit=unit) for unit in RESOLUTIONS),
        *[categorical(rows)] * 5,
        *[written(rows)] * 3,
    )
