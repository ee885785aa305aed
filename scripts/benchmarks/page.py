"""A page of measurements: a part for each table, under the command that made it."""

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
from cnf.utils.serialization import write_whole

OPENING = (
    "# Benchmarks\n\n"
    "Above each table is the command that makes it. With `--page FILE` the command also puts it\n"
    "into a page such as this one, in the place of what stood there; other parts stay as they are."
)


@dataclass(frozen=True)
class Page:
    """A Markdown file in parts; a table that is measured anew takes the place of the old one.

    Attributes:
        path: The file, which need not be there yet.

    Example:
        >>> from tempfile import mkdtemp
        >>> page = Page(Path(mkdtemp()) / "benchmarks.md")
        >>> page.put("solver: overhead", "cnf benchmark solver", "Today.", ["a table"])
        >>> page.put("solver: overhead", "cnf benchmark solver", "Later.", ["another"])
        >>> text = page.path.read_text()
        >>> "Later." in text, "Today." in text
        (True, False)
    """

    path: Path

    def put(self, title: str, command: str, told: str, lines: Sequence[str]) -> None:
        """Write a part: in its place, or last where there is none of this title.

        Args:
            title: Its heading.
            command: What makes the table.
            told: When and where that was.
            lines: The table, as it was printed.

        Raises:
            OSError: The file cannot be read or written.
        """
        table = "\n".join(line.rstrip() for line in lines).strip("\n")
        part = f"{title}\n\n```sh\n{command}\n```\n\n{told}\n\n```text\n{table}\n```"
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else OPENING
        parts = [each.strip("\n") for each in re.split(r"^## ", before, flags=re.MULTILINE)]
        titles = [each.partition("\n")[0] for each in parts[1:]]
        if title in titles:
            parts[1 + titles.index(title)] = part
        else:
            parts.append(part)
        write_whole({self.path: ("\n\n## ".join(parts) + "\n").encode()})


def circumstances(peers: Sequence[str]) -> str:
    """The day, what the machine was doing, and versions: in a sentence, before it is measured."""
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
