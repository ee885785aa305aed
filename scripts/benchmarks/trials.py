"""Methods on splits of tables, each tried once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite, nan
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cnf.diagnostics.two_sample import two_sample_test
from cnf.scripts.benchmarks.cells import fingerprint
from cnf.scripts.benchmarks.density import Density
from cnf.scripts.benchmarks.methods import METHODS
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.prepared import Parts, Prepared

FAILURES = (RuntimeError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Trial:
    """What was tried.

    Attributes:
        method: A name in `METHODS`.
        table: A name in `cnf.scripts.benchmarks.uci.NAMES`.
        split: Seed of the split, and of all that the method draws.
        budget: Seconds for fitting and choosing.
        threads: PyTorch's.
        settings: The fingerprint of the method's settings and of the prepared table.
    """

    method: str
    table: str
    split: int
    budget: float
    threads: int
    settings: str


@dataclass(frozen=True)
class Outcome:
    """What came of it; numbers are not finite where it failed.

    Attributes:
        nll: Mean NLL of the test rows, in nats, of standardised columns.
        stderr: Its standard error over the rows.
        seconds: Wall time of fitting and choosing.
        accuracy: Of a classifier that tells samples from the test rows.
        accuracy_stderr: Its standard error.
        chosen: What was chosen on the validation rows, in words.
        reason: What failed, in words; empty where nothing did.
        kept: Whether it was there already.
    """

    nll: float = nan
    stderr: float = nan
    seconds: float = nan
    accuracy: float = nan
    accuracy_stderr: float = nan
    chosen: str = ""
    reason: str = ""
    kept: bool = False

    @staticmethod
    def of(cell: Mapping[str, Any]) -> Outcome:
        """An outcome that was finished before."""
        found: dict[str, Any] = {k: nan if cell[k] is None else cell[k] for k in KEPT}
        return Outcome(**found, kept=True)


KEPT = tuple(field.name for field in fields(Outcome) if field.name != "kept")


def trial_of(options: Options, method: str, table: str, prepared: Prepared, split: int) -> Trial:
    """What is tried: a method by the settings that it has for this table."""
    train = prepared.parts(split).train
    settings = {"settings": asdict(METHODS[method].settings(*train.shape))}
    mark = fingerprint({**settings, "rows": prepared.digest()})
    return Trial(method, table, split, options.budget, torch.get_num_threads(), mark)


def outcome_of(options: Options, trial: Trial, prepared: Prepared) -> Outcome:
    """The outcome of a trial, which is made unless it is there already.

    Raises:
        KeyboardInterrupt: It was interrupted: there is no outcome.
    """
    found = options.table_cells.find(asdict(trial), KEPT)
    if found is not None:
        return Outcome.of(found)
    outcome = make(trial, prepared.parts(trial.split))
    options.table_cells.add(asdict(trial), {name: getattr(outcome, name) for name in KEPT})
    return outcome


def make(trial: Trial, parts: Parts) -> Outcome:
    """Fit, score and sample; what fails is told and does not stop the table."""
    method = METHODS[trial.method]
    settings = method.settings(*parts.train.shape)
    begin = perf_counter()
    try:
        fitted = method.fit(parts, trial.budget, trial.split, settings)
        outcome = Outcome(seconds=perf_counter() - begin, chosen=fitted.chosen)
    except FAILURES as error:
        return Outcome(seconds=perf_counter() - begin, reason=_told("fitting", error))
    try:
        outcome = _scored(outcome, fitted.density, parts)
    except FAILURES as error:
        return replace(outcome, reason=_told("scoring", error))
    try:
        samples = fitted.density.sample(len(parts.test), trial.split)
        told = two_sample_test(parts.test, _finite(samples), trial.split)
    except FAILURES as error:
        return replace(outcome, reason=_told("sampling", error))
    return replace(outcome, accuracy=told.accuracy, accuracy_stderr=told.stderr)


def _scored(outcome: Outcome, density: Density, parts: Parts) -> Outcome:
    """The outcome with the test rows' NLL.

    Raises:
        ValueError: It is not finite.
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


def _told(what: str, error: BaseException) -> str:
    return f"{what} failed: {' '.join(str(error).split()) or type(error).__name__}"
