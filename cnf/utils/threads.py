"""The number of PyTorch's threads, measured by the steps of a run as they happen."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, takewhile
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, TypeVar

import torch

T = TypeVar("T")
Threads = int | Literal["auto"] | None
"""A number of threads, "auto" for the fastest, or None for PyTorch's present number."""

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_SECONDS = 3.0  # from one look to the next, at least
LOOK_SHARE = 0.03  # of the time that looks may lose
FIRST_SECONDS = 0.5  # of a look, after which no third round begins
LONG_LOOK = 3.0  # seconds after which no second one does
ROUNDS = 3  # of a look, in each of which every number has a few steps
COUNTED = 2  # of these steps, after a first one that wakes the threads and is not counted
LONG_SECONDS = 0.2  # of a step that is counted alone, as it averages over other processes itself
MIN_GAIN = 0.15  # of time, for which more threads are taken: they suffer most from others
SLOW = 2.0  # times the best time: a trial that is cut
STALL_SECONDS = 1e-3  # of a parallel operation, which takes 10 to 100 µs on free cores
PROBE_ROWS = 2**15  # elements of each thread: PyTorch divides no fewer
PROBE_OPERATIONS, PROBE_SECONDS = 200, 0.02  # at most

Steps = Generator[int, tuple[float, float], T]  # yields a number for each step, is sent its time


def check_threads(threads: Threads) -> Threads:
    """Return a number of threads, at most as many as there are cores; "auto" and None as they are.

    Raises:
        ValueError: It is neither a whole number above 0, nor "auto", nor None.

    Example:
        >>> check_threads(1), check_threads("auto")
        (1, 'auto')
    """
    if threads is None or threads == "auto":
        return threads
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(
            f"Expected threads to be a whole number above 0, or 'auto'; got {threads!r}"
        )
    most = len(_cores())
    if threads > most:
        warnings.warn(
            f"Expected at most {most} threads, one for each core; got {threads}: {most} are used",
            stacklevel=3,
        )
    return min(threads, most)


def is_callers(threads: int) -> bool:
    """Return whether the caller rather than PyTorch chose its present number of threads.

    PyTorch's own default is the number of cores that this process may use, or of those that are no
    hyperthreads of others.
    """
    return any(os.environ.get(name) for name in VARIABLES) or threads not in _defaults()


def set_threads(threads: int) -> None:
    """Have PyTorch use a number of threads."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def number_of_threads(threads: int) -> Iterator[None]:
    """Have PyTorch use a number of threads; restore the caller's number at the end.

    Example:
        >>> with number_of_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


def stalls(threads: int) -> bool:
    """Return whether threads wait for each other, since another process has one of their cores.

    OpenMP's threads wait busily by default. Where one of them has no core, the others keep theirs
    busy until the system takes it away: an operation of 10 µs then takes 20 ms, and a training step
    seconds. A few operations of a small tensor show it at a thousandth of that cost.
    """
    x = torch.ones(threads * PROBE_ROWS)
    with number_of_threads(threads):
        x.add_(1)  # wakes the threads
        start = before = perf_counter()
        for _ in range(PROBE_OPERATIONS):
            x.add_(1)
            now = perf_counter()
            if now - before > STALL_SECONDS:
                return True
            if now - start > PROBE_SECONDS:
                break
            before = now
    return False


class ThreadChooser:
    """The fastest number of threads, found by comparing steps of a run as they happen.

    A look compares numbers in turn, in blocks of a few steps, by the medians of seconds for a unit
    of work; more threads have to be faster by a seventh. The first look starts from one thread
    and goes up while that is not slower; later ones, every few seconds, compare the choice with
    half and twice as many, and one comes early where steps become slow. A number whose threads
    stall is not tried, and a trial that is clearly slower is cut after a step.

    Args:
        candidates: Numbers of threads, increasing.
        choice: One of them, to begin with.
        stalled: A function that tells whether so many threads wait for each other.

    Example:
        >>> chooser = ThreadChooser([1, 2], 1, stalled=lambda threads: False)
        >>> for _ in range(30):
        ...     chooser.add(0.03 if chooser.threads == 1 else 0.02)
        >>> chooser.choice
        2
    """

    def __init__(
        self, candidates: Sequence[int], choice: int, stalled: Callable[[int], bool] = stalls
    ) -> None:
        self.candidates, self.choice, self._stalled = candidates, choice, stalled
        self.restart()

    def restart(self) -> None:
        """Measure all numbers anew, for steps of another kind."""
        self._seconds = self._work = 0.0
        self._times: dict[int, list[float]] = {}  # in the present look, for a unit of work
        self._works: dict[int, float] = {}
        self._steps = self._looks()
        self.threads = next(self._steps)  # of the next step

    def add(self, seconds: float, work: float = 1.0) -> None:
        """Add the time of a step, and its work: evaluations, or the like."""
        self._seconds, self._work = self._seconds + seconds, self._work + work
        self.threads = self._steps.send((seconds, seconds / work))

    def _looks(self) -> Steps[None]:
        yield self.choice  # a first step is slow for other reasons
        rivals = self.candidates
        while len(self.candidates) > 1:
            usual, pause = yield from self._look(rivals)
            yield from self._wait(usual, pause)
            place = self.candidates.index(self.choice)
            rivals = self.candidates[max(place - 1, 0) : place + 2]
        while True:
            yield self.choice

    def _look(self, rivals: Sequence[int]) -> Steps[tuple[float, float]]:
        """Choose among rivals; return the choice's time, and the seconds until the next look."""
        begin, left = self._seconds, [*rivals]
        self._times, self._works = {}, {}
        for made in range(1, ROUNDS + 1):
            for threads in [*left]:
                left = yield from self._try(threads, left)
            passed = self._seconds - begin
            if len(left) < 2 or passed > LONG_LOOK or (made > 1 and passed > FIRST_SECONDS):
                break
        medians = {threads: median(found) for threads, found in self._times.items()}
        self.choice = self.candidates[0]
        for threads, found in sorted(medians.items()):
            if found < (1 - MIN_GAIN) * medians.get(self.choice, inf):
                self.choice = threads
        usual = medians.get(self.choice, 0.0)
        lost = sum(self._works[each] * max(medians[each] - usual, 0.0) for each in medians)
        return usual, max(LOOK_SECONDS, lost / LOOK_SHARE)

    def _try(self, threads: int, left: list[int]) -> Steps[list[int]]:
        """Add a number's times, unless it is out already; return the numbers that are left."""
        if threads not in left:
            return left
        fewer = [each for each in left if each < threads]
        if threads > 1 and self._stalled(threads):
            return fewer
        times, work = self._times, self._work
        best, fastest = min(((median(times[each]), each) for each in times), default=(inf, 0))
        found = yield from self._block(threads, best)
        times.setdefault(threads, []).extend(found)
        self._works[threads] = self._works.get(threads, 0.0) + self._work - work
        if median(times[threads]) <= SLOW * best:
            return left
        return fewer if fastest < threads else [each for each in left if each != threads]

    def _block(self, threads: int, best: float) -> Steps[list[float]]:
        """Return the times of a few steps by a number of threads, cut where they are slow."""
        seconds, first = yield threads
        if seconds > LONG_SECONDS or first > 2 * SLOW * best:
            return [first]
        found: list[float] = []
        while len(found) < COUNTED and (not found or found[-1] < SLOW * best):
            found.append((yield threads)[1])
        return found

    def _wait(self, usual: float, pause: float) -> Steps[None]:
        """Take the choice until the next look is due, or its steps have become slow."""
        begin, recent = self._seconds, deque[float](maxlen=5)
        while (passed := self._seconds - begin) < pause:
            slow = len(recent) == recent.maxlen and median(recent) > SLOW * usual > 0
            if slow and passed > FIRST_SECONDS:
                return
            recent.append((yield self.choice)[1])


def candidates(threads: Threads, measurable: bool) -> list[int]:
    """Return the numbers of threads that a run chooses among, increasing.

    It is one where the number is given or the caller's, or where steps cannot be compared.

    Args:
        threads: A number, "auto", or None for PyTorch's present number.
        measurable: Whether the run may compare its steps.
    """
    if isinstance(threads, int):
        return [threads]
    present = torch.get_num_threads()
    if threads is None or not measurable or is_callers(present):
        return [present]
    return [*takewhile(lambda each: each < present, (2**i for i in count())), present]


def _cores() -> set[int]:
    """Return the numbers of the cores that this process may use, hyperthreads included."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return {*range(os.cpu_count() or 1)}


def _defaults() -> set[int]:
    """Return the numbers that may be PyTorch's own default."""
    cores, siblings = _cores(), set()
    for core in cores:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        if not path.exists():  # no Linux
            return {len(cores), max(len(cores) // 2, 1)}
        siblings.add(path.read_text())
    return {len(cores), len(siblings)}
