"""Statistics of rows' errors, and findings of them."""

from __future__ import annotations

from math import inf, isnan

import torch
from torch import Tensor

from cnf.diagnostics.context import CheckContext
from cnf.diagnostics.report import MAX_NAMED_ROWS, Finding, Findings, Limit

# Nats, of half of the rows: means over rows are reported to three digits.
MEDIAN_LIMIT = Limit(1e-3, 1e-2)
# Nats, of 99 % of the rows: ten times as much, for rows in the tails.
TAIL_LIMIT = Limit(1e-2, 1e-1)

WARN_ERRORS = 3.0  # standard errors that pass, where these exceed a limit
FAIL_ERRORS = 5.0  # standard errors that do not fail yet


def agreement(
    ctx: CheckContext, name: str, difference: Tensor, sentence: str, named: bool = True
) -> Findings:
    """Yield the findings of differences of log p in nats: their median and 99 % quantile."""
    sizes = difference.abs()
    rows = largest_rows(ctx, sizes) if named else []
    yield Finding.of(f"{name}, median", quantile(sizes, 0.5), MEDIAN_LIMIT, f"In nats. {sentence}")
    yield Finding.of(
        f"{name}, 99 %", quantile(sizes, 0.99), TAIL_LIMIT, f"In nats. {sentence}", rows
    )


def largest_rows(ctx: CheckContext, sizes: Tensor) -> list[int]:
    """Return the places in the data of the rows with the largest sizes, NaN first."""
    order = torch.argsort(sizes.nan_to_num(inf), descending=True)[:MAX_NAMED_ROWS]
    rows: list[int] = ctx.index[order.numpy()].tolist()
    return rows


def quantile(values: Tensor, share: float) -> float:
    """Return the value that a share of all values do not exceed, NaN where one is NaN."""
    return float(torch.quantile(values.double(), share, interpolation="higher"))


def largest(values: Tensor) -> float:
    """Return the largest absolute value, NaN where one is NaN."""
    return float(values.abs().max())


def nan_as_inf(value: float) -> float:
    """Return infinity for NaN, so that it sorts as the largest."""
    return inf if isnan(value) else value


def shortest_difference(difference: Tensor, periods: Tensor) -> Tensor:
    """Return differences in double precision, of periodic columns along the shorter arc."""
    difference = difference.double().cpu()
    shorter = difference - periods * (difference / periods).round()
    return torch.where(periods.isfinite(), shorter, difference)
