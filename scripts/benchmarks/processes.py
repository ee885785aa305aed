"""Measurements of memory: each in a new process, so that none inherits another's peak."""

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
STATUS = Path("/proc/self/status")


def skipped() -> str:
    """Why no peak can be measured here; nothing where it can."""
    if STATUS.exists():
        return ""
    return "Memory: skipped; the peak of a process is read from /proc, which Linux alone has"


def in_new_processes(
    measure: Callable[..., Result], points: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """What `measure` returns for each point's arguments, called in a process of its own."""
    # Tensors in pages of their own: otherwise freed ones between kept ones count too, about twice.
    with (
        _environment("MALLOC_MMAP_THRESHOLD_", "65536"),
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        for point in points:
            yield processes.submit(measure, *point).result()


def high_water() -> int:
    """The most memory that this process has had, in bytes.

    From Linux's own file: `ru_maxrss` begins at the peak of the process that started this one.
    """
    status = STATUS.read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


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
