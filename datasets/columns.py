"""Conversion between columns of frames and float64 numbers."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Context, Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from cnf.datasets.column_types import LARGEST_EXACT, ColumnType
from cnf.datasets.dates import (
    Times,
    decode_times,
    encode_times,
    format_dates,
    odd_date,
    parse_dates,
)
from cnf.datasets.dtypes import arrow_pandas_dtype, dtype_name, named_dtype, string_dtype
from cnf.datasets.reading import drop_option
from cnf.datasets.table import Array

if TYPE_CHECKING:  # functions import them, since they take long
    import pandas as pd

Encoded = tuple[Array, tuple[str, ...] | None, ColumnType]
TAKEN = "finite numbers, text, booleans, dates or durations"
EXACT = "whole numbers up to 2^53, which float64 holds"
NULLABLE_PREFIX = {"i": "Int", "u": "UInt"}
MANY_TEXTS = 100  # more are hardly categories
TIMES = ("date", "datetime", "datetime64", "timedelta", "timedelta64")  # pandas' words
SCALARS = (str, Real, Decimal, datetime.date, datetime.timedelta)
EXACT_DIGITS = Context(prec=400)  # of any float64
OBJECT = re.compile(r"object\[(.+)\]")
INTERVAL = re.compile(r"interval\[(.+), (\w+)\]")
ZONE = re.compile(r"\[\w+, (?:tz=)?([^\]]+)\]")


def encode_column(series: pd.Series[Any], type: ColumnType | None = None) -> Encoded:
    """Convert a column to float64 numbers.

    - Numbers and booleans are themselves. Whole numbers beyond 2^53 are refused.
    - Text becomes codes of its sorted texts, a categorical column codes of its categories in
      their order, used or not.
    - Dates are counted in local wall time from the first one, durations from zero, in the coarsest
      unit that holds all. Text is dates where all of it is, and shows whether the day or the month
      is first.

    Args:
        series: The column; its name is used in messages.
        type: A model's type of the column: dates are then counted in its unit from its origin, and
            text is read in its format.

    Returns:
        The numbers, with NaN for missing values; the texts of codes, None for other columns; the
        type, with which `decode_column` returns the very column. Decimals and dates of more than
        float64's digits are rounded. Of a local time that the end of summer time repeats, the first
        is returned.

    Raises:
        ValueError: A value is infinite, too large or of another class; the message names the
            column, the row and the value.

    Example:
        >>> import pandas as pd
        >>> values, texts, type = encode_column(pd.Series(["31.12.2024", None, "1.1.2025"]))
        >>> values.tolist(), type.unit, type.origin, type.format
        ([0.0, nan, 1.0], 'D', '2024-12-31', '%-d.%-m.%Y')
        >>> decode_column(values + 1, texts, type).tolist()
        ['1.1.2025', nan, '2.1.2025']
    """
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.ArrowDtype):
        return _encode_arrow(series, type)
    if isinstance(dtype, pd.CategoricalDtype):
        return _encode_categories(series)
    if isinstance(dtype, pd.StringDtype):
        return _encode_text(series, dtype_name(dtype), type)
    if dtype.kind in "mM":
        return _encode_times(series, type)
    if dtype.kind in "biuf":
        return _encode_numbers(series)
    if dtype.kind == "O":
        return _encode_objects(series, type)
    raise _refusal(series)


def decode_column(
    values: Array, categories: Sequence[str] | None, type: ColumnType
) -> pd.Series[Any]:
    """Convert numbers to a column of a type: the inverse of `encode_column`.

    Numbers that the type cannot hold, as a model may draw them, become the nearest that it can:
    whole numbers and dates are rounded, and local times that summer time skips are shifted to its
    begin. Gaps in a column of `"int64"` or `"bool"` make it one of `"Int64"` or `"boolean"`.

    Args:
        values: Shape (rows,), NaN for missing values.
        categories: Texts of the codes, None for other columns.
        type: The type.

    Example:
        >>> decode_column(np.array([0.2, 2.9]), None, ColumnType("uint8")).tolist()
        [0, 3]
        >>> day = ColumnType("datetime64[s, Europe/Berlin]", "D", "2024-03-30")
        >>> print(decode_column(np.array([1.0, 2.0]), None, day).tolist()[1])
        2024-04-01 00:00:00+02:00
    """
    name = type.dtype
    if name.endswith("[pyarrow]") and name != "string[pyarrow]":
        return _decode_arrow(values, categories, type)
    if inner := OBJECT.fullmatch(name):
        return _decode_objects(values, replace(type, dtype=inner[1]))
    if categories is not None:
        return _decode_categories(values, categories, type)
    if type.family in ("date", "duration"):
        return _decode_times(values, type)
    if name == "decimal":
        return _decode_decimals(values, type)
    if type.family == "text":
        return _texts([None] * len(values), name)
    return _decode_numbers(values, name)


# --- numbers --------------------------------------------------------------------------------------


def _encode_numbers(series: pd.Series[Any]) -> Encoded:
    values = np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    whole = series.dtype.kind in "iu"
    wrong = np.abs(values) > LARGEST_EXACT if whole else np.isinf(values)
    if wrong.any():
        raise _refusal(series, int(wrong.argmax()), EXACT if whole else TAKEN)
    return values, None, ColumnType(dtype_name(series.dtype))


def _decode_numbers(values: Array, name: str) -> pd.Series[Any]:
    import pandas as pd

    dtype: Any = pd.api.types.pandas_dtype(name)
    if isinstance(dtype, pd.SparseDtype):
        return _decode_numbers(values, dtype_name(dtype.subtype)).astype(dtype)
    plain = getattr(dtype, "numpy_dtype", dtype)
    if dtype.kind == "f":
        largest = float(np.finfo(plain).max)
        held = np.where(np.isinf(values), values, np.clip(values, -largest, largest))
        return pd.Series(held).astype(dtype)
    limits = ColumnType(name).limits
    assert limits is not None  # of whole numbers and booleans
    if plain is dtype and np.isnan(values).any():
        dtype = (
            "boolean" if dtype.kind == "b" else NULLABLE_PREFIX[dtype.kind] + name.lstrip("uint")
        )
    return pd.Series(np.clip(np.rint(values), *limits)).astype(dtype)


def _encode_decimals(series: pd.Series[Any]) -> Encoded:
    present = series.notna().to_numpy()
    values = np.full(len(series), np.nan)
    values[present] = [float(each) for each in series[present]]
    if np.isinf(values).any():
        raise _refusal(series, int(np.isinf(values).argmax()))
    exponents = (each.as_tuple().exponent for each in series[present])
    places = -min((int(each) for each in exponents), default=0)
    return values, None, ColumnType("decimal", format=str(_step(places)))


def _decode_decimals(values: Array, type: ColumnType) -> pd.Series[Any]:
    import pandas as pd

    step = Decimal(type.format or "1")
    decimals = [
        None if np.isnan(value) else Decimal(repr(value)).quantize(step, context=EXACT_DIGITS)
        for value in values.tolist()
    ]
    return pd.Series(decimals, dtype=object)


def _step(places: int) -> Decimal:
    return Decimal((0, (1,), -max(places, 0)))


# --- text, objects and categories -----------------------------------------------------------------


def _encode_text(series: pd.Series[Any], name: str, type: ColumnType | None) -> Encoded:
    """Return codes of sorted texts, or the counts of dates where all texts are dates."""
    import pandas as pd

    codes, found = pd.factorize(series)
    texts = list(map(str, found))
    present = codes >= 0
    if type is not None and type.family == "date" and not texts:
        return np.full(len(series), np.nan), None, type
    if type is None or type.family == "date":
        dates = _parse(series, texts, type)
        if dates is not None:
            times = np.full(len(series), "NaT", dtype=dates[0].dtype)
            times[present] = dates[0][codes[present]]
            values, unit, origin = encode_times(times, *_counted(type))
            return values, None, ColumnType(name, unit, origin, dates[1])
    ordered = sorted(texts)
    ranks = dict(zip(ordered, range(len(ordered)), strict=True))
    places = np.array([ranks[text] for text in texts], dtype=np.float64)
    values = np.full(len(series), np.nan)
    values[present] = places[codes[present]]
    return values, tuple(ordered), ColumnType(name)


def _parse(
    series: pd.Series[Any], texts: Sequence[str], type: ColumnType | None
) -> tuple[Times, str] | None:
    try:
        dates = parse_dates(texts, "" if type is None else type.format)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"Column {series.name!r}: {reason}, or {_left_out(series)}.") from error
    if dates is not None:
        return dates
    if type is None:
        odd = odd_date(texts) if len(texts) > MANY_TEXTS else None
        if odd is not None:
            raise _refusal(
                series, _row(series, odd[0]), f"dates in one format, such as {odd[1]!r},"
            )
        return None
    alone = (parse_dates([text], type.format or "%d%m") for text in texts)
    wrong = next((text for text, date in zip(texts, alone, strict=True) if date is None), None)
    if wrong is None:  # each is a date, but they are not in one format
        wrong = (odd_date(texts) or texts)[0]
    example = format_dates(np.array([type.origin], dtype="M8[us]"), type.format or "%Y-%m-%d")[0]
    raise _refusal(series, _row(series, wrong), f"dates such as {example}")


def _row(series: pd.Series[Any], text: str) -> int:
    return next(i for i, cell in enumerate(series) if isinstance(cell, str) and cell == text)


def _counted(type: ColumnType | None) -> tuple[str, str]:
    return ("", "") if type is None else (type.unit, type.origin)


def _encode_objects(series: pd.Series[Any], type: ColumnType | None) -> Encoded:
    """Encode objects of one class by the dtype that holds them."""
    import pandas as pd

    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind in ("string", "empty"):
        return _encode_text(series, "object", type)
    if kind == "decimal":
        return _encode_decimals(series)
    dated = {isinstance(each, datetime.datetime) for each in series[series.notna().to_numpy()]}
    inner: Any = None
    if kind == "integer":
        inner = _integers(series)
    elif kind in ("boolean", "floating", "mixed-integer-float"):
        inner = series.where(series.notna(), np.nan).astype("float64")
        inner = inner.astype("boolean") if kind == "boolean" else inner
    elif kind in TIMES and len(dated) == 1:
        inner = _times(series, kind)
    if inner is None:
        raise _odd(series)
    values, _, found = encode_column(inner.rename(series.name), type)
    name = "date" if kind == "date" else found.dtype
    return values, None, replace(found, dtype=f"object[{name}]")


def _integers(series: pd.Series[Any]) -> pd.Series[Any]:
    present = series.notna()
    for row, (cell, here) in enumerate(zip(series, present, strict=True)):
        if here and abs(cell) > LARGEST_EXACT:
            raise _refusal(series, row, EXACT)
    return series.where(present, np.nan).astype("float64").astype("Int64")


def _times(series: pd.Series[Any], kind: str) -> pd.Series[Any] | None:
    """Return objects of dates or durations as a column of times; None where they are mixed."""
    import pandas as pd

    try:
        if kind == "date":  # NumPy knows years that pandas 2 does not
            days = series.where(series.notna(), None).to_numpy(dtype="M8[D]")
            return pd.Series(days.astype("M8[s]"))
        times = (pd.to_timedelta if kind.startswith("timedelta") else pd.to_datetime)(series)
    except (ValueError, TypeError):  # several time zones, or dates that pandas 2 cannot hold
        return None
    return times if times.dtype.kind in "mM" else None


def _odd(series: pd.Series[Any]) -> ValueError:
    """Return the error for the first object that cannot be taken, or whose class differs."""
    cells = [(i, each) for i, each in enumerate(series) if _present(each)]
    for i, cell in cells:
        if not isinstance(cell, SCALARS):
            return _refusal(series, i)
    if not cells:
        return _refusal(series)
    row, first = cells[0]
    other = next((i for i, cell in cells if _class_and_zone(cell) != _class_and_zone(first)), row)
    wanted = f"values of one class and time zone ({first.__class__.__name__} in row {row + 1})"
    return _refusal(series, other, wanted)


def _class_and_zone(cell: object) -> tuple[type, object]:
    return cell.__class__, getattr(cell, "tzinfo", None)


def _present(cell: object) -> bool:
    import pandas as pd

    return not (pd.api.types.is_scalar(cell) and pd.isna(cell))  # type: ignore[call-overload]


def _decode_objects(values: Array, type: ColumnType) -> pd.Series[Any]:
    import pandas as pd

    if type.dtype == "date":
        times = decode_times(values, type.unit, type.origin, "s").astype("M8[D]")
        return pd.Series(times.astype(object), dtype=object)
    series = decode_column(values, None, type)
    return series.astype(object).where(series.notna(), None)


def _encode_categories(series: pd.Series[Any]) -> Encoded:
    import pandas as pd

    codes = series.cat.codes.to_numpy()
    index = series.cat.categories
    texts = tuple(map(str, index))
    if len(set(texts)) < len(texts):  # 1 and "1"
        texts = tuple(map(repr, index))
    type = ColumnType("category", ordered=bool(series.cat.ordered))
    plain = index.dtype == pd.Index(["a"]).dtype and all(isinstance(each, str) for each in index)
    if not plain:
        labels, label_type = _encode_labels(index.rename(series.name))
        type = replace(type, labels=labels, label_type=label_type)
    return np.where(codes < 0, np.nan, codes), texts, type


def _encode_labels(index: pd.Index[Any]) -> tuple[tuple[Any, ...], ColumnType]:
    import pandas as pd

    if isinstance(index, pd.IntervalIndex):
        left, type = _encode_labels(index.left)
        both, type = _encode_labels(index.left.append(index.right))
        right = both[len(left) :]
        pairs = zip(both[: len(left)], right, strict=True)
        return tuple(pairs), replace(type, dtype=f"interval[{type.dtype}, {index.closed}]")
    labels = index.tolist()
    if all(isinstance(each, bool | int | float | str) for each in labels):
        return tuple(labels), ColumnType(dtype_name(index.dtype))
    values, _, type = encode_column(pd.Series(index))
    return tuple(values.tolist()), type


def _decode_labels(labels: Sequence[Any], type: ColumnType) -> Any:
    import pandas as pd

    if interval := INTERVAL.fullmatch(type.dtype):
        inner = replace(type, dtype=interval[1])
        left, right = (_decode_labels([pair[side] for pair in labels], inner) for side in (0, 1))
        closed: Any = interval[2]
        return pd.IntervalIndex.from_arrays(left, right, closed)
    if type.unit or type.dtype == "decimal" or OBJECT.fullmatch(type.dtype):
        numbers = np.array(labels, dtype=np.float64)
        return pd.Index(decode_column(numbers, None, type))
    dtype = string_dtype(type.dtype) if type.family == "text" else named_dtype(type.dtype)
    return pd.Index(list(labels), dtype=dtype)


def _decode_categories(
    values: Array, categories: Sequence[str], type: ColumnType
) -> pd.Series[Any]:
    import pandas as pd

    codes = np.where(np.isnan(values), -1, values).astype(np.int64)
    cells: Any
    if type.family == "category":
        index: Any = pd.Index(list(categories), dtype=string_dtype("str"))
        if type.label_type is not None:
            index = _decode_labels(type.labels, type.label_type)
        cells = pd.Categorical.from_codes(codes, index, ordered=type.ordered)
        return pd.Series(cells)
    cells = np.array([*categories, None], dtype=object)[codes]  # the code -1 is the last
    return _texts(cells, type.dtype if type.family == "text" else "str")


def _texts(cells: Any, name: str) -> pd.Series[Any]:
    import pandas as pd

    column: pd.Series[Any] = pd.Series(cells, dtype=string_dtype(name))
    return column


# --- dates and durations --------------------------------------------------------------------------


def _encode_times(series: pd.Series[Any], type: ColumnType | None) -> Encoded:
    known = type if type is not None and type.family in ("date", "duration") else None
    wall: Any = series
    if getattr(series.dtype, "tz", None) is not None:
        zone = ZONE.search(known.dtype) if known else None
        series = wall.dt.tz_convert(zone[1]) if zone else wall
        wall = series.dt.tz_localize(None)
    values, unit, origin = encode_times(wall.to_numpy(), *_counted(known))
    return values, None, ColumnType(dtype_name(series.dtype), unit, origin)


def _decode_times(values: Array, type: ColumnType) -> pd.Series[Any]:
    import pandas as pd

    if type.format:
        digits = re.search(r"%([7-9])f", type.format)
        times = decode_times(values, type.unit, type.origin, "ns" if digits else "us")
        present = ~np.isnat(times)
        texts = np.full(len(times), None, dtype=object)
        texts[present] = format_dates(times[present], type.format)
        return _texts(texts, type.dtype)
    resolution, zone = re.findall(r"\[(\w+)(?:, (.+))?\]", type.dtype)[0]
    times = decode_times(values, type.unit, type.origin, resolution)
    if zone and resolution != "ns":  # in UTC the years are 1 to 9999, too
        times = np.clip(times, *np.array(["0001-01-02", "9999-12-31"], dtype="M8[s]"))
    column: pd.Series[Any] = pd.Series(times)
    if zone:
        dtype: Any = pd.api.types.pandas_dtype(type.dtype)
        first = np.ones(len(column), dtype=bool)
        wall: Any = column.dt
        column = wall.tz_localize(dtype.tz, ambiguous=first, nonexistent="shift_forward")
    return column


# --- pyarrow's dtypes -----------------------------------------------------------------------------


def _plain(array: Any) -> Any:
    """Return an Arrow array as a series of pandas' own dtypes."""
    return array.to_pandas(types_mapper=arrow_pandas_dtype, date_as_object=False)


def _encode_arrow(series: pd.Series[Any], type: ColumnType | None) -> Encoded:
    import pyarrow as pa

    try:
        plain = _plain(series.array.__arrow_array__()).rename(series.name)
    except pa.ArrowException:  # times of day in nanoseconds
        raise _refusal(series) from None
    name = dtype_name(series.dtype)
    is_decimal = name.startswith("decimal")  # even if it is empty
    values, categories, found = (
        _encode_decimals(plain) if is_decimal else encode_column(plain, type)
    )
    return values, categories, replace(found, dtype=name)


def _decode_arrow(
    values: Array, categories: Sequence[str] | None, type: ColumnType
) -> pd.Series[Any]:
    import pandas as pd
    import pyarrow as pa

    dtype = named_dtype(type.dtype)
    arrow = dtype.pyarrow_dtype
    inner = dtype_name(_plain(pa.array([], type=arrow)).dtype)
    if pa.types.is_decimal(arrow):
        inner = "decimal"
        beyond = 10 ** (arrow.precision - arrow.scale)
        largest = min(float(beyond - _step(arrow.scale)), np.nextafter(float(beyond), 0.0))
        values = np.clip(values, -largest, largest)
        type = replace(type, format=str(_step(arrow.scale)))
    plain = decode_column(values, categories, replace(type, dtype=inner))
    array = pa.array(plain, type=arrow, from_pandas=True)
    return pd.Series(pd.arrays.ArrowExtensionArray(array))


# --- messages -------------------------------------------------------------------------------------


def _refusal(series: pd.Series[Any], row: int | None = None, wanted: str = TAKEN) -> ValueError:
    """Return the error for the value in a row; for a column's dtype where no row is named."""
    name, advice = f"column {series.name!r}", f"correct it, or {_left_out(series)}"
    if row is None:
        present = series.notna().to_numpy()
        if not present.any():
            return ValueError(f"Expected {wanted} in {name}; got {series.dtype}: {advice}.")
        row = int(present.argmax())
    value = series.iloc[row]
    shown = repr(value.item() if isinstance(value, np.generic) else value)[:80]
    place = f"row {row + 1} (counting from 1)"
    return ValueError(f"Expected {wanted} in {name}; got {shown} in {place}: {advice}.")


def _left_out(series: pd.Series[Any]) -> str:
    return f"leave the column out ({drop_option(str(series.name))})"
