"""Checks of solves: their failures, their cost, and whether they are inverse to each other."""

from __future__ import annotations

from math import inf

import numpy as np
import torch

from cnf.diagnostics.context import CheckContext, in_double
from cnf.diagnostics.report import MAX_NAMED_ROWS, Finding, Findings, Limit
from cnf.diagnostics.statistics import largest_rows, quantile, shortest_difference
from cnf.ode import Status

# A share of rows: a flow must have a log p for every row of its data.
ROWS_LIMIT = Limit(0.0, 0.0)
# A share of the step limit: at a quarter the field is stiff, and rows not far away will fail.
STEPS_LIMIT = Limit(0.25, inf)
# A share of all steps: above a half the controller works against the field, as with noise.
REJECTED_LIMIT = Limit(0.5, inf)
# Units of a column's spread: a thousandth is not seen in any plot; a hundredth is.
ROUND_TRIP_LIMIT = Limit(1e-3, 1e-2)


def check_rows(ctx: CheckContext) -> Findings:
    """Check that every row has a log p."""
    unsolved = ctx.status != Status.FINISHED
    infinite = ~ctx.log_prob.isfinite().cpu().numpy()
    places = np.flatnonzero(unsolved | infinite)
    sentence = f"All {len(ctx)} rows have one."
    if unsolved.any():
        sentence = f"{unsolved.sum()} rows could not be solved. {ctx.status[unsolved][0].value}"
    elif infinite.any():
        sentence = f"{infinite.sum()} rows have density 0, perhaps beyond the bounds of a column."
    rows = ctx.index[places].tolist()[:MAX_NAMED_ROWS]
    yield Finding.of("rows without a log p", len(places) / len(ctx), ROWS_LIMIT, sentence, rows)


def check_effort(ctx: CheckContext) -> Findings:
    """Check the steps of solves, and name the stiffest rows."""
    if not ctx.layers:
        yield "There is no CNF layer: neither solves nor traces are checked."
        return
    joint = any(layer.settings.step == "joint" for layer in ctx.layers)
    yield _stiffest(ctx, joint)
    steps = ctx.accepted + ctx.rejected
    order = np.argsort(-ctx.rejected, kind="stable")
    order = order[ctx.rejected[order] > 0]
    yield Finding.of(
        "rejected steps",
        float(ctx.rejected.sum() / max(steps.sum(), 1)),
        REJECTED_LIMIT,
        f"A share of all steps; {ctx.rejected.mean():.1f} a row, at most {ctx.rejected.max()}.",
        [] if joint else ctx.index[order].tolist()[:MAX_NAMED_ROWS],
    )


def _stiffest(ctx: CheckContext, joint: bool) -> Finding:
    """Return the finding of the row with the most steps."""
    steps = ctx.accepted + ctx.rejected
    most = sum(layer.settings.max_steps for layer in ctx.layers)
    sentence = f"A share of the step limit: {steps.max()} steps, one for all rows."
    if not joint:
        sentence = (
            f"A share of the step limit. A row takes {np.median(ctx.evaluations):.0f} evaluations "
            f"(median) to {ctx.evaluations.max()}; the stiffest first:"
        )
    order = np.argsort(-ctx.evaluations, kind="stable")
    rows = [] if joint else ctx.index[order].tolist()[:MAX_NAMED_ROWS]
    share = float(steps.max() / most)
    return Finding.of("steps of the stiffest row", share, STEPS_LIMIT, sentence, rows)


def check_round_trip(ctx: CheckContext) -> Findings:
    """Check that pull and push are inverse to each other, from the data and from the base."""
    flow, double, rows = ctx.flow, ctx.double, ctx.rows
    with torch.no_grad():
        back = flow.transport(flow.pull(rows.x, rows.context).value, rows.context)
    errors = (shortest_difference(back - rows.x, ctx.periods) / ctx.spread).abs().amax(1)
    yield Finding.of(
        "round trip x → z → x",
        quantile(errors, 0.99),
        ROUND_TRIP_LIMIT,
        "In units of a column's spread, 99 % of the rows.",
        largest_rows(ctx, errors),
    )
    context, z = in_double(rows).context, ctx.base_draws(double, len(rows))
    with torch.no_grad():
        returned = double.pull(double.transport(z, context), context).value
    periods = torch.full((z.shape[1],), inf, dtype=torch.float64)
    periods[list(flow.circular)] = 2 * torch.pi
    spread = z.cpu().std(0, correction=0).clamp(min=1e-12)
    unit = torch.where(periods.isfinite(), periods, spread)
    errors = (shortest_difference(returned - z, periods) / unit).abs().amax(1)
    yield Finding.of(
        "round trip z → x → z",
        quantile(errors, 0.99),
        ROUND_TRIP_LIMIT,
        "In units of a column's spread, 99 % of draws from the base, in double precision.",
    )
