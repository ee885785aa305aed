"""`benchmark solver`: accuracy, overhead and memory of the solver, beside other libraries'."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from math import nan
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from cnf.ode import GRADIENTS, TABLEAUS, PIController, solve
from cnf.scripts.detest import DETEST, Problem
from cnf.scripts.program import Parser, positive_integer, program, say

Array = NDArray[np.float64]
Field = Callable[[Tensor, Tensor], Tensor]

TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
SECTION_PEERS = {"detest": ("torchdiffeq",), "overhead": ("torchdiffeq", "torchode"), "memory": ()}


# --- accuracy: DETEST -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One method on one problem at one tolerance, beside SciPy's RK45 and torchdiffeq's method.

    Attributes:
        problem: The problem's name.
        error: Largest error of a component at the end; at least `resolution`.
        scipy_error: That of SciPy's RK45; at least `resolution`.
        resolution: How well the truth is known: smaller errors cannot be told apart.
        evaluations: Evaluations of the dynamics.
        theirs: Evaluations and accepted steps of torchdiffeq; None where its solve failed.
    """

    problem: str
    error: float
    scipy_error: float
    resolution: float
    evaluations: int
    theirs: tuple[int, int] | None

    @property
    def ratio(self) -> float:
        """Error in units of SciPy's."""
        return self.error / self.scipy_error


@dataclass(frozen=True)
class Summary:
    """One method at one tolerance over all problems.

    Attributes:
        mean_ratio: Geometric mean of the error in units of SciPy's.
        worst: The comparison of the largest ratio.
        evaluations: Evaluations of the dynamics, summed over the problems that torchdiffeq solved.
        their_evaluations: Those of torchdiffeq.
        their_steps: Its accepted steps.
        failed: The problems that torchdiffeq did not solve.
    """

    mean_ratio: float
    worst: Comparison
    evaluations: int
    their_evaluations: int
    their_steps: int
    failed: tuple[str, ...]

    @property
    def evaluations_ratio(self) -> float:
        """Evaluations in units of torchdiffeq's; NaN where it solved nothing."""
        return self.evaluations / self.their_evaluations if self.their_evaluations else nan

    @property
    def whole_ratio(self) -> float:
        """The same, with an evaluation more for each of torchdiffeq's steps.

        It begins every step with the last stage of the step before, which is the slope there for
        methods that are made so (first same as last), and is not for others: these save the
        evaluation, and lose the order.
        """
        return self.evaluations / (self.their_evaluations + self.their_steps or nan)


def shared_methods() -> list[str]:
    """The adaptive methods that torchdiffeq has too."""
    peers = peer("torchdiffeq._impl.odeint").SOLVERS
    return [name for name, tableau in TABLEAUS.items() if name in peers and tableau.e is not None]


def affordable(method: str, tolerance: float) -> bool:
    """Whether a method's order is high enough for a tolerance: its steps go as tol^(-1/order)."""
    steps: float = tolerance ** (-1 / TABLEAUS[method].order)
    return steps < 300


def compare(problem: Problem, method: str, tolerance: float) -> Comparison:
    """Solve a problem with cnf, SciPy and torchdiffeq, at rtol = atol = `tolerance`."""
    exact, resolution = _truth(problem)
    ours = solve(
        problem.torch,
        torch.tensor(problem.y0, dtype=torch.float64),
        [0.0, problem.t_end],
        method=method,
        rtol=tolerance,
        atol=tolerance,
        max_steps=10**7,
    )

    def error(end: Array) -> float:
        return max(float(np.abs(end - exact).max()), resolution)

    return Comparison(
        problem=problem.name,
        error=error(ours.ys[-1].numpy()),
        scipy_error=error(_scipy(problem, "RK45", tolerance, tolerance)),
        resolution=resolution,
        evaluations=int(ours.stats.evaluations),
        theirs=_torchdiffeq_work(problem, method, tolerance),
    )


def compare_all(method: str, tolerance: float) -> list[Comparison]:
    """The comparisons on all problems."""
    return [compare(problem, method, tolerance) for problem in DETEST.values()]


def summarize(comparisons: Sequence[Comparison]) -> Summary:
    """Means, sums and the worst of them.

    Example:
        >>> two = [
        ...     Comparison("A1", 2.0, 1.0, 0.1, 30, (20, 5)),
        ...     Comparison("A2", 1.0, 2.0, 0.1, 30, (40, 5)),
        ... ]
        >>> summary = summarize(two)
        >>> summary.mean_ratio, summary.worst.problem, summary.evaluations_ratio
        (1.0, 'A1', 1.0)
    """
    work = [(each.evaluations, *each.theirs) for each in comparisons if each.theirs is not None]
    return Summary(
        mean_ratio=geometric_mean(comparison.ratio for comparison in comparisons),
        worst=max(comparisons, key=lambda comparison: comparison.ratio),
        evaluations=sum(ours for ours, _, _ in work),
        their_evaluations=sum(theirs for _, theirs, _ in work),
        their_steps=sum(steps for _, _, steps in work),
        failed=tuple(each.problem for each in comparisons if each.theirs is None),
    )


@cache
def _truth(problem: Problem) -> tuple[Array, float]:
    """The end state by DOP853, and ten times what a tighter tolerance changes in it."""
    exact = _scipy(problem, "DOP853", 1e-12, 1e-15)
    change = float(np.abs(exact - _scipy(problem, "DOP853", 3e-14, 1e-16)).max())
    return exact, 10 * max(change, float(np.finfo(np.float64).eps * np.abs(exact).max()))


@cache
def _scipy(problem: Problem, method: Any, rtol: float, atol: float) -> Array:
    span = (0.0, problem.t_end)
    options = {"method": method, "rtol": rtol, "atol": atol}
    end: Array = solve_ivp(problem.numpy, span, np.array(problem.y0), **options).y[:, -1]
    return end


@cache
def _torchdiffeq_work(problem: Problem, method: str, tolerance: float) -> tuple[int, int] | None:
    counted = Counted(problem.torch)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    times = torch.tensor([0.0, problem.t_end], dtype=torch.float64)
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    try:
        peer("torchdiffeq").odeint(counted, y0, times, **options)
    except AssertionError:  # how it says that its step size underflows
        return None
    return counted.calls, counted.steps


def _detest_lines() -> Iterator[str]:
    yield "DETEST: 25 problems, end-point error in units of SciPy RK45's at the same tolerance"
    yield (
        f"{'method':<15}{'tol':>7}{'mean':>8}{'worst':>9}{'':5}{'evals':>9}{'tdeq':>9}{'ratio':>7}"
        f"{'whole':>7}"
    )
    for method in shared_methods():
        last = TABLEAUS[method].first_same_as_last
        for tolerance in (each for each in TOLERANCES if affordable(method, each)):
            summary = summarize(compare_all(method, tolerance))
            whole = summary.evaluations_ratio if last else summary.whole_ratio
            yield (
                f"{method:<15}{tolerance:>7.0e}{summary.mean_ratio:>8.3g}"
                f"{summary.worst.ratio:>9.3g} {summary.worst.problem:<4}{summary.evaluations:>9}"
                f"{summary.their_evaluations:>9}{summary.evaluations_ratio:>7.3f}{whole:>7.3f}"
                + (f"  torchdiffeq fails: {', '.join(summary.failed)}" if summary.failed else "")
            )
    yield "tdeq: torchdiffeq, evaluations summed over the problems; ratio: ours to theirs"
    yield (
        "whole: with the evaluation that torchdiffeq leaves out in each step of adaptive_heun and "
        "fehlberg2, whose last stage is not the next step's first"
    )


# --- overhead -------------------------------------------------------------------------------------

ROWS, COLUMNS, SOLVES = 512, 3, 20


@dataclass(frozen=True)
class Timing:
    """What an evaluation of the field took in a solve, in microseconds, the field's own included.

    Attributes:
        name: Whose solve.
        evaluations: Evaluations of one solve.
        microseconds: Median over the repeats.
    """

    name: str
    evaluations: int
    microseconds: float


class Counted:
    """A field that counts its calls, and the steps that torchdiffeq accepts."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.calls, self.steps = f, 0, 0

    def __call__(self, *arguments: Any) -> Tensor:
        """Call, and count it."""
        self.calls += 1
        return self.f(*arguments)

    def callback_accept_step(self, *_: Any) -> None:
        """Count a step."""
        self.steps += 1


def decay(t: Tensor, y: Tensor, args: Any = ()) -> Tensor:
    """As good as free: what a solve of it takes is the solver's own."""
    return -y


def overheads(repeats: int) -> list[Timing]:
    """The bare field and three solvers, interleaved: one of each, then again."""
    y0 = torch.linspace(-1, 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    solvers = {"cnf": _ours, "torchdiffeq": _torchdiffeq(), "torchode": _torchode()}
    now, calls = torch.zeros(()), {}
    for name, run in solvers.items():  # this is the warm-up too
        counted = Counted(decay)
        run(counted, y0)
        calls[name] = counted.calls
    runs: dict[str, Callable[[], object]] = {
        name: partial(run, decay, y0) for name, run in solvers.items()
    }
    runs["bare field"], calls["bare field"] = partial(decay, now, y0), 1
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, once in runs.items():
            seconds[name].append(_seconds(once, SOLVES if calls[name] > 1 else 100 * SOLVES))
    return [Timing(name, calls[name], 1e6 * median(seconds[name]) / calls[name]) for name in runs]


def _seconds(once: Callable[[], object], times: int) -> float:
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
    begin, end = torch.zeros(ROWS), torch.ones(ROWS)

    def run(f: Field, y0: Tensor) -> object:
        term = torchode.ODETerm(f)
        controller = torchode.IntegralController(atol=1e-6, rtol=1e-6, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller)
        problem = torchode.InitialValueProblem(y0=y0, t_start=begin, t_end=end)
        return solver.solve(problem)

    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _overhead_lines(repeats: int) -> Iterator[str]:
    with torch.no_grad(), _one_thread():
        timings = overheads(repeats)
        threads = torch.get_num_threads()
    yield (
        f"Overhead: f = -y, {ROWS} x {COLUMNS} float32, t from 0 to 1, dopri5, rtol = atol = 1e-6, "
        f"no gradient, threads: {threads}, median of {repeats}"
    )
    yield f"{'':<15}{'evals':>9}{'us/eval':>9}{'to cnf':>9}"
    for timing in timings:
        ratio = timing.microseconds / timings[0].microseconds
        yield f"{timing.name:<15}{timing.evaluations:>9}{timing.microseconds:>9.1f}{ratio:>9.2f}"
    yield "cnf and torchdiffeq: joint steps; torchode: per-sample steps, as it has no others; eager"


# --- memory ---------------------------------------------------------------------------------------

STEPS = (10, 30, 100, 300, 1000)
STATE = 32_768  # float32 numbers: 128 KiB
MIB = 2**20
# Never a rejection, and never a change of the step's size.
CONSTANT = PIController(safety=1.0, factor_min=1.0, factor_max=1.0, beta=0.0)


@dataclass(frozen=True)
class Peak:
    """Memory of a solve with its gradient.

    Attributes:
        gradient: Gradient mode.
        steps: Accepted steps, all of one size but perhaps the last two.
        bytes: Peak resident memory of the process above that after a solve of one step.
    """

    gradient: str
    steps: int
    bytes: int


def peaks(steps: Iterable[int]) -> Iterator[Peak]:
    """Measure each point in a new process, so that none inherits another's peak."""
    points = [(gradient, count) for gradient in GRADIENTS for count in steps]
    # Tensors in pages of their own: otherwise freed ones between kept ones count too, about twice.
    with (
        _environment("MALLOC_MMAP_THRESHOLD_", "65536"),
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        for point in points:
            yield processes.submit(_peak, *point).result()


@contextmanager
def _environment(name: str, text: str) -> Iterator[None]:
    """A variable for the processes that start meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = text
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _peak(gradient: str, steps: int) -> Peak:
    torch.set_num_threads(1)
    _differentiate(gradient, 1)
    before = _high_water()
    taken = _differentiate(gradient, steps)
    return Peak(gradient, taken, _high_water() - before)


def _differentiate(gradient: str, steps: int) -> int:
    """Solve in steps of one size and back-propagate; how many steps it took.

    One more than asked for, where rounding leaves more than a step at the end: two halves.
    """
    rate = torch.tensor(-1.0, requires_grad=True)
    solution = solve(
        lambda t, y, args: args * torch.tanh(y),
        torch.linspace(-1, 1, STATE),
        [0.0, 1.0],
        rate,
        rtol=1e6,
        atol=1e6,
        first_step=1 / steps,
        controller=CONSTANT,
        gradient=gradient,
    )
    solution.ys[-1].sum().backward()
    return int(solution.stats.accepted)


def _high_water() -> int:
    """The most memory that this process has had, in bytes.

    From Linux's own file: `ru_maxrss` begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _memory_lines(out: Path | None) -> Iterator[str]:
    if not Path("/proc/self/status").exists():
        yield "Memory: skipped; the peak of a process is read from /proc, which Linux alone has"
        return
    found = {(peak.gradient, peak.steps): peak.bytes for peak in peaks(STEPS)}
    steps = sorted({count for _, count in found})
    yield (
        f"Memory: peak of a solve and its gradient in MiB, above one of one step; dopri5, a state "
        f"of {4 * STATE / MIB:.3f} MiB, dy/dt = a tanh(y)"
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
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for gradient in GRADIENTS:
        curve = [(steps, size / MIB) for (name, steps), size in found.items() if name == gradient]
        axes.plot(*zip(*curve, strict=True), marker="o", label=gradient)
    axes.set(xscale="log", yscale="log", xlabel="steps")
    axes.set_ylabel("peak memory above one step's (MiB)")
    axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)
    return path


# --- the program ----------------------------------------------------------------------------------


def peer(name: str) -> Any:
    """A module of another library, which the `bench` extra installs.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        library = name.partition(".")[0]
        raise ValueError(
            f"Expected {library} to compare with; got none installed: "
            "pip install 'cnf-flows[bench]' brings it"
        ) from None


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("subject", choices=["solver"], help="what to measure")
    parser.add_argument("--section", choices=SECTION_PEERS, help="one table; all when not given")
    parser.add_argument(
        "--repeats", type=positive_integer, default=7, help="of every timing (default: 7)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where figures go; none otherwise")
    arguments = parser.parse_args(argv)
    sections = [arguments.section] if arguments.section else list(SECTION_PEERS)
    for name in {library for section in sections for library in SECTION_PEERS[section]}:
        peer(name)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "detest": _detest_lines,
        "overhead": lambda: _overhead_lines(arguments.repeats),
        "memory": lambda: _memory_lines(arguments.out),
    }
    for section in sections:
        for line in tables[section]():
            say(line)
        say("")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
