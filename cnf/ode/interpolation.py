"""Dense output: the states inside a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from math import sqrt

import torch
from torch import Tensor

# Where `bootstrap_middle` evaluates the slope, an inner node of the four-point Lobatto rule.
LOBATTO = (1 - 1 / sqrt(5)) / 2

# Where `bootstrap_slopes` evaluates slopes, first for a polynomial of degree 6, then of degree 7.
SEPTIC_NODES = (0.1, 0.5, 0.775), (0.145, 0.22, 0.77, 0.893)


def interpolate(
    theta: Tensor,
    h: Tensor,
    y0: Tensor,
    y1: Tensor,
    slope0: Tensor,
    slope1: Tensor,
    middle: Tensor | None,
) -> Tensor:
    """Return the polynomial through a step's ends, their slopes and, where known, its middle.

    With the cubic Hermite polynomial p of the ends and their slopes,

        y(t + θ h) ≈ p(θ) + 16 θ² (1 − θ)² (y_½ − p(½)),

    of order 4 where y_½ is, and of order 3 without it.

    Args:
        theta: Position in the step, 0 to 1; broadcasts against the states, as h does.
        h: Signed size of the step.
        y0: State at its start.
        y1: State at its end.
        slope0: Slope at its start.
        slope1: Slope at its end.
        middle: State at its middle, or None.

    Source: Hairer, Nørsett & Wanner (1993), Solving ordinary differential equations I, section
    II.6.

    Example:
        >>> import torch
        >>> half, one = torch.tensor(0.5), torch.tensor(1.0)
        >>> interpolate(half, one, torch.tensor(0.0), one, torch.tensor(0.0), 3 * one, None).item()
        0.125
    """
    parts = [y0, y1, slope0, slope1] + ([] if middle is None else [middle])
    weights = interpolation_weights(theta, h, len(parts))
    return reduce(Tensor.add, map(Tensor.mul, weights, parts))


def interpolation_weights(theta: Tensor, h: Tensor, parts: int) -> list[Tensor]:
    """Return the weights of a step's ends, of the slopes there, and of what is known inside it.

    Args:
        theta: Position in the step, 0 to 1.
        h: Signed size of the step.
        parts: 4 for the cubic of the ends and their slopes, 5 for the quartic of `interpolate`, 8
            for the septic with the slopes at the last of `SEPTIC_NODES`.
    """
    rest = 1 - theta
    y0, y1 = rest * rest * (1 + 2 * theta), theta * theta * (1 + 2 * rest)
    slope0, slope1 = h * theta * rest * rest, -h * theta * theta * rest
    if parts == 4:
        return [y0, y1, slope0, slope1]
    bump = 16 * (theta * rest) ** 2
    if parts == 5:
        slopes = bump * h / 8
        return [y0 - bump / 2, y1 - bump / 2, slope0 - slopes, slope1 + slopes, bump]
    *ends, inside = slope_weights(theta, h, SEPTIC_NODES[-1])
    cubic = (y0, y1, slope0, slope1)
    return [*map(Tensor.add, cubic, ends), *inside.unbind(-1)]


def slope_weights(theta: Tensor, h: Tensor, nodes: tuple[float, ...]) -> list[Tensor]:
    """Return what slopes at nodes change in the weights of the cubic polynomial p.

    With n slopes k_i at the nodes c_i the polynomial of degree 3 + n is

        p(θ) + 16 θ² (1 − θ)² Σ_j q_j θʲ,   with the derivative h k_i at c_i.

    Returns:
        The changes of the weights of the ends and their slopes, and the weights of the k_i along
        the last axis.
    """
    c, inverse = _bump_derivatives(nodes)
    c, inverse = c.to(theta), inverse.to(theta)
    powers = torch.stack([torch.ones_like(theta), theta, theta**2, theta**3], -1)
    bump = (16 * (theta * (1 - theta)) ** 2).unsqueeze(-1)
    inside = bump * (powers[..., : len(c)] @ inverse)
    state = (inside * (6 * c * (1 - c))).sum(-1)
    slope0 = -h * (inside * ((1 - c) * (1 - 3 * c))).sum(-1)
    slope1 = -h * (inside * (c * (3 * c - 2))).sum(-1)
    return [state, -state, slope0, slope1, h.unsqueeze(-1) * inside]


@lru_cache
@torch.inference_mode(False)  # for solves outside of it as well
def _bump_derivatives(nodes: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the nodes, and the inverse of the derivatives of 16 θ² (1 − θ)² θʲ there."""
    c = torch.tensor(nodes, dtype=torch.float64)
    powers = torch.arange(len(c))
    x = c.unsqueeze(1)
    bump, change = 16 * (x * (1 - x)) ** 2, 32 * x * (1 - x) * (1 - 2 * x)
    derivatives = change * x**powers + bump * powers * x ** (powers - 1).clamp(min=0)
    return c, torch.linalg.inv(derivatives)


def bootstrap_slopes(
    f: Callable[[Tensor, Tensor], Tensor], t: Tensor, h: Tensor, parts: list[Tensor]
) -> list[Tensor]:
    """Return the slopes at the last of `SEPTIC_NODES`, h times each to O(h⁸), by 7 evaluations.

    The quintic with the slope at the middle is wrong by O(h⁶), h times the slopes at it by O(h⁷).
    So is the polynomial of degree 6 with these, which in turn gives h times the slopes to O(h⁸).

    Args:
        f: Dynamics f(t, y).
        t: Start of the step; broadcasts against the states, as h does.
        h: Signed size of the step.
        parts: States at the start and the end, slopes there, and the state at the middle to O(h⁶).

    Source: the bootstrapping of Hairer, Nørsett & Wanner (1993), section II.6; the nodes, which
    keep the weights of the slopes small, are this project's choice.
    """
    *ends, middle = parts
    y0, y1, slope0, slope1 = ends
    half = f(t + h / 2, middle)
    excess = h * half - (1.5 * (y1 - y0) - h * (slope0 + slope1) / 4)
    first, second = SEPTIC_NODES

    def slope(node: float, known: list[Tensor]) -> Tensor:
        theta = y0.new_full((), node)
        if not known:
            quartic = interpolate(theta, h, y0, y1, slope0, slope1, middle)
            return f(t + node * h, quartic + 16 * (node * (1 - node)) ** 2 * (node - 0.5) * excess)
        cubic = interpolation_weights(theta, h, 4)
        *changes, inside = slope_weights(theta.expand_as(h), h, first)
        weights = [*map(Tensor.add, cubic, changes), *inside.unbind(-1)]
        return f(t + node * h, reduce(Tensor.add, map(Tensor.mul, weights, [*ends, *known])))

    known = [half if node == 0.5 else slope(node, []) for node in first]
    return [slope(node, known) for node in second]


def bootstrap_middle(
    f: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    h: Tensor,
    y0: Tensor,
    y1: Tensor,
    slope0: Tensor,
    slope1: Tensor,
) -> Tensor:
    """Return the state at a step's middle to order 4, by one evaluation: for methods without `mid`.

    The cubic Hermite polynomial p is wrong by O(h⁴), and so h times the slope at it by O(h⁵): to
    that order it is the derivative of the quartic p(θ) + 16 θ² (1 − θ)² (y_½ − p(½)), whence

        y_½ = p(½) + (h f(t + ϑ h, p(ϑ)) − p′(ϑ)) / (32 ϑ (1 − ϑ) (1 − 2 ϑ)).

    At ϑ = ½ the slope would not depend on y_½. At a Lobatto node, as here, the formula is exact for
    quintics, and the remaining error is that of p(ϑ) in f.

    Args:
        f: Dynamics f(t, y).
        t: Start of the step; broadcasts against the states, as h does.
        h: Signed size of the step.
        y0: State at its start.
        y1: State at its end, of order 4.
        slope0: Slope at its start.
        slope1: Slope at its end.

    Source: the bootstrapping of Hairer, Nørsett & Wanner (1993), section II.6; the node is this
    project's choice.

    Example:
        >>> import torch
        >>> zero, one = torch.zeros((), dtype=torch.double), torch.ones((), dtype=torch.double)
        >>> middle = bootstrap_middle(lambda t, y: 5 * t**4, zero, one, zero, one, zero, 5 * one)
        >>> print(f"{middle:.5f}")  # y = t⁵
        0.03125
    """
    parts = [y0, y1, slope0, slope1]
    place = y0.new_full((), LOBATTO)
    parts.append(f(t + LOBATTO * h, interpolate(place, h, y0, y1, slope0, slope1, None)))
    return reduce(Tensor.add, map(Tensor.mul, bootstrap_weights(h), parts))


def bootstrap_weights(h: Tensor) -> list[Tensor]:
    """Return the weights in `bootstrap_middle` of a step's ends, their slopes, and the slope."""
    theta, rest = LOBATTO, 1 - LOBATTO
    scale = 32 * theta * rest * (rest - theta)
    state, half = 6 * theta * rest / scale, torch.full_like(h, 0.5)
    slope0 = h * (1 / 8 - rest * (1 - 3 * theta) / scale)
    slope1 = h * (-1 / 8 - theta * (1 - 3 * rest) / scale)
    return [half + state, half - state, slope0, slope1, h / scale]
