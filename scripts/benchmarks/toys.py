"""The KL divergence from toys to flows that are trained in a given time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path

import torch

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.contact_sheet import SheetPanel, contact_sheet
from cnf.scripts.benchmarks.fits import ToyFit, ToyTrial, default_recipe, fit_of, trial_of
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.truth import BENCHMARK_CHUNK_ROWS, KL_ROWS, KL_TOLERANCE
from cnf.scripts.data import TOY_ROWS
from cnf.scripts.plot import write_figure
from cnf.storage import load

COMPARED_OBJECTIVES = ("hybrid", "matching", "mle")
SEED_COUNT = 5  # odd, so that the median is one of them
SEED_TOYS = ("8gaussians", "checkerboard")
CACHED_NOTE = "  cached"


def fit_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the table of all toys by the default recipe, and the path of its contact sheet."""
    name, recipe = default_recipe()
    yield _title(f"Toys: recipe {name}, objective {recipe.objective}", options)
    yield (
        f"{'toy':<14}{'KL':>10}{'stderr':>10}{'seconds':>10}{'steps':>9}{'evals':>8}{'scoring':>9}"
    )
    fits: dict[ToyTrial, ToyFit] = {}
    for toy in options.toys or TOYS:
        trial = trial_of(options, toy)
        fits[trial] = fit = fit_of(options, trial)
        yield f"{toy:<14}{_numbers(fit)}{CACHED_NOTE if fit.cached else ''}"
    yield f"evals: of a training solve; scoring: of a solve of {BENCHMARK_CHUNK_ROWS} rows"
    if options.out is not None:
        yield str(_sheet(fits, options.out))


def objective_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the table that compares objectives."""
    name, _ = default_recipe()
    yield _title(f"Objectives: recipe {name}", options)
    yield f"{'KL':<14}" + "".join(f"{objective:>20}" for objective in COMPARED_OBJECTIVES)
    for toy in options.toys or TOYS:
        fits = {each: fit_of(options, trial_of(options, toy, each)) for each in COMPARED_OBJECTIVES}
        cached = [objective for objective, fit in fits.items() if fit.cached]
        yield (
            f"{toy:<14}"
            + "".join(f"{fit.distance!s:>20}" for fit in fits.values())
            + (f"{CACHED_NOTE}: {', '.join(cached)}" if cached else "")
        )


def seed_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the table of the variation over seeds."""
    name, recipe = default_recipe()
    yield _title(f"Seeds: recipe {name}, objective {recipe.objective}, {SEED_COUNT} seeds", options)
    yield f"{'KL':<14}{'median':>10}{'worst':>10}  all, sorted"
    for toy in options.toys or SEED_TOYS:
        fits = [fit_of(options, trial_of(options, toy, seed=seed)) for seed in range(SEED_COUNT)]
        each = sorted((fit.kl for fit in fits), key=lambda kl: (isnan(kl), kl))  # failed ones last
        cached = sum(fit.cached for fit in fits)
        yield (
            f"{toy:<14}{each[SEED_COUNT // 2]:>10.4f}{each[-1]:>10.4f}  "
            + " ".join(f"{kl:.4f}" for kl in each)
            + (f"{CACHED_NOTE}: {cached}" if cached else "")
        )


def _title(what: str, options: BenchmarkOptions) -> str:
    return (
        f"{what}; {options.budget:g} s each, {TOY_ROWS['train']} training rows, "
        f"threads: {torch.get_num_threads()}; KL over {KL_ROWS} fresh rows, exact trace, "
        f"rtol = atol = {KL_TOLERANCE:g}"
    )


def _numbers(fit: ToyFit) -> str:
    """Return the columns of a fit, followed by the reason of a failure."""
    failed = f"  {fit.reason}" if fit.failed else ""
    return (
        f"{fit.kl:>10.4f}{fit.stderr:>10.4f}{fit.seconds:>10.1f}{fit.steps:>9}"
        f"{fit.training:>8.1f}{fit.scoring:>9.1f}{failed}"
    )


def _sheet(fits: Mapping[ToyTrial, ToyFit], out: Path) -> Path:
    """Draw the saved flows."""
    panels = [
        SheetPanel(trial.toy, None if fit.failed else load(trial.folder(out)), fit.distance)
        for trial, fit in fits.items()
    ]
    return write_figure(contact_sheet(panels), out / "toys.png")
