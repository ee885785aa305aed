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
from cnf.datasets import (
    CONDITIONAL_TOYS,
    TOYS,
    ColumnType,
    ConditionalToy,
    Missing,
    Picture,
    ReadOptions,
    Table,
    Toy,
)
from cnf.datasets.pictures import WORD_PREFIX
from cnf.layers.scalings.scaling import constant_columns
from cnf.scripts.rows import Array, ContextRows, no_context
from cnf.tables.coding import has_codes, has_values
from cnf.tables.dates import date_parts, dates_of
from cnf.tables.kinds import KINDS, Unknown
from cnf.tables.schema import Column, Schema, check_single_precision

AnyToy = Toy | ConditionalToy

# So many that a few minutes do not overfit them: with 100,000, training rows had KLs 0.004 to 0.01
# nats lower than fresh ones after 60 s.
TOY_ROWS = {"train": 1_000_000, "validation": 5_000, "test": 10_000}
TOY_COLUMNS = ("x", "y")
FOUND_OUT = ReadOptions()  # all that there is to know about how a file is read


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
    dropped: int = 0  # number of the table's rows left out because of missing values
    repeated: int = 0  # number of the table's rows that equal one above them
    notes: tuple[str, ...] = ()  # on how the file was read
    reading: ReadOptions = FOUND_OUT
    context_types: Mapping[str, ColumnType] = field(default_factory=dict)
    discrete: bool = False  # whether the table has values with a mass, or a context of categories
    coded: bool = False  # whether the model is one of rows: of codes, or of answers on numbers
    values: bool = False  # whether the latter
    given: Schema | None = None  # the context's columns for a model of codes; None for numbers


@dataclass(frozen=True)
class ColumnChoices:
    """The user's choices about a table's columns."""

    context: tuple[str, ...] = ()  # names of the columns to condition on
    missing: Missing = "refuse"
    reading: ReadOptions = FOUND_OUT  # of a file, with the columns to leave out
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # entries of `Schema.of`
    schema: Schema | None = None  # all modelled columns, where nothing is to be inferred
    coded: bool | None = None  # whether the model is one of codes; None where the table decides
    given: Schema | None = None  # the context's columns of a model of codes, as `schema`
    grouped: bool = True  # whether equal rows stay in one part; not in older folders
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
    known: dict[str, Any] = {"sha256": ""}
    whole = None  # the table of a file, whose kinds of columns are inferred
    # The densities of bundled tables, whose numbers are rounded, are known as densities.
    rounded = name not in datasets.TABLES
    if toy := known_toy(name):
        tables = _toy_parts(toy, seed)
        if isinstance(toy, Picture):
            known = {"sha256": hashlib.sha256(toy.darkness.data).hexdigest()}
    elif name in datasets.BENCHMARKS:
        tables = dict(vars(datasets.load_benchmark(name, data_dir)))
        known = {"sha256": _sha256(*tables.values())}
        tables = {part: choices.reading.select(table) for part, table in tables.items()}
    else:
        whole = datasets.load(name, choices.missing, choices.reading)
        asked = choices.kinds if choices.schema is None else choices.schema.names
        whole = date_parts(whole, (*asked, *choices.context))
        tables, known = _parts(whole, seed, choices.grouped)
    name = persistent_name(name)
    if choices.sha256 not in ("", known["sha256"]):
        raise ValueError(
            f"Expected the data that the model was trained on; {name} has changed since, so its "
            f"held-out rows are no longer known: restore it, or {choices.advice}"
        )
    if isinstance(toy, ConditionalToy):
        choices = replace(choices, context=toy.context_columns)
    train, types = tables["train"], tables["train"].types
    schema, given = choices.schema, choices.given
    discrete, coded, values = False, bool(choices.coded), False
    if schema is None:
        schema = _schema(train, whole, rounded, choices)
        given = _given(train, whole, rounded, choices)
        as_masses = (whole is not None and rounded) or bool(choices.kinds)
        discrete = as_masses and _is_discrete(train, schema, given, choices)
        coded = discrete if choices.coded is None else choices.coded
        if choices.missing == "model":
            values, coded = choices.coded is None and _has_values(train, schema), True
        given = given if coded else None
        _check_context(train, choices.context, given)
    rows = {part: _rows(table, schema, choices.context, given) for part, table in tables.items()}
    return Data(
        name,
        schema,
        choices.context,
        toy=_toy_of(toy, train, schema.names, choices.context),
        reading=choices.reading,
        context_types={name: types[name] for name in choices.context if name in types},
        train=rows["train"],
        validation=rows["validation"],
        test=rows["test"],
        discrete=discrete,
        coded=coded,
        values=values,
        given=given,
        **known,
    )


def _toy_parts(toy: AnyToy, seed: int) -> dict[str, Table]:
    # One generator for each part, so that the size of one does not change the others.
    return {
        part: _draw(toy, rows, np.random.default_rng([seed, i]))
        for i, (part, rows) in enumerate(TOY_ROWS.items())
    }


def _parts(table: Table, seed: int, grouped: bool) -> tuple[dict[str, Table], dict[str, Any]]:
    """Split a file's table, and return the parts and what is known of the whole."""
    check_single_precision(table)
    groups = datasets.row_groups(table.values) if grouped else None
    index = datasets.split(len(table.values), seed, groups)
    rows = {part: replace(table, values=table.values[getattr(index, part)]) for part in TOY_ROWS}
    return rows, {
        "sha256": _sha256(table),
        "dropped": table.dropped,
        "notes": table.notes,
        "repeated": 0 if groups is None else len(groups) - len(np.unique(groups)),
    }


def open_rows(
    name: str,
    schema: Schema,
    context_columns: Sequence[str],
    seed: int,
    context_data: str | None = None,
    missing: Missing = "refuse",
    data_dir: str | None = None,
    reading: ReadOptions = FOUND_OUT,
    given: Schema | None = None,
    unknown: Unknown = "raise",
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
        missing: The treatment of missing values in DATA; with `"keep"` they are NaN, and with
            `"model"` those of x are.
        data_dir: The folder with the files of benchmarks, whose test rows are read.
        reading: How a file is read, of which only the model's columns are.
        given: The context's columns where a model of codes reads them.
        unknown: The treatment of unknown categories; with `"keep"` they are −1.

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
        names = (*schema.names, *context_columns)
        reading = replace(reading, only=(*names, *dates_of(names)))
        treatment = "refuse" if context_data and missing == "drop" else missing
        table = date_parts(datasets.load(name, treatment, reading), names)
    if context_data is None:
        rows = _rows(table, schema, context_columns, given, reading.types, unknown)
        if missing == "model":
            _check_known(table.name, context_columns, rows.context)
        return rows, _toy_of(toy, table, schema.names, context_columns)
    kept: Missing = "keep" if missing == "keep" else "refuse"
    context, _ = open_context(context_data, context_columns, reading, kept, given, unknown)
    x = _modelled_values(table, schema, unknown)
    if len(x) != len(context):
        raise ValueError(
            f"Expected a context for each of the {len(x)} rows of {table.name}; got {len(context)} "
            f"rows in {context_data}"
        )
    return ContextRows(x, context), None


def open_context(
    name: str,
    columns: Sequence[str],
    reading: ReadOptions = FOUND_OUT,
    missing: Missing = "refuse",
    given: Schema | None = None,
    unknown: Unknown = "raise",
) -> tuple[Array, Table]:
    """Read contexts from a file or a bundled table, as a model's numbers and as they are there.

    Columns are matched as those of data are, and have the model's names.
    """
    if not columns:
        raise ValueError(
            f"Expected no --context-data for a model that was trained without a context; got {name}"
        )
    table = datasets.load(name, missing, replace(reading, only=(*columns, *dates_of(columns))))
    table = date_parts(table, columns)
    numbers = _context(table, columns, given, reading.types, unknown)
    return numbers, select_columns(table, columns)


def _check_known(name: str, columns: Sequence[str], context: Array) -> None:
    """Refuse a gap in a context."""
    gaps = np.isnan(context)
    if gaps.any():
        row, place = divmod(int(gaps.argmax()), len(columns))
        raise ValueError(
            f"Expected a context without gaps in {name}; got one in column {columns[place]!r}, row "
            f"{row + 1} (counting from 1; {gaps.any(1).sum()} such rows): fill it"
        )


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


def _schema(train: Table, whole: Table | None, rounded: bool, choices: ColumnChoices) -> Schema:
    """Return the schema of the modelled columns, of which some may be constant in training rows."""
    names = _modelled(train, choices)
    apart = choices.context if choices.coded is not False else ()
    kinds = {name: entry for name, entry in choices.kinds.items() if name not in apart}
    gaps, mine = choices.missing == "model", train.select(names)
    schema = _stated(train, whole, rounded, names, kinds, gaps)
    schema = schema.without_constants(schema.numbers(mine.values, mine.categories, mine.types))
    if schema.width == 0:
        constant = "; ".join(column.describe(kind=False) for column in schema.columns)
        raise ValueError(
            f"Expected columns that vary among the training rows of {train.name}, in single "
            f"precision; constant: {constant}: rescale them, or check the table"
        )
    return schema


def _given(
    train: Table, whole: Table | None, rounded: bool, choices: ColumnChoices
) -> Schema | None:
    """Return the schema of the context for a model of codes; None without either."""
    if not choices.context or choices.coded is False:
        return None
    kinds = {name: entry for name, entry in choices.kinds.items() if name in choices.context}
    return _stated(train, whole, rounded, choices.context, kinds)


def _stated(
    train: Table,
    whole: Table | None,
    rounded: bool,
    names: tuple[str, ...],
    kinds: Mapping[str, Any],
    gaps: bool = False,
) -> Schema:
    """Return the schema of columns as the user states it, or inferred from all rows, with gaps.

    Rows beyond bounds and categories would have no density.
    """
    schema, kinds = Schema(tuple(map(Column, names))), dict(kinds)
    table = train.select(names)
    if whole is not None:
        table = whole.select(names)
        schema = Schema.infer(table, rounded)
    for i, name in enumerate(names):
        entry = kinds.get(name)
        if isinstance(entry, Mapping) and [*entry] == ["gaps"]:  # of a column as it looks
            kinds[name] = {**schema.json()[name], **entry}
        kind = str(entry.get("kind")) if isinstance(entry, Mapping) else ""
        if kind in KINDS and KINDS[kind].category_counts[0]:
            distinct = np.unique(table.values[:, i][~np.isnan(table.values[:, i])])
            texts = [format_float_positional(each, trim="-") for each in distinct]
            kinds[name] = {"categories": table.categories.get(name, texts), **kinds[name]}
    schema = schema.with_columns(Schema.of(kinds, names))
    numbers = schema.numbers(table.values, table.categories, table.types)
    schema.check(numbers, gaps=gaps)
    schema.check_apart(numbers)
    return schema


def _has_values(train: Table, schema: Schema) -> bool:
    """Return whether a column of the table has a density alone."""
    table = train.select(schema.names)
    return has_values(schema, schema.numbers(table.values, table.categories, table.types))


def _is_discrete(
    train: Table, schema: Schema, given: Schema | None, choices: ColumnChoices
) -> bool:
    """Return whether columns have values with a mass, or the context has categories.

    The user may state kinds of the context's columns, too.
    """
    if given and (
        any(column.kind == "categorical" for column in given.columns)
        or {*choices.kinds} & {*choices.context}
    ):
        return True
    table = train.select(schema.names)
    numbers = schema.numbers(table.values, table.categories, table.types)
    return has_codes(schema, numbers)


def _check_context(train: Table, context: Sequence[str], given: Schema | None) -> None:
    """Refuse a context that is constant, or nearly so, in the flow's precision."""
    if not context:
        return
    table = train.select(context)
    schema = given or Schema(tuple(map(Column, context)))
    values = given.numbers(table.values, table.categories, table.types) if given else table.values
    schema.check_apart(values)
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
    """Return the columns that are not context, after checking the context's names."""
    for column in choices.context:
        if column in choices.reading.drop:
            raise ValueError(f"Expected no column of the context to be left out; got {column!r}")
        if column not in table.columns:
            near = ", ".join(datasets.closest(column, table.columns))
            raise ValueError(
                f"Expected the context to name columns of {table.name}; got {column!r}: the "
                f"closest names are {near}"
            )
        if (count := choices.context.count(column)) > 1:
            raise ValueError(
                f"Expected the context to name each column once; got {column!r} {count} times"
            )
    columns = tuple(column for column in table.columns if column not in choices.context)
    if not columns:
        raise ValueError(
            f"Expected the context to leave a column of {table.name} to model; got all "
            f"{len(table.columns)} of them"
        )
    return columns


def _rows(
    table: Table,
    schema: Schema,
    context_columns: Sequence[str],
    given: Schema | None,
    known: Mapping[str, ColumnType] | None = None,
    unknown: Unknown = "raise",
) -> ContextRows:
    """Return the rows of a table that holds x and, where the model has one, the context."""
    if not context_columns:
        return ContextRows(_modelled_values(table, schema, unknown), no_context(len(table.values)))
    wanted = (*schema.varying, *context_columns)
    if absent := [name for name in wanted if name not in table.columns]:
        raise ValueError(
            f"Expected the model's columns and its context, {', '.join(context_columns[:5])}, in "
            f"{table.name} (or the context in a separate file, with --context-data); got "
            f"{len(table.columns)} columns, without {', '.join(absent[:5])}"
        )
    context = _context(table, context_columns, given, known, unknown)
    return ContextRows(_modelled_values(table, schema, unknown), context)


def _modelled_values(table: Table, schema: Schema, unknown: Unknown) -> Array:
    """Return the columns of a model, with categories in the model's numbering."""
    # Constant columns may be absent where the other columns are matched by name.
    absent = [column.name for column in schema.columns if column.name not in table.columns]
    if len(absent) < len(schema.columns) and not {*absent} & {*schema.varying}:
        values = np.hstack([table.values, np.zeros((len(table.values), len(absent)))])
        table = replace(table, values=values, columns=(*table.columns, *absent))
    chosen = select_columns(table, schema.names)
    return schema.numbers(chosen.values, chosen.categories, chosen.types, unknown)


def _context(
    table: Table,
    columns: Sequence[str],
    given: Schema | None,
    known: Mapping[str, ColumnType] | None = None,
    unknown: Unknown = "raise",
) -> Array:
    """Return the numbers of a context, or dates as the known types are, or what a schema has."""
    chosen = select_columns(table, columns)
    for column in columns:
        found, wanted = (
            (types or {}).get(column, ColumnType()).family for types in (chosen.types, known)
        )
        if known is not None and found != wanted and {found, wanted} & {"date", "duration"}:
            raise ValueError(
                f"Expected the context's column {column!r} to hold {wanted} values, as in "
                f"training; got {found} values in {table.name}: correct them"
            )
    if given is not None:
        return given.numbers(chosen.values, chosen.categories, chosen.types, unknown)
    if text := [name for name in columns if name in chosen.categories]:
        raise ValueError(
            f"Expected numbers in the context; got text in column {text[0]!r} of {table.name}: "
            "encode it as columns of 0 and 1, one for each category but one"
        )
    return chosen.values


def select_columns(table: Table, columns: Sequence[str]) -> Table:
    """Return the table of a model's columns, which have the model's names."""
    places = _positions(table, columns)  # row-major, since later arithmetic depends on the order
    rows = np.ascontiguousarray(table.values[:, places])
    check_single_precision(Table(table.name, rows, tuple(columns)))
    theirs = {name: table.columns[place] for name, place in zip(columns, places, strict=True)}
    return Table(
        table.name,
        rows,
        tuple(columns),
        categories={
            name: table.categories[each]
            for name, each in theirs.items()
            if each in table.categories
        },
        types={name: table.types[each] for name, each in theirs.items() if each in table.types},
    )


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
