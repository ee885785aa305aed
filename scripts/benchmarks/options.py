"""The options of the benchmarks, with the caches of their results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cnf.scripts.benchmarks.result_cache import ResultCache

TOY_RESULTS = "toys.jsonl"
TABLE_RESULTS = "tables.jsonl"
VAE_RESULTS = "vae.jsonl"


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of the command line; each table reads those that concern it.

    Attributes:
        repeats: Repeats of every timing.
        out: The folder for figures and results; None for none.
        budget: Seconds of training for a flow, or for the method it is compared with.
        toys: Names of toys; empty for the table's default.
        cap: The longest training time of another method, in seconds.
        data_dir: The folder with the data's files; the environment's CNF_DATA when None.
        tables: Names of tables; empty for all.
        methods: Names of methods; empty for all.
        splits: Number of splits of each table into training, validation and test rows.
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
    def toy_results(self) -> ResultCache:
        """The cached results of toys, shared by all sections that receive these options."""
        return ResultCache(self.out, TOY_RESULTS)

    @cached_property
    def table_results(self) -> ResultCache:
        """The cached results of tables."""
        return ResultCache(self.out, TABLE_RESULTS)

    @cached_property
    def vae_results(self) -> ResultCache:
        """The cached results of VAEs."""
        return ResultCache(self.out, VAE_RESULTS)
