"""Densities of 2-D flows: compared with data and truth, and over time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from cnf.flow import Flow
from cnf.plotting.evolution import base_rows, log_prob_at, log_prob_of, path_of, quick
from cnf.plotting.panels import (
    DENSITY_PIXELS,
    SCATTER_POINTS,
    Array,
    Bounds,
    Density,
    GridSize,
    aspect_ratio,
    bright_density,
    data_bounds,
    density_on_grid,
    draw_density,
    draw_samples,
    draw_shades,
    frame_panel,
    grid_size,
    keep_proportions,
)
from cnf.plotting.style import MODEL_COLOR

STRIP_FRAMES = 5
STRIP_PIXELS = 80  # pixels along each side of a small panel


def density_figure(
    flow: Flow,
    data: Array,
    true_log_prob: Density | None,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Figure:
    """Draw data, samples, density, any true density and the path from the base of a 2-D flow.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2).
        true_log_prob: True log-density, if known.
        seed: Seed of the samples.
        bounds: Window ((xmin, xmax), (ymin, ymax)), whose proportions the panels keep; a square
            window around the data when None.
    """
    shown = bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, SCATTER_POINTS, seed), STRIP_FRAMES)
    log_prob = partial(log_prob_of, flow)
    columns, grid = 4 if true_log_prob else 3, grid_size(bounds, DENSITY_PIXELS)
    height = 2.4 * aspect_ratio(bounds) + 0.7
    figure = Figure(figsize=(3 * columns, 2 * height), layout="constrained")
    upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1))
    panels = upper.subplots(1, columns)
    draw_samples(panels[0], data, shown).set_title("data")
    draw_samples(panels[1], path[-1], shown, MODEL_COLOR).set_title("flow: samples")
    ceiling = float(np.exp((true_log_prob or log_prob)(data[:SCATTER_POINTS])).max())
    draw_density(panels[2], log_prob, shown, ceiling, grid).set_title("flow: density")
    if true_log_prob:
        draw_density(panels[3], true_log_prob, shown, ceiling, grid).set_title("truth: density")
    draw_samples_strip(lower.subplots(1, STRIP_FRAMES), path, shown)
    lower.suptitle("from base (t = 0) to data (t = 1)")
    return keep_proportions(figure, bounds)


def strip_figure(
    flow: Flow, data: Array, frames: int = 6, seed: int = 0, bounds: Bounds | None = None
) -> Figure:
    """Draw density and samples of a 2-D flow over time, from base to data, in data coordinates.

    The arguments are those of `density_figure`, and the number of times.
    """
    flow = quick(flow)
    shown = bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, SCATTER_POINTS, seed), frames)
    size = (1.9 * frames, 2 * 1.9 * aspect_ratio(bounds) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    upper, lower = figure.subplots(2, frames)
    draw_density_strip(upper, partial(log_prob_at, flow), shown, grid_size(bounds, STRIP_PIXELS))
    for ax in draw_samples_strip(lower, path, shown):
        ax.set_title("")
    upper[0].set_ylabel("density")
    lower[0].set_ylabel("samples")
    return keep_proportions(figure, bounds)


def draw_density_strip(
    axes: Sequence[Axes],
    log_prob: Callable[[float, Array], Array],
    bounds: Bounds,
    grid: GridSize = STRIP_PIXELS,
) -> Sequence[Axes]:
    """Shade the density over `bounds` at evenly spread times from base to data, one for each panel.

    `log_prob` is a function of a time from 0 to 1 and rows (n, 2). Each panel has its own colour
    scale, since a wide base is much fainter than sharp data.
    """
    for ax, time in zip(axes, np.linspace(0, 1, len(axes)).tolist(), strict=True):
        density = density_on_grid(partial(log_prob, time), bounds, grid)
        draw_shades(ax, density, bounds, bright_density(density))
        frame_panel(ax, bounds).set_title(f"t = {time:.3g}")
    return axes


def draw_samples_strip(axes: Sequence[Axes], path: Array, bounds: Bounds) -> Sequence[Axes]:
    """Scatter the states (frames, n, 2) of a path, one panel for each of its times."""
    times = np.linspace(0, 1, len(axes)).tolist()
    for ax, frame, time in zip(axes, path, times, strict=True):
        draw_samples(ax, frame, bounds, MODEL_COLOR).set_title(f"t = {time:.3g}")
    return axes
