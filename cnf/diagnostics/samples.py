"""Checks of samples: of the noise in discrete columns, and against data by a classifier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.diagnostics.context import CheckContext, rows_in_solve, seeded_for
from cnf.diagnostics.report import MAX_NAMED_ROWS, Finding, Findings, Limit
from cnf.diagnostics.statistics import WARN_ERRORS
from cnf.diagnostics.two_sample import two_sample_test
from cnf.flow.flow import Flow
from cnf.layers import Circular, Concatenate, Layer
from cnf.training.data import Rows

Array = NDArray[np.float64]

# A share of entries: whole numbers are restored exactly from numbers with noise.
NOISE_LIMIT = Limit(0.0, 0.0)
# A share of held-out rows classified correctly: up to 0.6 the fit is good; a poor one may still be
# honest. Above 0.9 samples have hardly anything in common with the data.
TWO_SAMPLE_LIMIT = Limit(0.6, 0.9)
TWO_SAMPLE_FACTOR = 5  # times the rows of other checks
MIN_TWO_SAMPLE_ROWS = 50  # rows of data: the classifier's leaves hold 20 each


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
        ctx.index[different.any(1).cpu().numpy()].tolist()[:MAX_NAMED_ROWS],
    )


def check_two_samples(ctx: CheckContext) -> Findings:
    """Check whether a classifier can tell samples from data."""
    data, flow = ctx.data, ctx.full_flow
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
    real = replace(real, x=_in_one_turn(flow, real.x, ctx.seed))
    with seeded_for(flow, ctx.seed):
        parts = [
            flow.sample(() if part.context is not None else len(part), part.context)
            for part in other.split(rows_in_solve(flow))
        ]
    sampled = replace(other, x=torch.cat(parts))
    test = two_sample_test(_joined(real), _joined(sampled), ctx.seed)
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
    columns: list[Layer] = []
    for layer in reversed(flow.layers):
        if not (flow.circular and isinstance(layer, Concatenate | Circular)):
            break
        columns.append(layer)
    with torch.no_grad(), seeded_for(flow, seed):
        for layer in columns:
            x = layer.pull(x).value
        for layer in reversed(columns):
            x = layer.push(x).value
    return x


def _joined(rows: Rows) -> Array:
    """Return contexts and x as one array."""
    parts = [rows.x] if rows.context is None else [rows.context, rows.x]
    return torch.cat(parts, 1).double().cpu().numpy()
