"""A flow over two columns on one page: beside data and truth, and over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.plotting.course import base_rows, log_prob_at, log_prob_of, path_of, quick
from cnf.plotting.panels import (
    GRID,
    POINTS,
    Bounds,
    Cells,
    bright,
    cells,
    data_bounds,
    density_on_grid,
    draw_density,
    draw_samples,
    draw_shades,
    framed,
    proportioned,
    ratio,
)
from cnf.plotting.style import MODEL_COLOR

Array = NDArray[np.float64]

FRAMES = 5
COARSE = 80  # pixels along each side of a small panel


def density_figure(
    flow: Flow,
    data: Array,
    true_log_prob: Callable[[Array], Array] | None,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Figure:
    """A 2-D flow on one page: data, samples, density, truth where known; its path from the base.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2) to show beside its samples.
        true_log_prob: The true log-density, where it is known.
        seed: Seed of the samples.
        bounds: What is shown, in its proportions; a window around the data, square, when None.
    """
    shown = bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, POINTS, seed), FRAMES)
    log_prob = partial(log_prob_of, flow)
    columns, grid = 4 if true_log_prob else 3, cells(bounds, GRID)
    height = 2.4 * ratio(bounds) + 0.7
    figure = Figure(figsize=(3 * columns, 2 * height), layout="constrained")
    upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1))
    panels = upper.subplots(1, columns)
    draw_samples(panels[0], data, shown).set_title("data")
    draw_samples(panels[1], path[-1], shown, MODEL_COLOR).set_title("flow: samples")
    ceiling = float(np.exp(log_prob(data[:POINTS])).max())
    if true_log_prob:
        ceiling = float(np.exp(true_log_prob(data[:POINTS])).max())
        draw_density(panels[3], true_log_prob, shown, ceiling, grid).set_title("truth: density")
    draw_density(panels[2], log_prob, shown, ceiling, grid).set_title("flow: density")
    draw_samples_strip(lower.subplots(1, FRAMES), path, shown)
    lower.suptitle("from base (t = 0) to data (t = 1)")
    return proportioned(figure, bounds)


def strip_figure(
    flow: Flow,
    data: Array,
    frames: int = 6,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Figure:
    """Density and samples of a 2-D flow over time, from base to data, in the data's coordinates.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2), by which the window is chosen.
        frames: How many times are shown.
        seed: Seed of the samples.
        bounds: As in `density_figure`.
    """
    flow = quick(flow)
    shown = bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, POINTS, seed), frames)
    size = (1.9 * frames, 2 * 1.9 * ratio(bounds) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, frames)
    draw_density_strip(axes[0], partial(log_prob_at, flow), shown, cells(bounds, COARSE))
    draw_samples_strip(axes[1], path, shown)
    for ax in axes[1]:
        ax.set_title("")
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("samples")
    return proportioned(figure, bounds)


def draw_density_strip(
    axes: Sequence[Axes],
    log_prob: Callable[[float, Array], Array],
    bounds: Bounds,
    grid: Cells = COARSE,
) -> Sequence[Axes]:
    """Shade the density at evenly spread times, one panel for each; the last is that of the data.

    Each has its own scale, so that a wide base is seen beside sharp data.

    Args:
        axes: Where to draw.
        log_prob: Takes a time from 0 to 1 and rows (n, 2), gives log-densities (n,).
        bounds: ((xmin, xmax), (ymin, ymax)).
        grid: Pixels along each side.
    """
    for ax, time in zip(axes, np.linspace(0, 1, len(axes)).tolist(), strict=True):
        density = density_on_grid(partial(log_prob, time), bounds, grid)
        draw_shades(ax, density, bounds, bright(density))
        framed(ax, bounds).set_title(_at(time))
    return axes


def draw_samples_strip(axes: Sequence[Axes], path: Array, bounds: Bounds) -> Sequence[Axes]:
    """Scatter the states (frames, n, 2) of a path, one panel for each of its times."""
    times = np.linspace(0, 1, len(axes)).tolist()
    for ax, frame, time in zip(axes, path, times, strict=True):
        draw_samples(ax, frame, bounds, MODEL_COLOR).set_title(_at(time))
    return axes


def _at(time: float) -> str:
    return f"t = {time:.3g}"
