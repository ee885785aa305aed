"""How a flow moves the plane: trajectories, the vector field, the warped grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.plotting.course import base_rows, path_of, quick, velocity_at
from cnf.plotting.panels import (
    POINTS,
    Bounds,
    Cells,
    cells,
    data_bounds,
    draw_samples,
    framed,
    grid_points,
    proportioned,
    ratio,
    sides,
)
from cnf.plotting.style import DATA_COLOR, GRID_COLOR, INK, MODEL_COLOR, TIME_MAP

Array = NDArray[np.float64]

PARTICLES = 120  # trajectories: more only cover one another
TIMES = 60  # along each
ARROWS = 18  # of a field along each side
LINES = 25  # of a grid in each direction
NODES = 241  # along each line
FRAMES = 5


def draw_trajectories(ax: Axes, path: Array, bounds: Bounds) -> Axes:
    """Draw the trajectories of a path (times, n, 2) as lines, coloured by time, dark to light.

    Rings are where they begin, at the base, and dots where they end, at the data.
    """
    lines = np.stack([path[:-1], path[1:]], 2).reshape(-1, 2, 2)
    times = np.repeat(np.linspace(0, 1, len(path) - 1), path.shape[1])
    drawn = LineCollection(list(lines), cmap=TIME_MAP, array=times, linewidths=0.8, alpha=0.8)
    ax.add_collection(drawn)
    (x, y), (u, v) = path[0].T, path[-1].T
    ax.scatter(x, y, s=9, facecolors="none", edgecolors=GRID_COLOR, linewidths=0.7, zorder=3)
    ax.scatter(u, v, s=9, color=MODEL_COLOR, linewidths=0, zorder=4)
    return framed(ax, bounds)


def draw_field(
    ax: Axes,
    velocity: Callable[[Array], Array],
    bounds: Bounds,
    color: str = INK,
    arrows: Cells = ARROWS,
) -> Axes:
    """Draw a vector field as arrows, the longest of them as long as they are apart.

    The fastest fifth are drawn no longer than the next: where nothing is, a field may be fast.

    Args:
        ax: Where to draw.
        velocity: Takes rows (n, 2), gives velocities (n, 2).
        bounds: ((xmin, xmax), (ymin, ymax)).
        color: Of the arrows.
        arrows: How many along each side.
    """
    points = grid_points(bounds, arrows)
    cell = np.array([high - low for low, high in bounds]) / sides(arrows)
    # In units of a cell, so that arrows point where points move on the page.
    along = velocity(points) / cell
    speed = np.linalg.norm(along, axis=1, keepdims=True)
    fast = max(float(np.quantile(speed, 0.8)), 1e-12)
    u, v = (along / np.maximum(speed, fast) * cell).T
    ax.quiver(
        *points.T,
        u,
        v,
        color=color,
        angles="xy",
        scale_units="xy",
        scale=1,
        pivot="mid",
        width=0.06 / sides(arrows)[0],
        alpha=0.75,
        headwidth=4,
    )
    return framed(ax, bounds)


def draw_grid(ax: Axes, lines: Array, bounds: Bounds) -> Axes:
    """Draw a grid's lines (2 * lines, nodes, 2): those that were upright, then those that lay."""
    half = len(lines) // 2
    for own, color in ((lines[:half], DATA_COLOR), (lines[half:], MODEL_COLOR)):
        ax.add_collection(LineCollection(list(own), colors=color, linewidths=0.8, alpha=0.8))
    return framed(ax, bounds)


def base_grid(flow: Flow, lines: int = LINES, nodes: int = NODES) -> Array:
    """The lines of a regular grid over a flow's 2-D base, shape (2 * lines, nodes, 2).

    It reaches as far as 998 in 1000 base points do.

    Example:
        >>> import cnf
        >>> base_grid(cnf.ffjord(2), lines=7, nodes=50).shape
        (14, 50, 2)
    """
    drawn = base_rows(flow, 4 * POINTS).double().cpu().numpy()
    low, high = np.quantile(drawn, (0.001, 0.999), axis=0)
    at, along = np.linspace(low, high, lines), np.linspace(low, high, nodes)
    upright = np.stack(np.broadcast_arrays(at[:, None, 0], along[None, :, 1]), -1)
    lying = np.stack(np.broadcast_arrays(along[None, :, 0], at[:, None, 1]), -1)
    return np.concatenate([upright, lying])


def grid_path(flow: Flow, frames: int, lines: int = LINES, nodes: int = NODES) -> Array:
    """The grid of `base_grid` as the flow carries it, shape (frames, 2 * lines, nodes, 2)."""
    grid = base_grid(flow, lines, nodes)
    z = torch.from_numpy(grid.reshape(-1, 2)).to(flow.like)
    return path_of(flow, z, frames).reshape(frames, *grid.shape)


def trajectories_figure(
    flow: Flow, data: Array, seed: int = 0, bounds: Bounds | None = None
) -> Figure:
    """Trajectories of a 2-D flow from base to data, over its samples.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2), by which the window is chosen.
        seed: Seed of the samples.
        bounds: What is shown, in its proportions; a window around the data, square, when None.
    """
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, PARTICLES, seed), TIMES)
    figure = Figure(figsize=(5, 5 * ratio(bounds) + 0.3), layout="constrained")
    ax = figure.subplots()
    draw_trajectories(ax, path, shown)
    ax.set_title("rings: base; dots: data; lines light with time", fontsize=9)
    return proportioned(figure, bounds)


def field_figure(flow: Flow, data: Array, seed: int = 0, bounds: Bounds | None = None) -> Figure:
    """The vector field of a 2-D flow at a few times, over its samples then."""
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, POINTS, seed), FRAMES)
    figure, axes, times = _row_of_times(bounds)
    for ax, frame, time in zip(axes, path, times, strict=True):
        draw_samples(ax, frame, shown, MODEL_COLOR)
        velocity, arrows = partial(velocity_at, flow, time), cells(bounds, ARROWS)
        draw_field(ax, velocity, shown, arrows=arrows).set_title(f"t = {time:g}")
    return proportioned(figure, bounds)


def grid_figure(flow: Flow, data: Array, bounds: Bounds | None = None) -> Figure:
    """A regular grid over the base of a 2-D flow, as it is carried to the data."""
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = grid_path(flow, FRAMES)
    figure, axes, times = _row_of_times(bounds)
    for ax, lines, time in zip(axes, path, times, strict=True):
        draw_grid(ax, lines, shown).set_title(f"t = {time:g}")
    return proportioned(figure, bounds)


def _row_of_times(bounds: Bounds | None) -> tuple[Figure, Sequence[Axes], Sequence[float]]:
    """A figure with a panel for each of a few times, and these."""
    figure = Figure(figsize=(2.6 * FRAMES, 2.6 * ratio(bounds) + 0.3), layout="constrained")
    return figure, figure.subplots(1, FRAMES), np.linspace(0, 1, FRAMES).tolist()
