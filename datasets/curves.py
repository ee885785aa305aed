"""Densities of noisy curves: a parameter drawn on an interval, mapped to the plane, blurred.

Such a density is an integral over the parameter, p(x) = ∫ q(t) k(x − c(t)) dt. It is done by
composite Gauss–Legendre quadrature, after which it is a finite mixture: nodes are the components'
centres. All sums are taken relative to their largest term, so far away p may underflow, log p not.
Against three times the nodes, log p of the toys is off by 1e-10 nats on their own samples, and by
1e-5 ten units away from them, where it is in the thousands.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, ndtr

from cnf.datasets.toy import Array

__all__ = ["Curve", "curve_nodes", "gaussian_mixture_log_prob", "smeared_mixture_log_prob"]

Curve = Callable[[Array], Array]
"""A plane curve: parameters of shape (n,) to points of shape (n, 2)."""

ORDER = 8  # Gauss-Legendre nodes a panel
PANEL = 2.0  # a panel's length along the curve, in standard deviations of the noise
NEGLIGIBLE = 42.0  # exp(-42) is less than float64's spacing at 1
GRADES = 8  # how often the panels at a curve's ends are halved
POLYLINE = 2001  # points of the polyline that measures a curve


def curve_nodes(curve: Curve, interval: tuple[float, float], noise: float) -> tuple[Array, Array]:
    """Nodes and weights of composite Gauss–Legendre quadrature, ∫ f(t) dt ≈ Σ wₖ f(tₖ).

    Panels have about the same length on the curve, a few standard deviations of the noise, so that
    N(x; c(t), noise² I) is smooth on each. A curve's ends are not periodic, which rules out the
    trapezoid rule, and a far point beyond an end sees it fall off steeply: panels shrink there.

    Args:
        curve: c, which maps parameters (n,) to points (n, 2).
        interval: Where the parameter begins and ends.
        noise: Standard deviation of the noise.

    Returns:
        Nodes and weights, both of shape (k,).

    Example:
        >>> line = lambda t: np.column_stack([t, 0 * t])
        >>> t, w = curve_nodes(line, (0.0, 2.0), noise=0.1)
        >>> round(float(w @ t**3), 12)
        4.0
    """
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    edges = _panel_edges(curve, interval, PANEL * noise)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), np.outer(half, weights).ravel()


def _panel_edges(curve: Curve, interval: tuple[float, float], length: float) -> Array:
    """Cut an interval where its curve is cut into equal lengths, and more finely at the ends."""
    t = np.linspace(*interval, POLYLINE)
    steps = np.hypot(*np.diff(curve(t), axis=0).T)
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    total = travelled[-1]
    cuts = np.linspace(0.0, total, int(np.ceil(total / length)) + 1)
    fine = cuts[1] * 0.5 ** np.arange(1, GRADES + 1)
    cuts = np.sort(np.concatenate([cuts, fine, total - fine]))
    return np.asarray(np.interp(cuts, travelled, t))


def gaussian_mixture_log_prob(x: Array, centers: Array, weights: Array, noise: float) -> Array:
    """Log-density of isotropic Gaussians, log Σ wₖ N(x; cₖ, noise² I).

    Args:
        x: Points, shape (n, 2).
        centers: cₖ, shape (k, 2).
        weights: wₖ, shape (k,), positive, of sum one.
        noise: Standard deviation of each coordinate.

    Returns:
        Shape (n,).

    Example:
        >>> gaussian_mixture_log_prob(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1), noise=1.0)
        array([-1.83787707])
    """
    scaled = (x[:, None, :] - centers) / noise
    exponents = -0.5 * (scaled[..., 0] ** 2 + scaled[..., 1] ** 2)
    top = exponents.max(axis=1)
    total = np.exp(exponents - top[:, None]) @ weights
    return np.asarray(top + np.log(total) - np.log(2 * np.pi * noise**2))


def smeared_mixture_log_prob(
    x: Array, corners: Array, weights: Array, width: float, noise: float
) -> Array:
    """Log-density of squares blurred by a Gaussian, log Σ wₖ Πᵢ s(xᵢ − cₖᵢ).

    s is the density of U[0, width) + N(0, noise²), in closed form,
    s(d) = [Φ(d / noise) − Φ((d − width) / noise)] / width.

    Args:
        x: Points, shape (n, 2).
        corners: The squares' lower left corners cₖ, shape (k, 2).
        weights: wₖ, shape (k,), positive, of sum one.
        width: The squares' side.
        noise: Standard deviation of the Gaussian in each coordinate.

    Returns:
        Shape (n,).

    Example:
        >>> middle = np.full((1, 2), 0.5)
        >>> corner, weight = np.zeros((1, 2)), np.ones(1)
        >>> bool(abs(smeared_mixture_log_prob(middle, corner, weight, 1.0, 0.01)[0]) < 1e-12)
        True
    """
    side = width / noise
    upper = side / 2 - np.abs((x[:, None, :] - corners) / noise - side / 2)
    exponents = -0.5 * (np.minimum(upper, 0.0) ** 2).sum(axis=-1)
    top = exponents.max(axis=1)
    # Factors are of order one and dear: only those that a float64 sum can notice are worked out.
    row, k = np.nonzero(exponents > top[:, None] - NEGLIGIBLE)
    factors = _smear_factor(upper[row, k], side).prod(axis=1)
    terms = weights[k] * factors * np.exp(exponents[row, k] - top[row])
    total = np.bincount(row, terms, minlength=len(x))
    return np.asarray(top + np.log(total) - 2 * np.log(width))


def _smear_factor(upper: Array, side: float) -> Array:
    """Evaluate [Φ(upper) − Φ(upper − side)] exp(min(upper, 0)² / 2) where upper ≤ side / 2.

    By symmetry about the square's middle every difference of Φ can be taken there, on its left.
    Φ(z) = erfcx(−z / √2) exp(−z² / 2) / 2, and erfcx does not underflow where z is negative.
    """
    tail = np.minimum(upper, 0.0)
    ratio = np.exp(side * (tail - side / 2))  # of exp(-z² / 2) at the two ends, never above 1
    outside = 0.5 * (erfcx(-tail / np.sqrt(2)) - erfcx((side - tail) / np.sqrt(2)) * ratio)
    return np.where(upper > 0, ndtr(upper) - ndtr(upper - side), outside)
