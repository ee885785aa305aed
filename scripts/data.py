"""What DATA on the command line names: rows to train on, to select on, to score."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy import format_float_positional
from numpy.typing import NDArray

from cnf.datasets import (
    BENCHMARKS,
    CONDITIONAL_TOYS,
    TABLES,
    TOYS,
    ConditionalToy,
    Missing,
    Picture,
    Table,
    Toy,
    closest,
    is_picture,
    load,
    load_benchmark,
    read_picture,
    split,
)
from cnf.datasets.pictures import WORD_PREFIX
from cnf.layers.scalings.scaling import constant_columns
from cnf.scripts.rows import Rows, no_context
from cnf.tables.schema import Column, Schema

Array = NDArray[np.float64]
AnyToy = Toy | ConditionalToy

TOY_ROWS = {"train": 100_000, "validation": 5_000, "test": 10_000}
TOY_COLUMNS = ("x", "y")


@dataclass(frozen=True, eq=False)
class Data:
    """Rows for training, validation and testing.

    Attributes:
        name: A registry's name, or the absolute path of a file.
        schema: The columns that are modelled, and of what kinds they are.
        context_columns: Names of the columns that they are modelled given; mostly none.
        train: Rows to train on.
        validation: Rows to select on.
        test: Rows held out from both.
        toy: The toy that the rows are drawn from, with its true log-density; None where that is not
            known, for a table or where columns of a plain toy are the context.
        sha256: Of the whole table's values, by which it is known again; empty for a toy.
        dropped: How many of the table's rows were left out because values were missing in them.
    """

    name: str
    schema: Schema
    context_columns: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows
    toy: AnyToy | None
    sha256: str
    dropped: int


@dataclass(frozen=True)
class Choices:
    """What the user says of a table's columns.

    Attributes:
        context: Names of the columns that the others are modelled given.
        left_out: Names of the columns that are left out.
        missing: What is done where values are missing.
        kinds: Entries of `Schema.of` for the columns whose kinds are not to be inferred.
        schema: All that are modelled, where they are known; nothing is inferred then.
        sha256: Of the table, by which it is to be known again; empty where it may be any.
        advice: What to do where it has changed, but to restore it.
    """

    context: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    missing: Missing = "refuse"
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schema: Schema | None = None
    sha256: str = ""
    advice: str = "train again"


def open_data(
    name: str, seed: int, choices: Choices | None = None, data_dir: str | None = None
) -> Data:
    """Draw a toy's or a picture's rows, load a table and split it, or read a benchmark's parts.

    Args:
        name: What DATA is.
        seed: Of the split of 80/10/10, or of the toy's rows.
        choices: What is done with a table's columns; a conditional toy has its own context.
        data_dir: The folder with the files of benchmarks.

    Raises:
        ValueError: There is no such data or no such context, it is not what it was, or it cannot be
            fitted; the message says why.
    """
    choices = choices or Choices()
    sha256, dropped = "", 0
    toy = known_toy(name)
    if toy is not None:
        # One generator for each part, so that the size of one does not change the others.
        tables = {
            part: _draw(toy, rows, np.random.default_rng([seed, i]))
            for i, (part, rows) in enumerate(TOY_ROWS.items())
        }
        if isinstance(toy, Picture):
            sha256 = hashlib.sha256(toy.darkness.data).hexdigest()
    elif name in BENCHMARKS:
        tables = dict(vars(load_benchmark(name, data_dir)))
        sha256 = _sha256(*tables.values())
    else:
        table = load(name, choices.missing)
        dropped = table.dropped
        tables = _split(table, seed)
        sha256 = _sha256(table)
    name = lasting_name(name)
    if choices.sha256 not in ("", sha256):
        raise ValueError(
            f"Expected the data that the model was trained on; {name} has changed since, so its "
            f"held-out rows are not known any more. Restore it, or {choices.advice}"
        )
    if isinstance(toy, ConditionalToy):
        choices = replace(choices, context=toy.context_columns)
    inferred = toy is None and name not in BENCHMARKS
    schema = choices.schema
    if schema is None:
        schema = _schema(tables, choices, inferred)
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
) -> tuple[Rows, AnyToy | None]:
    """Rows to score, in the columns of a model; with the toy whose true log-density is theirs.

    Columns are matched by name where the names are there, by position where no name is. Where x and
    its context come from one table they are matched by name alone.

    Args:
        name: What DATA is.
        schema: The columns that are modelled.
        context_columns: Those of the context.
        seed: Of a toy's rows.
        context_data: The file that the context is read from; None where DATA has it.
        missing: What is done where values of DATA are missing; where its context is in another
            file no row can be dropped, since the two pair off.
        data_dir: The folder with the files of benchmarks, whose test rows are read.

    Raises:
        ValueError: There is no such data, its columns are not the model's, or its rows and their
            contexts do not pair off.
    """
    toy = known_toy(name)
    if toy is not None:
        # A stream of its own: NumPy's generator of [seed, 0], the training rows', is that of seed.
        table = _draw(toy, TOY_ROWS["test"], np.random.default_rng([seed, len(TOY_ROWS)]))
    elif name in BENCHMARKS:
        table = load_benchmark(name, data_dir).test
    else:
        table = load(name, missing if context_data is None else "refuse")
    if context_data is None:
        rows = _rows(table, schema, context_columns)
        return rows, _toy_of(toy, table, schema.names, context_columns)
    context = open_context(context_data, context_columns)
    x = _typed(table, schema)
    if len(x) != len(context):
        raise ValueError(
            f"Expected a context for each of the {len(x)} rows of {table.name}; got {len(context)} "
            f"rows in {context_data}"
        )
    return Rows(x, context), None


def open_context(name: str, context_columns: Sequence[str]) -> Array:
    """Contexts from a file or a bundled table, matched to a model's as columns of data are.

    Raises:
        ValueError: The model takes no context, or there is none of its in the file.
    """
    if not context_columns:
        raise ValueError(
            f"Expected no --context-data for a model that was trained without a context; got {name}"
        )
    return _context(load(name), context_columns)


def true_log_prob(toy: AnyToy, rows: Rows) -> Array:
    """A toy's exact log p(x), or log p(x | c), of each row, in nats."""
    if isinstance(toy, ConditionalToy):
        return toy.log_prob(rows.x, rows.context)
    return toy.log_prob(rows.x)


def known_toy(name: str) -> AnyToy | None:
    """The toy of that name, or the picture; None for what is neither.

    Raises:
        ValueError: The picture cannot be read.
    """
    if is_picture(name):
        return read_picture(name)
    return TOYS.get(name) or CONDITIONAL_TOYS.get(name)


def lasting_name(name: str) -> str:
    """A name by which data is found again, whatever the working folder: a file's whole path."""
    known = (*TOYS, *CONDITIONAL_TOYS, *BENCHMARKS, *TABLES)
    return name if name in known or name.startswith(WORD_PREFIX) else os.path.abspath(name)


def _draw(toy: AnyToy, rows: int, rng: np.random.Generator) -> Table:
    """Rows of a toy as a table, a conditional one's context in its last columns."""
    if isinstance(toy, Toy):
        return Table(toy.name, toy.sample(rows, rng), TOY_COLUMNS)
    return Table(toy.name, np.hstack(toy.sample(rows, rng)), (*toy.columns, *toy.context_columns))


def _toy_of(
    toy: AnyToy | None, table: Table, columns: Sequence[str], context_columns: Sequence[str]
) -> AnyToy | None:
    """The toy that a table is of, where it is the density of these columns given this context."""
    if isinstance(toy, Toy):
        own = not context_columns and _places(table, columns) == list(range(len(TOY_COLUMNS)))
        return toy if own else None
    names = tuple(columns), tuple(context_columns)
    return toy if toy and (toy.columns, toy.context_columns) == names else None


def _split(table: Table, seed: int) -> dict[str, Table]:
    """Training, validation and test rows of a table, in numbers that single precision has."""
    _check_single_precision(table.values, table, table.columns)
    index = split(len(table.values), seed)
    return {part: replace(table, values=table.values[getattr(index, part)]) for part in TOY_ROWS}


def _schema(tables: Mapping[str, Table], choices: Choices, inferred: bool) -> Schema:
    """The columns that are modelled: as the user says, or as they look in all rows.

    Bounds and categories are those of all rows, since rows beyond them would have no density;
    constant is what does not vary among the training rows.

    Raises:
        ValueError: A column is none of the table's, or cannot be of the kind that it is to be; or
            all that would be modelled are constant.
    """
    train = tables["train"]
    names = _modelled(train, choices)
    places = [train.columns.index(name) for name in names]
    values = np.vstack([table.values[:, places] for table in tables.values()])
    found = Schema(tuple(Column(name) for name in names))
    if inferred:
        found = Schema.infer(values, names, train.categories)
    kinds = dict(choices.kinds)
    for i, name in enumerate(names):
        if isinstance(kinds.get(name), Mapping) and kinds[name].get("kind") == "categorical":
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
            f"precision; constant: {constant}. Bring them to another scale, or look at the table"
        )
    return found


def _check_varying(train: Table, context: Sequence[str]) -> None:
    """Refuse a context that is constant, or all but so, in the flow's precision."""
    if not context:
        return
    values = train.values[:, [train.columns.index(name) for name in context]]
    Schema(tuple(map(Column, context))).check_apart(values)
    constant = constant_columns(torch.from_numpy(values).float())
    if constant:
        names = ", ".join(repr(context[i]) for i in constant)
        raise ValueError(
            f"Expected a context that varies among the training rows of {train.name}, in single "
            f"precision; constant: {names}. Leave it out, or bring it to another scale"
        )


def _sha256(*tables: Table) -> str:
    """By which the values of tables are known again."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(np.ascontiguousarray(table.values).data)
    return digest.hexdigest()


def _modelled(table: Table, choices: Choices) -> tuple[str, ...]:
    """The columns of a table that are neither the context nor left out, which it is to have."""
    for what, names in (("the context", choices.context), ("what is left out", choices.left_out)):
        for column, count in Counter(names).items():
            if column not in table.columns:
                near = ", ".join(closest(column, table.columns))
                raise ValueError(
                    f"Expected {what} to be columns of {table.name}; got {column!r}: the closest "
                    f"names are {near}"
                )
            if count > 1:
                raise ValueError(
                    f"Expected {what} to name each column once; got {column!r} {count} times"
                )
    both = set(choices.context) & set(choices.left_out)
    if both:
        raise ValueError(f"Expected no column of the context to be left out; got {min(both)!r}")
    away = {*choices.context, *choices.left_out}
    columns = tuple(column for column in table.columns if column not in away)
    if not columns:
        raise ValueError(
            f"Expected {'the context' if choices.context else 'what is left out'} to leave a "
            f"column of {table.name} to model; got all {len(away)} of them"
        )
    return columns


def _rows(table: Table, schema: Schema, context_columns: Sequence[str]) -> Rows:
    """The rows of a table that has both x and, where there is one, the context."""
    if not context_columns:
        return Rows(_typed(table, schema), no_context(len(table.values)))
    wanted = (*schema.varying, *context_columns)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(
            f"Expected the model's columns and its context, {', '.join(context_columns[:5])}, in "
            f"{table.name} (or the context in a file of its own, with --context-data); got "
            f"{len(table.columns)} columns, without {', '.join(missing[:5])}"
        )
    return Rows(_typed(table, schema), _context(table, context_columns))


def _typed(table: Table, schema: Schema) -> Array:
    """The columns of a model, their categories by the model's numbers.

    Constant ones need not be there, beside others that are known by their names.
    """
    absent = [column for column in schema.columns if column.name not in table.columns]
    if len(absent) < len(schema.columns) and all(column.kind == "constant" for column in absent):
        values = np.full((len(table.values), len(absent)), 0.0)
        names = (*table.columns, *(column.name for column in absent))
        table = replace(table, values=np.hstack([table.values, values]), columns=names)
    values, places = _select(table, schema.names), _places(table, schema.names)
    known = {
        name: table.categories[table.columns[place]]
        for name, place in zip(schema.names, places, strict=True)
        if table.columns[place] in table.categories
    }
    return schema.numbers(values, known)


def _context(table: Table, columns: Sequence[str]) -> Array:
    """The columns of a context, which are numbers."""
    values = _select(table, columns)
    text = [table.columns[place] for place in _places(table, columns)]
    text = [name for name in text if name in table.categories]
    if text:
        raise ValueError(
            f"Expected numbers in the context; got text in column {text[0]!r} of {table.name}: "
            "make a column of 0 and 1 of each of its categories but one"
        )
    return values


def _select(table: Table, columns: Sequence[str]) -> Array:
    """Columns of a table, in row-major order: what is computed from them depends on it."""
    rows = np.ascontiguousarray(table.values[:, _places(table, columns)])
    _check_single_precision(rows, table, columns)
    return rows


def _places(table: Table, columns: Sequence[str]) -> list[int]:
    """Where columns stand in a table, by name or, where no name is there, by position."""
    missing = [column for column in columns if column not in table.columns]
    if not missing:
        return [table.columns.index(column) for column in columns]
    if len(missing) == len(columns) == len(table.columns):
        _check_order(table, columns)
        return list(range(len(columns)))
    raise ValueError(
        f"Expected the {len(columns)} columns that the model was fitted on in {table.name}; got "
        f"{len(table.columns)} columns, without {', '.join(missing[:5])}"
    )


def _check_order(table: Table, columns: Sequence[str]) -> None:
    """Refuse names that are the model's but for upper and lower case, in another order."""
    theirs, ours = ([name.strip().lower() for name in names] for names in (table.columns, columns))
    for name, their, our in zip(table.columns, theirs, ours, strict=True):
        if their != our and their in ours:
            raise ValueError(
                f"Expected the columns {', '.join(columns[:5])} in {table.name}; got {name!r}, "
                "which is spelt otherwise and stands elsewhere: spell the names as the model does"
            )


def _check_single_precision(rows: Array, table: Table, columns: Sequence[str]) -> None:
    """Refuse numbers that are infinite in the flow's precision."""
    largest = np.finfo(np.float32).max
    if np.abs(rows).max(initial=0.0) <= largest:
        return
    row, column = np.argwhere(np.abs(rows) > largest)[0].tolist()
    raise ValueError(
        f"Expected numbers up to {largest:.2g} in {table.name}; got {rows[row, column]:.3g} in "
        f"row {row} (counted from 0), column {columns[column]!r}. Bring it to another scale"
    )
