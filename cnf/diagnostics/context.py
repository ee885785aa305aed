"""The contexts of checks: rows of data with log p, and a flow that is solved in other ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from cnf.diagnostics.axes import Axis, axes_of
from cnf.diagnostics.report import MAX_NAMED_ROWS
from cnf.fields import as_field
from cnf.fields.divergence import Hutchinson, choose_divergence
from cnf.flow import Flow
from cnf.layers import CNF, Steps
from cnf.ode import SolveError, Status
from cnf.training.data import RowDensity, Rows, rows_for
from cnf.utils.random import seeded

SEED_OFFSET = 2**30  # from users' seeds, by which the data may have been drawn
PRECISE_TOLERANCE = 1e-8  # of solves that are differentiated by differences
SOLVE_PROBES = 4  # estimates of a trace where only the solve matters; Hutch++ halves them
STEP_LIMIT_FACTOR = 20  # on the step limit, of tighter solves
MAX_SOLVE_ROWS = 2000
MAX_SOLVE_NUMBERS = 2**16  # in the rows of a solve: an exact trace may take a pass for each
MAX_EXACT_NUMBERS = 2**12  # in rows whose trace is exact where the flow's own is an estimate


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """Rows of data that a model is checked on, and their log p."""

    data: Rows  # all of it
    seed: int
    points: int  # the most at which the density is evaluated for its integral
    rows: Rows  # those that were taken
    log_prob: Tensor  # of these, in double precision
    solves: pd.DataFrame  # each row's status and costs, by its place in the data

    @property
    def finished(self) -> Tensor:
        """Whether a row has a log p, shape (rows,)."""
        finished = torch.tensor([*(self.solves["status"] == Status.FINISHED)])
        return self.log_prob.isfinite() & finished.to(self.log_prob.device)

    def take(self, chosen: Tensor) -> Self:
        """Return the context of some of the rows."""
        return replace(
            self,
            rows=self.rows[chosen],
            log_prob=self.log_prob[chosen],
            solves=self.solves[chosen.cpu().numpy()],
        )

    def places(self, chosen: Tensor) -> list[int]:
        """Return the places in the data of the first few chosen rows."""
        found: list[int] = self.solves.index[chosen.cpu().numpy()][:MAX_NAMED_ROWS].tolist()
        return found

    def largest(self, sizes: Tensor) -> list[int]:
        """Return the places in the data of the rows with the largest sizes, NaN first."""
        return self.places(torch.argsort(sizes.nan_to_num(inf), descending=True))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class CheckContext(CheckedRows):
    """A flow and rows of data that it is checked on; `rows` have one draw of noise."""

    full_flow: Flow
    flow: Flow  # the part with a density: without the layers next to the data that add noise
    table: Rows  # the rows as in the data

    @staticmethod
    def of(
        flow: Flow, data: Tensor, context: Tensor | None, rows: int, seed: int, points: int
    ) -> CheckContext:
        """Return the context of a flow and random rows of the data, scored once.

        Raises:
            ValueError: A shape does not fit, a value is not finite, or a number is not above 0.
        """
        flow = with_settings(flow, _without_generator)
        every, index = random_rows(flow, data, context, rows, seed, points)
        table = every[index.to(every.x.device)]
        inner, noise = split_noise_layers(flow)
        with torch.no_grad(), seeded_for(flow, seed):
            x = table.x
            for layer in reversed(noise):
                x = layer.pull(x).value
            noisy = Rows(x, table.context)
            scores = [
                inner.score(part.x, part.context, probes=SOLVE_PROBES)
                for part in noisy.split(rows_in_solve(flow))
            ]
        costs = ("evaluations", "accepted", "rejected")
        frames = [
            pd.DataFrame({"status": one.status}).assign(**{k: getattr(one.stats, k) for k in costs})
            for one in scores
        ]
        solves = pd.concat(frames).set_index(index.numpy())
        log_prob = torch.cat([each.log_prob for each in scores]).double()
        return CheckContext(every, seed, points, noisy, log_prob, solves, flow, inner, table)

    def take(self, chosen: Tensor) -> Self:
        """Return the context of some of the rows."""
        return replace(super().take(chosen), table=self.table[chosen])

    @cached_property
    def layers(self) -> list[CNF]:
        return [layer for layer in self.flow.layers if isinstance(layer, CNF)]

    @cached_property
    def steps(self) -> list[Steps]:
        return [layer for layer in self.flow.layers if isinstance(layer, Steps)]

    @cached_property
    def estimated(self) -> bool:
        """Whether a trace is estimated."""
        return any(estimates(layer, self.flow.base.event_shape[0]) for layer in self.layers)

    @cached_property
    def double(self) -> Flow:
        """A copy of the flow in double precision, whose code is not compiled."""
        return self.flow.in_double()

    @cached_property
    def exact(self) -> Flow:
        """The flow in double precision, with exact traces."""
        return with_exact_traces(self.double)

    @cached_property
    def precise(self) -> Flow:
        """The flow with exact traces, solved precisely enough for finite differences."""
        return tightened(self.exact, lambda tolerance: PRECISE_TOLERANCE)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        return axes_of(self.flow, self.rows.x.double().cpu().numpy())

    @cached_property
    def periods(self) -> Tensor:
        """The period of each column, infinite where it is not periodic."""
        return torch.tensor([axis.period for axis in self.axes], dtype=torch.float64)

    @cached_property
    def spread(self) -> Tensor:
        """The standard deviation or the period of each column; 1 where it does not vary."""
        spread = self.rows.x.double().cpu().std(0, correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        return torch.where(self.periods.isfinite(), self.periods, spread)

    def first_rows(self, most: int) -> Rows:
        """Return the first rows in double precision, fewer where exact traces are expensive."""
        affordable = max(4, MAX_EXACT_NUMBERS // self.rows.x.shape[1])
        return in_double(self.rows[: min(most, affordable) if self.estimated else most])

    def base_draws(self, flow: Flow, count: int) -> Tensor:
        """Return draws of a flow's base, shape (count, columns)."""
        with torch.no_grad(), seeded_for(flow, self.seed):
            return flow.base.sample(torch.Size([count]))


def random_rows(
    model: RowDensity, data: Tensor, context: Tensor | None, rows: int, seed: int, points: int
) -> tuple[Rows, Tensor]:
    """Return all rows of the data, and the places of random ones in order.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or a number is not above 0.
    """
    for name, number in {"rows": rows, "points": points}.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}")
    every = rows_for(model, "data", data, context)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return every, order[:rows].sort().values


def seeded_for(model: RowDensity, seed: int) -> AbstractContextManager[None]:
    """Seed PyTorch's generators for a model's draws, unlike any small seed of the data's."""
    return seeded(SEED_OFFSET + seed, model.like.device)


def split_noise_layers(flow: Flow) -> tuple[Flow, list[Any]]:
    """Split a flow from the layers next to the data that add noise or change the columns."""
    layers = list(flow.layers)
    for depth, layer in enumerate(layers):
        if layer.stochastic or (layer.widths is not None and layer.widths[0] != layer.widths[1]):
            return type(flow)(flow.base, layers[:depth], flow.context), layers[depth:]
    return flow, []


def with_settings(flow: Flow, change: Callable[[CNF], dict[str, Any]]) -> Flow:
    """Return a flow on the same parameters, with changed solver settings of each CNF layer."""
    layers = [
        layer.with_solver(**change(layer)) if isinstance(layer, CNF) else layer
        for layer in flow.layers
    ]
    return type(flow)(flow.base, layers, flow.context)


def tightened(flow: Flow, wanted: Callable[[float], float]) -> Flow:
    """Return a flow at the wanted tolerances, at most half its own, or at half its fixed steps."""

    def change(layer: CNF) -> dict[str, Any]:
        tolerance = max(layer.settings.rtol, layer.settings.atol)
        factor = min(wanted(tolerance) / tolerance, 0.5)
        limit = {"max_steps": STEP_LIMIT_FACTOR * layer.settings.max_steps}
        return layer.settings.tightened(factor) | limit

    return with_settings(flow, change)


def estimates(layer: CNF, dim: int) -> bool:
    """Return whether a layer's trace is estimated."""
    return not choose_divergence(layer.settings.divergence, as_field(layer.field), dim).exact


def with_exact_traces(flow: Flow) -> Flow:
    """Return a flow with exact traces."""
    dim, exact = flow.base.event_shape[0], {"divergence": "exact"}
    return with_settings(flow, lambda layer: exact if estimates(layer, dim) else {})


def log_probs(flow: Flow, rows: Rows, seed: int) -> Tensor:
    """Return log p of rows in double precision, with the same probes for the same rows."""
    with torch.no_grad(), seeded_for(flow, seed):
        found = flow.log_prob(rows.x, rows.context, max_batch=rows_in_solve(flow))
    return found.double().cpu()


def log_probs_or_nan(flow: Flow, rows: Rows, seed: int) -> Tensor:
    """Return log p of rows, NaN where the solve failed and −∞ out of the base's support."""
    parts = []
    for part in rows.split(rows_in_solve(flow)):
        try:
            parts.append(log_probs(flow, part, seed))
        except (SolveError, ValueError):
            with seeded_for(flow, seed):
                scores = flow.score(part.x, part.context, probes=SOLVE_PROBES)
            parts.append(scores.log_prob.double().cpu())
    return torch.cat(parts)


def in_double(rows: Rows) -> Rows:
    """Return rows in double precision."""
    return Rows(rows.x.double(), None if rows.context is None else rows.context.double())


def rows_in_solve(flow: Flow) -> int:
    """Return the number of rows in one solve, which bounds its memory."""
    return max(1, min(MAX_SOLVE_ROWS, MAX_SOLVE_NUMBERS // flow.base.event_shape[0]))


def quantile(values: Tensor, share: float) -> float:
    """Return the value that a share of all values do not exceed, NaN where one is NaN."""
    return float(torch.quantile(values.double(), share, interpolation="higher"))


def shortest_difference(difference: Tensor, periods: Tensor) -> Tensor:
    """Return differences in double precision, of periodic columns along the shorter arc."""
    difference = difference.double().cpu()
    shorter = difference - periods * (difference / periods).round()
    return torch.where(periods.isfinite(), shorter, difference)


def _without_generator(layer: CNF) -> dict[str, Any]:
    """Return the change by which a layer's probes come from PyTorch's generator."""
    divergence = layer.settings.divergence
    if isinstance(divergence, Hutchinson) and divergence.generator is not None:
        return {"divergence": replace(divergence, generator=None)}
    return {}
