"""The density of this library in comparisons, whose changes leave the others' results cached."""

from __future__ import annotations

from functools import partial

from cnf.scripts.benchmarks.density import (
    FittedDensity,
    StandardizedSplit,
    density_of,
    trained_model,
)
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS
from cnf.training.recipes import choose_recipe


def fit_cnf(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Train this library's flow, or mixture of flows, by the recipe for the data's size."""
    _, recipe = choose_recipe(None, *parts.train.shape)
    model, history = trained_model(recipe, parts.train, parts.validation, seed, budget=budget)
    sample = partial(model.sample, max_batch=BENCHMARK_CHUNK_ROWS)
    return density_of(model.log_prob, sample, f"step {history.best_step} of {history.steps}")
