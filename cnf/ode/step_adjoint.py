"""The adjoint of a Runge-Kutta step, made of vector-Jacobian products of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cnf.ode.dynamics import Linearization, StageEvaluation
from cnf.ode.interpolation import LOBATTO, bootstrap_weights, interpolation_weights
from cnf.ode.step import Stages, tableau_tensors
from cnf.ode.tableau import Tableau


@dataclass(eq=False)
class StageRecorder:
    """The evaluations of a step's stages so far, recorded for its adjoint."""

    linearization: Linearization
    evaluations: list[StageEvaluation] = field(default_factory=list)

    def __call__(self, i: int, y: Tensor, *, unweighted: bool = False) -> Tensor:
        """Return the slope at stage i."""
        slope, saved = self.linearization.forward(i, y, unweighted=unweighted)
        self.evaluations.append(StageEvaluation(self.linearization, i, saved))
        return slope

    def advance(self, count: int, stages: Stages, h: Tensor) -> Tensor | None:
        """Return a step's end, its first `count` stages evaluated in one call.

        None where the linearization evaluates stages one by one only.
        """
        step = self.linearization.step_forward(stages.tableau, count, stages.y, stages[0], h)
        if step is None:
            return None
        slopes, end, saved_stages = step
        for i, (slope, saved) in enumerate(zip(slopes, saved_stages, strict=True)):
            stages.append(slope)
            self.evaluations.append(StageEvaluation(self.linearization, i, saved))
        return end


@dataclass(frozen=True, eq=False)
class StepTape:
    """The evaluations of a step, for its adjoint.

    A step from y over h with slopes k_i at the states Y_i,

        Y_i = y + h Σ_{j<i} a_ij k_j,   y₁ = y + h Σ_i b_i k_i,

    turns the cotangent λ of y₁ into that of y through those of its slopes and states, the last
    stage first:

        k̄_i = h (b_i λ + Σ_{j>i} a_ji Ȳ_j),   Ȳ_i = (∂k_i/∂Y_i)ᵀ k̄_i,   ȳ = λ + Σ_i Ȳ_i.

    Source: Hager (2000), Runge-Kutta methods in optimal control and the transformed adjoint system.
    """

    first: StageEvaluation  # of the first slope, which may belong to the step before
    stages: tuple[StageEvaluation, ...]  # the others that the end depends on
    size: float  # h
    linearization: Linearization  # at the stages after the first

    def vjp(self, cotangent: Tensor, adjoint: StepAdjoint) -> Tensor:
        """Return the cotangent of the state at the step's start for that at its end."""
        evaluations = (self.first, *self.stages)
        start = self.linearization.step_vjp(adjoint.tableau, evaluations, cotangent, self.size)
        if start is None:
            start = adjoint.vjp(evaluations, cotangent, self.size)
        self.linearization.finish()
        return start


class DenseCotangents(NamedTuple):
    """The cotangents of the parts of a step's dense output; see `StepResult.parts`."""

    y1: Tensor
    y0: Tensor | None = None
    slope0: Tensor | None = None
    slope1: Tensor | None = None
    middle: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowStepTape:
    """The evaluations of a per-sample step, for its adjoint.

    Its rows may have accepted their last steps at different tries. So the slope at a step's start
    is an input like the state, and the one at its end, of which it is the next start, an output:
    with its cotangent κ the equations of `StepTape` start with λ + (∂k/∂y₁)ᵀ κ, and end at k̄_0.
    """

    stages: tuple[StageEvaluation, ...]  # all after the first that the end depends on
    end: StageEvaluation | None  # of the slope at the end, if it is known
    size: Tensor  # h, one for each row or for all
    linearization: Linearization
    accepted: Tensor | None  # the rows that accept the step; None for all
    middle: StageEvaluation | None = None  # of the slope in `bootstrap_middle`

    def vjp(
        self,
        tableau: Tableau,
        cotangent: Tensor,
        slope_cotangent: Tensor | None,
        parts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cotangents of state and slope at the start for those at the end.

        Those of the parts of dense output (see `StepResult.parts`) are added. Rows that have
        rejected the step have no part in them; a slope without a cotangent has none.
        """
        y1 = self._tried(cotangent)
        slope1 = None if slope_cotangent is None else self._tried(slope_cotangent)
        y0 = slope0 = middle = None
        if parts is not None:
            dense = self._dense_cotangents(tableau, [*map(self._tried, parts)])
            y0, slope0, middle = dense.y0, dense.slope0, dense.middle
            y1, slope1 = y1 + dense.y1, _sum(slope1, dense.slope1)
        if slope1 is not None and self.end is not None:
            y1 = y1 + self.end.vjp(slope1)
        adjoint = StepAdjoint(tableau, y1, middle=middle is not None)
        slope = _sum(adjoint.stages_vjp(self.stages, y1, self.size, middle), slope0)
        self.linearization.finish()
        start = _sum(adjoint.buffer.sum(0), y0)
        assert start is not None
        assert slope is not None
        if self.accepted is None:
            return start, slope
        return start[self.accepted], slope[self.accepted]

    def _dense_cotangents(self, tableau: Tableau, parts: list[Tensor]) -> DenseCotangents:
        """Return the cotangents of the parts but for those that the others account for."""
        if len(parts) == 1:
            return DenseCotangents(parts[0])
        y0, y1, slope0, slope1, *middles = parts
        middle = middles[0] if middles else None
        if middle is not None and tableau.dense == "bootstrap":
            ends = [y0, y1, slope0, slope1]
            if self.middle is not None:
                *weights, weight = bootstrap_weights(self.size)
                inside = self.middle.vjp(weight * middle)
                self.middle.linearization.finish()
                places = interpolation_weights(torch.full_like(self.size, LOBATTO), self.size, 4)
                ends = [
                    end + weight * middle + place * inside
                    for end, weight, place in zip(ends, weights, places, strict=True)
                ]
            return DenseCotangents(ends[1], ends[0], ends[2], ends[3])
        if middle is not None and tableau.mid is not None and tableau.first_same_as_last:
            slope1 = slope1 + self.size * tableau.mid[-1] * middle
        return DenseCotangents(y1, y0, slope0, slope1, middle)

    def _tried(self, cotangent: Tensor) -> Tensor:
        """Return the cotangents of all rows that tried the step for those that accept it."""
        if self.accepted is None:
            return cotangent
        whole = cotangent.new_zeros(len(self.size), *cotangent.shape[1:])
        return whole.index_copy(0, self.accepted, cotangent)


class StepAdjoint:
    """The cotangents of a step's states, of y's shape, in one buffer, and weighted sums of them.

    With `middle` there is one for the state that the tableau's `mid` gives, too.
    """

    def __init__(self, tableau: Tableau, y: Tensor, *, middle: bool = False) -> None:
        self.tableau = tableau
        weights = tableau_tensors(tableau, y.dtype, y.device)
        count = tableau.solution_stages
        rows = [*weights.a[:count], weights.b]
        if middle and weights.mid is not None:
            rows.append(weights.mid)
        # Row i has the weights of the cotangents Ȳ_j, of λ and of the middle's, in that of slope i.
        self.weights = torch.stack(rows)[:, :count].T.contiguous()
        self.buffer = y.new_zeros(len(rows), *y.shape)
        self.count, self.cotangents = count, self.buffer.unbind()
        self.matrix = self.buffer.view(len(rows), -1).T
        self.shape = y.shape

    def vjp(self, evaluations: Sequence[StageEvaluation], cotangent: Tensor, size: float) -> Tensor:
        """Return the cotangent of the step's first state for that of its end."""
        first, *stages = evaluations
        self.cotangents[0].copy_(first.vjp(self.stages_vjp(stages, cotangent, size)))
        return self.buffer.sum(0)

    def stages_vjp(
        self,
        stages: Sequence[StageEvaluation],
        cotangent: Tensor,
        size: float | Tensor,
        middle: Tensor | None = None,
    ) -> Tensor:
        """Return the cotangent of the first slope, with those of the other stages' states."""
        self.buffer.zero_()  # entries of the step before need not be finite
        self.cotangents[self.count].copy_(cotangent)
        if middle is not None:
            self.cotangents[-1].copy_(middle)
        for i in reversed(range(1, len(stages) + 1)):
            self.cotangents[i].copy_(stages[i - 1].vjp(self._slope(i, size)))
        return self._slope(0, size)

    def _slope(self, i: int, size: float | Tensor) -> Tensor:
        """Return the cotangent of the slope at stage i, of those of later states."""
        return torch.mv(self.matrix, self.weights[i]).view(self.shape).mul_(size)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of two cotangents, None standing for zero."""
    if left is None or right is None:
        return right if left is None else left
    return left + right
