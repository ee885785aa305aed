"""Coordinates of columns: a code, and a place within its bin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf, log, nan, pi
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp

from cnf.tables.marginal import Array, Marginal

Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

NORMAL_CONSTANT = 0.5 * log(2 * pi)  # of −log N(0; 0, 1), which an absent coordinate has
MIN_CELL = 1e-6  # of a cell, relative, whose mass is a difference and not a density
LOG_SMALLEST = -40.0  # log of a share of a bin that double precision does not tell from 0


class Coded(NamedTuple):
    """The coordinates of rows in one column, (rows,), or in all of them, (rows, coordinates).

    Attributes:
        codes: The codes, 0 where a value has none.
        z: Places within the bins, standard normal for rows like the training ones; 0 where absent.
        present: Whether a value is in a bin, and so has z.
        log_det: ln ∂z/∂x, 0 where absent.
        log_alone: ln p(x | code) where z is standard normal: of a number on a grid the log of its
            mass, without noise.
        known: Whether a value has a code, as a gap (NaN) has where gaps are a value.
    """

    codes: Codes
    z: Array
    present: Flags
    log_det: Array
    log_alone: Array
    known: Flags


@dataclass(frozen=True)
class Coordinate:
    """A coordinate: the code of a column's values, and their place within bins where it has these.

    Attributes:
        place: The table's column, counted from 0.
        values: The values that have a code each, in order.
        scores: Two features of each code in [−1, 1]: the middle rank of its values among the
            training rows, and a squashed standardised value; empty for codes without an order.
        gaps: Whether a gap, NaN, is one more value, the last of those with a code each.
    """

    place: int
    values: tuple[float, ...]
    scores: tuple[tuple[float, float], ...]
    gaps: bool = field(default=False, kw_only=True)

    kind: ClassVar[str] = "discrete"

    @property
    def continuous(self) -> bool:
        """Whether a flow may model the places within bins."""
        return False

    @property
    def linear(self) -> bool:
        """Whether places are numbers on a line, that a flow without bins may model."""
        return self.continuous

    @property
    def noisy(self) -> bool:
        """Whether these places have noise."""
        return False

    @property
    def first_bin(self) -> int:
        """The number of codes of single values, which come before those of bins."""
        return len(self.values) + self.gaps

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

    def encode(self, numbers: Array, uniforms: Array) -> Coded:
        """Return the coordinate of numbers (rows,), with noise in (0, 1) for cells of grids."""
        raise NotImplementedError

    def decode(self, codes: Codes, z: Array) -> Array:
        """Return the numbers (rows,) of codes and of places within the bins."""
        raise NotImplementedError

    def nearest(self, numbers: Array) -> Array:
        """Return the nearest numbers (rows,) that have a code; NaN and categories stay."""
        raise NotImplementedError

    @cached_property
    def _masses(self) -> Array:
        return np.array([*self.values, nan] if self.gaps else self.values, np.float64)

    def _find(self, numbers: Array) -> tuple[Codes, Flags]:
        """Return the codes of single values, and whether numbers have one."""
        if not self.first_bin:
            return np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.bool_)
        codes = np.minimum(np.searchsorted(self._masses, numbers), self.first_bin - 1)
        found = self._masses[codes]
        return codes, np.asarray((found == numbers) | (np.isnan(found) & np.isnan(numbers)))


@dataclass(frozen=True)
class Discrete(Coordinate):
    """A coordinate of single values alone: categories, or all whole numbers between two bounds."""

    def encode(self, numbers: Array, uniforms: Array) -> Coded:
        if self._whole:
            numbers = np.rint(numbers)
        codes, known = self._find(numbers)
        zeros = np.zeros(len(numbers))
        absent = np.zeros_like(known)
        return Coded(np.where(known, codes, 0), zeros, absent, zeros, zeros, known)

    def decode(self, codes: Codes, z: Array) -> Array:
        return self._masses[codes]

    def nearest(self, numbers: Array) -> Array:
        if not self.scores:
            return numbers
        between = (self._masses[:-1] + self._masses[1:]) / 2
        found = self._masses[np.searchsorted(between, numbers)]
        return np.where(np.isnan(numbers), np.nan, found)

    @cached_property
    def _whole(self) -> bool:
        return bool(self.scores) and not (np.array(self.values) % 1).any()


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
        few: Whether all values of the training rows have a code each: the one bin is for others,
            and no flow models the places in it.
    """

    marginal: Marginal
    edges: tuple[float, ...]
    low: float | None
    high: float | None
    few: bool = False

    kind: ClassVar[str] = "mixed"

    @property
    def continuous(self) -> bool:
        return not self.few

    def without_bins(self) -> Mixed:
        """Return this coordinate with one bin."""
        first = self.first_bin
        middle = tuple(np.mean(self.scores[first:], 0).tolist()) if self.scores else ()
        scores = (*self.scores[:first], middle) if self.scores else ()
        return replace(self, edges=(), scores=scores)

    @property
    def size(self) -> int:
        return self.first_bin + len(self.edges) + 1

    def encode(self, numbers: Array, uniforms: Array) -> Coded:
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
        return Coded(codes, z, present, log_det, log_alone, single | present)

    def decode(self, codes: Codes, z: Array) -> Array:
        numbers, binned = np.zeros(len(codes)), codes >= self.first_bin
        numbers[~binned] = self._masses[codes[~binned]]
        bins = codes[binned] - self.first_bin
        least, most = np.array([self._least, *self.edges]), np.array([*self.edges, self._most])
        numbers[binned] = self._numbers(self._point(bins, z[binned]), least[bins], most[bins])
        return numbers

    def nearest(self, numbers: Array) -> Array:
        return np.clip(numbers, self._least, self._most)

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
        first, last = -inf, inf
        if self.low is not None and self.high is not None:  # beyond which the marginal goes
            first, last = self.marginal.forward(np.array([self.low, self.high]))[0]
        a, b = np.array([first, *inner]), np.array([*inner, last])
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
        return log_det - 0.5 * z * z - NORMAL_CONSTANT

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

    @property
    def noisy(self) -> bool:
        return not self.few

    def encode(self, numbers: Array, uniforms: Array) -> Coded:
        """Return the coordinate of the nearest whole numbers."""
        return super().encode(np.rint(numbers), uniforms)

    def nearest(self, numbers: Array) -> Array:
        return np.clip(np.rint(numbers), self._least, self._most + len(self.values) - 1)

    def _points(self, numbers: Array, uniforms: Array) -> tuple[Array, Flags]:
        counts = count_without(numbers, self._masses)
        possible = np.isfinite(numbers) & (counts >= self._least) & (counts + 1 <= self._most)
        # Noise is lost on large counts: these stay below the next one.
        points = np.minimum(counts + uniforms, np.nextafter(counts + 1, -inf))
        return points, possible

    def _alone(self, points: Array, bins: Codes, z: Array, log_det: Array) -> Array:
        """Return the log of the masses of whole numbers where z is standard normal."""
        a, b, log_mass = (each[bins] for each in self._ends)
        begin, end = (self.marginal.forward(np.floor(points) + each)[0] for each in (0.0, 1.0))
        masses = _log_mass(np.clip(begin, a, b), np.clip(end, a, b)) - log_mass
        # Double precision does not resolve the cells of the largest numbers.
        unresolved = end - begin <= MIN_CELL * np.abs(end)
        return np.where(unresolved, super()._alone(points, bins, z, log_det), masses)

    def _numbers(self, points: Array, least: Array, most: Array) -> Array:
        counts = np.clip(np.floor(points), least, most - 1)
        apart = self._masses - np.arange(len(self._masses))
        return np.asarray(counts + np.searchsorted(apart, counts, side="right"))


@dataclass(frozen=True)
class Angular(Mixed):
    """A coordinate of angles, from `low` to below a turn above it; those of other turns are equal.

    Attributes:
        turn: The size of a turn.
    """

    turn: float = 2 * pi

    kind: ClassVar[str] = "angular"

    @property
    def linear(self) -> bool:
        return False

    def encode(self, numbers: Array, uniforms: Array) -> Coded:
        return super().encode(self.nearest(numbers), uniforms)

    def nearest(self, numbers: Array) -> Array:
        wrapped = self._least + np.remainder(numbers - self._least, self.turn)
        return np.minimum(wrapped, self._most)


COORDINATES: dict[str, type[Coordinate]] = {
    each.kind: each for each in (Discrete, Mixed, Counted, Angular)
}


def count_without(numbers: Array, masses: Array) -> Array:
    """Return whole numbers counted without others, k − #{masses < k}.

    Example:
        >>> count_without(np.array([2.0, 4.0, 9.0]), np.array([3.0, 5.0])).tolist()
        [2.0, 3.0, 7.0]
    """
    return np.asarray(numbers - np.searchsorted(masses, numbers))


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
