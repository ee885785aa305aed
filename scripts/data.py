"""The data that the command line names: rows for training, selection and scoring."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy import format_float_positional

import cnf.datasets as datasets
from cnf.datasets import CONDITIONAL_TOYS, TOYS, ConditionalToy, Missing, Picture, Table, Toy
from cnf.datasets.pictures import WORD_PREFIX
from cnf.layers.scalings.scaling import constant_columns
from cnf.scripts.rows import Array, ContextRows, no_context
from cnf.tables.kinds import KINDS
from cnf.tables.schema import Column, Schema

AnyToy = Toy | ConditionalToy

TOY_ROWS = {"train": 100_000, "validation": 5_000, "test": 10_000}
TOY_COLUMNS = ("x", "y")


@dataclass(frozen=True, eq=False)
class Data:
    """Rows for training, validation and testing."""

    name: str  # a registry's name, or the absolute path of a file
    schema: Schema  # the modelled columns and their kinds
    context_columns: tuple[str, ...]  # columns to condition on; usually empty
    train: ContextRows
    validation: ContextRows
    test: ContextRows
    toy: AnyToy | None  # with the rows' true log-density; None where that is unknown
    sha256: str  # of the whole table's values; empty for a toy
    dropped: int  # number of the table's rows left out because of missing values


@dataclass(frozen=True)
class ColumnChoices:
    """The user's choices about a table's columns."""

    context: tuple[str, ...] = ()  # names of the columns to condition on
    left_out: tuple[str, ...] = ()
    missing: Missing = "refuse"
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # entries of `Schema.of`
    schema: Schema | None = None  # all modelled columns, where nothing is to be inferred
    sha256: str = ""  # the expected checksum of the table; empty where any is accepted
    advice: str = "train again"  # the alternative to restoring a table that has changed


def open_data(
    name: str, seed: int, choices: ColumnChoices | None = None, data_dir: str | None = None
) -> Data:
    """Draw a toy's or a picture's rows, load a table and split it, or read a benchmark's parts.

    Args:
        name: The DATA argument.
        seed: Seed of the 80/10/10 split, or of the toy's rows.
        choices: The choices about a table's columns; a conditional toy has its own context.
        data_dir: The folder with the files of benchmarks.

    Raises:
        ValueError: The data or the context does not exist, has changed, or cannot be fitted.
    """
    choices = choices or ColumnChoices()
    sha256, dropped = "", 0
    if toy := known_toy(name):
        # One generator for each part, so that the size of one does not change the others.
        tables = {
            part: _draw(toy, rows, np.random.default_rng([seed, i]))
            for i, (part, rows) in enumerate(TOY_ROWS.items())
        }
        if isinstance(toy, Picture):
            sha256 = hashlib.sha256(toy.darkness.data).hexdigest()
    elif name in datasets.BENCHMARKS:
        tables = dict(vars(datasets.load_benchmark(name, data_dir)))
        sha256 = _sha256(*tables.values())
    else:
        table = datasets.load(name, choices.missing)
        _check_single_precision(table.values, table, table.columns)
        index = datasets.split(len(table.values), seed)
        dropped, sha256 = table.dropped, _sha256(table)
        tables = {
            part: replace(table, values=table.values[getattr(index, part)]) for part in TOY_ROWS
        }
    name = persistent_name(name)
    if choices.sha256 not in ("", sha256):
        raise ValueError(
            f"Expected the data that the model was trained on; {name} has changed since, so its "
            f"held-out rows are no longer known: restore it, or {choices.advice}"
        )
    if isinstance(toy, ConditionalToy):
        choices = replace(choices, context=toy.context_columns)
    schema = choices.schema
    if schema is None:
        schema = _schema(tables, choices, toy is None and name not in datasets.BENCHMARKS)
        _check_varying(tables["train"], choices.context)
    return Data(
        name,
        schema,
        choices.context,
        toy=_toy_of(toy, tables["train"], schema.names, choices.context),
        sha256=sha256,
        dropped=dropped,
        **{part: _rows(table, schema, choices.context) for part, table in tables.items()},
    )


def open_rows(
    name: str,
    schema: Schema,
    context_columns: Sequence[str],
    seed: int,
    context_data: str | None = None,
    missing: Missing = "refuse",
    data_dir: str | None = None,
) -> tuple[ContextRows, AnyToy | None]:
    """Read rows to score, in the columns of a model, with the toy that gives their true density.

    Columns are matched by name where the table has these names, and by position where it has none
    of them. Where x and its context come from one table they are matched by name alone.

    Args:
        name: The DATA argument.
        schema: The modelled columns.
        context_columns: Names of the columns of the context.
        seed: Seed of a toy's rows.
        context_data: The file that the context is read from, whose rows correspond to DATA's, so
            that none is dropped; None where DATA holds it.
        missing: The treatment of missing values in DATA.
        data_dir: The folder with the files of benchmarks, whose test rows are read.

    Raises:
        ValueError: The data does not exist, its columns are not the model's, or the numbers of
            rows and contexts differ.
    """
    if toy := known_toy(name):
        # A separate stream: NumPy's generator of [seed, 0], the training rows', is that of seed.
        table = _draw(toy, TOY_ROWS["test"], np.random.default_rng([seed, len(TOY_ROWS)]))
    elif name in datasets.BENCHMARKS:
        table = datasets.load_benchmark(name, data_dir).test
    else:
        table = datasets.load(name, missing if context_data is None else "refuse")
    if context_data is None:
        rows = _rows(table, schema, context_columns)
        return rows, _toy_of(toy, table, schema.names, context_columns)
    context = open_context(context_data, context_columns)
    x = _modelled_values(table, schema)
    if len(x) != len(context):
        raise ValueError(
            f"Expected a context for each of the {len(x)} rows of {table.name}; got {len(context)} "
            f"rows in {context_data}"
        )
    return ContextRows(x, context), None


def open_context(name: str, context_columns: Sequence[str]) -> Array:
    """Read contexts from a file or a bundled table, with columns matched as those of data are."""
    if not context_columns:
        raise ValueError(
            f"Expected no --context-data for a model that was trained without a context; got {name}"
        )
    return _context(datasets.load(name), context_columns)


def true_log_prob(toy: AnyToy, rows: ContextRows) -> Array:
    """Return a toy's exact log p(x), or log p(x | c), of each row, in nats."""
    if isinstance(toy, ConditionalToy):
        return toy.log_prob(rows.x, rows.context)
    return toy.log_prob(rows.x)


def known_toy(name: str) -> AnyToy | None:
    """Return the toy or the picture of this name; None for any other name."""
    if datasets.is_picture(name):
        return datasets.read_picture(name)
    return TOYS.get(name) or CONDITIONAL_TOYS.get(name)


def persistent_name(name: str) -> str:
    """Return a name that is independent of the working folder: the absolute path of a file."""
    known = (*TOYS, *CONDITIONAL_TOYS, *datasets.BENCHMARKS, *datasets.TABLES)
    return name if name in known or name.startswith(WORD_PREFIX) else os.path.abspath(name)


def _draw(toy: AnyToy, rows: int, rng: np.random.Generator) -> Table:
    """Draw rows of a toy as a table, with the context of a conditional toy in the last columns."""
    if isinstance(toy, Toy):
        return Table(toy.name, toy.sample(rows, rng), TOY_COLUMNS)
    return Table(toy.name, np.hstack(toy.sample(rows, rng)), (*toy.columns, *toy.context_columns))


def _toy_of(
    toy: AnyToy | None, table: Table, columns: Sequence[str], context_columns: Sequence[str]
) -> AnyToy | None:
    """Return the toy of a table where it is the density of these columns given this context."""
    if isinstance(toy, Toy):
        in_order = _positions(table, columns) == list(range(len(TOY_COLUMNS)))
        return toy if in_order and not context_columns else None
    names = tuple(columns), tuple(context_columns)
    return toy if toy and (toy.columns, toy.context_columns) == names else None


def _schema(tables: Mapping[str, Table], choices: ColumnChoices, inferred: bool) -> Schema:
    """Return the schema of the modelled columns: as the user states it, or inferred from all rows.

    Rows beyond bounds and categories would have no density. Columns are constant in training rows.
    """
    train = tables["train"]
    names = _modelled(train, choices)
    places = [train.columns.index(name) for name in names]
    values = np.vstack([table.values[:, places] for table in tables.values()])
    found = Schema(tuple(map(Column, names)))
    if inferred:
        found = Schema.infer(values, names, train.categories)
    kinds = dict(choices.kinds)
    for i, name in enumerate(names):
        entry = kinds.get(name)
        kind = str(entry.get("kind")) if isinstance(entry, Mapping) else ""
        if kind in KINDS and KINDS[kind].category_counts[0]:
            distinct = np.unique(values[:, i])
            texts = [format_float_positional(each, trim="-") for each in distinct]
            kinds[name] = {"categories": train.categories.get(name, texts), **kinds[name]}
    found = found.with_columns(Schema.of(kinds, names))
    found.check(found.numbers(values, train.categories))
    found.check_apart(values)
    found = found.without_constants(train.values[:, places])
    if found.width == 0:
        constant = "; ".join(column.describe(kind=False) for column in found.columns)
        raise ValueError(
            f"Expected columns that vary among the training rows of {train.name}, in single "
            f"precision; constant: {constant}: rescale them, or check the table"
        )
    return found


def _check_varying(train: Table, context: Sequence[str]) -> None:
    """Refuse a context that is constant, or nearly so, in the flow's precision."""
    if not context:
        return
    values = train.values[:, [train.columns.index(name) for name in context]]
    Schema(tuple(map(Column, context))).check_apart(values)
    if constant := constant_columns(torch.from_numpy(values).float()):
        names = ", ".join(repr(context[i]) for i in constant)
        raise ValueError(
            f"Expected a context that varies among the training rows of {train.name}, in single "
            f"precision; constant: {names}: leave it out, or rescale it"
        )


def _sha256(*tables: Table) -> str:
    """Return the checksum of the values of tables."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(np.ascontiguousarray(table.values).data)
    return digest.hexdigest()


def _modelled(table: Table, choices: ColumnChoices) -> tuple[str, ...]:
    """Return the columns that are neither context nor left out, after checking all names."""
    for what, names in (("the context", choices.context), ("--drop", choices.left_out)):
        for column in names:
            if column not in table.columns:
                near = ", ".join(datasets.closest(column, table.columns))
                raise ValueError(
                    f"Expected {what} to name columns of {table.name}; got {column!r}: the closest "
                    f"names are {near}"
                )
            if (count := names.count(column)) > 1:
                raise ValueError(
                    f"Expected {what} to name each column once; got {column!r} {count} times"
                )
    if both := set(choices.context) & set(choices.left_out):
        raise ValueError(f"Expected no column of the context to be left out; got {min(both)!r}")
    excluded = {*choices.context, *choices.left_out}
    columns = tuple(column for column in table.columns if column not in excluded)
    if not columns:
        raise ValueError(
            f"Expected {'the context' if choices.context else '--drop'} to leave a column of "
            f"{table.name} to model; got all {len(excluded)} of them"
        )
    return columns


def _rows(table: Table, schema: Schema, context_columns: Sequence[str]) -> ContextRows:
    """Return the rows of a table that holds x and, where the model has one, the context."""
    if not context_columns:
        return ContextRows(_modelled_values(table, schema), no_context(len(table.values)))
    wanted = (*schema.varying, *context_columns)
    if missing := [name for name in wanted if name not in table.columns]:
        raise ValueError(
            f"Expected the model's columns and its context, {', '.join(context_columns[:5])}, in "
            f"{table.name} (or the context in a separate file, with --context-data); got "
            f"{len(table.columns)} columns, without {', '.join(missing[:5])}"
        )
    return ContextRows(_modelled_values(table, schema), _context(table, context_columns))


def _modelled_values(table: Table, schema: Schema) -> Array:
    """Return the columns of a model, with categories in the model's numbering."""
    # Constant columns may be absent where the other columns are matched by name.
    absent = [column.name for column in schema.columns if column.name not in table.columns]
    if len(absent) < len(schema.columns) and not {*absent} & {*schema.varying}:
        values = np.hstack([table.values, np.zeros((len(table.values), len(absent)))])
        table = replace(table, values=values, columns=(*table.columns, *absent))
    values, theirs = _select(table, schema.names)
    names = dict(zip(schema.names, theirs, strict=True))
    texts = {our: table.categories[name] for our, name in names.items() if name in table.categories}
    return schema.numbers(values, texts)


def _context(table: Table, columns: Sequence[str]) -> Array:
    """Return the columns of a context, which must be numbers."""
    values, names = _select(table, columns)
    if text := [name for name in names if name in table.categories]:
        raise ValueError(
            f"Expected numbers in the context; got text in column {text[0]!r} of {table.name}: "
            "encode it as columns of 0 and 1, one for each category but one"
        )
    return values


def _select(table: Table, columns: Sequence[str]) -> tuple[Array, list[str]]:
    """Return columns of a table, and the names that they have there."""
    places = _positions(table, columns)  # row-major, since later arithmetic depends on the order
    rows = np.ascontiguousarray(table.values[:, places])
    _check_single_precision(rows, table, columns)
    return rows, [table.columns[place] for place in places]


def _positions(table: Table, columns: Sequence[str]) -> list[int]:
    """Return the positions of columns, by name or, where no name matches, by order."""
    missing = [column for column in columns if column not in table.columns]
    if not missing:
        return [table.columns.index(column) for column in columns]
    if not len(missing) == len(columns) == len(table.columns):
        raise ValueError(
            f"Expected the {len(columns)} columns that the model was fitted on in {table.name}; "
            f"got {len(table.columns)} columns, without {', '.join(missing[:5])}"
        )
    ours = [name.strip().lower() for name in columns]
    for i, name in enumerate(table.columns):
        if (their := name.strip().lower()) != ours[i] and their in ours:
            raise ValueError(
                f"Expected the columns {', '.join(columns[:5])} in {table.name}; got {name!r}, "
                "which differs in case and stands elsewhere: spell the names as the model does"
            )
    return list(range(len(columns)))


def _check_single_precision(rows: Array, table: Table, columns: Sequence[str]) -> None:
    """Refuse numbers that are infinite in the flow's precision."""
    largest = np.finfo(np.float32).max
    if np.abs(rows).max(initial=0.0) <= largest:
        return
    row, column = np.argwhere(np.abs(rows) > largest)[0].tolist()
    raise ValueError(
        f"Expected numbers up to {largest:.2g} in {table.name}; got {rows[row, column]:.3g} in "
        f"row {row} (counted from 0), column {columns[column]!r}: rescale it"
    )
