"""Data frames as tables of numbers, and back."""

from collections.abc import Collection
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnf.datasets.table import Table

__all__ = ["MOST", "frame_table", "table_frame", "too_many"]

Array = NDArray[np.float64]

MOST = 100  # different texts in a column of categories; names and dates have more


def frame_table(frame: pd.DataFrame, name: str = "frame") -> Table:
    """A frame's numbers, and the categories of its columns of text, as a table.

    Whole numbers become floats, and so do booleans, as 0 and 1. A column that holds text, and
    nothing else but gaps, is one of categories, by their numbers in alphabetical order. NaN stands
    where a value is missing, and infinity where one is no number.

    Args:
        frame: The frame; columns that are called by a number n are xn in the table.
        name: What the table is called.

    Raises:
        ValueError: If there are more than a hundred different texts in a column.

    Example:
        >>> table = frame_table(pd.DataFrame({"n": [1, 2], "colour": ["red", "blue"]}))
        >>> table.values.tolist(), table.categories
        ([[1.0, 1.0], [2.0, 0.0]], {'colour': ('blue', 'red')})
    """
    columns = tuple(f"x{label}" if isinstance(label, int) else str(label) for label in frame)
    values = np.empty(frame.shape)
    categories = {}
    for i, column in enumerate(columns):
        series = frame.iloc[:, i]
        texts = _texts(series)
        if texts is None:
            values[:, i] = _numbers(series)
        elif len(texts.categories) > MOST:
            raise too_many(name, column, "its end")
        else:
            values[:, i] = np.where(texts.codes < 0, np.nan, texts.codes)
            categories[column] = tuple(map(str, texts.categories))
    return Table(name, values, columns, categories=categories)


def table_frame(table: Table, whole: Collection[str] = ()) -> pd.DataFrame:
    """A table as a frame, with categories as text and the numbers of some columns whole.

    Example:
        >>> table = Table("t", np.array([[1.0, 1.0]]), ("n", "c"), categories={"c": ("a", "b")})
        >>> table_frame(table, whole=["n"]).to_dict("list")
        {'n': [1], 'c': ['b']}
    """
    columns: dict[str, NDArray[Any]] = {}
    for i, name in enumerate(table.columns):
        values = table.values[:, i]
        if name in table.categories:
            columns[name] = np.array(table.categories[name], dtype=object)[values.astype(np.int64)]
        else:
            columns[name] = values.astype(np.int64) if name in whole else values
    return pd.DataFrame(columns)


def too_many(name: object, column: str, place: str) -> ValueError:
    """What is said of a column with too many different texts."""
    return ValueError(
        f"Expected at most {MOST} categories in a column of text in {name}; got more in column "
        f"{column!r} by {place}: leave it out, or gather them."
    )


def _texts(series: "pd.Series[Any]") -> pd.Categorical | None:
    """A column that holds text and nothing else but gaps, as categories; None where it does not."""
    if pd.api.types.is_numeric_dtype(series.dtype):
        return None
    try:
        known = series.dropna().unique()
    except TypeError:  # lists and objects, which are no text
        return None
    if not len(known) or not all(isinstance(cell, str) for cell in known):
        return None
    return pd.Categorical(series.astype(object), categories=sorted(known))


def _numbers(series: "pd.Series[float]") -> Array:
    """Numbers of a column; NaN where one is missing, infinity where text or a date is none."""
    if pd.api.types.is_numeric_dtype(series.dtype):
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    missing = series.isna()
    numbers = [
        np.nan if gap else float(cell) if isinstance(cell, Real) else np.inf
        for cell, gap in zip(series, missing, strict=True)
    ]
    return np.array(numbers, dtype=np.float64)
