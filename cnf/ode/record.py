"""What is kept of accepted steps: enough to replay them, or their graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from cnf.ode.pullback import Trail
from cnf.ode.step import Taken


@dataclass(frozen=True, eq=False)
class Output:
    """An output time that a step passes.

    Attributes:
        index: Which of the output times.
        rows: Which of the step's rows pass it there; None for all.
        inside: Whether it lies inside the step, not at its very end.
    """

    index: int
    rows: Tensor | None
    inside: bool

    def values(self, taken: Taken, ts: Tensor) -> Tensor:
        """The states of its rows."""
        last = self.index == len(ts) - 1  # there the step's end follows the time by itself
        time = ts[self.index]
        values = taken.inside(time) if self.inside else taken.y1 if last else taken.at_end(time)
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True, eq=False)
class Kept:
    """The graph of a step.

    Attributes:
        y: The leaf that it starts from.
        ends: What it comes to: the states at its end, and at each output time that it passes.
        rows: Which rows of y those at its end belong to; None for all.
    """

    y: Tensor
    ends: list[Tensor]
    rows: Tensor | None = None


@dataclass(eq=False)
class Step:
    """An accepted step, as a replay needs it.

    Attributes:
        rows: The rows of the batch that take it; None for all.
        knot: Which of the knots it lies after, one number or one for each row.
        start: Where it starts, as a fraction of the way to the next: one number, or one for each
            row.
        size: Its size as a fraction, alike.
        y: The states that it starts from.
        outputs: The output times that it passes.
        kept: Its graph, where that is kept.
        trail: The ways back of its evaluations, where those are kept.
    """

    rows: Tensor | None
    knot: int | Tensor
    start: float | Tensor
    size: float | Tensor
    y: Tensor
    outputs: tuple[Output, ...] = ()
    kept: Kept | None = None
    trail: Trail | None = None

    def interval(self, knots: Tensor) -> tuple[Tensor, Tensor]:
        """The knots before and after it."""
        begin, end = knots[self.knot], knots[self.knot + 1]
        if isinstance(self.knot, int):
            return begin, end
        shape = (-1, *(1,) * (self.y.ndim - 1))
        return begin.view(shape), end.view(shape)

    def times(self, begin: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """Its start time and signed size, differentiable in the knot before it and the way on."""
        if isinstance(self.start, Tensor):
            return begin + self.start * span, self.size * span
        return torch.add(begin, span, alpha=self.start), self.size * span

    def select(self, index: Tensor) -> Step:
        """The step of some of its rows."""
        assert isinstance(self.start, Tensor)
        assert isinstance(self.size, Tensor)
        rows = index if self.rows is None else self.rows[index]
        knot = self.knot if isinstance(self.knot, int) else self.knot[index]
        return Step(rows, knot, self.start[index], self.size[index], self.y[index])


class Scale(saved_tensors_hooks):
    """Weighs what autograd saves while it is open, some tensors' storages left out.

    Args:
        left_out: What `storages` gives of them.
    """

    def __init__(self, left_out: frozenset[int]) -> None:
        self.seen = set(left_out)
        self.bytes = 0
        super().__init__(self._weigh, lambda tensor: tensor)

    def _weigh(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()


def storages(args: Any) -> frozenset[int]:
    """The storages of the tensors among arguments."""
    tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
