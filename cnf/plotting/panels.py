"""A panel each: rows as dots, a density as shades, where it begins and ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cnf.plotting.style import DATA_COLOR, DENSITY_MAP

Array = NDArray[np.float64]
Bounds = tuple[tuple[float, float], tuple[float, float]]

Cells = int | tuple[int, int]
"""Of a grid: along each side, or along x and along y."""

POINTS = 2000  # drawn in a scatter: more only turn into a blot
GRID = 160


def draw_samples(ax: Axes, samples: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Scatter rows (n, 2) within `bounds`."""
    x, y = samples[:POINTS].T
    ax.scatter(x, y, s=dot(samples), color=color, alpha=0.5, linewidths=0)
    return framed(ax, bounds)


def draw_density(
    ax: Axes,
    log_prob: Callable[[Array], Array],
    bounds: Bounds,
    ceiling: float | None = None,
    grid: Cells = GRID,
) -> Axes:
    """Shade a density over `bounds`.

    Args:
        ax: Where to draw.
        log_prob: Takes rows (n, 2), gives log-densities (n,).
        bounds: ((xmin, xmax), (ymin, ymax)).
        ceiling: The density of the brightest colour; the largest on the grid when None.
        grid: Pixels along each side.
    """
    draw_shades(ax, density_on_grid(log_prob, bounds, grid), bounds, ceiling)
    return framed(ax, bounds)


def draw_shades(
    ax: Axes, density: Array, bounds: Bounds, ceiling: float | None = None
) -> AxesImage:
    """Shade densities on a grid over `bounds`, the lowest row first."""
    (x0, x1), (y0, y1) = bounds
    return ax.imshow(
        density,
        extent=(x0, x1, y0, y1),
        origin="lower",
        aspect="auto",
        cmap=DENSITY_MAP,
        interpolation="bilinear",
        vmin=0,
        vmax=ceiling,
    )


def density_on_grid(
    log_prob: Callable[[Array], Array], bounds: Bounds, grid: Cells = GRID
) -> Array:
    """A density at a grid's centres, shape (along y, along x), the lowest row first."""
    across, up = sides(grid)
    return np.asarray(np.exp(log_prob(grid_points(bounds, grid))).reshape(up, across))


def bright(density: Array) -> float:
    """The density that is to have the brightest colour: few pixels are above it.

    The densest ones may be spikes that alone would leave the rest dark.
    """
    finite = density[np.isfinite(density)]
    return float(np.quantile(finite, 0.995)) if finite.size else 1.0


def smooth_histogram(
    samples: Array, bounds: Bounds, grid: Cells = GRID, blur: float = 0.8
) -> Array:
    """The density of rows (n, 2) in a grid's cells, shape (along y, along x), the lowest row first.

    Rows are counted in pixels, and the counts smoothed by a Gaussian of `blur` pixels. Those off
    the grid count in its scale, so that it is a density of all.

    Example:
        >>> rows = np.random.default_rng(0).uniform(size=(10_000, 2))
        >>> density = smooth_histogram(rows, ((0.0, 1.0), (0.0, 1.0)), grid=4)
        >>> bool((abs(density - 1) < 0.2).all())
        True
    """
    (x0, x1), (y0, y1) = bounds
    across, up = sides(grid)
    edges = np.linspace(x0, x1, across + 1), np.linspace(y0, y1, up + 1)
    counts = np.histogram2d(samples[:, 0], samples[:, 1], edges)[0].T
    pixel = (x1 - x0) * (y1 - y0) / (across * up)
    return np.asarray(gaussian_filter(counts, blur, mode="reflect") / (len(samples) * pixel))


def sides(grid: Cells) -> tuple[int, int]:
    """A grid's cells along x and along y."""
    return (grid, grid) if isinstance(grid, int) else grid


def grid_points(bounds: Bounds, grid: Cells) -> Array:
    """The centres of a grid's cells over `bounds`, shape (cells, 2), the lowest row first."""
    (x0, x1), (y0, y1) = bounds
    across, up = sides(grid)
    x = x0 + (np.arange(across) + 0.5) / across * (x1 - x0)
    y = y0 + (np.arange(up) + 0.5) / up * (y1 - y0)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def data_bounds(data: Array) -> Bounds:
    """A square window around rows (n, 2), a little wider than all but the outermost."""
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    half = 0.6 * (high - low)
    half = np.where(half > 0, half, 0.5)  # as of a single row
    center = (low + high) / 2
    (x0, y0), (x1, y1) = (center - half).tolist(), (center + half).tolist()
    return (x0, x1), (y0, y1)


def column_limits(data: Array) -> list[tuple[float, float]]:
    """Where each column of rows (n, columns) begins and ends, but for its outermost rows.

    Half a unit around where nearly all are the same number, as whole numbers may be.
    """
    low, high = np.quantile(data, (0.002, 0.998), axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5)
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def legend_above(figure: Figure, ax: Axes) -> None:
    """The legend of axes above the whole figure."""
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )


def framed(ax: Axes, bounds: Bounds) -> Axes:
    """A square panel of `bounds` without ticks."""
    ax.set(xlim=bounds[0], ylim=bounds[1], xticks=[], yticks=[])
    ax.set_box_aspect(1)
    return ax


def dot(rows: Array) -> float:
    """The size of a dot in a scatter: few rows are seen only as larger ones."""
    return min(12.0, max(2.0, 2 * POINTS / max(1, len(rows))))


def short_name(name: str, most: int = 24) -> str:
    """A column's name where there is little room.

    Example:
        >>> short_name("petal width (cm)", most=8)
        'petal w…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def ratio(bounds: Bounds | None) -> float:
    """The height of a panel over its width, where it keeps the proportions of `bounds`; else 1."""
    if bounds is None:
        return 1.0
    (x0, x1), (y0, y1) = bounds
    return (y1 - y0) / (x1 - x0)


def cells(bounds: Bounds | None, across: int) -> Cells:
    """So many cells across, and as many up as make them square on the page.

    Example:
        >>> cells(((0.0, 4.0), (0.0, 1.0)), 100), cells(None, 100)
        ((100, 25), (100, 100))
    """
    return across, max(1, round(across * ratio(bounds)))


def proportioned(figure: Figure, bounds: Bounds | None) -> Figure:
    """A figure whose panels keep the proportions of `bounds`; as it is without them."""
    for ax in figure.get_axes():
        ax.set_box_aspect(ratio(bounds))
    return figure
