"""Schemas: the columns of a table, and the layers that model them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.datasets.column_types import ColumnType
from cnf.datasets.reading import drop_option
from cnf.datasets.table import Table
from cnf.layers import Concatenate, Identity, Layer
from cnf.layers.scalings.scaling import coarse_columns, constant_columns
from cnf.tables.kinds import KINDS, Atoms, ColumnKind, ColumnValues, Gaps, Unknown
from cnf.tables.remarks import remarks_on
from cnf.utils.random import seeded

Array = NDArray[np.float64]

MAX_SHOWN_COLUMNS = 8  # of a kind, in a summary
MAX_MODELLED_NUMBERS = 1_000_000  # of the rows that show the modelled columns' distributions


@dataclass(frozen=True)
class Column:
    """A column of a table, and the values that it can have.

    Attributes:
        name: The column's name.
        kind: A name in `cnf.tables.kinds.KINDS`.
        low: Lower bound, or the constant.
        high: Upper bound.
        categories: The categories' names, which the table has as their numbers, counted from 0.
        step: The step that values are multiples of: for kinds with a mass the distance of values,
            for those with a density that of draws.
        origin: The value that multiples of the step are counted from; None for `low`, or for 0.
        atoms: The values that occur with a mass beside a density, each with its share of the rows.
        type: The values' type in tables; None for one that suits the kind.
        gaps: The meaning of missing values where a model has them: `"unknown"` values, which are
            marginalised, or one more `"value"`, whose share is modelled.

    Raises:
        ValueError: The kind is unknown, or has other attributes than are given, or the categories
            are not distinct texts.
    """

    name: str
    kind: str = "real"
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    step: float | None = None
    origin: float | None = None
    atoms: Atoms = ()
    type: ColumnType | None = None
    gaps: Gaps = "unknown"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Expected a kind among {', '.join(KINDS)} in column {self.name!r}; "
                f"got {self.kind!r}"
            )
        self.of_kind.check()

    @staticmethod
    def infer(given: ColumnValues) -> Column:
        """Return a column of the most special kind that values look like.

        Raises:
            ValueError: All values are missing, or there are too many categories.
        """
        if not len(given.known):
            raise ValueError(
                f"Expected values in column {given.name!r}; got none: leave it out "
                f"({drop_option(given.name)})"
            )
        looks = ((kind, each.infer(given)) for kind, each in [*KINDS.items()][::-1])
        kind, found = next((kind, found) for kind, found in looks if found is not None)
        return Column(given.name, kind, **found._asdict()).with_type(given.type)

    def with_type(self, type: ColumnType) -> Column:
        """Return the column with a type, None where it is the one that suits the kind."""
        plain = replace(self, type=None)
        return plain if plain.of_kind.table_type == type else replace(self, type=type)

    @cached_property
    def of_kind(self) -> ColumnKind:
        """The column as one of its kind."""
        return KINDS[self.kind](**vars(self))

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it."""
        return self.of_kind.width

    def text(self, value: float) -> str:
        """Return a value for display: a category by its name, and a gap as missing."""
        return "missing" if isnan(value) else self.of_kind.text(value)

    def describe(self, kind: bool = True) -> str:
        """Return the name, the kind if asked for, and the possible values, for display."""
        return self.of_kind.describe(kind)


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in its order.

    Attributes:
        columns: At least one, their names distinct.

    Example:
        >>> table = Table("t", np.array([[0.5, 3.0], [-1.5, 7.0], [0.25, 1e3]]), ("x", "n"))
        >>> schema = Schema.infer(table)
        >>> [column.describe() for column in schema.columns]
        ['x: real', 'n: integer from 0']
        >>> [type(layer).__name__ for layer in schema.layers(schema.numbers(table.values))]
        ['Concatenate', 'Concatenate']
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Expected columns with distinct names; got {names}")

    @staticmethod
    def infer(table: Table, rounded: bool = True) -> Schema:
        """Return the schema that a table looks to have; missing values are left out.

        - A column of one value is constant.
        - One with categories, whatever these are, is categorical, and booleans are boolean.
        - Dates are datetimes, of the greatest step between them.
        - Decimals are a spike where single values have many rows and nearly all others are
          different; and a grid where they are multiples of a step and a tenth of them are ties. A
          density of other multiples of a step has its draws rounded to it.
        - Whole numbers are integers, and a grid where they are multiples of a step above 1 or
          beyond 2^18. They are bounded where they are few and all between them occur, and from 0
          where they are counts, which begin near 0 and are not negative.
        - Numbers above 0 with a long tail are positive where their logarithm is much less skewed.
        - All others are real. No column is inferred to be bounded or circular.

        Args:
            table: The table.
            rounded: Whether to look for steps and spikes.

        Raises:
            ValueError: A column has too many categories for its rows, or no value.
        """
        return Schema(
            tuple(
                Column.infer(
                    ColumnValues(
                        name,
                        values,
                        table.categories.get(name),
                        table.types.get(name, ColumnType()),
                        rounded,
                    )
                )
                for name, values in zip(table.columns, table.values.T, strict=True)
            )
        )

    @staticmethod
    def of(entries: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> dict[str, Column]:
        """Return columns in JSON by name: {"age": {"kind": "integer", "low": 0}, …}.

        Raises:
            ValueError: The table has no such column, or an entry is not one of `Column`'s.
        """
        found: dict[str, Column] = {}
        if not isinstance(entries, Mapping):
            raise ValueError(f"Expected an object of columns; got {str(entries)[:40]}")
        for name, entry in entries.items():
            if name not in names:
                raise ValueError(
                    f"Expected columns of the table in the schema; got {name!r}, which is "
                    f"none of {', '.join([*names][:10])}"
                )
            try:
                found[name] = Column(name, **_attributes(entry))
            except (AttributeError, OverflowError, TypeError):
                raise ValueError(
                    f"Expected kind, low, high and categories for column {name!r}, or step, "
                    f"origin, atoms, type and gaps; got {entry!r}"
                ) from None
        return found

    def without_constants(self, numbers: Array) -> Schema:
        """Return the schema with numbers that do not vary, in single precision, as constants.

        Whole numbers and categories stay what they are, since other rows may have others.
        """
        numbers = _without_gaps(numbers)
        constant = constant_columns(torch.from_numpy(numbers).float())
        return self.with_columns(
            {
                column.name: Column(column.name, "constant", float(numbers[0, i]), gaps=column.gaps)
                for i, column in enumerate(self.columns)
                if i in constant and column.of_kind.on_line
            }
        )

    def check_varying(self, numbers: Array) -> None:
        """Raise a ValueError where numbers with a density do not vary, or where nothing does."""
        numbers = _without_gaps(numbers)
        constant = constant_columns(torch.from_numpy(numbers))
        found = [i for i in constant if self.columns[i].of_kind.on_line]
        found = found or ([] if self.width else [*range(len(self.columns))])
        if found:
            i, name = found[0], self.columns[found[0]].name
            others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(
                f"Expected columns that vary; got column {name!r}, which is constant, "
                f"{self.columns[i].text(numbers[0, i])} in every row{others}: leave it out "
                f"({drop_option(name)}), since a constant has no density"
            )

    def check_apart(self, numbers: Array) -> None:
        """Raise a ValueError where single precision does not resolve numbers with a density."""
        for i, coarse in coarse_columns(torch.from_numpy(_without_gaps(numbers))).items():
            if self.columns[i].of_kind.on_line:
                raise ValueError(
                    f"Expected columns of numbers apart; got {self.columns[i].name!r}, {coarse}"
                )

    def remarks(self, numbers: Array, masses: bool = False) -> list[str]:
        """Return a line on each column of numbers (rows, columns) that is better left out.

        These are ids, and numbers with a density of which some occur with a mass, unless the model
        has `masses`.
        """
        pairs = zip(self.columns, numbers.T, strict=True)
        return [line for column, each in pairs for line in remarks_on(column.of_kind, each, masses)]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def without(self, names: Collection[str]) -> tuple[Schema, list[int]]:
        """Return the schema without some columns, and the places of the others."""
        places = [i for i, column in enumerate(self.columns) if column.name not in names]
        return Schema(tuple(self.columns[i] for i in places)), places

    def real(self, numbers: Array) -> tuple[Array, list[str]]:
        """Return the numbers with a density that are modelled as they are, and their names.

        Gaps have other values of their columns.
        """
        places = [
            i
            for i, column in enumerate(self.columns)
            if column.of_kind.on_line and isinstance(column.of_kind.continuous_layer(), Identity)
        ]
        return _without_gaps(numbers[:, places]), [self.columns[i].name for i in places]

    def continuous(self, values: Array) -> Array:
        """Return the numbers that are modelled for the first rows, but those of angles.

        They are what a scaling is fitted to: positive and bounded numbers through their layers,
        whole numbers and categories with noise, which is the same in every call. Gaps have other
        values of their columns.
        """
        x = _without_gaps(values)[: max(1, MAX_MODELLED_NUMBERS // max(1, self.width))]
        layers, found = self.layers(x), torch.tensor(x)
        with torch.no_grad(), seeded(0):
            for layer in reversed(layers):
                found = layer.pull(found).value
        angles = (layers[0].circular if layers else None) or ()
        return np.delete(found.numpy(), angles, axis=1)

    @property
    def noisy(self) -> bool:
        """Whether there are columns with a probability mass, to which noise is added."""
        return any(column.of_kind.discrete for column in self.columns)

    @property
    def varying(self) -> tuple[str, ...]:
        """The columns that are modelled."""
        return tuple(column.name for column in self.columns if column.width)

    @property
    def constant(self) -> tuple[str, ...]:
        """The columns that are constant, which are not modelled."""
        return tuple(column.name for column in self.columns if not column.width)

    @property
    def types(self) -> dict[str, ColumnType]:
        """The columns' types in tables."""
        return {column.name: column.of_kind.table_type for column in self.columns}

    def numbers(
        self,
        values: Array,
        categories: Mapping[str, Sequence[str]] | None = None,
        types: Mapping[str, ColumnType] | None = None,
        unknown: Unknown = "raise",
    ) -> Array:
        """Return the numbers (rows, columns) of a table's values, as a flow models them.

        They are the numbers of categories in the schema, and the counts of the steps of grids.

        Args:
            values: Shape (rows, columns); NaN, for missing values, stays NaN.
            categories: The texts of codes, by column.
            types: The types of the values, by column; the schema's when None.
            unknown: Whether to `"raise"` an error for a category that the schema does not have, or
                to `"keep"` it as −1.

        Raises:
            ValueError: A column is text in the table alone, or a category is unknown.
        """
        types = self.types if types is None else types
        found = []
        for column, each in zip(self.columns, values.T, strict=True):
            texts = (categories or {}).get(column.name)
            type = types.get(column.name, ColumnType())
            given = ColumnValues(column.name, each, None if texts is None else tuple(texts), type)
            found.append(column.of_kind.numbers(given, unknown))
        return np.column_stack(found)

    def table(self, numbers: Array) -> Table:
        """Return a table of numbers (rows, columns) that were drawn, with its types.

        A flow computes in single precision, which rounds bounds, steps and constants.
        """
        pairs = zip(self.columns, numbers.T.astype(np.float64), strict=True)
        return Table(
            "draws",
            np.column_stack([each.of_kind.tabled(column) for each, column in pairs]),
            self.names,
            categories={each.name: each.categories for each in self.columns if each.of_kind.coded},
            types=self.types,
        )

    def with_columns(self, changes: Mapping[str, Column]) -> Schema:
        """Return the schema with some columns replaced, by name; their types stay unless given."""
        return Schema(
            tuple(
                changes[column.name].with_type(
                    changes[column.name].type or column.of_kind.table_type
                )
                if column.name in changes
                else column
                for column in self.columns
            )
        )

    @property
    def width(self) -> int:
        """The number of columns that are modelled."""
        return sum(column.width for column in self.columns)

    def summary(self) -> list[str]:
        """Return a line of columns for each kind that occurs, for display."""
        lines = []
        for kind in KINDS:
            texts = [column.describe(kind=False) for column in self.columns if column.kind == kind]
            hidden = len(texts) - MAX_SHOWN_COLUMNS
            more = f" and {hidden} more" if hidden > 0 else ""
            lines += [f"{kind:<12}{'; '.join(texts[:MAX_SHOWN_COLUMNS])}{more}"] if texts else []
        return lines

    def json(self) -> dict[str, dict[str, Any]]:
        """Return the entries that `of` reads, ready for JSON."""
        return {column.name: _entry(column) for column in self.columns}

    def nearest(self, numbers: Array) -> Array:
        """Return numbers (rows, columns) with those of grids rounded; gaps stay NaN."""
        pairs = zip(self.columns, numbers.T, strict=True)
        return np.column_stack([column.of_kind.nearest(each) for column, each in pairs])

    def outside(self, numbers: Array) -> NDArray[np.bool_]:
        """Return which numbers (rows, columns), apart from gaps, the columns cannot have."""
        pairs = zip(self.columns, numbers.T, strict=True)
        found = np.column_stack([column.of_kind.outside(each) for column, each in pairs])
        return np.asarray(found & ~np.isnan(numbers))

    def check(self, numbers: Array, gaps: bool = False) -> None:
        """Raise a ValueError with the column, the row and the value that a column cannot have.

        Gaps are refused in columns where they are no value, unless they are modelled (`gaps`).
        """
        for column, given in zip(self.columns, numbers.T, strict=True):
            kind = column.of_kind
            out = kind.outside(given) | ~np.isfinite(given)
            if gaps or column.gaps == "value":
                out &= ~np.isnan(given)
            if kind.width and out.any():
                row = int(out.argmax())
                got = "a gap (NaN)" if np.isnan(given[row]) else kind.foreign_text(given[row])
                raise ValueError(
                    f"Expected values of {column.describe()}; got {got} in row {row + 1} "
                    f"(counting from 1; {out.sum()} such rows): {kind.advice}, or give it another "
                    "kind"
                )

    def layers(self, numbers: Array) -> list[Layer]:
        """Return the layers between the modelled columns and the table, for training rows."""
        numbers = _without_gaps(numbers)
        inner = [column.of_kind.continuous_layer() for column in self.columns]
        outer = [column.of_kind.table_layer(numbers[:, i]) for i, column in enumerate(self.columns)]
        starts = accumulate((column.width for column in self.columns), initial=0)
        modelled = [list(range(a, b)) for a, b in pairwise(starts)]
        of_table = [[i] for i in range(len(self.columns))]
        pairs = ((inner, modelled), (outer, of_table))
        return [
            Concatenate(layers, columns)
            for layers, columns in pairs
            if not all(isinstance(layer, Identity) for layer in layers)
        ]


def _without_gaps(numbers: Array) -> Array:
    """Return numbers (rows, columns) with each gap replaced by another value of its column.

    A column of gaps alone keeps them.
    """
    gaps = np.isnan(numbers)
    if not gaps.any():
        return numbers
    found = numbers.copy()
    for column, missing in zip(found.T, gaps.T, strict=True):
        if missing.any() and not missing.all():
            column[missing] = np.resize(column[~missing], missing.sum())
    return found


def check_single_precision(table: Table) -> None:
    """Raise a ValueError where a number of a table is infinite in single precision."""
    largest = np.finfo(np.float32).max
    beyond = np.abs(table.values) > largest
    if not beyond.any():
        return
    row, column = np.argwhere(beyond)[0].tolist()
    raise ValueError(
        f"Expected numbers up to {largest:.2g} in {table.name}; got {table.values[row, column]:.3g}"
        f" in row {row + 1} (counting from 1), column {table.columns[column]!r}: rescale it"
    )


def _entry(column: Column) -> dict[str, Any]:
    """Return a column for JSON, without attributes that are as those of its kind."""
    entry = {name: getattr(column, name) for name in ("kind", "low", "high", "categories")}
    entry |= {
        name: value for name in ("step", "origin", "atoms") if (value := getattr(column, name))
    }
    if column.gaps != "unknown":
        entry["gaps"] = column.gaps
    if column.type is not None:
        default, type = asdict(ColumnType()), asdict(column.type)
        entry["type"] = {name: value for name, value in type.items() if value != default[name]}
    return entry


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a column from JSON, which has lists for tuples."""
    found = {
        **entry,
        "categories": tuple(entry.get("categories", ())),
        "atoms": tuple((float(value), float(share)) for value, share in entry.get("atoms", ())),
    }
    if isinstance(entry.get("type"), Mapping):
        found["type"] = ColumnType(**entry["type"])
    return found
