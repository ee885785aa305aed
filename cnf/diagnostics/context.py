"""What checks are made on: a flow, rows of data, and the same flow solved in other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.diagnostics.axes import Axis, axes_of
from cnf.fields import as_field
from cnf.fields.divergence import Divergence, Hutchinson, choose_divergence
from cnf.flow import Flow
from cnf.layers import CNF
from cnf.ode import SolveError, Status
from cnf.training.data import Rows, rows_for

APART = 2**30  # from a user's seeds: what is drawn is not what the data was drawn by
TIGHTER = 0.01  # times the tolerance
FINEST = 1e-11  # tolerance in double precision, however tight the flow's own
SHARP = 1e-8  # tolerance of what is differentiated by differences
SCORED = 4  # estimates of a trace, where only the solve is looked at; of Hutch++'s half are left
LONGER = 20  # times the step limit, of solves that are tighter
CHUNK = 2000  # rows in one solve
CHUNK_NUMBERS = 2**16  # or fewer, of this many numbers: an exact trace may take a pass for each
FEW = 2**12  # numbers in rows whose trace is exact where the flow's own is not


@dataclass(frozen=True, eq=False)
class CheckContext:
    """A flow and rows, ready for checks.

    Attributes:
        whole: The flow as its user has it.
        flow: What of it has a density: without the layers next to the data that draw noise.
        data: All rows of the data.
        seed: Of whatever is drawn.
        points: The most points at which the density is evaluated for its integral.
        table: The rows that were taken, as they are in the data.
        index: Their numbers in the data, from 0.
        rows: What they are to `flow`: with noise drawn once for whole numbers and categories.
        log_prob: Log p of `rows` by the flow as it is, in double precision.
        status: How their solves went, an array of `cnf.ode.Status`.
        evaluations: Of each row's solves, in all; alike `accepted` and `rejected` steps.
    """

    whole: Flow
    flow: Flow
    data: Rows
    seed: int
    points: int
    table: Rows
    index: NDArray[np.int64]
    rows: Rows
    log_prob: Tensor
    status: NDArray[np.object_]
    evaluations: NDArray[np.int64]
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]

    @staticmethod
    def of(flow: Flow, data: Rows, rows: int, seed: int, points: int) -> CheckContext:
        """Rows of the data drawn by the seed, scored once."""
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        index = order[:rows].sort().values
        table = data[index.to(data.x.device)]
        inner, noise = beneath_noise(flow)
        with torch.no_grad(), seeded(seed):
            x = table.x
            for layer in reversed(noise):
                x = layer.pull(x).value
            taken = Rows(x, table.context)
            found = [
                inner.score(part.x, part.context, probes=SCORED)
                for part in taken.split(chunk_of(flow))
            ]
        costs = [
            np.concatenate(
                [np.broadcast_to(getattr(one.stats, name), one.status.shape) for one in found]
            )
            for name in ("evaluations", "accepted", "rejected")
        ]
        log_prob = torch.cat([one.log_prob for one in found]).double()
        status = np.concatenate([one.status for one in found])
        known = (table, index.numpy(), taken, log_prob, status)
        return CheckContext(flow, inner, data, seed, points, *known, *costs)

    def scored(self) -> CheckContext:
        """The same with the rows alone that have a log p."""
        kept = self.log_prob.isfinite().cpu() & torch.from_numpy(self.status == Status.FINISHED)
        places = kept.to(self.log_prob.device)
        return replace(
            self,
            table=self.table[places],
            rows=self.rows[places],
            log_prob=self.log_prob[places],
            **{
                name: getattr(self, name)[kept.numpy()]
                for name in ("index", "status", "evaluations", "accepted", "rejected")
            },
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def layers(self) -> list[CNF]:
        """The flow's continuous layers."""
        return [layer for layer in self.flow.layers if isinstance(layer, CNF)]

    @cached_property
    def estimated(self) -> bool:
        """Whether a trace is an estimate."""
        return any(not own_divergence(layer, self.flow).exact for layer in self.layers)

    @cached_property
    def double(self) -> Flow:
        """A copy in double precision, whose code is not compiled."""
        return self.flow.in_double()

    @cached_property
    def exact(self) -> Flow:
        """That copy with exact traces."""
        return exactly(self.double)

    @cached_property
    def sharp(self) -> Flow:
        """And solved so well that differences can be taken of it."""
        return tightened(self.exact, lambda tolerance: SHARP)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The columns' axes."""
        return axes_of(self.flow, self.rows.x.double().cpu().numpy())

    @cached_property
    def turns(self) -> Tensor:
        """After how much each column is the same again, infinite where it never is."""
        return torch.tensor([axis.turn for axis in self.axes], dtype=torch.float64)

    @cached_property
    def spread(self) -> Tensor:
        """Each column's standard deviation, or its turn; 1 for one that does not vary."""
        spread = self.rows.x.double().cpu().std(0, correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        return torch.where(self.turns.isfinite(), self.turns, spread)

    def few(self, most: int) -> Rows:
        """The first rows in double precision, at most as many, and no more than exact traces bear.

        Where these take a pass for each column, that is fewer.
        """
        count = min(most, max(4, FEW // self.rows.x.shape[1]) if self.estimated else most)
        return doubled(self.rows[:count])

    def base_draws(self, flow: Flow, count: int) -> Tensor:
        """Draws of a flow's base, (count, its columns)."""
        with torch.no_grad(), seeded(self.seed):
            return flow.base.sample(torch.Size([count]))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have PyTorch's random numbers start at a seed, and go on afterwards as if nothing was.

    They are none that `torch.manual_seed` starts at a small number, as data may come from.
    """
    with torch.random.fork_rng():
        torch.manual_seed(APART + seed)
        yield


def subject_of(
    flow: Flow, data: Tensor, context: Tensor | None, rows: int, seed: int, points: int
) -> CheckContext:
    """A flow and rows, ready for checks; its probes come from PyTorch's generator, which is seeded.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or a number is not above 0.
    """
    for name, number in {"rows": rows, "points": points}.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}")
    flow = resolved(flow, _without_generator)
    return CheckContext.of(flow, rows_for(flow, "data", data, context), rows, seed, points)


def beneath_noise(flow: Flow) -> tuple[Flow, list[Any]]:
    """The flow without the layers next to the data that draw noise or change the columns; these."""
    layers = list(flow.layers)
    changing = [
        layer.noisy or (layer.widths is not None and layer.widths[0] != layer.widths[1])
        for layer in layers
    ]
    depth = changing.index(True) if True in changing else len(layers)
    if depth == len(layers):
        return flow, []
    return type(flow)(flow.base, layers[:depth], flow.context), layers[depth:]


def resolved(flow: Flow, change: Callable[[CNF], dict[str, Any]]) -> Flow:
    """A flow on the same parameters, each of whose continuous layers solves otherwise."""
    layers = [
        layer.with_solver(**change(layer)) if isinstance(layer, CNF) else layer
        for layer in flow.layers
    ]
    return type(flow)(flow.base, layers, flow.context)


def tightened(flow: Flow, wanted: Callable[[float], float]) -> Flow:
    """A flow whose layers have a tolerance by their own, or a tighter one; half the fixed steps."""

    def change(layer: CNF) -> dict[str, Any]:
        own = max(layer.settings.rtol, layer.settings.atol)
        factor = min(wanted(own) / own, 0.5)
        limit = {"max_steps": LONGER * layer.settings.max_steps}
        return layer.settings.tighter(factor) | limit

    return resolved(flow, change)


def hundredth(tolerance: float) -> float:
    """A hundredth of a tolerance, or what double precision allows for."""
    return max(TIGHTER * tolerance, FINEST)


def exactly(flow: Flow) -> Flow:
    """A flow with exact traces where its own are estimates."""

    def change(layer: CNF) -> dict[str, Any]:
        return {} if own_divergence(layer, flow).exact else {"divergence": "exact"}

    return resolved(flow, change)


def own_divergence(layer: CNF, flow: Flow) -> Divergence:
    """What a layer's setting chooses."""
    field = as_field(layer.field)
    return choose_divergence(layer.settings.divergence, field, flow.base.event_shape[0])


def log_probs(flow: Flow, rows: Rows, seed: int) -> Tensor:
    """Log p of rows in double precision, with the same probes for the same rows.

    Raises:
        SolveError: A solve failed.
    """
    with torch.no_grad(), seeded(seed):
        parts = [flow.log_prob(part.x, part.context) for part in rows.split(chunk_of(flow))]
    return torch.cat(parts).double().cpu()


def log_probs_known(flow: Flow, rows: Rows, seed: int) -> Tensor:
    """The same, NaN for rows whose solve failed and −∞ for those out of the base's support."""
    parts = []
    for part in rows.split(chunk_of(flow)):
        try:
            parts.append(log_probs(flow, part, seed))
        except (SolveError, ValueError):
            with seeded(seed):
                parts.append(
                    flow.score(part.x, part.context, probes=SCORED).log_prob.double().cpu()
                )
    return torch.cat(parts)


def doubled(rows: Rows) -> Rows:
    """Rows in double precision."""
    return Rows(rows.x.double(), None if rows.context is None else rows.context.double())


def chunk_of(flow: Flow) -> int:
    """Rows that one solve takes in a memory that does not grow with them."""
    return max(1, min(CHUNK, CHUNK_NUMBERS // flow.base.event_shape[0]))


def _without_generator(layer: CNF) -> dict[str, Any]:
    """Probes from PyTorch's own generator, where a layer has another one for them."""
    own = layer.settings.divergence
    if isinstance(own, Hutchinson) and own.generator is not None:
        return {"divergence": replace(own, generator=None)}
    return {}
