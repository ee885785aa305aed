"""Checks of derivatives: traces, log-determinants and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from cnf.diagnostics.context import (
    CheckContext,
    log_probs,
    rows_in_solve,
    seeded_for,
    with_settings,
)
from cnf.diagnostics.report import Finding, Findings, Limit
from cnf.diagnostics.statistics import (
    MEDIAN_LIMIT,
    largest,
    nan_as_inf,
    shortest_difference,
)
from cnf.fields.divergence import Hutchinson
from cnf.flow.flow import Flow
from cnf.training.data import Rows

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
        max(float(pooled), float(each), key=nan_as_inf),
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
        parts = [
            flow.transport(part.x, part.context)
            for part in Rows(points, context).split(rows_in_solve(flow))
        ]
    pushed = torch.cat(parts).cpu().unflatten(0, (len(rows), 2, dim))
    differences = shortest_difference(pushed[:, 0] - pushed[:, 1], ctx.periods)
    jacobians = differences / (2 * step.cpu().unsqueeze(1))
    yield Finding.of(
        "log-determinant",
        largest(log_det.cpu() - torch.linalg.slogdet(jacobians).logabsdet),
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
    gradient = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    size = torch.stack([part.square().sum() for part in gradient]).sum().sqrt()
    errors = []
    for number in range(DIRECTIONS):
        with seeded_for(flow, ctx.seed + number):
            direction = [torch.randn_like(parameter) for parameter in parameters]
        slope = _slope(flow, rows, parameters, direction)
        products = [(a * b).sum() for a, b in zip(gradient, direction, strict=True)]
        errors.append(slope - torch.stack(products).sum())
    # The root mean square of slopes in random directions is the gradient's norm.
    share = torch.stack(errors).square().mean().sqrt() / size.clamp(min=1e-2)
    modes = sorted({layer.settings.gradient for layer in ctx.layers})
    yield Finding.of(
        "gradient",
        float(share),
        GRADIENT_LIMIT,
        f"Its error as a share of it, against differences in {DIRECTIONS} random directions"
        + (f", by {', '.join(modes)}." if modes else "."),
    )


@torch.no_grad()
def _slope(
    flow: Flow, rows: Rows, parameters: list[torch.nn.Parameter], direction: list[Tensor]
) -> Tensor:
    """Return the slope of the mean log p in a direction of the parameters, and restore these."""
    starts = [parameter.clone() for parameter in parameters]
    means = []
    for sign in (1, -1):
        for parameter, start, move in zip(parameters, starts, direction, strict=True):
            parameter.copy_(start + sign * DIFFERENCE_STEP * move)
        means.append(flow.log_prob(rows.x, rows.context).mean())
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.copy_(start)
    return (means[0] - means[1]) / (2 * DIFFERENCE_STEP)
