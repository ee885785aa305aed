"""The eight toys of FFJORD with exact log-densities, and their registry."""

from dataclasses import dataclass

import numpy as np

from cnf.datasets.curves import (
    Curve,
    curve_nodes,
    gaussian_mixture_log_prob,
    smeared_mixture_log_prob,
)
from cnf.datasets.pinwheel import Pinwheel
from cnf.datasets.table import Array
from cnf.datasets.toy import Toy


@dataclass(frozen=True, kw_only=True)
class Circles(Toy):
    """A mixture of concentric circles blurred by a Gaussian.

    x = R (cos θ, sin θ) + N(0, noise² I), θ ~ U(0, 2π), R drawn from `radii`. Integrating θ out,
    with r = |x| and the modified Bessel function I₀,

        p(x) = mean over R of exp(−(r² + R²) / (2 noise²)) I₀(r R / noise²) / (2π noise²).

    Example:
        >>> circles = Circles(name="unit circle", radii=(1.0,), noise=0.1)
        >>> circles.log_prob([[1.0, 0.0], [0.0, 0.0]])
        array([ -0.45297419, -47.23270688])
    """

    radii: tuple[float, ...]
    noise: float

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        theta = rng.uniform(0.0, 2 * np.pi, n)
        radius = rng.choice(np.array(self.radii), n)
        points: Array = radius[:, None] * np.column_stack([np.cos(theta), np.sin(theta)])
        return points + rng.normal(0.0, self.noise, (n, 2))

    def _log_prob(self, x: Array) -> Array:
        from scipy.special import i0e  # here, since it takes long to import

        r, radii = np.hypot(x[:, :1], x[:, 1:]), np.array(self.radii)
        # i0e(z) = exp(-z) I₀(z), and the exponent -z completes the square.
        terms = np.log(i0e(r * radii / self.noise**2)) - 0.5 * ((r - radii) / self.noise) ** 2
        total = np.logaddexp.reduce(terms, axis=1)
        return np.asarray(total - np.log(2 * np.pi * self.noise**2 * len(radii)))


@dataclass(frozen=True, kw_only=True)
class NoisyCurves(Toy):
    """A mixture of plane curves blurred by a Gaussian.

    x = c(t) + N(0, noise² I), t ~ U(interval), c drawn from the curves, so
    p(x) = mean over c of ∫ N(x; c(t), noise² I) dt / |interval|, by quadrature.

    Example:
        >>> line = lambda t: np.column_stack([t, 0 * t])
        >>> segment = NoisyCurves(name="", curves=(line,), interval=(-2.0, 2.0), noise=0.1)
        >>> segment.log_prob([[0.0, 0.0]])  # -log(4 * 0.1 * sqrt(2 pi))
        array([-0.0026478])
    """

    curves: tuple[Curve, ...]
    interval: tuple[float, float]
    noise: float

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        t = rng.uniform(*self.interval, n)
        points = np.stack([curve(t) for curve in self.curves])
        which = rng.integers(len(self.curves), size=n)
        return points[which, np.arange(n)] + rng.normal(0.0, self.noise, (n, 2))

    def _log_prob(self, x: Array) -> Array:
        pieces = [(c, *curve_nodes(c, self.interval, self.noise)) for c in self.curves]
        centers = np.concatenate([curve(t) for curve, t, _ in pieces])
        weights = np.concatenate([w for _, _, w in pieces])
        return gaussian_mixture_log_prob(x, centers, weights / weights.sum(), self.noise)


@dataclass(frozen=True, kw_only=True)
class Gaussians(Toy):
    """A mixture of isotropic Gaussians, p(x) = mean over `centers` c of N(x; c, noise² I)."""

    centers: tuple[tuple[float, float], ...]
    noise: float

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        centers = rng.choice(np.array(self.centers), n)
        return centers + rng.normal(0.0, self.noise, (n, 2))

    def _log_prob(self, x: Array) -> Array:
        weights = np.full(len(self.centers), 1 / len(self.centers))
        return gaussian_mixture_log_prob(x, np.array(self.centers), weights, self.noise)


@dataclass(frozen=True, kw_only=True)
class Spirals(Toy):
    """A pair of spiral arms, reflections of each other through the origin.

    x = ± (t (−cos t, sin t) + U[0, 1/2)²) / 3 + N(0, noise² I) with t = 3π √U(0, 1), whose density
    is 2t / (3π)². The sign applies to the uniform noise as well, so with the first arm's density
    p₊, an integral over t by quadrature, p(x) = (p₊(x) + p₊(−x)) / 2.
    """

    noise: float

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        corners = _spiral(3 * np.pi * np.sqrt(rng.uniform(size=n)))
        points = corners + rng.uniform(0.0, 0.5 / 3, (n, 2))
        points *= rng.choice([-1.0, 1.0], (n, 1))
        return points + rng.normal(0.0, self.noise, (n, 2))

    def _log_prob(self, x: Array) -> Array:
        t, weights = curve_nodes(_spiral, (0.0, 3 * np.pi), self.noise)
        weights = weights * t / (weights @ t)
        first, second = (
            smeared_mixture_log_prob(side, _spiral(t), weights, 0.5 / 3, self.noise)
            for side in (x, -x)
        )
        return np.asarray(np.logaddexp(first, second) - np.log(2))


@dataclass(frozen=True, kw_only=True)
class Checkerboard(Toy):
    """A uniform distribution on the eight dark squares, of side 2, of a board on [−4, 4]².

    x = 2 (u, v), u ~ U(−2, 2), v ~ U(0, 1) + (⌊u⌋ mod 2) − 2 Bernoulli(1/2): log p = −log 32 on
    the squares (u, v) with ⌊u⌋ + ⌊v⌋ even, and minus infinity elsewhere.
    """

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        u = rng.uniform(-2.0, 2.0, n)
        v = rng.uniform(0.0, 1.0, n) + np.floor(u) % 2 - 2 * rng.integers(2, size=n)
        return 2 * np.column_stack([u, v])

    def _log_prob(self, x: Array) -> Array:
        square = np.floor(x / 2)
        on_board = ((square >= -2) & (square < 2)).all(axis=1)
        return np.where(on_board & (square.sum(axis=1) % 2 == 0), -np.log(32.0), -np.inf)


def _swiss_roll(t: Array) -> Array:
    return np.column_stack([t * np.cos(t), t * np.sin(t)]) / 5


def _upper_moon(t: Array) -> Array:
    return np.column_stack([2 * np.cos(t) - 1, 2 * np.sin(t) - 0.2])


def _lower_moon(t: Array) -> Array:
    return np.column_stack([1 - 2 * np.cos(t), 0.8 - 2 * np.sin(t)])


def _spiral(t: Array) -> Array:
    return np.column_stack([-t * np.cos(t), t * np.sin(t)]) / 3


def _eight_centers() -> tuple[tuple[float, float], ...]:
    """Return eight points at radius 4 / 1.414, FFJORD's literal for 4 / √2."""
    angles = np.arange(8) * np.pi / 4
    return tuple((4 / 1.414 * float(np.cos(a)), 4 / 1.414 * float(np.sin(a))) for a in angles)


TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        NoisyCurves(
            name="swissroll",
            curves=(_swiss_roll,),
            interval=(1.5 * np.pi, 4.5 * np.pi),
            noise=1 / 5,
        ),
        # FFJORD scales the noise, 0.08, with the circles, but not with the rings.
        Circles(name="circles", radii=(3.0, 1.5), noise=3 * 0.08),
        Circles(name="rings", radii=(3.0, 2.25, 1.5, 0.75), noise=0.08),
        NoisyCurves(
            name="moons",
            curves=(_upper_moon, _lower_moon),
            interval=(0.0, np.pi),
            noise=2 * 0.1,
        ),
        Gaussians(name="8gaussians", centers=_eight_centers(), noise=0.5 / 1.414),
        Pinwheel(name="pinwheel"),
        Spirals(name="2spirals", noise=0.1),
        Checkerboard(name="checkerboard"),
    )
}
"""The toys by name."""
