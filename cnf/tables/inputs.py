"""Tables of numbers from what users pass: arrays, and tables of pandas, polars and pyarrow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from cnf.datasets import Table, frame_table, from_any
from cnf.datasets.column_types import Family

HELD: dict[Family, str] = {
    "boolean": "booleans",
    "text": "text",
    "category": "categories",
    "date": "dates",
    "duration": "durations",
}


PASS_TABLE = 'pass a table, such as pandas.DataFrame(X), with schema="infer"'


def is_frame(X: object) -> bool:
    """Return whether X is a table with labelled columns, such as those of pandas and pyarrow."""
    return hasattr(type(X), "columns") or hasattr(type(X), "column_names")


def unmasked(X: Any) -> Any:
    """Return a masked array with NaN in place of what is masked, others as they are.

    Raises:
        ValueError: It is an array of dates, of which NumPy would make large numbers.

    Example:
        >>> unmasked(np.ma.masked_equal([1, 2], 2)).tolist()
        [1.0, nan]
    """
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        raise ValueError(f"Expected numbers in an array; got {X.dtype}: {PASS_TABLE}")
    return np.ma.filled(X.astype(np.float64), np.nan) if isinstance(X, np.ma.MaskedArray) else X


def context_table(context: Any, rows: int) -> Table:
    """Return a context as a table of numbers, from an array or a table, or from a single column.

    Booleans are 0 and 1. Of None it is a table of so many rows without columns.

    Raises:
        ValueError: A column does not hold numbers.

    Example:
        >>> context_table([0.5, 1.5], rows=2).values.shape, context_table(None, rows=2).values.shape
        ((2, 1), (2, 0))
    """
    if context is None:
        return Table("context", np.empty((rows, 0)), ())
    if is_frame(context):
        table = frame_table(from_any(context)[0], "context")
        types = {name: type for name, type in table.types.items() if type.family != "boolean"}
        check_numbers(replace(table, types=types), "encode it as numbers, or leave it out")
        return table
    options = {"ensure_2d": False, "ensure_all_finite": False, "input_name": "context"}
    found = check_array(unmasked(context), dtype=np.float64, **options)
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    return Table("context", found, tuple(f"c{i}" for i in range(found.shape[1])))


def check_columns(table: Table, known: tuple[str, ...]) -> None:
    """Raise a ValueError unless a table has the columns that are known from a fit."""
    if table.columns != known:
        wanted, got = (", ".join(each[:10]) for each in (known, table.columns))
        raise ValueError(
            f"Expected the columns of {table.name} as in fit, {wanted}; got {got}: select them in "
            "that order"
        )


def check_numbers(table: Table, advice: str) -> None:
    """Raise a ValueError with the name of a column that does not hold numbers."""
    for name, type in table.types.items():
        if type.family in HELD:
            raise ValueError(
                f"Expected numbers in every column of {table.name}; got column {name!r}, which "
                f"holds {HELD[type.family]}: {advice}"
            )


def complete_rows(*tables: Table, drop: bool) -> NDArray[np.bool_]:
    """Return which rows of tables of the same length have no missing values.

    Args:
        tables: The tables.
        drop: Whether there may be others.

    Raises:
        ValueError: A value is infinite, or missing where it may not be; the message names the
            column and the row.
    """
    values = np.hstack([table.values for table in tables])
    infinite, gaps = np.isinf(values), np.isnan(values)
    complete = np.asarray(~gaps.any(1))
    if not infinite.any() and (drop or complete.all()):
        return complete
    bad = infinite if infinite.any() else gaps
    what, advice = "a gap (NaN)", 'fill it, pass missing="drop" for its row'
    if infinite.any():
        what, advice = "infinity", "correct it"
    row, place = divmod(int(bad.argmax()), bad.shape[1])
    names = [f"column {name!r} of {table.name}" for table in tables for name in table.columns]
    raise ValueError(
        f"Expected finite values; got {what} in {names[place]}, row {row + 1} (counting from 1; "
        f"{bad.any(1).sum()} such rows): {advice}, or leave the column out"
    )
