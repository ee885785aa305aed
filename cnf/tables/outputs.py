"""Tables of what a model answers: gaps filled by draws, and cells explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnf.datasets import Table, from_any, table_frame
from cnf.datasets.column_types import ColumnType
from cnf.tables.schema import Column, Schema

Array = NDArray[np.float64]

NUMBERS = ("real", "whole")  # families of columns whose values are numbers


def fill_gaps(table: Table, schema: Schema, numbers: Array) -> Table:
    """Return a table with its gaps filled, in its own categories and types.

    A category that a column lacks is added to it, by the schema's type where categories are no
    text. A column of gaps alone has the schema's type.

    Args:
        table: The table, whose dates are counted as those of the schema.
        schema: The schema of its columns.
        numbers: The same rows without gaps, shape (rows, columns).

    Example:
        >>> schema = Schema((Column("c", "categorical", categories=("no", "yes")), Column("x")))
        >>> values = np.array([[0.0, np.nan], [np.nan, 2.0]])
        >>> table = Table("t", values, ("c", "x"), categories={"c": ("no",)})
        >>> filled = fill_gaps(table, schema, np.array([[0.0, 0.5], [1.0, 2.0]]))
        >>> filled.values.tolist(), filled.categories
        ([[0.0, 0.5], [1.0, 2.0]], {'c': ('no', 'yes')})
    """
    values, categories, types = table.values.copy(), dict(table.categories), dict(table.types)
    for i, column in enumerate(schema.columns):
        if np.isnan(values[:, i]).any():
            each = _filled(
                values[:, i],
                categories.pop(column.name, None),
                types.pop(column.name, ColumnType()),
                column,
                numbers[:, i],
            )
            values[:, i], texts, types[column.name] = each
            if texts is not None:
                categories[column.name] = texts
    return Table(table.name, values, table.columns, categories=categories, types=types)


def _filled(
    values: Array,
    texts: tuple[str, ...] | None,
    type: ColumnType,
    column: Column,
    numbers: Array,
) -> tuple[Array, tuple[str, ...] | None, ColumnType]:
    """Return the values of a column (rows,) with gaps filled, with its texts and its type."""
    kind, gaps = column.of_kind, np.isnan(values)
    draws = {each: column.text(each) for each in np.unique(numbers[gaps & ~np.isnan(numbers)])}
    lacking = {*draws.values()} - {*(texts or ())}
    if gaps.all() or (texts is not None and lacking and type.label_type is not None):
        return kind.tabled(numbers), column.categories if kind.coded else None, kind.table_type
    if texts is None:
        return np.where(gaps, kind.tabled(numbers), values), None, type
    texts = (*texts, *sorted(lacking))
    found = values.copy()
    for number, text in draws.items():
        found[gaps & (numbers == number)] = texts.index(text)
    return found, texts, type


def fill_frame(X: Any, table: Table, schema: Schema, numbers: Array) -> Any:
    """Return a table of pandas, polars or pyarrow with its gaps filled; other cells stay.

    Args:
        X: The table.
        table: Its numbers.
        schema: The schema of its columns.
        numbers: The same rows without gaps, as numbers of the schema, shape (rows, columns).
    """
    frame, restore = from_any(X)
    filled = table_frame(fill_gaps(table, schema, numbers)).set_axis(frame.index)
    columns = [_merged(frame.iloc[:, i], filled.iloc[:, i]) for i in range(frame.shape[1])]
    return restore(pd.concat(columns, axis=1).set_axis(frame.columns, axis=1))


def _merged(column: pd.Series[Any], filled: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column with its gaps filled from another one, of its type where that allows."""
    gaps = column.isna().to_numpy()
    if not gaps.any():
        return column
    if isinstance(column.dtype, pd.CategoricalDtype):
        dtype = _with_categories(column.dtype, filled)
        column, filled = column.astype(dtype), filled.astype(dtype)
    if gaps.all():
        return filled
    both = pd.concat([column, filled.astype(column.dtype)], ignore_index=True)
    return both.take(np.arange(len(gaps)) + len(gaps) * gaps).set_axis(column.index)


def _with_categories(dtype: pd.CategoricalDtype, filled: pd.Series[Any]) -> pd.CategoricalDtype:
    """Return a dtype that has the values of a column among its categories, if need be as new."""
    categories = dtype.categories
    new = pd.Index(filled.dropna().unique()).difference(categories)
    if not len(new):
        return dtype
    if (
        isinstance(filled.dtype, pd.CategoricalDtype)
        and categories.isin(filled.cat.categories).all()
    ):
        return pd.CategoricalDtype(filled.cat.categories, dtype.ordered)
    return pd.CategoricalDtype(categories.append(new), dtype.ordered)


def given_cells(table: Table, schema: Schema, numbers: Array) -> Array:
    """Return the values of given cells as `schema.table` has them, not rounded; NaN for gaps.

    Args:
        table: The cells, whose dates are counted as those of the schema.
        schema: The schema of its columns.
        numbers: The cells as numbers of the schema, shape (rows, columns).
    """
    values = schema.table(numbers).values
    for i, column in enumerate(schema.columns):
        if column.name not in table.categories and not column.of_kind.coded:
            values[:, i] = table.values[:, i]
    return np.where(np.isnan(table.values), np.nan, values)


def long_form(
    schema: Schema, surprise: Array, excess: Array, expected: Array
) -> dict[str, NDArray[Any]]:
    """Return what explains the cells of rows as columns, with an entry for each cell.

    A row's cells come by their excess, the largest first and gaps last.

    Args:
        schema: The columns.
        surprise: −log p of each cell given the others of its row, shape (rows, columns).
        excess: Of each cell as `cnf.tables.questions.explain` has it, shape (rows, columns).
        expected: The expected numbers of the schema, shape (rows, columns).

    Returns:
        The row, counted from 0, the column's name, `surprise`, `excess` and `expected`, which is
        a number where all columns hold numbers, and text otherwise.

    Example:
        >>> schema = Schema((Column("a"), Column("b")))
        >>> found = long_form(schema, *np.array([[[1.0, 5.0]], [[-0.5, 3.0]], [[0.0, 2.0]]]))
        >>> found["column"].tolist(), found["excess"].tolist(), found["expected"].tolist()
        (['b', 'a'], [3.0, -0.5], [2.0, 0.0])
    """
    order = np.argsort(-excess, axis=1, kind="stable")
    rows, places = np.arange(len(order)).repeat(order.shape[1]), order.ravel()
    values: NDArray[Any] = schema.table(expected).values
    if not all(type.family in NUMBERS for type in schema.types.values()):
        pairs = zip(schema.columns, expected.T, strict=True)
        values = np.array([[*map(column.text, each)] for column, each in pairs], object).T
    return {
        "row": rows,
        "column": np.array(schema.names, object)[places],
        "surprise": surprise[rows, places],
        "excess": excess[rows, places],
        "expected": values[rows, places],
    }
