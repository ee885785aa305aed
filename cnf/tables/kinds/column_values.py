"""The values of a column as a table has them, and what they look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.column_types import LARGEST_EXACT, ColumnType
from cnf.tables.kinds.lattice import EPSILON, Array, Lattice

MIN_LATTICE_ROWS = 10  # fewer numbers may be multiples of a step by chance
MAX_WHOLE_REAL = 1e12  # larger real numbers have few digits after the point

MAX_COUNT = 2.0**22  # of steps, to which single precision leaves room for noise
MIN_TIES = 0.1  # share of decimals that occur further up, from which they have a mass

MASS_SHARE = 0.002  # of the rows, from which a value has a mass
MASS_ROWS = 20  # that show a mass
MIN_MASS_ROWS, SMALL_MASS_SHARE = 10, 0.02  # of the rows of a small table that show one
MAX_MASSES = 128  # of a column
MIN_ATOM_RATIO = 10  # of an atom's rows to those of another value in the mean
MIN_ATOM_LEAD = 3  # and to the most of them

Atoms = tuple[tuple[float, float], ...]


class Looks(NamedTuple):
    """The attributes of a column that its values look like."""

    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    step: float | None = None
    origin: float | None = None
    atoms: Atoms = ()


@dataclass(frozen=True, eq=False)
class ColumnValues:
    """The values of a column of a table.

    Attributes:
        name: The column's name.
        values: Shape (rows,): numbers, or codes of the categories; NaN for gaps.
        categories: The categories' texts, None for numbers.
        type: The type of the values.
        rounded: Whether to look for steps and atoms.
    """

    name: str
    values: Array
    categories: tuple[str, ...] | None = None
    type: ColumnType = field(default_factory=ColumnType)
    rounded: bool = True

    @cached_property
    def known(self) -> Array:
        """The values that are finite."""
        return self.values[np.isfinite(self.values)]

    @cached_property
    def distinct(self) -> tuple[Array, NDArray[np.intp]]:
        """The different known values in order, and how often each occurs."""
        return np.unique(self.known, return_counts=True)

    @property
    def epsilon(self) -> float:
        """The relative precision of the values."""
        name = self.type.dtype.lower().partition("[")[0]
        return float(np.finfo(name).eps) if name in ("float16", "float32") else EPSILON

    @cached_property
    def whole(self) -> bool:
        """Whether all numbers are whole, and not by their size."""
        exact = self.type.family in ("whole", "date", "duration")
        largest = np.abs(self.known).max(initial=0.0)
        return bool(
            largest < (LARGEST_EXACT if exact else MAX_WHOLE_REAL)
            and (self.known == np.floor(self.known)).all()
        )

    @cached_property
    def lattice(self) -> Lattice | None:
        """The lattice of the numbers; None without one, and of too few numbers."""
        if not self.rounded or len(self.known) < MIN_LATTICE_ROWS:
            return None
        return Lattice.of(self.distinct[0], 0.0 if self.whole else self.epsilon)

    @cached_property
    def has_ties(self) -> bool:
        """Whether decimals are multiples of a step with many ties, not counting atoms."""
        if self.lattice is None:
            return False
        distinct, counts = self.distinct
        span = (distinct[-1] - distinct[0]) / self.lattice.step
        atoms = len(find_atoms(distinct, counts))
        others = len(distinct) - atoms
        rows = np.sort(counts)[:others].sum()
        return bool(span <= MAX_COUNT and (rows < MIN_MASS_ROWS or others < (1 - MIN_TIES) * rows))

    @property
    def atoms(self) -> Atoms:
        """The values with a mass beside a density, each with its share of the rows."""
        if not self.rounded or self.whole or self.has_ties:
            return ()
        return _with_shares(*self.distinct, find_masses(*self.distinct))


def find_masses(distinct: Array, counts: NDArray[np.intp]) -> Array:
    """Return the values that occur too often for a density, in order.

    They have at least 0.2 % of the rows and 20 rows, or 10 where these are 2 %; at most the 128
    most frequent ones. A spike's atoms are such values, and so are those with a code each in a
    column with bins.

    Args:
        distinct: Different values in order, shape (values,).
        counts: How often each occurs.

    Example:
        >>> find_masses(np.array([0.0, 1.0, 2.0]), np.array([50, 9, 10])).tolist()
        [0.0, 2.0]
    """
    often = np.flatnonzero(counts >= _mass_rows(counts))
    most = often[np.argsort(-counts[often], kind="stable")[:MAX_MASSES]]
    return distinct[np.sort(most)]


def find_atoms(distinct: Array, counts: NDArray[np.intp]) -> Atoms:
    """Return the masses that stand out from all other values, with their shares.

    Those of rounded numbers do not, which are modelled as a density where the schema says so.

    Example:
        >>> rows = np.concatenate([np.zeros(60), np.random.default_rng(0).normal(size=40)])
        >>> find_atoms(*np.unique(rows, return_counts=True))
        ((0.0, 0.6),)
    """
    order = np.argsort(-counts, kind="stable")
    often = counts[order]
    left = np.arange(len(often))[::-1]  # values that are rarer than each
    mean = (counts.sum() - often.cumsum()) / np.maximum(left, 1)
    most = np.append(often[1:], 0)
    least = np.maximum(MIN_ATOM_RATIO * mean, MIN_ATOM_LEAD * most)
    enough = often >= np.maximum(least, _mass_rows(counts))
    number = int(np.flatnonzero(enough)[-1]) + 1 if enough.any() else 0
    return _with_shares(distinct, counts, distinct[np.sort(order[:number])])


def _mass_rows(counts: NDArray[np.intp]) -> float:
    """Return the number of rows from which a value has a mass."""
    rows = counts.sum()
    least = min(MASS_ROWS, max(MIN_MASS_ROWS, SMALL_MASS_SHARE * rows))
    return float(max(MASS_SHARE * rows, least))


def _with_shares(distinct: Array, counts: NDArray[np.intp], values: Array) -> Atoms:
    shares = counts[np.searchsorted(distinct, values)] / counts.sum()
    return tuple(zip(values.tolist(), shares.tolist(), strict=True))
