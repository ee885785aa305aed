"""Dense output: the states inside a step."""

from __future__ import annotations

from torch import Tensor


def interpolate(
    theta: Tensor,
    h: Tensor,
    y0: Tensor,
    y1: Tensor,
    slope0: Tensor,
    slope1: Tensor,
    middle: Tensor | None,
) -> Tensor:
    """The polynomial through a step's ends, their slopes and, where it is known, its middle.

    With the cubic Hermite polynomial p of the ends and their slopes,

        y(t + θ h) ≈ p(θ) + 16 θ² (1 − θ)² (y_½ − p(½)),

    of order 4 where y_½ is, and of order 3 without it.

    Args:
        theta: Where in the step, 0 to 1; broadcasts against the states, as h does.
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
    hermite_middle = (y0 + y1) / 2 + h * (slope0 - slope1) / 8
    return cubic + 16 * (theta * rest) ** 2 * (middle - hermite_middle)
