"""Times of series as numbers: plain ones, and counts of dates and durations."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import ColumnType, decode_column, encode_column
from cnf.datasets.dates import MONTH, UNITS, Times, decode_times, encode_times

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

Array = NDArray[np.float64]

DATED = {"date": "dates", "duration": "durations"}
ZONE = re.compile(r", (?:tz=)?([^\]]+)\]")


def encode_clock(
    column: pd.Series[Any], clock: ColumnType | None = None
) -> tuple[Array, ColumnType]:
    """Return times as numbers, and the clock that reads them.

    Numbers are themselves. Dates are counted from the first one, durations from zero, in the
    coarsest unit from days to nanoseconds that holds all; those with a time zone are counted in
    UTC, so that summer time neither stretches nor folds them.

    Args:
        column: The times, NaN for gaps.
        clock: The clock to count by, such as that of the series of a fit; a new one when None.

    Returns:
        The times, shape (rows,), and their clock, with the column's dtype, a unit and an origin.

    Raises:
        ValueError: The column holds something else, or dates where the clock has none, or the
            other way round.

    Example:
        >>> import pandas as pd
        >>> dates = pd.Series(["2024-03-01 00:00", "2024-03-02 12:00"], dtype="datetime64[us]")
        >>> times, clock = encode_clock(dates)
        >>> times.tolist(), clock.unit, clock.origin
        ([0.0, 36.0], 'h', '2024-03-01T00:00:00')
        >>> encode_clock(dates[1:] + pd.Timedelta("12h"), clock)[0].tolist()
        [48.0]
    """
    if column.dtype.kind == "f":  # infinity is refused by the caller, who knows the series
        numbers = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
        found = ColumnType(str(column.dtype) if isinstance(column.dtype, np.dtype) else "float64")
    else:
        zone = getattr(column.dtype, "tz", None)
        dates: Any = column
        wall = dates.dt.tz_convert("UTC").dt.tz_localize(None) if zone is not None else column
        known = clock if clock is not None and clock.unit else None
        bare = replace(known, dtype=_without_zone(known.dtype)) if known else None
        numbers, texts, found = encode_column(wall, bare)
        if found.unit == MONTH:  # which differ in length
            found = replace(found, unit="D", origin=f"{found.origin}-01")
            numbers, texts, found = encode_column(wall, found)
        if texts is not None or found.family not in ("real", "whole", *DATED):
            raise ValueError(
                f"Expected numbers, dates or durations in the time column {column.name!r}; got "
                f"{column.iloc[0]!r} in row 1: convert them, for example to hours"
            )
        if zone is not None:
            found = replace(found, dtype=f"{found.dtype[:-1]}, {zone}]")
    if clock is not None and _kind(found) != _kind(clock):
        raise ValueError(
            f"Expected {_kind(clock)} in the time column {column.name!r}, as those of the clock; "
            f"got {_kind(found)}: convert them"
        )
    return numbers, found


def encoded_times(times: Any, clock: ColumnType) -> Array:
    """Return an array of times as numbers that a clock counts.

    Args:
        times: Numbers, which are themselves; or, where the clock counts dates or durations, such
            ones or text of such ones, in an array, an index or a list, of any shape.
        clock: The clock.

    Raises:
        ValueError: They are dates where the clock has none, or text that is no date.

    Example:
        >>> clock = ColumnType("datetime64[us]", "D", "2024-03-01")
        >>> encoded_times(["2024-03-02", "2024-03-03 12:00"], clock).tolist()
        [1.0, 2.5]
    """
    array = np.asarray(times)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    import pandas as pd  # here, since it takes long to import

    flat: Any = pd.Series(times if array.ndim == 1 else array.ravel(), name="times")
    dated = {"M": "dates", "m": "durations"}.get(flat.dtype.kind)
    try:
        if dated is None and clock.unit:
            dated = _kind(clock)
            read: Any = partial(pd.to_datetime, format="ISO8601")
            flat = (read if dated == "dates" else pd.to_timedelta)(flat)
        if dated not in (None, _kind(clock)):
            raise TypeError
        if dated is None:
            return array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected times that are {_kind(clock)}, as those of the fit; got "
            f"{flat.iloc[0]!s}: convert them"
        ) from None
    return encode_clock(flat, clock)[0].reshape(array.shape)


def decode_clock(times: Array, clock: ColumnType) -> pd.Series[Any]:
    """Return times as a column of the clock's dtype: the inverse of `encode_clock`.

    Whole numbers stay whole as long as all of them are; dates between two counts of the unit are
    rounded to microseconds, or to nanoseconds where the column had them.

    Example:
        >>> day = ColumnType("datetime64[us]", "D", "2024-03-01")
        >>> print(decode_clock(np.array([0.5]), day)[0])
        2024-03-01 12:00:00
    """
    import pandas as pd

    whole = bool((times % 1 == 0).all())
    if not clock.unit:
        kept = clock.dtype if whole or clock.family == "real" else "float64"
        return decode_column(times, None, ColumnType(kept))
    zone = ZONE.search(clock.dtype)
    bare = replace(clock, dtype=_without_zone(clock.dtype))
    if not whole:
        finest = "ns" if "[ns" in bare.dtype else "us"
        bare = replace(bare, unit=finest)
        times = times * (UNITS[clock.unit] / UNITS[finest])
    column: Any
    if "64[" in bare.dtype and not bare.format and not bare.dtype.startswith("object"):
        resolution = bare.dtype.partition("[")[2].rstrip("]")
        finer = resolution if whole or resolution == "ns" else "us"
        column = pd.Series(decode_times(times, bare.unit, bare.origin, finer))
    else:
        column = decode_column(times, None, bare)
    if zone:
        column = column.dt.tz_localize("UTC").dt.tz_convert(zone[1])
    dated: pd.Series[Any] = column
    return dated


def recount(times: Array, given: ColumnType, wanted: ColumnType) -> Array:
    """Return times of one clock as those of another.

    Raises:
        ValueError: One counts dates and the other does not.

    Example:
        >>> hour, day = (ColumnType("datetime64[us]", *each) for each in
        ...              (("h", "2024-03-01"), ("D", "2024-03-02")))
        >>> recount(np.array([36.0]), hour, day).tolist()
        [0.5]
    """
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"Expected times that are {_kind(wanted)}, as those of the fit; got {_kind(given)}: "
            "convert them before Series.from_frame"
        )
    if not given.unit or (given.unit, given.origin) == (wanted.unit, wanted.origin):
        return times
    times = times * (UNITS[given.unit] / UNITS[wanted.unit])
    if given.origin:
        origin: Times = np.array([given.origin], dtype="M8")
        times = times + encode_times(origin, wanted.unit, wanted.origin)[0]
    return times


def _kind(clock: ColumnType) -> str:
    return DATED.get(clock.family, "numbers")


def _without_zone(dtype: str) -> str:
    return re.sub(r", .*\]$", "]", dtype)
