"""Step control: how far each sequence of steps got, the step it tries next, and its acceptance.

The state has one entry for each sequence of steps: a single one for the whole batch with joint
steps, one for each row with per-sample steps. Times are fractions of the way from the first output
time to the last, in float64 on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.ode.controllers import Array
from cnf.ode.options import SolveOptions

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Fractions this close count as equal: far below what float32 resolves, and far above the rounding
# error of adding up steps in float64.
TIME_RESOLUTION = 1e-12

# An error that is not finite says nothing of a suitable size: the next step is shorter by this
# factor, then by its square, its fourth power … so that a row that cannot be solved fails soon.
NONFINITE_SHRINK = 0.2


class TimeScale:
    """Times as fractions of the way from the first output time to the last."""

    def __init__(self, knots: Tensor) -> None:
        self.begin, end = knots[0].item(), knots[-1].item()
        self.span = end - self.begin
        self.length = abs(self.span)

    def fractions(self, times: Tensor) -> Array:
        """Return times as fractions."""
        numbers: Array = times.detach().double().cpu().numpy()
        return (numbers - self.begin) / self.span


class StepControlOptions:
    """The options of step control, with all times as fractions."""

    def __init__(self, options: SolveOptions, scale: TimeScale, knots: Tensor) -> None:
        self.controller = options.controller
        self.order = (options.tableau.error_order or 0) + 1  # of the error estimate, plus one
        self.min_step = options.min_step / scale.length  # accepted whatever its error
        self.max_step = options.max_step / scale.length
        largest = max(abs(scale.begin), abs(scale.begin + scale.span))
        # A rejected step smaller than this is a failure.
        self.resolution = 4 * torch.finfo(knots.dtype).eps * largest / scale.length
        # Times that no step crosses, in order; with a grid steps go from each to the next.
        self.knots: Array = np.array([0.0, *scale.fractions(knots)[1:-1], 1.0])
        self.grid = options.grid is not None
        # The size of each row's fixed steps, where they do not go from knot to knot.
        self.row_step = None if options.row_step is None else options.row_step / scale.length
        self.jumps: Mask | None = None  # whether the dynamics jump at each knot after the first
        if options.jumps is not None:
            self.jumps = torch.isin(knots[1:], options.jumps).cpu().numpy()
            self.jumps[-1] = False


@dataclass(eq=False)
class StepControlState:
    """The state of step control; every array has one entry for each sequence of steps."""

    options: StepControlOptions
    index: Counts  # the position in the solve: the row's number with per-sample steps
    fraction: Array  # how far it got
    size: Array  # the next step's, before it is fitted to the knots
    previous_error: Array  # that of the last accepted step
    accepted_size: Array  # the next size as chosen after the last accepted step
    nonfinite_tries: Array  # steps tried in vain until the end of the last of them is passed
    nonfinite_end: Array  # that end, as a fraction
    knot: Counts  # the index of the knot before the next step
    to_knot: Array  # the distance to the knot after it
    evaluations: Counts
    accepted: Counts
    rejected: Counts

    @staticmethod
    def start(options: StepControlOptions, count: int) -> StepControlState:
        """Return the state at the first output time, with `count` entries."""
        zeros, counts = np.zeros(count), np.zeros(count, dtype=np.int64)
        return StepControlState(
            options,
            index=np.arange(count),
            fraction=zeros,
            size=zeros,
            previous_error=np.ones(count),
            accepted_size=zeros,
            nonfinite_tries=zeros,
            nonfinite_end=zeros,
            knot=counts,
            to_knot=zeros,
            evaluations=counts,
            accepted=counts,
            rejected=counts,
        )

    def __len__(self) -> int:
        return len(self.index)

    def select(self, chosen: Mask | Counts) -> StepControlState:
        """Return the state of some entries."""
        arrays = (getattr(self, f.name)[chosen] for f in fields(self) if f.name != "options")
        return StepControlState(self.options, *arrays)

    def propose(self) -> Array:
        """Return the sizes to try: up to the next knot, in two halves where little would remain."""
        options = self.options
        if len(options.knots) == 2:
            self.to_knot = 1.0 - self.fraction
        else:
            self.knot = np.searchsorted(options.knots[1:], self.fraction + TIME_RESOLUTION, "right")
            self.to_knot = options.knots[self.knot + 1] - self.fraction
        if options.grid:
            if options.row_step is None:
                return self.to_knot
            size = options.row_step[self.index]
            return np.where(size * (1 + 1e-6) >= self.to_knot, self.to_knot, size)
        smallest, largest = self._of_entries(options.min_step), self._of_entries(options.max_step)
        size = np.minimum(np.maximum(self.size, smallest), largest)
        return np.where(size >= self.to_knot, self.to_knot, np.minimum(size, self.to_knot / 2))

    def between_knots(self, size: Array) -> tuple[Array, Array]:
        """Return start and size of the steps as fractions of the way between their knots."""
        knots = self.options.knots
        if len(knots) == 2:
            return self.fraction, size
        begin, width = knots[self.knot], knots[self.knot + 1] - knots[self.knot]
        start = (self.fraction - begin) / width
        return start, np.where(size >= self.to_knot, 1.0 - start, size / width)

    def acceptable(self, size: Array, error: Array) -> Mask:
        """Return which steps are accurate enough."""
        good: Mask = error <= 1
        if np.any(self.options.min_step):
            good |= (size <= self._of_entries(self.options.min_step)) & np.isfinite(error)
        return good

    def _of_entries(self, limit: Array | float) -> Array | float:
        """Return a limit of step sizes, that of each entry where rows have their own."""
        return limit[self.index] if isinstance(limit, np.ndarray) else limit

    def adapt(self, size: Array, error: Array, accept: Mask) -> None:
        """Advance by the accepted steps, and choose the next sizes."""
        rejected = np.count_nonzero(accept) < len(accept)
        self.accepted = self.accepted + accept
        end = self.fraction + size
        if len(self.options.knots) > 2:
            end = np.where(size >= self.to_knot, self.options.knots[self.knot + 1], end)
        self.fraction = np.where(accept, end, self.fraction) if rejected else end
        if self.options.grid:
            return
        order = self.options.order
        proposed = size * self.options.controller.factors(error, self.previous_error, order)
        # A step that was cut short to end on a knot says little of the next one's size.
        cut = size < 0.99 * self.size
        grown = np.where(cut, np.maximum(proposed, self.size), proposed)
        if np.count_nonzero(self.nonfinite_tries):
            passed = self.fraction >= self.nonfinite_end
            self.nonfinite_tries = np.where(passed, 0.0, self.nonfinite_tries)
        if not rejected:
            self.size, self.previous_error, self.accepted_size = grown, error, grown
            return
        self.rejected = self.rejected + ~accept
        self.previous_error = np.where(accept, error, self.previous_error)
        self.accepted_size = np.where(accept, grown, self.accepted_size)
        self.size = np.where(accept, grown, proposed)
        nonfinite = ~np.isfinite(error)
        if np.count_nonzero(nonfinite):
            shrunk = size * NONFINITE_SHRINK**2.0**self.nonfinite_tries
            self.size = np.where(nonfinite, shrunk, self.size)
            self.nonfinite_tries = self.nonfinite_tries + nonfinite
            self.nonfinite_end = np.where(nonfinite, end, self.nonfinite_end)
        self._check_retries(size, accept)

    def _check_retries(self, size: Array, accept: Mask) -> None:
        """Check that rejected steps are followed by shorter ones.

        Raises:
            ValueError: One is not, and would be rejected again and again.
        """
        repeated = ~accept & ~(self.size < size)  # NaN included
        if np.count_nonzero(repeated):
            old, new = size[repeated][0], self.size[repeated][0]
            raise ValueError(
                "Expected the controller to return a positive factor, and one below 1 after a "
                f"rejected step; got the size {new:g} after {old:g}: correct its factors"
            )

    def at_jump(self, accept: Mask) -> Mask | None:
        """Return which accepted steps ended where the dynamics jump; None where none did."""
        if self.options.jumps is None:
            return None
        ended = self.fraction == self.options.knots[self.knot + 1]
        jumped: Mask = accept & ended & self.options.jumps[self.knot]
        return jumped if np.count_nonzero(jumped) else None

    def finished(self) -> Mask:
        """Return which entries have reached the last output time."""
        finished: Mask = self.fraction > 1 - TIME_RESOLUTION
        return finished

    def too_small(self, accept: Mask) -> Mask:
        """Return which rejected steps are too small to be repeated with a shorter one."""
        return ~accept & (self.size < self.options.resolution)
