"""Coordinates of the rows of a mixed table: a code for each column, and a number within its bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf, log, pi
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr, ndtri_exp

from cnf.layers.columns.bounded import INTERVAL_MARGIN
from cnf.layers.scalings.quantiles import normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic
from cnf.tables.kinds import CategoricalColumn, IntegerColumn
from cnf.tables.schema import Column, Schema

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

MASS_SHARE = 0.002  # of the rows, from which a value has a code
MASS_ROWS = 20  # fewer rows show no mass
MAX_MASSES = 128  # of a column with bins
MAX_DISCRETE = 300  # values on a grid that all have a code
MIN_BIN_VALUES = 8  # different values in a bin in the mean
MIN_EDGE_DISTANCE = 1e-6  # of the edges of bins, in standard deviations of the normal column
CORE = (0.01, 0.99)  # quantiles between which a column is standardised
LOG_SMALLEST = -40.0  # log of a share of a bin that double precision does not tell from 0
MAX_EXPONENT = 700.0  # that double precision does not overflow at


class CodedColumn(NamedTuple):
    """The coordinate of rows in one column, each entry of shape (rows,)."""

    codes: Codes
    z: Array
    present: Flags
    log_det: Array
    log_alone: Array
    known: Flags


@dataclass(frozen=True)
class Coded:
    """The coordinates of rows.

    Attributes:
        codes: Shape (rows, coordinates); 0 where a value is unknown.
        z: Values within the bins, standard normal for rows like the training ones, shape
            (rows, continuous coordinates); 0 where absent.
        present: Whether a value is in a bin, and so has z, shape (rows, continuous coordinates).
        log_det: Σ ln ∂z/∂x over the present ones, shape (rows,).
        log_alone: ln p(x | codes) where z is independent and standard normal, shape (rows,): of
            numbers on grids the log of their mass, without noise.
        known: Whether all of a row's values have a code, shape (rows,).
    """

    codes: Codes
    z: Array
    present: Flags
    log_det: Array
    log_alone: Array
    known: Flags


@dataclass(frozen=True)
class Marginal:
    """The increasing map s = Φ⁻¹(F(x)) of a column with the distribution function F.

    Numbers above a bound are modelled by their logarithm, and between two by their log odds; then
    standardised, and mapped by a curve with exponential tails.

    Attributes:
        low: Lower bound, exclusive; None for no bound.
        high: Upper bound, exclusive; None for no bound.
        loc: Center of the numbers on the line.
        scale: Width of these.
        knots: Positions, values and slopes of the curve's knots.

    Example:
        >>> x = np.random.default_rng(0).exponential(size=1000)
        >>> marginal = Marginal.fit(x, 0.0, None)
        >>> s, _ = marginal.forward(x)
        >>> bool(abs(s.std() - 1) < 0.05), bool(np.allclose(marginal.inverse(s), x))
        (True, True)
    """

    low: float | None
    high: float | None
    loc: float
    scale: float
    knots: tuple[tuple[float, ...], ...]

    @staticmethod
    def fit(values: Array, low: float | None, high: float | None) -> Marginal:
        """Return the map of values (rows,) between bounds, at least two of them distinct."""
        start = Marginal(low, high, 0.0, 1.0, ())
        line = start._to_line(values)[0]
        loc, scale = _center(line)
        curve = normalizing_curve((line - loc) / scale, np.ones(len(line)))
        knots = tuple(tuple(each[0].tolist()) for each in (curve.x, curve.y, curve.slope))
        return Marginal(low, high, loc, scale, knots)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return s and ln ∂s/∂x at numbers x, all of shape (rows,)."""
        line, log_slope = self._to_line(x)
        standard = torch.from_numpy((line - self.loc) / self.scale).unsqueeze(0)
        s, log_curve = self._curve.forward(standard)
        return s[0].numpy(), log_slope + log_curve[0].numpy() - log(self.scale)

    def inverse(self, s: Array) -> Array:
        """Return the numbers x of s, both of shape (rows,)."""
        standard = self._curve.inverse(torch.from_numpy(s).unsqueeze(0))[0].numpy()
        return self._from_line(self.loc + self.scale * standard)

    @cached_property
    def _curve(self) -> RationalQuadratic:
        x, y, slope = (torch.tensor([each], dtype=torch.float64) for each in self.knots)
        return RationalQuadratic(x, y, slope, torch.tensor([[x.shape[1] - 1]]))

    def _to_line(self, x: Array) -> tuple[Array, Array]:
        """Return numbers on the line, and the logarithm of the map's slope."""
        if self.low is None:
            return x, np.zeros(len(x))
        x = np.maximum(x, np.nextafter(self.low, inf))
        above = np.log(x - self.low)
        if self.high is None:
            return above, -above
        below = np.log(self.high - np.minimum(x, np.nextafter(self.high, -inf)))
        return above - below, log(self.high - self.low) - above - below

    def _from_line(self, line: Array) -> Array:
        if self.low is None:
            return line
        if self.high is None:
            return np.asarray(self.low + np.exp(np.minimum(line, MAX_EXPONENT)))
        return np.asarray(self.low + (self.high - self.low) * expit(line))


@dataclass(frozen=True)
class Coordinate:
    """A coordinate: the code of a column's values, and their place within bins where it has these.

    Attributes:
        place: The table's column, counted from 0.
        values: The values that have a code of their own, in order.
        scores: Two features of each code in [−1, 1]: the middle rank of its values among the
            training rows, and a squashed standardised value; empty for codes without an order.
    """

    place: int
    values: tuple[float, ...]
    scores: tuple[tuple[float, float], ...]

    kind: ClassVar[str] = "discrete"
    continuous: ClassVar[bool] = False
    noisy: ClassVar[bool] = False

    @property
    def first_bin(self) -> int:
        """The number of codes of single values, which come before those of bins."""
        return len(self.values)

    @property
    def size(self) -> int:
        """The number of codes."""
        return self.first_bin

    @property
    def features(self) -> Array | None:
        """Features of the codes, shape (size, 2); None for codes without an order."""
        return np.array(self.scores) if self.scores else None

    def json(self) -> dict[str, Any]:
        """Return the entry that `Coding.of` reads, ready for JSON."""
        return {"kind": self.kind, **asdict(self)}

    def encode(self, numbers: Array, uniforms: Array) -> CodedColumn:
        """Return the coordinate of numbers (rows,), with noise in (0, 1) for cells of grids."""
        raise NotImplementedError

    def decode(self, codes: Codes, z: Array) -> Array:
        """Return the numbers (rows,) of codes and of places within the bins."""
        raise NotImplementedError

    @cached_property
    def _masses(self) -> Array:
        return np.array(self.values, np.float64)

    def _find(self, numbers: Array) -> tuple[Codes, Flags]:
        """Return the codes of single values, and whether numbers have one."""
        if not self.values:
            return np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.bool_)
        codes = np.minimum(np.searchsorted(self._masses, numbers), len(self.values) - 1)
        return codes, np.asarray(self._masses[codes] == numbers)


@dataclass(frozen=True)
class Discrete(Coordinate):
    """A coordinate of single values alone: categories, or few values on a grid."""

    def encode(self, numbers: Array, uniforms: Array) -> CodedColumn:
        codes, known = self._find(numbers)
        zeros = np.zeros(len(numbers))
        absent = np.zeros_like(known)
        return CodedColumn(np.where(known, codes, 0), zeros, absent, zeros, zeros, known)

    def decode(self, codes: Codes, z: Array) -> Array:
        return self._masses[codes]


@dataclass(frozen=True)
class Mixed(Coordinate):
    """A coordinate of numbers with a density, of which some occur with a mass.

    With the column's marginal s = g(x) and the bin (a, b) of s,

        z = Φ⁻¹((Φ(s) − Φ(a)) / (Φ(b) − Φ(a))),    φ(z) ∂z/∂x = φ(s) g'(x) / (Φ(b) − Φ(a)),

    which integrates to 1 over the bin.

    Attributes:
        marginal: The map g.
        edges: The numbers between the bins, increasing.
        low: Least number; None for no bound.
        high: Largest number; None for no bound.
    """

    marginal: Marginal
    edges: tuple[float, ...]
    low: float | None
    high: float | None

    kind: ClassVar[str] = "mixed"
    continuous: ClassVar[bool] = True

    @property
    def size(self) -> int:
        return self.first_bin + len(self.edges) + 1

    def encode(self, numbers: Array, uniforms: Array) -> CodedColumn:
        codes, single = self._find(numbers)
        points, possible = self._points(numbers, uniforms)
        present = possible & ~single
        bins = np.searchsorted(self.edges, points, side="right")
        z, log_det, log_alone = (np.zeros(len(numbers)) for _ in range(3))
        z[present], log_det[present] = self._within(points[present], bins[present])
        log_alone[present] = self._alone(
            points[present], bins[present], z[present], log_det[present]
        )
        codes = np.where(single, codes, np.where(present, self.first_bin + bins, 0))
        return CodedColumn(codes, z, present, log_det, log_alone, single | present)

    def decode(self, codes: Codes, z: Array) -> Array:
        numbers, binned = np.zeros(len(codes)), codes >= self.first_bin
        numbers[~binned] = self._masses[codes[~binned]]
        bins = codes[binned] - self.first_bin
        least, most = np.array([self._least, *self.edges]), np.array([*self.edges, self._most])
        numbers[binned] = self._numbers(self._point(bins, z[binned]), least[bins], most[bins])
        return numbers

    def _points(self, numbers: Array, uniforms: Array) -> tuple[Array, Flags]:
        """Return points with a density, and whether numbers are possible."""
        return numbers, np.isfinite(numbers) & (numbers >= self._least) & (numbers <= self._most)

    def _numbers(self, points: Array, least: Array, most: Array) -> Array:
        """Return the numbers of points in bins from the least to the most."""
        return np.clip(points, least, most)

    @property
    def _least(self) -> float:
        return -inf if self.low is None else self.low

    @property
    def _most(self) -> float:
        return inf if self.high is None else self.high

    @cached_property
    def _ends(self) -> tuple[Array, Array, Array]:
        """The ends a and b of the bins, and ln (Φ(b) − Φ(a))."""
        inner = self.marginal.forward(np.array(self.edges, np.float64))[0]
        a, b = np.array([-inf, *inner]), np.array([*inner, inf])
        return a, b, _log_mass(a, b)

    def _within(self, points: Array, bins: Codes) -> tuple[Array, Array]:
        """Return z and ln ∂z/∂x of points in bins."""
        a, b, log_mass = (each[bins] for each in self._ends)
        s, log_slope = self.marginal.forward(points)
        s = np.clip(s, a, b)
        log_below = _held(_log_mass(a, s) - log_mass, a)
        log_above = _held(_log_mass(s, b) - log_mass, b)
        z = _normal(log_below, log_above)
        return z, log_slope - log_mass + 0.5 * (z * z - s * s)

    def _alone(self, points: Array, bins: Codes, z: Array, log_det: Array) -> Array:
        """Return the log-density of points in bins where z is standard normal."""
        return log_det - 0.5 * (z * z + log(2 * pi))

    def _point(self, bins: Codes, z: Array) -> Array:
        """Return the points in bins with z."""
        a, b, log_mass = (each[bins] for each in self._ends)
        log_below = np.logaddexp(log_ndtr(a), log_ndtr(z) + log_mass)
        log_above = np.logaddexp(log_ndtr(-b), log_ndtr(-z) + log_mass)
        return self.marginal.inverse(_normal(log_below, log_above))


@dataclass(frozen=True)
class Counted(Mixed):
    """A coordinate of whole numbers, of which some have a code and others share bins.

    The former are taken out of the count, k' = k − #{values < k}, and noise is added to the latter,
    x = k' + u. Edges and bounds are whole, and so no number is in two bins.
    """

    kind: ClassVar[str] = "counted"
    noisy: ClassVar[bool] = True

    def _points(self, numbers: Array, uniforms: Array) -> tuple[Array, Flags]:
        counts = recount(numbers, self._masses)
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        possible = whole & (counts >= self._least) & (counts + 1 <= self._most)
        # Noise is lost on large counts: these stay below the next one.
        points = np.minimum(counts + uniforms, np.nextafter(counts + 1, -inf))
        return points, possible

    def _alone(self, points: Array, bins: Codes, z: Array, log_det: Array) -> Array:
        """Return the log of the masses of whole numbers where z is standard normal."""
        a, b, log_mass = (each[bins] for each in self._ends)
        begin, end = (self.marginal.forward(np.floor(points) + each)[0] for each in (0.0, 1.0))
        return _log_mass(np.clip(begin, a, b), np.clip(end, a, b)) - log_mass

    def _numbers(self, points: Array, least: Array, most: Array) -> Array:
        counts = np.clip(np.floor(points), least, most - 1)
        apart = self._masses - np.arange(len(self._masses))
        return np.asarray(counts + np.searchsorted(apart, counts, side="right"))


COORDINATES: dict[str, type[Coordinate]] = {each.kind: each for each in (Discrete, Mixed, Counted)}


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
        ((3, 4), (3, 0), (1,))
        >>> coded = coding.encode(numbers)
        >>> bool(np.allclose(coding.decode(coded.codes, coded.z), numbers))
        True
    """

    coordinates: tuple[Coordinate, ...]
    filling: tuple[float, ...]

    @staticmethod
    def fit(schema: Schema, numbers: Array, bins: int = 32) -> Coding:
        """Return the coordinates of a table.

        Args:
            schema: The columns.
            numbers: Those of the training rows, finite, shape (rows, columns).
            bins: The most bins of a column, of equal mass.

        Raises:
            ValueError: A column is circular, or there are no bins.
        """
        if bins < 1:
            raise ValueError(f"Expected at least 1 bin; got {bins}")
        found = (
            _fit_column(i, column, numbers[:, i], bins)
            for i, column in enumerate(schema.columns)
            if column.width
        )
        filling = (0.0 if each.width else float(each.low or 0.0) for each in schema.columns)
        return Coding(tuple(found), tuple(filling))

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
        """The first code of each coordinate that is a bin; the size where there is none."""
        return tuple(each.first_bin for each in self.coordinates)

    @property
    def features(self) -> tuple[Array | None, ...]:
        """Features (size, 2) of the codes of each coordinate, None for those without an order."""
        return tuple(each.features for each in self.coordinates)

    @property
    def continuous(self) -> tuple[int, ...]:
        """The coordinates with bins, and so with z."""
        return tuple(i for i, each in enumerate(self.coordinates) if each.continuous)

    @property
    def noisy(self) -> bool:
        """Whether there are bins of numbers on grids, to which noise is added."""
        return any(each.noisy for each in self.coordinates)

    def encode(self, numbers: Array, uniforms: Array | None = None) -> Coded:
        """Return the coordinates of rows.

        A value that the training rows show to be impossible is not known: another value on a grid
        of few, one beyond bounds, or a gap (NaN).

        Args:
            numbers: Shape (rows, columns).
            uniforms: Noise in (0, 1) for numbers on grids, of the same shape; 0.5 when None.
        """
        noise = np.full_like(numbers, 0.5) if uniforms is None else uniforms
        each = [c.encode(numbers[:, c.place], noise[:, c.place]) for c in self.coordinates]
        continuous = [each[i] for i in self.continuous]
        empty = np.empty((len(numbers), 0))
        return Coded(
            np.column_stack([empty.astype(np.int64), *(one.codes for one in each)]),
            np.column_stack([empty, *(one.z for one in continuous)]),
            np.column_stack([empty.astype(np.bool_), *(one.present for one in continuous)]),
            sum((one.log_det for one in continuous), np.zeros(len(numbers))),
            sum((one.log_alone for one in continuous), np.zeros(len(numbers))),
            np.logical_and.reduce([np.ones(len(numbers), np.bool_), *(one.known for one in each)]),
        )

    def present(self, codes: Codes) -> Flags:
        """Return whether coordinates with bins have z, (rows, coordinates) → (rows, continuous)."""
        places = [*self.continuous]
        return codes[:, places] >= np.array(self.first_bin, np.int64)[places]

    def decode(self, codes: Codes, z: Array) -> Array:
        """Return the numbers (rows, columns) of codes (rows, coordinates) and of z."""
        numbers = np.tile(np.array(self.filling), (len(codes), 1))
        columns = dict(zip(self.continuous, z.T, strict=True))
        for i, each in enumerate(self.coordinates):
            within = columns.get(i, np.zeros(len(codes)))
            numbers[:, each.place] = each.decode(codes[:, i], within)
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


def find_masses(distinct: Array, counts: NDArray[np.intp]) -> Array:
    """Return the values that occur often enough for a code, in order.

    These are at most the `MAX_MASSES` most frequent ones. `cnf.tables.kinds.find_atoms`, by which a
    schema tells a spike from a grid, is stricter: those have to stand out from the others.

    Args:
        distinct: Different values in order, shape (values,).
        counts: How often each occurs.

    Example:
        >>> find_masses(np.array([0.0, 1.0, 2.0]), np.array([50, 19, 20])).tolist()
        [0.0, 2.0]
    """
    often = np.flatnonzero(counts >= max(MASS_SHARE * counts.sum(), MASS_ROWS))
    most = often[np.argsort(-counts[often], kind="stable")[:MAX_MASSES]]
    return distinct[np.sort(most)]


def recount(numbers: Array, masses: Array) -> Array:
    """Return whole numbers counted without others, k − #{masses < k}.

    Example:
        >>> recount(np.array([2.0, 4.0, 9.0]), np.array([3.0, 5.0])).tolist()
        [2.0, 3.0, 7.0]
    """
    return np.asarray(numbers - np.searchsorted(masses, numbers))


def _fit_column(place: int, column: Column, numbers: Array, bins: int) -> Coordinate:
    kind = column.of_kind
    if isinstance(kind, CategoricalColumn):
        return Discrete(place, tuple(map(float, range(len(kind.names)))), ())
    layer = kind.continuous_layer()
    if layer.circular:
        raise ValueError(
            f"Expected columns without angles in a mixed table; got column {column.name!r}, which "
            "is circular: give it another kind, or leave it out"
        )
    bounds = layer.config()
    low: float | None = bounds["low"][0] if "low" in bounds else None
    high: float | None = bounds["high"][0] if "high" in bounds else None
    whole = isinstance(kind, IntegerColumn)
    distinct, counts = np.unique(numbers, return_counts=True)
    few = whole and len(distinct) <= MAX_DISCRETE
    if whole and low is not None and high is not None and high - low <= MAX_DISCRETE:
        distinct, few = np.arange(low, high, dtype=np.float64), True
    masses = distinct if few else find_masses(distinct, counts)
    rest = numbers[~np.isin(numbers, masses)]
    if few or len(np.unique(rest)) < 2:
        return Discrete(place, tuple(distinct.tolist()), _scores(numbers, distinct))
    fit = _fit_counted if whole else _fit_mixed
    return fit(place, numbers, masses, rest, bins, low, high)


def _fit_mixed(
    place: int,
    numbers: Array,
    masses: Array,
    rest: Array,
    bins: int,
    low: float | None,
    high: float | None,
) -> Mixed:
    """Return the coordinate of numbers with a density; ends of an interval have one, too."""
    margin = 0.0 if low is None or high is None else INTERVAL_MARGIN * (high - low)
    beyond = (
        bound if bound is None else bound + way * margin for bound, way in ((low, -1), (high, 1))
    )
    marginal = Marginal.fit(rest, *beyond)
    distinct = np.unique(rest)
    edges = _edges(rest, (distinct[:-1] + distinct[1:]) / 2, bins, marginal)
    scores = _scores(numbers, masses, rest, edges)
    least = float(np.nextafter(low, inf)) if low is not None and high is None else low
    return Mixed(
        place, tuple(masses.tolist()), scores, marginal, tuple(edges.tolist()), least, high
    )


def _fit_counted(
    place: int,
    numbers: Array,
    masses: Array,
    rest: Array,
    bins: int,
    low: float | None,
    high: float | None,
) -> Counted:
    """Return the coordinate of whole numbers, the same in every call."""
    counts = recount(rest, masses)
    high = None if high is None else high - len(masses)
    marginal = Marginal.fit(counts + np.random.default_rng(0).random(len(counts)), low, high)
    edges = _edges(counts, np.unique(counts)[1:], bins, marginal)
    scores = _scores(numbers, masses, rest, edges, counts)
    return Counted(
        place, tuple(masses.tolist()), scores, marginal, tuple(edges.tolist()), low, high
    )


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
    ordered, (loc, scale) = np.sort(numbers), _center(numbers)
    ranks = np.searchsorted(ordered, centers) + np.searchsorted(ordered, centers, side="right")
    squashed = np.tanh((centers - loc) / (2 * scale))
    return tuple(zip((ranks / len(numbers) - 1).tolist(), squashed.tolist(), strict=True))


def _center(values: Array) -> tuple[float, float]:
    """Return the median and the standard deviation of values without their tails."""
    core = np.clip(values, *np.quantile(values, CORE))
    scale = float(core.std()) or float(values.std()) or 1.0
    return float(np.median(values)), scale


def _log_mass(a: Array, b: Array) -> Array:
    """Return ln (Φ(b) − Φ(a)) for a ≤ b, −∞ where they are equal."""
    left = b < -a
    more, less = log_ndtr(np.where(left, b, -a)), log_ndtr(np.where(left, a, -b))
    with np.errstate(divide="ignore"):
        return np.asarray(more + np.log(-np.expm1(np.minimum(less - more, 0.0))))


def _held(log_share: Array, end: Array) -> Array:
    """Return shares of bins that are not 0 at an end that is finite."""
    return np.where(np.isfinite(end), np.maximum(log_share, LOG_SMALLEST), log_share)


def _normal(log_below: Array, log_above: Array) -> Array:
    """Return Φ⁻¹ of a probability, given its logarithm and that of its complement."""
    below = log_below < log_above
    z = ndtri_exp(np.minimum(np.where(below, log_below, log_above), -log(2)))
    return np.where(below, z, -z)


def _coordinate_of(entry: Mapping[str, Any]) -> Coordinate:
    attributes = {name: _tuples(each) for name, each in entry.items() if name != "kind"}
    if "marginal" in attributes:
        given = attributes["marginal"]
        attributes["marginal"] = Marginal(**{name: _tuples(each) for name, each in given.items()})
    return COORDINATES[entry["kind"]](**attributes)


def _tuples(value: Any) -> Any:
    """Return lists as tuples, and others as they are."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
