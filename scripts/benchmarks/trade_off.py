"""Gain and cost of regularization: evaluations of a solve against the fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.networks import TRAINING_RECIPE
from cnf.scripts.benchmarks.overhead import one_thread
from cnf.scripts.benchmarks.truth import BENCHMARK_CHUNK_ROWS, Distance
from cnf.scripts.plot import write_figure
from cnf.training.loop import fit

TRADE_OFF_TOY = "8gaussians"
REGULARIZER_WEIGHTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
TRADE_OFF_STEPS = 1000
TRADE_OFF_ROWS = 20_000


@dataclass(frozen=True)
class TradeOffPoint:
    """A flow trained with the kinetic and the Jacobian regularizer.

    Attributes:
        weight: Weight of both regularizers.
        kl: KL divergence from the truth to the flow, over fresh rows, in nats.
        stderr: Standard error of `kl`.
        evaluations: Mean evaluations for a row, in per-sample steps at the default tolerance.
        joint: Evaluations for a batch of the recipe's size, in joint steps at that tolerance.
    """

    weight: float
    kl: float
    stderr: float
    evaluations: float
    joint: float


def train_and_score(weight: float) -> TradeOffPoint:
    """Train a flow with a weight, and score it."""
    torch.manual_seed(0)
    recipe = replace(TRAINING_RECIPE, kinetic=weight, jacobian=weight)
    toy = TOYS[TRADE_OFF_TOY]
    flow = recipe.flow(2)
    train, held_out = (
        torch.from_numpy(toy.sample(n, seed)) for n, seed in ((100_000, 1), (5000, 2))
    )
    fit(flow, train, recipe=recipe, steps=TRADE_OFF_STEPS, validation=held_out)
    rows = toy.sample(TRADE_OFF_ROWS, 3)
    log_prob, evaluations = [], []
    with torch.no_grad():
        for part in torch.from_numpy(rows).float().split(BENCHMARK_CHUNK_ROWS):
            scored = flow.score_rows(part)
            log_prob.append(scored.log_prob.double().numpy())
            evaluations.append(np.mean(scored.stats.evaluations))
        batch = torch.from_numpy(rows[: recipe.batch_size]).float()
        joint = flow.with_solver(step="joint").score_rows(batch).stats.evaluations
    far = Distance.of(toy.log_prob(rows), np.concatenate(log_prob))
    per_row = float(np.mean(evaluations))
    return TradeOffPoint(weight, far.kl, far.stderr, per_row, float(np.mean(joint)))


def lines(out: Path | None) -> Iterator[str]:
    """Yield the lines of the table, and the path of its figure."""
    yield (
        f"Regularization on {TRADE_OFF_TOY}: FFJORD's network, {TRADE_OFF_STEPS} steps, one "
        f"weight for kinetic and Jacobian; KL over {TRADE_OFF_ROWS} fresh rows; evaluations of a "
        "solve at rtol = atol = 1e-5"
    )
    yield f"{'weight':<10}{'KL':>10}{'stderr':>10}{'evals a row':>13}{'joint':>8}"
    points = []
    for weight in REGULARIZER_WEIGHTS:
        with one_thread():  # fastest for small tensors, and reproducible
            points.append(point := train_and_score(weight))
        yield (
            f"{weight:<10}{point.kl:>10.4f}{point.stderr:>10.4f}{point.evaluations:>13.1f}"
            f"{point.joint:>8.0f}"
        )
    if out is not None:
        yield str(_draw(points, out / "trade_off.png"))


def _draw(points: list[TradeOffPoint], path: Path) -> Path:
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
