"""Motion of the plane under a 2-D flow: trajectories, vector field, warped grid."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from cnf.flow import Flow
from cnf.plotting.evolution import base_rows, path_of, quick, velocity_at
from cnf.plotting.panels import (
    SCATTER_POINTS,
    Array,
    Bounds,
    GridSize,
    aspect_ratio,
    data_bounds,
    draw_samples,
    frame_panel,
    grid_points,
    grid_sides,
    grid_size,
    keep_proportions,
)
from cnf.plotting.style import DATA_COLOR, GRID_COLOR, INK, MODEL_COLOR, TIME_MAP

TRAJECTORIES = 120  # more would cover one another
TRAJECTORY_TIMES = 60
FIELD_ARROWS = 18  # along each side
GRID_LINES = 25  # in each direction
GRID_LINE_NODES = 241
MOTION_FRAMES = 5


def draw_trajectories(ax: Axes, path: Array, bounds: Bounds) -> Axes:
    """Draw the trajectories of a path (times, n, 2) as lines, coloured by time, dark to light.

    Rings mark their starting points, at the base, and dots their end points, at the data.
    """
    lines = np.stack([path[:-1], path[1:]], 2).reshape(-1, 2, 2)
    times = np.repeat(np.linspace(0, 1, len(path) - 1), path.shape[1])
    drawn = LineCollection(list(lines), cmap=TIME_MAP, array=times, linewidths=0.8, alpha=0.8)
    ax.add_collection(drawn)
    (x, y), (u, v) = path[0].T, path[-1].T
    ax.scatter(x, y, s=9, facecolors="none", edgecolors=GRID_COLOR, linewidths=0.7, zorder=3)
    ax.scatter(u, v, s=9, color=MODEL_COLOR, linewidths=0, zorder=4)
    return frame_panel(ax, bounds)


def draw_field(
    ax: Axes,
    velocity: Callable[[Array], Array],
    bounds: Bounds,
    color: str = INK,
    arrows: GridSize = FIELD_ARROWS,
) -> Axes:
    """Draw the velocities (n, 2) of points (n, 2) as arrows over `bounds`.

    The longest of the `arrows` along x and y are as long as the distance between them. The lengths
    of the fastest fifth are cut to that, since a field may be fast where there is no density.
    """
    points = grid_points(bounds, arrows)
    cell = np.array([high - low for low, high in bounds]) / grid_sides(arrows)
    # In units of a cell, so that arrows have the direction of motion on the page.
    along = velocity(points) / cell
    speed = np.linalg.norm(along, axis=1, keepdims=True)
    fast = max(float(np.quantile(speed, 0.8)), 1e-12)
    u, v = (along / np.maximum(speed, fast) * cell).T
    width = 0.06 / grid_sides(arrows)[0]
    plane: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "pivot": "mid"}
    ax.quiver(*points.T, u, v, color=color, width=width, alpha=0.75, headwidth=4, **plane)
    return frame_panel(ax, bounds)


def draw_grid(ax: Axes, lines: Array, bounds: Bounds) -> Axes:
    """Draw the lines of a grid (2 * lines, nodes, 2), first vertical, then horizontal ones."""
    half = len(lines) // 2
    for part, color in ((lines[:half], DATA_COLOR), (lines[half:], MODEL_COLOR)):
        ax.add_collection(LineCollection(list(part), colors=color, linewidths=0.8, alpha=0.8))
    return frame_panel(ax, bounds)


def base_grid(flow: Flow, lines: int = GRID_LINES, nodes: int = GRID_LINE_NODES) -> Array:
    """Return the lines of a regular grid over a flow's 2-D base, shape (2 * lines, nodes, 2).

    The grid covers 998 of 1000 base points in each coordinate.

    Example:
        >>> import cnf
        >>> base_grid(cnf.ffjord(2), lines=7, nodes=50).shape
        (14, 50, 2)
    """
    drawn = base_rows(flow, 4 * SCATTER_POINTS).double().cpu().numpy()
    low, high = np.quantile(drawn, (0.001, 0.999), axis=0)
    at, along = np.linspace(low, high, lines).T, np.linspace(low, high, nodes).T
    vertical = np.stack(np.meshgrid(at[0], along[1], indexing="ij"), -1)
    horizontal = np.stack(np.meshgrid(along[0], at[1]), -1)
    return np.concatenate([vertical, horizontal])


def grid_path(
    flow: Flow, frames: int, lines: int = GRID_LINES, nodes: int = GRID_LINE_NODES
) -> Array:
    """Return the grid of `base_grid` at evenly spread times, (frames, 2 * lines, nodes, 2)."""
    grid = base_grid(flow, lines, nodes)
    z = torch.from_numpy(grid.reshape(-1, 2)).to(flow.like)
    return path_of(flow, z, frames).reshape(frames, *grid.shape)


def trajectories_figure(
    flow: Flow, data: Array, seed: int = 0, bounds: Bounds | None = None
) -> Figure:
    """Draw trajectories of a 2-D flow from base to data; the arguments are `density_figure`'s."""
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, TRAJECTORIES, seed), TRAJECTORY_TIMES)
    figure = Figure(figsize=(5, 5 * aspect_ratio(bounds) + 0.3), layout="constrained")
    ax = figure.subplots()
    draw_trajectories(ax, path, shown)
    ax.set_title("rings: base; dots: data; lines light with time", fontsize=9)
    return keep_proportions(figure, bounds)


def field_figure(flow: Flow, data: Array, seed: int = 0, bounds: Bounds | None = None) -> Figure:
    """Draw the vector field of a 2-D flow at a few times, over the samples at those times."""
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = path_of(flow, base_rows(flow, SCATTER_POINTS, seed), MOTION_FRAMES)
    figure, axes, times = _row_of_times(bounds)
    for ax, frame, time in zip(axes, path, times, strict=True):
        draw_samples(ax, frame, shown, MODEL_COLOR)
        velocity, arrows = partial(velocity_at, flow, time), grid_size(bounds, FIELD_ARROWS)
        draw_field(ax, velocity, shown, arrows=arrows).set_title(f"t = {time:g}")
    return keep_proportions(figure, bounds)


def grid_figure(flow: Flow, data: Array, bounds: Bounds | None = None) -> Figure:
    """Draw a regular grid over the base of a 2-D flow as the flow warps it over time."""
    flow, shown = quick(flow), bounds or data_bounds(data)
    path = grid_path(flow, MOTION_FRAMES)
    figure, axes, times = _row_of_times(bounds)
    for ax, lines, time in zip(axes, path, times, strict=True):
        draw_grid(ax, lines, shown).set_title(f"t = {time:g}")
    return keep_proportions(figure, bounds)


def _row_of_times(bounds: Bounds | None) -> tuple[Figure, Sequence[Axes], Sequence[float]]:
    """Lay out a panel for each of a few times; return figure, axes and times."""
    size = (2.6 * MOTION_FRAMES, 2.6 * aspect_ratio(bounds) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, MOTION_FRAMES), np.linspace(0, 1, MOTION_FRAMES).tolist()
