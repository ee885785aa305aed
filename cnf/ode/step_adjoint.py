"""The adjoint of a Runge-Kutta step, made of vector-Jacobian products of its evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnf.ode.dynamics import Linearization, StageEvaluation
from cnf.ode.step import Stages
from cnf.ode.tableau import Tableau, tableau_tensors


@dataclass(eq=False)
class StageRecorder:
    """The evaluations of a step's stages, recorded for its adjoint.

    Attributes:
        linearization: The dynamics at the stages.
        evaluations: The evaluations so far, in order.
    """

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

    Attributes:
        first: The evaluation of the first slope, which may belong to the step before.
        stages: The other evaluations that its end depends on.
        size: h.
        linearization: The linearization at the stages after the first.

    Source: Hager (2000), Runge-Kutta methods in optimal control and the transformed adjoint system.
    """

    first: StageEvaluation
    stages: tuple[StageEvaluation, ...]
    size: float
    linearization: Linearization

    def vjp(self, cotangent: Tensor, adjoint: StepAdjoint) -> Tensor:
        """Return the cotangent of the state at the step's start for that at its end."""
        evaluations = (self.first, *self.stages)
        start = self.linearization.step_vjp(adjoint.tableau, evaluations, cotangent, self.size)
        if start is None:
            adjoint.begin(cotangent)
            for i in reversed(range(len(evaluations))):
                adjoint.set_state(i, evaluations[i].vjp(adjoint.slope(i, self.size)))
            start = adjoint.start()
        self.linearization.finish()
        return start


class StepAdjoint:
    """The cotangents of a step's states in one buffer, and weighted sums of them.

    Args:
        tableau: The method.
        y: A state of the steps' shape, dtype and device.
    """

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

    def begin(self, cotangent: Tensor) -> None:
        """Start a step with the cotangent of its end."""
        self.buffer.zero_()  # entries of the step before need not be finite
        self.cotangents[-1].copy_(cotangent)

    def slope(self, i: int, size: float) -> Tensor:
        """Return the cotangent of slope i."""
        return torch.mv(self.matrix, self.weights[i]).mul_(size).view(self.shape)

    def set_state(self, i: int, cotangent: Tensor) -> None:
        """Set the cotangent of the state at stage i."""
        self.cotangents[i].copy_(cotangent)

    def start(self) -> Tensor:
        """Return the cotangent of the step's first state."""
        return self.buffer.sum(0)


def record_step(linearization: Linearization, tableau: Tableau, y: Tensor, size: float) -> StepTape:
    """Repeat an accepted step, and return its evaluations."""
    recorder = StageRecorder(linearization)
    stages = Stages(tableau, y, buffered=True)
    stages.restart(y, recorder(0, y), size)
    h = y.new_full((), size)  # which does not wait for a GPU
    for i in range(1, tableau.solution_stages):
        state = stages.state(h, stages.weights.a[i])
        stages.append(recorder(i, state, unweighted=tableau.unweighted[i]))
    first, *rest = recorder.evaluations
    return StepTape(first, tuple(rest), size, linearization)
