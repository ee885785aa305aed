"""Comparison of density estimators on tables, in equal time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from cnf.scripts.benchmarks.methods import METHODS, warm_up_libraries
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.prepared import PreparedTable
from cnf.scripts.benchmarks.ranking import (
    Average,
    Numbers,
    best,
    is_near_best,
    is_worse,
    mean_ranks,
    ranks,
)
from cnf.scripts.benchmarks.trials import TableOutcome, TableTrial, outcome_of, trial_of
from cnf.scripts.benchmarks.uci import UCI_TABLES, uci_file, uci_table

OWN_METHOD, BASELINE_METHOD = "cnf", "gaussian"


@dataclass(frozen=True)
class TableMeasure:
    """A measure by which methods are compared.

    Attributes:
        title: The title in tables.
        attribute: The attribute of an outcome that holds the number.
    """

    title: str
    attribute: Literal["nll", "accuracy"]

    def of(self, outcome: TableOutcome) -> float:
        """Return the measure of an outcome."""
        return outcome.nll if self.attribute == "nll" else outcome.accuracy


NLL = TableMeasure("Test NLL in nats, of standardised columns", "nll")
ACCURACY = TableMeasure("Accuracy of a classifier that tells samples from test rows", "accuracy")


def nll_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the lines of the comparison by log-densities, with its summary."""
    tables = yield from _compared(options, NLL)
    yield from _summary(tables)


def two_sample_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the lines of the comparison by samples."""
    yield from _compared(options, ACCURACY)


def _compared(
    options: BenchmarkOptions, measure: TableMeasure
) -> Generator[str, None, dict[str, Numbers]]:
    """Yield a line for each new trial and each finished table, then all tables; return them."""
    methods = options.methods or tuple(METHODS)
    path = uci_file(options.data_dir)
    prepared = {
        name: PreparedTable.of(uci_table(path, name)) for name in options.tables or UCI_TABLES
    }
    warm_up_libraries(methods)
    yield (
        f"{measure.title}; {_averaged(options.splits)}; {options.budget:g} s each, "
        f"threads: {torch.get_num_threads()}"
    )
    tables: dict[str, Numbers] = {}
    for table, values in prepared.items():
        yield from values.lines(table)
        outcomes = yield from _outcomes(options, table, values, methods)
        tables[table] = {
            method: [measure.of(outcome) for outcome in found] for method, found in outcomes.items()
        }
        cached = sum(outcome.cached for found in outcomes.values() for outcome in found)
        total = len(methods) * options.splits
        yield _row(table, tables[table]) + (f"  cached: {cached} of {total}" if cached else "")
    yield ""
    yield f"{measure.title}, followed by the rank, with * for the best"
    yield f"{'table':<14}" + "".join(f"{method:>24}" for method in methods)
    yield from (_row(table, numbers) for table, numbers in tables.items())
    found = mean_ranks(list(tables.values()))
    yield f"{'mean rank':<14}" + "".join(f"{found[method]:>24.2f}" for method in methods)
    return tables


def _outcomes(
    options: BenchmarkOptions, table: str, prepared: PreparedTable, methods: tuple[str, ...]
) -> Generator[str, None, dict[str, list[TableOutcome]]]:
    """Return the outcomes of all methods on all splits, and yield a line for each new one."""
    outcomes: dict[str, list[TableOutcome]] = {method: [] for method in methods}
    for split in range(options.splits):
        for method in methods:
            trial = trial_of(options, method, table, prepared, split)
            outcome = outcome_of(options, trial, prepared)
            outcomes[method].append(outcome)
            if not outcome.cached:
                yield _trial_line(trial, outcome)
    return outcomes


def _averaged(splits: int) -> str:
    if splits == 1:
        return "one split"
    return f"mean over {splits} splits ± their standard deviation / √{splits}"


def _trial_line(trial: TableTrial, outcome: TableOutcome) -> str:
    """Return the line of a trial."""
    return (
        f"  {trial.table} split {trial.split} {trial.method:<10}"
        f"NLL {outcome.nll:.3f} ± {outcome.stderr:.3f}, "
        f"classifier accuracy {outcome.accuracy:.3f} ± {outcome.accuracy_stderr:.3f}, "
        f"{outcome.seconds:.1f} s; "
        + "; ".join(each for each in (outcome.chosen, outcome.reason) if each)
    )


def _row(table: str, numbers: Numbers) -> str:
    """Return the line of a table."""
    found, leading = ranks(numbers), best(numbers)
    shown = (
        f"{Average.of(values)} {'*' if method in leading else ' '}{found[method]:g}"
        for method, values in numbers.items()
    )
    return f"{table:<14}" + "".join(f"{text:>24}" for text in shown)


def _summary(tables: dict[str, Numbers]) -> Iterator[str]:
    """Yield lines that summarize the results of this library's flow, if it was tried."""
    all_numbers = list(tables.values())
    if OWN_METHOD not in all_numbers[0]:
        return
    near = sum(is_near_best(numbers, OWN_METHOD) for numbers in all_numbers)
    yield (
        f"{OWN_METHOD} is the best, or within one standard error of it, on {near} of {len(tables)} "
        "tables (the error of the difference from the best, split by split)"
    )
    worse = sum(is_worse(numbers, OWN_METHOD, BASELINE_METHOD) for numbers in all_numbers)
    beyond = f"worse than the {BASELINE_METHOD} or " if BASELINE_METHOD in all_numbers[0] else ""
    yield f"{OWN_METHOD} is {beyond}failed on {worse} of {len(tables)} tables"
