"""A kernel density estimator, with a bandwidth chosen on validation rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, pi, sqrt
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.scripts.benchmarks.density import Deadline, DensityEstimator, FittedDensity
from cnf.scripts.benchmarks.prepared import StandardizedSplit

Array = NDArray[np.float64]

MAX_DISTANCES = 2**21  # held in memory at once


@dataclass(frozen=True)
class KernelSettings:
    """Settings of the search for a bandwidth.

    Attributes:
        grid: The initial bandwidths.
        finest: The ratio of neighbours at which refinement ends.
        fewest: The number of bandwidths to leave time for; otherwise training rows are left out.
        probed: Rows that are scored to measure the time of scoring.
    """

    grid: tuple[float, ...] = tuple(2.0**i for i in range(-6, 2))
    finest: float = 1.02
    fewest: int = 12
    probed: int = 100


class KernelEstimator(DensityEstimator):
    """A density of Gaussian kernels on rows.

        p(x) = 1/n Σᵢ N(x; xᵢ, h² I)

    The sum is over all rows, by matrix products: scikit-learn's `KernelDensity`, which traverses a
    tree to skip distant rows, takes many times as long with more than a few columns, and is wrong
    at points that are hundreds of bandwidths from all rows.

    Args:
        rows: The xᵢ, shape (n, columns).
        bandwidth: The standard deviation h of the kernels.
    """

    def __init__(self, rows: Array, bandwidth: float) -> None:
        self.rows, self.bandwidth = torch.from_numpy(rows), bandwidth
        self.norms = self.rows.square().sum(1)

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows."""
        count, dim = self.rows.shape
        scale = log(count) + dim * log(self.bandwidth * sqrt(2 * pi))
        parts = torch.from_numpy(rows).split(max(1, MAX_DISTANCES // count))
        return torch.cat([self._log_sum(part) for part in parts]).numpy() - scale

    def sample(self, count: int, seed: int) -> Array:
        """Draw random rows, and add noise."""
        rng = np.random.default_rng(seed)
        rows = self.rows.numpy()[rng.integers(len(self.rows), size=count)]
        return rows + self.bandwidth * rng.normal(size=rows.shape)

    def _log_sum(self, x: Tensor) -> Tensor:
        """Return the log-sum of exp(-|x - xᵢ|² / 2h²), shape (rows,)."""
        squares = torch.addmm(self.norms, x, self.rows.T, alpha=-2) + x.square().sum(
            1, keepdim=True
        )
        return squares.mul_(-0.5 / self.bandwidth**2).logsumexp(1)


def fit_kernel(
    parts: StandardizedSplit, budget: float, seed: int, settings: KernelSettings
) -> FittedDensity:
    """Fit a kernel density: try a grid of bandwidths, and refine it while there is time."""
    deadline = Deadline(budget)
    rows = _rows_in_time(parts, deadline, seed, settings)
    search = _BandwidthSearch(rows, parts.validation, deadline)
    search.try_all(settings.grid, around=len(rows) ** (-1 / (parts.dim + 4)))  # Scott's rule
    search.refine(settings.grid[1] / settings.grid[0], settings.finest)
    some = "all" if len(rows) == len(parts.train) else f"{len(rows)} of"
    chosen = (
        f"bandwidth {search.best:.3g}, best of {len(search.nll)}, on {some} {len(parts.train)} rows"
    )
    return FittedDensity(KernelEstimator(rows, search.best), chosen)


def _rows_in_time(
    parts: StandardizedSplit, deadline: Deadline, seed: int, settings: KernelSettings
) -> Array:
    """Return the training rows, or a random part that leaves time for the fewest bandwidths."""
    probed = parts.validation[: settings.probed]
    begin = perf_counter()
    KernelEstimator(parts.train, 1.0).log_prob(probed)
    each = (perf_counter() - begin) * len(parts.validation) / len(probed)
    share = deadline.left / (settings.fewest * each)
    if share >= 1:
        return parts.train
    order = np.random.default_rng(seed).permutation(len(parts.train))
    return parts.train[order[: max(1, int(share * len(order)))]]


class _BandwidthSearch:
    """A search over bandwidths by the NLL of validation rows."""

    def __init__(self, rows: Array, validation: Array, deadline: Deadline) -> None:
        self.rows, self.validation, self.deadline = rows, validation, deadline
        self.nll: dict[float, float] = {}
        self.price = 0.0

    @property
    def best(self) -> float:
        """The bandwidth with the lowest NLL."""
        return min(self.nll, key=lambda bandwidth: self.nll[bandwidth])

    def try_all(self, grid: tuple[float, ...], around: float) -> None:
        """Try the bandwidths of a grid, those nearest to a guess first."""
        for bandwidth in sorted(grid, key=lambda each: abs(log(each / around))):
            self._try(bandwidth)

    def refine(self, ratio: float, finest: float) -> None:
        """Halve the grid around the best bandwidth repeatedly."""
        step = log(ratio) / 2
        while step >= log(finest) and self.deadline.left > self.price:
            best = self.best
            for side in (-step, step):
                self._try(best * exp(side))
            step /= 2

    def _try(self, bandwidth: float) -> None:
        if self.nll and self.deadline.left <= self.price:
            return
        begin = perf_counter()
        found = -float(KernelEstimator(self.rows, bandwidth).log_prob(self.validation).mean())
        self.nll[bandwidth] = found if np.isfinite(found) else np.inf
        self.price = perf_counter() - begin
