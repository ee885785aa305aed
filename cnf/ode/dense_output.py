"""Dense output: the states at all output times of all rows, of the accepted steps that pass them.

The loop records the pieces of the solution, one for each accepted step that passes output times:
states and slopes at its ends and what the interpolant needs inside it. All outputs are weighted
sums of them, evaluated at once, outside of the gradient modes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from cnf.ode.controllers import Array
from cnf.ode.interpolation import interpolation_weights
from cnf.ode.options import SolveOptions
from cnf.ode.solution import Solution
from cnf.ode.step import StepResult
from cnf.ode.step_control import TIME_RESOLUTION, Counts, Mask, StepControlState

# Up to so many states and slopes the outputs that all rows share are one product with all of them:
# a fifth of the time and of the memory of gathered sums where there are many large outputs.
FEW_STATES = 128


class PartOptions(TypedDict):
    """The arguments of `StepResult.parts`."""

    at_end: int
    inside: bool
    slope: bool


@dataclass(frozen=True, eq=False)
class OutputTimes:
    """The output times of a solve: shared by all rows, (times,), or of each, (rows, times).

    Attributes:
        times: In the solver's time, differentiable.
        fractions: The same as fractions of the way from the first time to the last.
        at_knots: Whether steps end at each of them in any case.
    """

    times: Tensor
    fractions: Array
    at_knots: bool = False

    @staticmethod
    def between(times: Tensor, knots: Tensor) -> OutputTimes:
        """Return shared times of a solve whose steps do not cross the knots."""
        values, ends = (each.detach().double().cpu().numpy() for each in (times, knots))
        fractions = (values - values[0]) / (values[-1] - values[0])
        return OutputTimes(times, fractions, bool(np.isin(values, ends).all()))

    @property
    def ends_only(self) -> bool:
        """Whether there are but the first time and the last."""
        return bool(self.fractions.shape[-1] == 2)

    @property
    def moving(self) -> bool:
        """Whether outputs at the last time have a gradient to times: those of each row."""
        return self.times.ndim == 2 and self.times.requires_grad

    @property
    def end_parts(self) -> int:
        """The number of parts of pieces whose outputs are at the ends of steps; 0 for others."""
        return self.at_knots + (self.at_knots and self.times.requires_grad)

    def wanted(self, rows: int | None) -> Array:
        """Return the sorted fractions that each row (None: all rows together) is to pass, and ∞."""
        after = self.fractions[..., 1:]
        if rows is None:
            after = np.unique(after)[None]
        else:
            after = np.broadcast_to(after, (rows, after.shape[-1]))
        return np.concatenate([after, np.full((len(after), 1), np.inf)], axis=1)


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of an accepted step in dense output.

    Attributes:
        place: Its position among all pieces: one for a joint step, one for each row.
        by_row: Whether a piece belongs to a row, and not to all of them.
        rows: The step's rows that pass output times; None for all.
        options: The arguments of `StepResult.parts`.
    """

    place: slice
    by_row: bool
    rows: Tensor | None
    options: PartOptions

    def parts(self, result: StepResult, rows: Tensor | None) -> Tensor:
        """Return the parts of some of a step's rows (None: all), shape (parts, pieces, …)."""
        parts = torch.stack(result.parts(**self.options))
        if not self.by_row:
            return parts[:, None]
        return parts if rows is None else parts.index_select(1, rows)


class PieceRecorder:
    """The pieces of a solution while it is computed, and the output times that are next."""

    def __init__(self, outputs: OutputTimes, rows: int | None) -> None:
        self.outputs, self.by_row = outputs, rows is not None
        self.wanted = outputs.wanted(rows)
        self.next = self.wanted[:, 0].copy()
        self.soonest = self.next.min()
        self.count = 0
        self.parts: list[Tensor] = []
        self.places: list[tuple[NDArray[Any], ...]] = []

    def record(
        self, result: StepResult, control: StepControlState, begin: Array, accept: Mask
    ) -> tuple[Piece | None, Tensor | None]:
        """Record the pieces of accepted steps, which began at given fractions; return them."""
        end = control.fraction
        if end.max() < self.soonest - TIME_RESOLUTION:
            return None, None
        wanted = self.next[control.index]
        here = wanted <= end + TIME_RESOLUTION
        count = int(np.count_nonzero(here))
        if not count:
            return None, None
        inside = bool((wanted[here] < end[here] - TIME_RESOLUTION).any())
        # At the end of a step second derivatives to the output's time depend on its middle.
        inside = inside or (self.outputs.moving and torch.is_grad_enabled())
        index, end = control.index[here], end[here]
        self._advance(index, end)
        self.places.append((index, control.knot[here], begin[here], end))
        place = slice(self.count, self.count + count)
        self.count = place.stop
        options: PartOptions = {
            "at_end": self.outputs.end_parts,
            "inside": inside,
            "slope": self.outputs.moving or not control.finished().all(),
        }
        of_accepted = count < np.count_nonzero(accept)
        rows = self._index(here[accept], result) if of_accepted else None
        piece = Piece(place, self.by_row, rows, options)
        parts = piece.parts(result, None if here.all() else self._index(here, result))
        self.parts.append(parts)
        return piece, parts

    def all(self, y0: Tensor, knots: Array, reached: Array, *, finite: bool) -> Pieces:
        """Return all pieces."""
        none = np.zeros(0, dtype=np.int64)
        places = zip(*self.places, strict=True) if self.places else [[none]] * 4
        rows, knot, begin, end = map(np.concatenate, places)
        values = torch.cat(self.parts, 1) if self.parts else y0.new_zeros(0)
        owners = rows if self.by_row else None
        return Pieces(values, knot, begin, end, knots, owners, reached, finite)

    def _advance(self, index: Counts, end: Array) -> None:
        """Find the next output times of some rows, after the ends of their steps."""
        end = end + TIME_RESOLUTION
        if not self.by_row or self.outputs.fractions.ndim == 1:
            passed = np.searchsorted(self.wanted[0], end, side="right")
        else:
            passed = (self.wanted[index] <= end[:, None]).sum(1)
        self.next[index] = self.wanted[index, passed]
        self.soonest = self.next.min()

    def _index(self, mask: Mask, result: StepResult) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(result.y1.device)


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of a solution, in the order of the steps.

    Attributes:
        values: Shape (parts, pieces, …), with the parts of `StepResult.parts`. With joint steps a
            piece is a state, otherwise that of a row.
        knot: The index of the knot before each piece.
        begin: Start of each piece, as a fraction of the whole way.
        end: Its end, as such a fraction.
        knots: The knots, as such fractions.
        rows: Each piece's row; None with joint steps.
        reached: How far each row got, as a fraction.
        finite: Whether all values are finite.
    """

    values: Tensor
    knot: NDArray[np.int64]
    begin: Array
    end: Array
    knots: Array
    rows: NDArray[np.int64] | None
    reached: Array
    finite: bool

    def states(self, outputs: OutputTimes, knots: Tensor, y0: Tensor) -> Tensor:
        """Return the states at the output times, (times, *state); NaN where a row did not get to.

        Args:
            outputs: The output times.
            knots: The times that no step crosses.
            y0: The first state.
        """
        fractions = outputs.fractions[..., 1:]
        if not len(self.end):
            later = torch.full_like(y0, torch.nan).expand(fractions.shape[-1], *y0.shape)
            return torch.cat([y0[None], later])
        place = self._places(fractions, len(self.reached))
        weights = self._weights(outputs.times[..., 1:], fractions, place, knots)
        later = self._sums(weights, place, y0)
        later = later.transpose(0, 1).contiguous() if place.ndim == 2 else later
        lost = fractions > self.reached[:, None] + TIME_RESOLUTION
        if lost.any():
            mask = torch.from_numpy(lost.T).to(y0.device)
            shape = (len(self.reached), *(1,) * (y0.ndim - 1))[: y0.ndim]
            later = later.masked_fill(mask.view(-1, *shape), torch.nan)
        return torch.cat([y0[None], later])

    def _places(self, fractions: Array, rows: int) -> NDArray[np.int64]:
        """Return the number of the piece with each output: (times,), or (rows, times)."""
        if self.rows is None:
            found = np.searchsorted(self.end, fractions - TIME_RESOLUTION)
            return np.minimum(found, len(self.end) - 1)
        order = np.argsort(self.rows, kind="stable")
        counts = np.bincount(self.rows, minlength=rows)
        first = np.cumsum(counts) - counts
        column = np.arange(len(order)) - np.repeat(first, counts)
        ends = np.full((rows, int(counts.max())), np.inf)
        ends[self.rows[order], column] = self.end[order]
        wanted = np.broadcast_to(fractions - TIME_RESOLUTION, (rows, fractions.shape[-1]))
        found = torch.searchsorted(torch.from_numpy(ends), torch.from_numpy(wanted.copy())).numpy()
        found = np.minimum(found, np.maximum(counts - 1, 0)[:, None]) + first[:, None]
        places: NDArray[np.int64] = order[np.minimum(found, len(order) - 1)]
        return places

    def _weights(
        self, times: Tensor, fractions: Array, place: NDArray[np.int64], knots: Tensor
    ) -> Tensor:
        """Return the weights of the parts at each output, (parts, *place)."""

        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(values).to(knots)

        after, width = self.knots[self.knot], self.knots[self.knot + 1] - self.knots[self.knot]
        index = torch.from_numpy(self.knot).to(knots.device)
        begin, span = knots[index], knots[index + 1] - knots[index]
        begin = begin + tensor((self.begin - after) / width) * span
        h = tensor((self.end - self.begin) / width) * span
        chosen = torch.from_numpy(place).to(knots.device)
        begin, h = begin[chosen], h[chosen]
        if len(self.values) < 4:  # at the ends of steps
            moved = times - (begin + h)
            return torch.stack([torch.ones_like(h), moved - moved.detach()][: len(self.values)])
        theta = (fractions - self.begin[place]) / (self.end - self.begin)[place]
        theta = np.where(fractions > self.end[place] - TIME_RESOLUTION, 1.0, theta.clip(0.0, 1.0))
        position = tensor(theta)
        if torch.is_grad_enabled() and (times.requires_grad or knots.requires_grad):
            moving = (times - begin) / h
            position = position + (moving - moving.detach())
        return torch.stack(interpolation_weights(position, h, len(self.values)))

    def _sums(self, weights: Tensor, place: NDArray[np.int64], y0: Tensor) -> Tensor:
        """Return the weighted sums of the parts at each output, (*place, …) and a state or row."""
        by_row = place.ndim == 2
        chosen = torch.from_numpy(place).to(y0.device)
        if by_row and self.rows is None:  # the row's part of a joint step
            chosen = chosen * len(y0) + torch.arange(len(y0), device=y0.device)[:, None]
        shape = y0.shape[1:] if by_row else y0.shape
        parts = self.values.reshape(len(self.values), -1, shape.numel())
        if not by_row and self.finite and parts.shape[:2].numel() <= FEW_STATES:
            return self._product(weights, chosen, parts).view(*place.shape, *shape)
        sums = y0.new_zeros(())
        for weight, part in zip(weights, parts, strict=True):
            sums = sums + weight[..., None] * embedding(chosen, part)
        return sums.view(*place.shape, *shape)

    @staticmethod
    def _product(weights: Tensor, chosen: Tensor, parts: Tensor) -> Tensor:
        """Return the sums as one product, with weights of zero for all other pieces."""
        kinds, count = parts.shape[:2]
        index = chosen + count * torch.arange(kinds, device=chosen.device)[:, None]
        matrix = weights.new_zeros(len(chosen), kinds * count)
        return matrix.scatter(1, index.T, weights.T) @ parts.flatten(0, 1)


def with_outputs(solution: Solution, y0: Tensor, knots: Tensor, options: SolveOptions) -> Solution:
    """Return a solution with the states at all output times, evaluated of its pieces."""
    if solution.pieces is None:
        return solution
    assert options.outputs is not None
    ys = solution.pieces.states(options.outputs, knots, y0)
    return replace(solution, ys=ys, pieces=None)
