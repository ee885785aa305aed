"""Estimators of posteriors that are compared: flows of this project, and sbi's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from cnf.adapters.simulation_flow import FEW_SIMULATIONS, fit_simulations, simulation_flow
from cnf.flow import Flow
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS
from cnf.scripts.benchmarks.simulators import InferenceTask
from cnf.utils.random import seeded

STEPS, FEW_STEPS = 4000, 1200  # of a flow, and of one of few simulations
MEMBERS = 3  # flows of a mixture


@dataclass(frozen=True)
class FittedPosterior:
    """A posterior for any data.

    Attributes:
        sample: Draws so many parameters given data (1, numbers).
        log_prob: Returns log p of pairs (rows, parameters) and (rows, numbers); None where that
            takes too long.
        estimator: What was trained.
        posterior: The posterior of sbi's that is made of it.
    """

    sample: Callable[[int, Tensor], Tensor]
    log_prob: Callable[[Tensor, Tensor], Tensor] | None
    estimator: Any
    posterior: Any = None


def fit_ours(task: InferenceTask, target: Tensor, data: Tensor, seed: int) -> FittedPosterior:
    """Fit a flow of parameters given simulations."""
    with seeded(seed):
        flow = simulation_flow(target, data, support=task.prior.support)
    fit_simulations(flow, target, data, steps=steps_for(len(target)), seed=seed)
    return FittedPosterior(_drawn_by(flow), _scored_by(flow), flow)


def steps_for(simulations: int) -> int:
    """Return the optimizer steps of a flow.

    Example:
        >>> steps_for(10_000), steps_for(1000)
        (4000, 1200)
    """
    return FEW_STEPS if simulations < FEW_SIMULATIONS else STEPS


def fit_mixture(task: InferenceTask, target: Tensor, data: Tensor, seed: int) -> FittedPosterior:
    """Fit the mixture of equal parts of `MEMBERS` flows, each with simulations held out anew."""
    members = [fit_ours(task, target, data, seed + i) for i in range(MEMBERS)]

    def sample(count: int, observed: Tensor) -> Tensor:
        sizes = [len(part) for part in torch.arange(count).tensor_split(MEMBERS)]
        parts = zip(members, sizes, strict=True)
        return torch.cat([each.sample(size, observed) for each, size in parts])

    def log_prob(rows: Tensor, observed: Tensor) -> Tensor:
        found = [_scored_by(each.estimator)(rows, observed) for each in members]
        return torch.stack(found).logsumexp(0) - log(MEMBERS)

    return FittedPosterior(sample, log_prob, [each.estimator for each in members])


def fit_npe(task: InferenceTask, target: Tensor, data: Tensor, seed: int) -> FittedPosterior:
    """Fit sbi's NPE with its neural spline flow, both as they are by default."""
    from sbi.inference import NPE

    options = {"show_progress_bars": False, "tracker": _NoTracker()}
    return _fit_by(NPE(task.prior, "nsf", **options), target, data, seed)


def fit_fmpe(task: InferenceTask, target: Tensor, data: Tensor, seed: int) -> FittedPosterior:
    """Fit sbi's FMPE, as it is by default."""
    from sbi.inference import FMPE

    options = {"show_progress_bars": False, "tracker": _NoTracker()}
    return _fit_by(FMPE(task.prior, **options), target, data, seed)


class _NoTracker:
    """A tracker of sbi's that writes nothing; by default it writes to the working directory."""

    log_dir = None

    def log_metric(self, *given: Any, **named: Any) -> None: ...

    def log_metrics(self, *given: Any, **named: Any) -> None: ...

    def flush(self) -> None: ...


def _drawn_by(flow: Flow) -> Callable[[int, Tensor], Tensor]:
    def sample(count: int, data: Tensor) -> Tensor:
        return flow.sample(count, data[0], max_batch=BENCHMARK_CHUNK_ROWS)

    return sample


def _scored_by(flow: Flow) -> Callable[[Tensor, Tensor], Tensor]:
    @torch.no_grad()
    def log_prob(target: Tensor, data: Tensor) -> Tensor:
        return flow.log_prob(target, data, max_batch=BENCHMARK_CHUNK_ROWS)

    return log_prob


def _fit_by(inference: Any, target: Tensor, data: Tensor, seed: int) -> FittedPosterior:
    """Train an estimator of sbi's, and return its posterior."""
    with seeded(seed), quiet():
        estimator = inference.append_simulations(target, data).train()
        posterior = inference.build_posterior(estimator)

    def sample(count: int, observed: Tensor) -> Tensor:
        with quiet():
            drawn: Tensor = posterior.sample((count,), x=observed, show_progress_bars=False)
        return drawn

    @torch.no_grad()
    def log_prob(rows: Tensor, observed: Tensor) -> Tensor:
        found: Tensor = estimator.log_prob(rows.unsqueeze(0), condition=observed)[0]
        return found

    spline = hasattr(estimator, "log_prob")
    return FittedPosterior(sample, log_prob if spline else None, estimator, posterior)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back sbi's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
