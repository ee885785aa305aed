"""Outlier detectors on labelled sets: ours, and which score works, beside others."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from cnf.datasets import DATA_DIR
from cnf.outliers import noise_flow
from cnf.outliers.detector import OutlierModel, fit_detector
from cnf.outliers.noise_flow import NoiseFlow
from cnf.scripts.benchmarks.compared import OUTLIER_FOLDER, peer
from cnf.scripts.benchmarks.measure import Array, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of

MAX_SET_ROWS = 50_000  # of a set, chosen by the seed
NEIGHBORS = 5
FOREST = "forest"
VAE_SEEDS = 1
OUR_MODULES = (
    *("outliers.detector", "outliers.noise_flow", "outliers.noisy_mixture", "outliers.training"),
    *("training.averaged_run", "training.averaged_recipe", "training.run", "training.optimizer"),
    *("fields.concat_squash",),
)
"""The modules of `cnf` that decide a fit of ours."""


@dataclass(frozen=True, eq=False)
class OutlierSplit:
    """Rows to train on and to test, in units of the training rows' deviations.

    Attributes:
        train: Training rows; columns that are constant in them keep their units.
        test: Test rows.
        outlier: Which test rows are outliers.
        contamination: The share of outliers among the training rows.
    """

    train: Array
    test: Array
    outlier: Array
    contamination: float

    @staticmethod
    def of(x: Array, y: Array, seed: int, contaminated: bool = False) -> OutlierSplit:
        """Split rows, with y = 1 for outliers.

        Half of the normal rows train, the rest and all outliers test; where the training rows are
        contaminated, half of all rows train, and the rest test.
        """
        generator = np.random.default_rng(seed)
        if len(x) > MAX_SET_ROWS:
            chosen = generator.permutation(len(x))[:MAX_SET_ROWS]
            x, y = x[chosen], y[chosen]
        rows = np.arange(len(x)) if contaminated else np.flatnonzero(y == 0)
        train, test = np.split(generator.permutation(rows), [len(rows) // 2])
        if not contaminated:
            test = np.concatenate([test, np.flatnonzero(y == 1)])
        known, asked = x[train], x[test]
        center, scale = known.mean(0), np.where(np.ptp(known, 0) > 0, known.std(0), 1.0)
        known, asked = (known - center) / scale, (asked - center) / scale
        return OutlierSplit(known, asked, y[test] == 1, float((y[train] == 1).mean()))


Detector = Callable[[OutlierSplit, float, int], Mapping[str, Array]]
"""A function of a split, seconds and a seed that returns scores of outlyingness by their names."""


def fit_ours(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return the scores of `fit_detector`."""
    return {"cnf": -_model(split, budget, seed).score(torch.from_numpy(split.test)).numpy()}


def _model(split: OutlierSplit, budget: float, seed: int) -> OutlierModel:
    rows = torch.from_numpy(split.train)
    options: dict[str, Any] = {"budget": budget, "seed": seed, "threads": 1}
    return fit_detector(rows, contamination=split.contamination, **options)


def fit_neighbors(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return the distances to the fifth neighbour, the largest of the five, as PyOD's KNN."""
    neighbors = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(split.train))).fit(split.train)
    return {"knn": neighbors.kneighbors(split.test)[0][:, -1]}


def fit_local_factor(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return scikit-learn's local outlier factors, with its defaults."""
    count = min(20, len(split.train) - 1)
    factor = LocalOutlierFactor(n_neighbors=count, novelty=True).fit(split.train)
    return {"lof": -factor.score_samples(split.test)}


def fit_forest(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return the scores of scikit-learn's isolation forest, with its defaults."""
    forest = IsolationForest(random_state=seed).fit(split.train)
    return {FOREST: -forest.score_samples(split.test)}


def fit_vae(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return the reconstruction errors of PyOD's VAE, with its defaults."""
    model = peer("pyod.models.vae").VAE(random_state=seed, verbose=0)
    model.fit(split.train)
    return {"vae": np.asarray(model.decision_function(split.test))}


def fit_scores(split: OutlierSplit, budget: float, seed: int) -> dict[str, Array]:
    """Return many scores of one fit of ours."""
    model = _model(split, budget, seed)
    z = model.standardized(torch.from_numpy(split.test))
    with torch.no_grad():
        found = {name: score(model.flow, z) for name, score in CANDIDATES.items()}
    return {name: np.minimum(each.numpy(), 1e300) for name, each in found.items()}


def _mixture_score(flow: NoiseFlow, z: torch.Tensor, sigma: float) -> torch.Tensor:
    return -flow.mixture.log_prob(z, torch.tensor(sigma).to(z))


def _residual(flow: NoiseFlow, z: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return |x − D(x, σ)|, the noise's variance times the norm of the score of log p_σ."""
    _, mean = flow.denoise(z[None], torch.tensor([sigma]).to(z))
    return (z - mean[0]).square().sum(1).sqrt()


def _energy(flow: NoiseFlow, z: torch.Tensor) -> torch.Tensor:
    """Return ∫ |v|² dt along the path from a row to the base, by explicit midpoints."""
    return _path(flow, z)[1]


def _radius(flow: NoiseFlow, z: torch.Tensor) -> torch.Tensor:
    """Return the norm of the point of the base that a row comes from."""
    return _path(flow, z)[0].square().sum(1).sqrt()


def _path(flow: NoiseFlow, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = noise_flow.SIGMAS
    times = 1 / (1 + torch.logspace(np.log10(low), np.log10(high), 13).to(z))
    x, energy = times[0] * z, z.new_zeros(len(z))
    for begin, end in pairwise(times):
        step = end - begin
        middle = x + 0.5 * step * flow.velocity(begin, x)
        velocity = flow.velocity(begin + 0.5 * step, middle)
        x, energy = x + step * velocity, energy + step.abs() * velocity.square().sum(1)
    return x, energy


CANDIDATES: dict[str, Callable[[NoiseFlow, torch.Tensor], torch.Tensor]] = {
    "score": lambda flow, z: -flow.score(z),
    **{f"mixture {each:g}": partial(_mixture_score, sigma=each) for each in (0.05, 0.2, 0.5, 1.0)},
    **{f"residual {each:g}": partial(_residual, sigma=each) for each in (0.2, 0.5, 1.0)},
    "radius": _radius,
    "energy": _energy,
}
"""Scores of rows in a model's coordinates, larger for outliers."""
DETECTORS: dict[str, Detector] = {
    "cnf": fit_ours,
    "knn": fit_neighbors,
    "lof": fit_local_factor,
    FOREST: fit_forest,
}


def _lines(
    options: BenchmarkOptions, detectors: Mapping[str, Detector], contaminated: bool, seeds: int
) -> Iterator[TableItem]:
    """Yield the AUROC on each set and seed, each detector's kept as it ends, then the means."""
    rows = "half of the normal rows train"
    if contaminated:
        rows = "half of all rows train, of which cnf alone is told the share of outliers"
    yield (
        f"AUROC in percent; {rows}; seeds: {seeds}, {threads_used()}; {options.budget:g} s of wall "
        "clock at most to train cnf, and seconds of the processor in all"
    )
    found: list[dict[str, float]] = []
    for seed in range(seeds):
        for path in outlier_files(options.data_dir, options.sets):
            trials = [
                _trial_of(options, path, seed, name, each, contaminated)
                for name, each in detectors.items()
            ]
            notes = [each.pop("note") for each in trials]
            cells = {name: value for each in trials for name, value in each.items()}
            if cells:
                found.append(cells)
                yield {"set": path.stem, "seed": seed, **cells, "note": ", ".join({*notes} - {""})}
    if not found:
        sets = ", ".join(options.sets) or "the folder's"
        raise ValueError(f"Expected sets with outliers and normal rows to test; got {sets}")
    yield ""
    for title, function in (("mean", np.mean), ("worst", np.min), ("largest", np.max)):
        columns = {name: function([each[name] for each in found]) for name in found[0]}
        yield {title: len(found), **{name: float(value) for name, value in columns.items()}}


def novelty_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the AUROC of detectors that are trained on normal rows."""
    yield from _lines(options, DETECTORS, False, options.seeds)


def contaminated_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the AUROC of detectors that are trained on rows with outliers."""
    yield from _lines(options, DETECTORS, True, options.seeds)


def score_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the AUROC of scores of one flow."""
    yield from _lines(options, {"scores": fit_scores}, False, options.seeds)


def vae_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the AUROC of PyOD's VAE, trained on normal rows, on one seed: it is slow."""
    yield from _lines(options, {"vae": fit_vae}, False, min(options.seeds, VAE_SEEDS))


def _trial_of(
    options: BenchmarkOptions, path: Path, seed: int, name: str, fit: Detector, contaminated: bool
) -> Row:
    """Return the trial of a detector on a split of a set, run unless it is cached."""
    with np.load(path) as arrays:
        x, y = np.asarray(arrays["X"], np.float64), np.asarray(arrays["y"])
    names = {"set": path.stem, "seed": seed, "detector": name, "contaminated": contaminated}
    if name in ("cnf", "scores"):
        key = key_of(names, x, y, options.budget, *sources_of(__name__, *OUR_MODULES))
    else:
        host = version("pyod" if name == "vae" else "scikit-learn")
        key = key_of(names, x, y, host, *sources_of(__name__))

    def run() -> Row:
        split = OutlierSplit.of(x, y, seed, contaminated)
        if split.outlier.all() or not split.outlier.any():
            return {"note": ""}
        begin = process_time()
        scores = fit(split, options.budget, seed)
        seconds = process_time() - begin
        found = {each: 100 * roc_auc_score(split.outlier, value) for each, value in scores.items()}
        return {**found, f"{name} CPU s": seconds, "note": ""}

    return options.results.recall(key, run)


@cache
def sources_of(name: str, *ours: str) -> tuple[str, ...]:
    """Return the code of a module and of modules of `cnf`, as it was when they were first read."""
    modules = (import_module(each) for each in (name, *(f"cnf.{each}" for each in ours)))
    return tuple(inspect.getsource(each) for each in modules)


def outlier_files(data_dir: str | None, names: Sequence[str] = ()) -> list[Path]:
    """Return the files of labelled sets in a folder, the environment's CNF_DATA when None.

    Raises:
        ValueError: The folder has no such files, or a name has no file.
    """
    folder = Path(data_dir or os.environ.get(DATA_DIR) or "", OUTLIER_FOLDER)
    files = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not files:
        raise ValueError(
            f"Expected a folder with {OUTLIER_FOLDER}/*.npz, each of rows X and labels y, 1 for "
            f"outliers; got {data_dir or os.environ.get(DATA_DIR) or 'none'}: give --data-dir DIR, "
            f"or set {DATA_DIR}"
        )
    for name in names:
        if name not in files:
            raise ValueError(f"Expected --sets among {', '.join(files)}; got {name!r}")
    return [files[name] for name in names or files]
