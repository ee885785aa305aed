"""Conversion between data frames and tables of numbers."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.table import Array, Table

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

MAX_CATEGORIES = 100  # columns of names and dates have more different texts


def frame_table(frame: pd.DataFrame, name: str = "frame") -> Table:
    """Convert a frame to a table of numbers.

    Integers become floats, and so do booleans, as 0 and 1. A column that holds only text and
    missing values is categorical, with codes in alphabetical order. Missing values become NaN, and
    values that are not numbers become infinity.

    Args:
        frame: The frame; a column labelled with an integer n is named xn in the table.
        name: Name of the table.

    Raises:
        ValueError: If a column has more than a hundred different texts.

    Example:
        >>> import pandas as pd
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
        elif len(texts.categories) > MAX_CATEGORIES:
            raise too_many_categories(name, column, "its end")
        else:
            values[:, i] = np.where(texts.codes < 0, np.nan, texts.codes)
            categories[column] = tuple(map(str, texts.categories))
    return Table(name, values, columns, categories=categories)


def table_frame(table: Table, whole: Collection[str] = ()) -> pd.DataFrame:
    """Convert a table to a frame with categories as text and the columns `whole` as integers.

    Example:
        >>> table = Table("t", np.array([[1.0, 1.0]]), ("n", "c"), categories={"c": ("a", "b")})
        >>> table_frame(table, whole=["n"]).to_dict("list")
        {'n': [1], 'c': ['b']}
    """
    import pandas as pd

    columns: dict[str, NDArray[Any]] = {}
    for i, name in enumerate(table.columns):
        values = table.values[:, i]
        if name in table.categories:
            columns[name] = np.array(table.categories[name], dtype=object)[values.astype(np.int64)]
        else:
            columns[name] = values.astype(np.int64) if name in whole else values
    return pd.DataFrame(columns)


def too_many_categories(name: object, column: str, place: str) -> ValueError:
    """Return the error for a column with too many different texts."""
    return ValueError(
        f"Expected at most {MAX_CATEGORIES} categories in a column of text in {name}; got more in "
        f"column {column!r} by {place}: leave it out, or merge categories."
    )


def _texts(series: pd.Series[Any]) -> pd.Categorical | None:
    """Return a column of only text and missing values as categories; None for others."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series.dtype):
        return None
    try:
        known = series.dropna().unique()
    except TypeError:  # unhashable objects, such as lists
        return None
    if not len(known) or not all(isinstance(cell, str) for cell in known):
        return None
    return pd.Categorical(series.astype(object), categories=sorted(known))


def _numbers(series: pd.Series[float]) -> Array:
    """Return a column's numbers: NaN for missing values, infinity for other objects."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series.dtype):
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    missing = series.isna()
    numbers = [
        np.nan if absent else float(cell) if isinstance(cell, Real) else np.inf
        for cell, absent in zip(series, missing, strict=True)
    ]
    return np.array(numbers, dtype=np.float64)
