"""Comparison of density estimators on tables, in equal time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getsource
from math import inf, nan
from time import perf_counter

import numpy as np
import pandas as pd
import torch

from cnf.datasets import DATA_DIR, Table, collinear_columns, read_table, split
from cnf.diagnostics.two_sample import two_sample_test
from cnf.scripts.benchmarks.compared import (
    METHOD_PEERS,
    METHODS,
    PACKAGE_TABLES,
    UCI_FILE,
    UCI_TABLES,
    peer,
)
from cnf.scripts.benchmarks.density import FittedDensity, StandardizedSplit
from cnf.scripts.benchmarks.measure import Array, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.package_tables import choose_tables, package_table
from cnf.scripts.benchmarks.rival_programs import fit_rival, program_of, table_rivals
from cnf.training.recipes import choose_recipe

OWN_METHOD, BASELINE_METHOD = "cnf", "gaussian"
BEHIND = f"{OWN_METHOD} - best other"
FAILURES = (RuntimeError, ValueError, ArithmeticError, MemoryError)  # noted, and the next one runs


@dataclass(frozen=True)
class TableMethod:
    """A function of a split, a budget and a seed that fits a density, and what determines it."""

    fit: Callable[[StandardizedSplit, float, int], FittedDensity]
    source: str


def methods_of(options: BenchmarkOptions) -> dict[str, TableMethod]:
    """Return the methods to compare, rivals' programs last, by name.

    Raises:
        ValueError: A library of theirs is missing.
    """
    names = options.methods or tuple(METHODS)
    for library in {METHOD_PEERS[name] for name in names if name in METHOD_PEERS}:
        peer(library)
    found = {
        name: TableMethod(METHODS[name], getsource(sys.modules[METHODS[name].__module__]))
        for name in names
    }
    for name, (python, library) in table_rivals(options.rivals).items():
        fit = partial(fit_rival, method=name, python=python)
        found[name] = TableMethod(fit, f"{library}\n{program_of(name).read_text()}")
    return found


def _compared(options: BenchmarkOptions, column: str) -> Iterator[TableItem]:
    """Yield a row for each trial, then one for each table, and a summary."""
    tables = {
        name: prepare(table_values(options.data_dir, name)) for name in options.tables or UCI_TABLES
    }
    methods = methods_of(options)
    _warm_up()
    yield (
        "Test NLL in nats, of standardised columns, and accuracy of a classifier that tells "
        f"samples from test rows; {options.budget:g} s each, splits: {options.splits}, "
        f"{threads_used()}"
    )
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for table, (values, description) in tables.items():
        yield f"{table}: {description}"
        for seed in range(options.splits):
            found[table, seed] = {}
            for name, method in methods.items():
                trial = trial_of(options, table, values, seed, name, method)
                found[table, seed][name] = trial
                shown = {key: value for key, value in trial.items() if key != "log_prob"}
                yield {"split": seed, "method": name, **shown}
        yield ""
    yield from compare(found, column)


nll_lines = partial(_compared, column="NLL")
two_sample_lines = partial(_compared, column="accuracy")


def choice_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables that the rule chooses beside UCI's, and whether they are as stated."""
    try:
        before = [prepare(uci_table(options.data_dir, name).values)[0] for name in UCI_TABLES]
        chosen = dict(choose_tables(options.data_dir, len(PACKAGE_TABLES), before))
    except ValueError as error:
        yield f"The rule was not applied. {error}"
        return
    for name, values in chosen.items():
        yield {"table": name, "rows": len(values), "columns": values.shape[1]}
    same = tuple(chosen) == PACKAGE_TABLES
    yield f"The rule's choice is {'' if same else 'not '}the tables that are compared"


def trial_of(
    options: BenchmarkOptions,
    table: str,
    values: Array,
    seed: int,
    name: str,
    method: TableMethod,
) -> Row:
    """Return the trial of a method on a split of a table, run unless it is cached.

    Returns:
        The NLL and its standard error over the test rows, and their log p as "log_prob"; the
        accuracy of a classifier that tells samples from test rows, and its standard error; the
        seconds of the fit, and its choices. Numbers are NaN after a failure, which "note"
        describes.
    """
    parts = standardized(values, seed)
    names = {"table": table, "method": name, "split": seed, "budget": options.budget}
    recipe = choose_recipe(None, *parts.train.shape)[1] if name == OWN_METHOD else None
    key = key_of(names, values, method.source, recipe)
    return options.results.recall(key, partial(_run, parts, method.fit, options.budget, seed))


def _run(
    parts: StandardizedSplit, fit: Callable[..., FittedDensity], budget: float, seed: int
) -> Row:
    """Fit, score and sample; a failure is noted and does not end the table."""
    row: Row = dict.fromkeys(("NLL", "± NLL", "accuracy", "± accuracy", "seconds"), nan)
    row |= {"chosen": "", "note": "", "log_prob": np.full(len(parts.test), nan)}
    begin = perf_counter()
    try:
        fitted = fit(parts, budget, seed)
        row |= {"seconds": fitted.seconds or perf_counter() - begin, "chosen": fitted.chosen}
        log_prob = row["log_prob"] = fitted.log_prob(parts.test)
        if not np.isfinite(log_prob).all():
            raise ValueError(f"{(~np.isfinite(log_prob)).sum()} log-densities are not finite")
        nll = Average.of(-log_prob)
        row |= {"NLL": nll.mean, "± NLL": nll.stderr}
        test = two_sample_test(parts.test, fitted.sample(len(parts.test), seed), seed)
        row |= {"accuracy": test.accuracy, "± accuracy": test.stderr}
    except FAILURES as error:
        row["note"] = f"failed: {' '.join(str(error).split()) or type(error).__name__}"
    return row


def _warm_up() -> None:
    """Take an optimizer step, whose imports the first fit would pay for."""
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


Trials = Mapping[tuple[str, int], Mapping[str, Row]]
"""Trials by table and split, and by method."""


def compare(found: Trials, column: str) -> Iterator[TableItem]:
    """Yield a row of means, standard errors and ranks for each table, and a summary of them.

    The lower the column's number the better; it is NaN where a method failed.
    """
    yield f"{column}, mean over splits ± standard error; the rank, with * for the best"
    tables: dict[str, list[Mapping[str, Row]]] = {}
    for (table, _), trials in found.items():
        tables.setdefault(table, []).append(trials)
    numbers = {
        table: pd.DataFrame([{name: row[column] for name, row in each.items()} for each in splits])
        for table, splits in tables.items()
    }
    means = pd.DataFrame({table: rows.mean(skipna=False) for table, rows in numbers.items()}).T
    ranks = means.rank(axis=1, na_option="bottom")  # failures share the last ranks
    with_own = column == "NLL" and OWN_METHOD in means and len(means.columns) > 1
    behind = {table: behind_best(splits) for table, splits in tables.items()} if with_own else {}
    for table, rows in numbers.items():
        line = means.loc[table]
        cells = {
            str(method): f"{Average.of(rows[method])}  {'*' if mean == line.min() else ''}{rank:g}"
            for (method, mean), rank in zip(line.items(), ranks.loc[table], strict=True)
        }
        yield {"table": table, **cells, **({BEHIND: behind[table]} if with_own else {})}
    mean_ranks = {str(name): f"{rank:.2f}" for name, rank in ranks.mean().items()}
    yield {"table": "mean rank", **mean_ranks, **({BEHIND: ""} if with_own else {})}
    if with_own:
        yield from _summary(means, behind)


def _summary(means: pd.DataFrame, behind: Mapping[str, Average]) -> Iterator[str]:
    """Yield sentences on the tables where this library's method is near the best, or is not."""
    near = sum(off.mean <= off.stderr for off in behind.values())
    beside = "best, or within one standard error (of the difference, test row by test row) of it"
    yield f"{OWN_METHOD} is the {beside}, on {near} of {len(behind)} tables"
    lost = {table: off.mean for table, off in behind.items() if off.mean > 0}
    if lost:
        most = max(lost, key=lambda table: lost[table])
        yield f"{OWN_METHOD} is {lost[most]:.4f} nats behind the best at most, on {most}"
    worse = ~(means[OWN_METHOD] <= means.get(BASELINE_METHOD, means[OWN_METHOD]).fillna(inf))
    beyond = f"worse than the {BASELINE_METHOD} or " if BASELINE_METHOD in means else ""
    yield f"{OWN_METHOD} is {beyond}failed on {worse.sum()} of {len(behind)} tables"


def behind_best(splits: Sequence[Mapping[str, Row]]) -> Average:
    """Return by how many nats this library's method is behind the best other one on a table.

    The standard error is that of the differences between the log p of the same test rows: of their
    mean in each split, and of the mean over splits as if these were independent. It is NaN where
    the method failed; where all others did, the difference is -∞.
    """
    own = [trials[OWN_METHOD] for trials in splits]
    others = {
        name: np.mean([trials[name]["NLL"] for trials in splits])
        for name in splits[0]
        if name != OWN_METHOD
    }
    finite = {name: mean for name, mean in others.items() if np.isfinite(mean)}
    if not np.isfinite([row["NLL"] for row in own]).all():
        return Average(nan, nan)
    if not finite:
        return Average(-inf, 0.0)
    best = min(finite, key=lambda name: finite[name])
    pairs = zip(own, (trials[best] for trials in splits), strict=True)
    each = [Average.of(other["log_prob"] - mine["log_prob"]) for mine, other in pairs]
    stderr = np.sqrt(np.sum(np.square([off.stderr for off in each]))) / len(each)
    return Average(float(np.mean([off.mean for off in each])), float(stderr))


def table_values(data_dir: str | None, name: str) -> Array:
    """Read a table of UCI or of a package.

    Raises:
        ValueError: Its file or its package is missing.
    """
    return package_table(data_dir, name) if "/" in name else uci_table(data_dir, name).values


def uci_table(data_dir: str | None, name: str) -> Table:
    """Read a table of `UCI_FILE` in a folder, the environment's CNF_DATA when None."""
    folder = data_dir or os.environ.get(DATA_DIR)
    if not folder or not os.path.isfile(os.path.join(folder, UCI_FILE)):
        raise ValueError(
            f"Expected a folder with {UCI_FILE}; got {folder or 'none'}: give --data-dir DIR, or "
            f"set {DATA_DIR}; the file has an array (rows, columns), the target last, of each table"
        )
    return read_table(f"{os.path.join(folder, UCI_FILE)}:{name}")


def prepare(table: Array, seed: int = 0) -> tuple[Array, str]:
    """Give a table (rows, columns) a density, and describe the preparation.

    Constant columns are left out, and so are linear combinations of the preceding columns. Noise
    U[0, gap) is added to a column with repeated values, where gap is the smallest difference
    between two distinct values.
    """
    constant = np.flatnonzero(np.ptp(table, 0) == 0)
    varying = np.setdiff1d(np.arange(table.shape[1]), constant)
    collinear = varying[sorted(collinear_columns(table[:, varying]))]
    remaining = np.setdiff1d(varying, collinear)
    values = table[:, remaining]
    distinct = [np.unique(column) for column in values.T]
    gaps = np.array([np.diff(each).min() if len(each) < len(values) else 0.0 for each in distinct])
    widths = zip(remaining, gaps / values.std(0), strict=True)
    description = (
        f"{len(values)} rows, {len(remaining)} columns; constant: {_list(constant)}; "
        f"collinear: {_list(collinear)}; noise, in deviations: "
        + _list(f"{column}: {width:.2g}" for column, width in widths if width)
    )
    return values + gaps * np.random.default_rng(seed).random(values.shape), description


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"


def standardized(values: Array, seed: int) -> StandardizedSplit:
    """Split rows 80/10/10 by a seed, in units of the training rows' means and deviations."""
    parts = split(len(values), seed)
    standard = (values - values[parts.train].mean(0)) / values[parts.train].std(0)
    indices = (parts.train, parts.validation, parts.test)
    return StandardizedSplit(*(standard[each] for each in indices))
