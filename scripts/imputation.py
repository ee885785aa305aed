"""The work of `cnf impute`: the gaps of a file, filled as its other cells are written."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import cnf.datasets as datasets
from cnf.datasets import (
    ColumnType,
    ReadOptions,
    Table,
    frame_table,
    from_any,
    table_frame,
    write_table,
)
from cnf.datasets.cells import CellParser
from cnf.datasets.delimited import read_delimited
from cnf.datasets.files import TEXT_ENDINGS, WRITERS
from cnf.datasets.reading import file_ending
from cnf.scripts.data import select_columns
from cnf.scripts.rows import Array, ContextRows
from cnf.scripts.trained import TrainedModel
from cnf.tables.outputs import fill_frame, fill_gaps
from cnf.utils.serialization import write_atomic

DRAW_COLUMN = "draw"

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FilledRows:
    """The rows of a file, `draws` times one after the other, with their gaps filled."""

    trained: TrainedModel
    draws: int
    before: Array  # the model's numbers, (draws x rows, columns)
    after: Array

    @property
    def numbers(self) -> Array:
        """The number of the draw of each row, from 1."""
        return np.repeat(np.arange(1.0, self.draws + 1), len(self.after) // self.draws)


def impute_file(
    data: str, out: str, trained: TrainedModel, draws: int, seed: int, reading: ReadOptions
) -> str:
    """Write a file with the gaps of another one filled, and return a summary.

    Text stays text, cell by cell, and Parquet keeps its schema, where the new file is of the same
    kind; others are tables of the same types.
    """
    _ = trained.row_model  # or an error
    rows, _ = trained.rows(data, None, "keep", "impute", reading, "keep")
    gaps = trained.gaps(rows)
    places = np.flatnonzero(gaps.any(axis=1))
    x = np.tile(rows.x, (draws, 1))
    if len(places):
        chosen = np.tile(places, draws)
        of_draws = (places + i * len(rows) for i in range(draws))
        x[np.concatenate([*of_draws])] = trained.impute(rows.at(chosen), seed)
    filled = FilledRows(trained, draws, np.tile(rows.x, (draws, 1)), x)
    left = trained.gaps(ContextRows(x[: len(rows)], rows.context))
    _warn_of_left(left.any(axis=1) | ~trained.possible(rows))
    kinds = file_ending(Path(data)), Path(out).suffix.lower()
    if kinds[0] in TEXT_ENDINGS and kinds[1] == ".csv":
        _write_text(data, out, filled, reading)
    elif kinds == (".parquet", ".parquet"):
        _write_parquet(data, out, filled)
    else:
        _write_table(data, out, filled, reading)
    times = f", {draws} times" if draws > 1 else ""
    filled_gaps = gaps & ~left
    count = filled_gaps.any(axis=1).sum()
    return f"{filled_gaps.sum()} gaps in {count} of {len(rows)} rows filled{times} in {out}"


def _warn_of_left(left: NDArray[np.bool_]) -> None:
    """Warn of rows that the model does not know, by flags of all rows."""
    if left.any():
        warnings.warn(
            f"{left.sum()} of {len(left)} rows stay as they are, with new categories, values that "
            "their columns cannot have, or a gap in the context; the first is row "
            f"{left.argmax() + 1} (counting from 1)",
            stacklevel=2,
        )


def _matched(columns: Sequence[str], filled: FilledRows) -> dict[str, str]:
    """Return a file's columns by the model's names: those of these names, or all in order."""
    if filled.draws > 1 and DRAW_COLUMN in columns:
        raise ValueError(
            f"Expected no column {DRAW_COLUMN!r} with --draws above 1, which the file in --data "
            "has: rename it"
        )
    names = filled.trained.schema.names
    known = {name: name for name in names if name in columns}
    return known or dict(zip(names, columns, strict=True))


def _write_text(data: str, out: str, filled: FilledRows, reading: ReadOptions) -> None:
    """Write the cells of a text with its separator and decimal mark, and gaps filled."""
    raw = read_delimited(Path(data), reading)
    cells = {name: column.to_pylist() * filled.draws for name, column in raw.columns.items()}
    decimal, schema = CellParser(raw, reading).decimal, filled.trained.schema
    drawn = _texts(schema.table(filled.after), decimal)
    for name, own in _matched([*cells], filled).items():
        place = schema.names.index(name)
        changed = np.isnan(filled.before[:, place]) & ~np.isnan(filled.after[:, place])
        for row in np.flatnonzero(changed).tolist():
            cells[own][row] = drawn[row][place]
    header = ["" if name in raw.unnamed else name for name in cells]
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=raw.sep, lineterminator="\n")
    columns = [*cells.values()]
    if filled.draws > 1:
        header, columns = [DRAW_COLUMN, *header], [[f"{k:g}" for k in filled.numbers], *columns]
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    write_atomic({Path(out): stream.getvalue().encode()})


def _texts(table: Table, decimal: str) -> list[list[str]]:
    """Return the cells of a table as texts, with a decimal mark in numbers."""
    stream = io.BytesIO()
    WRITERS[".csv"](stream, table)
    _, *lines = csv.reader(io.StringIO(stream.getvalue().decode(), newline=""))
    if decimal != ".":
        families = [table.types.get(name, ColumnType()).family for name in table.columns]
        for i, name in enumerate(table.columns):
            if families[i] == "real" and name not in table.categories:
                for line in lines:
                    line[i] = line[i].replace(".", decimal)
    return lines


def _write_parquet(data: str, out: str, filled: FilledRows) -> None:
    """Write the table of a Parquet file with its schema, and gaps filled."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = filled.trained.schema
    table = pa.concat_tables([parquet.read_table(data)] * filled.draws)
    matched = _matched(table.column_names, filled)
    known, places = schema.without([name for name in schema.names if name not in matched])
    own = table.select([matched[name] for name in known.names]).rename_columns([*known.names])
    drawn = table_frame(known.table(filled.after[:, places]))
    for place, field in enumerate(pa.Table.from_pandas(drawn, preserve_index=False).schema):
        if pa.types.is_null(own.schema.types[place]):  # of gaps alone
            own = own.set_column(place, field, pa.nulls(len(own), field.type))
    numbers = frame_table(from_any(own)[0], data, filled.trained.types)
    complete = fill_frame(own, numbers, known, filled.after[:, places])
    for name, theirs in matched.items():
        place = table.column_names.index(theirs)
        field = table.schema.field(place).with_type(complete[name].type)
        table = table.set_column(place, field, complete[name])
    if filled.draws > 1:
        table = table.add_column(0, DRAW_COLUMN, pa.array(filled.numbers.astype(np.int64)))
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    write_atomic({Path(out): stream.getvalue()})


def _write_table(data: str, out: str, filled: FilledRows, reading: ReadOptions) -> None:
    """Write a table of the file's types, and gaps filled."""
    schema = filled.trained.schema
    table = datasets.load(data, "keep", replace(reading, types=filled.trained.types))
    table = replace(table, values=np.tile(table.values, (filled.draws, 1)))
    matched = _matched(table.columns, filled)
    known, places = schema.without([name for name in schema.names if name not in matched])
    own = select_columns(table.select([*matched.values()]), known.names)
    complete = fill_gaps(own, known, filled.after[:, places])
    values = table.values.copy()
    values[:, [table.columns.index(matched[name]) for name in known.names]] = complete.values
    categories = _replaced(table.categories, complete.categories, matched)
    types = _replaced(table.types, complete.types, matched)
    table = replace(table, values=values, categories=categories, types=types)
    if filled.draws > 1:
        values = np.column_stack([filled.numbers, values])
        types = {DRAW_COLUMN: ColumnType("int64"), **types}
        table = replace(table, values=values, columns=(DRAW_COLUMN, *table.columns), types=types)
    write_table(out, table)


def _replaced(
    before: Mapping[str, T], after: Mapping[str, T], matched: dict[str, str]
) -> dict[str, T]:
    """Return a table's entries, with those of the columns that are matched replaced."""
    others = {name: each for name, each in before.items() if name not in matched.values()}
    return others | {matched[name]: each for name, each in after.items()}
