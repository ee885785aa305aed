"""Scoring: log p of rows with the errors of estimates and of the solver, without raising."""

from __future__ import annotations

import warnings
from math import inf, nan
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from cnf.flow.batching import chunks
from cnf.flow.scores import Scores, concatenate
from cnf.layers import ScoringOptions
from cnf.ode import Stats, Status
from cnf.utils.row_noise import RowNoise

if TYPE_CHECKING:
    from cnf.flow.flow import Flow

TIGHTER = 0.1  # of the tolerance: the second solve's, which shows the solver's error


def score_rows(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    probes: int,
    generator: torch.Generator | None,
    max_batch: int | None,
) -> Scores:
    """Return the scores of rows (rows, dim); arguments as in `cnf.Flow.score`."""
    device = torch.device("cpu") if generator is None else generator.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    double = flow.in_double() if x.dtype != torch.float64 else flow
    parts = []
    for chunk in chunks(len(x), max_batch):
        part = None if context is None else context[chunk]
        noise = (seed, x.dtype, chunk.start)
        parts.append(_score_chunk(flow, double, x[chunk], part, probes, noise))
    scores = concatenate(parts)
    if scores.stderr.isnan().all() and not scores.log_prob.isnan().all():
        warnings.warn(
            "One probe has no standard error: stderr is NaN. Take more, score(x, probes=16)",
            stacklevel=3,
        )
    return scores


def base_log_prob(base: Distribution, z: Tensor) -> Tensor:
    """Return a base's log p of rows; of no rows too, for which PyTorch's `Independent` fails."""
    return base.log_prob(z) if len(z) else z.new_zeros(0)


def _score_chunk(
    flow: Flow,
    double: Flow,
    x: Tensor,
    context: Tensor | None,
    probes: int,
    noise: tuple[int, torch.dtype, int],
) -> Scores:
    """Return the scores of rows few enough for one solve.

    Args:
        flow: The flow.
        double: The flow in double precision.
        x: Shape (rows, dim).
        context: Shape (rows, context_dim).
        probes: Estimates for each row.
        noise: The arguments of the rows' `RowNoise`, which each of the two solves draws anew.
    """
    options = ScoringOptions(probes, RowNoise(*noise))
    log_prob, variance, status, stats = _estimate(flow, x, context, options)
    context = None if context is None else context.double()
    options = ScoringOptions(probes, RowNoise(*noise), tolerance_factor=TIGHTER)
    tighter, *_ = _estimate(double, x.double(), context, options)
    change = (log_prob - tighter).abs().masked_fill(log_prob == tighter, 0.0)
    return Scores(log_prob, variance.sqrt(), change.to(log_prob), status, stats, tighter, probes)


def _estimate(
    flow: Flow, x: Tensor, context: Tensor | None, options: ScoringOptions
) -> tuple[Tensor, Tensor, NDArray[np.object_], Stats]:
    """Return log p of rows, its variance as an estimate, the rows' statuses and the cost.

    Where noise is drawn log p is the logarithm of the mean of several estimates of a row's mass.
    """
    if not flow.noisy:
        return _estimate_once(flow, x, context, options)
    draws = [_estimate_once(flow, x, context, options) for _ in range(options.probes)]
    log_probs = torch.stack([log_prob for log_prob, *_ in draws])
    most = log_probs.amax(0).clamp(min=torch.finfo(log_probs.dtype).min)
    masses = (log_probs - most).exp()
    mean = masses.mean(0)
    variance = masses.var(0) / mean.square() / len(draws)  # of a logarithm, by its slope
    variance = variance.masked_fill(mean == 0, 0.0)
    variance = variance + torch.stack([each for _, each, *_ in draws]).mean(0) / len(draws)
    status, stats = draws[0][2], Stats()
    for _, _, each, cost in draws:
        status = np.where(status == Status.FINISHED, each, status)
        stats = stats + cost
    return most + mean.log(), variance, status, stats


@torch.no_grad()
def _estimate_once(
    flow: Flow, x: Tensor, context: Tensor | None, options: ScoringOptions
) -> tuple[Tensor, Tensor, NDArray[np.object_], Stats]:
    """Return the same with one draw of noise for each row."""
    context = flow.standardized(context)
    log_det, variance, stats = x.new_zeros(len(x)), x.new_zeros(len(x)), Stats()
    status = np.full(len(x), Status.FINISHED)
    for layer in reversed(flow.layers):
        scored = layer.pull_scored(x, context, options)
        result, finished = scored.result, status == Status.FINISHED
        x, log_det, stats = result.value, log_det + result.log_det, stats + result.stats
        variance = variance + scored.variance
        status[finished] = scored.status[finished]
    log_prob = _log_prob_or_nan(flow.base, x) + log_det
    status[log_prob.isnan().cpu().numpy() & (status == Status.FINISHED)] = Status.NOT_FINITE
    return log_prob, variance, status, stats


def _log_prob_or_nan(base: Distribution, z: Tensor) -> Tensor:
    """Return the base's log p of rows; for what it refuses NaN, or -inf outside its support.

    NaN too where a row is so far out that its log p is beyond the largest number.
    """
    if not len(z):
        return z.new_zeros(0)
    lost = z.isnan().any(1)
    inside = ~lost if base.support is None else base.support.check(z) & ~lost
    found = z.new_full((len(z),), -inf).masked_fill(lost, nan)
    found = found.masked_scatter(inside, base_log_prob(base, z[inside]))
    far = (z.abs() > torch.finfo(z.dtype).max ** 0.25).any(1)
    return found.masked_fill(inside & far & (found == -inf), nan)
