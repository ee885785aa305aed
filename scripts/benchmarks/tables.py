"""Comparison of density estimators on tables, in equal time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import getsource
from math import inf, nan
from time import perf_counter

import numpy as np
import pandas as pd
import torch

from cnf.datasets import DATA_DIR, Table, collinear_columns, read_table, split
from cnf.diagnostics.two_sample import two_sample_test
from cnf.scripts.benchmarks.compared import METHOD_PEERS, METHODS, UCI_FILE, UCI_TABLES, peer
from cnf.scripts.benchmarks.density import FittedDensity, StandardizedSplit
from cnf.scripts.benchmarks.measure import Array, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.training.recipes import choose_recipe

OWN_METHOD, BASELINE_METHOD = "cnf", "gaussian"
FAILURES = (RuntimeError, ValueError, ArithmeticError, MemoryError)  # noted, and the next one runs


def _compared(options: BenchmarkOptions, column: str) -> Iterator[TableItem]:
    """Yield a row for each trial, then one for each table, and a summary."""
    tables = {
        name: prepare(uci_table(options.data_dir, name).values)
        for name in options.tables or UCI_TABLES
    }
    methods = options.methods or tuple(METHODS)
    _warm_up(methods)
    yield (
        "Test NLL in nats, of standardised columns, and accuracy of a classifier that tells "
        f"samples from test rows; {options.budget:g} s each, splits: {options.splits}, "
        f"{threads_used()}"
    )
    found: dict[tuple[str, int], dict[str, float]] = {}
    for table, (values, description) in tables.items():
        yield f"{table}: {description}"
        for seed in range(options.splits):
            found[table, seed] = {}
            for method in methods:
                trial = trial_of(options, table, values, seed, method)
                found[table, seed][method] = trial[column]
                yield {"split": seed, "method": method, **trial}
        yield ""
    yield from compare(pd.DataFrame(found).T, column)


nll_lines = partial(_compared, column="NLL")
two_sample_lines = partial(_compared, column="accuracy")


def trial_of(options: BenchmarkOptions, table: str, values: Array, seed: int, method: str) -> Row:
    """Return the trial of a method on a split of a table, run unless it is cached.

    Returns:
        The NLL and its standard error over the test rows; the accuracy of a classifier that tells
        samples from test rows, and its standard error; the seconds of the fit, and its choices.
        Numbers are NaN after a failure, which "note" describes.
    """
    parts, fit = standardized(values, seed), METHODS[method]
    _, recipe = choose_recipe(None, *parts.train.shape)
    names = {"table": table, "method": method, "split": seed, "budget": options.budget}
    key = key_of(names, values, getsource(sys.modules[fit.__module__]), recipe)
    return options.results.recall(key, partial(_run, parts, fit, options.budget, seed))


def _run(
    parts: StandardizedSplit, fit: Callable[..., FittedDensity], budget: float, seed: int
) -> Row:
    """Fit, score and sample; a failure is noted and does not end the table."""
    row: Row = dict.fromkeys(("NLL", "± NLL", "accuracy", "± accuracy", "seconds"), nan)
    row |= {"chosen": "", "note": ""}
    begin = perf_counter()
    try:
        fitted = fit(parts, budget, seed)
        row |= {"seconds": perf_counter() - begin, "chosen": fitted.chosen}
        log_prob = fitted.log_prob(parts.test)
        if not np.isfinite(log_prob).all():
            raise ValueError(f"{(~np.isfinite(log_prob)).sum()} log-densities are not finite")
        nll = Average.of(-log_prob)
        row |= {"NLL": nll.mean, "± NLL": nll.stderr}
        test = two_sample_test(parts.test, fitted.sample(len(parts.test), seed), seed)
        row |= {"accuracy": test.accuracy, "± accuracy": test.stderr}
    except FAILURES as error:
        row["note"] = f"failed: {' '.join(str(error).split()) or type(error).__name__}"
    return row


def _warm_up(methods: tuple[str, ...]) -> None:
    """Import the libraries of methods and take a step, which the first fit would pay for."""
    for library in {METHOD_PEERS[method] for method in methods if method in METHOD_PEERS}:
        peer(library)
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


def compare(found: pd.DataFrame, column: str) -> Iterator[TableItem]:
    """Yield a row of means, standard errors and ranks for each table, and a summary of them.

    The frame has a number for each method, the lower the better and NaN where it failed, in a row
    for each table and split.
    """
    yield f"{column}, mean over splits ± standard error; the rank, with * for the best"
    tables = {str(table): rows for table, rows in found.groupby(level=0, sort=False)}
    means = pd.DataFrame({table: rows.mean(skipna=False) for table, rows in tables.items()}).T
    ranks = means.rank(axis=1, na_option="bottom")  # failures share the last ranks
    for table, rows in tables.items():
        line = means.loc[table]
        cells = {
            str(method): f"{Average.of(rows[method])}  {'*' if mean == line.min() else ''}{rank:g}"
            for (method, mean), rank in zip(line.items(), ranks.loc[table], strict=True)
        }
        yield {"table": table, **cells}
    yield {"table": "mean rank", **ranks.mean().map("{:.2f}".format)}
    if column == "NLL" and OWN_METHOD in means:
        near = sum(is_near_best(rows, OWN_METHOD) for rows in tables.values())
        beside = "best, or within one standard error (of the difference, split by split) of it"
        yield f"{OWN_METHOD} is the {beside}, on {near} of {len(tables)} tables"
        worse = ~(means[OWN_METHOD] <= means.get(BASELINE_METHOD, means[OWN_METHOD]).fillna(inf))
        beyond = f"worse than the {BASELINE_METHOD} or " if BASELINE_METHOD in means else ""
        yield f"{OWN_METHOD} is {beyond}failed on {worse.sum()} of {len(tables)} tables"


def is_near_best(numbers: pd.DataFrame, name: str) -> bool:
    """Return whether a method is the best on a table, or within one standard error of it.

    The standard error is that of the difference from the best over splits, if there are several.
    """
    means = numbers.mean(skipna=False).fillna(inf)
    off = Average.of(numbers[name] - numbers[means.idxmin()])
    return bool(means[name] < inf and (off.mean == 0 or off.mean <= off.stderr))


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
