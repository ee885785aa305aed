"""A kernel density, its bandwidth chosen on validation rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, pi, sqrt
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.scripts.benchmarks.density import Clock, Density, Fitted
from cnf.scripts.benchmarks.prepared import Parts

Array = NDArray[np.float64]

ENTRIES = 2**21  # of distances that are held at once


@dataclass(frozen=True)
class KernelSettings:
    """How a bandwidth is sought.

    Attributes:
        grid: The bandwidths to begin with.
        finest: The ratio of neighbours at which refining them ends.
        fewest: How many bandwidths there has to be time for; training rows are left out otherwise.
        probed: Rows that are scored to find out how long that takes.
    """

    grid: tuple[float, ...] = tuple(2.0**i for i in range(-6, 2))
    finest: float = 1.02
    fewest: int = 12
    probed: int = 100


class Kernel(Density):
    """A Gaussian kernel on each of some rows.

        p(x) = 1/n Σᵢ N(x; xᵢ, h² I)

    The sum is over all rows, by matrix products: scikit-learn's `KernelDensity`, which walks a tree
    to leave out far ones, takes many times as long where there are more than a few columns, and is
    wrong about points that are hundreds of bandwidths from all rows.

    Args:
        rows: The xᵢ, shape (n, columns).
        bandwidth: The kernels' deviation h.
    """

    def __init__(self, rows: Array, bandwidth: float) -> None:
        self.rows, self.bandwidth = torch.from_numpy(rows), bandwidth
        self.norms = self.rows.square().sum(1)

    def log_prob(self, rows: Array) -> Array:
        """Log p of rows."""
        count, dim = self.rows.shape
        scale = log(count) + dim * log(self.bandwidth * sqrt(2 * pi))
        parts = torch.from_numpy(rows).split(max(1, ENTRIES // count))
        return torch.cat([self._log_sum(part) for part in parts]).numpy() - scale

    def sample(self, count: int, seed: int) -> Array:
        """Draws: some of the rows, and noise."""
        rng = np.random.default_rng(seed)
        rows = self.rows.numpy()[rng.integers(len(self.rows), size=count)]
        return rows + self.bandwidth * rng.normal(size=rows.shape)

    def _log_sum(self, x: Tensor) -> Tensor:
        """Of exp(-|x - xᵢ|² / 2h²), shape (rows,)."""
        squares = torch.addmm(self.norms, x, self.rows.T, alpha=-2) + x.square().sum(
            1, keepdim=True
        )
        return squares.mul_(-0.5 / self.bandwidth**2).logsumexp(1)


def fit_kernel(parts: Parts, budget: float, seed: int, settings: KernelSettings) -> Fitted:
    """Try bandwidths, then ones between the best and its neighbours, while there is time."""
    clock = Clock(budget)
    rows = _rows_in_time(parts, clock, seed, settings)
    search = _Search(rows, parts.validation, clock)
    search.try_all(settings.grid, around=len(rows) ** (-1 / (parts.dim + 4)))  # Scott's
    search.refine(settings.grid[1] / settings.grid[0], settings.finest)
    some = "all" if len(rows) == len(parts.train) else f"{len(rows)} of"
    chosen = (
        f"bandwidth {search.best:.3g}, best of {len(search.nll)}, on {some} {len(parts.train)} rows"
    )
    return Fitted(Kernel(rows, search.best), chosen)


def _rows_in_time(parts: Parts, clock: Clock, seed: int, settings: KernelSettings) -> Array:
    """The training rows, or as many at random as leave time for the fewest bandwidths."""
    probed = parts.validation[: settings.probed]
    begin = perf_counter()
    Kernel(parts.train, 1.0).log_prob(probed)
    each = (perf_counter() - begin) * len(parts.validation) / len(probed)
    share = clock.left / (settings.fewest * each)
    if share >= 1:
        return parts.train
    order = np.random.default_rng(seed).permutation(len(parts.train))
    return parts.train[order[: max(1, int(share * len(order)))]]


class _Search:
    """Bandwidths that were tried, each with the validation rows' NLL."""

    def __init__(self, rows: Array, validation: Array, clock: Clock) -> None:
        self.rows, self.validation, self.clock = rows, validation, clock
        self.nll: dict[float, float] = {}
        self.price = 0.0

    @property
    def best(self) -> float:
        """The bandwidth of the least NLL."""
        return min(self.nll, key=lambda bandwidth: self.nll[bandwidth])

    def try_all(self, grid: tuple[float, ...], around: float) -> None:
        """Those of a grid, the likeliest first."""
        for bandwidth in sorted(grid, key=lambda each: abs(log(each / around))):
            self._attempt(bandwidth)

    def refine(self, ratio: float, finest: float) -> None:
        """Halve the grid about the best, time and again."""
        step = log(ratio) / 2
        while step >= log(finest) and self.clock.left > self.price:
            best = self.best
            for side in (-step, step):
                self._attempt(best * exp(side))
            step /= 2

    def _attempt(self, bandwidth: float) -> None:
        if self.nll and self.clock.left <= self.price:
            return
        begin = perf_counter()
        found = -float(Kernel(self.rows, bandwidth).log_prob(self.validation).mean())
        self.nll[bandwidth] = found if np.isfinite(found) else np.inf
        self.price = perf_counter() - begin
