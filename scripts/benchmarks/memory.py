"""Memory of a solve and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from cnf.ode import GRADIENTS, PIController, solve
from cnf.scripts.benchmarks.processes import MIB, high_water, in_new_processes, skipped
from cnf.scripts.plot import write_figure

STEP_COUNTS = (10, 30, 100, 300, 1000)
STATE_NUMBERS = 32_768  # float32 numbers: 128 KiB
# Steps are never rejected, and their size never changes.
CONSTANT_STEPS = PIController(safety=1.0, factor_min=1.0, factor_max=1.0, beta=0.0)


@dataclass(frozen=True)
class SolveMemory:
    """Memory of a solve with its gradient.

    Attributes:
        gradient: Gradient mode.
        steps: Accepted steps, all of one size except possibly the last two.
        bytes: Peak resident memory of the process, less that after a solve of one step.
    """

    gradient: str
    steps: int
    bytes: int


def measure_memory(steps: Iterable[int]) -> Iterator[SolveMemory]:
    """Measure each gradient mode at each number of steps."""
    points = [(gradient, count) for gradient in GRADIENTS for count in steps]
    return in_new_processes(_peak, points)


def _peak(gradient: str, steps: int) -> SolveMemory:
    torch.set_num_threads(1)
    _differentiate(gradient, 1)
    before = high_water()
    accepted = _differentiate(gradient, steps)
    return SolveMemory(gradient, accepted, high_water() - before)


def _differentiate(gradient: str, steps: int) -> int:
    """Solve in steps of one size, back-propagate, and return the number of steps.

    There is one step more where rounding leaves more than one step at the end, which is halved.
    """
    rate = torch.tensor(-1.0, requires_grad=True)
    solution = solve(
        lambda t, y, args: args * torch.tanh(y),
        torch.linspace(-1, 1, STATE_NUMBERS),
        [0.0, 1.0],
        rate,
        rtol=1e6,
        atol=1e6,
        first_step=1 / steps,
        controller=CONSTANT_STEPS,
        gradient=gradient,
    )
    solution.ys[-1].sum().backward()
    return int(solution.stats.accepted)


def lines(out: Path | None) -> Iterator[str]:
    """Yield the lines of the table, and the path of its figure."""
    if skipped():
        yield skipped()
        return
    found = {(peak.gradient, peak.steps): peak.bytes for peak in measure_memory(STEP_COUNTS)}
    steps = sorted({count for _, count in found})
    yield (
        f"Memory: peak of a solve and its gradient in MiB, above one of one step; dopri5, a state "
        f"of {4 * STATE_NUMBERS / MIB:.3f} MiB, dy/dt = a tanh(y)"
    )
    yield f"{'steps':<15}" + "".join(f"{gradient:>12}" for gradient in GRADIENTS)
    for count in steps:
        row = (found.get((gradient, count)) for gradient in GRADIENTS)
        yield f"{count:<15}" + "".join(
            f"{'':>12}" if b is None else f"{b / MIB:>12.1f}" for b in row
        )
    if out is not None:
        yield str(_draw(found, out / "memory.png"))


def _draw(found: dict[tuple[str, int], int], path: Path) -> Path:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    state = 4 * STATE_NUMBERS
    for gradient in GRADIENTS:
        curve = [(steps, size / state) for (name, steps), size in found.items() if name == gradient]
        axes.plot(*zip(*curve, strict=True), marker="o", label=gradient)
    steps = sorted({count for _, count in found})
    axes.plot(steps, steps, color="0.6", linestyle=":", zorder=0, label="one state a step")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set(ylim=(-0.5, 2 * max(found.values()) / state), xlabel="accepted steps")
    axes.set_ylabel("peak memory above one step's, in states")
    axes.legend(frameon=False)
    return write_figure(figure, path)
