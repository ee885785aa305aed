"""A mixture of Gaussians, with its size chosen on validation rows while there is time."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from math import inf, sqrt
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from cnf.scripts.benchmarks.density import Deadline, DensityEstimator, FittedDensity
from cnf.scripts.benchmarks.prepared import StandardizedSplit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MixtureSettings:
    """Settings of the search for a mixture.

    Attributes:
        components: The numbers of components, in increasing order.
        ridges: The regularization added to the components' variances, in increasing order.
        first_ridge: The initial ridge.
        stale: Successive numbers of components without improvement after which the search ends.
        restarts: Restarts of the best number of components and of those halfway to its neighbours.
        iterations: Largest number of iterations of one fit.
        between: Iterations between two checks of the validation rows and the deadline.
        quick: Fraction of the budget within which a fit is fast enough to try other ridges.
    """

    components: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
    ridges: tuple[float, ...] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    first_ridge: float = 1e-6
    stale: int = 2
    restarts: int = 3
    iterations: int = 300
    between: int = 5
    quick: float = 0.03


class MixtureEstimator(DensityEstimator):
    """A fitted mixture of Gaussians."""

    def __init__(self, model: GaussianMixture) -> None:
        self.model = model

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows."""
        return np.asarray(self.model.score_samples(rows))

    def sample(self, count: int, seed: int) -> Array:
        """Draw samples, ordered by component."""
        return np.asarray(deepcopy(self.model).set_params(random_state=seed).sample(count)[0])


def fit_mixture(
    parts: StandardizedSplit, budget: float, seed: int, settings: MixtureSettings
) -> FittedDensity:
    """Fit mixtures of more and more components while there is time, and keep the best.

    Raises:
        ValueError: No mixture could be fitted.
    """
    search = _MixtureSearch(parts, Deadline(budget), seed, settings)
    search.climb()
    search.refine()
    if search.best is None:
        raise ValueError("Expected a mixture that can be fitted; got none: give a longer budget")
    chosen = (
        f"{search.best.n_components} components, ridge {search.best.reg_covar:g}, "
        f"best of {search.tried}"
    )
    return FittedDensity(MixtureEstimator(search.best), chosen)


class _MixtureSearch:
    """A search over mixtures, with the best one so far."""

    def __init__(
        self, parts: StandardizedSplit, deadline: Deadline, seed: int, settings: MixtureSettings
    ) -> None:
        self.parts, self.deadline, self.seed, self.settings = parts, deadline, seed, settings
        self.budget = deadline.left
        self.best: GaussianMixture | None = None
        self.best_nll, self.tried = inf, 0
        self.price = 0.0  # seconds per component up to the first check
        self.ridge = settings.ridges.index(settings.first_ridge)

    def climb(self) -> None:
        """Increase the number of components until the NLL stops improving."""
        stale = 0
        for count in self.settings.components:
            before = self.best_nll
            if not self._affordable(count):
                return
            begin = perf_counter()
            self._try(count, self.ridge, self.seed)
            if perf_counter() - begin <= self.settings.quick * self.budget:
                self._try_ridges(count)
            stale = 0 if self.best_nll < before else stale + 1
            if stale >= self.settings.stale:
                return

    def refine(self) -> None:
        """Restart the best number of components, and those halfway to its neighbours."""
        if self.best is None:
            return
        ladder, best = self.settings.components, self.best.n_components
        near = [ladder[max(0, ladder.index(best) - 1)], best]
        near += ladder[ladder.index(best) + 1 : ladder.index(best) + 2]
        counts = dict.fromkeys(round(sqrt(best * each)) for each in near)
        for restart in range(self.settings.restarts):
            for count in counts:
                if self._affordable(count):
                    self._try(count, self.ridge, self.seed + 1000 * (restart + 1))

    def _try_ridges(self, count: int) -> None:
        """Try larger and smaller ridges while each improves the NLL."""
        start = self.ridge
        for step in (1, -1):
            i = start + step
            while 0 <= i < len(self.settings.ridges) and self._affordable(count):
                if not self._try(count, i, self.seed):
                    break
                i += step

    def _affordable(self, count: int) -> bool:
        few = count <= len(self.parts.train) // 2
        return few and self.deadline.left > self.price * count

    def _try(self, count: int, ridge: int, seed: int) -> bool:
        """Fit a mixture, update the best one, and return whether it has improved."""
        model = GaussianMixture(
            count,
            reg_covar=self.settings.ridges[ridge],
            max_iter=self.settings.between,
            tol=1e-4,
            warm_start=True,
            random_state=seed,
        )
        begin, found, improved = perf_counter(), inf, False
        self.tried += 1
        for look in range(self.settings.iterations // self.settings.between):
            nll = self._continue_fit(model)
            if look == 0:
                self.price = (perf_counter() - begin) / count
            if nll < self.best_nll:
                self.best, self.best_nll, self.ridge = deepcopy(model), nll, ridge
                improved = True
            if not nll < found or model.converged_ or self.deadline.left <= 0:
                break
            found = nll
        return improved

    def _continue_fit(self, model: GaussianMixture) -> float:
        """Continue the fit, and return the validation NLL, infinite where the fit fails."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                model.fit(self.parts.train)
            except ValueError:  # a component has collapsed, which a larger ridge prevents
                model.converged_ = False
                return inf
        return -float(model.score(self.parts.validation))
