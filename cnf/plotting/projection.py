"""Projections of rows of three columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from cnf.plotting.panels import SCATTER_POINTS, column_limits, dot_size, short_name
from cnf.plotting.style import DATA_COLOR, GRID_COLOR, MODEL_COLOR

Array = NDArray[np.float64]

VIEWS = ((20.0, -60.0), (20.0, 30.0), (88.0, -90.0))  # elevations and azimuths, in degrees


def draw_projection(
    ax: Axes3D,
    rows: Array,
    limits: Sequence[tuple[float, float]],
    color: str = DATA_COLOR,
    view: tuple[float, float] = VIEWS[0],
) -> Axes3D:
    """Scatter the rows (n, 3) within the limits, seen from an elevation and azimuth.

    Args:
        ax: Axes with `projection="3d"`.
        rows: Shape (n, 3).
        limits: Lower and upper limit of each column.
        color: Colour of the dots.
        view: Elevation and azimuth, in degrees.
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
    """Draw data above samples, rows of three columns, from three viewpoints, the last from above.

    Args:
        data: Rows (n, 3).
        samples: Rows (m, 3) drawn from the flow.
        columns: Names of the columns.

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
    x, y, z = (short_name(name, 12) for name in columns)
    ax.set_xlabel(x, labelpad=-12, parse_math=False)
    ax.set_ylabel(y, labelpad=-12, parse_math=False)
    ax.set_zlabel(z, labelpad=-12, parse_math=False)
    return ax
