"""Flows that are trained on toys, each once: by objective, budget, seed, threads and recipe."""

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
from cnf.scripts.benchmarks.cells import fingerprint
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.truth import FRESH, Distance, distance_of, fresh_rows
from cnf.scripts.data import TOY_ROWS, open_data
from cnf.storage import save
from cnf.training.history import History
from cnf.training.loop import TrainingError, fit
from cnf.training.recipes import Recipe, choose_recipe

DIM = 2


@dataclass(frozen=True)
class Cell:
    """What a flow was trained on, and how.

    Attributes:
        toy: Name of the toy.
        objective: Name of the objective.
        budget: Seconds of training.
        seed: Of the rows, the weights and the training.
        threads: PyTorch's.
        recipe: The recipe's fingerprint.
        method: By which these cells are told from others.
    """

    toy: str
    objective: str
    budget: float
    seed: int
    threads: int
    recipe: str
    method: str = "cnf"

    def folder(self, out: Path) -> Path:
        """Where the flow is kept."""
        name = f"{self.objective}-{self.budget:g}s-seed{self.seed}-threads{self.threads}"
        return out / "models" / self.toy / f"{name}-{self.recipe}"


@dataclass(frozen=True)
class Fit:
    """What came of it.

    Attributes:
        kl: From the truth to the flow over fresh rows, in nats; not finite where training or
            scoring failed.
        stderr: Its standard error.
        seconds: Wall time of training, as the budget counts it.
        steps: Optimizer's steps.
        training: Mean evaluations of a training solve; 0 where training solves nothing.
        scoring: Mean evaluations of a scoring solve.
        reason: Why training ended, or what failed.
        kept: Whether it was there already, and nothing was trained for it.
    """

    kl: float
    stderr: float
    seconds: float
    steps: int
    training: float
    scoring: float
    reason: str
    kept: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no flow to show."""
        return not isfinite(self.kl)

    @property
    def distance(self) -> Distance:
        """From the truth."""
        return Distance(self.kl, self.stderr)

    @staticmethod
    def of(cell: Mapping[str, Any]) -> Fit:
        """A fit that was finished before."""
        found: dict[str, Any] = {k: nan if cell[k] is None else cell[k] for k in NUMBERS}
        return Fit(**found, kept=True)


NUMBERS = tuple(field.name for field in fields(Fit) if field.name != "kept")


def default_recipe() -> tuple[str, Recipe]:
    """What toys are trained by when nothing is asked for; with its name."""
    return choose_recipe(None, TOY_ROWS["train"], DIM)


def cell_of(options: Options, toy: str, objective: str | None = None, seed: int = 0) -> Cell:
    """What is trained; by the recipe's own objective when None."""
    recipe = _recipe(objective)
    threads = torch.get_num_threads()
    mark = fingerprint(asdict(recipe))
    return Cell(toy, recipe.objective, options.budget, seed, threads, mark)


def fit_of(options: Options, cell: Cell) -> Fit:
    """The fit of a cell, trained unless it is there already.

    Raises:
        KeyboardInterrupt: Training was interrupted: what it left is not a cell's fit.
    """
    found = options.toy_cells.find(asdict(cell), NUMBERS)
    if found is not None:
        return Fit.of(found)
    try:
        flow, made = train(cell)
    except (TrainingError, SolveError) as error:  # a table goes on to its next line
        made = Fit(nan, nan, nan, 0, nan, nan, reason=f"failed: {error}")
    else:
        if options.out is not None:  # before the cell is: what is told of is there
            save(flow, cell.folder(options.out), {"cell": asdict(cell)})
    options.toy_cells.add(asdict(cell), {name: getattr(made, name) for name in NUMBERS})
    return made


def train(cell: Cell) -> tuple[Flow, Fit]:
    """Train the flow of a cell by the programs' rows for its seed, and score it on fresh ones."""
    recipe = _recipe(cell.objective)
    data = open_data(cell.toy, cell.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        flow = recipe.flow(DIM)
    rows, held_out = (
        torch.from_numpy(part.x).to(flow.like) for part in (data.train, data.validation)
    )
    history = fit(
        flow, rows, recipe=recipe, budget=cell.budget, validation=held_out, seed=cell.seed
    )
    if history.reason == "interrupted":
        raise KeyboardInterrupt
    far, scoring = distance_of(flow, cell.toy, fresh_rows(cell.toy, FRESH, cell.seed))
    numbers = (history.duration, history.steps, mean_evaluations(history), scoring, history.reason)
    return flow, Fit(far.kl, far.stderr, *numbers)


def mean_evaluations(history: History) -> float:
    """Of a training solve, over the validations before which there were any; 0 where none were."""
    solved = history.nfe[np.nan_to_num(history.nfe) > 0]
    return float(solved.mean()) if len(solved) else 0.0


def _recipe(objective: str | None) -> Recipe:
    _, recipe = default_recipe()
    return replace(recipe, objective=objective or recipe.objective)
