"""What regularization gains and costs: evaluations of a solve against the fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.networks import TRAINING
from cnf.scripts.benchmarks.overhead import one_thread
from cnf.scripts.benchmarks.truth import Distance
from cnf.scripts.plot import write_figure
from cnf.training.loop import fit

TOY = "8gaussians"
WEIGHTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
STEPS = 1000
ROWS = 20_000
CHUNK = 2000


@dataclass(frozen=True)
class Point:
    """A flow trained with the kinetic and the Jacobian regularizer.

    Attributes:
        weight: Of both.
        kl: From the truth to the flow, over fresh rows, in nats.
        stderr: Its standard error.
        evaluations: Mean of a row's solve, at the default tolerance with steps of its own.
        joint: Of a joint solve of a batch of the recipe's size at the default tolerance.
    """

    weight: float
    kl: float
    stderr: float
    evaluations: float
    joint: float


def measure(weight: float) -> Point:
    """Train with a weight, and score."""
    torch.manual_seed(0)
    recipe = replace(TRAINING, kinetic=weight, jacobian=weight)
    toy = TOYS[TOY]
    flow = recipe.flow(2)
    train, held_out = (
        torch.from_numpy(toy.sample(n, seed)) for n, seed in ((100_000, 1), (5000, 2))
    )
    fit(flow, train, recipe=recipe, steps=STEPS, validation=held_out)
    rows = toy.sample(ROWS, 3)
    log_prob, evaluations = [], []
    with torch.no_grad():
        for part in torch.from_numpy(rows).float().split(CHUNK):
            scored = flow.score_rows(part)
            log_prob.append(scored.log_prob.double().numpy())
            evaluations.append(np.mean(scored.stats.evaluations))
        batch = torch.from_numpy(rows[: recipe.batch_size]).float()
        joint = flow.with_solver(step="joint").score_rows(batch).stats.evaluations
    far = Distance.of(toy.log_prob(rows), np.concatenate(log_prob))
    own = float(np.mean(evaluations))
    return Point(weight, far.kl, far.stderr, own, float(np.mean(joint)))


def lines(out: Path | None) -> Iterator[str]:
    """The table, and where its figure went."""
    yield (
        f"Regularization on {TOY}: FFJORD's network, {STEPS} steps, one weight for kinetic and "
        f"Jacobian; KL over {ROWS} fresh rows; evaluations of a solve at rtol = atol = 1e-5"
    )
    yield f"{'weight':<10}{'KL':>10}{'stderr':>10}{'evals a row':>13}{'joint':>8}"
    points = []
    for weight in WEIGHTS:
        with one_thread():  # small tensors, and the same numbers whatever else runs
            points.append(point := measure(weight))
        yield (
            f"{weight:<10}{point.kl:>10.4f}{point.stderr:>10.4f}{point.evaluations:>13.1f}"
            f"{point.joint:>8.0f}"
        )
    if out is not None:
        yield str(_draw(points, out / "trade_off.png"))


def _draw(points: list[Point], path: Path) -> Path:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    x, y = [point.evaluations for point in points], [point.kl for point in points]
    axes.errorbar(x, y, [2 * point.stderr for point in points], marker="o", capsize=3)
    for point in points:
        axes.annotate(
            f" {point.weight:g}", (point.evaluations, point.kl), (4, 6), textcoords="offset points"
        )
    axes.set(xlabel="evaluations of a row's solve", ylabel="KL to the truth, nats")
    axes.set_ylim(bottom=0)
    axes.set_title("8gaussians: weight of kinetic and Jacobian regularization", fontsize=10)
    return write_figure(figure, path)
