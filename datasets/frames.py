"""Conversion between data frames and tables of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cnf.datasets.column_types import ColumnType
from cnf.datasets.columns import decode_column, encode_column
from cnf.datasets.dtypes import arrow_pandas_dtype
from cnf.datasets.table import Table, check_distinct

if TYPE_CHECKING:  # functions import them, since they take long
    import pandas as pd
    import pyarrow as pa

NOT_IN_ARROW = ("Int128", "UInt128", "Object")  # narwhals' names
Restore = Callable[["pd.DataFrame"], Any]


def frame_table(
    frame: pd.DataFrame, name: str = "frame", types: Mapping[str, ColumnType] | None = None
) -> Table:
    """Convert a frame to a table of numbers.

    Columns are encoded by `cnf.datasets.encode_column`: text and categories as codes, dates as
    counts of a unit since the first, missing values as NaN. The table's types restore them.

    Args:
        frame: The frame; a column labelled with an integer n is named xn in the table.
        name: Name of the table.
        types: A model's types by column: dates are counted from its origins in its units.

    Raises:
        ValueError: If a column holds anything else, or names are repeated or blank.

    Example:
        >>> import pandas as pd
        >>> table = frame_table(pd.DataFrame({"n": [1, 2], "colour": ["red", "blue"]}))
        >>> table.values.tolist(), table.categories, table.types["n"].dtype
        ([[1.0, 1.0], [2.0, 0.0]], {'colour': ('blue', 'red')}, 'int64')
    """
    columns = column_names(frame.columns)
    values = np.empty(frame.shape)
    categories, found = {}, {}
    for i, column in enumerate(columns):
        series = frame.iloc[:, i].rename(column)
        try:
            values[:, i], texts, type = encode_column(series, (types or {}).get(column))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if texts is not None:
            categories[column] = texts
        if type != ColumnType():
            found[column] = type
    return Table(name, values, columns, categories=categories, types=found)


def table_frame(table: Table) -> pd.DataFrame:
    """Convert a table to a frame of its types: the inverse of `frame_table`.

    Columns of codes without a type become text. Numbers that a type cannot hold become the nearest
    that it can, as `cnf.datasets.decode_column` says.

    Example:
        >>> types = {"n": ColumnType("int64")}
        >>> table = Table("t", np.array([[1.0, 1]]), ("n", "c"), 0, {"c": ("a", "b")}, types)
        >>> table_frame(table).to_dict("list")
        {'n': [1], 'c': ['b']}
    """
    import pandas as pd

    columns = [
        decode_column(column, table.categories.get(name), table.types.get(name, ColumnType()))
        for name, column in zip(table.columns, table.values.T, strict=True)
    ]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(len(table.values)))
    return frame.set_axis(list(table.columns), axis=1)


def from_any(X: Any) -> tuple[pd.DataFrame, Restore]:
    """Convert a pandas, polars or pyarrow table to a frame with columns named by text.

    Args:
        X: The table; its columns may have any labels: integers n become xn, tuples of several
            levels are joined by points.

    Returns:
        The frame; a function that converts a frame of these columns to the kind of table that came,
        with its labels and types.

    Raises:
        ValueError: If it is no such table, it has no columns, names are repeated, or Arrow cannot
            hold a column.

    Example:
        >>> import datetime
        >>> import polars
        >>> days = polars.DataFrame({"day": [datetime.date(2024, 2, 29)]})
        >>> frame, restore = from_any(days)
        >>> restore(table_frame(frame_table(frame))).equals(days)
        True
    """
    import pandas as pd

    if isinstance(X, pd.DataFrame):
        names = column_names(X.columns)
        check_distinct(names)
        frame, restore = X.set_axis(list(names), axis=1), lambda drawn: _cast(drawn, X)
    else:
        frame, restore = _from_narwhals(X)
    if not frame.shape[1]:
        raise ValueError("Expected a table with columns; got one without any: pass its columns.")
    return frame, restore


def _from_narwhals(X: Any) -> tuple[pd.DataFrame, Restore]:
    import narwhals as nw

    check_distinct(getattr(X, "column_names", ()))  # of Arrow, before narwhals refuses them
    table = nw.from_native(X, eager_only=True, pass_through=True)
    kind = table.implementation if isinstance(table, nw.DataFrame) else nw.Implementation.UNKNOWN
    if not (kind.is_polars() or kind.is_pyarrow()):
        got = f"{X.__class__.__module__}.{X.__class__.__name__}"
        raise ValueError(
            f"Expected a table of pandas, polars or pyarrow; got {got}: convert it, or collect a "
            "lazy one."
        )
    for name, dtype in table.schema.items():
        if str(dtype) in NOT_IN_ARROW:
            raise ValueError(
                f"Expected values that Arrow holds; got {dtype} in column {name!r}: cast it, or "
                "leave the column out."
            )
    arrow = table.to_arrow()

    def restore(frame: pd.DataFrame) -> Any:
        import pyarrow as pa

        named = frame.set_axis(arrow.column_names, axis=1)
        schema, changed = arrow.schema, []
        for i, name in enumerate(arrow.column_names):
            if len(arrow) == arrow.column(i).null_count > 0:
                field = _holding(schema.field(i), named[name])
                changed += [name] if field.type != schema.field(i).type else []
                schema = schema.set(i, field)
        drawn = pa.Table.from_pandas(named, schema=schema, preserve_index=False)
        drawn = drawn.replace_schema_metadata(arrow.schema.metadata)
        if kind.is_pyarrow():
            return drawn
        return X.__class__(drawn).cast({k: v for k, v in X.schema.items() if k not in changed})

    return _arrow_frame(arrow), restore


def _holding(field: pa.Field, column: pd.Series[Any]) -> pa.Field:
    """Return a field of Arrow, of another type where its own cannot hold a column's values."""
    import pyarrow as pa

    try:
        pa.array(column, type=field.type)
    except (pa.ArrowException, TypeError, ValueError):
        return field.with_type(pa.array(column).type)
    return field


def _cast(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with another's labels and, where gaps and values allow, its dtypes."""
    import pandas as pd

    columns = [_cast_column(frame.iloc[:, i], like.iloc[:, i]) for i in range(like.shape[1])]
    return pd.concat(columns, axis=1).set_axis(like.columns, axis=1) if columns else frame


def _cast_column(column: pd.Series[Any], like: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    dtype, own = like.dtype, column.dtype
    if dtype.kind in "biu" and isinstance(dtype, np.dtype) and column.hasnans:
        return column
    if isinstance(dtype, pd.CategoricalDtype) and isinstance(own, pd.CategoricalDtype):
        return column.astype(dtype) if own.categories.isin(dtype.categories).all() else column
    if not len(like) or like.notna().any():
        return column.astype(dtype)
    try:
        return column.astype(dtype)
    except (TypeError, ValueError):  # the dtype of gaps alone says nothing
        return column


def like_frame(columns: Mapping[str, Any], like: Any) -> Any:
    """Return columns as a table of another one's library, pandas, polars or pyarrow.

    Example:
        >>> import polars
        >>> like_frame({"a": [1, 2]}, polars.DataFrame({"x": [0.5]}))["a"].to_list()
        [1, 2]
    """
    import pandas as pd
    import pyarrow as pa

    if isinstance(like, pd.DataFrame):
        return pd.DataFrame(columns)
    table = pa.table({**columns})
    return table if isinstance(like, pa.Table) else like.__class__(table)


def _arrow_frame(table: pa.Table) -> pd.DataFrame:
    """Convert an Arrow table such that gaps and types stay: whole numbers nullable, for one."""
    import pandas as pd

    types = {kind: pd.ArrowDtype(kind) for kind in table.schema.types if _only_arrow(kind)}
    frame: pd.DataFrame = table.to_pandas(
        types_mapper=lambda kind: types.get(kind) or arrow_pandas_dtype(kind),
        date_as_object=False,
        ignore_metadata=True,  # by which pandas would take columns for the index
    )
    return frame


def _only_arrow(kind: pa.DataType) -> bool:
    """Return whether only pandas' Arrow dtype holds a type, as decimals with their precision."""
    import pyarrow as pa

    return bool(pa.types.is_decimal(kind) or pa.types.is_nested(kind) or pa.types.is_time(kind))


def column_names(labels: Iterable[Any]) -> tuple[str, ...]:
    """Return the names in tables of a frame's columns, which have any labels.

    Example:
        >>> column_names([0, "b", ("c", 1)])
        ('x0', 'b', 'c.1')
    """
    return tuple(
        f"x{label}"
        if isinstance(label, int | np.integer)
        else ".".join(map(str, label))
        if isinstance(label, tuple)
        else str(label)
        for label in labels
    )
