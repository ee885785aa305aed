"""Memory of a solve and its gradient."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cnf.ode import GRADIENTS, PIController, solve
from cnf.scripts.benchmarks.measure import TableItem
from cnf.scripts.benchmarks.options import BenchmarkOptions

MIB = 2**20
PROCESS_STATUS = Path("/proc/self/status")
STEP_COUNTS = (10, 30, 100, 300, 1000)
STATE_NUMBERS = 32_768  # float32 numbers: 128 KiB
Differentiate = Callable[[str, int], int]
"""A function of a gradient mode and steps, which solves, back-propagates and returns the steps."""
# Steps are never rejected, and their size never changes.
CONSTANT_STEPS: dict[str, Any] = {
    "controller": PIController(safety=1.0, factor_min=1.0, factor_max=1.0, beta=0.0),
    **dict.fromkeys(("rtol", "atol"), 1e6),
}


def _slope(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    return rate * torch.tanh(y)


def _differentiate(gradient: str, steps: int) -> int:
    """Solve in steps of one size, one more where rounding halves the last, and back-propagate."""
    rate, y0 = torch.tensor(-1.0, requires_grad=True), torch.linspace(-1, 1, STATE_NUMBERS)
    options = {"first_step": 1 / steps, "gradient": gradient, **CONSTANT_STEPS}
    solution = solve(_slope, y0, [0.0, 1.0], rate, **options)
    solution.ys[-1].sum().backward()
    return int(solution.stats.accepted)


def peak_above_one_step(
    gradient: str, steps: int, differentiate: Differentiate = _differentiate
) -> tuple[int, int]:
    """Return the accepted steps, and by how much this process's peak grows beyond one step's."""
    torch.set_num_threads(1)
    differentiate(gradient, 1)
    before = _high_water()
    return differentiate(gradient, steps), _high_water() - before


def measure_memory(gradient: str, differentiate: Differentiate = _differentiate) -> dict[int, int]:
    """Return the peaks in bytes by accepted steps, each of a new process."""
    # Allocate tensors in separate pages: otherwise freed memory between live tensors counts too.
    with (
        patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"),
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        peaks = [
            processes.submit(peak_above_one_step, gradient, n, differentiate) for n in STEP_COUNTS
        ]
        return dict(peak.result() for peak in peaks)


def _high_water() -> int:
    """Return the peak from /proc, since `ru_maxrss` starts at the peak of the parent process."""
    _, _, found = PROCESS_STATUS.read_text(encoding="ascii").partition("VmHWM:")
    return 1024 * int(found.split()[0])


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table, and the path of its figure."""
    if not PROCESS_STATUS.exists():
        yield "Memory: skipped; the peak of a process is read from /proc, which only Linux has"
        return
    found = {gradient: measure_memory(gradient) for gradient in GRADIENTS}
    yield (
        f"Memory: peak of a solve and its gradient in MiB, above one of one step; dopri5, a state "
        f"of {4 * STATE_NUMBERS / MIB:.3f} MiB, dy/dt = a tanh(y)"
    )
    for steps in sorted(set().union(*found.values())):
        yield {"steps": steps} | {
            name: peaks[steps] / MIB if steps in peaks else "" for name, peaks in found.items()
        }
    if options.out is not None:
        yield str(_draw(found, options.out / "memory.png"))


def _draw(found: Mapping[str, Mapping[int, int]], path: Path) -> Path:
    from matplotlib.figure import Figure  # here, since each process imports this module

    from cnf.scripts.figures import write_figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, state = figure.subplots(subplot_kw={"xscale": "log"}), 4 * STATE_NUMBERS
    axes.set_yscale("symlog", linthresh=1)
    for gradient, peaks in found.items():
        axes.plot(list(peaks), [b / state for b in peaks.values()], marker="o", label=gradient)
    steps = sorted(set().union(*found.values()))
    axes.plot(steps, steps, color="0.6", linestyle=":", zorder=0, label="one state a step")
    axes.set(xlabel="accepted steps", ylabel="peak memory above one step's, in states")
    axes.legend(frameon=False)
    return write_figure(figure, path)
