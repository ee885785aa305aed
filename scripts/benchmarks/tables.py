"""Density estimators side by side on tables, in the same time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from cnf.scripts.benchmarks.methods import METHODS, get_ready
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.prepared import Prepared
from cnf.scripts.benchmarks.ranking import (
    Average,
    Numbers,
    best,
    is_near_best,
    is_worse,
    mean_ranks,
    ranks,
)
from cnf.scripts.benchmarks.trials import Outcome, Trial, outcome_of, trial_of
from cnf.scripts.benchmarks.uci import NAMES, uci_file, uci_table

OURS, YARDSTICK = "cnf", "gaussian"


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
        title: What it is called.
        attribute: Its name in an outcome.
    """

    title: str
    attribute: Literal["nll", "accuracy"]

    def of(self, outcome: Outcome) -> float:
        """The number, of an outcome."""
        return outcome.nll if self.attribute == "nll" else outcome.accuracy


NLL = Measure("Test NLL in nats, of standardised columns", "nll")
ACCURACY = Measure("Accuracy of a classifier that tells samples from test rows", "accuracy")


def nll_lines(options: Options) -> Iterator[str]:
    """The comparison by log-densities, and what it comes to."""
    tables = yield from _compared(options, NLL)
    yield from _verdict(tables)


def two_sample_lines(options: Options) -> Iterator[str]:
    """The comparison by samples."""
    yield from _compared(options, ACCURACY)


def _compared(options: Options, measure: Measure) -> Generator[str, None, dict[str, Numbers]]:
    """A line for every trial that is made, one for every table as it is done, and all of these."""
    methods = options.methods or tuple(METHODS)
    path = uci_file(options.data_dir)
    prepared = {name: Prepared.of(uci_table(path, name)) for name in options.tables or NAMES}
    get_ready(methods)
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
        kept = sum(outcome.kept for found in outcomes.values() for outcome in found)
        there = f"  there already: {kept} of {len(methods) * options.splits}" if kept else ""
        yield _row(table, tables[table]) + there
    yield ""
    yield f"{measure.title}; rank behind it, * the best"
    yield f"{'table':<14}" + "".join(f"{method:>24}" for method in methods)
    yield from (_row(table, numbers) for table, numbers in tables.items())
    found = mean_ranks(list(tables.values()))
    yield f"{'mean rank':<14}" + "".join(f"{found[method]:>24.2f}" for method in methods)
    return tables


def _outcomes(
    options: Options, table: str, prepared: Prepared, methods: tuple[str, ...]
) -> Generator[str, None, dict[str, list[Outcome]]]:
    """The outcomes of all methods on all splits of a table, with a line for each that is made."""
    outcomes: dict[str, list[Outcome]] = {method: [] for method in methods}
    for split in range(options.splits):
        for method in methods:
            trial = trial_of(options, method, table, prepared, split)
            outcome = outcome_of(options, trial, prepared)
            outcomes[method].append(outcome)
            if not outcome.kept:
                yield _told(trial, outcome)
    return outcomes


def _averaged(splits: int) -> str:
    if splits == 1:
        return "one split"
    return f"mean over {splits} splits ± their standard deviation / √{splits}"


def _told(trial: Trial, outcome: Outcome) -> str:
    """A trial's line."""
    return (
        f"  {trial.table} split {trial.split} {trial.method:<10}"
        f"NLL {outcome.nll:.3f} ± {outcome.stderr:.3f}, "
        f"told apart {outcome.accuracy:.3f} ± {outcome.accuracy_stderr:.3f}, "
        f"{outcome.seconds:.1f} s; "
        + "; ".join(each for each in (outcome.chosen, outcome.reason) if each)
    )


def _row(table: str, numbers: Numbers) -> str:
    """A table's line."""
    found, leading = ranks(numbers), best(numbers)
    shown = (
        f"{Average.of(values)} {'*' if method in leading else ' '}{found[method]:g}"
        for method, values in numbers.items()
    )
    return f"{table:<14}" + "".join(f"{text:>24}" for text in shown)


def _verdict(tables: dict[str, Numbers]) -> Iterator[str]:
    """What it comes to for this library's flow, where it was tried."""
    all_numbers = list(tables.values())
    if OURS not in all_numbers[0]:
        return
    near = sum(is_near_best(numbers, OURS) for numbers in all_numbers)
    yield (
        f"{OURS} is the best, or within one standard error of it, on {near} of {len(tables)} "
        "tables (the error of the difference from the best, split by split)"
    )
    worse = sum(is_worse(numbers, OURS, YARDSTICK) for numbers in all_numbers)
    beyond = f"worse than the {YARDSTICK} or " if YARDSTICK in all_numbers[0] else ""
    yield f"{OURS} is {beyond}failed on {worse} of {len(tables)} tables"
