"""What DATA on the command line names: rows to train on, to select on, to score."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.datasets import TABLES, TOYS, Table, Toy, check_fittable, load, split
from cnf.layers.standardize import constant_columns

Array = NDArray[np.float64]

TOY_ROWS = {"train": 100_000, "validation": 5_000, "test": 10_000}
TOY_COLUMNS = ("x", "y")


@dataclass(frozen=True, eq=False)
class Data:
    """Rows for training, validation and testing.

    Attributes:
        name: A registry's name, or the absolute path of a file.
        columns: The columns' names.
        train: Rows to train on.
        validation: Rows to select on.
        test: Rows held out from both.
        toy: The toy that the rows are drawn from, with its true log-density; None for a table.
        sha256: Of the whole table's values, by which it is known again; empty for a toy.
    """

    name: str
    columns: tuple[str, ...]
    train: Array
    validation: Array
    test: Array
    toy: Toy | None
    sha256: str


def open_data(name: str, seed: int) -> Data:
    """Draw a toy's rows, or load a table and split it 80/10/10 by `seed`.

    Raises:
        ValueError: There is no such data, or it cannot be fitted; the message says why.
    """
    if name in TOYS:
        # One generator for each part, so that the size of one does not change the others.
        parts = {
            part: TOYS[name].sample(rows, np.random.default_rng([seed, i]))
            for i, (part, rows) in enumerate(TOY_ROWS.items())
        }
        return Data(name, TOY_COLUMNS, toy=TOYS[name], sha256="", **parts)
    table = load(name)
    check_fittable(table)
    index = split(len(table.values), seed)
    data = Data(
        name=name if name in TABLES else os.path.abspath(name),
        columns=table.columns,
        train=table.values[index.train],
        validation=table.values[index.validation],
        test=table.values[index.test],
        toy=None,
        sha256=hashlib.sha256(table.values.tobytes()).hexdigest(),
    )
    _check_single_precision(table.values, table, table.columns)
    constant = constant_columns(torch.from_numpy(data.train).float())
    if constant:
        names = ", ".join(repr(table.columns[i]) for i in constant)
        raise ValueError(
            f"Expected columns that vary among the training rows of {table.name}, in single "
            f"precision; constant: {names}. Leave them out, or bring them to another scale"
        )
    return data


def open_rows(name: str, columns: tuple[str, ...], seed: int) -> tuple[Array, Toy | None]:
    """Rows to score, in the columns that a model was fitted on; with the toy that they are of.

    Columns are matched by name where the names are there, by position where no name is.

    Raises:
        ValueError: There is no such data, or its columns are not the model's.
    """
    if name in TOYS:
        # A stream of its own: NumPy's generator of [seed, 0], the training rows', is that of seed.
        fresh = TOYS[name].sample(TOY_ROWS["test"], np.random.default_rng([seed, len(TOY_ROWS)]))
        table = Table(name, fresh, TOY_COLUMNS)
        return _select(table, columns), TOYS[name]
    table = load(name)
    rows = _select(table, columns)
    _check_single_precision(rows, table, columns)
    return rows, None


def _select(table: Table, columns: tuple[str, ...]) -> Array:
    missing = [column for column in columns if column not in table.columns]
    if not missing:
        return table.values[:, [table.columns.index(column) for column in columns]]
    if len(missing) == len(columns) == len(table.columns):
        return table.values
    raise ValueError(
        f"Expected the {len(columns)} columns that the model was fitted on in {table.name}; got "
        f"{len(table.columns)} columns, without {', '.join(missing[:5])}"
    )


def _check_single_precision(rows: Array, table: Table, columns: tuple[str, ...]) -> None:
    """Refuse numbers that are infinite in the flow's precision."""
    largest = np.finfo(np.float32).max
    if np.abs(rows).max(initial=0.0) <= largest:
        return
    row, column = np.argwhere(np.abs(rows) > largest)[0].tolist()
    raise ValueError(
        f"Expected numbers up to {largest:.2g} in {table.name}; got {rows[row, column]:.3g} in "
        f"row {row} (counted from 0), column {columns[column]!r}. Bring it to another scale"
    )
