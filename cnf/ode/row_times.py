"""Output times of rows: dynamics in a time in which all rows start and end together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnf.ode.arguments import PerRow
from cnf.ode.controllers import Array
from cnf.ode.dense_output import OutputTimes
from cnf.ode.dynamics import Dynamics, StagedDynamics
from cnf.ode.step import interior


class RowTimes:
    """The map from the time s in which all rows are solved together to the time of each row.

    Row r has edges e_0 … e_n: its first time, the stops in between, its last time. At s = j all
    rows are at their edge j, and in between

        t_r(s) = e_rj + (s − j) (e_r,j+1 − e_rj),   dy_r/ds = (e_r,j+1 − e_rj) f(t_r, y_r).

    A row stays where it is while two edges coincide.

    Args:
        ts: Output times, shape (rows, times), monotone along each row.
        stops: Times in between that steps have to end at, shape (rows, stops) or (stops,), in any
            order; those outside a row's interval are none of its stops.
        dim: Number of dimensions of the state.
    """

    def __init__(self, ts: Tensor, stops: Tensor | None, dim: int) -> None:
        first, last = ts[:, :1], ts[:, -1:]
        edges = [first, last]
        if stops is not None:
            edges.insert(1, _ordered(stops.to(ts).expand(len(ts), -1), first, last))
        self.ts, self.edges = ts, torch.cat(edges, 1)
        self.shape = (-1, *(1,) * (dim - 1))
        self.segments = self.edges.shape[1] - 1
        self.waiting = bool((self.edges.detach().diff(dim=1) == 0).any())

    @property
    def knots(self) -> Tensor:
        """The first and the last time s."""
        return self.edges.new_tensor([0.0, self.segments])

    @property
    def inner(self) -> Tensor | None:
        """The times s of the stops; None without any."""
        inner = torch.arange(1, self.segments).to(self.edges)
        return inner if len(inner) else None

    def spans(self) -> Array:
        """Return the longest distance between two edges of each row."""
        spans: Array = self.edges.detach().diff(dim=1).abs().amax(1).double().cpu().numpy()
        return spans

    def outputs(self) -> OutputTimes:
        """Return the output times in the time s."""
        edges = self.edges.detach()
        place = self._places(self.ts.detach(), edges)
        times = self._positions(self.ts, self.edges, place)
        fractions = self._positions(self.ts.detach().double(), edges.double(), place)
        return OutputTimes(times, fractions.cpu().numpy() / self.segments)

    def times(self, s: Array) -> Array:
        """Return each row's time at its time s."""
        edges: Array = self.edges.detach().double().cpu().numpy()
        place = np.minimum(s.astype(int), self.segments - 1)
        rows = np.arange(len(edges))
        begin, end = edges[rows, place], edges[rows, place + 1]
        times: Array = np.where(s == place + 1, end, begin + (s - place) * (end - begin))
        return times

    def dynamics(self, f: Dynamics) -> Dynamics:
        """Return the dynamics in the time s, whose arguments are those of `arguments`."""
        return _StagedRows(f, self) if isinstance(f, StagedDynamics) else _Rows(f, self)

    def arguments(self, args: Any) -> tuple[tuple[PerRow, PerRow, PerRow], Any]:
        """Return arguments with each row's edges, the distances between them, and their ends."""
        begin, end = self.edges[:, :-1], self.edges[:, 1:].detach()
        return (PerRow(begin), PerRow(self.edges.diff(dim=1)), PerRow(end)), args

    def at(self, s: Tensor, edges: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the times of rows at s, and the spans that they are in; s is of all or of each."""
        if self.segments == 1:
            begin, span, _ = edges
            begin, span = begin.view(self.shape), span.view(self.shape)
            return begin + s * span, span
        place = s.detach().floor().clamp(0, self.segments - 1)
        column = place.long().reshape(-1, 1).expand(len(edges[0]), 1)
        begin, span, end = (part.gather(1, column).view(self.shape) for part in edges)
        # Rounding must not put a time on the other side of a jump.
        return interior(begin, end)(begin + (s - place) * span), span

    def scaled(self, slope: Tensor, span: Tensor) -> Tensor:
        """Return slopes in the time s; zero for rows that wait, also where f is not finite."""
        if self.waiting:
            slope = slope.masked_fill((span == 0) & ~slope.isfinite(), 0.0)
        return span * slope

    def _places(self, ts: Tensor, edges: Tensor) -> Tensor:
        """Return the number of the edge before each time."""
        ahead = torch.where(edges[:, -1:] < edges[:, :1], -1.0, 1.0).to(ts)
        found = torch.searchsorted((ahead * edges).contiguous(), (ahead * ts).contiguous())
        return (found - 1).clamp(0, self.segments - 1)

    def _positions(self, ts: Tensor, edges: Tensor, place: Tensor) -> Tensor:
        """Return the times s of output times; rows that stay where they are end at once."""
        begin, end = edges.gather(1, place), edges.gather(1, place + 1)
        span, still = end - begin, end == begin
        position = place + (ts - begin) / torch.where(still, 1.0, span)
        last = torch.full_like(position, self.segments)
        position = torch.where((edges[:, :1] == edges[:, -1:]), last, position)
        return torch.cat([torch.zeros_like(position[:, :1]), position[:, 1:]], 1)


class _Rows:
    """Dynamics in the time s."""

    def __init__(self, f: Dynamics, rows: RowTimes) -> None:
        self.f, self.rows = f, rows

    def __call__(self, s: Tensor, y: Tensor, args: Any) -> Tensor:
        edges, inner = args
        t, span = self.rows.at(s, edges)
        return self.rows.scaled(self.f(t, y, inner), span)


class _StagedRows(StagedDynamics):
    """Staged dynamics in the time s."""

    def __init__(self, f: StagedDynamics, rows: RowTimes) -> None:
        self.f, self.rows = f, rows
        self.rest_share = f.rest_share  # type: ignore[misc]

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        edges, inner = args
        each = [self.rows.at(s, edges) for s in times.unbind()]
        shape = (len(edges[0]), *self.rows.shape[1:])
        stages = self.f.prepare(torch.stack([t.expand(shape) for t, _ in each]), inner)
        return [(span, stage) for (_, span), stage in zip(each, stages, strict=True)]

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        span, own = stage
        return self.rows.scaled(self.f.evaluate(own, y), span)

    def evaluate_unweighted(self, stage: Any, y: Tensor) -> Tensor:
        span, own = stage
        return self.rows.scaled(self.f.evaluate_unweighted(own, y), span)


def _ordered(stops: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the stops of rows in order, with the last time for those outside the interval."""
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    ahead = torch.where(last < first, -1.0, 1.0).to(stops)
    inside = (stops > low) & (stops < high)
    # The last time stays differentiable where it stands for a stop.
    order = torch.where(inside, ahead * stops, torch.inf).sort(1)
    stops = stops.gather(1, order.indices)
    return torch.where(order.values.isfinite(), stops, last)
