"""Dense output: the states inside a step."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import Tensor

# Where `bootstrap_middle` evaluates the slope, an inner node of the four-point Lobatto rule.
LOBATTO = (1 - 1 / sqrt(5)) / 2


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
    rest = 1 - theta
    cubic = (
        rest * rest * (1 + 2 * theta) * y0
        + theta * theta * (1 + 2 * rest) * y1
        + theta * rest * h * (rest * slope0 - theta * slope1)
    )
    if middle is None:
        return cubic
    cubic_middle = _cubic_middle(h, y0, y1, slope0, slope1)
    return cubic + 16 * (theta * rest) ** 2 * (middle - cubic_middle)


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
    theta, rest = LOBATTO, 1 - LOBATTO
    place = y0.new_full((), theta)
    slope = f(t + theta * h, interpolate(place, h, y0, y1, slope0, slope1, None))
    cubic_change = 6 * theta * rest * (y1 - y0) + h * (
        rest * (1 - 3 * theta) * slope0 + theta * (1 - 3 * rest) * slope1
    )
    excess = (h * slope - cubic_change) / (32 * theta * rest * (rest - theta))
    return _cubic_middle(h, y0, y1, slope0, slope1) + excess


def _cubic_middle(h: Tensor, y0: Tensor, y1: Tensor, slope0: Tensor, slope1: Tensor) -> Tensor:
    return (y0 + y1) / 2 + h * (slope0 - slope1) / 8
