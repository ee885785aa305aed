"""Overhead of the solver, beyond the time of the dynamics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cnf.ode import solve
from cnf.scripts.benchmarks.peers import CountedField, peer

Field = Callable[[Tensor, Tensor], Tensor]

STATE_ROWS, STATE_COLUMNS, SOLVES_PER_TIMING = 512, 3, 20


@dataclass(frozen=True)
class SolverTiming:
    """The time of a solve per evaluation of the field, including the field itself.

    Attributes:
        name: The name of the solver.
        evaluations: Evaluations of one solve.
        microseconds: Microseconds per evaluation, median over the repeats.
    """

    name: str
    evaluations: int
    microseconds: float


def decay(t: Tensor, y: Tensor, args: Any = ()) -> Tensor:
    """Return -y, a field so cheap that a solve takes only the solver's time."""
    return -y


def overheads(repeats: int) -> list[SolverTiming]:
    """Time the bare field and three solvers, interleaved."""
    y0 = torch.linspace(-1, 1, STATE_ROWS * STATE_COLUMNS).reshape(STATE_ROWS, STATE_COLUMNS)
    solvers = {"cnf": _ours, "torchdiffeq": _torchdiffeq(), "torchode": _torchode()}
    now, calls = torch.zeros(()), {}
    for name, run in solvers.items():  # this is the warm-up too
        counted = CountedField(decay)
        run(counted, y0)
        calls[name] = counted.calls
    runs: dict[str, Callable[[], object]] = {
        name: partial(run, decay, y0) for name, run in solvers.items()
    }
    runs["bare field"], calls["bare field"] = partial(decay, now, y0), 1
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, once in runs.items():
            seconds[name].append(
                seconds_of(once, SOLVES_PER_TIMING if calls[name] > 1 else 100 * SOLVES_PER_TIMING)
            )
    return [
        SolverTiming(name, calls[name], 1e6 * median(seconds[name]) / calls[name]) for name in runs
    ]


def seconds_of(once: Callable[[], object], times: int) -> float:
    """Return the mean seconds of a number of successive calls."""
    begin = time.perf_counter()
    for _ in range(times):
        once()
    return (time.perf_counter() - begin) / times


def _ours(f: Field, y0: Tensor) -> object:
    return solve(lambda t, y, _: f(t, y), y0, [0.0, 1.0], method="dopri5", rtol=1e-6, atol=1e-6)


def _torchdiffeq() -> Callable[[Field, Tensor], object]:
    odeint = peer("torchdiffeq").odeint
    times = torch.tensor([0.0, 1.0])
    return lambda f, y0: odeint(f, y0, times, method="dopri5", rtol=1e-6, atol=1e-6)


def _torchode() -> Callable[[Field, Tensor], object]:
    torchode = peer("torchode")
    begin, end = torch.zeros(STATE_ROWS), torch.ones(STATE_ROWS)

    def run(f: Field, y0: Tensor) -> object:
        term = torchode.ODETerm(f)
        controller = torchode.IntegralController(atol=1e-6, rtol=1e-6, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller)
        problem = torchode.InitialValueProblem(y0=y0, t_start=begin, t_end=end)
        return solver.solve(problem)

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """Set PyTorch to one thread within the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lines(repeats: int) -> Iterator[str]:
    """Yield the lines of the table."""
    with torch.no_grad(), one_thread():
        timings = overheads(repeats)
        threads = torch.get_num_threads()
    yield (
        f"Overhead: f = -y, {STATE_ROWS} x {STATE_COLUMNS} float32, t from 0 to 1, dopri5, "
        f"rtol = atol = 1e-6, no gradient, threads: {threads}, median of {repeats}"
    )
    yield f"{'':<15}{'evals':>9}{'us/eval':>9}{'to cnf':>9}"
    for timing in timings:
        ratio = timing.microseconds / timings[0].microseconds
        yield f"{timing.name:<15}{timing.evaluations:>9}{timing.microseconds:>9.1f}{ratio:>9.2f}"
    yield "cnf and torchdiffeq: joint steps; torchode: per-sample steps, as it has no others; eager"
