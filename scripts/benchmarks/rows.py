"""What rows of a batch cost one another, in steps of their own and in joint ones."""

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

STEPS: tuple[StepMode, ...] = ("per_sample", "joint")
ROWS, CURVED, SPEED, TOLERANCE = 1000, 20, 10.0, 1e-6


class Sped(nn.Module):
    """A field c g(c t, x), run through at c times g's speed: with c² times its curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.field = ConcatSquash(2, (16, 16), zero_last=False)

    def forward(self, t: Tensor, x: Tensor, speed: Tensor) -> Tensor:
        """The velocity of rows, each at its own speed."""
        velocity: Tensor = speed * self.field((speed * t).expand(len(x), 1), x)
        return velocity


def problem(rows: int, curved: int) -> tuple[Flow, Tensor, Tensor]:
    """A flow, rows to score, and their speeds; the first rows are the curved ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = CNF(Sped(), rtol=TOLERANCE, atol=TOLERANCE, divergence="exact")
        flow = Flow(Independent(Normal(torch.zeros(2), torch.ones(2)), 1), [layer]).double()
        x = torch.randn(rows, 2, dtype=torch.float64)
    speed = torch.ones(rows, 1, dtype=torch.float64)
    speed[:curved] = SPEED
    return flow, x, speed


def company(flow: Flow, x: Tensor, speed: Tensor) -> float:
    """The largest difference of a row's log p in the batch to the one by itself."""
    together = flow.log_prob(x, speed)
    alone = [flow.log_prob(x[i : i + 1], speed[i : i + 1]) for i in range(len(x))]
    return float((together - torch.cat(alone)).abs().max())


def failing(t: Tensor, y: Tensor, late: Tensor) -> Tensor:
    """A pendulum for each row; those marked have no slope from t = 1/2 on."""
    angle, velocity = y.unbind(1)
    slope = torch.stack([velocity, -torch.sin(angle)], 1)
    return torch.where((late > 0) & (t > 0.5), math.nan, slope)


def nan_seconds(step: StepMode, repeats: int) -> list[float]:
    """Seconds of a batch that is clean, with a row of NaN, and with a row that becomes NaN."""
    y = torch.linspace(-3, 3, 2 * ROWS, dtype=torch.float64).reshape(ROWS, 2)
    broken, late = y.clone(), torch.zeros(ROWS, 1, dtype=torch.float64)
    broken[17], late[17] = math.nan, 1.0

    def run(start: Tensor, mark: Tensor) -> None:
        solve(
            failing,
            start,
            [0.0, 10.0],
            PerRow(mark),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            step=step,
            on_failure="return",
        )

    runs = [partial(run, *given) for given in ((y, 0 * late), (broken, 0 * late), (y, late))]
    for once in runs:
        once()
    seconds = [[seconds_of(once, 3) for once in runs] for _ in range(repeats)]
    return [median(column) for column in zip(*seconds, strict=True)]


def lines(repeats: int) -> Iterator[str]:
    """The tables."""
    flow, x, speed = problem(ROWS, CURVED)
    yield (
        f"Rows: log p of {ROWS} rows, {CURVED} of them with {SPEED**2:.0f} times the curvature; "
        f"float64, rtol = atol = {TOLERANCE:g}, exact trace, threads: 1"
    )
    yield f"{'step':<15}{'evaluations, summed':>22}{'seconds':>10}{'in batch - alone':>20}"
    with torch.no_grad(), one_thread():
        for step in STEPS:
            own = flow.with_solver(step=step)
            run = partial(own.score_rows, x, speed)
            evaluations = np.sum(run().stats.evaluations * np.ones(ROWS if step == "joint" else 1))
            taken = median(seconds_of(run, 1) for _ in range(repeats))
            yield f"{step:<15}{evaluations:>22.0f}{taken:>10.2f}{company(own, x, speed):>20.1e}"
        yield ""
        yield f"One row of NaN among {ROWS}: seconds, median of {repeats}, and units of clean"
        yield f"{'step':<15}{'clean':>10}{'NaN row':>18}{'NaN at half-way':>18}"
        for step in STEPS:
            clean, *others = nan_seconds(step, repeats)
            yield f"{step:<15}{clean:>10.4f}" + "".join(
                f"{taken:>11.4f}{taken / clean:>7.2f}" for taken in others
            )
