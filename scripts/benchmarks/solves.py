"""The solver's overhead, and the influence of a batch's rows on one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from cnf.fields import ConcatSquash
from cnf.flow import Flow
from cnf.layers import CNF
from cnf.ode import solve
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.measure import CountedField, TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.utils.random import seeded

Field = Callable[[Tensor, Tensor], Tensor]

STATE_ROWS, STATE_COLUMNS, SOLVES_PER_TIMING, FIELD_CALLS = 512, 3, 20, 100
OVERHEAD_TOLERANCES: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
BATCH_ROWS, CURVED_ROWS, CURVED_SPEED, ROW_TOLERANCE = 1000, 20, 10.0, 1e-6


def _decay(t: Tensor, y: Tensor, args: Any = ()) -> Tensor:
    """Return -y, a field so cheap that a solve takes only the solver's time."""
    return -y


def _ours(f: Field, y0: Tensor) -> object:
    return solve(lambda t, y, _: f(t, y), y0, [0.0, 1.0], method="dopri5", **OVERHEAD_TOLERANCES)


def _torchdiffeq(f: Field, y0: Tensor) -> object:
    times = torch.tensor([0.0, 1.0])
    return peer("torchdiffeq").odeint(f, y0, times, method="dopri5", **OVERHEAD_TOLERANCES)


def _torchode(f: Field, y0: Tensor) -> object:
    torchode = peer("torchode")
    term = torchode.ODETerm(f)
    controller = torchode.IntegralController(**OVERHEAD_TOLERANCES, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller)
    ends = torch.zeros(STATE_ROWS), torch.ones(STATE_ROWS)
    return solver.solve(torchode.InitialValueProblem(y0, *ends))


def _bare_field(f: Field, y0: Tensor) -> object:
    now = torch.zeros(())
    return [f(now, y0) for _ in range(FIELD_CALLS)]


@torch.no_grad()
def overhead(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of solvers' time beyond that of the dynamics."""
    y0 = torch.linspace(-1, 1, STATE_ROWS * STATE_COLUMNS).reshape(STATE_ROWS, STATE_COLUMNS)
    solvers = {"cnf": _ours, "torchdiffeq": _torchdiffeq, "torchode": _torchode}
    solvers["bare field"] = _bare_field
    counted = {name: CountedField(_decay) for name in solvers}
    for name, run in solvers.items():
        run(counted[name], y0)
    runs = {name: partial(run, _decay, y0) for name, run in solvers.items()}
    seconds = median_seconds(runs, options.repeats, SOLVES_PER_TIMING)
    each = {name: 1e6 * taken / counted[name].calls for name, taken in seconds.items()}
    yield (
        f"Overhead: f = -y, {STATE_ROWS} x {STATE_COLUMNS} float32, t from 0 to 1, dopri5, "
        f"rtol = atol = 1e-6, no gradient, {threads_used(options.repeats)}"
    )
    for name, taken in each.items():
        calls, ratio = counted[name].calls, taken / each["cnf"]
        yield {"": name, "evals": calls, "us/eval": taken, "to cnf": ratio}
    yield "cnf and torchdiffeq: joint steps; torchode: per-sample steps, as it has no others; eager"


class SpeedScaledField(nn.Module):
    """A field c g(c t, x): g at c times its speed, with c² times its curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.field = ConcatSquash(2, (16, 16), zero_last=False)

    def forward(self, t: Tensor, x: Tensor, speed: Tensor) -> Tensor:
        velocity: Tensor = speed * self.field((speed * t).expand(len(x), 1), x)
        return velocity


@torch.no_grad()
def influence(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of the largest difference between a row's log p in the batch and alone."""
    with seeded(0):
        layer = CNF(SpeedScaledField(), rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE, divergence="exact")
        flow = Flow(Independent(Normal(torch.zeros(2), torch.ones(2)), 1), [layer]).double()
        x = torch.randn(BATCH_ROWS, 2, dtype=torch.float64)
    speed = torch.ones(BATCH_ROWS, 1, dtype=torch.float64)
    speed[:CURVED_ROWS] = CURVED_SPEED
    yield (
        f"Rows: log p of {BATCH_ROWS} rows, {CURVED_ROWS} of them with {CURVED_SPEED**2:.0f} times "
        f"the curvature; float64, rtol = atol = {ROW_TOLERANCE:g}, exact trace, "
        f"{threads_used(options.repeats)}"
    )
    # The first pass of steps at shared times, of another method, would hide what steps cost.
    solved = {
        step: flow.with_solver(step=step, first_pass=False) for step in ("per_sample", "joint")
    }
    runs = {step: partial(each.score_rows, x, speed) for step, each in solved.items()}
    seconds = median_seconds(runs, options.repeats)
    for step, each in solved.items():
        scored = each.score_rows(x, speed)
        alone = [each.log_prob(x[i : i + 1], speed[i : i + 1]) for i in range(BATCH_ROWS)]
        yield {
            "step": step,
            "evaluations, summed": int(np.broadcast_to(scored.stats.evaluations, BATCH_ROWS).sum()),
            "seconds": seconds[step],
            "in batch - alone": (scored.log_prob - torch.cat(alone)).abs().max().item(),
        }
