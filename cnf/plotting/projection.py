"""Rows of three columns, seen from the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from cnf.plotting.panels import POINTS, column_limits, dot, short_name
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
    """Scatter rows (n, 3) as they are seen from the side; what is beyond the limits is left out.

    Args:
        ax: Axes with `projection="3d"`.
        rows: Shape (n, 3).
        limits: Of each column.
        color: Of the dots.
        view: Elevation and azimuth, in degrees.
    """
    low, high = np.array(limits).T
    inside = ((rows >= low) & (rows <= high)).all(1)
    x, y, z = rows[inside][:POINTS].T
    ax.scatter(x, y, z, s=dot(rows), color=color, alpha=0.5, linewidths=0, depthshade=False)
    ax.set(xlim=limits[0], ylim=limits[1], zlim=limits[2], xticks=[], yticks=[], zticks=[])
    ax.view_init(*view)
    ax.set_box_aspect((1, 1, 1))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_color(GRID_COLOR)
    return ax


def projections_figure(data: Array, samples: Array, columns: Sequence[str]) -> Figure:
    """Data above and samples below, rows of three columns from three sides, the last from above.

    Args:
        data: Rows (n, 3).
        samples: Rows (m, 3) drawn from the flow.
        columns: Names.

    Raises:
        ValueError: There are not three columns.
    """
    if data.shape[1] != 3 or samples.shape[1] != 3:
        raise ValueError(f"Expected rows of 3 columns for a projection; got {data.shape[1]}")
    figure = Figure(figsize=(3 * len(VIEWS), 6.2), layout="constrained")
    axes = figure.subplots(2, len(VIEWS), subplot_kw={"projection": "3d"})
    limits = column_limits(data)
    drawn = ((data, DATA_COLOR, "data"), (samples, MODEL_COLOR, "flow: samples"))
    for line, (rows, color, title) in zip(axes, drawn, strict=True):
        for ax, view in zip(cast("Sequence[Axes3D]", line), VIEWS, strict=True):
            name_axes(draw_projection(ax, rows, limits, color, view), columns)
            if view[0] > 80:  # from above the third column has no length
                ax.set_zlabel("")
        line[0].set_title(title)
    return figure


def name_axes(ax: Axes3D, columns: Sequence[str]) -> Axes3D:
    """Write the columns' names beside the axes."""
    x, y, z = (short_name(name, 12) for name in columns)
    ax.set_xlabel(x, labelpad=-12, parse_math=False)
    ax.set_ylabel(y, labelpad=-12, parse_math=False)
    ax.set_zlabel(z, labelpad=-12, parse_math=False)
    return ax
