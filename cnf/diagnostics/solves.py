"""Checks of solves, by their failures, costs and inverses, and of samples, by the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from math import inf

import torch
from torch import Tensor

from cnf.diagnostics.context import (
    CheckContext,
    CheckedRows,
    in_double,
    quantile,
    rows_in_solve,
    seeded_for,
    shortest_difference,
)
from cnf.diagnostics.report import MAX_NAMED_ROWS, WARN_ERRORS, Finding, Findings, Limit
from cnf.diagnostics.two_sample import two_sample_test
from cnf.flow.flow import Flow
from cnf.flow.mixture import FlowMixture
from cnf.ode import Status
from cnf.training.data import Rows

# A share of rows: a flow must have a log p for every row of its data.
ROWS_LIMIT = Limit(0.0, 0.0)
# A share of the step limit: at a quarter the field is stiff, and rows not far away will fail.
STEPS_LIMIT = Limit(0.25, inf)
# A share of all steps: above a half the controller works against the field, as with noise.
REJECTED_LIMIT = Limit(0.5, inf)
# Units of a column's spread: a thousandth is not seen in any plot; a hundredth is.
ROUND_TRIP_LIMIT = Limit(1e-3, 1e-2)
# A share of entries: whole numbers are restored exactly from numbers with noise.
NOISE_LIMIT = Limit(0.0, 0.0)
# A share of held-out rows classified correctly: up to 0.6 the fit is good; a poor one may still be
# honest. Above 0.9 samples have hardly anything in common with the data.
TWO_SAMPLE_LIMIT = Limit(0.6, 0.9)
TWO_SAMPLE_FACTOR = 5  # times the rows of other checks
MIN_TWO_SAMPLE_ROWS = 50  # rows of data: the classifier's leaves hold 20 each


def check_rows(ctx: CheckedRows) -> Findings:
    """Check that every row has a log p."""
    yield rows_finding(ctx)


def rows_finding(ctx: CheckedRows, reasons: Sequence[str] = ()) -> Finding:
    """Return the finding of rows without a log p, with further sentences on them."""
    status = ctx.solves["status"]
    unsolved = (status != Status.FINISHED).to_numpy()
    without = torch.tensor(unsolved) | ~ctx.log_prob.isfinite().cpu()
    sentence = f"All {len(ctx)} rows have one."
    if unsolved.any():
        reason = status[unsolved].iloc[0].value
        sentence = f"{unsolved.sum()} rows could not be solved. {reason}"
    elif without.any():
        sentence = f"{without.sum()} rows have density 0, perhaps beyond the bounds of a column."
    share, sentence = float(without.double().mean()), " ".join([sentence, *reasons])
    return Finding.of("rows without a log p", share, ROWS_LIMIT, sentence, ctx.places(without))


def check_effort(ctx: CheckContext) -> Findings:
    """Check the steps of solves, and name the stiffest rows."""
    if ctx.steps:
        yield (
            f"Explicit steps take {ctx.solves['evaluations'].median():.0f} evaluations a row and "
            "their exact determinants, which nothing adapts."
        )
    if not ctx.layers:
        if not ctx.steps:
            yield "There is no CNF layer: neither solves nor traces are checked."
        return
    joint = any(layer.settings.step == "joint" for layer in ctx.layers)
    evaluations, rejected = ctx.solves["evaluations"], ctx.solves["rejected"]
    steps = ctx.solves["accepted"] + rejected
    sentence = f"A share of the step limit: {steps.max()} steps, one for all rows."
    if not joint:
        sentence = (
            f"A share of the step limit. A row takes {evaluations.median():.0f} evaluations "
            f"(median) to {evaluations.max()}; the stiffest first:"
        )
    yield Finding.of(
        "steps of the stiffest row",
        float(steps.max() / sum(layer.settings.max_steps for layer in ctx.layers)),
        STEPS_LIMIT,
        sentence,
        [] if joint else evaluations.nlargest(MAX_NAMED_ROWS).index.tolist(),
    )
    yield Finding.of(
        "rejected steps",
        float(rejected.sum() / max(steps.sum(), 1)),
        REJECTED_LIMIT,
        f"A share of all steps; {rejected.mean():.1f} a row, at most {rejected.max()}.",
        [] if joint else rejected[rejected > 0].nlargest(MAX_NAMED_ROWS).index.tolist(),
    )


def check_round_trip(ctx: CheckContext) -> Findings:
    """Check that pull and push are inverse to each other, from the data and from the base."""
    flow, double, rows = ctx.flow, ctx.double, ctx.rows
    context, z = in_double(rows).context, ctx.base_draws(double, len(rows))
    with torch.no_grad():
        back = flow.transport(flow.pull(rows.x, rows.context).value, rows.context)
        returned = double.pull(double.transport(z, context), context).value
    errors = (shortest_difference(back - rows.x, ctx.periods) / ctx.spread).abs().amax(1)
    yield Finding.of(
        "round trip x → z → x",
        quantile(errors, 0.99),
        ROUND_TRIP_LIMIT,
        "In units of a column's spread, 99 % of the rows.",
        ctx.largest(errors),
    )
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


def check_noise(ctx: CheckContext) -> Findings:
    """Check that whole numbers, categories and constants are restored from numbers with noise."""
    layers = list(ctx.full_flow.layers)[len(ctx.flow.layers) :]
    if not layers:
        return
    yield (
        "Columns of whole numbers or categories have noise, drawn once by the seed, and constants "
        "are left out: the other checks are of the density beneath. The density of the noise "
        "is not checked."
    )
    x = ctx.rows.x
    with torch.no_grad():
        for layer in layers:
            x = layer.push(x).value
    different = x != ctx.table.x
    yield Finding.of(
        "whole numbers, categories, constants",
        float(different.double().mean()),
        NOISE_LIMIT,
        "The share of the entries that are not restored.",
        ctx.places(different.any(1)),
    )


def check_two_samples(ctx: CheckContext, mixture: FlowMixture | None = None) -> Findings:
    """Check whether a classifier can tell samples, of the flow or of its mixture, from data."""
    flow = ctx.full_flow
    model = flow if mixture is None else mixture

    def draw(others: Rows) -> Tensor:
        shape = () if others.context is not None else len(others)
        with seeded_for(flow, ctx.seed):
            return model.sample(shape, others.context, max_batch=rows_in_solve(flow))

    yield from told_from_data(ctx, draw, lambda x: _in_one_turn(flow, x, ctx.seed))


def told_from_data(
    ctx: CheckedRows,
    draw: Callable[[Rows], Tensor],
    in_one_turn: Callable[[Tensor], Tensor] = lambda x: x,
) -> Findings:
    """Yield the finding of a classifier that tells draws, given rows' contexts, from data."""
    data = ctx.data
    # Equal contexts of samples and data would reveal a row's label by that of its partner: samples
    # have the contexts of other rows.
    halves = 1 if data.context is None else 2
    count = min(len(data) // halves, TWO_SAMPLE_FACTOR * len(ctx))
    if count < MIN_TWO_SAMPLE_ROWS:
        least = MIN_TWO_SAMPLE_ROWS * halves
        yield f"There are too few rows for the two-sample test: it takes {least}."
        return
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(ctx.seed))
    real, other = (data[part.to(data.x.device)] for part in (order[:count], order[-count:]))
    real, x = replace(real, x=in_one_turn(real.x)), draw(other)
    joined = [
        torch.cat([*([] if each.context is None else [each.context]), each.x], 1).double().cpu()
        for each in (real, replace(other, x=x))
    ]
    test = two_sample_test(joined[0].numpy(), joined[1].numpy(), ctx.seed)
    seen = "samples" if data.context is None else "samples with their contexts"
    by_chance = 0.5 + WARN_ERRORS * test.stderr
    yield Finding.of(
        "samples against data",
        test.accuracy,
        Limit(max(TWO_SAMPLE_LIMIT.good, by_chance), max(TWO_SAMPLE_LIMIT.bad, by_chance)),
        f"The share of rows that a classifier tells right, {seen} from data: ± {test.stderr:.2g} "
        f"of {test.rows} rows. 0.5 is chance. A poor model warns here, and can be honest.",
    )


def _in_one_turn(flow: Flow, x: Tensor, seed: int) -> Tensor:
    """Return rows with angles in the turn that the flow draws them from."""
    if not flow.circular:
        return x
    columns = list(takewhile(lambda layer: layer.ranges is not None, reversed(flow.layers)))
    with torch.no_grad(), seeded_for(flow, seed):
        for layer in columns:
            x = layer.pull(x).value
        for layer in reversed(columns):
            x = layer.push(x).value
    return x
