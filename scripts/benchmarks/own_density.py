"""The density of this library in comparisons, whose changes leave the others' results cached."""

from __future__ import annotations

from functools import partial

from cnf.scripts.benchmarks.density import (
    FittedDensity,
    StandardizedSplit,
    density_of,
    trained_flow,
)
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS
from cnf.training.recipes import choose_recipe


def fit_cnf(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Train this library's flow by the recipe for the size of the data."""
    _, recipe = choose_recipe(None, *parts.train.shape)
    flow, history = trained_flow(recipe, parts.train, parts.validation, seed, budget=budget)
    sample = partial(flow.sample, max_batch=BENCHMARK_CHUNK_ROWS)
    return density_of(flow.log_prob, sample, f"step {history.best_step} of {history.steps}")
