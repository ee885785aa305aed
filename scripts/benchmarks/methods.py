"""The registry of density estimators that are compared on tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.scripts.benchmarks.autoregressive import (
    AutoregressiveNetwork,
    AutoregressiveSettings,
    fit_autoregressive,
)
from cnf.scripts.benchmarks.density import DensityEstimator, FittedDensity
from cnf.scripts.benchmarks.kernel import KernelSettings, fit_kernel
from cnf.scripts.benchmarks.mixture import MixtureSettings, fit_mixture
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.prepared import StandardizedSplit
from cnf.scripts.benchmarks.truth import BENCHMARK_CHUNK_ROWS
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.rows import ContextRows, no_context
from cnf.training.loop import fit
from cnf.training.recipes import Recipe, choose_recipe
from cnf.utils.random import seeded

Array = NDArray[np.float64]

SMALL_TABLE_ROWS = 5000  # rows up to which an autoregressive flow has two networks to choose from


@dataclass(frozen=True)
class EstimatorMethod:
    """A method to fit a density.

    Attributes:
        settings: Returns a dataclass of settings for a number of training rows and of columns.
        fit: Fits a density to rows, given a budget in seconds, a seed and the settings.
        peers: The libraries that the method needs.
    """

    settings: Callable[[int, int], Any]
    fit: Callable[[StandardizedSplit, float, int, Any], FittedDensity]
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class GaussianSettings:
    """Settings of the Gaussian, which has none."""


class GaussianEstimator(DensityEstimator):
    """The Gaussian baseline of the programs."""

    def __init__(self, gaussian: GaussianBaseline) -> None:
        self.gaussian = gaussian

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows."""
        return self.gaussian.log_prob(ContextRows(rows, no_context(len(rows))))

    def sample(self, count: int, seed: int) -> Array:
        """Draw samples."""
        mean, covariance = self.gaussian.mean, self.gaussian.covariance
        return np.random.default_rng(seed).multivariate_normal(
            mean, covariance, count, method="cholesky"
        )


class FlowEstimator(DensityEstimator):
    """This library's flow."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows with the flow's own solver settings.

        Raises:
            SolveError: A row's solve fails.
        """
        parts = torch.from_numpy(rows).to(self.flow.like).split(BENCHMARK_CHUNK_ROWS)
        with torch.no_grad():
            return torch.cat([self.flow.log_prob(part).double() for part in parts]).numpy()

    def sample(self, count: int, seed: int) -> Array:
        """Draw samples.

        Raises:
            SolveError: A solve fails.
        """
        sizes = [
            min(BENCHMARK_CHUNK_ROWS, count - i) for i in range(0, count, BENCHMARK_CHUNK_ROWS)
        ]
        with seeded(seed):
            return torch.cat([self.flow.sample(size).double() for size in sizes]).numpy()


def fit_gaussian(
    parts: StandardizedSplit, budget: float, seed: int, settings: GaussianSettings
) -> FittedDensity:
    """Fit a Gaussian to the training rows; the budget and the seed are not used."""
    gaussian = GaussianBaseline.fit(ContextRows(parts.train, no_context(len(parts.train))))
    return FittedDensity(GaussianEstimator(gaussian), "full covariance")


def fit_flow(parts: StandardizedSplit, budget: float, seed: int, recipe: Recipe) -> FittedDensity:
    """Fit this library's flow by a recipe.

    Raises:
        TrainingError: No weights could be validated.
        KeyboardInterrupt: Training was interrupted.
    """
    with seeded(seed):
        flow = recipe.flow(parts.dim)
    train, validation = (
        torch.from_numpy(rows).to(flow.like) for rows in (parts.train, parts.validation)
    )
    history = fit(flow, train, recipe=recipe, budget=budget, validation=validation, seed=seed)
    if history.reason == "interrupted":  # `fit` treats Ctrl-C as early stopping
        raise KeyboardInterrupt
    sizes = "-".join(map(str, recipe.hidden))
    chosen = f"{recipe.objective}, {sizes}; best at step {history.best_step} of {history.steps}, "
    return FittedDensity(FlowEstimator(flow), chosen + history.reason)


def default_flow_recipe(rows: int, dim: int) -> Recipe:
    """Return the default recipe for data of this size and dimension."""
    return choose_recipe(None, rows, dim)[1]


def autoregressive_settings(bins: int, rows: int, dim: int) -> AutoregressiveSettings:
    """Return the published sizes; for few rows also a smaller one, and more weight decay.

    The learning rates are above the published ones, which are for hundreds of thousands of steps. A
    minute has a few hundred steps, in which these do better (validation NLL on protein's first
    split: splines after 30 s -1.23 with 1e-2 and -0.13 with 2e-3; affine transforms after 20 s
    -2.01 and -1.36).
    """
    published = AutoregressiveNetwork(5, (128, 128), bins)
    if rows > SMALL_TABLE_ROWS:
        return AutoregressiveSettings((published,), batch=512)
    networks = (AutoregressiveNetwork(3, (64, 64), bins), published)
    return AutoregressiveSettings(networks, learning_rate=3e-3, weight_decay=1e-2)


def warm_up_libraries(methods: Iterable[str]) -> None:
    """Import the libraries of methods and take a step, which the first fit would pay for.

    Raises:
        ValueError: A library is not installed.
    """
    for library in {library for method in methods for library in METHODS[method].peers}:
        peer(library)
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


METHODS: dict[str, EstimatorMethod] = {
    "gaussian": EstimatorMethod(lambda rows, dim: GaussianSettings(), fit_gaussian),
    "mixture": EstimatorMethod(lambda rows, dim: MixtureSettings(), fit_mixture),
    "kernel": EstimatorMethod(lambda rows, dim: KernelSettings(), fit_kernel),
    "spline": EstimatorMethod(partial(autoregressive_settings, 8), fit_autoregressive, ("zuko",)),
    "maf": EstimatorMethod(partial(autoregressive_settings, 0), fit_autoregressive, ("zuko",)),
    "cnf": EstimatorMethod(default_flow_recipe, fit_flow),
}
"""The density estimators by name."""
