"""Posteriors of sbibm's tasks by flows and by sbi's estimators: two-sample tests and times."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import getsource
from math import nan
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from cnf.adapters.simulation_flow import (
    GAUSSIAN_HIDDEN,
    GAUSSIAN_STEPS,
    gaussian_recipe,
    simulation_recipe,
)
from cnf.flow import Flow
from cnf.scripts.benchmarks.compared import INFERENCE_METHODS
from cnf.scripts.benchmarks.measure import Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.posteriors import MEMBERS, FittedPosterior, fit_ours, steps_for
from cnf.scripts.benchmarks.simulators import INFERENCE_TASKS
from cnf.storage import CONFIG, load_flow, save
from cnf.utils.random import seeded

Array = NDArray[np.float32]

DRAWS = 10_000  # of each posterior, as many as sbibm has of the reference
HELD_OUT, HELD_OUT_SEED = 2000, 10**6  # simulations that log p is averaged over
SIMULATIONS = (10_000, 1000)
OBSERVATIONS = 10
FAILED, FAILURES = "failed", (RuntimeError, ValueError, ArithmeticError)
OWN = ("ours", "mixture")  # methods of this project
PUBLISHED = {
    ("two_moons", 10_000): (0.61, 0.55),
    ("slcp", 10_000): (0.90, 0.84),
    ("gaussian_linear", 10_000): (0.55, 0.54),
    ("sir", 10_000): (0.68, 0.56),
    ("bernoulli_glm", 10_000): (0.68, 0.61),
    ("two_moons", 1000): (0.73, nan),
    ("slcp", 1000): (0.98, nan),
    ("gaussian_linear", 1000): (0.69, nan),
    ("sir", 1000): (0.82, nan),
    ("bernoulli_glm", 1000): (0.86, nan),
}
"""The mean accuracy of NPE and of SNPE by task and number of simulations.

Source: Lueckmann et al. (2021), Benchmarking simulation-based inference: its stored results.
"""


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each method, number of simulations and task, whose parts are kept."""
    tasks = task_files(options.sbibm)
    if options.observations > OBSERVATIONS:
        raise ValueError(
            f"Expected --observations of at most {OBSERVATIONS}, as sbibm has; got "
            f"{options.observations}"
        )
    yield (
        "Accuracy of a classifier that tells draws from the reference posterior (C2ST, 0.5 where "
        f"it cannot), mean over the first {options.observations} observations, beside the "
        f"published ones of NPE and SNPE; NLL of {HELD_OUT} further simulations, where "
        "NPE's mass outside the prior counts against it; CPU seconds; the steps of ours were "
        f"chosen on these tasks, NPE and FMPE are as by default; {threads_used()}"
    )
    for method in options.estimators or INFERENCE_METHODS:
        for simulations in options.simulations or SIMULATIONS:
            for task in options.tasks or INFERENCE_TASKS:
                yield InferenceTrial(method, task, simulations).row(options, tasks)


@dataclass(frozen=True)
class StoredObservation:
    """An observation of sbibm's: its seed, true parameters, data, and reference posterior.

    Shapes: (1, parameters), (1, numbers), (draws, parameters).
    """

    seed: int
    parameters: Tensor
    data: Tensor
    reference: Tensor


def task_files(folder: Path | None) -> Path:
    """Return the folder of the tasks in sbibm's unpacked wheel.

    Raises:
        ValueError: The files are not there.
    """
    tasks = Path(folder or "", "sbibm", "tasks")
    if folder is None or not (tasks / "two_moons" / "files").is_dir():
        raise ValueError(
            f"Expected --sbibm to be the folder of sbibm's unpacked wheel; got {folder}: pip "
            "download --no-deps sbibm==1.1.0, unzip the file into a folder, and give the folder"
        )
    return tasks


def stored_observation(tasks: Path, task: str, number: int) -> StoredObservation:
    """Read an observation, counted from 1."""
    folder = tasks / task / "files" / f"num_observation_{number}"
    seed = int(pd.read_csv(folder / "observation_seed.csv")["observation_seed"][0])
    names = ("true_parameters.csv", "observation.csv", "reference_posterior_samples.csv.bz2")
    frames = (pd.read_csv(folder / name) for name in names)
    return StoredObservation(seed, *(torch.tensor(each.values).float() for each in frames))


def c2st(reference: Tensor, draws: Tensor, seed: int = 1) -> float:
    """Return the accuracy of sbibm's classifier on a reference and draws, (rows, parameters) each.

    Columns are standardised by the reference; a perceptron of two hidden layers, ten units for
    each column, is trained on four fifths at a time and tested on the other.

    Source: Lopez-Paz & Oquab (2017), Revisiting classifier two-sample tests; sbibm 1.1.0, c2st.

    Example:
        >>> rows = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> c2st(rows, rows + 10.0)
        1.0
    """
    mean, spread = reference.mean(0), reference.std(0)
    data = torch.cat([(each - mean) / spread for each in (reference, draws)]).numpy()
    labels = np.repeat([0.0, 1.0], [len(reference), len(draws)])
    width = 10 * reference.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    with (
        warnings.catch_warnings()
    ):  # scikit-learn would go on with a classifier that is interrupted
        warnings.filterwarnings("error", "Training interrupted")
        try:
            scores = cross_val_score(classifier, data, labels, cv=folds, error_score="raise")
        except UserWarning:
            raise KeyboardInterrupt from None
    return float(scores.mean())


@dataclass(frozen=True)
class InferenceTrial:
    """A method on a task with a number of simulations, the same for all methods."""

    method: str
    task: str
    simulations: int
    seed: int = 0

    def row(self, options: BenchmarkOptions, tasks: Path) -> Row:
        """Return the results; the fit and each observation are run unless they are cached."""
        observations = [
            stored_observation(tasks, self.task, number + 1)
            for number in range(options.observations)
        ]
        key, folder = self.key(), options.results.model_folder(self.key())
        made = _Draws(None if folder is None else folder / "draws.npy")
        fitted = options.results.recall({**key, "part": "fit"}, lambda: self._fit(made, tasks))

        def compare(number: int) -> Row:
            drawn = torch.from_numpy(made.read()[number])
            return {"C2ST": c2st(observations[number].reference, drawn), "note": ""}

        numbers = [] if fitted["note"].startswith(FAILED) else range(options.observations)
        found = [
            options.results.recall({**key, "observation": number + 1}, partial(compare, number))
            for number in numbers
        ]
        accuracies = [each["C2ST"] for each in found]
        average = Average.of(accuracies)
        npe, snpe = PUBLISHED.get((self.task, self.simulations), (nan, nan))
        names = {"task": self.task, "simulations": self.simulations, "method": self.method}
        scores = {
            "C2ST": average.mean,
            "± C2ST": average.stderr,
            "worst": max(accuracies, default=nan),
        }
        return {**names, **scores, "NPE": npe, "SNPE": snpe, **fitted}

    def key(self) -> Row:
        """Return the key of the results."""
        fit = INFERENCE_METHODS[self.method]
        settings: list[Any] = [version("sbi")]
        if self.method in OWN:
            recipes = simulation_recipe(self.simulations), gaussian_recipe(self.simulations)
            parts = GAUSSIAN_STEPS, GAUSSIAN_HIDDEN, steps_for(self.simulations), MEMBERS
            settings = [*recipes, *parts, getsource(fit_ours)]
        return key_of(vars(self), getsource(fit), DRAWS, HELD_OUT, *settings)

    def flow(self, options: BenchmarkOptions) -> Flow:
        """Return our flow, as it was kept if it was fitted before."""
        folder = options.results.model_folder(self.key())
        if folder is not None and (folder / CONFIG).exists():
            return load_flow(folder)
        flow = self.fitted(folder).estimator
        assert isinstance(flow, Flow)
        return flow

    def _fit(self, made: _Draws, tasks: Path) -> Row:
        """Fit the method, draw for all observations, and score further simulations.

        A failure is noted and does not end the table.
        """
        row: Row = dict.fromkeys(("NLL", "± NLL", "training s", "sampling s"), nan)
        try:
            return row | self._measured(made, tasks)
        except FAILURES as error:
            return row | {"note": f"{FAILED}: {' '.join(str(error).split())}"}

    def _measured(self, made: _Draws, tasks: Path) -> Row:
        task = INFERENCE_TASKS[self.task]
        times = [process_time()]
        posterior = self.fitted(None if made.path is None else made.path.parent)
        times.append(process_time())
        observed = (stored_observation(tasks, self.task, i + 1).data for i in range(OBSERVATIONS))
        with seeded(self.seed):
            draws = np.stack([posterior.sample(DRAWS, each).numpy() for each in observed])
        if not np.isfinite(draws).all():
            raise ValueError(
                f"Expected finite draws; got {(~np.isfinite(draws)).sum()} that are not"
            )
        made.write(draws)
        times.append(process_time())
        nll = Average(nan, nan)
        if posterior.log_prob is not None:
            nll = Average.of(-posterior.log_prob(*task.draw(HELD_OUT, HELD_OUT_SEED)).numpy())
        training, sampling = np.diff(times).tolist()
        scores = {"NLL": nll.mean, "± NLL": nll.stderr}
        return {**scores, "training s": training, "sampling s": sampling, "note": ""}

    def fitted(self, folder: Path | None = None) -> FittedPosterior:
        """Return the posterior that the method fits; a flow is kept in a folder."""
        task = INFERENCE_TASKS[self.task]
        pairs = task.draw(self.simulations, self.seed)
        posterior: FittedPosterior = INFERENCE_METHODS[self.method](task, *pairs, self.seed)
        if folder is not None and isinstance(posterior.estimator, Flow):
            save(posterior.estimator, folder)
        return posterior


@dataclass
class _Draws:
    """Draws for each observation, (observations, draws, parameters), in a file or in memory."""

    path: Path | None
    values: Array | None = None

    def write(self, values: Array) -> None:
        self.values = values
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.save(self.path, values)

    def read(self) -> Array:
        if self.values is None and self.path is not None:
            self.values = np.load(self.path)
        assert self.values is not None  # written by the fit, whose results are cached after it
        return self.values
