"""Costs of series' solves: output times of each row, many outputs, and continuous depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cnf.ode import Checkpoint, NeuralODE, solve
from cnf.scripts.benchmarks import memory
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.measure import TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions

SERIES_SHAPE = (50, 75, 3)  # series, times of each, draws of a latent state
LATENTS, UNITS = 20, 50
MANY_OUTPUTS = 2001
LOOSE, TIGHT = {"rtol": 1e-3, "atol": 1e-4}, {"rtol": 1e-10, "atol": 1e-10}
DEPTH_GRADIENTS = ("checkpoint", "backsolve", "backprop")
DEPTH_STATE = (2048, 32)
DEPTH_METHOD = "rk4"


class Problem:
    """A field of two hidden layers, and first states in which gradients are taken."""

    def __init__(self, rows: int, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)
        sizes = (LATENTS, UNITS, UNITS, LATENTS)
        self.weights = tuple(
            (torch.randn(out, into, generator=draw) / into**0.5).to(dtype).requires_grad_()
            for into, out in pairwise(sizes)
        )
        self.start = torch.randn(rows, LATENTS, generator=draw).to(dtype).requires_grad_()

    @staticmethod
    def slope(t: Tensor, y: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        first, second, last = weights
        return linear(torch.tanh(linear(torch.tanh(linear(y, first)), second)), last)

    def solved(self, t: Tensor, tolerances: dict[str, Any]) -> Tensor:
        """Return the states (times, rows, latents) at times of all rows, or of each."""
        keep = Checkpoint(activation_bytes=2**30)
        found = solve(self.slope, self.start, t, self.weights, gradient=keep, **tolerances)
        return found.ys

    def gradients(self, states: Tensor) -> list[Tensor]:
        """Return those of the mean square of states."""
        return list(torch.autograd.grad(states.square().mean(), (self.start, *self.weights)))


def output_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of outputs at times of each row, and of many outputs."""
    series, times, draws = SERIES_SHAPE
    problem = Problem(series * draws)
    t = row_times(torch.float32)
    apart = disagreement()
    yield (
        f"{series} series x {times} times of each x {draws} draws of {LATENTS} latents, forward "
        f"and backward; dopri5, {_words(LOOSE)}; {threads_used(options.repeats)}"
    )
    ways: dict[str, Callable[[], Tensor]] = {
        "times of each row": lambda: problem.solved(t, LOOSE),
        "union of all times": lambda: at_union(t, lambda u: problem.solved(u, LOOSE)),
        "torchdiffeq, union": lambda: at_union(t, lambda u: _torchdiffeq(problem, u)),
    }
    yield from _timed(problem, ways, options.repeats)
    yield (
        f"times of each row and their union at {_words(TIGHT)} in float64: states differ by "
        f"{apart[0]:.1e} at most, gradients by {apart[1]:.1e} of the largest"
    )
    yield ""
    yield f"{MANY_OUTPUTS} outputs of {series * draws} x {LATENTS}, forward and backward"
    many = torch.linspace(0, 1, MANY_OUTPUTS)
    ways = {
        "cnf": lambda: problem.solved(many, LOOSE),
        "torchdiffeq": lambda: _torchdiffeq(problem, many),
    }
    yield from _timed(problem, ways, options.repeats)


def row_times(dtype: torch.dtype) -> Tensor:
    """Return random times of each row, those of a series' draws the same: (rows, times)."""
    series, times, draws = SERIES_SHAPE
    drawn = torch.rand(series, times, generator=torch.Generator().manual_seed(1))
    drawn[:, 0] = 0.0  # where all rows start
    return drawn.to(dtype).sort(1).values.repeat_interleave(draws, 0)


def at_union(t: Tensor, solved: Callable[[Tensor], Tensor]) -> Tensor:
    """Return states at times of each row from those at the union of all, (times, rows, …)."""
    union, places = t.unique(return_inverse=True)
    states = solved(union)
    return states[places.T, torch.arange(len(t))]


def disagreement() -> tuple[float, float]:
    """Return the largest difference of states, and of gradients over the largest of each."""
    series, _, draws = SERIES_SHAPE
    problem, t = Problem(series * draws, torch.float64), row_times(torch.float64)
    own = problem.solved(t, TIGHT)
    union = at_union(t, lambda u: problem.solved(u, TIGHT))
    pairs = zip(problem.gradients(own), problem.gradients(union), strict=True)
    gradients = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return float((own - union).abs().max().detach()), gradients


def _timed(
    problem: Problem, ways: dict[str, Callable[[], Tensor]], repeats: int
) -> Iterator[TableItem]:
    """Yield a row for each way, with its time against the first one's."""
    runs = {name: partial(_differentiated, problem, way) for name, way in ways.items()}
    taken = median_seconds(runs, repeats)
    first = next(iter(taken.values()))
    for name, seconds in taken.items():
        yield {"outputs": name, "ms": 1e3 * seconds, "to the first": seconds / first}


def _differentiated(problem: Problem, way: Callable[[], Tensor]) -> None:
    problem.gradients(way())


def _torchdiffeq(problem: Problem, t: Tensor) -> Tensor:
    odeint = peer("torchdiffeq").odeint
    weights = problem.weights
    found: Tensor = odeint(lambda t, y: problem.slope(t, y, weights), problem.start, t, **LOOSE)
    return found


def _words(tolerances: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in tolerances.items())


class DepthField(nn.Module):
    """A field of one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.net(y)
        return found


def differentiate_depth(gradient: str, steps: int) -> int:
    """Take a training step through a network of continuous depth with steps of one size."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"gradient": gradient, "max_steps": steps + 2}
    model = NeuralODE(
        DepthField(DEPTH_STATE[1]), method=DEPTH_METHOD, step_size=1 / steps, **settings
    )
    model(torch.randn(DEPTH_STATE)).square().mean().backward()
    return steps


def depth_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of the memory of continuous depth, as its steps grow."""
    if not memory.PROCESS_STATUS.exists():
        yield "Memory: skipped; the peak of a process is read from /proc, which only Linux has"
        return
    rows, width = DEPTH_STATE
    state = 4 * rows * width
    yield (
        f"Memory: peak of a training step of continuous depth in MiB, above one of one step; "
        f"{DEPTH_METHOD}, a state of {state / memory.MIB:.3f} MiB, {width} hidden units"
    )
    found = {
        gradient: memory.measure_memory(gradient, differentiate_depth)
        for gradient in DEPTH_GRADIENTS
    }
    for steps in memory.STEP_COUNTS:
        peaks = {name: peaks[steps] for name, peaks in found.items()}
        yield {"steps": steps} | {
            **{name: peak / memory.MIB for name, peak in peaks.items()},
            "checkpoint, states a step": peaks["checkpoint"] / state / steps,
        }
