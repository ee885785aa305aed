"""The density of this library in comparisons, whose changes leave the others' results cached."""

from __future__ import annotations

from functools import partial

import torch

from cnf.scripts.benchmarks.density import FittedDensity, StandardizedSplit, density_of
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS
from cnf.training.mixture import fit_flows
from cnf.training.recipes import choose_recipe
from cnf.utils.random import seeded


def fit_cnf(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Train this library's flow, or mixture of flows, by the recipe for the data's size."""
    rows, dim = parts.train.shape
    _, recipe = choose_recipe(None, rows, dim)
    with seeded(seed):
        model = recipe.model(dim)
    x, held_out = (
        torch.from_numpy(part).to(model.like) for part in (parts.train, parts.validation)
    )
    options = {"recipe": recipe, "validation": held_out, "seed": seed, "budget": budget}
    history = fit_flows(model, x, **options)
    if history.reason == "interrupted":  # `fit` treats Ctrl-C as early stopping
        raise KeyboardInterrupt
    sample = partial(model.sample, max_batch=BENCHMARK_CHUNK_ROWS)
    return density_of(model.log_prob, sample, f"step {history.best_step} of {history.steps}")
