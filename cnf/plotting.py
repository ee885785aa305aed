"""Figures of densities, samples, paths and learning curves.

Every function that draws takes matplotlib axes and returns them; those called `…_figure` lay out a
whole figure. Nothing here touches pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from cnf.flow import Flow

Array = NDArray[np.float64]
Bounds = tuple[tuple[float, float], tuple[float, float]]

DENSITY_MAP = "magma"
DATA_COLOR = "#3b6fb6"
MODEL_COLOR = "#e07b39"
POINTS = 2000  # drawn in a scatter: more only turn into a blot
FRAMES = 5
GRID = 160


def draw_samples(ax: Axes, samples: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Scatter rows (n, 2) within `bounds`."""
    x, y = samples[:POINTS].T
    ax.scatter(x, y, s=2, color=color, alpha=0.5, linewidths=0)
    return _frame(ax, bounds)


def draw_density(
    ax: Axes, log_prob: Callable[[Array], Array], bounds: Bounds, ceiling: float | None = None
) -> Axes:
    """Shade a density over `bounds`.

    Args:
        ax: Where to draw.
        log_prob: Takes rows (n, 2), gives log-densities (n,).
        bounds: ((xmin, xmax), (ymin, ymax)).
        ceiling: The density of the brightest colour; the largest on the grid when None.
    """
    (x0, x1), (y0, y1) = bounds
    # Values at the centres of the pixels.
    x = x0 + (np.arange(GRID) + 0.5) / GRID * (x1 - x0)
    y = y0 + (np.arange(GRID) + 0.5) / GRID * (y1 - y0)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    density = np.exp(log_prob(grid)).reshape(GRID, GRID)
    ax.imshow(
        density,
        extent=(x0, x1, y0, y1),
        origin="lower",
        aspect="auto",
        cmap=DENSITY_MAP,
        vmin=0,
        vmax=ceiling,
    )
    return _frame(ax, bounds)


def draw_learning_curve(
    ax: Axes, seconds: Sequence[float], loss: Sequence[float], validation_nll: Sequence[float]
) -> Axes:
    """Training loss and validation NLL over the seconds of training."""
    ax.plot(seconds, loss, color=DATA_COLOR, lw=1, label="training loss")
    ax.plot(seconds, validation_nll, color=MODEL_COLOR, label="validation NLL")
    if np.isfinite(validation_nll).any():
        best = int(np.nanargmin(validation_nll))
        ax.plot(seconds[best], validation_nll[best], "o", color=MODEL_COLOR, label="best")
    # The first values tower over the rest: show what came after them.
    shown = np.concatenate([np.asarray(loss), np.asarray(validation_nll)])
    shown = shown[np.isfinite(shown)]
    if shown.size:
        low, high = shown.min(), np.quantile(shown, 0.95)
        margin = 0.08 * max(high - low, 1e-9)
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="seconds", ylabel="nats per row")
    ax.legend(frameon=False)
    return ax


def density_figure(
    flow: Flow, data: Array, true_log_prob: Callable[[Array], Array] | None, seed: int = 0
) -> Figure:
    """A 2-D flow on one page: data, samples, density, truth where known; its path from the base.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2) to show beside its samples.
        true_log_prob: The true log-density, where it is known.
        seed: Seed of the samples.
    """
    bounds = data_bounds(data)
    samples, path = _samples_and_path(flow, seed)
    log_prob = _log_prob(flow)
    columns = 4 if true_log_prob else 3
    figure = Figure(figsize=(3 * columns, 6.2), layout="constrained")
    upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1))
    panels = upper.subplots(1, columns)
    draw_samples(panels[0], data, bounds).set_title("data")
    draw_samples(panels[1], samples, bounds, MODEL_COLOR).set_title("flow: samples")
    ceiling = float(np.exp(log_prob(data[:POINTS])).max())
    if true_log_prob:
        ceiling = float(np.exp(true_log_prob(data[:POINTS])).max())
        draw_density(panels[3], true_log_prob, bounds, ceiling).set_title("truth: density")
    draw_density(panels[2], log_prob, bounds, ceiling).set_title("flow: density")
    stages = lower.subplots(1, FRAMES)
    for i, (ax, frame) in enumerate(zip(stages, path, strict=True)):
        draw_samples(ax, frame, bounds, MODEL_COLOR).set_title(f"t = {i / (FRAMES - 1):g}")
    lower.suptitle("from base (t = 0) to data (t = 1)")
    return figure


def pairs_figure(data: Array, samples: Array, columns: Sequence[str], most: int = 6) -> Figure:
    """Data against samples: histograms on the diagonal, scatter of each pair of columns below it.

    Args:
        data: Rows (n, columns).
        samples: Rows (m, columns) drawn from the flow.
        columns: Names.
        most: The most columns shown; the first ones are.
    """
    shown = min(most, len(columns))
    figure = Figure(figsize=(1.9 * shown + 0.6, 1.9 * shown + 0.6), layout="constrained")
    axes = figure.subplots(shown, shown, squeeze=False)
    limits = [tuple(np.quantile(data[:, i], (0.002, 0.998))) for i in range(shown)]
    limits = [(low - 0.05 * (high - low), high + 0.05 * (high - low)) for low, high in limits]
    for i in range(shown):
        for j in range(shown):
            _pair(axes[i, j], data, samples, (i, j), limits)
        # Names are shown as they are: a $ in one starts no formula.
        axes[-1, i].set_xlabel(columns[i], parse_math=False)
        axes[i, 0].set_ylabel(columns[i] if i else "", parse_math=False)
    handles = [
        axes[0, 0].plot([], [], "o", color=color, label=label)[0]
        for color, label in ((DATA_COLOR, "data"), (MODEL_COLOR, "flow"))
    ]
    figure.legend(handles=handles, loc="upper right", frameon=False)
    if shown < len(columns):
        figure.suptitle(f"the first {shown} of {len(columns)} columns")
    return figure


def data_bounds(data: Array) -> Bounds:
    """A square window around rows (n, 2), a little wider than all but the outermost."""
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    center, half = (low + high) / 2, 0.6 * (high - low)
    (x0, y0), (x1, y1) = (center - half).tolist(), (center + half).tolist()
    return (x0, x1), (y0, y1)


def _pair(
    ax: Axes,
    data: Array,
    samples: Array,
    pair: tuple[int, int],
    limits: Sequence[tuple[float, float]],
) -> None:
    i, j = pair
    ax.set_xticks([])
    ax.set_yticks([])
    if i < j:
        ax.axis("off")
        return
    for rows, color in ((data, DATA_COLOR), (samples, MODEL_COLOR)):
        if i == j:
            ax.hist(
                rows[:, i], 40, range=limits[i], color=color, density=True, histtype="step", lw=1.3
            )
        else:
            ax.scatter(
                rows[:POINTS, j], rows[:POINTS, i], s=2, color=color, alpha=0.35, linewidths=0
            )
            ax.set_ylim(limits[i])
    ax.set_xlim(limits[j])


def _samples_and_path(flow: Flow, seed: int) -> tuple[Array, Array]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        path = flow.path(flow.base.sample(torch.Size((POINTS,))).to(flow.like), FRAMES)
    frames = path.double().cpu().numpy()
    return frames[-1], frames


def _log_prob(flow: Flow) -> Callable[[Array], Array]:

    def log_prob(rows: Array) -> Array:
        with torch.no_grad():
            parts = torch.from_numpy(rows).to(flow.like).split(4096)
            return torch.cat([flow.log_prob(part) for part in parts]).double().cpu().numpy()

    return log_prob


def _frame(ax: Axes, bounds: Bounds) -> Axes:
    ax.set(xlim=bounds[0], ylim=bounds[1], xticks=[], yticks=[])
    ax.set_box_aspect(1)
    return ax
