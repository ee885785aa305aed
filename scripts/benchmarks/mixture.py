"""A mixture of Gaussians, its size chosen on validation rows while there is time."""

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

from cnf.scripts.benchmarks.density import Clock, Density, Fitted
from cnf.scripts.benchmarks.prepared import Parts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MixtureSettings:
    """How a mixture is sought.

    Attributes:
        components: The numbers of components, from few to many.
        ridges: What is added to the components' variances, from little to much.
        first_ridge: The one to begin with.
        stale: Numbers of components in a row that are no better, after which more are not tried.
        restarts: How often the best one is started anew, and those halfway to its neighbours.
        iterations: The most of one fit.
        between: Iterations between two looks at the validation rows and the clock.
        quick: The part of the budget within which a fit is quick enough to try other ridges too.
    """

    components: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
    ridges: tuple[float, ...] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    first_ridge: float = 1e-6
    stale: int = 2
    restarts: int = 3
    iterations: int = 300
    between: int = 5
    quick: float = 0.03


class Mixture(Density):
    """A mixture, fitted."""

    def __init__(self, model: GaussianMixture) -> None:
        self.model = model

    def log_prob(self, rows: Array) -> Array:
        """Log p of rows."""
        return np.asarray(self.model.score_samples(rows))

    def sample(self, count: int, seed: int) -> Array:
        """Draws, component by component."""
        return np.asarray(deepcopy(self.model).set_params(random_state=seed).sample(count)[0])


def fit_mixture(parts: Parts, budget: float, seed: int, settings: MixtureSettings) -> Fitted:
    """Fit mixtures of more and more components while there is time, and keep the best.

    Raises:
        ValueError: None could be fitted.
    """
    search = _Search(parts, Clock(budget), seed, settings)
    search.climb()
    search.refine()
    if search.best is None:
        raise ValueError("Expected a mixture that can be fitted; got none in the time")
    chosen = (
        f"{search.best.n_components} components, ridge {search.best.reg_covar:g}, "
        f"best of {search.tried}"
    )
    return Fitted(Mixture(search.best), chosen)


class _Search:
    """The best mixture so far, and how it is found."""

    def __init__(self, parts: Parts, clock: Clock, seed: int, settings: MixtureSettings) -> None:
        self.parts, self.clock, self.seed, self.settings = parts, clock, seed, settings
        self.budget = clock.left
        self.best: GaussianMixture | None = None
        self.best_nll, self.tried = inf, 0
        self.price = 0.0  # seconds for each component, up to the first look
        self.ridge = settings.ridges.index(settings.first_ridge)

    def climb(self) -> None:
        """More and more components, until they bring nothing any more."""
        stale = 0
        for count in self.settings.components:
            before = self.best_nll
            if not self._affordable(count):
                return
            begin = perf_counter()
            self._attempt(count, self.ridge, self.seed)
            if perf_counter() - begin <= self.settings.quick * self.budget:
                self._walk(count)
            stale = 0 if self.best_nll < before else stale + 1
            if stale >= self.settings.stale:
                return

    def refine(self) -> None:
        """The best number of components and those halfway to its neighbours, started anew."""
        if self.best is None:
            return
        ladder, best = self.settings.components, self.best.n_components
        near = [ladder[max(0, ladder.index(best) - 1)], best]
        near += ladder[ladder.index(best) + 1 : ladder.index(best) + 2]
        counts = dict.fromkeys(round(sqrt(best * each)) for each in near)
        for restart in range(self.settings.restarts):
            for count in counts:
                if self._affordable(count):
                    self._attempt(count, self.ridge, self.seed + 1000 * (restart + 1))

    def _walk(self, count: int) -> None:
        """Less and more of a ridge, each way as long as it brings something."""
        start = self.ridge
        for step in (1, -1):
            i = start + step
            while 0 <= i < len(self.settings.ridges) and self._affordable(count):
                if not self._attempt(count, i, self.seed):
                    break
                i += step

    def _affordable(self, count: int) -> bool:
        few = count <= len(self.parts.train) // 2
        return few and self.clock.left > self.price * count

    def _attempt(self, count: int, ridge: int, seed: int) -> bool:
        """Fit a mixture, by way of which the best may become another; whether it has."""
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
            nll = self._go_on(model)
            if look == 0:
                self.price = (perf_counter() - begin) / count
            if nll < self.best_nll:
                self.best, self.best_nll, self.ridge = deepcopy(model), nll, ridge
                improved = True
            if not nll < found or model.converged_ or self.clock.left <= 0:
                break
            found = nll
        return improved

    def _go_on(self, model: GaussianMixture) -> float:
        """Some more iterations; the validation rows' NLL, infinite where they fail."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                model.fit(self.parts.train)
            except ValueError:  # a component has come to have no volume: it wants more of a ridge
                model.converged_ = False
                return inf
        return -float(model.score(self.parts.validation))
