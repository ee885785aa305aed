"""Step-size control: error norms, the first step, and the controllers of the next one.

Errors and sizes are arrays with one entry for the whole batch with joint steps, and one for each
row with per-sample steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Norm = Callable[[Tensor], Tensor]

TINY = float(np.finfo(np.float64).tiny)

# The largest factor after a rejection: the same step again would be rejected again.
RETRY = 0.9


def rms_norm(ratio: Tensor) -> Tensor:
    """Root mean square √(Σ r² / n) over all entries of `ratio`, a scalar: for joint steps.

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0])).item()
        5.0
    """
    norm: Tensor = torch.linalg.vector_norm(ratio) / max(1, ratio.numel()) ** 0.5
    return norm


def moving_rms_norm(ratio: Tensor) -> Tensor:
    """Root mean square over the rows of `ratio` that are not zero: rows that wait count for none.

    Example:
        >>> moving_rms_norm(torch.tensor([[1.0, 7.0], [0.0, 0.0]])).item()
        5.0
    """
    rows = ratio.reshape(len(ratio), -1)
    entries = (rows != 0).any(1).sum() * rows.shape[1]
    norm: Tensor = torch.linalg.vector_norm(rows) / entries.clamp(min=1).sqrt()
    return norm


def max_norm(ratio: Tensor) -> Tensor:
    """The largest magnitude over all entries of `ratio`, a scalar: for joint steps.

    Example:
        >>> max_norm(torch.tensor([1.0, -7.0])).item()
        7.0
    """
    return ratio.abs().amax()


def row_rms_norm(ratio: Tensor) -> Tensor:
    """Root mean square over each row of `ratio`, shape (rows,): for per-sample steps.

    Example:
        >>> row_rms_norm(torch.tensor([[1.0, 7.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
    """
    return ratio.reshape(len(ratio), -1).square().mean(1).sqrt()


def row_max_norm(ratio: Tensor) -> Tensor:
    """The largest magnitude in each row of `ratio`, shape (rows,): for per-sample steps.

    Example:
        >>> row_max_norm(torch.tensor([[1.0, -7.0], [0.0, 0.0]])).tolist()
        [7.0, 0.0]
    """
    return ratio.reshape(len(ratio), -1).abs().amax(1)


@dataclass(frozen=True, eq=False)
class Tolerance:
    """Absolute and relative tolerance: an error is measured in units of atol + rtol · |y|.

    Args:
        rtol: Relative tolerance, not negative: a number, or a tensor that broadcasts against the
            state, for components of different size.
        atol: Absolute tolerance, not negative: a number, or such a tensor.
        norm: Reduces the tensor of error ratios to a scalar (joint steps) or to one number for each
            row (per-sample steps); a step is accepted up to 1.

    Raises:
        ValueError: A tolerance is negative or not finite, or both are zero.
    """

    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            low, high = _range(value)
            if not (isfinite(high) and low >= 0):
                raise ValueError(f"Expected {name} to be a number of at least 0; got {value}")
        if _range(self.rtol)[1] == _range(self.atol)[1] == 0:
            raise ValueError("Expected rtol or atol to be above 0; got 0 for both")

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Check that no tolerance above zero is lost in the arithmetic of a state's dtype.

        The step is at least about u, the unit roundoff, of the time, and the error of a step is
        known up to u of its increment: no step meets a relative tolerance below u². An absolute
        tolerance is lost where it rounds to zero.

        Raises:
            ValueError: A tolerance is lost.
        """
        info = torch.finfo(dtype)
        bounds = (
            ("rtol", self.rtol, (info.eps / 2) ** 2),
            ("atol", self.atol, info.smallest_normal * info.eps),
        )
        for name, value, least in bounds:
            smallest = _smallest_positive(value)
            if smallest < least:
                raise ValueError(
                    f"Expected {name} to be 0 or at least {least:.1e} with a state of {dtype}; got "
                    f"{smallest:g}: pass rtol={info.eps:.0e} and atol={info.eps:.0e} or more, or a "
                    "state of higher precision"
                )

    def take(self, rows: Tensor, shape: torch.Size) -> Tolerance:
        """Return the tolerance of some rows of a state of the given shape."""

        def part(value: float | Tensor) -> float | Tensor:
            if isinstance(value, Tensor) and value.ndim == len(shape) and len(value) == shape[0]:
                return value[rows]
            return value

        return replace(self, rtol=part(self.rtol), atol=part(self.atol))

    def ratio(self, error: Tensor, *states: Tensor) -> Tensor:
        """Measure `error` in units of the tolerance at the largest of `states`, entry by entry."""
        return self.measure(error, self.scale(*states))

    def measure(self, error: Tensor, scale: Tensor) -> Tensor:
        """Divide `error` by a `scale`: 0 where there is no error, even in units of 0."""
        ratio = error / scale
        return torch.where(error == 0, 0.0, ratio) if self.may_be_zero else ratio

    @cached_property
    def may_be_zero(self) -> bool:
        """Whether the allowed error is zero where the state is."""
        return _range(self.atol)[0] == 0

    @torch.no_grad()
    def scale(self, *states: Tensor) -> Tensor:
        """Return the error allowed at the largest of `states`, entry by entry."""
        size = states[0].abs()
        for state in states[1:]:
            torch.maximum(size, state.abs(), out=size)
        return size.mul_(self.rtol).add_(self.atol)


def _range(value: float | Tensor) -> tuple[float, float]:
    if isinstance(value, Tensor):
        return float(value.min()), float(value.max())
    return value, value


def _smallest_positive(value: float | Tensor) -> float:
    """Return the smallest number above 0, or infinity without one."""
    if isinstance(value, Tensor):
        value = value.double().masked_fill(value <= 0, inf).min().item()
    return value if value > 0 else inf


class Controller(Protocol):
    """A rule for the next step's size."""

    def factors(self, error: Array, previous: Array, order: int) -> Array:
        """Choose the factors of the next step sizes: below 1 where a step was rejected.

        Args:
            error: Error ratio of this step: one entry, or one for each row with per-sample steps;
                NaN counts as infinite.
            previous: Error ratio of the last accepted step, an entry for each of `error`.
            order: The error estimate's order plus one.
        """
        ...


@dataclass(frozen=True)
class PIController:
    """Proportional-integral step-size control.

    After a step with error ratio r the next step's size is h times

        safety · r^(−α) · r_previous^β,   α = 1 / q − 0.75 · β,

    with q the error estimate's order plus one, kept within [factor_min, factor_max], and at most
    0.9 straight after a rejection. `beta = 0` gives the elementary (I) controller.

    Source: Hairer & Wanner (1996), Solving ordinary differential equations II, section IV.2, and
    the constants of their DOPRI5 except for β, which is 0.04 there (notebooks/design.md says why).

    Example:
        >>> PIController().factors(np.array([1.0, np.nan]), np.ones(2), order=5).tolist()
        [0.9, 0.2]
    """

    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    beta: float = 0.02

    def factors(self, error: Array, previous: Array, order: int) -> Array:
        """See `Controller`."""
        alpha = 1 / order - 0.75 * self.beta
        # NaN fails every comparison, and so gets the smallest factor.
        factor = self.safety * np.maximum(error, TINY) ** -alpha
        if self.beta:
            factor *= np.maximum(previous, 1e-4) ** self.beta
        limit = np.where(error <= 1, self.factor_max, RETRY)
        return np.minimum(limit, np.fmax(self.factor_min, factor))


@dataclass(frozen=True)
class IController(PIController):
    """Elementary step-size control: the next size is h · safety · r^(−1/q)."""

    beta: float = 0.0


def first_step_size(
    size: Callable[[Tensor], Array],
    change: Callable[[Array], Tensor],
    y: Tensor,
    slope: Tensor,
    order: int,
    span: float,
    rest_share: float,
) -> Array:
    """Return a first step size of about the right magnitude, by one evaluation.

    With the norms d₀ of the state and d₁ of its slope, and d₂ that of the second derivative, found
    by an Euler step over a guess h₀,

        h = min(100 h₀, (0.01 / max(d₁, d₂))^(1 / order)),   h₀ = 0.01 d₀ / d₁.

    A slope that moves the state by less than 1e-5 of the tolerance over the whole span has no such
    scale: h₀ is a share of the span, and h at most that.

    Source: Hairer, Nørsett & Wanner (1993), section II.4, "Starting step size", but for the slope
    of zero, where theirs is 1e-6.

    Args:
        size: Returns the norm of a vector in units of the tolerance: one entry, or one for each row
            with per-sample steps; it may be infinite.
        change: Returns the change of the slope over an Euler step of the given sizes.
        y: First state.
        slope: Its slope.
        order: Order of the error estimate plus one.
        span: Distance from the first time to the last.
        rest_share: The share of the span where the slope is zero; see `StagedDynamics`.
    """
    d0, d1 = size(y), size(slope)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rests = d1 * span < 1e-5
        # In units of a tolerance of zero even a moderate slope is infinitely large.
        unknown = (d0 < 1e-5) | ~np.isfinite(d0) | ~np.isfinite(d1)
        guess = np.where(unknown, 1e-6, np.minimum(0.01 * d0 / d1, span))
        guess = np.where(rests, rest_share * span, guess)
        largest = np.maximum(d1, size(change(guess)) / guess)
        step = np.minimum(100 * guess, (0.01 / largest) ** (1 / order))
    limit = np.where(rests, rest_share * span, inf)
    cautious = np.where(rests, np.minimum(guess, 1e-6), guess)
    return np.where(np.isfinite(largest), np.minimum(step, limit), cautious)
