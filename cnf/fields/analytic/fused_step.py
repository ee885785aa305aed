"""A Runge-Kutta step of a perceptron as one function, and its way back as another.

Stage by stage most of a small step's time goes to calls of its parts. As one function a compiler
can make one call of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

from torch import Tensor, zeros_like

from cnf.fields.activations import Activation
from cnf.fields.analytic.perceptron import Perceptron, Saved, bare, pull, pull_bare, traced
from cnf.ode.tableau import Tableau


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
    a, b, inner, solution = tableau.a, tableau.b, tableau.inner, tableau.solution_stages
    last = tableau.stages if tableau.first_same_as_last else None  # stage, whose state is the end

    def push_step(
        count: int,
        nets: Sequence[Perceptron],
        activations: Sequence[Activation],
        y: Tensor,
        slope: Tensor,
        h: Tensor,
    ) -> tuple[list[Tensor], Tensor, list[Tensor], list[Saved]]:
        """So many stages, of which the first has this slope.

        Returns:
            The slopes at the others; the step's end; the states, and what their ways back need.
        """
        slopes, states, kept = [slope], [], []
        for i in range(1, count):
            states.append(y + h * _sum(a[i], slopes))
            evaluate = bare if inner[i] else traced
            slope, saved = evaluate(nets[i - 1], activations, states[-1][:, :-1])
            slopes.append(slope)
            kept.append(saved)
        end = states[-1] if count == last else y + h * _sum(b, slopes)
        return slopes[1:], end, states, kept

    def pull_step(
        nets: Sequence[Perceptron],
        activations: Sequence[Activation],
        xs: Sequence[Tensor],
        kept: Sequence[Saved],
        cotangent: Tensor,
        h: Tensor,
    ) -> tuple[Tensor, list[Perceptron]]:
        """The gradients of the step's start and of the nets at its stages, as in `StepTape`."""
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
    """Σ w x over those that have a weight; zero where none has."""
    terms = [w * x for w, x in zip(weights, tensors, strict=False) if w != 0]
    return reduce(Tensor.add, terms) if terms else zeros_like(tensors[0])
