"""Dynamics at the times of a step's stages, with vector-Jacobian products of each evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cnf.ode.tableau import Tableau

Dynamics = Callable[[Tensor, Tensor, Any], Tensor]


class StagedDynamics(ABC):
    """Dynamics that compute the parts that depend on time alone for all stages of a step at once.

    An instance is called like any dynamics, `f(t, y, args)`. Where all rows have the same time the
    solver calls `prepare` once for each step instead, and then `evaluate` for each stage.

    Some methods have unweighted stages, whose slopes only later stages use. There the solver calls
    `evaluate_unweighted`, which may leave out quadratures: columns of the state that no slope
    depends on, such as a log-density. A subclass that overrides `__call__` takes the keyword
    `unweighted` too.

    Attributes:
        rest_share: Share of the span between the first time and the last that the first step may
            have where the slope is zero. It is small, as dynamics may rest at first and move later;
            1 saves the steps up to there for dynamics that are smooth over the whole span.

    Example:
        >>> class Rotation(StagedDynamics):
        ...     def prepare(self, times, args):
        ...         return torch.cos(args * times).unbind()
        ...
        ...     def evaluate(self, stage, y):
        ...         return stage * y
        >>> Rotation()(torch.tensor(0.0), torch.ones(2), torch.tensor(3.0))
        tensor([1., 1.])
    """

    rest_share: ClassVar[float] = 0.0005

    @abstractmethod
    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        """Return the input of `evaluate` at each of `times`, (times,) or (times, rows, 1, …)."""

    @abstractmethod
    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        """Return the slope dy/dt at one of the times."""

    def evaluate_unweighted(self, stage: Any, y: Tensor) -> Tensor:
        """Return the slope at an unweighted stage; any finite number serves for quadratures."""
        return self.evaluate(stage, y)

    def __call__(self, t: Tensor, y: Tensor, args: Any, *, unweighted: bool = False) -> Tensor:
        """Return the slope dy/dt at one time."""
        stage = self.prepare(t.unsqueeze(0), args)[0]
        return self.evaluate_unweighted(stage, y) if unweighted else self.evaluate(stage, y)

    def linearize(self, times: Tensor, args: Any) -> Linearization:
        """Return evaluations at `times` with vector-Jacobian products; by default of autograd."""
        with torch.enable_grad():
            prepared = self.prepare(times, args)
        stages = StageLeaves()
        return AutogradLinearization(self, [stages.of(stage) for stage in prepared], stages)


class Linearization(ABC):
    """Evaluations of dynamics at a step's stages, each with a vector-Jacobian product.

    Gradients are gathered in the `grad` of the leaves among the arguments.
    """

    bytes: int = 0  # that the evaluations so far have saved outside of autograd

    @abstractmethod
    def forward(self, i: int, y: Tensor, *, unweighted: bool = False) -> tuple[Tensor, Any]:
        """Return the slope at stage i, without a graph, and what `vjp` needs of the evaluation.

        At an unweighted stage any finite number serves for the slope of quadratures.
        """

    @abstractmethod
    def vjp(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """Return the cotangent of the state for that of the slope; the arguments' is gathered."""

    def step_forward(
        self, tableau: Tableau, count: int, y: Tensor, slope: Tensor, h: Tensor
    ) -> tuple[list[Tensor], Tensor, list[Any]] | None:
        """Take a step's first `count` stages all at once; None where they are taken one by one.

        The linearization is one at the times of the stages after the first; y and its slope are
        those at the step's start, and the solution depends on no stage beyond `count`.

        Returns:
            The slopes at the other stages; the step's end; what `vjp` needs of each of them.
        """
        return None

    def step_vjp(
        self,
        tableau: Tableau,
        evaluations: Sequence[StageEvaluation],
        cotangent: Tensor,
        size: float,
    ) -> Tensor | None:
        """Return the cotangent of a step's start for that of its end; None as for `step_forward`.

        The end depends on the evaluations; the first may be of another linearization.
        """
        return None

    @abstractmethod
    def finish(self) -> None:
        """Add what was gathered at the stages to the arguments' gradients, once all are done."""


@dataclass(frozen=True)
class StageEvaluation:
    """One evaluation of a linearization, for its vector-Jacobian product."""

    linearization: Linearization
    stage: int
    saved: Any

    def vjp(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent of the state."""
        return self.linearization.vjp(self.stage, self.saved, cotangent)


@dataclass(frozen=True)
class FunctionDynamics(StagedDynamics):
    """A function f(t, y, args) as staged dynamics that prepare nothing."""

    f: Dynamics

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        """Return each time, with the arguments."""
        return [(time, args) for time in times.unbind()]

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        """Return the function's value."""
        time, args = stage
        return self.f(time, y, args)

    def linearize(self, times: Tensor, args: Any) -> Linearization:
        """Return evaluations with vector-Jacobian products by autograd."""
        leaves = StageLeaves()
        return AutogradLinearization(self, self.prepare(times, leaves.of(args)), leaves)


class StageLeaves:
    """Leaves for tensors that need a gradient, from which it is propagated at the end."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []
        self.made: list[tuple[Tensor, Tensor]] = []  # tensors, and the leaves made of them

    def of(self, tree: Any) -> Any:
        """Return a tree with its tensors replaced by leaves."""
        return tree_map(self._leaf, tree)

    def flush(self) -> None:
        """Propagate the gradients of the made leaves to the tensors that they were made of."""
        gathered = [(tensor, leaf.grad) for tensor, leaf in self.made if leaf.grad is not None]
        if gathered:
            tensors, grads = zip(*gathered, strict=True)
            torch.autograd.backward(tensors, grads, retain_graph=True)
        for _, leaf in self.made:
            leaf.grad = None

    def _leaf(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        leaf = value
        if not value.is_leaf:
            leaf = value.detach().requires_grad_()
            self.made.append((value, leaf))
        self.all.append(leaf)
        return leaf


class AutogradLinearization(Linearization):
    """Evaluations with vector-Jacobian products by autograd, each with a graph of one slope.

    The stages are the values of `dynamics.prepare` with tensors replaced by the leaves.
    """

    def __init__(
        self, dynamics: StagedDynamics, stages: Sequence[Any], leaves: StageLeaves
    ) -> None:
        self.dynamics, self.stages, self.leaves = dynamics, stages, leaves

    def forward(self, i: int, y: Tensor, *, unweighted: bool = False) -> tuple[Tensor, Any]:
        """Return the slope, and its graph."""
        leaf = y.detach().requires_grad_()
        dynamics = self.dynamics
        evaluate = dynamics.evaluate_unweighted if unweighted else dynamics.evaluate
        with torch.enable_grad():
            slope = evaluate(self.stages[i], leaf)
        return slope.detach(), (leaf, slope)

    def vjp(self, i: int, saved: Any, cotangent: Tensor) -> Tensor:
        """Return the vector-Jacobian product; zero where the slope is independent of the state."""
        leaf, slope = saved
        if not slope.requires_grad:
            return torch.zeros_like(leaf)
        leaf.grad = None
        inputs = [leaf, *self.leaves.all]
        torch.autograd.backward(slope, cotangent, inputs=inputs, retain_graph=True)
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def finish(self) -> None:
        """Propagate the gradients through `prepare`."""
        self.leaves.flush()
