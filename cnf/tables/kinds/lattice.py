"""Lattices: the multiples of a step to which numbers are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_DECIMALS = 10  # of a step that is looked for
MAX_EXACT_DECIMALS = 15  # of a step whose multiples are rounded to its decimals
MAX_ERROR = 0.01  # of a multiple by rounding, in steps, with which a step is recognised
ROUNDINGS = 4  # units in the last place by which a multiple may be off
EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Lattice:
    """The numbers origin + step · n of whole n.

    Attributes:
        origin: The number that is counted from.
        step: The distance of neighbours, above 0.

    Example:
        >>> cents = Lattice.of(np.array([0.35, 0.1, 0.2]))
        >>> cents
        Lattice(origin=0.1, step=0.05)
        >>> cents.counts(np.array([0.1, 0.3])).tolist(), cents.values(np.array([2.0, 4.0])).tolist()
        ([0.0, 4.0], [0.2, 0.3])
    """

    origin: float
    step: float

    @staticmethod
    def of(values: Array, epsilon: float = EPSILON) -> Lattice | None:
        """Return the coarsest lattice from the least of different values; None without one.

        Args:
            values: Shape (values,), finite.
            epsilon: Relative precision of the values.
        """
        if len(values) < 2:
            return None
        for decimals in range(MAX_DECIMALS + 1):
            scaled = values * 10.0**decimals
            errors = np.abs(scaled) * epsilon * ROUNDINGS
            if errors.max() > MAX_ERROR:
                return None
            whole = np.rint(scaled)
            if (np.abs(scaled - whole) <= errors).all():
                counts = whole.astype(np.int64)
                step = int(np.gcd.reduce(counts - counts.min()))
                power = 10**decimals
                return Lattice(int(counts.min()) / power, step / power) if step else None
        return None

    def counts(self, values: Array, epsilon: float = EPSILON) -> Array:
        """Return the numbers of steps from the origin, whole ones for values on the lattice."""
        counts = (values - self.origin) / self.step
        whole = np.rint(counts)
        errors = (np.abs(values) + abs(self.origin)) * epsilon * ROUNDINGS / self.step
        return np.where(np.abs(counts - whole) <= np.minimum(errors, 0.5), whole, counts)

    def values(self, counts: Array) -> Array:
        """Return the values of numbers of steps, rounded to the decimals of the lattice."""
        values = self.origin + self.step * counts
        decimals = max(_decimals(self.origin), _decimals(self.step))
        return np.round(values, decimals) if decimals <= MAX_EXACT_DECIMALS else values

    def nearest(self, values: Array) -> Array:
        """Return the values of the lattice that are nearest to others."""
        return self.values(np.rint((values - self.origin) / self.step))


def _decimals(value: float) -> int:
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
