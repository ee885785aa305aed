"""Influence of the rows of a batch on one another, in per-sample and in joint steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from cnf.fields import ConcatSquash
from cnf.flow import Flow
from cnf.layers import CNF
from cnf.ode import PerRow, StepMode, solve
from cnf.scripts.benchmarks.overhead import one_thread, seconds_of
from cnf.utils.random import seeded

STEP_MODES: tuple[StepMode, ...] = ("per_sample", "joint")
BATCH_ROWS, CURVED_ROWS, CURVED_SPEED, ROW_TOLERANCE = 1000, 20, 10.0, 1e-6


class SpeedScaledField(nn.Module):
    """A field c g(c t, x): g at c times its speed, with c² times its curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.field = ConcatSquash(2, (16, 16), zero_last=False)

    def forward(self, t: Tensor, x: Tensor, speed: Tensor) -> Tensor:
        """Return the velocity of rows, each at its speed."""
        velocity: Tensor = speed * self.field((speed * t).expand(len(x), 1), x)
        return velocity


def curved_problem(rows: int, curved: int) -> tuple[Flow, Tensor, Tensor]:
    """Return a flow, rows to score and their speeds, with the curved rows first."""
    with seeded(0):
        layer = CNF(SpeedScaledField(), rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE, divergence="exact")
        flow = Flow(Independent(Normal(torch.zeros(2), torch.ones(2)), 1), [layer]).double()
        x = torch.randn(rows, 2, dtype=torch.float64)
    speed = torch.ones(rows, 1, dtype=torch.float64)
    speed[:curved] = CURVED_SPEED
    return flow, x, speed


def batch_influence(flow: Flow, x: Tensor, speed: Tensor) -> float:
    """Return the largest difference between a row's log p in the batch and alone."""
    together = flow.log_prob(x, speed)
    alone = [flow.log_prob(x[i : i + 1], speed[i : i + 1]) for i in range(len(x))]
    return float((together - torch.cat(alone)).abs().max())


def failing(t: Tensor, y: Tensor, late: Tensor) -> Tensor:
    """Return the derivatives of pendulums, NaN from t = 1/2 on for marked rows."""
    angle, velocity = y.unbind(1)
    slope = torch.stack([velocity, -torch.sin(angle)], 1)
    return torch.where((late > 0) & (t > 0.5), math.nan, slope)


def nan_seconds(step: StepMode, repeats: int) -> list[float]:
    """Time a clean batch, one with a row of NaN, and one with a row that becomes NaN."""
    y = torch.linspace(-3, 3, 2 * BATCH_ROWS, dtype=torch.float64).reshape(BATCH_ROWS, 2)
    broken, late = y.clone(), torch.zeros(BATCH_ROWS, 1, dtype=torch.float64)
    broken[17], late[17] = math.nan, 1.0

    def run(start: Tensor, mark: Tensor) -> None:
        solve(
            failing,
            start,
            [0.0, 10.0],
            PerRow(mark),
            rtol=ROW_TOLERANCE,
            atol=ROW_TOLERANCE,
            step=step,
            on_failure="return",
        )

    runs = [partial(run, *given) for given in ((y, 0 * late), (broken, 0 * late), (y, late))]
    for once in runs:
        once()
    seconds = [[seconds_of(once, 3) for once in runs] for _ in range(repeats)]
    return [median(column) for column in zip(*seconds, strict=True)]


def lines(repeats: int) -> Iterator[str]:
    """Yield the lines of the tables."""
    flow, x, speed = curved_problem(BATCH_ROWS, CURVED_ROWS)
    yield (
        f"Rows: log p of {BATCH_ROWS} rows, {CURVED_ROWS} of them with {CURVED_SPEED**2:.0f} times "
        f"the curvature; float64, rtol = atol = {ROW_TOLERANCE:g}, exact trace, threads: 1"
    )
    yield f"{'step':<15}{'evaluations, summed':>22}{'seconds':>10}{'in batch - alone':>20}"
    with torch.no_grad(), one_thread():
        for step in STEP_MODES:
            solved = flow.with_solver(step=step)
            run = partial(solved.score_rows, x, speed)
            evaluations = np.sum(
                run().stats.evaluations * np.ones(BATCH_ROWS if step == "joint" else 1)
            )
            taken = median(seconds_of(run, 1) for _ in range(repeats))
            influence = batch_influence(solved, x, speed)
            yield f"{step:<15}{evaluations:>22.0f}{taken:>10.2f}{influence:>20.1e}"
        yield ""
        yield f"One row of NaN among {BATCH_ROWS}: seconds, median of {repeats}, and units of clean"
        yield f"{'step':<15}{'clean':>10}{'NaN row':>18}{'NaN at half-way':>18}"
        for step in STEP_MODES:
            clean, *others = nan_seconds(step, repeats)
            yield f"{step:<15}{clean:>10.4f}" + "".join(
                f"{taken:>11.4f}{taken / clean:>7.2f}" for taken in others
            )
