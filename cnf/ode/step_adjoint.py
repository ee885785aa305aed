"""The adjoint of a Runge-Kutta step, made of vector-Jacobian products of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnf.ode.dynamics import Linearization, StageEvaluation
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


class StepAdjoint:
    """The cotangents of a step's states, of y's shape, in one buffer, and weighted sums of them."""

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        self.tableau = tableau
        weights = tableau_tensors(tableau, y.dtype, y.device)
        count = tableau.solution_stages
        # Row i has the weights of the cotangents Ȳ_j, and of λ, in that of slope i.
        stacked = torch.stack([*weights.a[:count], weights.b])[:, :count]
        self.weights = stacked.T.contiguous()
        self.buffer = y.new_zeros(count + 1, *y.shape)
        self.cotangents = self.buffer.unbind()
        self.matrix = self.buffer.view(count + 1, -1).T
        self.shape = y.shape

    def vjp(self, evaluations: Sequence[StageEvaluation], cotangent: Tensor, size: float) -> Tensor:
        """Return the cotangent of the step's first state for that of its end."""
        self.buffer.zero_()  # entries of the step before need not be finite
        self.cotangents[-1].copy_(cotangent)
        for i in reversed(range(len(evaluations))):
            slope = torch.mv(self.matrix, self.weights[i]).mul_(size).view(self.shape)
            self.cotangents[i].copy_(evaluations[i].vjp(slope))
        return self.buffer.sum(0)
