"""What `train DATA` names: rows to train on, to validate on and to test on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import TABLES, TOYS, Table, Toy, check_fittable, load, split

Array = NDArray[np.float64]

TOY_ROWS = {"train": 100_000, "validation": 5_000, "test": 10_000}


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
        sha256: Of the whole table's values, by which it is known again.
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
        return _toy_data(TOYS[name], seed)
    table = load(name)
    check_fittable(table)
    parts = split(len(table.values), seed)
    return Data(
        name=name if name in TABLES else os.path.abspath(name),
        columns=table.columns,
        train=table.values[parts.train],
        validation=table.values[parts.validation],
        test=table.values[parts.test],
        toy=None,
        sha256=hashlib.sha256(table.values.tobytes()).hexdigest(),
    )


def select_columns(table: Table, columns: tuple[str, ...]) -> Array:
    """The columns of `table` that a model was fitted on: by name, else by position.

    Raises:
        ValueError: The names are not all there, and the number of columns is another one.
    """
    if set(columns) <= set(table.columns):
        return table.values[:, [table.columns.index(column) for column in columns]]
    if len(table.columns) == len(columns):
        return table.values
    missing = [column for column in columns if column not in table.columns]
    raise ValueError(
        f"Expected the {len(columns)} columns that the model was fitted on in {table.name}; got "
        f"{len(table.columns)} columns, without {', '.join(missing[:5])}"
    )


def _toy_data(toy: Toy, seed: int) -> Data:
    # One generator for each part, so that the size of one does not change the others.
    parts = {
        part: toy.sample(rows, np.random.default_rng([seed, i]))
        for i, (part, rows) in enumerate(TOY_ROWS.items())
    }
    return Data(name=toy.name, columns=("x", "y"), toy=toy, sha256="", **parts)
