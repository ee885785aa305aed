"""A page of measurements, with a part for each table and the command that made it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

import cnf
from cnf.utils.serialization import write_atomic

PAGE_OPENING = (
    "# Benchmarks\n\n"
    "Above each table is the command that makes it. With `--page FILE` the command also writes it\n"
    "into a page such as this one, in place of its earlier version; other parts stay as they are."
)


@dataclass(frozen=True)
class BenchmarkPage:
    """A Markdown file in parts, in which a new measurement replaces the old one.

    Attributes:
        path: The file, which need not exist.

    Example:
        >>> from tempfile import mkdtemp
        >>> page = BenchmarkPage(Path(mkdtemp()) / "benchmarks.md")
        >>> page.put("solver: overhead", "cnf benchmark solver", "Today.", ["a table"])
        >>> page.put("solver: overhead", "cnf benchmark solver", "Later.", ["another"])
        >>> text = page.path.read_text()
        >>> "Later." in text, "Today." in text
        (True, False)
    """

    path: Path

    def put(self, title: str, command: str, setting: str, lines: Sequence[str]) -> None:
        """Write a part, in place of the one with the same title or at the end.

        Args:
            title: The heading.
            command: The command that makes the table.
            setting: The date and the machine of the measurement.
            lines: The table, as printed.

        Raises:
            OSError: The file cannot be read or written.
        """
        table = "\n".join(line.rstrip() for line in lines).strip("\n")
        part = f"{title}\n\n```sh\n{command}\n```\n\n{setting}\n\n```text\n{table}\n```"
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else PAGE_OPENING
        parts = [each.strip("\n") for each in re.split(r"^## ", before, flags=re.MULTILINE)]
        titles = [each.partition("\n")[0] for each in parts[1:]]
        if title in titles:
            parts[1 + titles.index(title)] = part
        else:
            parts.append(part)
        write_atomic({self.path: ("\n\n## ".join(parts) + "\n").encode()})


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
