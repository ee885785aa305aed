"""What kinds of columns a table has, and the layers that they mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.layers import (
    Argmax,
    Bounded,
    Circular,
    Concatenate,
    Constant,
    Dequantize,
    Identity,
    Layer,
    Positive,
)
from cnf.layers.scalings.scaling import coarse_columns, constant_columns

Array = NDArray[np.float64]

KINDS = ("real", "positive", "bounded", "circular", "integer", "categorical", "constant")
ALLOWED = {"bounded": 2, "circular": 2, "integer": 2, "positive": 1, "constant": 1}  # bounds
SKEWED = 1.0  # an exponential distribution has twice this skewness
LOOKED_AT = 1_000_000  # rows that tell whether a column is skewed
FEW = 20  # whole numbers, each of which occurs: their range is taken for all there is
SHOWN = 8  # columns of a kind that a summary names
LARGEST = 2**18  # whole numbers beyond leave little room for noise in single precision


@dataclass(frozen=True)
class Column:
    """A column, and what its values can be.

    Attributes:
        name: What it is called.
        kind: `"real"`; `"positive"`, above `low` (0 when None), modelled by its logarithm;
            `"bounded"`, from `low` to `high`, by its log odds; `"circular"`, an angle or an hour,
            the same at `low` and at `high`, and beyond them the same as a turn nearer, drawn from
            `low` to below `high`; `"integer"`, whole numbers, from `low` and to `high` where these
            are given; `"categorical"`, one of `categories`, which the table has as their numbers,
            counted from 0; or `"constant"`, of which nothing is modelled: draws have `low` in it.
        low: Lower bound, or the constant.
        high: Upper bound.
        categories: The categories' names; of a constant that is text, its own.

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
            raise self._refusal(f"a kind among {', '.join(KINDS)}", repr(self.kind))
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not all(isfinite(bound) for bound in bounds):
            raise self._refusal("finite bounds", f"{self.low} and {self.high}")
        allowed = ALLOWED.get(self.kind, 0)
        needed = {"bounded": 2, "circular": 2, "constant": 1}.get(self.kind, 0)
        if not needed <= len(bounds) <= allowed:
            exact = "both bounds" if needed == 2 else "one bound"
            wanted = exact if needed else f"at most {allowed} bounds"
            raise self._refusal(f"{wanted} for kind {self.kind}", str(len(bounds)))
        if self.high is not None and (self.low is None or not self.low < self.high):
            raise self._refusal("a lower bound below the upper one", f"{self.low}, {self.high}")
        if self.kind == "integer" and not all(float(bound).is_integer() for bound in bounds):
            raise self._refusal("whole bounds for kind integer", f"{self.low} and {self.high}")
        texts = all(isinstance(name, str) for name in self.categories)
        if not texts or len(set(self.categories)) < len(self.categories):
            raise self._refusal("distinct texts for categories", repr(list(self.categories))[:80])
        most = {"categorical": inf, "constant": 1}.get(self.kind, 0)
        if not (2 if self.kind == "categorical" else 0) <= len(self.categories) <= most:
            raise self._refusal(
                "at least 2 categories for kind categorical, and none for another",
                f"{len(self.categories)} for {self.kind}",
            )

    def _refusal(self, wanted: str, got: str) -> ValueError:
        return ValueError(f"Expected {wanted} in column {self.name!r}; got {got}")

    @property
    def width(self) -> int:
        """The columns that are modelled for it."""
        return {"categorical": len(self.categories) - 1, "constant": 0}.get(self.kind, 1)

    @property
    def discrete(self) -> bool:
        """Whether its values have a mass rather than a density."""
        return self.kind in ("integer", "categorical")

    @property
    def whole(self) -> bool:
        """Whether tables have whole numbers in it."""
        if self.kind == "categorical":
            return self.numeric_categories and all(float(name) % 1 == 0 for name in self.categories)
        is_whole = self.low is not None and self.low % 1 == 0 and not self.categories
        return self.kind == "integer" or (self.kind == "constant" and is_whole)

    @property
    def numeric_categories(self) -> bool:
        """Whether it has categories whose names are numbers, which tables then have as such."""
        return bool(self.categories) and all(map(_is_number, self.categories))

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Which values the column cannot have, shape (rows,)."""
        out = np.zeros(len(values), dtype=bool)
        if self.kind in ("constant", "circular"):
            return out
        if self.discrete:
            out |= values != np.floor(values)
        if self.kind == "categorical":
            out |= (values < 0) | (values >= len(self.categories))
        if self.kind == "positive":
            out |= values <= (self.low or 0.0)
        elif self.low is not None:
            out |= values < self.low
        return out | (values > self.high) if self.high is not None else out

    def numbers(self, values: Array, categories: Sequence[str] | None) -> Array:
        """The values of a table's column: its categories by their numbers here.

        Args:
            values: Shape (rows,).
            categories: What the numbers stand for where the table has text; None where it has not.

        Raises:
            ValueError: The table has text and the column none, or a category is none of its own.
        """
        if categories is None:
            if not self.numeric_categories or self.kind == "constant":
                return values
            own, names = np.array([float(name) for name in self.categories]), None
            places = np.abs(values[:, None] - own).argmin(1)
            unknown = own[places] != values
        elif not self.categories:
            raise self._refusal(f"numbers ({self.describe()})", f"text, {categories[0]!r}")
        elif self.kind == "constant":
            return np.full(len(values), self.low)
        else:
            names = np.array(categories)[values.astype(np.int64)]
            known = {name: place for place, name in enumerate(self.categories)}
            places = np.array([known.get(name, -1) for name in categories])[values.astype(np.int64)]
            unknown = places < 0
        if unknown.any():
            row = int(unknown.argmax())
            got = f"{values[row]:g}" if names is None else repr(str(names[row]))
            raise self._refusal(
                f"one of {', '.join(self.categories[:10])}",
                f"{got} in row {row + 1} (counting from 1; {int(unknown.sum())} such rows)",
            )
        return np.asarray(places, np.float64)

    def tabled(self, values: Array) -> Array:
        """The values of draws, shape (rows,), as a table has them; see `Schema.tabled`."""
        if self.kind == "constant":
            return np.full(len(values), self.low)
        if self.kind == "categorical" and self.numeric_categories:
            numbers: Array = np.array([float(name) for name in self.categories])
            return numbers[values.astype(np.int64)]
        return values if self.low is None else np.asarray(np.clip(values, self.low, self.high))

    def told(self, value: float) -> str:
        """A value for people: a category by its name."""
        return self.categories[int(value)] if self.kind == "categorical" else f"{value:.6g}"

    def describe(self, kind: bool = True) -> str:
        """Its name, its kind unless that is told elsewhere, and what it can be, for people."""
        if self.kind == "categorical":
            more = ", …" if len(self.categories) > SHOWN else ""
            can_be = f"one of {', '.join(self.categories[:SHOWN])}{more}"
        elif self.kind == "constant":
            can_be = self.categories[0] if self.categories else f"{self.low:g}"
        else:
            bounds = (("from", self.low), ("to", self.high))
            can_be = " ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        own = self.kind if kind and self.kind != "categorical" else ""
        told = " ".join(part for part in (own, can_be) if part)
        return f"{self.name}: {told}" if kind else f"{self.name} {told}".strip()


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
        """What the columns of a table look like.

        A column of one value is constant. One with categories is categorical; one of whole numbers
        is integer, from its smallest to its largest where these are few and all between them occur;
        one above 0 with a long tail is positive where its logarithm is much less skewed; others
        are real. None is taken for bounded or circular.

        Args:
            values: Shape (rows, columns).
            names: The columns' names.
            categories: The categories' names of those columns that hold the numbers of categories.
        """
        named = categories or {}
        return Schema(
            tuple(
                _inferred(name, values[:, i], tuple(named.get(name, ())))
                for i, name in enumerate(names)
            )
        )

    @staticmethod
    def of(entries: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Column]:
        """Columns as JSON tells of them, by name: {"age": {"kind": "integer", "low": 0}, …}.

        Raises:
            ValueError: A name is none of the table's, or an entry is not one of `Column`'s.
        """
        found = {}
        if not isinstance(entries, Mapping):
            raise ValueError(f"Expected an object of columns; got {str(entries)[:40]}")
        for name, entry in entries.items():
            if name not in names:
                raise ValueError(
                    f"Expected the schema to tell of columns of the table; got {name!r}, which is "
                    f"none of {', '.join(names[:10])}"
                )
            try:
                known = {**entry, "categories": tuple(entry.get("categories", ()))}
                found[name] = Column(name, **known)
            except (AttributeError, OverflowError, TypeError):
                raise ValueError(
                    f"Expected kind, low, high and categories for column {name!r}; got {entry!r}"
                ) from None
        return found

    def without_constants(self, values: Array) -> Schema:
        """The schema with columns that are constant among some rows, in single precision, as such.

        Whole numbers and categories, which may be others elsewhere, stay what they are.
        """
        constant = constant_columns(torch.from_numpy(values).float())
        return self.with_columns(
            {
                column.name: Column(column.name, "constant", float(values[0, i]))
                for i, column in enumerate(self.columns)
                if i in constant and column.kind in ("real", "positive", "bounded")
            }
        )

    def check_apart(self, values: Array) -> None:
        """Check that single precision, in which flows compute, tells numbers with a density apart.

        Raises:
            ValueError: It does not; the message names the column and says what to subtract.
        """
        for i, coarse in coarse_columns(torch.from_numpy(values)).items():
            if self.columns[i].kind in ("real", "positive", "bounded"):
                raise ValueError(
                    f"Expected columns of numbers apart; got {self.columns[i].name!r}, {coarse}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def without(self, names: Collection[str]) -> tuple[Schema, list[int]]:
        """The schema of the other columns, and their places."""
        places = [i for i, column in enumerate(self.columns) if column.name not in names]
        return Schema(tuple(self.columns[i] for i in places)), places

    def real(self, values: Array) -> tuple[Array, list[str]]:
        """The values of the columns of real numbers, and their names."""
        places = [i for i, column in enumerate(self.columns) if column.kind == "real"]
        return values[:, places], [self.columns[i].name for i in places]

    @property
    def noisy(self) -> bool:
        """Whether there are columns with a mass, for which noise is drawn."""
        return any(column.discrete for column in self.columns)

    @property
    def varying(self) -> tuple[str, ...]:
        """The columns that are not constant."""
        return tuple(column.name for column in self.columns if column.kind != "constant")

    @property
    def constant(self) -> tuple[str, ...]:
        """The columns that are constant, of which nothing is modelled."""
        return tuple(column.name for column in self.columns if column.kind == "constant")

    @property
    def texts(self) -> dict[str, tuple[str, ...]]:
        """The categories' names of the columns that hold text in tables."""
        return {
            column.name: column.categories
            for column in self.columns
            if column.categories and not column.numeric_categories
        }

    @property
    def whole(self) -> tuple[str, ...]:
        """The columns that hold whole numbers in tables."""
        return tuple(column.name for column in self.columns if column.whole)

    def numbers(self, values: Array, categories: Mapping[str, Sequence[str]]) -> Array:
        """The values of a table as the schema has them: categories by their numbers in it.

        Args:
            values: Shape (rows, columns), in its order.
            categories: Of the table's own columns of text.

        Raises:
            ValueError: A column of text is none here, or has a category that is none here.
        """
        found = values.copy()
        for i, column in enumerate(self.columns):
            found[:, i] = column.numbers(values[:, i], categories.get(column.name))
        return found

    def tabled(self, values: Array) -> Array:
        """The values of draws as a table has them: numeric categories as such, bounds to the digit.

        A flow computes in single precision, which rounds bounds and constants.
        """
        found = np.empty(values.shape)
        for i, column in enumerate(self.columns):
            found[:, i] = column.tabled(values[:, i])
        return found

    def with_columns(self, changes: Mapping[str, Column]) -> Schema:
        """The schema with other columns of these names."""
        return Schema(tuple(changes.get(column.name, column) for column in self.columns))

    @property
    def width(self) -> int:
        """The number of columns that are modelled."""
        return sum(column.width for column in self.columns)

    def summary(self) -> list[str]:
        """The columns by kind, a line for each kind that occurs, for people."""
        lines = []
        for kind in KINDS:
            own = [column.describe(kind=False) for column in self.columns if column.kind == kind]
            if own:
                more = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
                lines.append(f"{kind:<12}{'; '.join(own[:SHOWN])}{more}")
        return lines

    @property
    def circular(self) -> tuple[int, ...]:
        """Which of the columns that are modelled are angles."""
        kinds = [kind for column in self.columns for kind in [column.kind] * column.width]
        return tuple(i for i, kind in enumerate(kinds) if kind == "circular")

    def json(self) -> dict[str, dict[str, Any]]:
        """What `of` makes it of again, ready for JSON."""
        return {
            column.name: {k: v for k, v in asdict(column).items() if k != "name"}
            for column in self.columns
        }

    def check(self, values: Array) -> None:
        """Check that each column can have its values.

        Raises:
            ValueError: One cannot; the message names the column, the value and the row.
        """
        for i, column in enumerate(self.columns):
            out = column.outside(values[:, i])
            if out.any():
                row = int(out.argmax())
                raise ValueError(
                    f"Expected values of {column.describe()}; got {values[row, i]:g} in row "
                    f"{row + 1} (counting from 1; {int(out.sum())} such rows). Correct it, or give "
                    "the column another kind"
                )

    def layers(self, values: Array) -> list[Layer]:
        """The layers between what is modelled and the table, the one next to the table last.

        Args:
            values: Training rows, of whose categories the shares are taken.
        """
        inner = [_continuous(column) for column in self.columns]
        outer = [_discrete(column, values[:, i]) for i, column in enumerate(self.columns)]
        starts = np.cumsum([0, *(column.width for column in self.columns)])
        wide = [list(range(a, b)) for a, b in pairwise(starts.tolist())]
        one = [[i] for i in range(len(self.columns))]
        pairs = ((inner, wide), (outer, one))
        return [
            Concatenate(layers, columns)
            for layers, columns in pairs
            if not all(isinstance(layer, Identity) for layer in layers)
        ]


def _inferred(name: str, values: Array, categories: tuple[str, ...]) -> Column:
    """A column by its looks."""
    from scipy.stats import skew  # here, since it takes long to import

    if (values == values[0]).all():
        return Column(name, "constant", float(values[0]), categories=categories[:1])
    if categories:
        return Column(name, "categorical", categories=categories)
    if (values == np.floor(values)).all() and np.abs(values).max() < LARGEST:
        distinct = np.unique(values)
        low, high = float(distinct[0]), float(distinct[-1])
        complete = len(distinct) == high - low + 1
        if len(distinct) <= FEW and complete:
            return Column(name, "integer", low, high)
        return Column(name, "integer")
    positive = values.min() > 0
    values = values[:: -(-len(values) // LOOKED_AT)]
    skewed = float(skew(values))
    if skewed > SKEWED and positive and abs(float(skew(np.log(values)))) < skewed / 2:
        return Column(name, "positive")
    return Column(name)


def _continuous(column: Column) -> Layer:
    """From what is modelled to numbers within the bounds, not yet whole."""
    if column.kind in ("categorical", "constant"):
        return Identity(column.width)
    if column.kind == "circular" and column.low is not None and column.high is not None:
        return Circular(1, column.low, column.high)
    if column.high is not None and column.low is not None:
        return Bounded([column.low], [column.high + (column.kind == "integer")])
    if column.kind == "positive" or column.low is not None:
        return Positive([column.low or 0.0])
    return Identity(1)


def _discrete(column: Column, values: Array) -> Layer:
    """From these to whole numbers and categories; a category that does not occur has some share."""
    if column.kind == "integer":
        return Dequantize(1)
    if column.kind == "categorical":
        counts = np.bincount(values.astype(np.int64), minlength=len(column.categories))
        shares: list[float] = ((counts + 0.5) / (counts + 0.5).sum()).tolist()
        return Argmax(shares)
    if column.kind == "constant":
        return Constant([column.low or 0.0])
    return Identity(1)


def _is_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False
