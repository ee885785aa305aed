"""One Runge-Kutta step: its end, the stages of the error estimate, the states inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.ode.interpolation import interpolate
from cnf.ode.tableaus import Tableau, tableau_tensors

BoundDynamics = Callable[[Tensor, Tensor], Tensor]


class Stages:
    """The slopes of a step, and sums of them.

    Args:
        tableau: The method.
        y: A state like those to come.
        buffered: Keep the slopes in one buffer, used again by every step, and sum them by one
            product: where autograd does not record. Otherwise they are stacked for each sum.
    """

    def __init__(self, tableau: Tableau, y: Tensor, *, buffered: bool) -> None:
        self.tableau = tableau
        self.weights = tableau_tensors(tableau, y.dtype, y.device)
        self.slopes: list[Tensor] = []
        self.buffered = buffered
        self.clean = True  # no slope of an earlier step is left that is not finite
        if buffered:
            self.buffer = y.new_zeros(tableau.stages, *y.shape)
            self.places = self.buffer.unbind()
            self.matrix = self.buffer.view(tableau.stages, -1).T

    def __getitem__(self, index: int) -> Tensor:
        return self.slopes[index]

    def __len__(self) -> int:
        return len(self.slopes)

    def restart(self, slope: Tensor) -> None:
        """Begin a step with its first slope."""
        self.slopes = []
        if self.buffered and not self.clean:
            slope = slope.clone()
            self.buffer.zero_()
            self.clean = True
        self.append(slope)

    def append(self, slope: Tensor) -> None:
        """Take the next slope."""
        if self.buffered:
            slope = self.places[len(self.slopes)].copy_(slope)
        self.slopes.append(slope)

    def increment(self, h: Tensor, weights: Tensor) -> Tensor:
        """The sum h Σ_j weights_j k_j over the slopes so far; weights beyond them are zero."""
        return h * self._sum(weights).view_as(self.slopes[0])

    def state(self, y: Tensor, h: Tensor, weights: Tensor) -> Tensor:
        """Y plus the increment."""
        if self.buffered and not h.ndim:
            return torch.addmv(y.view(-1), self.matrix, h * weights).view_as(y)
        return torch.addcmul(y, h, self._sum(weights).view_as(y))

    def _sum(self, weights: Tensor) -> Tensor:
        if self.buffered:
            return self.matrix @ weights
        count = len(self.slopes)
        return weights[:count] @ torch.stack(self.slopes).view(count, -1)


@dataclass(frozen=True, eq=False)
class Taken:
    """What a step comes to: where it starts and ends, and the slopes that dense output needs."""

    t: Tensor
    h: Tensor
    y0: Tensor
    y1: Tensor
    stages: Stages


def advance(f: BoundDynamics, stages: Stages, t: Tensor, h: Tensor, y: Tensor) -> Taken:
    """One Runge-Kutta step from (t, y), with only the stages that the solution needs.

    Args:
        f: Dynamics f(t, y).
        stages: Begun with the slope at (t, y).
        t: Start time, a scalar or one for each row.
        h: Signed size, alike.
        y: State at t.
    """
    weights = stages.weights
    c = weights.c.view(-1, *(1,) * t.ndim) if t.ndim else weights.c
    times = torch.addcmul(t, c, h).unbind()
    for i in range(1, stages.tableau.solution_stages):
        stages.append(f(times[i], stages.state(y, h, weights.a[i])))
    return Taken(t, h, y, stages.state(y, h, weights.b), stages)


def add_error_stages(f: BoundDynamics, taken: Taken) -> None:
    """Evaluate the stages that only the error estimate and the next step need."""
    stages, tableau = taken.stages, taken.stages.tableau
    for i in range(len(stages), tableau.stages):
        if tableau.first_same_as_last and i == tableau.stages - 1:
            stages.append(f(taken.t + taken.h, taken.y1))
        else:
            y = stages.state(taken.y0, taken.h, stages.weights.a[i])
            stages.append(f(taken.t + stages.weights.c[i] * taken.h, y))


def end_slope(f: BoundDynamics, taken: Taken) -> Tensor:
    """The slope at the end of a step, the next step's first stage."""
    if not taken.stages.tableau.first_same_as_last:
        return f(taken.t + taken.h, taken.y1)
    add_error_stages(f, taken)
    return taken.stages[-1]


def dense(taken: Taken, slope1: Tensor) -> Callable[[Tensor], Tensor]:
    """The states inside a step as a function of the fraction θ of it."""
    stages, h, y0, y1 = taken.stages, taken.h, taken.y0, taken.y1
    slope0 = stages[0]
    mid = stages.weights.mid
    middle = None if mid is None else stages.state(y0, h, mid)
    return lambda theta: interpolate(theta, h, y0, y1, slope0, slope1, middle)
