"""The coding of a table: the coordinates of its rows, fitted to those that are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from math import inf
from typing import Any, NamedTuple

import numpy as np

from cnf.datasets.reading import drop_option
from cnf.layers.columns.bounded import INTERVAL_MARGIN
from cnf.tables.coordinates import (
    COORDINATES,
    Angular,
    Coded,
    Codes,
    Coordinate,
    Counted,
    Discrete,
    Flags,
    Mixed,
    count_without,
)
from cnf.tables.kinds import (
    CategoricalColumn,
    CircularColumn,
    ColumnKind,
    ConstantColumn,
    IntegerColumn,
    SpikeColumn,
    find_atoms,
    find_masses,
)
from cnf.tables.marginal import Array, Marginal, center
from cnf.tables.schema import Column, Schema

MAX_DISCRETE = 300  # values on a grid that all have a code, unless many occur once
MIN_VALUE_ROWS = 10  # of each in the mean: with fewer, what rows do not show is as likely
OTHER_NUMBERS = 601  # over a range, more than values with a code
OTHER_COPIES = 4  # of each, with different noise
MIN_BIN_VALUES = 8  # different values in a bin in the mean
MIN_EDGE_DISTANCE = 1e-6  # of the edges of bins, in standard deviations of the normal column


@dataclass(frozen=True)
class Coding:
    """The coordinates of a table's rows: a code for each column, and z within the bins.

    A row's log-probability is log p(codes) + log p(z | codes) + log |det|.

    Attributes:
        coordinates: One for each column that varies, in the table's order.
        filling: The value of each column that is constant, 0 for others.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> numbers = np.column_stack([rng.integers(0, 3, 1000), rng.normal(size=1000)])
        >>> schema = Schema((Column("n", "integer", 0), Column("x", "real")))
        >>> coding = Coding.fit(schema, numbers, bins=4)
        >>> coding.sizes, coding.first_bin, coding.continuous
        ((4, 4), (3, 0), (1,))
        >>> coded = coding.encode(numbers)
        >>> bool(np.allclose(coding.decode(coded.codes, coded.z), numbers))
        True
    """

    coordinates: tuple[Coordinate, ...]
    filling: tuple[float, ...]

    @staticmethod
    def fit(schema: Schema, numbers: Array, bins: int = 32) -> Coding:
        """Return the coordinates of a table.

        A gap has a code, "missing", in columns whose `gaps` are a value.

        Args:
            schema: The columns.
            numbers: Those of the training rows, finite or NaN for gaps, shape (rows, columns).
            bins: The most bins of a column, of equal mass.

        Raises:
            ValueError: No column varies, one has gaps alone, or there are no bins.
        """
        if bins < 1:
            raise ValueError(f"Expected at least 1 bin; got {bins}")
        found = (
            _fit_column(i, column, numbers[:, i], bins)
            for i, column in enumerate(schema.columns)
            if _varies(column)
        )
        filling = (0.0 if _varies(each) else float(each.low or 0.0) for each in schema.columns)
        coordinates = tuple(found)
        if not coordinates:
            raise ValueError("Expected a column that varies; got constants alone: leave them out")
        return Coding(coordinates, tuple(filling))

    @property
    def dim(self) -> int:
        """The number of the table's columns."""
        return len(self.filling)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of codes of each coordinate."""
        return tuple(each.size for each in self.coordinates)

    @property
    def first_bin(self) -> tuple[int, ...]:
        """The first code of each coordinate that is a bin; its size without bins."""
        return tuple(each.first_bin for each in self.coordinates)

    @property
    def features(self) -> tuple[Array | None, ...]:
        """Features (size, 2) of the codes of each coordinate, None for those without an order."""
        return tuple(each.features for each in self.coordinates)

    @property
    def continuous(self) -> tuple[int, ...]:
        """The coordinates with bins, and so with z."""
        return tuple(i for i, each in enumerate(self.coordinates) if each.continuous)

    def mostly_binned(self, numbers: Array) -> Flags:
        """Return which coordinates are of numbers on a line, half of which or more are in bins.

        Shapes: numbers (rows, columns), NaN for gaps → (coordinates,).
        """
        coded, linear = self.encode(numbers), [each.linear for each in self.coordinates]
        most = 2 * coded.present.sum(0) >= coded.known.sum(0)
        return np.asarray(np.array(linear) & most)

    def without_bins(self, some: Flags) -> Coding:
        """Return a coding in which some coordinates have one bin: z is the normal score."""
        coordinates = tuple(
            each.without_bins() if own and isinstance(each, Mixed) else each
            for each, own in zip(self.coordinates, some, strict=True)
        )
        return replace(self, coordinates=coordinates)

    def select(self, some: Flags) -> Coding:
        """Return the coding of some coordinates."""
        return replace(self, coordinates=tuple(compress(self.coordinates, some)))

    @property
    def noisy(self) -> bool:
        """Whether there are bins of numbers on grids, to which noise is added."""
        return any(each.noisy for each in self.coordinates)

    def encode(self, numbers: Array, uniforms: Array | None = None) -> Coded:
        """Return the coordinates of rows, (rows, coordinates).

        A value is not known that is another category, beyond bounds, or a gap (NaN) where gaps are
        no value. Of a grid the nearest number counts, of angles that of the same turn.

        Args:
            numbers: Shape (rows, columns).
            uniforms: Noise in (0, 1) for numbers on grids, of the same shape; 0.5 when None.
        """
        noise = np.full_like(numbers, 0.5) if uniforms is None else uniforms
        each = [c.encode(numbers[:, c.place], noise[:, c.place]) for c in self.coordinates]
        return Coded(*(np.stack(arrays, 1) for arrays in zip(*each, strict=True)))

    def nearest(self, numbers: Array) -> Array:
        """Return the nearest numbers (rows, columns) that have a code; NaN and categories stay."""
        found = numbers.copy()
        for each in self.coordinates:
            found[:, each.place] = each.nearest(numbers[:, each.place])
        return found

    @property
    def places(self) -> list[int]:
        """The table's column of each coordinate."""
        return [each.place for each in self.coordinates]

    def unseen(self, numbers: Array) -> Flags:
        """Return which values are gaps, NaN, that are no value, (rows, coordinates)."""
        values = np.array([each.gaps for each in self.coordinates])
        return np.asarray(np.isnan(numbers[:, self.places]) & ~values)

    def present(self, codes: Codes) -> Flags:
        """Return whether codes are those of bins, and so have z, (rows, coordinates)."""
        return np.asarray(codes >= np.array(self.first_bin, np.int64))

    def decode(self, codes: Codes, z: Array) -> Array:
        """Return the numbers (rows, columns) of codes and of z, both (rows, coordinates)."""
        numbers = np.tile(np.array(self.filling), (len(codes), 1))
        for i, each in enumerate(self.coordinates):
            numbers[:, each.place] = each.decode(codes[:, i], z[:, i])
        return numbers

    def json(self) -> dict[str, Any]:
        """Return what `of` reads, ready for JSON."""
        coordinates = [each.json() for each in self.coordinates]
        return {"coordinates": coordinates, "filling": list(self.filling)}

    @staticmethod
    def of(entries: Mapping[str, Any]) -> Coding:
        """Return the coordinates of an object in JSON."""
        coordinates = tuple(map(_coordinate_of, entries["coordinates"]))
        return Coding(coordinates, tuple(entries["filling"]))


def has_codes(schema: Schema, numbers: Array) -> bool:
    """Return whether a column is discrete, or has values that occur with a mass.

    These are gaps where they are a value, categories, few whole numbers of many rows, and what
    `find_masses` finds in a column of whole numbers or a spike, and `cnf.tables.kinds.find_atoms`
    in another one: a table with such a column is modelled codes first.

    Args:
        schema: The columns.
        numbers: Those of the rows, shape (rows, columns), NaN for gaps.

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=(100, 1))
        >>> schema = Schema((Column("x", "real"),))
        >>> has_codes(schema, numbers), has_codes(schema, np.maximum(numbers, 0.0))
        (False, True)
    """
    pairs = zip(schema.columns, numbers.T, strict=True)
    return any(_has_codes(column, each) for column, each in pairs if _varies(column))


def has_values(schema: Schema, numbers: Array) -> bool:
    """Return whether a column is one of numbers on a line, most of which have a density.

    Args:
        schema: The columns.
        numbers: Those of the rows, shape (rows, columns), NaN for gaps.

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=(100, 1))
        >>> schema = Schema((Column("x", "real"),))
        >>> has_values(schema, numbers), has_values(schema, np.maximum(numbers, 1.0))
        (True, False)
    """
    return bool(Coding.fit(schema, numbers, bins=1).mostly_binned(numbers).any())


def _varies(column: Column) -> bool:
    """Return whether a column has a coordinate, as a constant has whose gaps are a value."""
    return bool(column.width) or column.gaps == "value"


def _has_codes(column: Column, numbers: Array) -> bool:
    kind = column.of_kind
    if column.gaps == "value" or isinstance(kind, CategoricalColumn | SpikeColumn):
        return True
    numbers = numbers[~np.isnan(numbers)]
    distinct, counts = np.unique(numbers, return_counts=True)
    if isinstance(kind, IntegerColumn):
        few = _short_range(*_bounds(kind)) is not None or _are_few(distinct, len(numbers))
        return few or len(find_masses(distinct, counts)) > 0
    return bool(find_atoms(distinct, counts))


def _are_few(distinct: Array, rows: int) -> bool:
    """Return whether all of the different whole numbers of rows have a code."""
    return len(distinct) <= min(MAX_DISCRETE, rows // MIN_VALUE_ROWS)


def _short_range(low: float | None, high: float | None) -> Array | None:
    """Return the whole numbers from a bound to below another one; None of too many for codes."""
    if low is None or high is None or high - low > MAX_DISCRETE:
        return None
    return np.arange(low, high, dtype=np.float64)


class _Values(NamedTuple):
    """A column of the training rows, whose coordinate is fitted."""

    place: int
    numbers: Array
    masses: Array
    rest: Array  # without these; numbers that are spread over the range where there are none
    bins: int
    low: float | None
    high: float | None
    few: bool


def _fit_column(place: int, column: Column, numbers: Array, bins: int) -> Coordinate:
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        raise ValueError(
            f"Expected values in column {column.name!r}; got gaps alone: leave it out "
            f"({drop_option(column.name)})"
        )
    found = _fit_values(place, column, numbers, bins)
    if column.gaps == "unknown":
        return found
    first = found.first_bin
    scores = found.scores and (*found.scores[:first], (0.0, 0.0), *found.scores[first:])
    return replace(found, gaps=True, scores=scores)


def _fit_values(place: int, column: Column, numbers: Array, bins: int) -> Coordinate:
    kind = column.of_kind
    if isinstance(kind, ConstantColumn):
        return Discrete(place, (kind.value,), ())
    if isinstance(kind, CategoricalColumn):
        return Discrete(place, tuple(map(float, range(len(kind.names)))), ())
    low, high = _bounds(kind)
    whole = isinstance(kind, IntegerColumn)
    fit: Callable[[_Values], Coordinate] = _fit_mixed
    if whole:
        numbers, fit = np.rint(numbers), _fit_counted
    elif isinstance(kind, CircularColumn):
        first, last = kind.given_bounds
        numbers, fit = first + np.remainder(numbers - first, last - first), _fit_angular
    distinct, counts = np.unique(numbers, return_counts=True)
    if whole and (possible := _short_range(low, high)) is not None:
        return Discrete(place, tuple(possible.tolist()), _scores(numbers, possible))
    few = whole and _are_few(distinct, len(numbers))
    # Values that occur once tell of as many that have not occurred yet (Good and Turing).
    seen_again = distinct[counts > 1] if (counts == 1).sum() >= MIN_BIN_VALUES else distinct
    masses = seen_again if few else find_masses(distinct, counts)
    rest = numbers[~np.isin(numbers, masses)]
    if len(np.unique(rest)) < 2:
        others = _others(distinct, low, high, whole)
        return fit(_Values(place, numbers, distinct, others, 1, low, high, True))
    return fit(_Values(place, numbers, masses, rest, bins, low, high, False))


def _bounds(kind: ColumnKind) -> tuple[float | None, float | None]:
    """Return the bounds of numbers with a density, which for whole numbers have noise."""
    if isinstance(kind, CircularColumn):
        return kind.low, kind.high
    bounds = kind.continuous_layer().config()
    low, high = (bounds[name][0] if name in bounds else None for name in ("low", "high"))
    return low, high


def _others(values: Array, low: float | None, high: float | None, whole: bool) -> Array:
    """Return other numbers within bounds, over the values' range and a deviation beyond it.

    Of whole numbers, each is there several times, for the noise.
    """
    spread = max(float(values.std()), 1.0 if whole else 0.0) or 1.0
    least, most = (-inf if low is None else low), (inf if high is None else high)
    ends = max(least, values[0] - spread), min(most, values[-1] + spread)
    found = np.linspace(*ends, OTHER_NUMBERS)
    found = np.repeat(np.unique(np.rint(found)), OTHER_COPIES) if whole else found[1:-1]
    return found[~np.isin(found, values) & (found >= least) & (found < most)]


def _fit_mixed(given: _Values) -> Mixed:
    """Return the coordinate of numbers with a density; ends of an interval have one, too."""
    low, high, rest = given.low, given.high, given.rest
    margin = 0.0 if low is None or high is None else INTERVAL_MARGIN * (high - low)
    beyond = (
        bound if bound is None else bound + way * margin for bound, way in ((low, -1), (high, 1))
    )
    marginal = Marginal.fit(rest, *beyond)
    distinct = np.unique(rest)
    edges = _edges(rest, (distinct[:-1] + distinct[1:]) / 2, given.bins, marginal)
    scores = _scores(given.numbers, given.masses, rest, edges)
    least = float(np.nextafter(low, inf)) if low is not None and high is None else low
    values, ends = tuple(given.masses.tolist()), tuple(edges.tolist())
    return Mixed(given.place, values, scores, marginal, ends, least, high, given.few)


def _fit_counted(given: _Values) -> Counted:
    """Return the coordinate of whole numbers, the same in every call."""
    low, masses = given.low, given.masses
    counts = count_without(given.rest, masses)
    high = None if given.high is None else given.high - len(masses)
    marginal = Marginal.fit(counts + np.random.default_rng(0).random(len(counts)), low, high)
    edges = _edges(counts, np.unique(counts)[1:], given.bins, marginal)
    scores = _scores(given.numbers, masses, given.rest, edges, counts)
    values, ends = tuple(masses.tolist()), tuple(edges.tolist())
    return Counted(given.place, values, scores, marginal, ends, low, high, given.few)


def _fit_angular(given: _Values) -> Angular:
    """Return the coordinate of angles, which are cut at the ends."""
    found = _fit_mixed(given)
    low, high = found.low or 0.0, found.high or 0.0  # neither is None
    parts = (found.place, found.values, found.scores, found.marginal, found.edges)
    return Angular(*parts, low, float(np.nextafter(high, -inf)), found.few, high - low)


def _edges(values: Array, between: Array, bins: int, marginal: Marginal) -> Array:
    """Return the edges of bins of about equal mass, among those between neighbouring values.

    Args:
        values: Shape (rows,).
        between: Numbers between the different values, shape (different values − 1,).
        bins: The most bins.
        marginal: The map by which edges have to be apart.
    """
    count = min(bins, max(1, (len(between) + 1) // MIN_BIN_VALUES))
    quantiles = np.sort(values)[np.arange(1, count) * len(values) // count]
    places = np.searchsorted(np.unique(values), quantiles) - 1
    edges = between[np.unique(places[places >= 0])]
    s = np.round(marginal.forward(edges)[0] / MIN_EDGE_DISTANCE)
    return edges[np.unique(s, return_index=True)[1]]


def _scores(
    numbers: Array,
    masses: Array,
    rest: Array | None = None,
    edges: Array | None = None,
    points: Array | None = None,
) -> tuple[tuple[float, float], ...]:
    """Return the features of masses and of bins, at the median of the rest in each bin.

    Args:
        numbers: All of the training rows'.
        masses: Values with a code.
        rest: The other numbers; None without bins.
        edges: The edges of the bins.
        points: The rest as the edges count them; the rest when None.
    """
    centers = masses
    if rest is not None and edges is not None:
        bins = np.searchsorted(edges, rest if points is None else points, side="right")
        medians = [np.median(rest[bins == each]) for each in range(len(edges) + 1)]
        centers = np.concatenate([masses, medians])
    ordered, (loc, scale) = np.sort(numbers), center(numbers)
    ranks = np.searchsorted(ordered, centers) + np.searchsorted(ordered, centers, side="right")
    squashed = np.tanh((centers - loc) / (2 * scale))
    return tuple(zip((ranks / len(numbers) - 1).tolist(), squashed.tolist(), strict=True))


def _coordinate_of(entry: Mapping[str, Any]) -> Coordinate:
    attributes = {name: _tuples(each) for name, each in entry.items() if name != "kind"}
    if "marginal" in attributes:
        given = attributes["marginal"]
        attributes["marginal"] = Marginal(**{name: _tuples(each) for name, each in given.items()})
    return COORDINATES[entry["kind"]](**attributes)


def _tuples(value: Any) -> Any:
    """Return lists as tuples, and others as they are."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
