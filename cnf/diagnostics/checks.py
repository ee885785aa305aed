"""The checks that a flow is put through: it is asked to prove itself on data.

Each check is a function of a `CheckContext` that yields what it finds, or a sentence on why it was not
made. A new one is a new function, entered in `CHECKS`, and its limits in `LIMITS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, isnan, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cnf.diagnostics.context import (
    CheckContext,
    chunk_of,
    doubled,
    exactly,
    hundredth,
    log_probs,
    log_probs_known,
    resolved,
    seeded,
    subject_of,
    tightened,
)
from cnf.diagnostics.integral import Integral, integrate
from cnf.diagnostics.report import SHOWN, Finding, Limit, Report
from cnf.diagnostics.two_sample import two_sample_test
from cnf.fields.divergence import Hutchinson
from cnf.flow import Flow
from cnf.layers import Circular, Concatenate, Layer
from cnf.ode import SolveError, Status
from cnf.training.data import Rows

Array = NDArray[np.float64]
Found = Iterator[Finding | str]
Check = Callable[[CheckContext], Found]

LIMITS: dict[str, Limit] = {
    # A share of rows: a flow has a log p for every row of its data, or it has none to speak of.
    "rows": Limit(0.0, 0.0),
    # A share of the step limit: at a quarter the field is stiff, and rows not far away will fail.
    "steps": Limit(0.25, inf),
    # A share of all steps: above a half the controller works against the field, as with noise.
    "rejected": Limit(0.5, inf),
    # Units of a column's spread: a thousandth is not seen in any plot; a hundredth is.
    "round trip": Limit(1e-3, 1e-2),
    # A share of entries: what is cut down to whole numbers comes back to the digit.
    "noise": Limit(0.0, 0.0),
    # Nats, of half of the rows: means over rows are reported to three digits.
    "log p, median": Limit(1e-3, 1e-2),
    # Nats, of 99 % of them: ten times as much, for rows far out.
    "log p, 99 %": Limit(1e-2, 1e-1),
    # Nats, of each row: by differences, whose own error is below a tenth of it.
    "log-determinant": Limit(1e-3, 1e-2),
    # Standard errors: by chance beyond 4 in one run of 16,000, beyond 6 never.
    "traces": Limit(4.0, 6.0),
    # Of max(1, |log p|): rounding in single precision, a hundred times over. Up to a thousandth it
    # is within what the tolerance lets pass; joint steps are beyond.
    "batch": Limit(1e-5, 1e-3),
    # Distance from 1, the total mass: or as many standard errors as stand in `ERRORS`.
    "integral": Limit(1e-2, 3e-2),
    # A share of the gradient: optimizers do well with far worse, but an error in it is mostly 1.
    "gradient": Limit(1e-3, 1e-2),
    # A share of held-out rows told right: up to 0.6 the fit is good; a poor one is honest still.
    # Above 0.9 samples have hardly anything of the data.
    "two-sample": Limit(0.6, 0.9),
}
"""Up to where each number passes, and from where on it fails."""

ROWS = 200  # of the data that are taken
POINTS = 2**14  # at which the density is evaluated for its integral
ERRORS = Limit(3.0, 5.0)  # standard errors, where these are more than a limit
TOLD = 0.15  # the largest standard error, as a share of an integral, that tells anything
EFFECTIVE = 50.0  # and the fewest effective points
CONTEXTS = 3  # at which integrals are taken
SAMPLES = 5000  # by which the density is found where it is
LARGE = 2**28  # parameters times points of importance sampling, above which there are fewer points
LEAST_POINTS = 1024
LARGEST_EXACT = 32  # columns up to which an integral takes exact traces where the flow has none
PROBES = 64  # estimates of a trace
TRACED = 50  # rows whose traces are compared
ALONE = 3  # rows that are scored by themselves
DIFFERENCE = 1e-5  # step of central differences, in units of what is moved
DIFFERENCES = 256  # points of them for log-determinants
GRADIENT_ROWS = 8
DIRECTIONS = 3
TESTED = 5  # times the rows, for the two-sample test
LEAST_TESTED = 50  # rows of data: the classifier's leaves hold 20 each


def check(
    flow: Flow,
    data: Tensor,
    context: Tensor | None = None,
    *,
    rows: int = ROWS,
    points: int = POINTS,
    seed: int = 0,
) -> Report:
    """Put a flow through all checks, on rows of data that it was not trained on.

    Round trips; log p against a solve at a hundredth of the tolerance in double precision, from
    base to data and back, in both precisions and whatever the rows beside; log-determinants and
    gradients against differences; traces against estimates; the integral of the density; samples
    against data by a classifier; and what the solves take. The limits stand in `LIMITS`.

    Of columns of whole numbers or categories the checks are on the density that stands beneath,
    with noise drawn once by the seed.

    Args:
        flow: The flow, as it is used: with its solver settings, on its device, in its dtype.
        data: Shape (n, dim).
        context: Shape (n, context_dim).
        rows: How many rows of the data are taken at most; the two-sample test takes five times as
            many.
        points: At how many points the density is evaluated for its integral, at most; for large
            networks in more than two columns fewer are taken.
        seed: Of which rows are taken, and of all that is drawn.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or a number is not above 0.

    Example:
        >>> from cnf.flow import ffjord
        >>> report = check(ffjord(1, hidden=(8,)), torch.randn(200, 1), rows=20, points=200)
        >>> report.verdict, report.findings[0].name
        ('pass', 'rows without a log p')
    """
    subject = subject_of(flow, data, context, rows, seed, points)
    found: list[Finding | str] = list(_rows(subject))
    taken = len(subject)
    subject = subject.scored()
    if len(subject):
        for name, one in tqdm(CHECKS.items(), desc="checking", disable=None, leave=False):
            found += _made(name, one, subject)
    else:
        found.append("No row has a log p: nothing else was checked.")
    findings = tuple(each for each in found if isinstance(each, Finding))
    return Report(findings, tuple(each for each in found if isinstance(each, str)), taken)


def _made(name: str, one: Check, subject: CheckContext) -> list[Finding | str]:
    """What a check finds; that it fails where a solve does."""
    try:
        return list(one(subject))
    except (SolveError, ValueError) as error:  # or a number that is none, which is refused
        return [Finding(name, "fail", nan, nan, f"It could not be carried out: {error}")]


def _rows(subject: CheckContext) -> Found:
    """Whether every row has a log p."""
    lost = subject.status != Status.FINISHED
    out = ~subject.log_prob.isfinite().cpu().numpy()
    places = np.flatnonzero(lost | out)
    sentence = f"All {len(subject)} rows have one."
    if lost.any():
        sentence = f"{lost.sum()} rows could not be solved. {subject.status[lost][0].value}"
    elif out.any():
        sentence = f"{out.sum()} rows lie where the density is 0, out of a column's bounds perhaps."
    share = len(places) / len(subject)
    worst = subject.index[places].tolist()[:SHOWN]
    yield Finding.of("rows without a log p", share, LIMITS["rows"], sentence, worst)


def _effort(subject: CheckContext) -> Found:
    """What the solves take, and which rows are the stiffest."""
    if not subject.layers:
        yield "There is no CNF layer: no solve is looked at, and no trace."
        return
    steps = subject.accepted + subject.rejected
    most = sum(layer.settings.max_steps for layer in subject.layers)
    joint = any(layer.settings.step == "joint" for layer in subject.layers)
    order = np.argsort(-subject.evaluations, kind="stable")
    worst = [] if joint else subject.index[order].tolist()[:SHOWN]
    yield Finding.of(
        "steps of the stiffest row",
        float(steps.max() / most),
        LIMITS["steps"],
        f"A share of the step limit. A row takes {np.median(subject.evaluations):.0f} evaluations "
        f"(median) to {subject.evaluations.max()}; the stiffest first:"
        if worst
        else f"A share of the step limit: {steps.max()} steps, one for all rows.",
        worst,
    )
    order = np.argsort(-subject.rejected, kind="stable")
    order = order[subject.rejected[order] > 0]
    yield Finding.of(
        "rejected steps",
        float(subject.rejected.sum() / max(steps.sum(), 1)),
        LIMITS["rejected"],
        f"A share of all; {subject.rejected.mean():.1f} a row, at most {subject.rejected.max()}.",
        [] if joint else subject.index[order].tolist()[:SHOWN],
    )


def _round_trip(subject: CheckContext) -> Found:
    """There and back from the data, and from the base."""
    flow, double, own = subject.flow, subject.double, subject.rows
    with torch.no_grad():
        back = flow.transport(flow.pull(own.x, own.context).value, own.context)
    errors = _around(back - own.x, subject.turns) / subject.spread
    yield _of_rows(
        subject, "round trip x → z → x", errors.abs().amax(1), "round trip", "a column's spread"
    )
    context, z = doubled(own).context, subject.base_draws(double, len(own))
    with torch.no_grad():
        returned = double.pull(double.transport(z, context), context).value
    turns = torch.full((z.shape[1],), inf, dtype=torch.float64)
    turns[list(flow.circular)] = 2 * torch.pi
    spread = z.cpu().std(0, correction=0).clamp(min=1e-12)
    errors = _around(returned - z, turns) / torch.where(turns.isfinite(), turns, spread)
    yield Finding.of(
        "round trip z → x → z",
        _quantile(errors.abs().amax(1), 0.99),
        LIMITS["round trip"],
        "In units of a column's spread, 99 % of draws from the base, in double precision.",
    )


def _noise(subject: CheckContext) -> Found:
    """Whether whole numbers, categories and constants come back from what was drawn for them."""
    layers = list(subject.whole.layers)[len(subject.flow.layers) :]
    if not layers:
        return
    yield (
        "Columns of whole numbers or categories have noise, drawn once by the seed, and constants "
        "are left out: the other checks are of the density beneath. That of the noise itself is "
        "taken on trust."
    )
    x = subject.rows.x
    with torch.no_grad():
        for layer in layers:
            x = layer.push(x).value
    apart = x != subject.table.x
    yield Finding.of(
        "whole numbers, categories, constants",
        float(apart.double().mean()),
        LIMITS["noise"],
        "The share of the entries that do not come back as they were.",
        subject.index[apart.any(1).cpu().numpy()].tolist()[:SHOWN],
    )


def _both_ways(subject: CheckContext) -> Found:
    """Log p of samples on the way to the data, against log p of the same points on the way back."""
    rows = subject.few(len(subject))
    z = subject.base_draws(subject.exact, len(rows))
    with torch.no_grad():
        pushed = subject.exact.push(z, rows.context)
    there = (subject.exact.base.log_prob(z) - pushed.log_det).cpu()
    back = log_probs(subject.exact, replace(rows, x=pushed.value), subject.seed)
    what = "log p of samples there and back"
    yield from _agreement(subject, what, there - back, "By draws from the base.", named=False)


def _solver(subject: CheckContext) -> Found:
    """Log p against a solve at a hundredth of the tolerance in double precision.

    With estimated traces in double precision both, so that the probes are the same.
    """
    tight = tightened(subject.double, hundredth)
    rows = doubled(subject.rows)
    reference = log_probs(tight, rows, subject.seed)
    own = log_probs(subject.double, rows, subject.seed) if subject.estimated else subject.log_prob
    what = "log p against a tight solve"
    told = "At a hundredth of the tolerance, in double precision."
    yield from _agreement(subject, what, own.cpu() - reference, told)


def _precision(subject: CheckContext) -> Found:
    """Log p in single precision against double precision, with exact traces."""
    dtype = subject.flow.like.dtype
    if dtype != torch.float32:
        yield f"The flow is in {dtype}: single precision is not looked at."
        return
    rows = subject.few(len(subject))
    double = log_probs(subject.exact, rows, subject.seed)
    single = subject.log_prob.cpu()
    if subject.estimated:
        like = subject.flow.like
        context = None if rows.context is None else rows.context.to(like)
        own = Rows(rows.x.to(like), context)
        single = log_probs(exactly(subject.flow), own, subject.seed)
    what = "log p in single precision"
    told = "Against double precision at the same tolerance."
    yield from _agreement(subject, what, single - double, told)


def _batch(subject: CheckContext) -> Found:
    """Whether a row's log p depends on the rows beside it."""
    flow, rows = subject.flow, subject.rows
    own = log_probs(flow, rows, subject.seed)
    with seeded(subject.seed):
        others = flow.sample(() if rows.context is not None else len(rows), rows.context)
    x = rows.x.clone()
    x[1::2] = others[1::2]
    change = log_probs(flow, replace(rows, x=x), subject.seed)[::2] - own[::2]
    changes = [change.abs() / own[::2].abs().clamp(min=1.0)]
    if not subject.estimated:  # whose probes would be others
        alone = torch.cat([log_probs(flow, part, 0) for part in rows[:ALONE].split(1)])
        changes.append((alone - own[:ALONE]).abs() / own[:ALONE].abs().clamp(min=1.0))
    yield Finding.of(
        "log p beside other rows",
        _largest(torch.cat(changes)),
        LIMITS["batch"],
        "The largest change of max(1, |log p|) when every second row is another"
        + (", or when a row is alone." if len(changes) > 1 else "."),
    )


def _traces(subject: CheckContext) -> Found:
    """Log p with exact traces against estimates of them."""
    if not subject.layers:
        return
    rows = subject.few(TRACED)
    exact = log_probs(subject.exact, rows, subject.seed)
    flow = subject.double
    if not subject.estimated:
        flow = resolved(flow, lambda layer: {"divergence": Hutchinson()})
    generator = torch.Generator().manual_seed(subject.seed)
    scores = flow.score(rows.x, rows.context, probes=PROBES, generator=generator)
    # Where there is next to no noise, as in one column, the solver's errors are what is left.
    floor = LIMITS["log p, median"].good
    difference = scores.log_prob.cpu() - exact
    errors = torch.hypot(scores.stderr.cpu(), torch.full_like(exact, floor))
    of_rows = difference / errors
    pooled = difference.sum().abs() / errors.square().sum().sqrt()
    yield Finding.of(
        "exact and estimated traces",
        max(float(pooled), float(of_rows.square().mean().sqrt()), key=_nan_first),
        LIMITS["traces"],
        f"Standard errors of {PROBES} estimates between log p with the one and with the other; "
        f"{len(rows)} rows, a row's own standard error is {scores.stderr.mean():.2g} nats.",
    )


def _log_determinant(subject: CheckContext) -> Found:
    """Log-determinants against those of Jacobians by central differences."""
    flow, dim = subject.sharp, subject.rows.x.shape[1]
    rows = subject.few(max(1, min(GRADIENT_ROWS, DIFFERENCES // dim)))
    z = subject.base_draws(flow, len(rows))
    step = DIFFERENCE * subject.base_draws(flow, SAMPLES).std(0)
    moves = torch.cat([torch.diag(step), -torch.diag(step)])
    points = (z.unsqueeze(1) + moves).flatten(0, 1)
    context = None if rows.context is None else rows.context.repeat_interleave(2 * dim, 0)
    with torch.no_grad():
        log_det = flow.push(z, rows.context).log_det
        parts = [
            flow.transport(part.x, part.context)
            for part in Rows(points, context).split(chunk_of(flow))
        ]
    there = torch.cat(parts).cpu().unflatten(0, (len(rows), 2, dim))
    columns = _around(there[:, 0] - there[:, 1], subject.turns) / (2 * step.cpu().unsqueeze(1))
    by_differences = torch.linalg.slogdet(columns).logabsdet
    yield Finding.of(
        "log-determinant",
        _largest(log_det.cpu() - by_differences),
        LIMITS["log-determinant"],
        f"The largest error in nats of {len(rows)} samples, against the determinant of a Jacobian "
        "by differences.",
    )


def _integral(subject: CheckContext) -> Found:
    """Whether the density integrates to 1, at some contexts where it is given any."""
    flow, dim = subject.flow, subject.rows.x.shape[1]
    if subject.estimated:
        if dim > LARGEST_EXACT:
            yield (
                "The trace is estimated, and so is the density: its integral is not looked at. "
                'Exact traces are by divergence="exact".'
            )
            return
        flow = exactly(flow)
    contexts = subject.rows.context
    chosen = [None] if contexts is None else list(contexts[:CONTEXTS].split(1))
    points = max(2, subject.points // len(chosen))
    if dim > 2:
        size = sum(parameter.numel() for parameter in flow.parameters())
        points = min(points, max(LEAST_POINTS, LARGE // max(size, 1)))
    count = SAMPLES // len(chosen)
    found = [_integral_of(subject, flow, context, points, count) for context in chosen]
    worst = max(found, key=lambda one: _nan_first(abs(one.value - 1) - ERRORS.good * one.stderr))
    yield _integral_finding(worst, dim, "" if contexts is None else f", the worst of {len(found)}")


def _integral_of(
    subject: CheckContext, flow: Flow, context: Tensor | None, points: int, count: int
) -> Integral:
    """Of the density given a context."""

    def rows_of(x: Array) -> Rows:
        given = None if context is None else context.expand(len(x), -1)
        return Rows(torch.from_numpy(x).to(flow.like), given)

    with seeded(subject.seed):
        shape = count if context is None else (count, 1)
        samples = flow.sample(shape, context).reshape(count, -1).double().cpu().numpy()
    if context is None:  # what has other contexts tells nothing of this one
        samples = np.concatenate([samples, subject.rows.x.double().cpu().numpy()])
    return integrate(
        lambda x: log_probs_known(flow, rows_of(x), subject.seed).numpy(),
        subject.axes,
        samples,
        points,
        subject.seed,
    )


def _integral_finding(found: Integral, dim: int, which: str) -> Finding:
    """What is made of an integral."""
    limit = Limit(
        max(LIMITS["integral"].good, ERRORS.good * found.stderr),
        max(LIMITS["integral"].bad, ERRORS.bad * found.stderr),
    )
    how = f"by {found.points} points on a grid"
    if dim > 2:
        how = f"by {found.points} draws, as good as {found.effective:.0f} of the density"
    sentence = f"Its distance from 1. It is {found.value:.4f} ± {found.stderr:.1g}{which}, {how}."
    finding = Finding.of("integral of the density", abs(found.value - 1), limit, sentence)
    told = found.stderr <= TOLD * found.value and found.effective >= EFFECTIVE
    if told or not np.isfinite(found.value):
        return finding
    too_few = "These are too few to tell: take more points."
    return replace(finding, verdict="warn", sentence=f"{sentence} {too_few}")


def _gradient(subject: CheckContext) -> Found:
    """The gradient of the mean log p against central differences in random directions."""
    flow = subject.sharp
    parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    if not parameters:
        yield "No parameter wants a gradient: there is none to check."
        return
    rows = subject.few(GRADIENT_ROWS)
    mean = flow.log_prob(rows.x, rows.context).mean()
    found = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    size = torch.stack([part.square().sum() for part in found]).sum().sqrt()
    errors = []
    for number in range(DIRECTIONS):
        with seeded(subject.seed + number):
            direction = [torch.randn_like(parameter) for parameter in parameters]
        slope = _slope(flow, rows, parameters, direction)
        own = torch.stack([(a * b).sum() for a, b in zip(found, direction, strict=True)]).sum()
        errors.append(slope - own)
    # A random direction's slope is as large as the whole gradient, in the mean of squares.
    share = torch.stack(errors).square().mean().sqrt() / size.clamp(min=1e-2)
    modes = sorted({layer.settings.gradient for layer in subject.layers})
    yield Finding.of(
        "gradient",
        float(share),
        LIMITS["gradient"],
        f"Its error as a share of it, against differences in {DIRECTIONS} random directions"
        + (f", by {', '.join(modes)}." if modes else "."),
    )


@torch.no_grad()
def _slope(
    flow: Flow, rows: Rows, parameters: list[torch.nn.Parameter], direction: list[Tensor]
) -> Tensor:
    """The slope of the mean log p in a direction of the parameters, which are put back."""
    kept = [parameter.clone() for parameter in parameters]
    means = []
    for sign in (1, -1):
        for parameter, start, move in zip(parameters, kept, direction, strict=True):
            parameter.copy_(start + sign * DIFFERENCE * move)
        means.append(flow.log_prob(rows.x, rows.context).mean())
    for parameter, start in zip(parameters, kept, strict=True):
        parameter.copy_(start)
    return (means[0] - means[1]) / (2 * DIFFERENCE)


def _two_sample(subject: CheckContext) -> Found:
    """Whether samples can be told from data."""
    data = subject.data
    # A context that stands in both would give away a row's label by its partner's: samples have the
    # contexts of other rows.
    halves = 1 if data.context is None else 2
    count = min(len(data) // halves, TESTED * len(subject))
    if count < LEAST_TESTED:
        yield f"There are too few rows for the two-sample test: it takes {LEAST_TESTED * halves}."
        return
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(subject.seed))
    own, other = data[order[:count].to(data.x.device)], data[order[-count:].to(data.x.device)]
    own = replace(own, x=_canonical(subject.whole, own.x, subject.seed))
    with seeded(subject.seed):
        parts = [
            subject.whole.sample(() if part.context is not None else len(part), part.context)
            for part in other.split(chunk_of(subject.whole))
        ]
    sampled = replace(other, x=torch.cat(parts))
    test = two_sample_test(_joined(own), _joined(sampled), subject.seed)
    seen = "samples" if data.context is None else "samples with their contexts"
    limit = LIMITS["two-sample"]
    by_chance = 0.5 + ERRORS.good * test.stderr
    yield Finding.of(
        "samples against data",
        test.accuracy,
        Limit(max(limit.good, by_chance), max(limit.bad, by_chance)),
        f"The share of rows that a classifier tells right, {seen} from data: ± {test.stderr:.2g} "
        f"of {test.rows} rows. 0.5 is chance. A poor model warns here, and can be honest.",
    )


CHECKS: dict[str, Check] = {
    "effort": _effort,
    "round trip": _round_trip,
    "noise": _noise,
    "log p there and back": _both_ways,
    "tolerance": _solver,
    "precision": _precision,
    "batch": _batch,
    "traces": _traces,
    "log-determinant": _log_determinant,
    "integral": _integral,
    "gradient": _gradient,
    "two-sample": _two_sample,
}
"""In the order in which they are made, after the one that every row has a log p."""


def _agreement(
    subject: CheckContext, what: str, difference: Tensor, told: str, named: bool = True
) -> Found:
    """What is made of differences of log p in nats: their median and their 99 % quantile."""
    sizes = difference.abs()
    order = torch.argsort(sizes.nan_to_num(inf), descending=True)[:SHOWN]
    for share, name in ((0.5, "median"), (0.99, "99 %")):
        limit, value = LIMITS[f"log p, {name}"], _quantile(sizes, share)
        rows = subject.index[order.numpy()].tolist() if named and share > 0.5 else []
        yield Finding.of(f"{what}, {name}", value, limit, f"In nats. {told}", rows)


def _of_rows(subject: CheckContext, name: str, errors: Tensor, limit: str, unit: str) -> Finding:
    """What is made of the rows' errors: their 99 % quantile."""
    order = torch.argsort(errors.nan_to_num(inf), descending=True)[:SHOWN]
    sentence = f"In units of {unit}, 99 % of the rows."
    rows = subject.index[order.numpy()].tolist()
    return Finding.of(name, _quantile(errors, 0.99), LIMITS[limit], sentence, rows)


def _around(difference: Tensor, turns: Tensor) -> Tensor:
    """Differences in double precision, of columns that turn the shorter way round."""
    difference = difference.double().cpu()
    shorter = difference - turns * (difference / turns).round()
    return torch.where(turns.isfinite(), shorter, difference)


def _quantile(values: Tensor, share: float) -> float:
    """The value that a share of all do not exceed; NaN where one is."""
    return float(torch.quantile(values.double(), share, interpolation="higher"))


def _largest(values: Tensor) -> float:
    """The largest size; NaN where one is."""
    return float(values.abs().max())


def _nan_first(value: float) -> float:
    """What has NaN come out as the largest."""
    return inf if isnan(value) else value


def _canonical(flow: Flow, x: Tensor, seed: int) -> Tensor:
    """Rows as the flow would draw them, where it has angles: within one turn."""
    columns: list[Layer] = []
    for layer in reversed(flow.layers):
        if not (flow.circular and isinstance(layer, Concatenate | Circular)):
            break
        columns.append(layer)
    with torch.no_grad(), seeded(seed):
        for layer in columns:
            x = layer.pull(x).value
        for layer in reversed(columns):
            x = layer.push(x).value
    return x


def _joined(rows: Rows) -> Array:
    """Context and x side by side."""
    parts = [rows.x] if rows.context is None else [rows.context, rows.x]
    return torch.cat(parts, 1).double().cpu().numpy()
