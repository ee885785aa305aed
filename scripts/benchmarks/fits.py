"""Cached fits of flows to toys, by objective, budget, seed, threads and recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnf.flow import Flow
from cnf.ode import SolveError
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.result_cache import fingerprint
from cnf.scripts.benchmarks.truth import KL_ROWS, Distance, distance_of, fresh_rows
from cnf.scripts.data import TOY_ROWS, open_data
from cnf.storage import save
from cnf.training.history import History
from cnf.training.loop import TrainingError, fit
from cnf.training.recipes import Recipe, choose_recipe
from cnf.utils.random import seeded

TOY_DIM = 2


@dataclass(frozen=True)
class ToyTrial:
    """A training run on a toy; the key of its result.

    Attributes:
        toy: Name of the toy.
        objective: Name of the objective.
        budget: Seconds of training.
        seed: Seed of the rows, the weights and the training.
        threads: Threads of PyTorch.
        recipe: Fingerprint of the recipe.
        method: The method, which distinguishes these results from those of others.
    """

    toy: str
    objective: str
    budget: float
    seed: int
    threads: int
    recipe: str
    method: str = "cnf"

    def folder(self, out: Path) -> Path:
        """Return the folder that the flow is saved in."""
        name = f"{self.objective}-{self.budget:g}s-seed{self.seed}-threads{self.threads}"
        return out / "models" / self.toy / f"{name}-{self.recipe}"


@dataclass(frozen=True)
class ToyFit:
    """The result of a training run on a toy.

    Attributes:
        kl: KL divergence from the truth to the flow over fresh rows, in nats; not finite where
            training or scoring failed.
        stderr: Standard error of `kl`.
        seconds: Wall time of training, as the budget counts it.
        steps: Steps of the optimizer.
        training: Mean evaluations of a training solve; 0 without any training solve.
        scoring: Mean evaluations of a scoring solve.
        reason: Why training ended, or what failed.
        cached: Whether the result was read from the cache, and nothing was trained.
    """

    kl: float
    stderr: float
    seconds: float
    steps: int
    training: float
    scoring: float
    reason: str
    cached: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no flow to show."""
        return not isfinite(self.kl)

    @property
    def distance(self) -> Distance:
        """The KL divergence from the truth, with its standard error."""
        return Distance(self.kl, self.stderr)

    @staticmethod
    def of(result: Mapping[str, Any]) -> ToyFit:
        """Return the fit of a cached result."""
        found: dict[str, Any] = {k: nan if result[k] is None else result[k] for k in FIT_FIELDS}
        return ToyFit(**found, cached=True)


FIT_FIELDS = tuple(field.name for field in fields(ToyFit) if field.name != "cached")


def default_recipe() -> tuple[str, Recipe]:
    """Return the default recipe of toys, with its name."""
    return choose_recipe(None, TOY_ROWS["train"], TOY_DIM)


def trial_of(
    options: BenchmarkOptions, toy: str, objective: str | None = None, seed: int = 0
) -> ToyTrial:
    """Return the trial of a toy, with the recipe's objective when None is given."""
    recipe = _recipe(objective)
    threads = torch.get_num_threads()
    mark = fingerprint(asdict(recipe))
    return ToyTrial(toy, recipe.objective, options.budget, seed, threads, mark)


def fit_of(options: BenchmarkOptions, trial: ToyTrial) -> ToyFit:
    """Return the fit of a trial, trained unless it is cached.

    Raises:
        KeyboardInterrupt: Training was interrupted, so there is no result.
    """
    found = options.toy_results.find(asdict(trial), FIT_FIELDS)
    if found is not None:
        return ToyFit.of(found)
    try:
        flow, made = train(trial)
    except (TrainingError, SolveError) as error:  # the table continues with its next line
        made = ToyFit(nan, nan, nan, 0, nan, nan, reason=f"failed: {error}")
    else:
        if options.out is not None:  # before the result, so that each result has its flow
            save(flow, trial.folder(options.out), {"cell": asdict(trial)})
    options.toy_results.add(asdict(trial), {name: getattr(made, name) for name in FIT_FIELDS})
    return made


def train(trial: ToyTrial) -> tuple[Flow, ToyFit]:
    """Train the flow of a trial on the programs' rows for its seed, and score it on fresh rows."""
    recipe = _recipe(trial.objective)
    data = open_data(trial.toy, trial.seed)
    with seeded(trial.seed):
        flow = recipe.flow(TOY_DIM)
    rows, held_out = (
        torch.from_numpy(part.x).to(flow.like) for part in (data.train, data.validation)
    )
    history = fit(
        flow, rows, recipe=recipe, budget=trial.budget, validation=held_out, seed=trial.seed
    )
    if history.reason == "interrupted":
        raise KeyboardInterrupt
    far, scoring = distance_of(flow, trial.toy, fresh_rows(trial.toy, KL_ROWS, trial.seed))
    numbers = (history.duration, history.steps, mean_evaluations(history), scoring, history.reason)
    return flow, ToyFit(far.kl, far.stderr, *numbers)


def mean_evaluations(history: History) -> float:
    """Return the mean evaluations of a training solve, over the records that have any; else 0."""
    solved = history.nfe[np.nan_to_num(history.nfe) > 0]
    return float(solved.mean()) if len(solved) else 0.0


def _recipe(objective: str | None) -> Recipe:
    _, recipe = default_recipe()
    return replace(recipe, objective=objective or recipe.objective)
