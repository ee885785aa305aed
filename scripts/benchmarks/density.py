"""Densities by scikit-learn, SciPy, this library and zuko, fitted in a given time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from math import cos, inf, pi, sqrt
from time import perf_counter
from typing import Any, NamedTuple

import torch
from scipy.stats import gaussian_kde
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from cnf.flow import Flow
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS, Array
from cnf.training import History, fit
from cnf.training.recipes import Recipe
from cnf.utils.random import seeded

COMPONENTS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
STALE_COUNTS = 2  # successive numbers of components without improvement that end the search
RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # added to standardised variances
FIRST_RIDGE = 1e-6
QUICK_SHARE = 0.03  # of the budget, within which a fit is fast enough to try other ridges
RESTARTS = 3  # with other seeds, of the best number of components and of its neighbours
LOOKS, LOOK_ITERATIONS = 60, 5  # at the validation rows, and steps of a fit between two of them
BANDWIDTH_ROWS = 500  # validation rows that bandwidths are compared on
FINEST_RATIO = 1.02  # of neighbouring bandwidths
BATCH_ROWS = 256
SMALL_TABLE_ROWS = 5000
VALIDATION_STEPS = 20  # the fewest between two validations; an epoch where that is longer
PATIENCE = 10  # validations without improvement before training returns to its best weights
# The learning rates are above the published ones for many more steps than a minute's few hundred
# (splines after 30 s on protein: validation NLL -1.23 with 1e-2 and -0.13 with 2e-3).
NETWORK: dict[str, Any] = {"transforms": 5, "hidden_features": (128, 128)}
TRAINING: dict[str, Any] = {"lr": 1e-2, "weight_decay": 1e-4}
SMALL_NETWORK: dict[str, Any] = {"transforms": 3, "hidden_features": (64, 64)}
SMALL_TRAINING: dict[str, Any] = {"lr": 3e-3, "weight_decay": 1e-2}


class StandardizedSplit(NamedTuple):
    """Training, validation and test rows, shape (rows, columns) each."""

    train: Array
    validation: Array
    test: Array


@dataclass(frozen=True, eq=False)
class FittedDensity:
    """A fitted density, with the choices made on the validation rows in words."""

    log_prob: Callable[[Array], Array]  # of rows (rows, columns) in nats, shape (rows,)
    sample: Callable[[int, int], Array]  # a number and a seed → shape (number, columns)
    chosen: str
    seconds: float | None = None  # of the fit, where its call also does something else


def fit_gaussian(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Fit a Gaussian to the training rows; the budget and the seed are not used."""
    return _mixture(GaussianMixture(reg_covar=1e-9).fit(parts.train))


def fit_mixture(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Fit mixtures of more and more Gaussians, then restarts of the best, and keep the best."""
    search, stale = _MixtureSearch(parts, budget), 0
    for count in COMPONENTS:
        begin, before = perf_counter(), search.nll
        search.improves(count, search.best.reg_covar, seed)
        if perf_counter() - begin <= QUICK_SHARE * budget:
            search.try_ridges(count, seed)
        stale = 0 if search.nll < before else stale + 1
        if stale == STALE_COUNTS:
            break
    if search.nll == inf:
        raise ValueError("Expected a mixture that can be fitted; got none: use other rows")
    i = COMPONENTS.index(search.best.n_components)
    near = [round(sqrt(COMPONENTS[i] * each)) for each in COMPONENTS[max(0, i - 1) : i + 2]]
    for restart in range(1, RESTARTS + 1):
        for count in dict.fromkeys(near):
            search.improves(count, search.best.reg_covar, seed + 1000 * restart)
    return _mixture(search.best)


class _MixtureSearch:
    """A search over mixtures up to a time, with the best on the validation rows so far."""

    def __init__(self, parts: StandardizedSplit, budget: float) -> None:
        self.parts, self.end = parts, perf_counter() + budget
        self.best, self.nll = GaussianMixture(reg_covar=FIRST_RIDGE), inf
        self.price = 0.0  # seconds up to the first look, for each component

    def improves(self, count: int, ridge: float, seed: int) -> bool:
        """Fit a mixture if there is time, and return whether it is the best so far."""
        begin, before, nll = perf_counter(), self.nll, inf
        if 2 * count > len(self.parts.train) or begin + self.price * count > self.end:
            return False
        options = {"max_iter": LOOK_ITERATIONS, "tol": 1e-4, "warm_start": True}
        model = GaussianMixture(count, reg_covar=ridge, random_state=seed, **options)
        for look in range(LOOKS):
            last, nll = nll, self._continued(model)
            if look == 0:
                self.price = (perf_counter() - begin) / count
            if nll < self.nll:
                self.best, self.nll = deepcopy(model), nll
            if not nll < last or model.converged_ or perf_counter() > self.end:
                break
        return self.nll < before

    def try_ridges(self, count: int, seed: int) -> None:
        """Try larger and smaller ridges while each improves."""
        i = RIDGES.index(self.best.reg_covar)
        for ridges in (RIDGES[i + 1 :], RIDGES[:i][::-1]):
            for ridge in ridges:
                if not self.improves(count, ridge, seed):
                    break

    def _continued(self, model: GaussianMixture) -> float:
        """Continue a fit, and return its validation NLL, infinite after a failure."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                return -float(model.fit(self.parts.train).score(self.parts.validation))
            except ValueError:  # a component has collapsed, which a larger ridge prevents
                return inf


def fit_kernel(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Fit kernels of the data's covariance, whose bandwidth is refined from Scott's in steps."""
    end, rows = perf_counter() + budget, parts.validation[:BANDWIDTH_ROWS].T

    @cache
    def nll(bandwidth: float) -> float:
        return -float(gaussian_kde(parts.train.T, bandwidth).logpdf(rows).mean())

    best, ratio = gaussian_kde(parts.train.T).factor, 2.0
    while ratio >= FINEST_RATIO and perf_counter() < end:
        near = min((best, best * ratio, best / ratio), key=nll)
        best, ratio = near, ratio if near != best else ratio**0.5
    density = gaussian_kde(parts.train.T, best)
    return FittedDensity(
        lambda rows: density.logpdf(rows.T),
        lambda count, seed: density.resample(count, seed).T,
        f"bandwidth {best:.3g}",
    )


def _mixture(model: GaussianMixture) -> FittedDensity:
    return FittedDensity(
        model.score_samples,
        lambda count, seed: model.set_params(random_state=seed).sample(count)[0],
        f"components: {model.n_components}, ridge {model.reg_covar:g}",
    )


def fit_spline(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Train zuko's neural spline flow."""
    return _fit_zuko(peer("zuko.flows").NSF, parts, budget, seed)


def fit_maf(parts: StandardizedSplit, budget: float, seed: int) -> FittedDensity:
    """Train zuko's masked autoregressive flow."""
    return _fit_zuko(peer("zuko.flows").MAF, parts, budget, seed)


def _fit_zuko(
    make: Callable[..., Any], parts: StandardizedSplit, budget: float, seed: int
) -> FittedDensity:
    """Train a flow, and keep the weights that validate best."""
    begin, train = perf_counter(), torch.from_numpy(parts.train).float()
    small = len(train) <= SMALL_TABLE_ROWS
    network, training = (SMALL_NETWORK, SMALL_TRAINING) if small else (NETWORK, TRAINING)
    every = max(VALIDATION_STEPS, -(-len(train) // BATCH_ROWS))
    with seeded(seed):
        flow = make(train.shape[1], **network)
        optimizer = torch.optim.AdamW(flow.parameters(), **training)
        best, best_nll, best_step = flow.state_dict(), inf, 0
        step, stale, progress, rate = 0, 0, 0.0, training["lr"]
        while progress < 1:
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + cos(pi * progress))
            optimizer.zero_grad()
            rows = train[torch.randint(len(train), (BATCH_ROWS,))]
            (-flow().log_prob(rows).mean()).backward()
            if torch.nn.utils.clip_grad_norm_(flow.parameters(), max_norm=5.0).isfinite():
                optimizer.step()
            step, stale = step + 1, stale + 1
            progress = (perf_counter() - begin) / budget
            if step % every and progress < 1:
                continue
            nll = -float(score_array(lambda x: flow().log_prob(x), parts.validation).mean())
            if nll < best_nll:
                best, best_nll, best_step, stale = deepcopy(flow.state_dict()), nll, step, 0
            elif stale >= PATIENCE * every:
                flow.load_state_dict(best)
                rate, stale = rate / 3, 0
    if best_nll == inf:
        raise ValueError("Expected a finite validation NLL; got none: give a longer budget")
    flow.load_state_dict(best)
    chosen = f"step {best_step} of {step}"
    return density_of(lambda x: flow().log_prob(x), lambda shape: flow().sample(shape), chosen)


def density_of(
    log_prob: Callable[[Tensor], Tensor], sample: Callable[[tuple[int]], Tensor], chosen: str
) -> FittedDensity:
    """Return a density of arrays from functions of float32 tensors."""

    def drawn(count: int, seed: int) -> Array:
        with torch.no_grad(), seeded(seed):
            return sample((count,)).double().numpy()

    return FittedDensity(partial(score_array, log_prob), drawn, chosen)


def trained_flow(
    recipe: Recipe, train: Array, validation: Array, seed: int, **length: Any
) -> tuple[Flow, History]:
    """Train a flow by a recipe on arrays, up to `length`: `steps` or a `budget` in seconds."""
    with seeded(seed):
        flow = recipe.flow(train.shape[1])
    rows, held_out = (torch.from_numpy(part).to(flow.like) for part in (train, validation))
    history = fit(flow, rows, recipe=recipe, validation=held_out, seed=seed, **length)
    if history.reason == "interrupted":  # `fit` treats Ctrl-C as early stopping
        raise KeyboardInterrupt
    return flow, history


@torch.no_grad()
def score_array(log_prob: Callable[[Tensor], Tensor], rows: Array) -> Array:
    """Return log p of an array by a function of float32 tensors."""
    parts = torch.from_numpy(rows).float().split(BENCHMARK_CHUNK_ROWS)
    return torch.cat([log_prob(part).double() for part in parts]).numpy()
