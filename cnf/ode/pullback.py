"""A step's way back by hand: the adjoint of a Runge-Kutta step, made of its evaluations' own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnf.ode.dynamics import Evaluation, Linearization
from cnf.ode.step import Stages
from cnf.ode.tableaus import Tableau, tableau_tensors


@dataclass(eq=False)
class Recorder:
    """Evaluates the stages of a step, and keeps their ways back.

    Attributes:
        linearization: The dynamics at the stages.
        evaluations: Those made, in order.
    """

    linearization: Linearization
    evaluations: list[Evaluation] = field(default_factory=list)

    def __call__(self, i: int, y: Tensor, *, unweighted: bool = False) -> Tensor:
        """The slope at stage i."""
        slope, saved = self.linearization.forward(i, y, unweighted=unweighted)
        self.evaluations.append(Evaluation(self.linearization, i, saved))
        return slope

    def take(self, count: int, stages: Stages, h: Tensor) -> Tensor | None:
        """A step's end, so many stages taken at once; None where they are taken one by one."""
        step = self.linearization.step_forward(stages.tableau, count, stages.y, stages[0], h)
        if step is None:
            return None
        slopes, end, kept = step
        for i, (slope, saved) in enumerate(zip(slopes, kept, strict=True)):
            stages.append(slope)
            self.evaluations.append(Evaluation(self.linearization, i, saved))
        return end


@dataclass(frozen=True, eq=False)
class Trail:
    """The ways back of a step's evaluations.

    A step from y over h with slopes k_i at the states Y_i,

        Y_i = y + h Σ_{j<i} a_ij k_j,   y₁ = y + h Σ_i b_i k_i,

    takes the cotangent λ of y₁ back by those of its slopes and states, the last stage first:

        k̄_i = h (b_i λ + Σ_{j>i} a_ji Ȳ_j),   Ȳ_i = (∂k_i/∂Y_i)ᵀ k̄_i,   ȳ = λ + Σ_i Ȳ_i.

    Attributes:
        first: Its first slope's evaluation, which may belong to the step before.
        stages: The other ones' that its end depends on.
        size: h.
        linearization: Its own: of the stages, and of the next step's first slope.

    Source: Hager (2000), Runge-Kutta methods in optimal control and the transformed adjoint system.
    """

    first: Evaluation
    stages: tuple[Evaluation, ...]
    size: float
    linearization: Linearization

    def pull(self, cotangent: Tensor, adjoint: Adjoint) -> Tensor:
        """The cotangent of the state at its start for that at its end."""
        evaluations = (self.first, *self.stages)
        start = self.linearization.step_vjp(adjoint.tableau, evaluations, cotangent, self.size)
        if start is None:
            adjoint.begin(cotangent)
            for i in reversed(range(len(evaluations))):
                adjoint.take(i, evaluations[i].vjp(adjoint.slope(i, self.size)))
            start = adjoint.state()
        self.linearization.finish()
        return start


class Adjoint:
    """The cotangents of a step's states in one buffer, and the sums of them.

    Args:
        tableau: The method.
        y: A state like those to come.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        self.tableau = tableau
        weights = tableau_tensors(tableau, y.dtype, y.device)
        count = tableau.solution_stages
        # Row i has the weights of the cotangents Ȳ_j, and of λ, in that of slope i.
        stacked = torch.stack([*weights.a[:count], weights.b])[:, :count]
        self.weights = stacked.T.contiguous()
        self.buffer = y.new_zeros(count + 1, *y.shape)
        self.places = self.buffer.unbind()
        self.matrix = self.buffer.view(count + 1, -1).T
        self.shape = y.shape

    def begin(self, cotangent: Tensor) -> None:
        """Start with the cotangent of the step's end."""
        self.buffer.zero_()  # what the step before left need not be finite
        self.places[-1].copy_(cotangent)

    def slope(self, i: int, size: float) -> Tensor:
        """The cotangent of slope i."""
        return torch.mv(self.matrix, self.weights[i]).mul_(size).view(self.shape)

    def take(self, i: int, cotangent: Tensor) -> None:
        """Put down the cotangent of the state at stage i."""
        self.places[i].copy_(cotangent)

    def state(self) -> Tensor:
        """The cotangent of the step's first state."""
        return self.buffer.sum(0)


def retrace(linearization: Linearization, tableau: Tableau, y: Tensor, size: float) -> Trail:
    """Take an accepted step again, for its way back."""
    recorder = Recorder(linearization)
    stages = Stages(tableau, y, buffered=True)
    stages.restart(y, recorder(0, y), size)
    h = y.new_full((), size)  # which does not wait for a GPU
    for i in range(1, tableau.solution_stages):
        state = stages.state(h, stages.weights.a[i])
        stages.append(recorder(i, state, unweighted=tableau.unweighted[i]))
    first, *rest = recorder.evaluations
    return Trail(first, tuple(rest), size, linearization)
