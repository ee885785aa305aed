"""Types of a table's columns: what their numbers stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

LARGEST_EXACT = 2**53  # float64 holds all whole numbers up to it

Family = Literal["real", "whole", "boolean", "text", "category", "date", "duration"]

FAMILIES: tuple[tuple[str, Family], ...] = (  # all other names are real numbers
    (r"category|dictionary", "category"),
    (r"datetime|timestamp|date", "date"),
    (r"timedelta|duration", "duration"),
    (r"bool", "boolean"),
    (r"u?int\d", "whole"),
    (r"str|utf8|large_|object$", "text"),
)


@dataclass(frozen=True)
class ColumnType:
    """The type of a column in tables: what its numbers stand for.

    `dataclasses.asdict` gives what JSON holds, and `ColumnType(**entry)` the type again.

    Attributes:
        dtype: pandas' name of the dtype: `"float64"`, `"Int64"`, `"boolean"`, `"category"`,
            `"str"`, `"datetime64[us, Europe/Berlin]"`, `"timedelta64[ns]"`, `"utf8[pyarrow]"`, …;
            `"decimal"` for objects of `decimal.Decimal`, `"object"` for objects of text, and
            `"object[date]"`, `"object[boolean]"`, … for objects of other classes.
        unit: The unit of the numbers of dates and durations: D, h, min, s, ms, us or ns.
        origin: The first date in ISO form, in local wall time, from which dates are counted.
        format: Format of values in text: strftime's directives for dates (%-d, %-m and %-H without
            leading zeros, %3f with three digits), a step such as `"0.01"` for decimals.
        labels: Values of categories that are no texts, as JSON holds them.
        label_type: The type of the labels, None for text.
        ordered: Whether categories are ordered.

    Example:
        >>> from dataclasses import asdict
        >>> day = ColumnType("datetime64[us]", unit="D", origin="2024-01-01")
        >>> day.family, ColumnType(**asdict(day)) == day
        ('date', True)
    """

    dtype: str = "float64"
    unit: str = ""
    origin: str = ""
    format: str = ""
    labels: tuple[object, ...] = ()
    ordered: bool = False
    label_type: ColumnType | None = None

    def __post_init__(self) -> None:
        labels = (tuple(each) if isinstance(each, list) else each for each in self.labels)
        object.__setattr__(self, "labels", tuple(labels))
        if isinstance(self.label_type, Mapping):  # as JSON holds it
            object.__setattr__(self, "label_type", ColumnType(**self.label_type))

    @property
    def family(self) -> Family:
        """The family of the values: text in a date's format is a date."""
        if self.unit:
            return "date" if self.origin else "duration"
        name = self.dtype.lower().removeprefix("object[").removeprefix("sparse[")
        return next((family for pattern, family in FAMILIES if re.match(pattern, name)), "real")

    @property
    def limits(self) -> tuple[float, float] | None:
        """The least and the greatest number of booleans and whole numbers, None for others.

        Example:
            >>> ColumnType("UInt8").limits
            (0.0, 255.0)
        """
        if self.family == "boolean":
            return 0.0, 1.0
        name = self.dtype.lower().partition("[")[0]
        if self.family != "whole" or not name.strip("u").startswith("int"):
            return None
        found = np.iinfo(name)
        return float(max(found.min, -LARGEST_EXACT)), float(min(found.max, LARGEST_EXACT))
