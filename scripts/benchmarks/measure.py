"""The ways in which all benchmarks measure time and average, print tables and write a page."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from math import isfinite, nan
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import cnf
from cnf.utils.serialization import write_atomic

Array = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)
TableItem = str | Mapping[str, Any]
"""A sentence, or a row of a table by its columns' names."""

BENCHMARK_CHUNK_ROWS = 8000  # scored or drawn in one solve
PAGE_OPENING = "# Benchmarks\n\nAbove each table is the command that makes it."


def median_seconds(
    runs: Mapping[Name, Callable[[], object]], repeats: int, times: int = 1
) -> dict[Name, float]:
    """Return the median seconds of named functions over repeats, after a warm-up.

    Each repeat calls every function in turn, `times` in succession, of which the mean is taken.

    Example:
        >>> seconds = median_seconds({"one": lambda: sum(range(10)), "two": dict}, repeats=3)
        >>> list(seconds), seconds["one"] > 0
        (['one', 'two'], True)
    """
    for run in runs.values():
        run()
    timers = [Timer(run) for run in runs.values()]
    taken = [[timer.timeit(times) / times for timer in timers] for _ in range(repeats)]
    return dict(zip(runs, map(median, zip(*taken, strict=True)), strict=True))


def threads_used(repeats: int | None = None) -> str:
    """Return the threads and the repeats of a measurement, in words."""
    threads = f"threads: {torch.get_num_threads()}"
    return threads if repeats is None else f"{threads}, median of {repeats}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Set PyTorch to one thread within the context: fastest for small tensors, reproducible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Average:
    """A mean, NaN where there is no value or one is not finite, with its standard error."""

    mean: float
    stderr: float

    @staticmethod
    def of(numbers: ArrayLike) -> Average:
        """Average numbers of shape (n,)."""
        values = np.asarray(numbers, np.float64)
        if not len(values) or not np.isfinite(values).all():
            return Average(nan, nan)
        stderr = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else nan
        return Average(float(values.mean()), float(stderr))

    def __str__(self) -> str:
        error = f" ± {self.stderr:.4f}" if isfinite(self.stderr) else ""
        return f"{self.mean:.4f}{error}" if isfinite(self.mean) else "failed"


class CountedField:
    """A field that counts its calls, and the steps that torchdiffeq accepts."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.calls, self.steps = f, 0, 0

    def __call__(self, *arguments: Any) -> Tensor:
        self.calls += 1
        return self.f(*arguments)

    def callback_accept_step(self, *_: Any) -> None:
        self.steps += 1


def table_lines(items: Iterable[TableItem]) -> Iterator[str]:
    r"""Yield the lines of sentences and of tables' rows, each as soon as it is measured.

    Rows follow one another under a header, which is printed anew after an empty line and where the
    columns change. Columns are at least as wide as the header and the first row; numbers have four
    significant digits.

    Example:
        >>> print(*table_lines(["Two:", {"x": "a", "y": 1.0}, {"x": "b", "y": ""}]), sep="\n")
        Two:
        x                                y
        a                                1
        b
    """
    widths: dict[str, int] = {}
    for item in items:
        if isinstance(item, str):
            yield item
            widths = widths if item else {}
            continue
        cells = {name: _cell(value) for name, value in item.items()}
        if list(cells) != list(widths):
            widths = {name: max(10, len(name), len(cell)) + 2 for name, cell in cells.items()}
            yield _line(widths, widths.values())
        yield _line(cells.values(), widths.values())


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    """Return a line with its first cell on the left, the others on the right."""
    (first, width), *others = zip(cells, widths, strict=True)
    right = "".join(f"  {cell}".rjust(width) for cell, width in others)
    return f"{first:<{max(22, width)}}{right}".rstrip()


def put_part(page: Path, title: str, command: str, setting: str, lines: Sequence[str]) -> None:
    """Write a table into a Markdown page, in place of the one with the same title or at the end."""
    table = "\n".join(lines).strip("\n")
    part = f"{title}\n\n```sh\n{command}\n```\n\n{setting}\n\n```text\n{table}\n```"
    before = page.read_text(encoding="utf-8") if page.exists() else PAGE_OPENING
    opening, *parts = (each.strip("\n") for each in re.split(r"^## ", before, flags=re.MULTILINE))
    titled = {each.partition("\n")[0]: each for each in parts} | {title: part}
    write_atomic({page: ("\n\n## ".join([opening, *titled.values()]) + "\n").encode()})


def circumstances(peers: Sequence[str]) -> str:
    """Return a sentence with the date, the machine, its load, and versions of libraries."""
    versions = {"cnf-flows": cnf.__version__, "PyTorch": torch.__version__}
    versions |= {name: str(getattr(import_module(name), "__version__", "?")) for name in peers}
    load = f"load {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    return (
        f"Measured {date.today().isoformat()}: {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors, {load}threads of PyTorch where the table names none: "
        f"{torch.get_num_threads()}; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
