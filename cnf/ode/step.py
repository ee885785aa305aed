"""One Runge-Kutta step: its end, the stages of the error estimate, the states inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from cnf.ode.interpolation import bootstrap_middle, bootstrap_slopes
from cnf.ode.tableau import Tableau

BoundDynamics = Callable[[Tensor, Tensor], Tensor]
# The dynamics at one of a step's stages, by its number; the number of stages stands for its end.
StageDynamics = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class TableauTensors:
    """The coefficients of a tableau as tensors of one dtype on one device."""

    times: Tensor  # the stages' c, and then 1 for the step's end where that is not a stage
    a: tuple[Tensor, ...]  # rows padded with zeros to the number of stages
    b: Tensor
    e: Tensor | None
    mid: Tensor | None


@lru_cache
def tableau_tensors(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> TableauTensors:
    """Return the coefficients of `tableau` as tensors, made once for each dtype and device."""

    def tensor(values: tuple[float, ...]) -> Tensor:
        padded = [*values, *[0.0] * (tableau.stages - len(values))]
        return torch.tensor(padded, dtype=dtype, device=device)

    end = () if tableau.first_same_as_last else (1.0,)
    with torch.inference_mode(False):  # for solves outside of it as well
        return TableauTensors(
            times=torch.tensor([*tableau.c, *end], dtype=dtype, device=device),
            a=tuple(tensor(row) for row in tableau.a),
            b=tensor(tableau.b),
            e=None if tableau.e is None else tensor(tableau.e),
            mid=None if tableau.mid is None else tensor(tableau.mid),
        )


class Stages:
    """The slopes of a step of states like y, and weighted sums of them.

    Where they are `buffered`, as is possible where autograd does not record, one buffer serves all
    steps and is summed by one product. Otherwise the slopes are stacked for each sum.
    """

    def __init__(self, tableau: Tableau, y: Tensor, *, buffered: bool) -> None:
        self.tableau = tableau
        self.weights = tableau_tensors(tableau, y.dtype, y.device)
        self.slopes: list[Tensor] = []
        self.y = self.flat = y
        self.size: float | None = None
        self.buffered = buffered
        self.clean = True  # whether the buffer is free of non-finite slopes of earlier steps
        if buffered:
            self.buffer = y.new_zeros(tableau.stages, *y.shape)
            self.slots = self.buffer.unbind()
            self.matrix = self.buffer.view(tableau.stages, -1).T

    def __getitem__(self, index: int) -> Tensor:
        return self.slopes[index]

    def __len__(self) -> int:
        return len(self.slopes)

    def restart(self, y: Tensor, slope: Tensor, size: float | None = None) -> None:
        """Begin a step with its state, its slope, and its signed size where all rows share one."""
        self.slopes = []
        self.y, self.flat, self.size = y, y.view(-1) if self.buffered else y, size
        if self.buffered and not self.clean:
            slope = slope.clone()
            self.buffer.zero_()
            self.clean = True
        self.append(slope)

    def append(self, slope: Tensor) -> None:
        """Append the next slope."""
        if self.buffered:
            slope = self.slots[len(self.slopes)].copy_(slope)
        self.slopes.append(slope)

    def increment(self, h: Tensor, weights: Tensor) -> Tensor:
        """Return h Σ_j weights_j k_j over the slopes so far; weights beyond them are zero."""
        return h * self._sum(weights).view_as(self.slopes[0])

    def state(self, h: Tensor, weights: Tensor) -> Tensor:
        """Return the step's first state plus the increment."""
        if self.buffered and self.size is not None:
            moved = torch.addmv(self.flat, self.matrix, weights, alpha=self.size)
            return moved.view_as(self.y)
        return torch.addcmul(self.y, h, self._sum(weights).view_as(self.y))

    def _sum(self, weights: Tensor) -> Tensor:
        if self.buffered:
            return torch.mv(self.matrix, weights)
        count = len(self.slopes)
        return weights[:count] @ torch.stack(self.slopes).view(count, -1)


@dataclass(eq=False)
class StepResult:
    """The result of a step from y0 at t to y1 at t + h; both times are scalars or one per row."""

    f: BoundDynamics
    at: StageDynamics  # the same dynamics at the step's stages
    t: Tensor
    h: Tensor
    y0: Tensor
    y1: Tensor
    stages: Stages

    @cached_property
    def end_slope(self) -> Tensor:
        """The slope at the step's end, the next step's first stage."""
        if not self.stages.tableau.first_same_as_last:
            return self.at(self.stages.tableau.stages, self.y1)
        self._evaluate(self.stages.tableau.stages)
        return self.stages[-1]

    def error(self) -> Tensor:
        """Return the error estimate, after evaluating the stages that only this needs."""
        assert self.stages.weights.e is not None
        self._evaluate(self.stages.tableau.error_stages)
        return self.stages.increment(self.h, self.stages.weights.e)

    @cached_property
    def middle(self) -> Tensor | None:
        """The state at the step's middle; None where dense output does without it."""
        kind, mid = self.stages.tableau.dense, self.stages.weights.mid
        slopes = self.stages[0], self.end_slope
        if kind == "bootstrap":
            return bootstrap_middle(self.f, self.t, self.h, self.y0, self.y1, *slopes)
        return None if mid is None else self.stages.state(self.h, mid)

    def parts(self, *, at_end: int, inside: bool, slope: bool) -> list[Tensor]:
        """Return the parts of dense output, with zeros for those that no output has a weight for.

        Args:
            at_end: How many parts there are where outputs are at the ends of steps; otherwise 0.
            inside: Whether there are outputs inside the step.
            slope: Whether the slope at the end is wanted.
        """
        if at_end == 1:
            return [self.y1]
        end_slope = self.end_slope if slope or inside else torch.zeros_like(self.y1)
        if at_end:
            return [self.y1, end_slope]
        parts = [self.y0, self.y1, self.stages[0], end_slope]
        if self.stages.tableau.dense == "cubic":
            return parts
        septic = self.stages.tableau.dense == "septic"
        if not inside:
            return [*parts, *[torch.zeros_like(self.y1)] * (4 if septic else 1)]
        assert self.middle is not None
        if septic:
            return parts + bootstrap_slopes(self.f, self.t, self.h, [*parts, self.middle])
        return [*parts, self.middle]

    def _evaluate(self, count: int) -> None:
        """Evaluate the first `count` stages, as far as they are missing."""
        stages, tableau = self.stages, self.stages.tableau
        for i in range(len(stages), count):
            if tableau.first_same_as_last and i == tableau.stages - 1:
                stages.append(self.at(i, self.y1))
            else:
                stages.append(self.at(i, stages.state(self.h, stages.weights.a[i])))


def advance(
    f: BoundDynamics, stages: Stages, t: Tensor, h: Tensor, at: StageDynamics
) -> StepResult:
    """Take one Runge-Kutta step from t over h, with only the stages that the solution needs.

    The stages have begun with the state and the slope at t; `at` is the dynamics f by stage number.
    """
    weights = stages.weights
    for i in range(1, stages.tableau.solution_stages):
        stages.append(at(i, stages.state(h, weights.a[i])))
    return StepResult(f, at, t, h, stages.y, stages.state(h, weights.b), stages)


def stage_times(weights: TableauTensors, t: Tensor, h: Tensor) -> Tensor:
    """Return the times of a step's stages and of its end, along the first axis."""
    return torch.addcmul(t, weights.times.view(-1, *(1,) * t.ndim), h)


def within(f: BoundDynamics, begin: Tensor, end: Tensor) -> BoundDynamics:
    """Return `f` with its times clamped to the interior of an interval.

    The dynamics may jump at either end, and rounding may put a time beyond it.
    """
    inside = interior(begin, end)
    return lambda time, y: f(inside(time), y)


def interior(begin: Tensor, end: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that clamps times to the interior of an interval, and keeps gradients."""
    first, last = begin.detach(), end.detach()
    after, before = torch.nextafter(first, last), torch.nextafter(last, first)
    low, high = torch.minimum(after, before), torch.maximum(after, before)

    def inside(time: Tensor) -> Tensor:
        value = time.detach()
        return time + (torch.clamp(value, low, high) - value)

    return inside
