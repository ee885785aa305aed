"""The KL divergence from toys to flows that are trained in a given time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import getsource
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.ode import SolveError
from cnf.plotting import draw_density
from cnf.plotting.evolution import log_prob_of, quick
from cnf.scripts.benchmarks import density
from cnf.scripts.benchmarks.compared import METHODS
from cnf.scripts.benchmarks.density import StandardizedSplit, trained_flow
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.data import TOY_ROWS, open_data
from cnf.scripts.figures import write_figure
from cnf.scripts.rows import Array
from cnf.storage import load_flow, save
from cnf.training import History, TrainingError
from cnf.training.recipes import Recipe, choose_recipe

KL_ROWS = 20_000  # over which a KL divergence is estimated
KL_TOLERANCE = 1e-6
# Random streams of a seed beyond those that `cnf.scripts.data` draws from.
KL_STREAM, BATCH_STREAM = len(TOY_ROWS) + 1, len(TOY_ROWS) + 2
COMPARED_OBJECTIVES = ("hybrid", "matching", "mle")
SEED_COUNT = 5  # odd, so that the median is one of them
SEED_TOYS = ("8gaussians", "checkerboard")
FIT_COLUMNS = ("KL", "stderr", "seconds", "steps", "evals", "scoring")
PANELS_IN_A_ROW = 4
PANEL_PIXELS = 120  # along each side of a panel
TRADE_OFF_TOY = "8gaussians"
REGULARIZER_WEIGHTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
TRADE_OFF_STEPS = 1000
TRADE_OFF_COLUMNS = ("weight", "KL", "stderr", "evals a row", "joint")
TRADE_OFF_RECIPE = Recipe(
    objective="mle",
    hidden=(64, 64, 64),
    activation="tanh",
    batch_size=512,
    learning_rate=2e-2,
    warmup=0.02,
    max_grad_norm=5.0,
    ema_decay=0.995,
    method="dopri5",
)


def fit_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of all toys by the default recipe and zuko's NSF, and a figure's path."""
    yield _title("Toys", options)
    flows: dict[str, tuple[Flow | None, Average]] = {}
    for toy in options.toys or TOYS:
        row = fit_of(options, toy)
        spline = spline_of(options, toy)
        numbers = {name: row[name] for name in FIT_COLUMNS}
        theirs = {"NSF's KL": spline["KL"], "NSF's stderr": spline["stderr"]}
        yield {"toy": toy, **numbers, **theirs, "note": _notes([row, spline])}
        folder = options.results.model_folder(fit_key(options, toy))
        flow = None if folder is None or isnan(row["KL"]) else load_flow(folder)
        flows[toy] = (flow, Average(row["KL"], row["stderr"]))
    yield f"evals: of a training solve; scoring: of a solve of {BENCHMARK_CHUNK_ROWS} rows"
    yield "NSF: zuko's neural spline flow, trained for as long on the same rows, standardised"
    if options.out is not None:
        yield str(write_figure(contact_sheet(flows), options.out / "toys.png"))


def objective_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table that compares objectives."""
    yield _title("Objectives", options)
    for toy in options.toys or TOYS:
        fits = {each: fit_of(options, toy, each) for each in COMPARED_OBJECTIVES}
        far = {each: Average(fit["KL"], fit["stderr"]) for each, fit in fits.items()}
        yield {"KL": toy, **far, "note": _notes(list(fits.values()))}


def seed_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of the variation over seeds."""
    yield _title(f"{SEED_COUNT} seeds", options)
    for toy in options.toys or SEED_TOYS:
        fits = [fit_of(options, toy, seed=seed) for seed in range(SEED_COUNT)]
        each = np.sort([fit["KL"] for fit in fits]).tolist()  # NaN, where a fit failed, is last
        shown = " ".join(f"{kl:.4f}" for kl in each)
        median, worst = each[SEED_COUNT // 2], each[-1]
        yield {"KL": toy, "median": median, "worst": worst, "all": shown, "note": _notes(fits)}


def _title(subject: str, options: BenchmarkOptions) -> str:
    name, recipe = toy_recipe()
    return (
        f"{subject}: recipe {name}, objective {recipe.objective} unless named; "
        f"{options.budget:g} s each, {TOY_ROWS['train']} training rows, {threads_used()}; "
        f"KL over {KL_ROWS} fresh rows, exact trace, rtol = atol = {KL_TOLERANCE:g}"
    )


def _notes(rows: Sequence[Row]) -> str:
    return "; ".join(dict.fromkeys(row["note"] for row in rows if row["note"]))


def toy_recipe(objective: str | None = None) -> tuple[str, Recipe]:
    """Return the default recipe of toys with its name, and with another objective if given."""
    name, recipe = choose_recipe("toy", TOY_ROWS["train"], dim=2)
    return name, replace(recipe, objective=objective or recipe.objective)


def fit_key(
    options: BenchmarkOptions, toy: str, objective: str | None = None, seed: int = 0
) -> Row:
    """Return the key of a fit, with the recipe's objective when None is given."""
    _, recipe = toy_recipe(objective)
    names = {"toy": toy, "objective": recipe.objective, "budget": options.budget, "seed": seed}
    return key_of(names, recipe)


def fit_of(options: BenchmarkOptions, toy: str, objective: str | None = None, seed: int = 0) -> Row:
    """Return the fit of a flow to a toy, trained unless it is cached.

    Returns:
        `FIT_COLUMNS`: the KL divergence from the truth to the flow over fresh rows, in nats, with
        its standard error; seconds and steps of training; mean evaluations of a training solve, 0
        without any, and of a scoring solve. All are NaN where training or scoring failed.
    """
    key = fit_key(options, toy, objective, seed)
    return options.results.recall(key, partial(_train, key, options.results.model_folder(key)))


def _train(key: Row, folder: Path | None) -> Row:
    """Train a flow on the programs' rows for its seed, score it on fresh rows, and save it."""
    toy, seed, (_, recipe) = key["toy"], key["seed"], toy_recipe(key["objective"])
    try:
        flow, history = _fitted(recipe, toy, seed, budget=key["budget"])
        far, scoring = distance_of(flow, toy, fresh_rows(toy, KL_ROWS, seed))
    except (TrainingError, SolveError) as error:  # the table continues with its next row
        return dict.fromkeys(FIT_COLUMNS, nan) | {"note": f"failed: {error}"}
    if folder is not None:  # before the result, so that each result has its flow
        save(flow, folder, {"result": dict(key)})
    solved = history.nfe[np.nan_to_num(history.nfe) > 0]  # matching has no solves
    training = float(solved.mean()) if len(solved) else 0.0
    numbers = (far.mean, far.stderr, history.duration, history.steps, training, scoring)
    return dict(zip(FIT_COLUMNS, numbers, strict=True)) | {"note": ""}


def _fitted(recipe: Recipe, toy: str, seed: int, **length: Any) -> tuple[Flow, History]:
    data = open_data(toy, seed)
    return trained_flow(recipe, data.train.x, data.validation.x, seed, **length)


def spline_of(options: BenchmarkOptions, toy: str, seed: int = 0) -> Row:
    """Return the fit of zuko's neural spline flow to a toy, trained unless it is cached.

    Returns:
        "KL" to the flow over the fresh rows of `fit_of`, in nats, with its "stderr".
    """
    names = {"toy": toy, "method": "spline", "budget": options.budget, "seed": seed}
    key = key_of(names, getsource(density))
    return options.results.recall(key, partial(_train_spline, toy, options.budget, seed))


def _train_spline(toy: str, budget: float, seed: int) -> Row:
    """Train a spline flow in units of the training rows' deviations, and score it in the toy's."""
    data, rows = open_data(toy, seed), fresh_rows(toy, KL_ROWS, seed)
    center, scale = data.train.x.mean(0), data.train.x.std(0)
    own = (data.train.x, data.validation.x, rows)
    parts = StandardizedSplit(*((each - center) / scale for each in own))
    try:
        fitted = METHODS["spline"](parts, budget, seed)
    except ValueError as error:  # the table continues with its next row
        return {"KL": nan, "stderr": nan, "note": f"NSF failed: {error}"}
    log_prob = fitted.log_prob(parts.test) - np.log(scale).sum()
    far = Average.of(TOYS[toy].log_prob(rows) - log_prob)
    return {"KL": far.mean, "stderr": far.stderr, "note": ""}


def fresh_rows(toy: str, rows: int, seed: int, stream: int = KL_STREAM) -> Array:
    """Draw rows (rows, 2) of a toy that the programs neither train nor select on."""
    return TOYS[toy].sample(rows, np.random.default_rng([seed, stream]))


@torch.no_grad()
def distance_of(flow: Flow, toy: str, rows: Array) -> tuple[Average, float]:
    """Return the KL divergence E_p[log p − log q] from a toy p to a flow q, in nats.

    The mean is over rows (n, 2) drawn from the toy, by solves with exact traces at `KL_TOLERANCE`,
    whose mean evaluations are returned as well.
    """
    tight = flow.with_solver(rtol=KL_TOLERANCE, atol=KL_TOLERANCE, step="joint", divergence="exact")
    parts = torch.from_numpy(rows).to(flow.like).split(BENCHMARK_CHUNK_ROWS)
    scored = [tight.score_rows(part) for part in parts]
    log_prob = torch.cat([each.log_prob.double() for each in scored]).numpy()
    evaluations = [np.mean(each.stats.evaluations) / max(1, flow.solves) for each in scored]
    return Average.of(TOYS[toy].log_prob(rows) - log_prob), float(np.mean(evaluations))


def contact_sheet(flows: Mapping[str, tuple[Flow | None, Average]]) -> Figure:
    """Draw the true density of each toy above its flow's, which may be None, and the KL."""
    columns = min(PANELS_IN_A_ROW, len(flows))
    bands = -(-len(flows) // PANELS_IN_A_ROW)
    figure = Figure(figsize=(2.3 * columns + 0.3, 5.0 * bands), layout="constrained")
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    axes = figure.subplots(2 * bands, columns, squeeze=False, subplot_kw=bare)
    for i, (name, (flow, distance)) in enumerate(flows.items()):
        band, column = divmod(i, PANELS_IN_A_ROW)
        (truth, model), toy = axes[2 * band : 2 * band + 2, column], TOYS[name]
        draw_density(truth, toy.log_prob, toy.bounds, grid=PANEL_PIXELS).set_title(name)
        model.set_xlabel("failed" if flow is None else f"KL {distance}")
        if flow is not None:  # the largest true density is the brightest colour of both
            ceiling = truth.get_images()[0].get_clim()[1]
            log_prob = partial(log_prob_of, quick(flow))
            draw_density(model, log_prob, toy.bounds, ceiling, PANEL_PIXELS)
        if column == 0:
            truth.set_ylabel("truth")
            model.set_ylabel("flow")
    return figure


def regularizer_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of a flow's KL and evaluations by weight, and the path of its figure.

    Evaluations are the mean for a row in per-sample steps, and those of a batch in joint steps.
    """
    yield (
        f"Regularization on {TRADE_OFF_TOY}: FFJORD's network, {TRADE_OFF_STEPS} steps, one weight "
        f"for kinetic and Jacobian; KL over {KL_ROWS} fresh rows; solves at 1e-5"
    )
    points: list[Row] = []
    rows = fresh_rows(TRADE_OFF_TOY, KL_ROWS, 0)
    x = torch.from_numpy(rows[:BENCHMARK_CHUNK_ROWS]).float()
    for weight in REGULARIZER_WEIGHTS:
        recipe = replace(TRADE_OFF_RECIPE, regularizers={"kinetic": weight, "jacobian": weight})
        flow, _ = _fitted(recipe, TRADE_OFF_TOY, 0, steps=TRADE_OFF_STEPS)
        far, _ = distance_of(flow, TRADE_OFF_TOY, rows)
        joint = flow.with_solver(step="joint")
        with torch.no_grad():
            stats, batch = flow.score_rows(x).stats, joint.score_rows(x[: recipe.batch_size]).stats
        counts = float(np.mean(stats.evaluations)), int(batch.evaluations)
        numbers = (weight, far.mean, far.stderr, *counts)
        points.append(dict(zip(TRADE_OFF_COLUMNS, numbers, strict=True)))
        yield points[-1]
    if options.out is not None:
        yield str(_trade_off_figure(points, options.out / "trade_off.png"))


def _trade_off_figure(points: Sequence[Row], path: Path) -> Path:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    weights, kl, stderr, evaluations, _ = zip(*(point.values() for point in points), strict=True)
    axes.errorbar(evaluations, kl, 2 * np.array(stderr), marker="o", capsize=3)
    for weight, x, y in zip(weights, evaluations, kl, strict=True):
        axes.annotate(f" {weight:g}", (x, y), (4, 6), textcoords="offset points")
    axes.set(xlabel="evaluations of a row's solve", ylabel="KL to the truth, nats", ylim=(0, None))
    axes.set_title("8gaussians: weight of kinetic and Jacobian regularization", fontsize=10)
    return write_figure(figure, path)
