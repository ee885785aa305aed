"""What the command line asks of a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cnf.scripts.benchmarks.cells import Cells

TOY_CELLS = "toys.jsonl"
TABLE_CELLS = "tables.jsonl"
VAE_CELLS = "vae.jsonl"


@dataclass(frozen=True)
class Options:
    """What the command line asks of a table; every table reads what concerns it.

    Attributes:
        repeats: Of every timing.
        out: The folder for figures and results; None for none.
        budget: Seconds that a flow, or whatever stands beside it, is trained for.
        toys: Names of toys; empty for the table's own choice.
        cap: The most seconds that another method is trained for.
        data_dir: The folder with the data's files; what the environment's CNF_DATA names when None.
        tables: Names of tables; empty for all.
        methods: Names of methods; empty for all.
        splits: How many times each table is split into training, validation and test rows.
        images: Names of sets of images; empty for all.
        posteriors: Names of posteriors; empty for all.
    """

    repeats: int = 7
    out: Path | None = None
    budget: float = 60.0
    toys: tuple[str, ...] = ()
    cap: float = 1800.0
    data_dir: str | None = None
    tables: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    splits: int = 3
    images: tuple[str, ...] = ()
    posteriors: tuple[str, ...] = ()

    @cached_property
    def toy_cells(self) -> Cells:
        """What is finished of toys, shared by all sections that are handed these options."""
        return Cells(self.out, TOY_CELLS)

    @cached_property
    def table_cells(self) -> Cells:
        """What is finished of tables, alike."""
        return Cells(self.out, TABLE_CELLS)

    @cached_property
    def vae_cells(self) -> Cells:
        """What is finished of VAEs, alike."""
        return Cells(self.out, VAE_CELLS)
