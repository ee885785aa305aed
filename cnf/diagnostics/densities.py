"""Checks of log p by other solves and by its integral, and of traces and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cnf.diagnostics.context import (
    SEED_OFFSET,
    CheckContext,
    CheckedRows,
    in_double,
    log_probs,
    log_probs_or_nan,
    quantile,
    seeded_for,
    shortest_difference,
    tightened,
    with_exact_traces,
    with_settings,
)
from cnf.diagnostics.integral import Integral, integrate
from cnf.diagnostics.report import FAIL_ERRORS, WARN_ERRORS, Finding, Findings, Limit
from cnf.fields.divergence import Hutchinson
from cnf.flow.flow import Flow
from cnf.flow.folds import MAX_FOLD_MASS, fold_mass
from cnf.flow.proposals import adaptive
from cnf.training.data import Rows

Array = NDArray[np.float64]

# Nats, of half of the rows: means over rows are reported to three digits.
MEDIAN_LIMIT = Limit(1e-3, 1e-2)
# Nats, of 99 % of the rows: ten times as much, for rows in the tails.
TAIL_LIMIT = Limit(1e-2, 1e-1)

REFERENCE_FACTOR = 0.01  # on the tolerance, of the solve that log p is compared with
MIN_TOLERANCE = 1e-11  # in double precision, however tight the flow's own

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

# A share of the density's mass, in which it counts space twice or more.
FOLD_LIMIT = Limit(MAX_FOLD_MASS, MAX_FOLD_MASS)

# Standard errors: by chance beyond 4 in one run of 16,000, beyond 6 never.
TRACES_LIMIT = Limit(4.0, 6.0)
CHECK_PROBES = 64  # estimates of a trace
MAX_TRACE_ROWS = 50

DIFFERENCE_STEP = 1e-5  # of central differences, relative to the size of the variable

# Nats, of each row: by differences, whose own error is below a tenth of it.
LOG_DET_LIMIT = Limit(1e-3, 1e-2)
LOG_DET_POINTS = 256  # of central differences
SPREAD_DRAWS = 5000  # of the base, to measure its spread

# A share of the gradient: optimizers tolerate far more, but an error in it is mostly about 1.
GRADIENT_LIMIT = Limit(1e-3, 1e-2)
MAX_DERIVATIVE_ROWS = 8
DIRECTIONS = 3


def agreement(
    ctx: CheckedRows, name: str, difference: Tensor, sentence: str, named: bool = True
) -> Findings:
    """Yield the findings of differences of log p in nats: their median and 99 % quantile."""
    sizes, sentence = difference.abs(), f"In nats. {sentence}"
    rows = ctx.largest(sizes) if named else []
    yield Finding.of(f"{name}, median", quantile(sizes, 0.5), MEDIAN_LIMIT, sentence)
    yield Finding.of(f"{name}, 99 %", quantile(sizes, 0.99), TAIL_LIMIT, sentence, rows)


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
    if ctx.steps and not ctx.layers:
        yield (
            "Explicit steps have no tolerance to tighten: log p is that of the map that they make, "
            "with no error but rounding's."
        )
        return
    rows = in_double(ctx.rows)
    tight = tightened(ctx.double, lambda own: max(REFERENCE_FACTOR * own, MIN_TOLERANCE))
    reference = log_probs(tight, rows, ctx.seed)
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
    with seeded_for(flow, ctx.seed):
        others = flow.sample(() if rows.context is not None else len(rows), rows.context)
    alone = not ctx.estimated  # whose probes would differ
    yield beside_others(lambda part: log_probs(flow, part, ctx.seed), rows, others, alone)


def beside_others(
    log_prob: Callable[[Rows], Tensor], rows: Rows, others: Tensor, alone: bool = True
) -> Finding:
    """Return the finding of changes of log p where other rows, or none, are in the batch."""
    before, x = log_prob(rows), rows.x.clone()
    x[1::2] = others[1::2]
    change = log_prob(replace(rows, x=x))[::2] - before[::2]
    changes = [change.abs() / before[::2].abs().clamp(min=1.0)]
    if alone:
        single = torch.cat([log_prob(part) for part in rows[:SINGLE_ROWS].split(1)])
        first = before[:SINGLE_ROWS]
        changes.append((single - first).abs() / first.abs().clamp(min=1.0))
    return Finding.of(
        "log p beside other rows",
        float(torch.cat(changes).max()),
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
    errors = [abs(one.value - 1) - WARN_ERRORS * one.stderr for one in found]
    worst = found[np.nan_to_num(errors, nan=np.inf, posinf=np.inf).argmax()]
    which = "" if contexts is None else f", the worst of {len(found)}"
    how = f"{which}, by {worst.points} points on a grid"
    if dim > 2:
        how = f"{which}, {by_draws(worst)}"
    yield integral_finding("integral of the density", worst, how)


def _integral(
    ctx: CheckContext, flow: Flow, context: Tensor | None, points: int, count: int
) -> Integral:

    def log_density(x: Array) -> Array:
        given = None if context is None else context.expand(len(x), -1)
        rows = Rows(torch.from_numpy(x).to(flow.like), given)
        return np.asarray(log_probs_or_nan(flow, rows, ctx.seed).numpy())

    with seeded_for(flow, ctx.seed):
        shape = count if context is None else (count, 1)
        drawn = adaptive(flow) if ctx.steps else flow  # where steps fold, some have no inverse
        samples = drawn.sample(shape, context).reshape(count, -1).double().cpu().numpy()
    if context is None:  # rows of other contexts do not show where this density's mass is
        samples = np.concatenate([samples, ctx.rows.x.double().cpu().numpy()])
    return integrate(log_density, ctx.axes, samples, points, ctx.seed)


def by_draws(found: Integral) -> str:
    """Return words for an integral by draws."""
    return f"by {found.points} draws, as good as {found.effective:.0f} of the density"


def integral_finding(name: str, found: Integral, how: str) -> Finding:
    """Return the finding of an integral, a warning where it is not decisive."""
    limit = Limit(
        max(INTEGRAL_LIMIT.good, WARN_ERRORS * found.stderr),
        max(INTEGRAL_LIMIT.bad, FAIL_ERRORS * found.stderr),
    )
    sentence = f"Its distance from 1. It is {found.value:.4f} ± {found.stderr:.1g}{how}."
    finding = Finding.of(name, abs(found.value - 1), limit, sentence)
    precise = found.stderr <= MAX_RELATIVE_STDERR * found.value
    if (precise and found.effective >= MIN_EFFECTIVE_POINTS) or not np.isfinite(found.value):
        return finding
    too_few = "These are too few to tell: take more points."
    return replace(finding, verdict="warn", sentence=f"{sentence} {too_few}")


def check_folds(ctx: CheckContext) -> Findings:
    """Check the mass of the folds of explicit steps, where a density counts space twice."""
    if not ctx.steps:
        return
    found = fold_mass(ctx.flow, context=ctx.rows.context, seed=SEED_OFFSET + ctx.seed)
    sentence = (
        f"The mass where the determinant of a step is negative: ± {found.stderr:.1g}, by "
        f"{found.draws} draws, as good as {found.effective:.0f} of the "
        f"density, by which it integrates to {found.integral:.4f} ± {found.integral_stderr:.1g}."
    )
    finding = Finding.of("mass of folds", found.mass, FOLD_LIMIT, sentence)
    if not found.known and finding.verdict == "pass":
        few = "These are too few to tell."
        finding = replace(finding, verdict="warn", sentence=f"{sentence} {few}")
    yield finding


def check_traces(ctx: CheckContext) -> Findings:
    """Check log p with exact traces against log p with estimates of them."""
    if not ctx.layers:
        return
    rows = ctx.first_rows(MAX_TRACE_ROWS)
    exact = log_probs(ctx.exact, rows, ctx.seed)
    flow = ctx.double
    if not ctx.estimated:
        flow = with_settings(flow, lambda layer: {"divergence": Hutchinson()})
    generator = torch.Generator().manual_seed(ctx.seed)
    scores = flow.score(rows.x, rows.context, probes=CHECK_PROBES, generator=generator)
    # Where there is hardly any noise, as in one column, the solver's errors remain.
    floor = torch.full_like(exact, MEDIAN_LIMIT.good)
    difference = scores.log_prob.cpu() - exact
    errors = torch.hypot(scores.stderr.cpu(), floor)
    each = (difference / errors).square().mean().sqrt()
    pooled = difference.sum().abs() / errors.square().sum().sqrt()
    yield Finding.of(
        "exact and estimated traces",
        float(torch.maximum(pooled, each)),
        TRACES_LIMIT,
        f"Standard errors of {CHECK_PROBES} estimates between log p with exact traces and with "
        f"estimates; {len(rows)} rows, the standard error of a row is "
        f"{scores.stderr.mean():.2g} nats.",
    )


def check_log_determinant(ctx: CheckContext) -> Findings:
    """Check log-determinants against those of Jacobians by central differences."""
    flow, dim = ctx.precise, ctx.rows.x.shape[1]
    rows = ctx.first_rows(max(1, min(MAX_DERIVATIVE_ROWS, LOG_DET_POINTS // dim)))
    z = ctx.base_draws(flow, len(rows))
    step = DIFFERENCE_STEP * ctx.base_draws(flow, SPREAD_DRAWS).std(0)
    moves = torch.cat([torch.diag(step), -torch.diag(step)])
    points = (z.unsqueeze(1) + moves).flatten(0, 1)
    context = None if rows.context is None else rows.context.repeat_interleave(2 * dim, 0)
    with torch.no_grad():
        log_det = flow.push(z, rows.context).log_det
        pushed = flow.transport(points, context).cpu().unflatten(0, (len(rows), 2, dim))
    differences = shortest_difference(pushed[:, 0] - pushed[:, 1], ctx.periods)
    jacobians = differences / (2 * step.cpu().unsqueeze(1))
    yield Finding.of(
        "log-determinant",
        float((log_det.cpu() - torch.linalg.slogdet(jacobians).logabsdet).abs().max()),
        LOG_DET_LIMIT,
        f"The largest error in nats of {len(rows)} samples, against the determinant of a Jacobian "
        "by differences.",
    )


def check_gradient(ctx: CheckContext) -> Findings:
    """Check the gradient of the mean log p against central differences in random directions."""
    flow = ctx.precise
    parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    if not parameters:
        yield "No parameter wants a gradient: there is none to check."
        return
    rows = ctx.first_rows(MAX_DERIVATIVE_ROWS)
    mean = flow.log_prob(rows.x, rows.context).mean()
    grads = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    gradient = torch.cat([grad.flatten() for grad in grads])
    start, errors = parameters_to_vector(parameters).detach(), []
    for number in range(DIRECTIONS):
        with seeded_for(flow, ctx.seed + number):
            direction = torch.randn_like(start)
        means = []
        for move in (DIFFERENCE_STEP * direction, -DIFFERENCE_STEP * direction):
            vector_to_parameters(start + move, parameters)
            with torch.no_grad():
                means.append(flow.log_prob(rows.x, rows.context).mean())
        slope = (means[0] - means[1]) / (2 * DIFFERENCE_STEP)
        errors.append(slope - gradient @ direction)
    vector_to_parameters(start, parameters)
    # The root mean square of slopes in random directions is the gradient's norm.
    share = torch.stack(errors).square().mean().sqrt() / gradient.norm().clamp(min=1e-2)
    modes = sorted({layer.settings.gradient for layer in ctx.layers})
    yield Finding.of(
        "gradient",
        float(share),
        GRADIENT_LIMIT,
        f"Its error as a share of it, against differences in {DIRECTIONS} random directions"
        + (f", by {', '.join(modes)}." if modes else "."),
    )
