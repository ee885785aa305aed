"""A first pass of a solve: steps at times that rows share, for all rows that these suit.

Where each row has its own time, a field computes for each what depends on time alone, and small
batches of rows finish one by one. Here steps begin and end at the times of one grid, and rows that
take the same step are advanced together. Each row chooses the lengths of its steps by its own
errors, so that its result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cnf.layers.augmented import DensityDynamics, VelocityDynamics
from cnf.layers.padding import MIN_BATCH
from cnf.ode import TABLEAUS, PerRow, Solution, Stats, Status, Tableau, Tolerance, take_rows
from cnf.ode.step import Stages, advance, stage_times

Rows = NDArray[np.int64]
Array = NDArray[np.float64]

# A step of level k is 2^−k of the way. At a share s of the way from the data to the base s^WARP of
# the time has passed: fields bend most near the data, where densities are narrow.
SHORTEST, WARP = 6, 1.12
# Where the slope's first change is below the first number, in units of the tolerance, one step of
# dopri5 is tried; below the second a row begins with halves, else with quarters.
GENTLE, HALVES = 30.0, 1.5e3
# The largest error estimate of a step of dopri8 near the data, in units of the tolerance, and its
# growth until the base: the nearer to the data an error is made, the wider the way to the base
# spreads it. The solution is one to two digits more accurate than the estimate: log p is as near to
# that of a tight solve as by dopri5 at a tenth of the tolerance.
LARGEST_ERROR, GROWTH = 2.0, 2.0
# Below this share of the largest error a step of twice the length is tried next.
SMALL_SHARE = 2.0**-8
# The most rows in one evaluation, whose intermediate results stay in a cache.
LARGEST_PIECE = 1024


@dataclass(frozen=True, eq=False)
class FirstPass:
    """The result of a first pass.

    Attributes:
        y: The states at the last time, (rows, width); those of unfinished rows are of no use.
        unfinished: The numbers of the rows that need a solve with per-sample steps.
        stats: The cost of each row.
    """

    y: Tensor
    unfinished: Rows
    stats: Stats

    def solution(self, y0: Tensor, times: Sequence[float], rest: Solution | None) -> Solution:
        """Return the solution from y0, with the unfinished rows as a solve of `rest` left them."""
        count, end = len(y0), self.y
        status = np.full(count, Status.FINISHED)
        last_times = np.full(count, float(times[1]))
        last_states, stats, failed = end, self.stats, tuple[int, ...]()
        if rest is not None:
            rows = self.unfinished
            index = torch.from_numpy(rows).to(y0.device)
            end = end.index_copy(0, index, rest.ys[-1])
            last_states = last_states.index_copy(0, index, rest.last_states)
            status[rows], last_times[rows] = rest.row_status, rest.last_times
            own = np.zeros((3, count), dtype=np.int64)
            own[:, rows] = rest.stats.evaluations, rest.stats.accepted, rest.stats.rejected
            stats, failed = stats + Stats(*own), tuple(rows[list(rest.rows)].tolist())
        ys = torch.stack([y0, end])
        return Solution(y0.new_tensor(times), ys, status, stats, failed, last_times, last_states)


@torch.no_grad()
def first_pass(
    dynamics: DensityDynamics | VelocityDynamics,
    y0: Tensor,
    times: Sequence[float],
    args: Any,
    tolerance: Tolerance,
) -> FirstPass:
    """Solve from rows y0 (rows, width) at the first of two times, by steps that rows share.

    A row whose slope hardly changes is tried with one step of dopri5, with an error of a tenth of
    the tolerance, the others take steps of dopri8. The first change of a row's slope gives the
    length of its first step, the error of a step that of the next; it may double where the grid has
    a time that far. Rows are unfinished where the shortest step is too long, or the slope or the
    error is not finite. The tolerance's norm has one number for each row.
    """
    march = _March(dynamics, y0, times, args, tolerance)
    march.start()
    while march.step():
        pass
    return march.result()


class _March:
    """Rows on their way: the state of each, its place on the grid, and the level of its step."""

    def __init__(
        self,
        dynamics: DensityDynamics | VelocityDynamics,
        y0: Tensor,
        times: Sequence[float],
        args: Any,
        tolerance: Tolerance,
    ) -> None:
        self.dynamics, self.args, self.tolerance = dynamics, args, tolerance
        self.begin, self.span = float(times[0]), float(times[1]) - float(times[0])
        leaves = tree_leaves(args, is_leaf=lambda leaf: isinstance(leaf, PerRow))
        self.shared = not any(isinstance(leaf, PerRow) for leaf in leaves)
        self.y = self.slope = y0
        self.last = 2**SHORTEST
        self.place = np.zeros(len(y0), dtype=np.int64)  # in shortest steps
        self.level = np.zeros(len(y0), dtype=np.int64)
        self.evaluations, self.accepted, self.rejected = np.zeros((3, len(y0)), dtype=np.int64)

    def start(self) -> None:
        """Evaluate the first slopes and their changes, and choose the first steps."""
        tableau = TABLEAUS["dopri5"]
        h = tableau.c[1] * self.span
        times = self.y.new_tensor([self.begin, self.begin + h])
        prepared = self._prepared(times)
        slopes, norms = list[Tensor](), list[Array]()
        for piece in self._pieces(None):
            y, (first, second) = self.y[piece], self._stages(prepared, times, piece)
            slope = self.dynamics.evaluate(first, y)
            moved = self.dynamics.evaluate_unweighted(second, torch.add(y, slope, alpha=h))
            change = (moved - slope) * self.span
            change[:, self.dynamics.dim :] = 0
            slopes.append(slope)
            norms.append(self._norm(change, y))
        self.slope, changes = torch.cat(slopes), np.concatenate(norms)[: len(self.y)]
        self.evaluations += 2
        self.level = np.where(changes < HALVES, 1, 2)
        self.level[~np.isfinite(changes)] = SHORTEST + 1
        gentle = np.flatnonzero(changes < GENTLE)
        if len(gentle):
            self._try(tableau, gentle, 0, 0, 0.1)

    def step(self) -> bool:
        """Advance the rows that have a step of one level to take from the earliest place.

        Returns:
            Whether there were any.
        """
        active = (self.place < self.last) & (self.level <= SHORTEST)
        if not active.any():
            return False
        place = int(self.place[active].min())
        active &= self.place == place
        level = int(self.level[active].min())
        rows = np.flatnonzero(active & (self.level == level))
        largest = LARGEST_ERROR * GROWTH ** self._from_data(place)
        error = self._try(TABLEAUS["dopri8"], rows, place, level, largest)
        change = np.where(error < SMALL_SHARE * largest, -1, error > largest)
        change[~np.isfinite(error)] = self.last
        # The longest step from a place is the largest power of two that divides it.
        places = self.place[rows]
        longest = np.where(places > 0, np.bitwise_and(places, -places), self.last // 2)
        self.level[rows] = np.maximum(level + change, SHORTEST - np.log2(longest).astype(np.int64))
        return True

    def result(self) -> FirstPass:
        """Return the result."""
        stats = Stats(self.evaluations, self.accepted, self.rejected)
        return FirstPass(self.y, np.flatnonzero(self.place < self.last), stats)

    def _try(self, tableau: Tableau, rows: Rows, place: int, level: int, largest: float) -> Array:
        """Try a step of some rows, advance where its error is not too large; return the errors."""
        begin, end = self._time(place), self._time(place + (self.last >> level))
        h = end - begin
        own = self.y.new_tensor([begin, h])
        some = None if len(rows) == len(self.y) else rows
        times = stage_times(Stages(tableau, self.y[:0], buffered=True).weights, *own)
        prepared = self._prepared(times)
        pieces = self._pieces(some)
        results = [self._advance(tableau, prepared, times, piece, h, place) for piece in pieces]
        ends, errors = zip(*results, strict=True)
        y, error = torch.cat(ends)[: len(rows)], np.concatenate(errors)[: len(rows)]
        self.evaluations[rows] += tableau.error_stages - (place == 0)
        good = error <= largest
        if good.all() and some is None:
            self.y = y
        else:
            chosen = self._index(np.flatnonzero(good))
            self.y = self.y.index_copy(0, self._index(rows[good]), y[chosen])
        self.accepted[rows] += good
        self.rejected[rows] += ~good
        self.place[rows] += good * (self.last >> level)
        return error

    def _advance(
        self, tableau: Tableau, prepared: Any, times: Tensor, piece: Any, h: float, place: int
    ) -> tuple[Tensor, Array]:
        """Return the ends and errors of a step of the rows of a piece."""
        own, y = self._stages(prepared, times, piece), self.y[piece]
        part, whole = self.dynamics.evaluate_unweighted, self.dynamics.evaluate

        def at(i: int, y: Tensor) -> Tensor:
            return (part if tableau.unweighted[i] else whole)(own[i], y)

        stages = Stages(tableau, y, buffered=True)
        stages.restart(y, at(0, y) if place else self.slope[piece], h)
        result = advance(lambda _, y: y, stages, times[0], y.new_tensor(h), at)
        return result.y1, self._norm(result.error(), y, result.y1)

    def _from_data(self, place: int) -> float:
        """Return how far a place is from the data, as a share of the way to the base."""
        share = float(place / self.last)
        return share if self.span < 0 else 1 - share

    def _time(self, place: int) -> float:
        """Return the time at a place."""
        share: float = self._from_data(place) ** WARP
        return self.begin + self.span * (share if self.span < 0 else 1 - share)

    def _pieces(self, rows: Rows | None) -> Sequence[Any]:
        """Return the indices of rows (None: all) in pieces; few are repeated up to `MIN_BATCH`."""
        count = len(self.y) if rows is None else len(rows)
        parts = -(-count // LARGEST_PIECE)
        if rows is None and count >= MIN_BATCH:
            edges = [count * i // parts for i in range(parts + 1)]
            return [slice(*ends) for ends in pairwise(edges)]
        rows = np.arange(count) if rows is None else rows
        rows = np.resize(rows, MIN_BATCH) if count < MIN_BATCH else rows
        return self._index(rows).tensor_split(parts)

    def _prepared(self, times: Tensor) -> Any:
        """Return the dynamics at times, where no argument belongs to rows."""
        return self.dynamics.prepare(times, self.args) if self.shared else None

    def _stages(self, prepared: Any, times: Tensor, piece: Any) -> Any:
        """Return the dynamics at times for a piece."""
        if self.shared:
            return prepared
        return self.dynamics.prepare(times, take_rows(self.args, piece))

    def _norm(self, error: Tensor, *states: Tensor) -> Array:
        ratio = self.tolerance.ratio(error, *states)
        numbers: Array = self.tolerance.norm(ratio).double().cpu().numpy()
        return numbers

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.y.device)
