"""A Runge-Kutta step of a perceptron as one function, and its way back as another.

Stage by stage most of a small step's time goes to calls of its parts. As one function a compiler
can make one call of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

from torch import Tensor, stack

from cnf.fields.activations import Activation
from cnf.fields.perceptron import Perceptron, Saved, bare, pull, pull_bare, traced
from cnf.ode.tableaus import Tableau


class StepKernels(NamedTuple):
    """The two functions of a method.

    Attributes:
        push: See `push_step`.
        pull: See `pull_step`.
    """

    push: Callable[..., Any]
    pull: Callable[..., Any]


def step_kernels(tableau: Tableau) -> StepKernels:
    """The functions of a method, its coefficients being numbers in their code."""
    a, b, inner = tableau.a, tableau.b, tableau.inner
    solution, error = tableau.solution_stages, tableau.error_stages
    ends_in_stage = tableau.first_same_as_last and error == tableau.stages

    def push_step(
        nets: Sequence[Perceptron],
        activations: Sequence[Activation],
        y: Tensor,
        slope: Tensor,
        h: Tensor,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Saved]]:
        """The stages of the solution and its error after the first, whose slope is known.

        Returns:
            The slopes, stacked; the step's end; the states, and what their ways back need.
        """
        slopes, states, kept = [slope], [], []
        for i in range(1, max(solution, error)):
            states.append(y + h * _sum(a[i], slopes))
            evaluate = bare if inner[i] else traced
            slope, saved = evaluate(nets[i - 1], activations, states[-1][:, :-1])
            slopes.append(slope)
            kept.append(saved)
        end = states[-1] if ends_in_stage else y + h * _sum(b, slopes)
        return stack(slopes[1:]), end, states, kept

    def pull_step(
        nets: Sequence[Perceptron],
        activations: Sequence[Activation],
        xs: Sequence[Tensor],
        kept: Sequence[Saved],
        cotangent: Tensor,
        h: Tensor,
    ) -> tuple[Tensor, list[Perceptron]]:
        """The gradients of the step's start, and of the nets at its stages, as `Trail` has it."""
        bars: list[Tensor] = []  # of the states, from the last stage on
        found = []
        for i in reversed(range(solution)):
            weights = [row[i] for row in reversed(a[i + 1 : solution])]
            back = pull_bare if inner[i] else pull
            slope = h * _sum([*weights, b[i]], [*bars, cotangent])
            bar, own = back(nets[i], activations, xs[i], kept[i], slope)
            bars.append(bar)
            found.append(own)
        return reduce(Tensor.add, bars, cotangent), found[::-1]

    return StepKernels(push_step, pull_step)


def _sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Σ w x over those that have a weight."""
    pairs = [(w, x) for w, x in zip(weights, tensors, strict=False) if w != 0]
    return reduce(Tensor.add, (w * x for w, x in pairs))
