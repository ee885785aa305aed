"""What kinds of columns a table has, and the layers that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import skew

from cnf.layers import Argmax, Beside, Bounded, Circular, Dequantize, Keep, Layer, Positive

Array = NDArray[np.float64]

KINDS = ("real", "positive", "bounded", "circular", "integer", "categorical")
SKEWED = 1.0  # an exponential distribution has twice this skewness
FEW = 20  # whole numbers, each of which occurs: their range is taken for all there is


@dataclass(frozen=True)
class Column:
    """A column, and what its values can be.

    Attributes:
        name: What it is called.
        kind: `"real"`; `"positive"`, above `low` (0 when None), modelled by its logarithm;
            `"bounded"`, from `low` to `high`, by its log odds; `"circular"`, an angle or an hour,
            the same at `low` and at `high`, and beyond them the same as a turn nearer, drawn from
            `low` to below `high`; `"integer"`, whole numbers, from `low` and to `high` where these
            are given; or `"categorical"`, one of `categories`, which the table has as their
            numbers, counted from 0.
        low: Lower bound.
        high: Upper bound.
        categories: The categories' names.

    Raises:
        ValueError: The kind is unknown, or has other bounds or categories than are given.
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
        allowed = {"bounded": 2, "circular": 2, "integer": 2, "positive": 1}.get(self.kind, 0)
        both = self.kind in ("bounded", "circular")
        if len(bounds) > allowed or (both and len(bounds) < 2):
            wanted = "both bounds" if both else f"at most {allowed} bounds"
            raise self._refusal(f"{wanted} for kind {self.kind}", str(len(bounds)))
        if self.high is not None and (self.low is None or not self.low < self.high):
            raise self._refusal("a lower bound below the upper one", f"{self.low}, {self.high}")
        if self.kind == "integer" and not all(float(bound).is_integer() for bound in bounds):
            raise self._refusal("whole bounds for kind integer", f"{self.low} and {self.high}")
        if (self.kind == "categorical") != (len(self.categories) >= 2):
            raise self._refusal(
                "at least 2 categories for kind categorical, and none for another",
                f"{len(self.categories)} for {self.kind}",
            )

    def _refusal(self, wanted: str, got: str) -> ValueError:
        return ValueError(f"Expected {wanted} in column {self.name!r}; got {got}")

    @property
    def width(self) -> int:
        """The columns that are modelled for it."""
        return len(self.categories) - 1 if self.kind == "categorical" else 1

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Which values the column cannot have, shape (rows,)."""
        out = np.zeros(len(values), dtype=bool)
        if self.kind == "circular":
            return out
        if self.kind in ("integer", "categorical"):
            out |= values != np.floor(values)
        if self.kind == "categorical":
            out |= (values < 0) | (values >= len(self.categories))
        if self.kind == "positive":
            out |= values <= (self.low or 0.0)
        elif self.low is not None:
            out |= values < self.low
        return out | (values > self.high) if self.high is not None else out

    def describe(self) -> str:
        """Its name and kind, for people."""
        if self.kind == "categorical":
            return f"{self.name}: one of {', '.join(self.categories)}"
        low = "" if self.low is None else f" from {self.low:g}"
        high = "" if self.high is None else f" to {self.high:g}"
        return f"{self.name}: {self.kind}{low}{high}"


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
        ['Beside']
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

        A column with categories is categorical; one of whole numbers is integer, from its smallest
        to its largest where these are few and all between them occur; one above 0 with a long tail
        is positive where its logarithm is much less skewed; others are real. None is taken for
        bounded or circular.

        Args:
            values: Shape (rows, columns).
            names: The columns' names.
            categories: The categories' names of those columns that hold the numbers of categories.
        """
        named = categories or {}
        return Schema(
            tuple(
                Column(name, "categorical", categories=tuple(named[name]))
                if name in named
                else _inferred(name, values[:, i])
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
        for name, entry in entries.items():
            if name not in names:
                raise ValueError(
                    f"Expected the schema to tell of columns of the table; got {name!r}, which is "
                    f"none of {', '.join(names[:10])}"
                )
            try:
                known = {**entry, "categories": tuple(entry.get("categories", ()))}
                found[name] = Column(name, **known)
            except (AttributeError, TypeError):
                raise ValueError(
                    f"Expected kind, low, high and categories for column {name!r}; got {entry!r}"
                ) from None
        return found

    def with_columns(self, changes: Mapping[str, Column]) -> Schema:
        """The schema with other columns of these names."""
        return Schema(tuple(changes.get(column.name, column) for column in self.columns))

    @property
    def width(self) -> int:
        """The number of columns that are modelled."""
        return sum(column.width for column in self.columns)

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
            Beside(layers, columns)
            for layers, columns in pairs
            if not all(isinstance(layer, Keep) for layer in layers)
        ]


def _inferred(name: str, values: Array) -> Column:
    """A column of numbers by its looks."""
    if (values == np.floor(values)).all():
        distinct = np.unique(values)
        low, high = float(distinct[0]), float(distinct[-1])
        complete = len(distinct) == high - low + 1
        if 2 <= len(distinct) <= FEW and complete:
            return Column(name, "integer", low, high)
        return Column(name, "integer")
    skewed = float(skew(values))
    if skewed > SKEWED and values.min() > 0 and abs(float(skew(np.log(values)))) < skewed / 2:
        return Column(name, "positive")
    return Column(name)


def _continuous(column: Column) -> Layer:
    """From what is modelled to numbers within the bounds, not yet whole."""
    if column.kind == "categorical":
        return Keep(column.width)
    if column.kind == "circular" and column.low is not None and column.high is not None:
        return Circular(1, column.low, column.high)
    if column.high is not None and column.low is not None:
        return Bounded([column.low], [column.high + (column.kind == "integer")])
    if column.kind == "positive" or column.low is not None:
        return Positive([column.low or 0.0])
    return Keep(1)


def _discrete(column: Column, values: Array) -> Layer:
    """From these to whole numbers and categories; a category that does not occur has some share."""
    if column.kind == "integer":
        return Dequantize(1)
    if column.kind == "categorical":
        counts = np.bincount(values.astype(np.int64), minlength=len(column.categories))
        shares: list[float] = ((counts + 0.5) / (counts + 0.5).sum()).tolist()
        return Argmax(shares)
    return Keep(1)
