"""Films of a flow: how its base becomes the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.plotting.course import base_rows, path_of, quick
from cnf.plotting.film import Film
from cnf.plotting.panels import (
    POINTS,
    Bounds,
    bright,
    cells,
    column_limits,
    data_bounds,
    draw_samples,
    draw_shades,
    framed,
    proportioned,
    ratio,
    short_name,
    smooth_histogram,
)
from cnf.plotting.projection import draw_projection, name_axes
from cnf.plotting.style import MODEL_COLOR, darken

Array = NDArray[np.float64]

FRAMES = 48
ROWS = 60_000  # that stand for a density
WIDTH = 4.0  # inches
ACROSS = 160  # pixels of a density
TURN = 60.0  # degrees that a projection turns by in a film


def density_film(
    flow: Flow,
    data: Array,
    bounds: Bounds | None = None,
    dark: bool = False,
    frames: int = FRAMES,
    rows: int = ROWS,
    seed: int = 0,
) -> Film:
    """A film of the density of a flow's first two columns, from base to data.

    It is that of many samples, which are carried through the flow by one solve with an output for
    each frame, and counted in pixels.

    Args:
        flow: A flow over two columns or more, without a context.
        data: Rows (n, columns), by which the window is chosen.
        bounds: What is shown, in its proportions; a square window around the data when None.
        dark: Whether it is on a dark page.
        frames: How many times are shown.
        rows: How many samples.
        seed: Of the samples.
    """
    shown = bounds or data_bounds(data[:, :2])
    path = path_of(quick(flow), base_rows(flow, rows, seed), frames)[..., :2]
    grid = cells(bounds, ACROSS)
    densities = [smooth_histogram(frame, shown, grid) for frame in path]
    ceiling = bright(densities[-1])
    figure = Figure(figsize=(WIDTH, WIDTH * ratio(bounds) + 0.3), layout="constrained")
    ax = figure.subplots()
    image = draw_shades(ax, densities[0], shown, ceiling)
    title = framed(ax, shown).set_title("t = 0.00", fontsize=10, family="monospace")
    proportioned(figure, bounds)

    def draw(i: int) -> None:
        image.set_data(densities[i])
        title.set_text(_time(i, frames))

    return Film(_page(figure, dark), draw, frames)


def samples_film(
    flow: Flow,
    data: Array,
    names: Sequence[str],
    dark: bool = False,
    columns: Sequence[int] | None = None,
    frames: int = FRAMES,
    seed: int = 0,
) -> Film:
    """A film of samples on their way from base to data: the first two columns, or all three.

    Three columns are seen from a side that turns.

    Args:
        flow: A flow over two columns or more, without a context.
        data: Rows (n, columns), by which the window is chosen.
        names: Of the columns that are shown.
        dark: Whether it is on a dark page.
        columns: Which are shown, all when None.
        frames: How many times are shown.
        seed: Of the samples.
    """
    chosen = range(data.shape[1]) if columns is None else columns
    data = data[:, chosen]
    path = path_of(quick(flow), base_rows(flow, POINTS, seed), frames)[..., chosen]
    if path.shape[2] == 3:
        return _turning(path, data, names, dark)
    shown = data_bounds(data[:, :2])
    figure = Figure(figsize=(WIDTH, WIDTH + 0.3), layout="constrained")
    ax = draw_samples(figure.subplots(), path[0, :, :2], shown, MODEL_COLOR)
    ax.set_xlabel(short_name(names[0]), parse_math=False)
    ax.set_ylabel(short_name(names[1]), parse_math=False)
    title = ax.set_title(_time(0, frames), fontsize=10, family="monospace")
    (dots,) = ax.collections

    def draw(i: int) -> None:
        dots.set_offsets(path[i, :, :2])
        title.set_text(_time(i, frames))

    return Film(_page(figure, dark), draw, frames)


def _turning(path: Array, data: Array, names: Sequence[str], dark: bool) -> Film:
    figure = Figure(figsize=(WIDTH, WIDTH))
    ax = figure.add_subplot(projection="3d")
    limits, frames = column_limits(data), len(path)

    def draw(i: int) -> None:
        ax.clear()
        view = (20.0, -60.0 + TURN * i / max(1, frames - 1))
        name_axes(draw_projection(ax, path[i], limits, MODEL_COLOR, view), names)
        ax.set_title(_time(i, frames), fontsize=10, family="monospace")
        _page(figure, dark)

    return Film(figure, draw, frames)


def _page(figure: Figure, dark: bool) -> Figure:
    return darken(figure) if dark else figure


def _time(i: int, frames: int) -> str:
    return f"t = {i / max(1, frames - 1):.2f}"
