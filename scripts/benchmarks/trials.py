"""Cached trials of methods on splits of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite, nan
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cnf.diagnostics.two_sample import two_sample_test
from cnf.scripts.benchmarks.density import DensityEstimator
from cnf.scripts.benchmarks.methods import METHODS
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.prepared import PreparedTable, StandardizedSplit
from cnf.scripts.benchmarks.result_cache import fingerprint

TRIAL_FAILURES = (RuntimeError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class TableTrial:
    """A trial of a method on a split of a table; the key of its outcome.

    Attributes:
        method: A name in `METHODS`.
        table: A name in `cnf.scripts.benchmarks.uci.UCI_TABLES`.
        split: Seed of the split, and of the method's random draws.
        budget: Seconds for fitting and model selection.
        threads: Threads of PyTorch.
        settings: Fingerprint of the method's settings and of the prepared table.
    """

    method: str
    table: str
    split: int
    budget: float
    threads: int
    settings: str


@dataclass(frozen=True)
class TableOutcome:
    """The outcome of a trial; its numbers are not finite where the trial failed.

    Attributes:
        nll: Mean NLL of the test rows, in nats, of standardised columns.
        stderr: Standard error of `nll` over the rows.
        seconds: Wall time of fitting and model selection.
        accuracy: Accuracy of a classifier that tells samples from the test rows.
        accuracy_stderr: Standard error of `accuracy`.
        chosen: The choices made on the validation rows, in words.
        reason: The reason of a failure, in words; empty on success.
        cached: Whether the outcome was read from the cache.
    """

    nll: float = nan
    stderr: float = nan
    seconds: float = nan
    accuracy: float = nan
    accuracy_stderr: float = nan
    chosen: str = ""
    reason: str = ""
    cached: bool = False

    @staticmethod
    def of(result: Mapping[str, Any]) -> TableOutcome:
        """Return the outcome of a cached result."""
        found: dict[str, Any] = {
            k: nan if result[k] is None else result[k] for k in TABLE_OUTCOME_FIELDS
        }
        return TableOutcome(**found, cached=True)


TABLE_OUTCOME_FIELDS = tuple(field.name for field in fields(TableOutcome) if field.name != "cached")


def trial_of(
    options: BenchmarkOptions, method: str, table: str, prepared: PreparedTable, split: int
) -> TableTrial:
    """Return the trial of a method with its settings for this table."""
    train = prepared.parts(split).train
    settings = {"settings": asdict(METHODS[method].settings(*train.shape))}
    mark = fingerprint({**settings, "rows": prepared.digest()})
    return TableTrial(method, table, split, options.budget, torch.get_num_threads(), mark)


def outcome_of(
    options: BenchmarkOptions, trial: TableTrial, prepared: PreparedTable
) -> TableOutcome:
    """Return the outcome of a trial, which is run unless it is cached.

    Raises:
        KeyboardInterrupt: The trial was interrupted, so there is no outcome.
    """
    found = options.table_results.find(asdict(trial), TABLE_OUTCOME_FIELDS)
    if found is not None:
        return TableOutcome.of(found)
    outcome = run_trial(trial, prepared.parts(trial.split))
    options.table_results.add(
        asdict(trial), {name: getattr(outcome, name) for name in TABLE_OUTCOME_FIELDS}
    )
    return outcome


def run_trial(trial: TableTrial, parts: StandardizedSplit) -> TableOutcome:
    """Fit, score and sample; a failure is recorded and does not end the table."""
    method = METHODS[trial.method]
    settings = method.settings(*parts.train.shape)
    begin = perf_counter()
    try:
        fitted = method.fit(parts, trial.budget, trial.split, settings)
        outcome = TableOutcome(seconds=perf_counter() - begin, chosen=fitted.chosen)
    except TRIAL_FAILURES as error:
        return TableOutcome(seconds=perf_counter() - begin, reason=_failure("fitting", error))
    try:
        outcome = _scored(outcome, fitted.density, parts)
    except TRIAL_FAILURES as error:
        return replace(outcome, reason=_failure("scoring", error))
    try:
        samples = fitted.density.sample(len(parts.test), trial.split)
        test = two_sample_test(parts.test, _finite(samples), trial.split)
    except TRIAL_FAILURES as error:
        return replace(outcome, reason=_failure("sampling", error))
    return replace(outcome, accuracy=test.accuracy, accuracy_stderr=test.stderr)


def _scored(
    outcome: TableOutcome, density: DensityEstimator, parts: StandardizedSplit
) -> TableOutcome:
    """Return the outcome with the NLL of the test rows.

    Raises:
        ValueError: The NLL is not finite.
    """
    log_prob = density.log_prob(parts.test)
    nll = -float(log_prob.mean())
    if not isfinite(nll):
        lost = (~np.isfinite(log_prob)).sum()
        raise ValueError(f"Expected finite log-densities; got {lost} that are not")
    stderr = float(log_prob.std(ddof=1) / len(log_prob) ** 0.5) if len(log_prob) > 1 else nan
    return replace(outcome, nll=nll, stderr=stderr)


def _finite(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not np.isfinite(samples).all():
        raise ValueError(f"Expected finite samples; got {(~np.isfinite(samples)).sum()} numbers")
    return samples


def _failure(what: str, error: BaseException) -> str:
    return f"{what} failed: {' '.join(str(error).split()) or type(error).__name__}"
