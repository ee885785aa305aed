"""How close flows come to the toys' densities in a given time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path

import torch

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.contact_sheet import Panel, contact_sheet
from cnf.scripts.benchmarks.fits import Cell, Fit, cell_of, default_recipe, fit_of
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.truth import CHUNK, FRESH, TOLERANCE
from cnf.scripts.data import TOY_ROWS
from cnf.scripts.plot import write_figure
from cnf.storage import load

COMPARED = ("hybrid", "matching", "mle")
SEEDS = 5  # odd, so that one of them is the median
SEEDED = ("8gaussians", "checkerboard")
KEPT = "  there already"


def fit_lines(options: Options) -> Iterator[str]:
    """The table of all toys by the recipe's own objective, and where its contact sheet went."""
    name, recipe = default_recipe()
    yield _title(f"Toys: recipe {name}, objective {recipe.objective}", options)
    yield (
        f"{'toy':<14}{'KL':>10}{'stderr':>10}{'seconds':>10}{'steps':>9}{'evals':>8}{'scoring':>9}"
    )
    fits: dict[Cell, Fit] = {}
    for toy in options.toys or TOYS:
        cell = cell_of(options, toy)
        fits[cell] = fit = fit_of(options, cell)
        yield f"{toy:<14}{_numbers(fit)}{KEPT if fit.kept else ''}"
    yield f"evals: of a training solve; scoring: of a solve of {CHUNK} rows"
    if options.out is not None:
        yield str(_sheet(fits, options.out))


def objective_lines(options: Options) -> Iterator[str]:
    """The table of objectives side by side."""
    name, _ = default_recipe()
    yield _title(f"Objectives: recipe {name}", options)
    yield f"{'KL':<14}" + "".join(f"{objective:>20}" for objective in COMPARED)
    for toy in options.toys or TOYS:
        fits = {each: fit_of(options, cell_of(options, toy, each)) for each in COMPARED}
        kept = [objective for objective, fit in fits.items() if fit.kept]
        yield (
            f"{toy:<14}"
            + "".join(f"{fit.distance!s:>20}" for fit in fits.values())
            + (f"{KEPT}: {', '.join(kept)}" if kept else "")
        )


def seed_lines(options: Options) -> Iterator[str]:
    """The table of what the seed changes."""
    name, recipe = default_recipe()
    yield _title(f"Seeds: recipe {name}, objective {recipe.objective}, {SEEDS} seeds", options)
    yield f"{'KL':<14}{'median':>10}{'worst':>10}  all, sorted"
    for toy in options.toys or SEEDED:
        fits = [fit_of(options, cell_of(options, toy, seed=seed)) for seed in range(SEEDS)]
        each = sorted((fit.kl for fit in fits), key=lambda kl: (isnan(kl), kl))  # failed ones last
        kept = sum(fit.kept for fit in fits)
        yield (
            f"{toy:<14}{each[SEEDS // 2]:>10.4f}{each[-1]:>10.4f}  "
            + " ".join(f"{kl:.4f}" for kl in each)
            + (f"{KEPT}: {kept}" if kept else "")
        )


def _title(what: str, options: Options) -> str:
    return (
        f"{what}; {options.budget:g} s each, {TOY_ROWS['train']} training rows, "
        f"threads: {torch.get_num_threads()}; KL over {FRESH} fresh rows, exact trace, "
        f"rtol = atol = {TOLERANCE:g}"
    )


def _numbers(fit: Fit) -> str:
    """A fit's columns, with what failed behind them."""
    failed = f"  {fit.reason}" if fit.failed else ""
    return (
        f"{fit.kl:>10.4f}{fit.stderr:>10.4f}{fit.seconds:>10.1f}{fit.steps:>9}"
        f"{fit.training:>8.1f}{fit.scoring:>9.1f}{failed}"
    )


def _sheet(fits: Mapping[Cell, Fit], out: Path) -> Path:
    """Draw the flows as they were saved."""
    panels = [
        Panel(cell.toy, None if fit.failed else load(cell.folder(out)), fit.distance)
        for cell, fit in fits.items()
    ]
    return write_figure(contact_sheet(panels), out / "toys.png")
