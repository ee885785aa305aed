"""Step control: where each lane stands, the step it tries next, and what becomes of it.

A lane is what has a step size of its own: the whole batch with joint steps, each row with
per-sample steps. Times are fractions of the way from the first output time to the last, in float64
on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cnf.ode.controllers import Controller

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

# A fraction this close to a stop is there: it is far below what float32 resolves and far above what
# adding up steps in float64 loses.
CLOSE = 1e-12

# After a step whose error is not finite nothing is known of the size that would do: the next is
# shorter by this factor, by its square, its fourth power … A row that is beyond help fails soon.
BLIND = 0.2


@dataclass(frozen=True, eq=False)
class Control:
    """How lanes are controlled, with all times as fractions.

    Attributes:
        controller: Chooses the next step's size.
        order: The error estimate's order plus one.
        min_step: The smallest step, accepted whatever its error.
        max_step: The largest step.
        resolution: A rejected step smaller than this is a failure.
        knots: What no step crosses, in order; the first is 0 and the last is 1.
        grid: Whether steps go from each knot to the next with no error control.
        jumps: At which of them, the first left out, the dynamics jump; None for nowhere.
    """

    controller: Controller
    order: int
    min_step: float
    max_step: float
    resolution: float
    knots: Array
    grid: bool
    jumps: Mask | None


@dataclass(eq=False)
class Lanes:
    """The lanes under way; every array has one entry for each.

    Attributes:
        control: How they are controlled.
        number: Which lane of the solve each is.
        fraction: How far it got.
        size: The size of the step it would like to try.
        previous: The error of its last accepted step.
        good: The size after its last accepted step.
        blind: How many steps tried had an error that is not finite; until it has passed the end of
            the last of them.
        wall: That end, as a fraction.
        knot: Which knot its next step lies after.
        rest: How far the next one is.
        passed: How many output times it has passed.
        evaluations: Evaluations of the dynamics.
        accepted: Accepted steps.
        rejected: Rejected steps.
    """

    control: Control
    number: Counts
    fraction: Array
    size: Array
    previous: Array
    good: Array
    blind: Array
    wall: Array
    knot: Counts
    rest: Array
    passed: Counts
    evaluations: Counts
    accepted: Counts
    rejected: Counts

    @staticmethod
    def start(control: Control, count: int) -> Lanes:
        """Lanes at the first output time."""
        zeros, counts = np.zeros(count), np.zeros(count, dtype=np.int64)
        return Lanes(
            control,
            number=np.arange(count),
            fraction=zeros,
            size=zeros,
            previous=np.ones(count),
            good=zeros,
            blind=zeros,
            wall=zeros,
            knot=counts,
            rest=zeros,
            passed=counts + 1,
            evaluations=counts,
            accepted=counts,
            rejected=counts,
        )

    def __len__(self) -> int:
        return len(self.number)

    def select(self, index: Mask | Counts) -> Lanes:
        """Some of the lanes."""
        arrays = (getattr(self, f.name)[index] for f in fields(self) if f.name != "control")
        return Lanes(self.control, *arrays)

    def propose(self) -> Array:
        """The sizes to try: up to the next knot, and two halves rather than a sliver before it."""
        control = self.control
        if len(control.knots) == 2:
            self.rest = 1.0 - self.fraction
        else:
            self.knot = np.searchsorted(control.knots[1:], self.fraction + CLOSE, "right")
            self.rest = control.knots[self.knot + 1] - self.fraction
        if control.grid:
            return self.rest
        size = np.minimum(np.maximum(self.size, control.min_step), control.max_step)
        return np.where(size >= self.rest, self.rest, np.minimum(size, self.rest / 2))

    def local(self, size: Array) -> tuple[Array, Array]:
        """Start and size of the steps as fractions of the way between their knots."""
        knots = self.control.knots
        if len(knots) == 2:
            return self.fraction, size
        begin, width = knots[self.knot], knots[self.knot + 1] - knots[self.knot]
        start = (self.fraction - begin) / width
        return start, np.where(size >= self.rest, 1.0 - start, size / width)

    def accepts(self, size: Array, error: Array) -> Mask:
        """Which steps are good enough."""
        good: Mask = error <= 1
        if self.control.min_step:
            good |= (size <= self.control.min_step) & np.isfinite(error)
        return good

    def adapt(self, size: Array, error: Array, accept: Mask) -> None:
        """Move on with the accepted steps, and choose the next sizes."""
        rejected = np.count_nonzero(accept) < len(accept)
        self.accepted = self.accepted + accept
        end = self.fraction + size
        if len(self.control.knots) > 2:
            end = np.where(size >= self.rest, self.control.knots[self.knot + 1], end)
        self.fraction = np.where(accept, end, self.fraction) if rejected else end
        if self.control.grid:
            return
        order = self.control.order
        proposed = size * self.control.controller.factors(error, self.previous, order)
        # A step that was cut short to end on a stop says little of the next one's size.
        cut = size < 0.99 * self.size
        kept = np.where(cut, np.maximum(proposed, self.size), proposed)
        if np.count_nonzero(self.blind):
            self.blind = np.where(self.fraction >= self.wall, 0.0, self.blind)
        if not rejected:
            self.size, self.previous, self.good = kept, error, kept
            return
        self.rejected = self.rejected + ~accept
        self.previous = np.where(accept, error, self.previous)
        self.good = np.where(accept, kept, self.good)
        self.size = np.where(accept, kept, proposed)
        blind = ~np.isfinite(error)
        if np.count_nonzero(blind):
            self.size = np.where(blind, size * BLIND**2.0**self.blind, self.size)
            self.blind, self.wall = self.blind + blind, np.where(blind, end, self.wall)
        self._check_retries(size, accept)

    def _check_retries(self, size: Array, accept: Mask) -> None:
        """Hold that rejected steps are tried again with shorter ones.

        Raises:
            ValueError: One is not: it would be rejected again and again.
        """
        repeated = ~accept & ~(self.size < size)  # NaN included
        if np.count_nonzero(repeated):
            old, new = size[repeated][0], self.size[repeated][0]
            raise ValueError(
                "Expected the controller to give a positive factor, and one below 1 after a "
                f"rejected step; got the size {new:g} after {old:g}: correct its factors"
            )

    def at_jump(self, accept: Mask) -> Mask | None:
        """Which lanes' steps have come to where the dynamics jump; None where none have."""
        if self.control.jumps is None:
            return None
        ended = self.fraction == self.control.knots[self.knot + 1]
        lanes: Mask = accept & ended & self.control.jumps[self.knot]
        return lanes if np.count_nonzero(lanes) else None

    def done(self) -> Mask:
        """Which lanes have come to the last output time."""
        finished: Mask = self.fraction > 1 - CLOSE
        return finished

    def stuck(self, accept: Mask) -> Mask:
        """Which lanes' rejected steps can hardly get smaller."""
        return ~accept & (self.size < self.control.resolution)
