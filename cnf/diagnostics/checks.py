"""The checks of a flow, or of a model of mixed rows, on data, and their registries.

A check is a function of a `CheckContext`, or of a `RowContext`, that yields findings, and sentences
on what it did not check. A new one is a function with its limits, entered in `CHECKS` or
`ROW_CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import nan
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from cnf.diagnostics import MAX_CHECK_POINTS, MAX_CHECK_ROWS
from cnf.diagnostics.context import CheckContext, CheckedRows
from cnf.diagnostics.mixture_checks import worst_of
from cnf.diagnostics.report import Finding, Findings, Report
from cnf.diagnostics.row_context import RowContext, check_codes
from cnf.diagnostics.solves import check_rows, check_two_samples
from cnf.flow import Flow, FlowMixture
from cnf.ode import SolveError
from cnf.tables.row_model import RowModel
from cnf.utils.registry import Registry

C = TypeVar("C", bound=CheckedRows)
Check = Callable[[C], Findings]

TWO_SAMPLE = "two-sample"

CHECKS: Registry[Check[CheckContext]] = Registry(
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
        TWO_SAMPLE: "cnf.diagnostics.solves:check_two_samples",
    }
)
"""The checks of a flow by name, in their order, after the one that every row has a log p."""

ROW_CHECKS: Registry[Check[RowContext]] = Registry(
    {
        "precision": "cnf.diagnostics.row_checks:check_precision",
        "batch": "cnf.diagnostics.row_checks:check_batch",
        "round trip": "cnf.diagnostics.row_checks:check_round_trip",
        "total mass": "cnf.diagnostics.row_checks:check_total_mass",
        "conditionals": "cnf.diagnostics.row_checks:check_conditionals",
        "bins": "cnf.diagnostics.row_checks:check_bins",
        "orders": "cnf.diagnostics.row_checks:check_orders",
        "consistency": "cnf.diagnostics.row_checks:check_consistency",
        "answers": "cnf.diagnostics.row_checks:check_answers",
        "imputation": "cnf.diagnostics.row_checks:check_imputation",
        "draws": "cnf.diagnostics.row_checks:check_draws",
        "two-sample": "cnf.diagnostics.row_checks:check_two_samples",
        "flow": "cnf.diagnostics.row_checks:check_flow",
    }
)
"""The checks of a `cnf.tables.RowModel` by name, in their order, after that of every row."""


def check(
    model: Flow | FlowMixture | RowModel,
    data: Tensor,
    context: Tensor | None = None,
    *,
    rows: int = MAX_CHECK_ROWS,
    points: int = MAX_CHECK_POINTS,
    seed: int = 0,
) -> Report:
    """Put a model through all checks, on rows of data that it was not trained on.

    Of a flow: round trips; log p against a tight solve in double precision, from base to data and
    back, in both precisions and among other rows; log-determinants and gradients against
    differences; traces against estimates; the integral of the density, and the mass of the folds of
    explicit steps; samples against data by a classifier; and the cost of the solves. In columns of
    whole numbers or categories the checks are of the density of the numbers beneath, with noise
    drawn once by the seed.

    Of a mixture of flows: the worst finding of each check over its flows, and its own samples
    against data.

    Of a model of mixed rows: a code for every value; log p in both precisions and among other rows;
    round trips; the total mass of all codes, of each conditional and within each bin; log p in
    other orders of the columns, and as that of a part and of the rest given it; integrals and draws
    of cells given others; imputation; log p of draws against that of the data; draws against data
    by a classifier; and all checks of the flow within bins, where there is one. Gaps in the data
    are first filled with the model's own draws.

    Args:
        model: The model as it is used: with its solver settings, on its device, in its dtype.
        data: Shape (n, dim); for a model of mixed rows best in double precision.
        context: Shape (n, context_dim).
        rows: The most rows of the data that are taken; the two-sample test takes five times as
            many.
        points: The most points at which the density is evaluated for its integral; for large
            networks in more than two columns fewer are taken. The mass of codes is summed over all
            of them where there are no more, and estimated by draws otherwise.
        seed: Seed of the rows that are taken, and of all random numbers.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or a number is not above 0.

    Example:
        >>> import torch
        >>> from cnf.flow import ffjord
        >>> report = check(ffjord(1, hidden=(8,)), torch.randn(200, 1), rows=20, points=200)
        >>> report.verdict, report.findings[0].name
        ('pass', 'rows without a log p')
        >>> from cnf.tables import Column, RowModel, Schema
        >>> numbers = torch.randint(3, (90, 1)).double()
        >>> schema = Schema((Column("n", "integer", 0, high=2),))
        >>> model = RowModel.build(schema, numbers.numpy(), hidden=8)
        >>> check(model, numbers, rows=20).findings[6].name
        'total mass of the codes'
    """
    taken = (data, context, rows, seed, points)
    if isinstance(model, RowModel):
        return _report(RowContext.of(model, *taken), check_codes, ROW_CHECKS)
    if isinstance(model, FlowMixture):
        return _mixture_report(model, [CheckContext.of(flow, *taken) for flow in model.weighted])
    return _report(CheckContext.of(model, *taken), check_rows, CHECKS)


def _mixture_report(model: FlowMixture, contexts: list[CheckContext]) -> Report:
    """Return the report of a mixture, from the contexts of its flows."""
    checks = {name: each for name, each in CHECKS.items() if name != TWO_SAMPLE}
    worst = worst_of([_report(ctx, check_rows, checks) for ctx in contexts])
    of_all = {TWO_SAMPLE: partial(check_two_samples, mixture=model)}
    samples = _report(contexts[0], lambda _: iter(()), of_all)
    findings, notes = worst.findings + samples.findings, dict.fromkeys(worst.notes + samples.notes)
    return Report(findings, (*notes,), worst.rows)


def _report(ctx: C, check_first: Check[C], checks: Mapping[str, Check[C]]) -> Report:
    """Return the report of the first check on all rows, and of others on those with a log p."""
    found: list[Finding | str] = list(check_first(ctx))
    taken = len(ctx)
    ctx = ctx.take(ctx.finished)
    if len(ctx):
        for name, each in tqdm(checks.items(), desc="checking", disable=None, leave=False):
            try:
                found += list(each(ctx))
            except (SolveError, ValueError) as error:  # a ValueError: a number is not finite
                sentence = f"It could not be carried out: {error}"
                found.append(Finding(name, "fail", nan, nan, sentence))
    else:
        found.append("No row has a log p: nothing else was checked.")
    findings = tuple(each for each in found if isinstance(each, Finding))
    return Report(findings, tuple(each for each in found if isinstance(each, str)), taken)
