"""Dates as numbers: text for display, other origins, and their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cnf.datasets.column_types import ColumnType
from cnf.datasets.dates import MONTH, UNITS, decode_times, encode_times
from cnf.datasets.table import Array, Table

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

DATE_PARTS: dict[str, Callable[[pd.DatetimeIndex], pd.Index[int]]] = {
    "hour": lambda dates: dates.hour,
    "weekday": lambda dates: dates.day_of_week,
    "month": lambda dates: dates.month,
}
"""Parts of a date as whole numbers: hours from 0, weekdays from 0 for Monday, months from 1."""


def date_text(value: float, type: ColumnType) -> str:
    """Return a date in ISO form to the minute or, where that is not exact, to its unit.

    Example:
        >>> date_text(36.0, ColumnType("datetime64[us]", unit="h", origin="2024-01-01"))
        '2024-01-02 12:00'
    """
    (date,) = decode_times(np.array([value]), type.unit, type.origin, type.unit)
    minute = date.astype("datetime64[m]")
    timed = type.unit not in ("D", MONTH) and minute == date
    return str(minute if timed else date).replace("T", " ")


def recount(values: Array, given: ColumnType, wanted: ColumnType) -> Array:
    """Return dates or durations of one type as numbers of another: its unit, since its origin.

    Example:
        >>> day, hour = (ColumnType("datetime64[us]", each, "2024-01-01") for each in "Dh")
        >>> recount(np.array([1.0, 2.0]), day, hour).tolist()
        [24.0, 48.0]
    """
    if (given.unit, given.origin) == (wanted.unit, wanted.origin):
        return values
    finer = min(given.unit, wanted.unit, key=[MONTH, *UNITS][::-1].index)
    times = decode_times(values, given.unit, given.origin, finer)
    return encode_times(times, wanted.unit, wanted.origin)[0]


def date_parts(table: Table, names: Iterable[str]) -> Table:
    """Return a table with the parts of its dates that are named, as further whole numbers.

    Args:
        table: The table.
        names: Of a part, its column's name and the part's in `DATE_PARTS`, as in `when_hour`. Names
            of the table's columns, and of anything else, are ignored.

    Example:
        >>> types = {"t": ColumnType("datetime64[us]", unit="h", origin="2024-01-01")}
        >>> table = Table("times", np.array([[30.0]]), ("t",), types=types)
        >>> table = date_parts(table, ["t", "t_hour", "t_weekday"])
        >>> table.columns, table.values.tolist()
        (('t', 't_hour', 't_weekday'), [[30.0, 6.0, 1.0]])
    """
    import pandas as pd

    for name in names:
        column, _, part = name.rpartition("_")
        type = table.types.get(column, ColumnType())
        if name in table.columns or part not in DATE_PARTS or type.family != "date":
            continue
        values = table.values[:, table.columns.index(column)]
        dates = pd.DatetimeIndex(decode_times(values, type.unit, type.origin, type.unit))
        found = np.asarray(DATE_PARTS[part](dates), dtype=np.float64)
        table = replace(
            table,
            values=np.column_stack([table.values, found]),
            columns=(*table.columns, name),
            types={**table.types, name: ColumnType("int64")},
        )
    return table


def dates_of(names: Iterable[str]) -> list[str]:
    """Return the names of the columns of dates of which names may be parts.

    Example:
        >>> dates_of(["when_hour", "colour"])
        ['when']
    """
    split = (name.rpartition("_") for name in names)
    return [column for column, _, part in split if part in DATE_PARTS]
