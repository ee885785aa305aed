"""The pinwheel toy: Gaussian arms around a circle, twisted by a rotation that grows outwards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.table import Array
from cnf.datasets.toy import Toy

PINWHEEL_SCALE = 2.0
BISECTIONS = 54  # halve an arc of at most 2π down to float64's spacing

# At large radii the arms wind exponentially often. Preimages of a point are enumerated from the
# likeliest on, and this many per side suffice: the rest is worth 1e-10 nats at |x| = 20, where
# log p = -455, and less than one nat at |x| = 30, where log p = -1095.
MAX_PREIMAGES = 100
MAX_TWIST_EXPONENT = 30.0  # float64 cannot resolve single turns beyond exp(30) rad


@dataclass(frozen=True, kw_only=True)
class Pinwheel(Toy):
    """Twisted Gaussian arms, x = 2 (a + i b) exp(−i φ) read as a complex number.

    a ~ N(1, radial_noise²), b ~ N(0, tangential_noise²), the arm k is drawn uniformly, and the
    angle φ = 2πk / arms + twist·eᵃ. The Jacobian determinant is 4 (1 + b twist eᵃ), so

        p(x) = Σ N(a; 1, radial_noise²) N(b; 0, tangential_noise²) / (4 arms |1 + b twist eᵃ|),

    over all (a, b, k) that map to x: at least one for each arm, more where the map folds over.

    Attributes:
        arms: Number of arms.
        radial_noise: Standard deviation along an arm, before scaling.
        tangential_noise: Standard deviation across an arm, before scaling.
        twist: Rate at which the angle grows with eᵃ, in radians.
    """

    arms: int = 5
    radial_noise: float = 0.3
    tangential_noise: float = 0.1
    twist: float = 0.25

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        a = rng.normal(1.0, self.radial_noise, n)
        b = rng.normal(0.0, self.tangential_noise, n)
        arm = rng.integers(self.arms, size=n)
        # FFJORD multiplies the row (a, b) by [[cos φ, -sin φ], [sin φ, cos φ]]: a turn by -φ.
        angle = 2 * np.pi * arm / self.arms + self._angle(a)
        z = PINWHEEL_SCALE * (a + 1j * b) * np.exp(-1j * angle)
        return np.column_stack([z.real, z.imag])

    def _log_prob(self, x: Array) -> Array:
        radius = np.hypot(x[:, 0], x[:, 1]) / PINWHEEL_SCALE
        row, psi = self._preimages(radius, np.arctan2(x[:, 1], x[:, 0]))
        terms = self._log_term(radius[row] * np.cos(psi), radius[row] * np.sin(psi))
        top = np.full(len(x), -np.inf)
        np.maximum.at(top, row, terms)
        total = np.bincount(row, np.exp(terms - top[row]), minlength=len(x))
        return np.asarray(top + np.log(total))

    def _angle(self, a: Array) -> Array:
        return np.asarray(self.twist * np.exp(np.minimum(a, MAX_TWIST_EXPONENT)))

    def _log_term(self, a: Array, b: Array) -> Array:
        """Return the log of a preimage's contribution to the density."""
        exponent = ((a - 1.0) / self.radial_noise) ** 2 + (b / self.tangential_noise) ** 2
        normalizer = 2 * np.pi * self.radial_noise * self.tangential_noise * self.arms
        normalizer *= PINWHEEL_SCALE**2
        # On the fold the density is infinite; the floor only avoids a warning of the logarithm.
        slope = np.maximum(np.abs(1.0 + b * self._angle(a)), np.finfo(np.float64).tiny)
        return np.asarray(-0.5 * exponent - np.log(normalizer * slope))

    def _preimages(self, radius: Array, angle: Array) -> tuple[NDArray[np.intp], Array]:
        """Find all preimages as (row, ψ) with a = radius cos ψ, b = radius sin ψ."""
        # The folds cut the circle of candidates into two arcs. Both begin at the first fold, the
        # end near the likeliest candidate, ψ = 0, and `_turns` increases along both.
        first, last = self._folds(radius)
        rows, psis = self._crossings(radius, angle, -first, 2 * np.pi - last)
        more_rows, more_psis = self._crossings(radius, angle, -first, -last)
        return np.concatenate([rows, more_rows]), np.concatenate([psis, more_psis])

    def _turns(self, radius: Array, angle: Array, psi: Array) -> Array:
        """Return the distance of candidate ψ from the point in arms: an integer at a preimage."""
        distance = psi - self._angle(radius * np.cos(psi)) - angle
        return np.asarray(distance * self.arms / (2 * np.pi))

    def _folds(self, radius: Array) -> Array:
        """Find where `_turns` is stationary, at ψ = −first and −last, 0 < first ≤ last < π.

        There 1 + b twist eᵃ = 0, that is radius sin(s) exp(radius cos(s)) = 1 / twist. The left
        side rises to its peak, cos s = radius sin² s, and then falls. Without a fold both
        bisections end at the peak, and the backward arc is empty.
        """
        peak = np.arccos(2 * radius / (1 + np.sqrt(1 + 4 * radius**2)))
        inside, outside = np.stack([peak, peak]), np.stack([0 * peak, 0 * peak + np.pi])
        for _ in range(BISECTIONS):
            middle = 0.5 * (outside + inside)
            low = radius * np.sin(middle) * self._angle(radius * np.cos(middle)) < 1
            outside, inside = np.where(low, middle, outside), np.where(low, inside, middle)
        return inside

    def _crossings(
        self, radius: Array, angle: Array, start: Array, stop: Array
    ) -> tuple[NDArray[np.intp], Array]:
        """Find all ψ in (start, stop] where the increasing `_turns` is an integer."""
        bottom = np.floor(self._turns(radius, angle, start))
        top = np.floor(self._turns(radius, angle, stop))
        count = np.clip(top - bottom, 0, MAX_PREIMAGES).astype(np.intp)
        row = np.repeat(np.arange(len(radius)), count)
        rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        target, below, above = bottom[row] + 1 + rank, start[row], stop[row]
        for _ in range(BISECTIONS):
            middle = 0.5 * (below + above)
            low = self._turns(radius[row], angle[row], middle) < target
            below, above = np.where(low, middle, below), np.where(low, above, middle)
        return row, below
