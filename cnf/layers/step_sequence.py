"""The steps of a layer given a context, and their determinants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cnf.layers.explicit_step import (
    Coefficients,
    ExplicitStep,
    Inverse,
    determinants,
    inverse,
    invert,
)
from cnf.ode import TABLEAUS, PerRow, take_rows

if TYPE_CHECKING:
    from cnf.layers.steps import Steps

REFINED = 8  # times the tolerance of a step's inverse: the residual of all that is refined
REFINEMENTS = 4
# On tables the residual after four steps back was a tenth of that after one, and inverses took a
# third of the time; in the plane, where a Jacobian costs little more than a velocity, one is best.
BACKWARD, BACKWARD_STEPS = TABLEAUS["midpoint"], 4
ONE_BACK_DIM = 2  # columns, up to which one is taken


@dataclass(frozen=True)
class StepDeterminants:
    """The end of explicit steps, with the determinant of each.

    Attributes:
        value: The end, shape (rows, dim).
        signs: The signs of the determinants, shape (rows, count).
        logs: The logarithms of their absolute values, shape (rows, count).
    """

    value: Tensor
    signs: Tensor
    logs: Tensor

    @property
    def folded(self) -> Tensor:
        """The rows where a determinant is not positive, shape (rows,)."""
        return ~(self.signs > 0).all(1)

    @property
    def log_det(self) -> Tensor:
        """The sum of the logarithms, −∞ where the map folds, shape (rows,)."""
        return self.logs.sum(1).masked_fill(self.folded, -inf)


class StepSequence:
    """The steps of a layer given a context, of all rows or of some."""

    def __init__(self, layer: Steps, constants: Any, like: Tensor) -> None:
        self.layer, self.constants, self.like = layer, constants, like
        leaves = tree_leaves(constants, is_leaf=lambda leaf: isinstance(leaf, PerRow))
        self.per_row = any(isinstance(leaf, PerRow) for leaf in leaves)

    def of(self, rows: Tensor | None = None) -> list[ExplicitStep]:
        """Return the steps of some rows (None: all), in the order in which they are explicit."""
        if rows is None or not self.per_row:
            return self._whole
        return self._made(take_rows(self.constants, rows))

    def step(self, index: int, rows: Tensor | None = None) -> ExplicitStep:
        """Return one step of some rows."""
        return self.of(rows)[index]

    def end(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the end of the steps from some rows."""
        for step in self.of(rows):
            x = step(x)
        return x

    def with_jacobian(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the end of the steps from some rows, and the transposed Jacobian of the whole."""
        whole: Tensor | None = None
        for step in self.of(rows):
            x, jacobian = step.with_jacobian(x)
            whole = jacobian if whole is None else whole @ jacobian
        assert whole is not None
        return x, whole

    def determinants(self, x: Tensor) -> StepDeterminants:
        """Return the end of the steps, with the determinant of each."""
        signs, logs = list[Tensor](), list[Tensor]()
        for step in self.of():
            x, jacobian = step.with_jacobian(x)
            sign, log = determinants(jacobian)
            signs.append(sign)
            logs.append(log)
        return StepDeterminants(x, torch.stack(signs, 1), torch.stack(logs, 1))

    @torch.no_grad()
    def inverse(self, end: Tensor) -> Inverse:
        """Return the states from which the steps lead to `end`, (rows, dim).

        Each step is inverted in turn, from about where it begins; where the residual of all
        together is larger than of each, since steps amplify it, Newton's method of the whole
        reduces it.
        """
        tolerance = 16 * torch.finfo(end.dtype).eps
        x, evaluations = end, end.new_zeros(len(end))
        for index in reversed(range(self.layer.count)):
            found = inverse(partial(self.step, index), x, self.start(index, x), tolerance)
            x, evaluations = found.value, evaluations + found.evaluations
        size = 1 + end.abs().amax(1)
        residual = (self.end(x) - end).abs().amax(1) / size
        stages = self.layer.tableau.solution_stages
        evaluations = evaluations + 2 * stages * self.layer.count
        for _ in range(REFINEMENTS):
            rows = (residual > REFINED * tolerance).nonzero().flatten()
            if not len(rows):
                break
            reached, jacobian = self.with_jacobian(x[rows], rows)
            change = ((reached - end[rows]).unsqueeze(1) @ invert(jacobian)).squeeze(1)
            trial = x[rows] - change
            left = (self.end(trial, rows) - end[rows]).abs().amax(1) / size[rows]
            lower = left < residual[rows]
            x = x.index_copy(0, rows[lower], trial[lower])
            residual = residual.index_copy(0, rows[lower], left[lower])
            evaluations[rows] += 2 * stages * self.layer.count
        return Inverse(x, residual, evaluations)

    def start(self, index: int, end: Tensor) -> Tensor:
        """Return about where a step that ends at `end`, (rows, dim), begins.

        Shorter steps go back along the field: learnt steps are too long to be undone in one.
        """
        for step in self._backward[index]:
            end = step(end)
        return end

    @cached_property
    def _whole(self) -> list[ExplicitStep]:
        return self._made(take_rows(self.constants, None))

    @cached_property
    def _backward(self) -> list[list[ExplicitStep]]:
        """The steps back from each step's end, in order."""
        layer, stages = self.layer, BACKWARD.solution_stages
        count = BACKWARD_STEPS if self.like.shape[1] > ONE_BACK_DIM else 1
        a, b, c = (getattr(BACKWARD, name)[:stages] for name in "abc")
        _, sizes = layer.times(self.like)
        parts = (torch.arange(count).to(sizes).unsqueeze(1) + sizes.new_tensor(c)) / count
        times = sizes.cumsum(0).view(-1, 1, 1) - sizes.view(-1, 1, 1) * parts
        prepared = self._prepared(times.flatten(0, 1), take_rows(self.constants, None))
        sign, steps = 1.0 if layer.towards == "base" else -1.0, list[list[ExplicitStep]]()
        for k, size in enumerate(sizes.tolist()):
            own = Coefficients(sign * size / count, a, b)
            parts_of_step = prepared[k * count : (k + 1) * count]
            steps.append([ExplicitStep(layer.vector_field, each, own) for each in parts_of_step])
        return steps

    def _made(self, constants: Any) -> list[ExplicitStep]:
        times, sizes = self.layer.times(self.like)
        prepared, own = self._prepared(times, constants), self.layer.coefficients(sizes)
        field = self.layer.vector_field
        return [ExplicitStep(field, *each) for each in zip(prepared, own, strict=True)]

    def _prepared(self, times: Tensor, constants: Any) -> list[Sequence[Any]]:
        """Return the field at times (count, stages) from the explicit steps' side."""
        flow_times = 1 - times if self.layer.towards == "base" else times
        prepared = self.layer.vector_field.prepare(flow_times.flatten(), constants)
        stages = times.shape[1]
        return [prepared[i : i + stages] for i in range(0, len(prepared), stages)]
