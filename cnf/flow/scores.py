"""Scores: log-densities of rows with their cost and their errors, without raising for a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from cnf.flow.batching import chunks
from cnf.layers import ScoringOptions
from cnf.ode import Solution, SolveError, Stats, Status
from cnf.ode.solution import Count

if TYPE_CHECKING:
    from cnf.flow.flow import Flow

TIGHTER = 0.1  # of the tolerance: the second solve's, which shows the solver's error


@dataclass(frozen=True)
class RowLogProbs:
    """Log-densities of rows with the cost of their solves.

    Attributes:
        log_prob: log p(x) in nats per row, shape (rows,).
        stats: The evaluations and steps of all CNF layers.
        penalties: The integrals of each regularizer, summed over the layers, of shape (rows,).
        layer_inputs: What each layer received from the data's side, (rows, columns), detached.
    """

    log_prob: Tensor
    stats: Stats
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    layer_inputs: Sequence[Tensor] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-densities of rows, with their errors and how their solves went.

    Attributes:
        log_prob: log p(x) in nats, shape (*batch); NaN where a row failed, −inf where there is no
            density: out of the base's support, or of a column's.
        stderr: The standard error of log_prob from the probes of an estimated trace or the draws of
            noise, shape (*batch); zero where there are none, NaN where there is only one.
        solver_error: |log_prob − tighter|, shape (*batch): the error of solver and rounding.
        status: `cnf.ode.Status` of each row, an array of shape (*batch): that of the first layer
            from the data that did not finish, or that log p is no number.
        stats: Cost of the first solve, by row in flat order, or of all rows where steps are joint.
        tighter: Log p in double precision by dopri8 at a tenth of the tolerance, a thousandth after
            a first pass, or at half the fixed step, with the same probes and noise, shape (*batch);
            NaN where that failed.
        probes: How many estimates, or draws, `stderr` is of.
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    status: NDArray[np.object_]
    stats: Stats
    tighter: Tensor
    probes: int

    @property
    def uncertainty(self) -> Tensor:
        """The bound on log_prob's error, in nats, that holds for 95 of 100 rows; shape (*batch).

            √((t stderr)² + (2 solver_error)²)

        With `probes` estimates t is Student's, 2.13 for 16 of them, since the standard error is
        itself an estimate. The solver's error is doubled, since the tighter solve is off too: by
        less than half as much in 97 to 100 rows of 100, also where fixed steps of first order are
        halved. Measured against SciPy's DOP853 at 1e-12 it is twice the distance in the median.

        It is about log p of x as the flow's precision holds it. NaN where a part is.
        """
        from scipy.special import stdtrit  # here, since it takes long to import

        factor = float(stdtrit(self.probes - 1, 0.975)) if self.probes > 1 else 1.0
        return torch.hypot(factor * self.stderr, 2 * self.solver_error)

    def to(self, dtype: torch.dtype) -> Scores:
        """Return the scores in another dtype, but for `tighter`."""
        names = ("log_prob", "stderr", "solver_error")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    def reshape(self, batch: Sequence[int]) -> Scores:
        """Return the scores with another batch shape; `stats` stays that of the rows."""
        names = ("log_prob", "stderr", "solver_error", "status", "tighter")
        return replace(self, **{name: getattr(self, name).reshape(batch) for name in names})


def concatenate(parts: Sequence[Scores]) -> Scores:
    """Return the scores of at least one part as those of all rows, in their order."""
    names = ("log_prob", "stderr", "solver_error", "tighter")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in names
    }
    evaluations, accepted, rejected = (
        _join_counts([getattr(part.stats, name) for part in parts])
        for name in ("evaluations", "accepted", "rejected")
    )
    joined["status"] = np.concatenate([part.status for part in parts])
    return replace(parts[0], stats=Stats(evaluations, accepted, rejected), **joined)


def _join_counts(counts: Sequence[Count]) -> Count:
    per_row = isinstance(counts[0], np.ndarray)
    return np.concatenate(counts) if per_row else sum(counts, start=0)


def score_rows(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    probes: int,
    seed: int,
    max_batch: int | None,
) -> Scores:
    """Return the scores of rows (rows, dim); arguments as in `cnf.Flow.score`."""
    double = flow.in_double() if x.dtype != torch.float64 else flow
    parts = []
    for chunk in chunks(len(x), max_batch):
        part = None if context is None else context[chunk]
        parts.append(_score_chunk(flow, double, x[chunk], part, probes, seed))
    scores = concatenate(parts)
    if scores.stderr.isnan().all() and not scores.log_prob.isnan().all():
        warnings.warn(
            "One probe has no standard error: stderr is NaN. Take more, score(x, probes=16)",
            stacklevel=3,
        )
    return scores


def base_log_prob(base: Distribution, z: Tensor) -> Tensor:
    """Return a base's log p of rows; of no rows too, for which PyTorch's `Independent` fails.

    Raises:
        SolveError: A row holds NaN, which a map without a solver has passed on.
    """
    if not len(z):
        return z.new_zeros(0)
    lost = z.isnan().any(1)
    if lost.any():
        status = np.full(len(z), Status.FINISHED)
        status[lost.cpu().numpy()] = Status.NOT_FINITE
        raise SolveError(Solution.unsolved(z, status, Stats()))
    return base.log_prob(z)


def _score_chunk(
    flow: Flow,
    double: Flow,
    x: Tensor,
    context: Tensor | None,
    probes: int,
    seed: int,
) -> Scores:
    """Return the scores of rows few enough for one solve; each solve draws their noise anew."""
    options = ScoringOptions(probes, flow.row_noise(seed, x, context))
    log_prob, variance, status, stats = _estimate(flow, x, context, options)
    options = replace(options, noise=flow.row_noise(seed, x, context), tolerance_factor=TIGHTER)
    context = None if context is None else context.double()
    tighter, *_ = _estimate(double, x.double(), context, options)
    change = (log_prob - tighter).abs().masked_fill(log_prob == tighter, 0.0)
    return Scores(log_prob, variance.sqrt(), change.to(log_prob), status, stats, tighter, probes)


def _estimate(
    flow: Flow, x: Tensor, context: Tensor | None, options: ScoringOptions
) -> tuple[Tensor, Tensor, NDArray[np.object_], Stats]:
    """Return log p of rows, of the mean mass where noise is drawn, its variance, status, cost."""
    if not flow.noisy:
        return _estimate_once(flow, x, context, options)
    draws = [_estimate_once(flow, x, context, options) for _ in range(options.probes)]
    log_prob, variance = mean_mass(torch.stack([each for each, *_ in draws]))
    variance = variance + torch.stack([each for _, each, *_ in draws]).mean(0) / len(draws)
    status, stats = draws[0][2], Stats()
    for _, _, each, cost in draws:
        status = np.where(status == Status.FINISHED, each, status)
        stats = stats + cost
    return log_prob, variance, status, stats


def mean_mass(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mean mass of rows over draws of noise, and the variance of that log.

    The variance is that of the mean mass over its square, by the logarithm's slope; NaN of a single
    draw.

    Shapes: (draws, rows) → (rows,), (rows,).

    Example:
        >>> log_mean, variance = mean_mass(torch.tensor([[1.0], [3.0]]).log())
        >>> round(log_mean.exp().item(), 4), round(variance.item(), 4)
        (2.0, 0.25)
    """
    most = log_probs.amax(0).clamp(min=torch.finfo(log_probs.dtype).min)
    masses = (log_probs - most).exp()
    mean = masses.mean(0)
    variance = masses.var(0) / mean.square() / len(log_probs)
    return most + mean.log(), variance.masked_fill(mean == 0, 0.0)


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
    log_prob = log_prob_or_nan(flow.base, x) + log_det
    status[log_prob.isnan().cpu().numpy() & (status == Status.FINISHED)] = Status.NOT_FINITE
    return log_prob, variance, status, stats


def log_prob_or_nan(base: Distribution, z: Tensor) -> Tensor:
    """Return the base's log p: NaN where that overflows or z is NaN, -inf off its support."""
    if not len(z):
        return z.new_zeros(0)
    lost = z.isnan().any(1)
    inside = ~lost if base.support is None else base.support.check(z) & ~lost
    found = z.new_full((len(z),), -inf).masked_fill(lost, nan)
    found = found.masked_scatter(inside, base_log_prob(base, z[inside]))
    far = (z.abs() > torch.finfo(z.dtype).max ** 0.25).any(1)
    return found.masked_fill(inside & far & (found == -inf), nan)
