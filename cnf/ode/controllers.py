"""Step-size control: error norms, the first step, and the controller of the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

Norm = Callable[[Tensor], Tensor]


def rms_norm(ratio: Tensor) -> Tensor:
    """Root mean square √(Σ r² / n) over all entries of `ratio`, a scalar tensor.

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0])).item()
        5.0
    """
    return ratio.square().mean().sqrt()


@dataclass(frozen=True)
class Tolerance:
    """Absolute and relative tolerance: an error is measured in units of atol + rtol · |y|.

    Args:
        rtol: Relative tolerance, not negative.
        atol: Absolute tolerance, not negative.
        norm: Reduces the tensor of error ratios to one scalar; a step is accepted up to 1.

    Raises:
        ValueError: A tolerance is negative or not finite, or both are zero.
    """

    rtol: float
    atol: float
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"Expected {name} to be a number of at least 0; got {value}")
        if self.rtol == self.atol == 0:
            raise ValueError("Expected rtol or atol to be above 0; got 0 for both")

    def ratio(self, error: Tensor, *states: Tensor) -> Tensor:
        """`error` in units of the tolerance at the largest of `states`, entry by entry."""
        size = states[0].abs()
        for state in states[1:]:
            size = torch.maximum(size, state.abs())
        return error / torch.add(size.new_full((), self.atol), size, alpha=self.rtol)


@dataclass(frozen=True)
class PIController:
    """Proportional-integral step-size control.

    After a step with error ratio r the next step's size is h times

        safety · r^(−α) · r_previous^β,   α = (1 − 0.75 · beta · q) / q,  β = beta,

    with q the error estimate's order plus one, kept within [factor_min, factor_max], and never
    larger straight after a rejection. `beta = 0` gives the elementary (I) controller.

    Source: Hairer & Wanner (1996), Solving ordinary differential equations II, section IV.2, and
    the constants of their DOPRI5.

    Example:
        >>> PIController().factor(error=1.0, previous=1.0, order=5)
        0.9
    """

    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    beta: float = 0.04

    def factor(self, error: float, previous: float, order: int) -> float:
        """What to multiply the step size by.

        Args:
            error: Error ratio of this step; not finite counts as infinitely large.
            previous: Error ratio of the last accepted step.
            order: q above.
        """
        if not isfinite(error):
            return self.factor_min
        limit = self.factor_max if error <= 1 else 1.0
        if error == 0:
            return limit
        alpha = 1 / order - 0.75 * self.beta
        factor: float = self.safety * error**-alpha * max(previous, 1e-4) ** self.beta
        return min(limit, max(self.factor_min, factor))


def first_step_size(
    f: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    y: Tensor,
    slope: Tensor,
    direction: float,
    order: int,
    tolerance: Tolerance,
) -> float:
    """A first step size of about the right magnitude, at the price of one evaluation.

    Source: Hairer, Nørsett & Wanner (1993), section II.4, "Starting step size".

    Args:
        f: Dynamics f(t, y).
        t: Start time, a scalar.
        y: State at t.
        slope: f(t, y).
        direction: +1 for forward and −1 for reverse time.
        order: Order of the error estimate plus one.
        tolerance: Tolerance of the solve.

    Returns:
        A positive number; `nan` where the state or the slope is not finite.
    """

    def size(vector: Tensor) -> float:
        return float(tolerance.norm(tolerance.ratio(vector, y)))

    d0, d1 = size(y), size(slope)
    guess = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    step = direction * guess
    d2 = size(f(t + step, y + step * slope) - slope) / guess
    if max(d1, d2) <= 1e-15:
        return max(1e-6, guess * 1e-3)
    if not isfinite(d2):
        return guess if isfinite(d0 + d1) else float("nan")
    return float(min(100 * guess, (0.01 / max(d1, d2)) ** (1 / order)))
