"""Checks of log p: by other solves of the same rows, and by the integral of the density."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.diagnostics.context import (
    CheckContext,
    in_double,
    log_probs,
    log_probs_or_nan,
    reference_tolerance,
    seeded_for,
    tightened,
    with_exact_traces,
)
from cnf.diagnostics.integral import Integral, integrate
from cnf.diagnostics.report import Finding, Findings, Limit
from cnf.diagnostics.statistics import (
    FAIL_ERRORS,
    WARN_ERRORS,
    agreement,
    largest,
    nan_as_inf,
)
from cnf.flow.flow import Flow
from cnf.training.data import Rows

Array = NDArray[np.float64]

# Units of max(1, |log p|): rounding in single precision, a hundred times over. Up to a thousandth
# the change is within what the tolerance allows; that of joint steps is more.
BATCH_LIMIT = Limit(1e-5, 1e-3)
SINGLE_ROWS = 3  # that are scored alone

# Distance from 1, the total mass, or WARN_ERRORS and FAIL_ERRORS where these are more.
INTEGRAL_LIMIT = Limit(1e-2, 3e-2)
MAX_RELATIVE_STDERR = 0.15  # of an integral that is decisive
MIN_EFFECTIVE_POINTS = 50.0  # of an integral that is decisive
MAX_CONTEXTS = 3  # at which integrals are taken
INTEGRAL_SAMPLES = 5000  # which show where the density's mass is
MAX_POINT_PARAMETERS = 2**28  # parameters times points of importance sampling
MIN_POINTS = 1024  # however many parameters there are
MAX_EXACT_COLUMNS = 32  # of integrals with exact traces where the flow's are estimates


def check_both_ways(ctx: CheckContext) -> Findings:
    """Check log p of samples, from base to data against from data to base."""
    rows = ctx.first_rows(len(ctx))
    z = ctx.base_draws(ctx.exact, len(rows))
    with torch.no_grad():
        pushed = ctx.exact.push(z, rows.context)
    there = (ctx.exact.base.log_prob(z) - pushed.log_det).cpu()
    back = log_probs(ctx.exact, replace(rows, x=pushed.value), ctx.seed)
    name = "log p of samples there and back"
    yield from agreement(ctx, name, there - back, "By draws from the base.", named=False)


def check_tolerance(ctx: CheckContext) -> Findings:
    """Check log p against a solve at a hundredth of the tolerance in double precision.

    Where traces are estimated, both solves are in double precision, so that the probes are equal.
    """
    rows = in_double(ctx.rows)
    reference = log_probs(tightened(ctx.double, reference_tolerance), rows, ctx.seed)
    found = log_probs(ctx.double, rows, ctx.seed) if ctx.estimated else ctx.log_prob
    sentence = "At a hundredth of the tolerance, in double precision."
    yield from agreement(ctx, "log p against a tight solve", found.cpu() - reference, sentence)


def check_precision(ctx: CheckContext) -> Findings:
    """Check log p in single precision against double precision, with exact traces."""
    like = ctx.flow.like
    if like.dtype != torch.float32:
        yield f"The flow is in {like.dtype}: single precision is not checked."
        return
    rows = ctx.first_rows(len(ctx))
    double = log_probs(ctx.exact, rows, ctx.seed)
    single = ctx.log_prob.cpu()
    if ctx.estimated:
        context = None if rows.context is None else rows.context.to(like)
        rows = Rows(rows.x.to(like), context)
        single = log_probs(with_exact_traces(ctx.flow), rows, ctx.seed)
    sentence = "Against double precision at the same tolerance."
    yield from agreement(ctx, "log p in single precision", single - double, sentence)


def check_batch(ctx: CheckContext) -> Findings:
    """Check that the log p of a row does not depend on the other rows."""
    flow, rows = ctx.flow, ctx.rows
    before = log_probs(flow, rows, ctx.seed)
    with seeded_for(flow, ctx.seed):
        others = flow.sample(() if rows.context is not None else len(rows), rows.context)
    x = rows.x.clone()
    x[1::2] = others[1::2]
    change = log_probs(flow, replace(rows, x=x), ctx.seed)[::2] - before[::2]
    changes = [change.abs() / before[::2].abs().clamp(min=1.0)]
    if not ctx.estimated:  # whose probes would differ
        single = torch.cat([log_probs(flow, part, 0) for part in rows[:SINGLE_ROWS].split(1)])
        first = before[:SINGLE_ROWS]
        changes.append((single - first).abs() / first.abs().clamp(min=1.0))
    yield Finding.of(
        "log p beside other rows",
        largest(torch.cat(changes)),
        BATCH_LIMIT,
        "The largest change in units of max(1, |log p|) when every second row is another"
        + (", or when a row is alone." if len(changes) > 1 else "."),
    )


def check_integral(ctx: CheckContext) -> Findings:
    """Check that the density integrates to 1, at some contexts where there are any."""
    flow, dim = ctx.flow, ctx.rows.x.shape[1]
    if ctx.estimated:
        if dim > MAX_EXACT_COLUMNS:
            yield (
                "The trace is estimated, and so is the density: its integral is not checked. "
                'Take exact traces by divergence="exact" to check it.'
            )
            return
        flow = with_exact_traces(flow)
    contexts = ctx.rows.context
    chosen = [None] if contexts is None else list(contexts[:MAX_CONTEXTS].split(1))
    points = max(2, ctx.points // len(chosen))
    if dim > 2:
        size = sum(parameter.numel() for parameter in flow.parameters())
        points = min(points, max(MIN_POINTS, MAX_POINT_PARAMETERS // max(size, 1)))
    count = INTEGRAL_SAMPLES // len(chosen)
    found = [_integral(ctx, flow, context, points, count) for context in chosen]
    worst = max(found, key=lambda one: nan_as_inf(abs(one.value - 1) - WARN_ERRORS * one.stderr))
    yield _integral_finding(worst, dim, "" if contexts is None else f", the worst of {len(found)}")


def _integral(
    ctx: CheckContext, flow: Flow, context: Tensor | None, points: int, count: int
) -> Integral:
    """Return the integral of the density given a context."""

    def log_density(x: Array) -> Array:
        given = None if context is None else context.expand(len(x), -1)
        rows = Rows(torch.from_numpy(x).to(flow.like), given)
        return np.asarray(log_probs_or_nan(flow, rows, ctx.seed).numpy())

    with seeded_for(flow, ctx.seed):
        shape = count if context is None else (count, 1)
        samples = flow.sample(shape, context).reshape(count, -1).double().cpu().numpy()
    if context is None:  # rows of other contexts do not show where this density's mass is
        samples = np.concatenate([samples, ctx.rows.x.double().cpu().numpy()])
    return integrate(log_density, ctx.axes, samples, points, ctx.seed)


def _integral_finding(found: Integral, dim: int, which: str) -> Finding:
    """Return the finding of an integral, a warning where it is not decisive."""
    limit = Limit(
        max(INTEGRAL_LIMIT.good, WARN_ERRORS * found.stderr),
        max(INTEGRAL_LIMIT.bad, FAIL_ERRORS * found.stderr),
    )
    how = f"by {found.points} points on a grid"
    if dim > 2:
        how = f"by {found.points} draws, as good as {found.effective:.0f} of the density"
    sentence = f"Its distance from 1. It is {found.value:.4f} ± {found.stderr:.1g}{which}, {how}."
    finding = Finding.of("integral of the density", abs(found.value - 1), limit, sentence)
    precise = found.stderr <= MAX_RELATIVE_STDERR * found.value
    if (precise and found.effective >= MIN_EFFECTIVE_POINTS) or not np.isfinite(found.value):
        return finding
    too_few = "These are too few to tell: take more points."
    return replace(finding, verdict="warn", sentence=f"{sentence} {too_few}")
