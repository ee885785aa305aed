"""Cells of a table's columns, in which rows are counted: categories, few values, or deciles."""

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cnf.datasets import ColumnType, Table
from cnf.diagnostics.similarity import DECILES, FEW_VALUES, decile_edges
from cnf.plotting.panels import Array
from cnf.tables.dates import date_text
from cnf.tables.kinds import find_atoms
from cnf.tables.kinds.nominal import BOOLEAN_TEXTS

Codes = NDArray[np.intp]

MAX_CATEGORY_CELLS = 10  # rarer categories are one cell
DAY_LETTERS = len("2024-01-31")
MAX_SPIKES = 6  # more are values of a grid
VALUE_DIGITS, EDGE_DIGITS = 6, 4  # that are shown


def is_discrete(table: Table, name: str) -> bool:
    """Return whether a column has categories or booleans, or few values that are repeated.

    Example:
        >>> table = Table("t", np.column_stack([np.arange(60) % 3, np.arange(60.0)]), ("n", "x"))
        >>> is_discrete(table, "n"), is_discrete(table, "x")
        (True, False)
    """
    if name in table.categories or is_boolean(table, name):
        return True
    values = column_of(table, name)
    return 1 < len(np.unique(values[~np.isnan(values)])) <= min(FEW_VALUES, len(values) // 2)


def is_smooth(table: Table, name: str) -> bool:
    """Return whether a column's numbers are many, and their deciles different."""
    edges = () if is_discrete(table, name) else decile_edges(column_of(table, name))
    return len(edges) == len(DECILES)


def is_mixed(table: Table) -> bool:
    """Return whether any column is discrete, or has values with a mass beside a density."""
    return any(
        is_discrete(table, name) or len(spikes_of(column_of(table, name))) for name in table.columns
    )


def spikes_of(values: Array) -> Array:
    """Return the numbers that occur too often for a density of the others, in order.

    Example:
        >>> spikes_of(np.append(np.zeros(60), np.arange(1.0, 41.0))).tolist()
        [0.0]
    """
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    found = [value for value, _ in find_atoms(distinct, counts)] if len(distinct) else []
    return np.array(found if len(found) < min(len(distinct), MAX_SPIKES + 1) else [])


def column_of(table: Table, name: str) -> Array:
    """Return the values of a column, shape (rows,)."""
    return table.values[:, table.columns.index(name)]


def cells_of(data: Table, samples: Table, name: str) -> tuple[list[str], Codes, Codes]:
    """Return the names of a column's cells, and the numbers of those of data and of samples.

    Categories are in the order of their frequency in the data, and those beyond nine one cell.
    Numbers of many values are cut at the data's deciles.

    Example:
        >>> tables = [Table("t", np.array([x]).T, ("x",)) for x in ([0, 2.0] * 2, [2, 3.0])]
        >>> labels, data, samples = cells_of(*tables, "x")
        >>> labels, data.tolist(), samples.tolist()
        (['0', '2', 'other'], [0, 1, 0, 1], [1, 2])
    """
    values, drawn = (column_of(table, name) for table in (data, samples))
    if not is_discrete(data, name):
        edges = decile_edges(values)
        texts = [value_text(data, name, edge, EDGE_DIGITS) for edge in edges]
        labels = [*(f"≤ {text}" for text in texts), f"> {texts[-1]}"]
        codes = [np.searchsorted(edges, each) for each in (values, drawn)]
        others = "missing"
    else:
        found = np.unique(values[~np.isnan(values)])
        others = "missing" if np.isnan(values).any() else "other"
        if name in data.categories:
            found, others = _frequent(values, len(data.categories[name]), others)
        labels = [value_text(data, name, value) for value in found]
        equal = [each[:, None] == found for each in (values, drawn)]
        codes = [np.where(each.any(1), each.argmax(1), len(found)) for each in equal]
    first, second = (
        np.where(np.isnan(each), len(labels), code)
        for each, code in zip((values, drawn), codes, strict=True)
    )
    left_out = (first == len(labels)).any() or (second == len(labels)).any()
    return labels + [others] * bool(left_out), first, second


def _frequent(codes: Array, categories: int, others: str) -> tuple[Array, str]:
    """Return the codes of the categories with cells, and the name of the others' cell."""
    # Rows that are scored may have unknown categories, with negative codes.
    counts = np.bincount(codes[codes >= 0].astype(np.intp), minlength=categories)
    order = np.argsort(-counts, kind="stable").astype(np.float64)
    if categories <= MAX_CATEGORY_CELLS:
        return order, others
    return order[: MAX_CATEGORY_CELLS - 1], f"{categories - MAX_CATEGORY_CELLS + 1} others"


def value_text(table: Table, name: str, value: float, digits: int = VALUE_DIGITS) -> str:
    """Return a value of a column as text: a category's or boolean's name, a date, or a number."""
    if name in table.categories:
        return table.categories[name][int(value)]
    if is_boolean(table, name):
        return BOOLEAN_TEXTS[int(value)]
    type = table.types.get(name, ColumnType())
    if type.family == "date":
        return date_text(np.floor(value), type)
    return np.format_float_positional(value, digits, fractional=False, trim="-")


def label_numbers(axis: Axis, table: Table, name: str) -> None:
    """Label a few numbers of a column, or days of dates, along an axis."""
    type = table.types.get(name, ColumnType())
    axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    if type.family == "date":
        axis.set_major_locator(MaxNLocator(2))
        axis.set_major_formatter(lambda value, _: date_text(np.floor(value), type)[:DAY_LETTERS])


def is_boolean(table: Table, name: str) -> bool:
    """Return whether a column is of booleans."""
    return table.types.get(name, ColumnType()).family == "boolean"
