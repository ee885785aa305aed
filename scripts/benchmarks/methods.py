"""The density estimators that are compared on tables, by name."""

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
    AutoregressiveSettings,
    Network,
    fit_autoregressive,
)
from cnf.scripts.benchmarks.density import Density, Fitted
from cnf.scripts.benchmarks.kernel import KernelSettings, fit_kernel
from cnf.scripts.benchmarks.mixture import MixtureSettings, fit_mixture
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.prepared import Parts
from cnf.scripts.gaussian import Gaussian
from cnf.scripts.rows import Rows, no_context
from cnf.training.loop import fit
from cnf.training.recipes import Recipe, choose_recipe

Array = NDArray[np.float64]

CHUNK = 2000  # rows scored or drawn in one solve
FEW = 5000  # rows up to which an autoregressive flow has two networks to choose from


@dataclass(frozen=True)
class Method:
    """A way to fit a density.

    Attributes:
        settings: A dataclass, from the number of training rows and of columns.
        fit: A density from the rows, the seconds that it may take, a seed and the settings.
        peers: The libraries that it needs.
    """

    settings: Callable[[int, int], Any]
    fit: Callable[[Parts, float, int, Any], Fitted]
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class GaussianSettings:
    """Nothing is to be chosen."""


class FullGaussian(Density):
    """The programs' yardstick."""

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian = gaussian

    def log_prob(self, rows: Array) -> Array:
        """Log p of rows."""
        return self.gaussian.log_prob(Rows(rows, no_context(len(rows))))

    def sample(self, count: int, seed: int) -> Array:
        """Draws."""
        mean, covariance = self.gaussian.mean, self.gaussian.covariance
        return np.random.default_rng(seed).multivariate_normal(
            mean, covariance, count, method="cholesky"
        )


class Continuous(Density):
    """This library's flow."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def log_prob(self, rows: Array) -> Array:
        """Log p of rows by the flow's own solves.

        Raises:
            SolveError: A row's solve fails.
        """
        parts = torch.from_numpy(rows).to(self.flow.like).split(CHUNK)
        with torch.no_grad():
            return torch.cat([self.flow.log_prob(part).double() for part in parts]).numpy()

    def sample(self, count: int, seed: int) -> Array:
        """Draws.

        Raises:
            SolveError: A solve fails.
        """
        sizes = [min(CHUNK, count - i) for i in range(0, count, CHUNK)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([self.flow.sample(size).double() for size in sizes]).numpy()


def fit_gaussian(parts: Parts, budget: float, seed: int, settings: GaussianSettings) -> Fitted:
    """The Gaussian of the training rows; it needs neither the time nor the seed."""
    gaussian = Gaussian.fit(Rows(parts.train, no_context(len(parts.train))))
    return Fitted(FullGaussian(gaussian), "full covariance")


def fit_flow(parts: Parts, budget: float, seed: int, recipe: Recipe) -> Fitted:
    """This library's flow, by a recipe.

    Raises:
        TrainingError: There is nothing to keep.
        KeyboardInterrupt: Training was interrupted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = recipe.flow(parts.dim)
    train, validation = (
        torch.from_numpy(rows).to(flow.like) for rows in (parts.train, parts.validation)
    )
    history = fit(flow, train, recipe=recipe, budget=budget, validation=validation, seed=seed)
    if history.reason == "interrupted":  # `fit` takes Ctrl-C as an early end
        raise KeyboardInterrupt
    sizes = "-".join(map(str, recipe.hidden))
    chosen = f"{recipe.objective}, {sizes}; best at step {history.best_step} of {history.steps}, "
    return Fitted(Continuous(flow), chosen + history.reason)


def own_recipe(rows: int, dim: int) -> Recipe:
    """The recipe for data of this size and dimension."""
    return choose_recipe(None, rows, dim)[1]


def autoregressive_settings(bins: int, rows: int, dim: int) -> AutoregressiveSettings:
    """Published sizes; where there are few rows a smaller one to choose too, and more decay.

    The learning rates are above the published ones, which are for hundreds of thousands of steps: a
    minute has some hundreds, in which these come further (on protein's first split, validation NLL:
    splines after 30 s -1.23 with 1e-2, -0.13 with 2e-3; affine transforms after 20 s -2.01, -1.36).
    """
    published = Network(5, (128, 128), bins)
    if rows > FEW:
        return AutoregressiveSettings((published,), batch=512)
    networks = (Network(3, (64, 64), bins), published)
    return AutoregressiveSettings(networks, learning_rate=3e-3, weight_decay=1e-2)


def get_ready(methods: Iterable[str]) -> None:
    """Import what methods need, and take a step: whoever comes first would pay for that.

    Raises:
        ValueError: A library is not installed.
    """
    for library in {library for method in methods for library in METHODS[method].peers}:
        peer(library)
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


METHODS: dict[str, Method] = {
    "gaussian": Method(lambda rows, dim: GaussianSettings(), fit_gaussian),
    "mixture": Method(lambda rows, dim: MixtureSettings(), fit_mixture),
    "kernel": Method(lambda rows, dim: KernelSettings(), fit_kernel),
    "spline": Method(partial(autoregressive_settings, 8), fit_autoregressive, ("zuko",)),
    "maf": Method(partial(autoregressive_settings, 0), fit_autoregressive, ("zuko",)),
    "cnf": Method(own_recipe, fit_flow),
}
"""By name."""
