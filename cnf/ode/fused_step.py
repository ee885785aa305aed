"""A whole Runge-Kutta step as one function and its vector-Jacobian product as another.

Stage by stage most of a small step's time goes to the calls of its parts. A compiler can make one
call of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, zeros_like

from cnf.ode.dynamics import Linearization, StageEvaluation
from cnf.ode.tableau import Tableau


class StageFunctions(NamedTuple):
    """The evaluation of a slope at one stage with its vector-Jacobian product, as functions.

    What differs between stages is `stage`, what all share `shared`; x is the part of the state that
    slopes depend on, and `saved`, with its size as `nbytes`, what the product needs. At unweighted
    stages (see `Tableau.unweighted`) the slope of quadratures may be any finite number.
    """

    forward: Callable[..., Any]  # (stage, shared, x) → (slope, saved)
    vjp: Callable[..., Any]  # (stage, shared, x, saved, slope's cotangent) → state's and stage's
    unweighted_forward: Callable[..., Any]
    unweighted_vjp: Callable[..., Any]
    inputs: tuple[Any, ...]  # the index of x in a state


class FusedStep(NamedTuple):
    """A whole step of a method: see `_step_forward` and `_step_vjp`."""

    forward: Callable[..., Any]
    vjp: Callable[..., Any]


FusedSteps = Callable[[Tableau], FusedStep]


def fused_steps(
    functions: StageFunctions, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> FusedSteps:
    """Return the function of a tableau that gives its fused step, compiled once for each."""

    @lru_cache
    def steps(tableau: Tableau) -> FusedStep:
        return FusedStep(*map(compiler, fused_step(tableau, functions)))

    return steps


def fused_step(tableau: Tableau, functions: StageFunctions) -> FusedStep:
    """Return the step of a method, its coefficients being numbers in the code."""
    return FusedStep(_step_forward(tableau, functions), _step_vjp(tableau, functions))


def _step_forward(tableau: Tableau, functions: StageFunctions) -> Callable[..., Any]:
    a, b, unweighted = tableau.a, tableau.b, tableau.unweighted
    whole, part, inputs = functions.forward, functions.unweighted_forward, functions.inputs
    # The stage whose state is the step's end.
    last = tableau.stages if tableau.first_same_as_last else None

    def forward(
        count: int, stages: Sequence[Any], shared: Any, y: Tensor, slope: Tensor, h: Tensor
    ) -> tuple[list[Tensor], Tensor, list[Tensor], list[Any]]:
        """Return the slopes at the other stages, the end, and the states and saved of stages."""
        slopes, states, saved = [slope], [], []
        for i in range(1, count):
            states.append(y + h * _weighted_sum(a[i], slopes))
            evaluate = part if unweighted[i] else whole
            slope, own = evaluate(stages[i - 1], shared, states[-1][inputs])
            slopes.append(slope)
            saved.append(own)
        end = states[-1] if count == last else y + h * _weighted_sum(b, slopes)
        return slopes[1:], end, states, saved

    return forward


def _step_vjp(tableau: Tableau, functions: StageFunctions) -> Callable[..., Any]:
    a, b, unweighted = tableau.a, tableau.b, tableau.unweighted
    whole, part, count = functions.vjp, functions.unweighted_vjp, tableau.solution_stages

    def vjp(
        stages: Sequence[Any],
        shared: Any,
        xs: Sequence[Tensor],
        saved: Sequence[Any],
        cotangent: Tensor,
        h: Tensor,
    ) -> tuple[Tensor, list[Any]]:
        """Return the cotangents of the start and of each stage: the equations of `StepTape`."""
        states: list[Tensor] = []  # cotangents of the states, from the last stage on
        gradients = []
        for i in reversed(range(count)):
            weights = [row[i] for row in reversed(a[i + 1 : count])]
            adjoint = part if unweighted[i] else whole
            slope = h * _weighted_sum([*weights, b[i]], [*states, cotangent])
            state, own = adjoint(stages[i], shared, xs[i], saved[i], slope)
            states.append(state)
            gradients.append(own)
        return reduce(Tensor.add, states, cotangent), gradients[::-1]

    return vjp


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return Σ w x over the tensors that have a weight; zero where none has."""
    terms = [w * x for w, x in zip(weights, tensors, strict=False) if w != 0]
    return reduce(Tensor.add, terms) if terms else zeros_like(tensors[0])


class ExplicitLinearization(Linearization):
    """Evaluations whose vector-Jacobian products are functions written out, not autograd's.

    A subclass gives `finish`, which propagates `cotangents`, those of the stages whose evaluations
    have been differentiated, by number, to the arguments. See `StageFunctions` for `stages` and
    `shared`; without `fused` steps are taken stage by stage.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        shared: Any,
        functions: StageFunctions,
        fused: FusedSteps | None,
    ) -> None:
        self.stages, self.shared, self.functions, self.fused = stages, shared, functions, fused
        self.cotangents: dict[int, Any] = {}

    def forward(self, i: int, y: Tensor, *, unweighted: bool = False) -> tuple[Tensor, Any]:
        """Return the slope, and what its vector-Jacobian product needs."""
        functions = self.functions
        evaluate = functions.unweighted_forward if unweighted else functions.forward
        x = y[functions.inputs]
        with torch.no_grad():
            slope, saved = evaluate(self.stages[i], self.shared, x)
        self.bytes += saved.nbytes
        return slope, (x, saved, functions.unweighted_vjp if unweighted else functions.vjp)

    def vjp(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """Return the state's cotangent; the stage's is gathered for `finish`."""
        x, rest, vjp = saved
        state: Tensor
        state, self.cotangents[i] = vjp(self.stages[i], self.shared, x, rest, cotangent)
        return state

    def step_forward(
        self, tableau: Tableau, count: int, y: Tensor, slope: Tensor, h: Tensor
    ) -> tuple[list[Tensor], Tensor, list[Any]] | None:
        """Take the step by one function, where there are fused steps."""
        if self.fused is None:
            return None
        step = self.fused(tableau)
        with torch.no_grad():
            slopes, end, states, saved = step.forward(count, self.stages, self.shared, y, slope, h)
        self.bytes += sum(own.nbytes for own in saved)
        whole, part = self.functions.vjp, self.functions.unweighted_vjp
        vjps = [part if unweighted else whole for unweighted in tableau.unweighted[1:]]
        xs = [state[self.functions.inputs] for state in states]
        return slopes, end, [*zip(xs, saved, vjps, strict=False)]

    def step_vjp(
        self,
        tableau: Tableau,
        evaluations: Sequence[StageEvaluation],
        cotangent: Tensor,
        size: float,
    ) -> Tensor | None:
        """Return the start's cotangent by one function, where there are fused steps."""
        if self.fused is None:
            return None
        stages, owners = [], []
        for evaluation in evaluations:
            owner = evaluation.linearization
            assert isinstance(owner, ExplicitLinearization)
            stages.append(owner.stages[evaluation.stage])
            owners.append(owner.cotangents)
        xs, saved, _ = zip(*(evaluation.saved for evaluation in evaluations), strict=True)
        h = cotangent.new_full((), size)  # which does not wait for a GPU
        start: Tensor
        step = self.fused(tableau)
        start, gradients = step.vjp(stages, self.shared, xs, saved, cotangent, h)
        for cotangents, evaluation, own in zip(owners, evaluations, gradients, strict=True):
            cotangents[evaluation.stage] = own
        return start
