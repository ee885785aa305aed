"""Checks of posteriors: the cost of log p at equal error, and calibration over simulations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest
from torch import Tensor

from cnf.flow import Flow
from cnf.layers import CNF
from cnf.scripts.benchmarks.inference import InferenceTrial, stored_observation, task_files
from cnf.scripts.benchmarks.measure import TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.posteriors import quiet
from cnf.scripts.benchmarks.simulators import INFERENCE_TASKS
from cnf.utils.random import seeded

SCORED_POINTS, REFERENCE_POINTS = 10_000, 200
SCORED_TASK, SCORED_SIMULATIONS = "two_moons", 1000
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ERRORS = (1e-2, 1e-3, 1e-4)  # at which times are compared
CALIBRATED_TASKS, CALIBRATED_SIMULATIONS = ("gaussian_linear", "two_moons"), 10_000
TRUTHS, TRUTHS_SEED, DRAWS_EACH = 300, 2 * 10**6, 100
LEVEL = 0.05

Velocity = Callable[[Tensor, Tensor], Tensor]
"""The velocity (rows, dim) at a time, a scalar, and points (rows, dim)."""


def scoring_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each method and tolerance, and how many times as fast ours is."""
    stored = stored_observation(task_files(options.sbibm), SCORED_TASK, 1)
    points, data = stored.reference[:SCORED_POINTS], stored.data
    yield (
        f"log p of {len(points)} points of the reference posterior of {SCORED_TASK}, after "
        f"{SCORED_SIMULATIONS} simulations; the largest error against DOP853 in double precision, "
        f"of {REFERENCE_POINTS} points; {threads_used(options.repeats)}"
    )
    costs: dict[str, list[tuple[float, float]]] = {}
    for method in ("ours", "fmpe"):
        scored = _scored(InferenceTrial(method, SCORED_TASK, SCORED_SIMULATIONS), data, options)
        reference = scored.reference(points[:REFERENCE_POINTS])
        for tolerance in TOLERANCES:
            score = partial(scored.log_prob, tolerance=tolerance)
            found = score(points)
            error = float((found[:REFERENCE_POINTS].double() - reference).abs().max())
            alone = torch.cat([score(points[i : i + 1]) for i in range(5)])
            seconds = median_seconds({method: partial(score, points)}, options.repeats)[method]
            costs.setdefault(method, []).append((error, seconds))
            yield {
                "method": method,
                "tolerance": tolerance,
                "seconds": seconds,
                "error": error,
                "in the batch minus alone": float((found[:5] - alone).abs().max()),
            }
    for limit in ERRORS:
        ours, theirs = (fastest(costs[method], limit) for method in ("ours", "fmpe"))
        yield f"At an error of at most {limit:g}: {theirs / ours:.3g} times as fast as FMPE"


def fastest(costs: list[tuple[float, float]], limit: float) -> float:
    """Return the fewest seconds of (error, seconds) whose error is within a limit; NaN if none.

    Example:
        >>> fastest([(1e-2, 1.0), (1e-4, 3.0), (1e-6, 9.0)], 1e-3)
        3.0
    """
    return min((seconds for error, seconds in costs if error <= limit), default=nan)


@dataclass(frozen=True)
class ScoredPosterior:
    """A posterior given one observation: log p by a tolerance, and by DOP853 in double."""

    log_prob: Callable[..., Tensor]
    reference: Callable[[Tensor], Tensor]


def _scored(trial: InferenceTrial, data: Tensor, options: BenchmarkOptions) -> ScoredPosterior:
    if trial.method == "ours":
        return score_flow(trial.flow(options), data)
    posterior = trial.fitted()
    return score_fmpe(posterior.estimator, posterior.posterior, data)


def score_flow(flow: Flow, data: Tensor) -> ScoredPosterior:
    """Return the scores of a flow given data (1, numbers)."""

    @torch.no_grad()
    def log_prob(points: Tensor, tolerance: float) -> Tensor:
        return flow.with_solver(rtol=tolerance, atol=tolerance).log_prob(points, data)

    def reference(points: Tensor) -> Tensor:
        double, x = flow.in_double(), points.double()
        context = double.standardized(data.double().expand(len(x), -1))
        total = torch.zeros(len(x)).double()
        for layer in reversed(double.layers):
            if isinstance(layer, CNF):
                field = partial(_field_velocity, layer, context)
                x, log_det = integrate_dop853(field, x, (1.0, 0.0))
            else:
                with torch.no_grad():
                    x, log_det = layer.inverse(x, context)
            total = total + log_det
        return double.base.log_prob(x) + total

    return ScoredPosterior(log_prob, reference)


def _field_velocity(layer: CNF, context: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
    return layer.velocity(t.expand(len(x), 1), x, context)


def score_fmpe(estimator: Any, posterior: Any, data: Tensor) -> ScoredPosterior:
    """Return the scores of sbi's FMPE given data (1, numbers)."""

    def log_prob(points: Tensor, tolerance: float) -> Tensor:
        options = {"atol": tolerance, "rtol": tolerance}
        with quiet():
            found: Tensor = posterior.log_prob(points, x=data, ode_kwargs=options)
        return found

    def reference(points: Tensor) -> Tensor:
        double, ode = copy.deepcopy(estimator).double(), posterior.potential_fn.neural_ode
        given = data.double().expand(len(points), -1)

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            found: Tensor = double.ode_fn(x, given, t.expand(len(x)))
            return found

        with double_by_default():  # in which its features of time are made
            x, log_det = integrate_dop853(velocity, points.double(), (ode.t_min, ode.t_max))
        loc, scale = ode.mean_base.double(), ode.std_base.double()
        base: Tensor = torch.distributions.Normal(loc, scale).log_prob(x)
        return base.flatten(1).sum(1) + log_det

    return ScoredPosterior(log_prob, reference)


@contextmanager
def double_by_default() -> Iterator[None]:
    """Set PyTorch's default to double precision within the context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def integrate_dop853(
    velocity: Velocity, points: Tensor, span: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return where points (rows, dim) end, and log |det| of the map to there, by SciPy's DOP853.

    Example:
        >>> points = torch.ones(2, 3).double()
        >>> ends, log_det = integrate_dop853(lambda t, x: 2 * x, points, (0.0, 0.5))
        >>> round(ends[0, 0].item(), 6), round(log_det[0].item(), 6)
        (2.718282, 3.0)
    """
    rows, dim = points.shape

    def slopes(t: float, state: Any) -> Any:
        x = torch.from_numpy(state).view(rows, dim + 1)[:, :-1].requires_grad_()
        with torch.enable_grad():
            v = velocity(torch.tensor(t).double(), x)
            parts = [
                torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i]
                for i in range(dim)
            ]
        return torch.cat([v, torch.stack(parts, 1).sum(1, keepdim=True)], 1).detach().flatten()

    start = torch.cat([points, points.new_zeros(rows, 1)], 1).flatten().numpy()
    found = solve_ivp(slopes, span, start, "DOP853", rtol=1e-10, atol=1e-10)
    end = torch.from_numpy(found.y[:, -1]).view(rows, dim + 1)
    return end[:, :-1], end[:, -1]


def calibration_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each test of ranks and of coverage, and a verdict over all of them."""
    yield (
        f"p-values of Kolmogorov-Smirnov tests of ranks (SBC) and coverage (TARP): {TRUTHS} new "
        f"simulations, {DRAWS_EACH} draws for each; after {CALIBRATED_SIMULATIONS} simulations; "
        f"{threads_used()}"
    )
    found: list[float] = []
    for name in options.tasks or CALIBRATED_TASKS:
        flow = InferenceTrial("ours", name, CALIBRATED_SIMULATIONS).flow(options)
        truths, data = INFERENCE_TASKS[name].draw(TRUTHS, TRUTHS_SEED)
        with seeded(TRUTHS_SEED):
            draws = flow.sample(DRAWS_EACH, data, max_batch=DRAWS_EACH * 50)
            references = INFERENCE_TASKS[name].prior.sample(torch.Size([TRUTHS]))
        levels = {**rank_levels(truths, draws), "TARP": coverage_levels(truths, draws, references)}
        for test, values in levels.items():
            p_value = float(kstest(values, "uniform").pvalue)
            found.append(p_value)
            yield {"task": name, "test": test, "p": p_value}
    rejected = holm_rejections(found, LEVEL)
    yield f"Rejected at {LEVEL:.0%} over all {len(found)} tests (Holm): {rejected}"


def rank_levels(truths: Tensor, draws: Tensor, seed: int = 0) -> dict[str, Any]:
    """Return the ranks of true parameters among draws, in (0, 1) with ties and gaps broken.

    Shapes: (truths, parameters), (draws, truths, parameters) → (truths,) for each parameter.

    Source: Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based
    calibration.
    """
    ranks = (draws < truths).sum(0).numpy()
    noise = np.random.default_rng(seed).random(ranks.shape)
    levels = (ranks + noise) / (len(draws) + 1)
    return {f"SBC, parameter {i + 1}": column for i, column in enumerate(levels.T)}


def coverage_levels(truths: Tensor, draws: Tensor, references: Tensor, seed: int = 0) -> Any:
    """Return the share of draws nearer to a random point than the truth, (truths,).

    Shapes: as of `rank_levels`; the random points (truths, parameters).

    Source: Lemos et al. (2023), Sampling-based accuracy testing of posterior estimators (TARP).
    """
    scale = truths.std(0)
    reach = ((truths - references) / scale).square().sum(-1)
    nearer = (((draws - references) / scale).square().sum(-1) < reach).sum(0).numpy()
    noise = np.random.default_rng(seed).random(nearer.shape)
    return (nearer + noise) / (len(draws) + 1)


def holm_rejections(p_values: list[float], level: float) -> int:
    """Return how many hypotheses Holm's procedure rejects at a level of all tests together.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.

    Example:
        >>> holm_rejections([0.001, 0.02, 0.5], 0.05), holm_rejections([0.02, 0.03], 0.05)
        (2, 2)
    """
    count = len(p_values)
    for i, each in enumerate(sorted(p_values)):
        if each > level / (count - i):
            return i
    return count
