"""Single panels: scatter plots, shaded densities, axis limits."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cnf.plotting.style import DATA_COLOR, DENSITY_MAP, MODEL_COLOR

Array = NDArray[np.float64]
Density = Callable[[Array], Array]
"""Log-density (n,) of rows (n, dim)."""

Bounds = tuple[tuple[float, float], tuple[float, float]]

GridSize = int | tuple[int, int]
"""Cells of a grid along each side, or along x and along y."""

SCATTER_POINTS = 2000  # more would cover one another
DENSITY_PIXELS = 160  # along each side of a panel


def draw_samples(ax: Axes, samples: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Scatter rows (n, 2) in the window `bounds`."""
    x, y = samples[:SCATTER_POINTS].T
    ax.scatter(x, y, s=dot_size(samples), color=color, alpha=0.5, linewidths=0)
    return frame_panel(ax, bounds)


def draw_density(
    ax: Axes,
    log_prob: Density,
    bounds: Bounds,
    ceiling: float | None = None,
    grid: GridSize = DENSITY_PIXELS,
) -> Axes:
    """Shade the density over `bounds` of a function of rows (n, 2) that returns log p (n,).

    The brightest colour stands for the density `ceiling`; for the largest on the grid when None.
    """
    draw_shades(ax, density_on_grid(log_prob, bounds, grid), bounds, ceiling)
    return frame_panel(ax, bounds)


def draw_shades(
    ax: Axes, density: Array, bounds: Bounds, ceiling: float | None = None
) -> AxesImage:
    """Shade densities on a grid over `bounds`, the lowest row first."""
    window = (*bounds[0], *bounds[1])
    image = ax.imshow(density, DENSITY_MAP, origin="lower", extent=window, vmin=0, vmax=ceiling)
    image.set_interpolation("bilinear")
    ax.set_aspect("auto")
    return image


def density_on_grid(log_prob: Density, bounds: Bounds, grid: GridSize = DENSITY_PIXELS) -> Array:
    """Return a density at the centres of cells, shape (along y, along x), the lowest row first."""
    across, up = grid_sides(grid)
    return np.asarray(np.exp(log_prob(grid_points(bounds, grid))).reshape(up, across))


def bright_density(density: Array) -> float:
    """Return the density of the brightest colour: its 99.5 % quantile over the pixels."""
    finite = density[np.isfinite(density)]  # their maximum may be a spike that darkens the rest
    return float(np.quantile(finite, 0.995)) if finite.size else 1.0


def smooth_histogram(
    samples: Array, bounds: Bounds, grid: GridSize = DENSITY_PIXELS, blur: float = 0.8
) -> Array:
    """Return a smoothed histogram density of rows (n, 2), (along y, along x), lowest row first.

    The counts are smoothed by a Gaussian of deviation `blur` cells. Rows outside the grid count in
    the normalisation.

    Example:
        >>> rows = np.random.default_rng(0).uniform(size=(10_000, 2))
        >>> density = smooth_histogram(rows, ((0.0, 1.0), (0.0, 1.0)), grid=4)
        >>> bool((abs(density - 1) < 0.2).all())
        True
    """
    sides = grid_sides(grid)
    counts = np.histogram2d(samples[:, 0], samples[:, 1], sides, bounds)[0].T
    pixel = np.prod(np.diff(bounds)) / np.prod(sides)
    return np.asarray(gaussian_filter(counts, blur, mode="reflect") / (len(samples) * pixel))


def grid_sides(grid: GridSize) -> tuple[int, int]:
    """Return the cells of a grid along x and along y."""
    return (grid, grid) if isinstance(grid, int) else grid


def grid_points(bounds: Bounds, grid: GridSize) -> Array:
    """Return the centres of cells over `bounds`, shape (cells, 2), the lowest row first."""
    (x0, x1), (y0, y1) = bounds
    across, up = grid_sides(grid)
    x = x0 + (np.arange(across) + 0.5) / across * (x1 - x0)
    y = y0 + (np.arange(up) + 0.5) / up * (y1 - y0)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def data_bounds(data: Array) -> Bounds:
    """Return a window a little wider than rows (n, 2) without the outermost 0.1 % per side."""
    low, high = np.quantile(data, (0.001, 0.999), axis=0)
    half = np.where(high > low, 0.6 * (high - low), 0.5)  # a single row has no width
    center = (low + high) / 2
    (x0, y0), (x1, y1) = (center - half).tolist(), (center + half).tolist()
    return (x0, x1), (y0, y1)


def column_limits(data: Array) -> list[tuple[float, float]]:
    """Return the limits of each column of rows (n, columns) without gaps and outermost values."""
    low, high = np.nanquantile(data, (0.002, 0.998), axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5)  # a constant column has no width
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def legend_above(figure: Figure) -> None:
    """Place the colours of data and samples above the whole figure."""
    colors = ((DATA_COLOR, "data"), (MODEL_COLOR, "samples"))
    handles = [Patch(color=color, label=label) for color, label in colors]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)


def frame_panel(ax: Axes, bounds: Bounds) -> Axes:
    """Make axes a square panel of `bounds` without ticks."""
    ax.set(xlim=bounds[0], ylim=bounds[1], xticks=[], yticks=[])
    ax.set_box_aspect(1)
    return ax


def dot_size(rows: Array) -> float:
    """Return the size of dots in a scatter plot, larger where rows are few."""
    return min(12.0, max(2.0, 2 * SCATTER_POINTS / max(1, len(rows))))


def short_name(name: str, most: int = 24) -> str:
    """Return a column's name, cut to at most `most` letters.

    Example:
        >>> short_name("petal width (cm)", most=8)
        'petal w…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def short_labels(labels: Sequence[str], most: int = 16) -> list[str]:
    """Return labels of at most so many letters, with both ends where beginnings are equal.

    Example:
        >>> short_labels(["white", "a long name of one", "a long name of two"])
        ['white', 'a long …e of one', 'a long …e of two']
    """
    found = [short_name(label, most) for label in labels]
    if len({*found}) == len(found):
        return found
    half = most // 2
    return [
        label if len(label) <= most else f"{label[: most - half - 1]}…{label[-half:]}"
        for label in labels
    ]


def aspect_ratio(bounds: Bounds | None) -> float:
    """Return the height over the width of a panel of `bounds`; 1 when None."""
    if bounds is None:
        return 1.0
    (x0, x1), (y0, y1) = bounds
    return (y1 - y0) / (x1 - x0)


def grid_size(bounds: Bounds | None, across: int) -> GridSize:
    """Return the size of a grid of square cells, given the number of cells across.

    Example:
        >>> grid_size(((0.0, 4.0), (0.0, 1.0)), 100), grid_size(None, 100)
        ((100, 25), (100, 100))
    """
    return across, max(1, round(across * aspect_ratio(bounds)))


def keep_proportions(figure: Figure, bounds: Bounds | None) -> Figure:
    """Give the panels of a figure the proportions of `bounds`; square ones when None."""
    for ax in figure.get_axes():
        ax.set_box_aspect(aspect_ratio(bounds))
    return figure
