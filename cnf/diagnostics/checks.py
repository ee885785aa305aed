"""The checks of a flow on data, and their registry.

A check is a function of a `CheckContext` that yields findings, and sentences on what it did not
check. A new one is a function with its limits, entered in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan

from torch import Tensor
from tqdm import tqdm

from cnf.diagnostics import MAX_CHECK_POINTS, MAX_CHECK_ROWS
from cnf.diagnostics.context import CheckContext
from cnf.diagnostics.report import Finding, Findings, Report
from cnf.diagnostics.solves import check_rows
from cnf.flow import Flow
from cnf.ode import SolveError
from cnf.utils.registry import Registry

Check = Callable[[CheckContext], Findings]

CHECKS: Registry[Check] = Registry(
    {
        "effort": "cnf.diagnostics.solves:check_effort",
        "round trip": "cnf.diagnostics.solves:check_round_trip",
        "noise": "cnf.diagnostics.solves:check_noise",
        "log p there and back": "cnf.diagnostics.densities:check_both_ways",
        "tolerance": "cnf.diagnostics.densities:check_tolerance",
        "precision": "cnf.diagnostics.densities:check_precision",
        "batch": "cnf.diagnostics.densities:check_batch",
        "traces": "cnf.diagnostics.densities:check_traces",
        "log-determinant": "cnf.diagnostics.densities:check_log_determinant",
        "integral": "cnf.diagnostics.densities:check_integral",
        "folds": "cnf.diagnostics.densities:check_folds",
        "gradient": "cnf.diagnostics.densities:check_gradient",
        "two-sample": "cnf.diagnostics.solves:check_two_samples",
    }
)
"""The checks by name, in their order, after the one that every row has a log p."""


def check(
    flow: Flow,
    data: Tensor,
    context: Tensor | None = None,
    *,
    rows: int = MAX_CHECK_ROWS,
    points: int = MAX_CHECK_POINTS,
    seed: int = 0,
) -> Report:
    """Put a flow through all checks, on rows of data that it was not trained on.

    Round trips; log p against a tight solve in double precision, from base to data and back, in
    both precisions and among other rows; log-determinants and gradients against differences; traces
    against estimates; the integral of the density, and the mass of the folds of explicit steps;
    samples against data by a classifier; and the cost of the solves. In columns of whole numbers or
    categories the checks are of the density of the numbers beneath, with noise drawn once by the
    seed.

    Args:
        flow: The flow as it is used: with its solver settings, on its device, in its dtype.
        data: Shape (n, dim).
        context: Shape (n, context_dim).
        rows: The most rows of the data that are taken; the two-sample test takes five times as
            many.
        points: The most points at which the density is evaluated for its integral; for large
            networks in more than two columns fewer are taken.
        seed: Seed of the rows that are taken, and of all random numbers.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or a number is not above 0.

    Example:
        >>> import torch
        >>> from cnf.flow import ffjord
        >>> report = check(ffjord(1, hidden=(8,)), torch.randn(200, 1), rows=20, points=200)
        >>> report.verdict, report.findings[0].name
        ('pass', 'rows without a log p')
    """
    ctx = CheckContext.of(flow, data, context, rows, seed, points)
    found: list[Finding | str] = list(check_rows(ctx))
    taken = len(ctx)
    ctx = ctx.with_log_prob()
    if len(ctx):
        for name, each in tqdm(CHECKS.items(), desc="checking", disable=None, leave=False):
            try:
                found += list(each(ctx))
            except (SolveError, ValueError) as error:  # a ValueError: a number is not finite
                sentence = f"It could not be carried out: {error}"
                found.append(Finding(name, "fail", nan, nan, sentence))
    else:
        found.append("No row has a log p: nothing else was checked.")
    findings = tuple(each for each in found if isinstance(each, Finding))
    return Report(findings, tuple(each for each in found if isinstance(each, str)), taken)
