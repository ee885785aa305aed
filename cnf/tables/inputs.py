"""Tables of numbers from what users pass: arrays, and tables of pandas, polars and pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from cnf.datasets import Missing, Table, frame_table, from_any
from cnf.datasets.column_types import ColumnType, Family
from cnf.tables.kinds import CategoricalColumn
from cnf.tables.schema import Column, Schema

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

HELD: dict[Family, str] = {
    "boolean": "booleans",
    "text": "text",
    "category": "categories",
    "date": "dates",
    "duration": "durations",
}


NO_CODES = (
    'encode it as numbers, leave it out, or pass schema="infer" without a flow\'s recipe or '
    "objective"
)
PASS_TABLE = 'pass a table, such as pandas.DataFrame(X), with schema="infer"'


def is_frame(X: object) -> bool:
    """Return whether X is a table with labelled columns, such as those of pandas and pyarrow."""
    return hasattr(type(X), "columns") or hasattr(type(X), "column_names")


def unmasked(X: Any, advice: str = PASS_TABLE) -> Any:
    """Return a masked array with NaN in place of what is masked, others as they are.

    Args:
        X: The array.
        advice: What to do about dates.

    Raises:
        ValueError: It is an array of dates, of which NumPy would make large numbers.

    Example:
        >>> unmasked(np.ma.masked_equal([1, 2], 2)).tolist()
        [1.0, nan]
    """
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        raise ValueError(f"Expected numbers in an array; got {X.dtype}: {advice}")
    return np.ma.filled(X.astype(np.float64), np.nan) if isinstance(X, np.ma.MaskedArray) else X


def checked_array(
    estimator: BaseEstimator, X: Any, advice: str = PASS_TABLE, **options: Any
) -> Array:
    """Return an array after scikit-learn's checks for an estimator, whose errors become one line.

    Args:
        estimator: The estimator, whose `n_features_in_` is set or compared.
        X: Array-like, of any shape.
        advice: What to do about values that are no numbers.
        options: Those of `sklearn.utils.validation.validate_data`.

    Raises:
        ValueError: The shape does not fit, or a value is no number.

    Example:
        >>> checked_array(BaseEstimator(), np.ma.masked_equal([[1, 2]], 2), ensure_all_finite=False)
        array([[ 1., nan]])
    """
    try:
        return np.asarray(validate_data(estimator, unmasked(X, advice), **options))
    except ValueError as error:
        first, *others = str(error).splitlines()
        if "could not convert string" in first:
            text = first.partition(": ")[2]
            first = f"Expected numbers in an array; got text, {text}: {advice}"
        reshape = (line for line in others if line.startswith("Reshape"))
        raise ValueError(" ".join([first, *reshape])) from None


def check_names(estimator: BaseEstimator, X: Any, table: Table, **options: Any) -> None:
    """Run scikit-learn's checks for an estimator on a table that came as X, names included.

    Args:
        estimator: The estimator, whose `n_features_in_` and `feature_names_in_` are set, where all
            labels are text, or compared.
        X: The table as it came.
        table: Its numbers.
        options: Those of `sklearn.utils.validation.validate_data`.

    Raises:
        ValueError: The shape or the names do not fit.

    Example:
        >>> estimator, X = BaseEstimator(), pd.DataFrame({"width": [0.5]})
        >>> check_names(estimator, X, frame_table(X))
        >>> estimator.feature_names_in_.tolist()
        ['width']
    """
    labels = X.columns if isinstance(X, pd.DataFrame) else table.columns
    named = all(isinstance(label, str) for label in labels)  # as scikit-learn demands
    validate_data(estimator, pd.DataFrame(table.values, None, labels if named else None), **options)


def context_table(context: Any, rows: int, types: Mapping[str, ColumnType] | None = None) -> Table:
    """Return a context as a table, from an array or a table, or from a single column.

    Of None it is a table of so many rows without columns.

    Args:
        context: The context.
        rows: The number of rows of None.
        types: The columns' types in a fit, by which text and dates are read.

    Example:
        >>> context_table([0.5, 1.5], rows=2).values.shape, context_table(None, rows=2).values.shape
        ((2, 1), (2, 0))
    """
    if context is None:
        return Table("context", np.empty((rows, 0)), ())
    if hasattr(context, "to_frame"):  # one column of pandas or polars
        context = context.to_frame(context.name or "c0")
    if is_frame(context):
        return frame_table(from_any(context)[0], "context", types)
    options = {"ensure_2d": False, "ensure_all_finite": False, "input_name": "context"}
    found = check_array(unmasked(context), dtype=np.float64, **options)
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    return Table("context", found, tuple(f"c{i}" for i in range(found.shape[1])))


@dataclass(frozen=True)
class ContextColumns:
    """The columns of a context in a fit, which later contexts must have.

    Attributes:
        columns: Their names.
        labelled: Whether they came in a table, by whose names later tables are checked.
        schema: The schema of all columns, None without a context.
    """

    columns: tuple[str, ...]
    labelled: bool
    schema: Schema | None

    @staticmethod
    def of(table: Table, labelled: bool, coded: bool) -> ContextColumns:
        """Return the columns of a table of complete rows.

        Args:
            table: The context of the training rows.
            labelled: Whether it came as a table.
            coded: Whether the model has codes of categories; all columns are real numbers, and
                booleans 0 and 1, where not.

        Raises:
            ValueError: A column does not hold numbers, which a model without codes needs, or has
                too many categories.
        """
        if not table.columns:
            return ContextColumns((), labelled, None)
        if not coded:
            check_numbers(table, NO_CODES, booleans=True)
        schema = Schema.infer(table) if coded else Schema(tuple(map(Column, table.columns)))
        numbers = schema.numbers(table.values, table.categories, table.types)
        return ContextColumns(table.columns, labelled, schema.without_constants(numbers))

    @property
    def varying(self) -> Schema | None:
        """The schema of the columns that varied in the fit; None where none did."""
        if self.schema is None or not self.schema.varying:
            return None
        return self.schema.without(self.schema.constant)[0]

    def table(self, context: Any, rows: int) -> Table:
        """Return a context as a table of these columns, of so many rows without any for None.

        Raises:
            ValueError: There is a context and was none in the fit, or the other way round, or it
                has other columns.
        """
        count = len(self.columns)
        if (context is None) != (count == 0):
            wanted = f"a context of {count} columns" if count else "no context"
            got = "none" if context is None else "one"
            raise ValueError(f"Expected {wanted}, as in fit; got {got}")
        found = context_table(context, rows, self.schema.types if self.schema else None)
        if len(found.columns) != count:
            raise ValueError(f"Expected a context of {count} columns; got {len(found.columns)}")
        if is_frame(context) and self.labelled:
            check_columns(found, self.columns)
        names = dict(zip(found.columns, self.columns, strict=True))
        return replace(
            found,
            columns=self.columns,
            categories={names[name]: each for name, each in found.categories.items()},
            types={names[name]: each for name, each in found.types.items()},
        )

    def unknown(self, table: Table) -> str | None:
        """Return a line on the first category that was not in the fit; None where all were.

        Numbers beyond those of the fit are no such values.
        """
        if self.schema is None:
            return None
        numbers = self._all_numbers(table)
        coded = [isinstance(each.of_kind, CategoricalColumn) for each in self.schema.columns]
        foreign = self.schema.outside(numbers) & ~np.isnan(numbers) & np.array(coded)
        return describe_foreign(table, self.schema, foreign)

    def numbers(self, table: Table) -> Array:
        """Return the numbers of the columns that varied in the fit, (rows, columns).

        A category that was not there is −1.
        """
        if self.schema is None:
            return table.values
        kept = [i for i, each in enumerate(self.schema.columns) if each.width]
        return self._all_numbers(table)[:, kept]

    def _all_numbers(self, table: Table) -> Array:
        assert self.schema is not None
        return self.schema.numbers(table.values, table.categories, table.types, unknown="keep")


def given_table(given: Any, known: tuple[str, ...], types: Mapping[str, ColumnType]) -> Table:
    """Return the cells that are given of rows, NaN for others, as a table of all columns.

    Args:
        given: An array of all columns, NaN for cells that are not given, or a table of some.
        known: The columns' names.
        types: Their types, by which text and dates are read.

    Raises:
        ValueError: It is neither, it has other columns, or it has no rows.

    Example:
        >>> import polars
        >>> frame = polars.DataFrame({"b": [1.5, 2.5]})
        >>> given_table(frame, ("a", "b"), {}).values.tolist()
        [[nan, 1.5], [nan, 2.5]]
    """
    try:
        table = replace(context_table(given, 0, types), name="given")
    except (TypeError, ValueError) as error:
        if is_frame(given) or str(error).startswith("Expected"):
            raise
        raise ValueError(
            "Expected given to be a table of some columns, or an array of all; got a "
            f"{type(given).__name__}: pass cells, such as pandas.DataFrame({{{known[0]!r}: [1.5]}})"
        ) from None
    if not len(table.values):
        raise ValueError("Expected rows in given; got none: pass those that draws are given")
    if not is_frame(given):
        if len(known) != len(table.columns):
            raise ValueError(
                f"Expected an array of {len(known)} columns for given, with NaN in those that are "
                f"not; got {len(table.columns)}: add them, or pass a table of some columns"
            )
        return replace(table, columns=known)
    if others := [name for name in table.columns if name not in known]:
        raise ValueError(
            f"Expected columns of X, {', '.join(known[:10])}, in given; got {others[0]!r}: leave "
            "it out"
        )
    places = [known.index(name) for name in table.columns]
    values = np.full((len(table.values), len(known)), np.nan)
    values[:, places] = table.values
    return untyped_gaps(replace(table, values=values, columns=known))


def column_flags(given: Any, known: tuple[str, ...]) -> Flags:
    """Return which columns are given by their names or places, counted from 0.

    Raises:
        ValueError: There is no such column.

    Example:
        >>> column_flags(["c", 0], ("a", "b", "c")).tolist()
        [True, False, True]
    """
    places: dict[Any, int] = {each: i for i, name in enumerate(known) for each in (i, name)}
    flags = np.zeros(len(known), np.bool_)
    for each in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
        flag = isinstance(each, bool | np.bool_)
        if flag or not isinstance(each, str | Integral) or each not in places:
            raise ValueError(
                f"Expected given columns of X, by names, {', '.join(known[:10])}, or places from 0 "
                f"to {len(known) - 1}; got {each!r}: correct it"
            )
        flags[places[each]] = True
    return flags


def untyped_gaps(table: Table) -> Table:
    """Return a table whose columns of gaps alone have no type, and so fit in any column."""
    gaps = np.asarray(np.isnan(table.values).all(0))
    seen = {name for name, empty in zip(table.columns, gaps, strict=True) if not empty}
    return replace(
        table,
        categories={name: each for name, each in table.categories.items() if name in seen},
        types={name: each for name, each in table.types.items() if name in seen},
    )


def check_seen(table: Table) -> None:
    """Raise a ValueError with the first column of a table that has gaps alone."""
    empty = np.isnan(table.values).all(0)
    if empty.any():
        raise ValueError(
            f"Expected values in column {table.columns[empty.argmax()]!r} of {table.name}; got "
            "gaps alone: leave it out"
        )


def check_columns(table: Table, known: tuple[str, ...]) -> None:
    """Raise a ValueError unless a table has the columns that are known from a fit."""
    if table.columns != known:
        wanted, got = (", ".join(each[:10]) for each in (known, table.columns))
        raise ValueError(
            f"Expected the columns of {table.name} as in fit, {wanted}; got {got}: select them in "
            "that order"
        )


def not_numeric(table: Table) -> list[str]:
    """Return the names of a table's columns that hold neither numbers nor booleans."""
    return [name for name, type in table.types.items() if type.family in {*HELD} - {"boolean"}]


def check_numbers(table: Table, advice: str, booleans: bool = False) -> None:
    """Raise a ValueError with the name of a column that holds neither numbers nor `booleans`."""
    for name, type in table.types.items():
        if type.family in HELD and not (booleans and type.family == "boolean"):
            raise ValueError(
                f"Expected numbers in every column of {table.name}; got column {name!r}, which "
                f"holds {HELD[type.family]}: {advice}"
            )


def describe_foreign(table: Table, schema: Schema, foreign: Flags) -> str | None:
    """Return a line on the first value that a column cannot have; None without such a value.

    Args:
        table: The rows.
        schema: The schema of their columns.
        foreign: Which values it is about, shape (rows, columns).
    """
    if not foreign.any():
        return None
    row, place = divmod(int(foreign.argmax()), foreign.shape[1])
    column, value = schema.columns[place], table.values[row, place]
    texts = table.categories.get(column.name)
    got = f"{value:g}" if texts is None else repr(texts[int(value)])
    return (
        f"column {column.name!r} ({column.of_kind.values_text() or column.kind}) of {table.name} "
        f"has {got} in row {row + 1} (counting from 1; {foreign.any(1).sum()} such rows)"
    )


def chosen_schema(given: Schema | str | None, table: Table) -> Schema:
    """Return the schema of a table without missing values, as the estimator's parameter says.

    Raises:
        ValueError: It is no schema of the table's columns, or a column without a schema does not
            hold numbers.
    """
    if isinstance(given, str) and given == "infer":
        found = Schema.infer(table)
        return found.without_constants(found.numbers(table.values, table.categories, table.types))
    columns = [Column(name, type=table.types.get(name)) for name in table.columns]
    if given is None:
        check_numbers(table, 'pass schema="infer", or leave it out')
        return Schema(tuple(columns))
    if not isinstance(given, Schema):
        raise ValueError(f"Expected a Schema, 'infer' or None for schema; got {given!r}")
    if given.names != table.columns:
        wanted, got = (", ".join(each[:10]) for each in (table.columns, given.names))
        raise ValueError(f"Expected a schema of X's columns, {wanted}; got one of {got}")
    return Schema(tuple(columns)).with_columns({each.name: each for each in given.columns})


def complete_rows(*tables: Table, drop: bool, gappy: Table | None = None) -> Flags:
    """Return which rows of tables of the same length have no missing values.

    Args:
        tables: The tables.
        drop: Whether there may be others.
        gappy: The one of the tables that may have missing values.

    Raises:
        ValueError: A value is infinite, or missing where it may not be; the message names the
            column and the row.
    """
    infinite = np.hstack([np.isinf(table.values) for table in tables])
    gaps = np.hstack([np.isnan(table.values) & (table is not gappy) for table in tables])
    complete = np.asarray(~gaps.any(1))
    if not infinite.any() and (drop or complete.all()):
        return complete
    bad = infinite if infinite.any() else gaps
    row, place = divmod(int(bad.argmax()), bad.shape[1])
    table, name = [(table.name, name) for table in tables for name in table.columns][place]
    what, advice = "infinity", "correct it"
    if not infinite.any():
        what, advice = "a gap (NaN)", "fill it"
        if gappy is None:
            model = ', or missing="model" for a model of gaps' if table == "X" else ""
            advice += f', pass missing="drop" for its row{model}'
    raise ValueError(
        f"Expected finite values; got {what} in column {name!r} of {table}, row {row + 1} "
        f"(counting from 1; {bad.any(1).sum()} such rows): {advice}, or leave the column out"
    )


class AskedRows(NamedTuple):
    """Rows that a fitted model is asked about.

    Attributes:
        table: The rows.
        context: Their context.
        complete: Which rows are not left out, shape (rows,).
        numbers: The numbers of the schema, shape (rows, columns).
    """

    table: Table
    context: Table
    complete: Flags
    numbers: Array


def kept_rows(table: Table, context: Table, missing: Missing) -> Flags:
    """Return which rows are not left out, after the checks of `complete_rows`."""
    gappy = table if missing == "model" else None
    return complete_rows(table, context, drop=missing == "drop", gappy=gappy)


def check_count(name: str, value: object) -> None:
    """Raise a ValueError unless a number is whole and at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"Expected {name}, a whole number of at least 1; got {value}")
