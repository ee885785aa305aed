"""The tables that are asked about, with masks of questions and gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import load
from cnf.scripts.benchmarks.compared import MIXED_TABLES
from cnf.scripts.benchmarks.mixed import MixedSplit, mixed_file
from cnf.scripts.benchmarks.tables import prepare, standardized, uci_table
from cnf.tables import Column, Schema
from cnf.tables.kinds import CategoricalColumn
from cnf.utils.registry import Registry

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

GAP_SHARE = 0.3


@dataclass(frozen=True)
class QuestionSplit:
    """The numbers of a table's rows for training, selection and testing.

    Attributes:
        schema: The columns.
        train: As `Schema.numbers` returns them, shape (rows, columns).
        validation: Those to select on.
        test: Those to ask about.
    """

    schema: Schema
    train: Array
    validation: Array
    test: Array

    @property
    def categorical(self) -> Mask:
        """Whether columns are categories, (columns,)."""
        kinds = [isinstance(each.of_kind, CategoricalColumn) for each in self.schema.columns]
        return np.array(kinds)

    @property
    def deviations(self) -> Array:
        """The standard deviations of the training rows, 1 for categories and constants."""
        found = np.nanstd(self.train, 0)
        return np.where(self.categorical | (found == 0), 1.0, found)

    def with_gaps(
        self, hide: Callable[[Array, np.random.Generator], Mask], seed: int
    ) -> QuestionSplit:
        """Return the split with gaps in all of its parts."""
        rng = np.random.default_rng(seed)
        parts = (self.train, self.validation, self.test)
        found = (np.where(hide(part, rng), np.nan, part) for part in parts)
        return QuestionSplit(self.schema, *found)


def real_schema(columns: int) -> Schema:
    """Return the schema of columns of real numbers."""
    return Schema(tuple(Column(f"x{i}", "real") for i in range(columns)))


def question_split(data_dir: str | None, name: str, seed: int) -> QuestionSplit:
    """Return a split of a table: of one of real numbers, these have noise and are standardised.

    Raises:
        ValueError: There is no file of that table.
    """
    if name in MIXED_TABLES:
        rows = MixedSplit.of(load(str(mixed_file(data_dir, name))), seed)
        return QuestionSplit(rows.schema, rows.train, rows.validation, rows.test)
    values, _ = prepare(uci_table(data_dir, name).values)
    parts = standardized(values, seed)
    schema = real_schema(values.shape[1])
    return QuestionSplit(schema, parts.train, parts.validation, parts.test)


def question_masks(columns: int, count: int, seed: int) -> Iterator[tuple[Mask, Mask]]:
    """Yield random masks of what is given, maybe nothing, and of what is asked, (columns,).

    In half of them some columns are neither.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        order = rng.permutation(columns)
        absent = int(rng.integers(columns)) if rng.random() < 0.5 else 0
        given = int(rng.integers(columns - absent))
        masks = np.zeros((2, columns), np.bool_)
        masks[0, order[:given]] = True
        masks[1, order[given : columns - absent]] = True
        yield masks[0], masks[1]


def hide_at_random(x: Array, rng: np.random.Generator) -> Mask:
    """Return gaps in a share of all cells, and never in all of a row's."""
    hidden = rng.random(x.shape) < GAP_SHARE
    whole = np.flatnonzero(hidden.all(1))
    hidden[whole, rng.integers(x.shape[1], size=len(whole))] = False
    return hidden


def hide_by_a_column(x: Array, rng: np.random.Generator) -> Mask:
    """Return gaps that are the more frequent the larger the first column is, which has none."""
    ranks = (x[:, 0].argsort().argsort() + 0.5) / len(x)
    hidden = rng.random(x.shape) < 2 * GAP_SHARE * ranks[:, None]
    hidden[:, 0] = False
    return hidden


GAP_MECHANISMS: Registry[Callable[[Array, np.random.Generator], Mask]] = Registry(
    {"at random": hide_at_random, "by a column": hide_by_a_column}
)
"""Functions of rows and of a generator that return which cells are gaps."""
