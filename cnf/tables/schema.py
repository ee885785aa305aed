"""Schemas: the columns of a table, and the layers that model them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.layers import Concatenate, Identity, Layer
from cnf.layers.scalings.scaling import coarse_columns, constant_columns
from cnf.tables.kinds import KINDS, ColumnKind

Array = NDArray[np.float64]

MAX_SHOWN_COLUMNS = 8  # of a kind, in a summary


@dataclass(frozen=True)
class Column:
    """A column of a table, and the values that it can have.

    Attributes:
        name: The column's name.
        kind: A name in `cnf.tables.kinds.KINDS`.
        low: Lower bound, or the constant.
        high: Upper bound.
        categories: The categories' names, which the table has as their numbers, counted from 0; of
            a constant that is text, that text.

    Raises:
        ValueError: The kind is unknown, or has other bounds or categories than are given, or these
            are not distinct texts.
    """

    name: str
    kind: str = "real"
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Expected a kind among {', '.join(KINDS)} in column {self.name!r}; "
                f"got {self.kind!r}"
            )
        self.of_kind.check()

    @staticmethod
    def infer(name: str, values: Array, categories: tuple[str, ...] = ()) -> Column:
        """Return a column of the most special kind that values (rows,) look like."""
        looks = ((kind, each.infer(values, categories)) for kind, each in [*KINDS.items()][::-1])
        kind, found = next((kind, found) for kind, found in looks if found is not None)
        return Column(name, kind, *found)

    @cached_property
    def of_kind(self) -> ColumnKind:
        """The column as one of its kind."""
        return KINDS[self.kind](self.name, self.kind, self.low, self.high, self.categories)

    @property
    def width(self) -> int:
        """The number of columns that are modelled for it."""
        return self.of_kind.width

    def text(self, value: float) -> str:
        """Return a value for display: a category by its name."""
        return self.of_kind.text(value)

    def describe(self, kind: bool = True) -> str:
        """Return the name, the kind if asked for, and the possible values, for display."""
        return self.of_kind.describe(kind)


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in its order.

    Attributes:
        columns: At least one, their names distinct.

    Example:
        >>> rows = np.array([[0.5, 3.0], [-1.5, 7.0], [0.25, 1e3]])
        >>> schema = Schema.infer(rows, ["x", "n"])
        >>> [column.describe() for column in schema.columns]
        ['x: real', 'n: integer']
        >>> [type(layer).__name__ for layer in schema.layers(rows)]
        ['Concatenate']
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Expected columns with distinct names; got {names}")

    @staticmethod
    def infer(
        values: Array, names: Sequence[str], categories: Mapping[str, Sequence[str]] | None = None
    ) -> Schema:
        """Return the schema that a table looks to have.

        A column of one value is constant; one with categories categorical; one of whole numbers
        integer, from its smallest to its largest where these are few and all between them occur;
        one above 0 with a long tail positive where its logarithm is much less skewed; others are
        real. No column is inferred to be bounded or circular.

        Args:
            values: Shape (rows, columns).
            names: The columns' names.
            categories: The categories' names of columns that hold the numbers of categories.
        """
        texts = [tuple((categories or {}).get(name, ())) for name in names]
        return Schema(tuple(map(Column.infer, names, values.T, texts)))

    @staticmethod
    def of(entries: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Column]:
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
                    f"none of {', '.join(names[:10])}"
                )
            try:
                categories = tuple(entry.get("categories", ()))
                found[name] = Column(name, **{**entry, "categories": categories})
            except (AttributeError, OverflowError, TypeError):
                raise ValueError(
                    f"Expected kind, low, high and categories for column {name!r}; got {entry!r}"
                ) from None
        return found

    def without_constants(self, values: Array) -> Schema:
        """Return the schema with numbers that do not vary, in single precision, as constants.

        Whole numbers and categories stay what they are, since other rows may have others.
        """
        constant = constant_columns(torch.from_numpy(values).float())
        return self.with_columns(
            {
                column.name: Column(column.name, "constant", float(values[0, i]))
                for i, column in enumerate(self.columns)
                if i in constant and column.of_kind.on_line
            }
        )

    def check_apart(self, values: Array) -> None:
        """Raise a ValueError where single precision does not resolve numbers with a density."""
        for i, coarse in coarse_columns(torch.from_numpy(values)).items():
            if self.columns[i].of_kind.on_line:
                raise ValueError(
                    f"Expected columns of numbers apart; got {self.columns[i].name!r}, {coarse}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def without(self, names: Collection[str]) -> tuple[Schema, list[int]]:
        """Return the schema without some columns, and the places of the others."""
        places = [i for i, column in enumerate(self.columns) if column.name not in names]
        return Schema(tuple(self.columns[i] for i in places)), places

    def real(self, values: Array) -> tuple[Array, list[str]]:
        """Return the numbers with a density that are modelled as they are, and their names."""
        places = [
            i
            for i, column in enumerate(self.columns)
            if column.of_kind.on_line and isinstance(column.of_kind.continuous_layer(), Identity)
        ]
        return values[:, places], [self.columns[i].name for i in places]

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
    def texts(self) -> dict[str, tuple[str, ...]]:
        """The categories' names of the columns that hold text in tables."""
        return {
            column.name: column.categories
            for column in self.columns
            if column.categories and not column.of_kind.numeric_categories
        }

    @property
    def whole(self) -> tuple[str, ...]:
        """The columns that hold whole numbers in tables."""
        return tuple(column.name for column in self.columns if column.of_kind.whole)

    def numbers(self, values: Array, categories: Mapping[str, Sequence[str]]) -> Array:
        """Return a table's values (rows, columns) with categories as their numbers in the schema.

        Raises:
            ValueError: A column is text in the table alone, or a category is unknown.
        """
        pairs = zip(self.columns, values.T, strict=True)
        found = [each.of_kind.numbers(column, categories.get(each.name)) for each, column in pairs]
        return np.column_stack(found)

    def tabled(self, values: Array) -> Array:
        """Return draws as a table has them: numeric categories as numbers, bounds to the digit.

        A flow computes in single precision, which rounds bounds and constants.
        """
        pairs = zip(self.columns, values.T.astype(np.float64), strict=True)
        return np.column_stack([each.of_kind.tabled(column) for each, column in pairs])

    def with_columns(self, changes: Mapping[str, Column]) -> Schema:
        """Return the schema with some columns replaced, by name."""
        return Schema(tuple(changes.get(column.name, column) for column in self.columns))

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
        return {
            column.name: {k: v for k, v in asdict(column).items() if k != "name"}
            for column in self.columns
        }

    def check(self, values: Array) -> None:
        """Raise a ValueError with the column, the row and the value that a column cannot have."""
        for column, given in zip(self.columns, values.T, strict=True):
            out = column.of_kind.outside(given)
            if out.any():
                row = int(out.argmax())
                raise ValueError(
                    f"Expected values of {column.describe()}; got {given[row]:g} in row {row + 1} "
                    f"(counting from 1; {out.sum()} such rows). Correct it, or give the column "
                    "another kind"
                )

    def layers(self, values: Array) -> list[Layer]:
        """Return the layers between the modelled columns and the table, for training rows."""
        inner = [column.of_kind.continuous_layer() for column in self.columns]
        outer = [column.of_kind.table_layer(values[:, i]) for i, column in enumerate(self.columns)]
        starts = accumulate((column.width for column in self.columns), initial=0)
        modelled = [list(range(a, b)) for a, b in pairwise(starts)]
        of_table = [[i] for i in range(len(self.columns))]
        pairs = ((inner, modelled), (outer, of_table))
        return [
            Concatenate(layers, columns)
            for layers, columns in pairs
            if not all(isinstance(layer, Identity) for layer in layers)
        ]
