"""Scatter plots of data and samples: pairs of columns, projections of three."""

from collections.abc import Sequence
from itertools import islice
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from cnf.datasets import Table
from cnf.diagnostics.similarity import pair_trends
from cnf.plotting.panels import (
    SCATTER_POINTS,
    Array,
    Bounds,
    column_limits,
    dot_size,
    grid_points,
    legend_above,
    short_name,
    smooth_histogram,
)
from cnf.plotting.style import DATA_COLOR, GRID_COLOR, MODEL_COLOR

CONTOUR_CELLS = 48  # of the histogram along each side
CONTOUR_MASSES = (0.5, 0.9)  # enclosed probabilities
MAX_TREND_ROWS = 5000  # by which columns are chosen
VIEWS = ((20.0, -60.0), (20.0, 30.0), (88.0, -90.0))  # elevations and azimuths, in degrees


def pairs_figure(data: Array, samples: Array, columns: Sequence[str], most: int = 6) -> Figure:
    """Draw pair plots of data (n, columns) and samples (m, columns), at most of `most` columns.

    On the diagonal are histograms, below it each pair of columns is scattered, and above it are the
    contours that enclose 50 % and 90 % of the rows. Of more columns those are drawn whose joint
    distributions differ most from one to the other, by `cnf.diagnostics.similarity.pair_trends`.
    """
    chosen = _differing(data, samples, most)
    shown = len(chosen)
    figure = Figure(figsize=(1.9 * shown + 0.6, 1.9 * shown + 0.9), layout="constrained")
    axes = figure.subplots(shown, shown, squeeze=False)
    data, samples = data[:, chosen], samples[:, chosen]
    limits = column_limits(data)
    for i in range(shown):
        for j in range(shown):
            _draw_pair(axes[i, j], data, samples, j, i, (limits[j], limits[i]))
        # A $ in a name starts no formula.
        axes[-1, i].set_xlabel(columns[chosen[i]], parse_math=False)
        axes[i, 0].set_ylabel(columns[chosen[i]] if i else "", parse_math=False)
    legend_above(figure)
    if shown < len(columns):
        figure.supxlabel(f"the {shown} of {len(columns)} columns that differ most", fontsize=9)
    return figure


def _differing(data: Array, samples: Array, most: int) -> list[int]:
    """Return the places of at most so many columns: of the pairs that differ most."""
    count = data.shape[1]
    if count <= most:
        return [*range(count)]
    names = tuple(map(str, range(count)))
    tables = [Table("rows", rows[:MAX_TREND_ROWS], names) for rows in (data, samples)]
    paired = (name for pair in pair_trends(*tables) for name in (pair.a, pair.b))
    return sorted(map(int, islice(dict.fromkeys(paired), most)))


def draw_contours(ax: Axes, rows: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Draw the contours of the smallest regions that hold 50 % and 90 % of rows (n, 2).

    The rows are counted in 48 x 48 cells and smoothed by Scott's rule.

    Source: Hyndman (1996), Computing and graphing highest density regions.
    """
    ax.set(xlim=bounds[0], ylim=bounds[1])
    if len(rows) < 2:
        return ax
    # The window is about six standard deviations wide.
    blur = 0.8 * CONTOUR_CELLS / 6 * len(rows) ** (-1 / 6)
    density = smooth_histogram(rows, bounds, CONTOUR_CELLS, blur)
    levels = sorted({highest_density_level(density, mass) for mass in CONTOUR_MASSES})
    if levels[-1] <= 0:
        return ax
    points = grid_points(bounds, CONTOUR_CELLS).reshape(CONTOUR_CELLS, CONTOUR_CELLS, 2)
    x, y = points.transpose(2, 0, 1)
    ax.contour(x, y, density, levels, colors=color, linewidths=np.linspace(0.8, 1.5, len(levels)))
    return ax


def highest_density_level(density: Array, mass: float) -> float:
    """Return the density level above which the cells of a grid hold a share of the total mass.

    Example:
        >>> highest_density_level(np.array([[1.0, 5.0], [1.0, 3.0]]), 0.8)
        3.0
    """
    descending = np.sort(density, axis=None)[::-1]
    cumulative = np.cumsum(descending)
    place = int(np.searchsorted(cumulative, mass * cumulative[-1] * (1 - 1e-12)))
    return float(descending[min(place, len(descending) - 1)])


def _draw_pair(ax: Axes, data: Array, samples: Array, j: int, i: int, window: Bounds) -> None:
    """Draw column j along x and column i along y, of the rows without a gap there."""
    for rows, color in ((data, DATA_COLOR), (samples, MODEL_COLOR)):
        rows = rows[~np.isnan(rows[:, [i, j]]).any(1)]
        if i == j:
            share, edges = np.histogram(rows[:, i], 40, window[0], density=True)
            ax.stairs(share, edges, color=color, lw=1.3)
        elif i < j:
            draw_contours(ax, rows[:, [j, i]], window, color)
        else:
            draw_dots(ax, rows[:, [j, i]], window, color)
    ax.set(xlim=window[0], xticks=[], yticks=[])


def draw_dots(ax: Axes, rows: Array, bounds: Bounds, color: str) -> Axes:
    """Scatter rows (n, 2), of which others may lie in the same panel."""
    x, y = rows[:SCATTER_POINTS].T
    ax.scatter(x, y, s=dot_size(rows), color=color, alpha=0.35, linewidths=0)
    ax.set(xlim=bounds[0], ylim=bounds[1])
    return ax


def draw_projection(
    ax: Axes3D,
    rows: Array,
    limits: Sequence[tuple[float, float]],
    color: str = DATA_COLOR,
    view: tuple[float, float] = VIEWS[0],
) -> Axes3D:
    """Scatter the rows (n, 3) within the limits of their columns on axes with `projection="3d"`.

    The view is an elevation and azimuth, in degrees.
    """
    low, high = np.array(limits).T
    inside = ((rows >= low) & (rows <= high)).all(1)
    x, y, z = rows[inside][:SCATTER_POINTS].T
    ax.scatter(x, y, z, s=dot_size(rows), color=color, alpha=0.5, linewidths=0, depthshade=False)
    ax.set(xlim=limits[0], ylim=limits[1], zlim=limits[2], xticks=[], yticks=[], zticks=[])
    ax.view_init(*view)
    ax.set_box_aspect((1, 1, 1))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_color(GRID_COLOR)
    return ax


def projections_figure(data: Array, samples: Array, columns: Sequence[str]) -> Figure:
    """Draw data (n, 3) above samples (m, 3) from three viewpoints, the last from above.

    Raises:
        ValueError: The rows do not have three columns.
    """
    if data.shape[1] != 3 or samples.shape[1] != 3:
        raise ValueError(f"Expected rows of 3 columns for a projection; got {data.shape[1]}")
    figure = Figure(figsize=(3 * len(VIEWS), 6.2), layout="constrained")
    axes = figure.subplots(2, len(VIEWS), subplot_kw={"projection": "3d"})
    limits = column_limits(data)
    scatters = ((data, DATA_COLOR, "data"), (samples, MODEL_COLOR, "flow: samples"))
    for panels, (rows, color, title) in zip(axes, scatters, strict=True):
        for ax, view in zip(cast("Sequence[Axes3D]", panels), VIEWS, strict=True):
            name_axes(draw_projection(ax, rows, limits, color, view), columns)
            if view[0] > 80:  # from above the third column has no length
                ax.set_zlabel("")
        panels[0].set_title(title)
    return figure


def name_axes(ax: Axes3D, columns: Sequence[str]) -> Axes3D:
    """Label the axes with the columns' names."""
    for label, name in zip((ax.set_xlabel, ax.set_ylabel, ax.set_zlabel), columns, strict=True):
        label(short_name(name, 12), labelpad=-12, parse_math=False)
    return ax
