"""What the command line asks of a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cnf.scripts.benchmarks.cells import Cells


@dataclass(frozen=True)
class Options:
    """What the command line asks of a table; every table reads what concerns it.

    Attributes:
        repeats: Of every timing.
        out: The folder for figures and results; None for none.
        budget: Seconds that a flow is trained for.
        toys: Names of toys; empty for the table's own choice.
        cap: The most seconds that another method is trained for.
    """

    repeats: int = 7
    out: Path | None = None
    budget: float = 60.0
    toys: tuple[str, ...] = ()
    cap: float = 1800.0

    @cached_property
    def cells(self) -> Cells:
        """What is finished, shared by all tables that are handed these options."""
        return Cells(self.out)
