"""Discretised flows beside adaptive flows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np
import torch

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.flow.folds import fold_mass
from cnf.ode import SolveError
from cnf.scripts.benchmarks.density import score_array, trained_flow
from cnf.scripts.benchmarks.measure import (
    BENCHMARK_CHUNK_ROWS,
    Array,
    Average,
    TableItem,
    threads_used,
)
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.scoring import (
    ScoredData,
    flow_of,
    kept_flow,
    rates_of,
    scored_data,
    spline_of,
)
from cnf.scripts.benchmarks.toys import KL_ROWS, distance_of, fresh_rows, toy_recipe
from cnf.training import TrainingError, distil
from cnf.utils.random import seeded

GRID_POINTS = 600  # along each side of the box of the data, doubled
ROUND_TRIP_DRAWS = 10_000


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield three rows for each toy and table: rates of log p and of sampling, and errors."""
    parts = scored_data(options)
    yield (
        f"Discretised flows of {options.steps} steps beside adaptive ones by the default recipes, "
        f"both after {options.budget:g} s: toys from the start, tables distilled from the adaptive "
        f"flow for as long again; rows a second of "
        f"{BENCHMARK_CHUNK_ROWS} at a time; {threads_used(options.repeats)}"
    )
    names = {"budget": options.budget, "repeats": options.repeats, "steps": options.steps}
    for data in parts:
        key = key_of({"discretised": data.name, **names}, data.recipe, data.train)
        row = options.results.recall(key, partial(_measured, options, data))
        for kind in ("log_prob", "sampling"):
            yield {f"{kind}, rows/s": data.name, **row.get(kind, {}), "note": row["note"]}
        yield {"quality": data.name, **row.get("quality", {}), "note": row["note"]}
    yield "adaptive: as a user holds a flow; NSF: zuko's, of 3 transforms, 64-64"
    yield "loss: KL to the truth of toys, NLL of tables' test rows; gain: adaptive less discretised"
    yield (
        f"grid: ∫p over {GRID_POINTS} x {GRID_POINTS} points of the box of the training rows, "
        "doubled; folds: their mass by importance sampling, and ∫p by the same draws"
    )
    yield f"z -> x -> z: the largest difference over {ROUND_TRIP_DRAWS} draws; inf: one has no x"


def _measured(options: BenchmarkOptions, data: ScoredData) -> Row:
    """Train both flows and measure; a failure of the discretised one is noted."""
    flow = flow_of(options, data)
    try:
        fast = _discretised(options, data, flow)
    except TrainingError as error:
        return {"note": f"failed: {error}"}
    models: dict[str, Any] = {"adaptive": flow, "discretised": fast, "NSF": spline_of(data)}
    models["compiled"] = fast.with_solver(compile=True)
    rates = rates_of(models, data.x, options.repeats)
    for rate in (rates["log_prob"], rates["sampling"]):
        for name in ("adaptive", "NSF"):
            rate[f"to {name}"] = rate["discretised"] / rate[name]
    return {**rates, "quality": quality_of(data, flow, fast)}


def _discretised(options: BenchmarkOptions, data: ScoredData, flow: Flow) -> Flow:
    """Return a toy's flow of explicit steps, or the distilled one of a table, made if need be."""
    names = {"distilled": data.name, "budget": options.budget, "steps": options.steps}

    def train() -> Flow:
        if data.name in TOYS:
            recipe = replace(toy_recipe()[1], explicit_steps=options.steps)
            return trained_flow(recipe, data.train, data.validation, 0, budget=options.budget)[0]
        rows, held_out = (
            torch.from_numpy(part).to(flow.like) for part in (data.train, data.validation)
        )
        tuned = partial(distil, flow, rows, steps=options.steps)
        return tuned(validation=held_out, budget=options.budget)

    return kept_flow(options, key_of(names, data.recipe, data.train), train)


def quality_of(data: ScoredData, flow: Flow, fast: Flow) -> dict[str, float]:
    """Return the losses of both flows, integrals of the fast one's density, folds and inverses."""
    adaptive, discretised = (_loss(data, each) for each in (flow, fast))
    found = fold_mass(fast, near=flow)
    return {
        "adaptive": adaptive.mean,
        "discretised": discretised.mean,
        "stderr": discretised.stderr,
        "gain": adaptive.mean - discretised.mean,
        "grid": grid_integral(fast, data.train) if data.train.shape[1] == 2 else nan,
        "folds": found.mass if found.known else nan,
        "sampled": found.integral,
        "z -> x -> z": round_trip(fast),
    }


def _loss(data: ScoredData, flow: Flow) -> Average:
    """Return the KL from a toy to a flow, or the NLL of a table's test rows, in nats."""
    if data.name in TOYS:
        return distance_of(flow, data.name, fresh_rows(data.name, KL_ROWS, 0))[0]
    return Average.of(-score_array(flow.log_prob, data.test))


def grid_integral(flow: Flow, rows: Array) -> float:
    """Return ∫p by a grid of midpoints over the box of rows (n, 2), doubled about its middle.

    Points without a log p count as none; where they are folds, p elsewhere is too large by as much.
    """
    low, high = rows.min(0), rows.max(0)
    sides = 2 * (high - low)
    steps = (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS - 0.5
    axes = [middle + side * steps for middle, side in zip((low + high) / 2, sides, strict=True)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    log_prob = score_array(lambda x: flow.score(x).log_prob, points)
    return float(np.nansum(np.exp(log_prob)) * sides.prod() / GRID_POINTS**2)


@torch.no_grad()
def round_trip(flow: Flow) -> float:
    """Return the largest |z → x → z| over draws z of the base, infinite where one has no x."""
    with seeded(0):
        draws = flow.base.sample((ROUND_TRIP_DRAWS,)).to(flow.like)
    try:
        differences = [
            (flow.pull(flow.push(z).value).value - z).abs().max()
            for z in draws.split(BENCHMARK_CHUNK_ROWS)
        ]
    except SolveError:
        return inf
    return float(torch.stack(differences).max())
