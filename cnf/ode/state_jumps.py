"""Jumps of the state: a solve in stretches from each jump to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import rowwise, take_rows
from cnf.ode.controllers import Array
from cnf.ode.options import between
from cnf.ode.solution import Solution, Stats, Status
from cnf.ode.step import BoundDynamics

# Takes the number of a jump, its time, the state before it and the arguments; returns that after.
JumpFunction = Callable[[int, Tensor, Tensor, Any], Tensor]
StateJumps = tuple[Tensor | Sequence[Any], JumpFunction]
# Solves a stretch, of its first state, its times, first step, stops and fixed steps.
StretchSolver = Callable[[Tensor, Tensor, float | Array | None, Any, Any], Solution]


def is_state_jumps(jumps: Any) -> TypeGuard[StateJumps]:
    """Return whether jumps are those of the state: times and a function."""
    return isinstance(jumps, tuple | list) and len(jumps) == 2 and callable(jumps[1])


@dataclass(frozen=True, eq=False)
class Stretch:
    """The time from one jump to the next, with the output times inside it.

    Attributes:
        ts: The first time, the outputs, the last, shape (times,) or (rows, times).
        wanted: Whether each of the solve's output times is here, of their shape.
        place: The position among `ts` of those that are.
    """

    ts: Tensor
    wanted: Tensor
    place: Tensor

    @cached_property
    def spans(self) -> Array:
        """The ways of all rows, or of each."""
        ways: Array = (self.ts[..., -1] - self.ts[..., 0]).detach().abs().double().cpu().numpy()
        return ways


class JumpTimes:
    """The times of jumps, of all rows or of each, and the stretches between them.

    Args:
        times: Times of jumps, shape (jumps,) or (rows, jumps); NaN means no jump, and so does a
            time that repeats the one before.
        ts: Output times of the solve, of as many dimensions.

    Raises:
        ValueError: The times are not in the direction of time, or outside the solve.
    """

    def __init__(self, times: Tensor, ts: Tensor) -> None:
        self.ts, first, last = ts, ts[..., :1], ts[..., -1:]
        ahead = torch.where(last < first, -1.0, 1.0).to(ts)
        start, after = (ahead * each.detach() for each in (first, times))
        passed = torch.cat([start, after.nan_to_num(nan=-torch.inf)], -1).cummax(-1).values
        _check_order(times, (after < passed[..., :-1]) | (after > ahead * last.detach()))
        at_start = after == start
        self.present = (after > passed[..., :-1]) | (at_start & (at_start.cumsum(-1) == 1))
        # A row that does not jump waits at its jump before, where the next stretch begins for it.
        self.edges = [first]
        for j in range(times.shape[-1]):
            here = slice(j, j + 1)
            time = torch.where(self.present[..., here], times[..., here], self.edges[-1])
            self.edges.append(time)
        begins = ahead * torch.cat(self.edges, -1).detach()
        self.edges.append(last)
        # The output at a jump is the state after it.
        outputs = (ahead * ts.detach()).contiguous()
        self.stretch = torch.searchsorted(begins.contiguous(), outputs, right=True) - 1

    def between(self, j: int) -> Stretch:
        """Return the stretch before jump j, or after all of them."""
        begin, end = self.edges[j], self.edges[j + 1]
        wanted = self.stretch == j
        if self.ts.ndim == 1:
            outputs = self.ts[wanted]
            inner = (outputs != begin) & (outputs != end)  # a solve has each time once
            ts = torch.cat([begin, outputs[inner], end])
            own = torch.where(outputs == end, len(ts) - 1, inner.cumsum(0))
            place = torch.zeros_like(self.stretch).masked_scatter(wanted, own * (outputs != begin))
            return Stretch(ts, wanted, place)
        count, start = int(wanted.sum(1).max()), wanted.int().argmax(1, keepdim=True)
        number = torch.arange(self.ts.shape[1], device=start.device)
        column = (start + number[:count]).clamp(max=len(number) - 1)
        own = torch.where(wanted.gather(1, column), self.ts.gather(1, column), end)
        return Stretch(torch.cat([begin, own, end], 1), wanted, 1 + number - start)


def solve_with_jumps(
    solve: StretchSolver,
    slope: BoundDynamics,
    y0: Tensor,
    ts: Tensor,
    args: Any,
    jumps: StateJumps,
    first_step: float | Array | None,
    stops: Any,
    step_size: Any,
    stop_early: bool,
) -> Solution:
    """Solve from each jump to the next, where the function changes the state.

    Args:
        solve: Solves a stretch, and returns rows that fail as well.
        slope: The dynamics where all rows have the same time, without a gradient.
        y0: See `cnf.ode.solve`.
        ts: Its times.
        args: See `cnf.ode.solve`.
        jumps: Times and function.
        first_step: Size of the very first step.
        stops: See `cnf.ode.solve`.
        step_size: See `cnf.ode.solve`.
        stop_early: Whether the solve ends at the first failure of a row.

    Raises:
        ValueError: The times are not as described, or the function changes the state's shape.
    """
    given, (times, function) = ts, jumps
    times, rows = torch.as_tensor(times, dtype=ts.dtype, device=ts.device), y0.shape[:1]
    if times.ndim not in (1, 2) or (times.ndim == 2 and times.shape[:1] != rows):
        raise ValueError(
            f"Expected the times of jumps in a shape (jumps,), or (rows, jumps) for the rows of a "
            f"state of shape {tuple(y0.shape)}; got {tuple(times.shape)}"
        )
    if ts.ndim != times.ndim:
        ts, times = (each.expand(*rows, -1) for each in (ts, times))
    plan, march = JumpTimes(times, ts), _March(y0, ts, first_step, stops, step_size)
    for j in range(times.shape[-1] + 1):
        stretch = plan.between(j)
        if j and ts.ndim == 1 and ts.requires_grad:
            march.shift_outputs(slope, stretch)
        march.move(solve, stretch, j)
        if march.failed.all() or (stop_early and march.failed.any()):
            break
        if j < times.shape[-1]:
            march.jump(function, j, plan.edges[j + 1], plan.present[..., j], args)
    return replace(march.solution(plan.stretch), ts=given)


class _March:
    """The state on its way through the stretches, and all that has been found so far."""

    def __init__(
        self, y0: Tensor, ts: Tensor, first_step: float | Array | None, stops: Any, step_size: Any
    ) -> None:
        rows = y0.shape[0] if y0.ndim else 1
        self.y, self.ts = y0, ts
        self.first_step, self.stops, self.step_size = first_step, stops, step_size
        self.states: list[Tensor] = []  # at the times of all stretches
        self.count = 0
        self.index = torch.zeros(ts.shape, dtype=torch.int64, device=ts.device)  # of each output
        self.shift: Tensor | float = 0.0  # zeros, with gradients to the times of outputs at jumps
        self.stats: Stats | None = None
        self.status = np.full(rows, Status.FINISHED)
        self.order: list[int] = []  # of the rows that failed
        self.failed = np.zeros(rows, dtype=bool)
        self.last = np.zeros(rows, dtype=np.int64)  # the last stretch that counts
        self.last_times: Array = np.zeros(rows)
        self.last_states = y0.detach()

    def move(self, solve: StretchSolver, stretch: Stretch, j: int) -> None:
        """Solve stretch j."""
        self.last[~self.failed] = j
        self.index = torch.where(stretch.wanted, self.count + stretch.place, self.index)
        still = not stretch.spans.any()
        if still and not (stretch.ts.ndim == 2 and stretch.ts.requires_grad):
            self._add(self.y.expand(stretch.ts.shape[-1], *self.y.shape))
            self._reach(stretch.ts[..., -1].detach().double().cpu().numpy(), self.y.detach())
            return
        solution = solve(self.y, stretch.ts, self.first_step, *self._steps(stretch.ts))
        self._add(solution.ys)
        self._reach(solution.last_times, solution.last_states)
        self.stats = solution.stats if self.stats is None else self.stats + solution.stats
        self._carry_step(solution.stats, stretch)
        if solution.rows:  # a state that is finite, so that the others' gradients are
            self.y = torch.where(_mask(solution.failed, self.y), self.y, solution.ys[-1])
            fresh = [row for row in solution.rows if not self.failed[row]]
            self.order += fresh
            self.status[fresh], self.failed[fresh] = solution.row_status[fresh], True
        else:
            self.y = solution.ys[-1]

    def shift_outputs(self, slope: BoundDynamics, stretch: Stretch) -> None:
        """Let the outputs at the jump before a stretch move with their own times."""
        begin = stretch.ts[:1]
        after = stretch.wanted & (self.ts == begin)
        if after.any():
            times = torch.where(after, self.ts - begin, 0.0)
            moved = (times - times.detach()).view(-1, *(1,) * self.y.ndim)
            # A slope that is not finite must not make the states so.
            self.shift = self.shift + moved * slope(begin[0], self.y).nan_to_num(0.0, 0.0, 0.0)

    def jump(
        self, function: JumpFunction, j: int, time: Tensor, present: Tensor, args: Any
    ) -> None:
        """Change the state of the rows that jump."""
        if not present.any():
            return
        t = rowwise(time, self.y.ndim) if present.ndim else time[0]
        y = function(j, t, self.y, take_rows(args, None))
        if y.shape != self.y.shape or y.dtype != self.y.dtype:
            raise ValueError(
                "Expected the function of jumps to return a state like the one it gets, "
                f"{tuple(self.y.shape)} and {self.y.dtype}; got {tuple(y.shape)} and {y.dtype}"
            )
        self.y = y if present.all() else torch.where(_mask(present, y), y, self.y)

    def solution(self, stretch: Tensor) -> Solution:
        """Return the solution, given the stretch of each output time."""
        states = torch.cat(self.states)
        if stretch.ndim == 1:
            ys = states.index_select(0, self.index) + self.shift
            stretch = stretch.expand(len(self.last), -1)
        else:
            index = self.index.mT.reshape(*self.index.mT.shape, *(1,) * (states.ndim - 2))
            ys = states.gather(0, index.expand(-1, *states.shape[1:]))
        last = torch.from_numpy(self.last).to(stretch.device)
        missing = stretch.mT > last
        if missing.any():
            ys = ys.masked_fill(_mask(missing, ys) if ys.ndim > 1 else missing[:, 0], torch.nan)
        self._reach(self.last_times.copy(), self.y.detach())  # after a jump at the last time
        stats, order = self.stats or Stats(), tuple(self.order)
        return Solution(self.ts, ys, self.status, stats, order, self.last_times, self.last_states)

    def _add(self, states: Tensor) -> None:
        self.states.append(states)
        self.count += len(states)

    def _steps(self, ts: Tensor) -> tuple[Any, Any]:
        """Return the stops and the fixed steps of a stretch."""
        stops, size = self.stops, self.step_size
        if ts.ndim == 2:
            return stops, size
        if size is not None and not isinstance(size, float | int):
            size = torch.cat([ts[:1], _within(size, ts), ts[-1:]])
        return (None if stops is None else _within(stops, ts)), size

    def _carry_step(self, stats: Stats, stretch: Stretch) -> None:
        """Begin the next stretch with steps as long as the longest ones that were not rejected.

        One or two steps, which the stretch may have cut short, say that longer ones are possible.
        """
        accepted, rejected = np.asarray(stats.accepted), np.asarray(stats.rejected)
        spans = stretch.spans if accepted.ndim else stretch.spans.max()
        before = np.nan if self.first_step is None else self.first_step
        sizes = np.where(accepted <= 2, 2.0, 1.0) * spans / np.maximum(accepted, 1)
        sizes = np.where(rejected > 0, spans / np.maximum(accepted, 1), np.fmax(before, sizes))
        sizes = np.where((accepted > 0) & (spans > 0), sizes, before)  # those that moved
        self.first_step = sizes if sizes.ndim else float(sizes)

    def _reach(self, times: Array, states: Tensor) -> None:
        """Note how far the rows got that have not failed."""
        self.last_times = np.where(self.failed, self.last_times, times)
        if not self.failed.any():
            self.last_states = states
            return
        failed = torch.from_numpy(self.failed).to(states.device)
        self.last_states = torch.where(_mask(failed, states), self.last_states, states)


def _check_order(times: Tensor, wrong: Tensor) -> None:
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        row = f" in row {place[0]}" if wrong.ndim == 2 else ""
        raise ValueError(
            "Expected the times of jumps to be in the direction of time, from the first to the "
            f"last time; got {times[tuple(place)].item():g}{row}: sort them, and pad rows with NaN"
        )


def _within(times: Tensor | Sequence[float], ts: Tensor) -> Tensor:
    """Return the times inside a stretch."""
    times = torch.as_tensor(times, dtype=ts.dtype, device=ts.device)
    return between(times, ts[0], ts[-1])


def _mask(rows: Tensor, like: Tensor) -> Tensor:
    """Return a mask of rows, shaped to broadcast against states."""
    return rows.reshape(*rows.shape, *(1,) * (like.ndim - rows.ndim)) if like.ndim else rows[0]
