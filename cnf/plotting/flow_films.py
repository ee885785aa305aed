"""Films of a flow from base to data."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cnf.flow import Flow
from cnf.plotting.evolution import base_rows, path_of, quick
from cnf.plotting.film import Film
from cnf.plotting.panels import (
    SCATTER_POINTS,
    Array,
    Bounds,
    aspect_ratio,
    bright_density,
    column_limits,
    data_bounds,
    draw_samples,
    draw_shades,
    frame_panel,
    grid_size,
    keep_proportions,
    short_name,
    smooth_histogram,
)
from cnf.plotting.scatter import draw_projection, name_axes
from cnf.plotting.style import MODEL_COLOR, darken

FILM_FRAMES = 48
DENSITY_FILM_ROWS = 60_000
FILM_INCHES = 4.0
FILM_PIXELS = 160  # of a density, across
FILM_TURN_DEGREES = 60.0  # rotation of a projection during a film


def density_film(
    flow: Flow,
    data: Array,
    bounds: Bounds | None = None,
    dark: bool = False,
    frames: int = FILM_FRAMES,
    rows: int = DENSITY_FILM_ROWS,
    seed: int = 0,
) -> Film:
    """Return a film of the density of a flow's first two columns, from base to data.

    The density is a histogram of many samples, solved once with an output for each frame.

    Args:
        flow: A flow over two columns or more, without a context.
        data: Rows (n, columns), by which the window is chosen without `bounds`.
        bounds: Window ((xmin, xmax), (ymin, ymax)), whose proportions the panel keeps.
        dark: Whether the page is dark.
        frames: Number of frames.
        rows: Number of samples.
        seed: Seed of the samples.
    """
    shown = bounds or data_bounds(data[:, :2])
    path = path_of(quick(flow), base_rows(flow, rows, seed), frames)[..., :2]
    grid = grid_size(bounds, FILM_PIXELS)
    densities = [smooth_histogram(frame, shown, grid) for frame in path]
    ceiling = bright_density(densities[-1])
    size = (FILM_INCHES, FILM_INCHES * aspect_ratio(bounds) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    ax = frame_panel(figure.subplots(), shown)
    image = draw_shades(ax, densities[0], shown, ceiling)
    keep_proportions(figure, bounds)

    def draw(i: int) -> None:
        image.set_data(densities[i])
        _title(figure, i, frames, dark)

    return Film(figure, draw, frames)


def samples_film(
    flow: Flow,
    data: Array,
    names: Sequence[str],
    dark: bool = False,
    columns: Sequence[int] | None = None,
    frames: int = FILM_FRAMES,
    seed: int = 0,
) -> Film:
    """Return a film of samples moving from base to data: the first two columns, or all three.

    Three columns are projected from a rotating viewpoint. The arguments are `density_film`'s, and
    the names and the indices (all when None) of the columns that are drawn.
    """
    chosen = range(data.shape[1]) if columns is None else columns
    data = data[:, chosen]
    path = path_of(quick(flow), base_rows(flow, SCATTER_POINTS, seed), frames)[..., chosen]
    if path.shape[2] == 3:
        return _rotating_film(path, data, names, dark)
    shown = data_bounds(data[:, :2])
    figure = Figure(figsize=(FILM_INCHES, FILM_INCHES + 0.3), layout="constrained")
    ax = draw_samples(figure.subplots(), path[0, :, :2], shown, MODEL_COLOR)
    ax.set_xlabel(short_name(names[0]), parse_math=False)
    ax.set_ylabel(short_name(names[1]), parse_math=False)
    (dots,) = ax.collections

    def draw(i: int) -> None:
        dots.set_offsets(path[i, :, :2])
        _title(figure, i, frames, dark)

    return Film(figure, draw, frames)


def _rotating_film(path: Array, data: Array, names: Sequence[str], dark: bool) -> Film:
    figure = Figure(figsize=(FILM_INCHES, FILM_INCHES))
    ax = figure.add_subplot(projection="3d")
    limits, frames = column_limits(data), len(path)

    def draw(i: int) -> None:
        ax.clear()
        view = (20.0, -60.0 + FILM_TURN_DEGREES * i / max(1, frames - 1))
        name_axes(draw_projection(ax, path[i], limits, MODEL_COLOR, view), names)
        _title(figure, i, frames, dark)

    return Film(figure, draw, frames)


def _title(figure: Figure, i: int, frames: int, dark: bool) -> None:
    """Write the time of a frame above it, and darken its page or not."""
    time = f"t = {i / max(1, frames - 1):.2f}"
    figure.axes[0].set_title(time, fontsize=10, family="monospace")
    if dark:
        darken(figure)
