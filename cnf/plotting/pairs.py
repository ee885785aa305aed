"""Pair plots of data and samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.plotting.panels import (
    SCATTER_POINTS,
    Bounds,
    column_limits,
    dot_size,
    grid_points,
    legend_above,
    smooth_histogram,
)
from cnf.plotting.style import DATA_COLOR, MODEL_COLOR

Array = NDArray[np.float64]

CONTOUR_CELLS = 48  # of the histogram along each side
CONTOUR_MASSES = (0.5, 0.9)  # enclosed probabilities


def pairs_figure(data: Array, samples: Array, columns: Sequence[str], most: int = 6) -> Figure:
    """Draw pair plots of data and samples, with histograms on the diagonal.

    Pairs of columns are scattered below the diagonal; above it are the contours that enclose 50 %
    and 90 % of the rows.

    Args:
        data: Rows (n, columns).
        samples: Rows (m, columns) drawn from the flow.
        columns: Names of the columns.
        most: Maximum number of columns, of which the first ones are drawn.
    """
    shown = min(most, len(columns))
    figure = Figure(figsize=(1.9 * shown + 0.6, 1.9 * shown + 0.9), layout="constrained")
    axes = figure.subplots(shown, shown, squeeze=False)
    limits = column_limits(data[:, :shown])
    for i in range(shown):
        for j in range(shown):
            _draw_pair(axes[i, j], data, samples, (i, j), limits)
        # A $ in a name starts no formula.
        axes[-1, i].set_xlabel(columns[i], parse_math=False)
        axes[i, 0].set_ylabel(columns[i] if i else "", parse_math=False)
    for color, label in ((DATA_COLOR, "data"), (MODEL_COLOR, "flow")):
        axes[0, 0].plot([], [], "o", color=color, label=label)
    legend_above(figure, axes[0, 0])
    if shown < len(columns):
        figure.supxlabel(f"the first {shown} of {len(columns)} columns", fontsize=9)
    return figure


def draw_contours(ax: Axes, rows: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Draw the contours of the smallest regions that hold 50 % and 90 % of rows (n, 2).

    The rows are counted in 48 x 48 cells and smoothed by Scott's rule; fewer than two rows have no
    contours.

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


def _draw_pair(
    ax: Axes,
    data: Array,
    samples: Array,
    pair: tuple[int, int],
    limits: Sequence[tuple[float, float]],
) -> None:
    i, j = pair
    for rows, color in ((data, DATA_COLOR), (samples, MODEL_COLOR)):
        if i == j:
            ax.hist(
                rows[:, i], 40, range=limits[i], color=color, density=True, histtype="step", lw=1.3
            )
        elif i < j:
            draw_contours(ax, rows[:, [j, i]], (limits[j], limits[i]), color)
        else:
            x, y = rows[:SCATTER_POINTS, [j, i]].T
            ax.scatter(x, y, s=dot_size(rows), color=color, alpha=0.35, linewidths=0)
            ax.set_ylim(limits[i])
    ax.set(xlim=limits[j], xticks=[], yticks=[])
