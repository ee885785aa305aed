"""Cells of rows that are given, by a file with some of a model's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import cnf.datasets as datasets
from cnf.datasets import ReadOptions, Table
from cnf.scripts.data import select_columns
from cnf.scripts.rows import Array
from cnf.tables.dates import date_parts, dates_of
from cnf.tables.schema import Schema


@dataclass(frozen=True, eq=False)
class GivenCells:
    """Cells of rows that are given.

    Attributes:
        x: All of a model's columns as its numbers, NaN where a cell is not given, (rows, columns).
        given: Whether cells are given, shape (rows, columns).
        table: The model's columns that the file has, as they are there.
    """

    x: Array
    given: NDArray[np.bool_]
    table: Table

    def repeat(self, n: int) -> GivenCells:
        """Return each row `n` times."""
        table = replace(self.table, values=np.repeat(self.table.values, n, axis=0))
        return GivenCells(np.repeat(self.x, n, axis=0), np.repeat(self.given, n, axis=0), table)

    def restore(self, drawn: Table) -> Table:
        """Return a table of draws with the given numbers exactly as they are in the file."""
        values = drawn.values.copy()
        for name, own in zip(self.table.columns, self.table.values.T, strict=True):
            if name not in drawn.categories:  # whose numbers are the model's, and exact
                place = drawn.columns.index(name)
                values[:, place] = np.where(self.given[:, place], own, values[:, place])
        return replace(drawn, values=values)


def open_given(
    name: str, schema: Schema, context_columns: Sequence[str], reading: ReadOptions
) -> GivenCells:
    """Read given cells from a file with some or all of a model's columns, matched by name.

    Args:
        name: The file, in which gaps are cells that are not given, unless gaps are values.
        schema: The modelled columns.
        context_columns: Names of the columns of the context, which the file may have as well.
        reading: How the file is read.

    Raises:
        ValueError: The file has no column of the model, or others, or a value that its column
            cannot have.
    """
    names = (*schema.names, *context_columns)
    table = date_parts(datasets.load(name, "keep", reading), names)
    for column in table.columns:
        if column not in (*names, *dates_of(names)):
            near = ", ".join(datasets.closest(column, names))
            raise ValueError(
                f"Expected columns of the model in {name}; got {column!r}: rename it (the closest "
                f"names are {near}), or leave it out"
            )
    absent = [each for each in schema.names if each not in table.columns]
    if len(absent) == len(schema.names):
        raise ValueError(
            f"Expected some of the model's columns, {', '.join(schema.names[:5])}, in {name}; got "
            f"{', '.join(table.columns[:5])}"
        )
    known, places = schema.without(absent)
    chosen = select_columns(table, known.names)
    numbers = known.numbers(chosen.values, chosen.categories, chosen.types)
    known.check(numbers, gaps=True)
    x = np.full((len(numbers), len(schema.columns)), np.nan)
    x[:, places] = numbers
    values = [column.gaps == "value" for column in known.columns]
    given = np.zeros(x.shape, np.bool_)
    given[:, places] = ~np.isnan(numbers) | values
    return GivenCells(x, given, chosen)
