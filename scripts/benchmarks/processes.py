"""Measurements of memory, each in a new process so that none inherits another's peak."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

MIB = 2**20
PROCESS_STATUS = Path("/proc/self/status")


def skipped() -> str:
    """Return the reason why no peak can be measured here; empty where it can."""
    if PROCESS_STATUS.exists():
        return ""
    return "Memory: skipped; the peak of a process is read from /proc, which only Linux has"


def in_new_processes(
    measure: Callable[..., Result], points: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """Yield the results of `measure` for each point's arguments, each in a new process."""
    # Allocate tensors in separate pages: otherwise freed memory between live tensors counts too.
    with (
        _environment("MALLOC_MMAP_THRESHOLD_", "65536"),
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        for point in points:
            yield processes.submit(measure, *point).result()


def high_water() -> int:
    """Return the peak resident memory of this process, in bytes.

    It is read from /proc, since `ru_maxrss` starts at the peak of the parent process.
    """
    status = PROCESS_STATUS.read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


@contextmanager
def _environment(name: str, text: str) -> Iterator[None]:
    """Set an environment variable for the processes that start within the context."""
    before = os.environ.get(name)
    os.environ[name] = text
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
