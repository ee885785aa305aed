"""Pairs of columns of mixed tables: maps of joint shares, densities by category, contours."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from scipy.ndimage import gaussian_filter1d

from cnf.datasets import Table
from cnf.diagnostics.similarity import PairTrend, pair_trends
from cnf.plotting.cells import Codes, cells_of, column_of, is_smooth, label_numbers
from cnf.plotting.comparison import draw_marginals, marginals_size
from cnf.plotting.panels import Array, column_limits, legend_above, short_labels, short_name
from cnf.plotting.scatter import draw_contours, draw_dots
from cnf.plotting.style import DATA_COLOR, MODEL_COLOR, SHARES_MAP

MAX_PAIRS = 10
PAIRS_PER_ROW = 2
PAIR_SIZE = (5.6, 2.9)  # inches
SHAPE_BINS = 60
SHAPE_BLUR = 1.5  # bins
SHAPE_HEIGHT = 0.42  # of the larger of two densities, where categories are 1 apart


def mixed_pairs_figure(data: Table, samples: Table, most: int = MAX_PAIRS) -> Figure:
    """Draw the pairs of columns whose association differs most, below the columns' distributions.

    The pairs are in the order of `cnf.diagnostics.similarity.pair_trends`, as `pair_shares_figure`
    draws them, and their columns are bars or histograms.

    Args:
        data: Rows of real numbers, and of codes of categories.
        samples: Draws of a model, with the same columns.
        most: The most pairs.

    Raises:
        ValueError: The tables' columns differ.
    """
    trends = pair_trends(data, samples)
    pairs = trends[:most]
    paired = {name for pair in pairs for name in (pair.a, pair.b)}
    names = [name for name in data.columns if name in paired or not pairs]
    (width, height), (across, below) = marginals_size(len(names)), _pairs_size(len(pairs))
    size = (max(width, across), height + below + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    ratios = [height, below] if pairs else [height]
    parts = figure.subfigures(len(ratios), 1, squeeze=False, height_ratios=ratios)
    upper, *lower = parts.ravel()
    draw_marginals(upper, data, samples, names)
    for part in lower:
        _draw_pairs(part, data, samples, pairs)
    legend_above(figure)
    if len(pairs) < len(trends):
        figure.supxlabel(
            f"the {len(pairs)} of {len(trends)} pairs of columns that differ most", fontsize=9
        )
    return figure


def pair_shares_figure(data: Table, samples: Table, pairs: Sequence[PairTrend]) -> Figure:
    """Draw pairs of columns of data and of samples.

    - Two columns of numbers are dots, and contours that enclose 50 % and 90 % of the rows.
    - Numbers and few values, or categories, are densities of the former given each of the latter.
    - All others are heat maps of joint shares, of data and of samples side by side, with common
      colours, by the square roots of shares, so that small ones are visible. Categories are named,
      the most frequent in the data first, and those beyond nine are one cell. Numbers with tied
      deciles are cut at these.
    """
    width, height = _pairs_size(len(pairs))
    figure = Figure(figsize=(width, height + 0.4), layout="constrained")
    _draw_pairs(figure, data, samples, pairs)
    legend_above(figure)
    return figure


def _pairs_size(pairs: int) -> tuple[float, float]:
    width, height = PAIR_SIZE
    return width * min(PAIRS_PER_ROW, pairs), height * -(-pairs // PAIRS_PER_ROW)


def _draw_pairs(
    figure: Figure | SubFigure, data: Table, samples: Table, pairs: Sequence[PairTrend]
) -> None:
    across = min(PAIRS_PER_ROW, len(pairs))
    parts = figure.subfigures(-(-len(pairs) // across), across, squeeze=False).ravel()
    for part, pair in zip(parts, pairs, strict=False):
        smooth = [name for name in (pair.a, pair.b) if is_smooth(data, name)]
        if len(smooth) == 2:
            _draw_numbers(part, data, samples, pair)
        elif smooth:
            other = pair.b if smooth == [pair.a] else pair.a
            _draw_shapes(part.subplots(), data, samples, smooth[0], other)
        else:
            _draw_maps(part, data, samples, pair)
        differ = f"difference {pair.error:.3f}, by chance {pair.chance:.3f}"
        part.suptitle(f"{differ}, of a column alone {pair.alone:.3f}", fontsize=8)


def _draw_numbers(part: SubFigure, data: Table, samples: Table, pair: PairTrend) -> None:
    """Draw dots and, next to them, contours of two columns of numbers."""
    axes = part.subplots(1, 2, sharey=True)
    both = [table.select((pair.a, pair.b)).values for table in (data, samples)]
    both = [rows[~np.isnan(rows).any(1)] for rows in both]
    across, up = column_limits(both[0])
    for rows, color in zip(both, (DATA_COLOR, MODEL_COLOR), strict=True):
        draw_dots(axes[0], rows, (across, up), color)
        draw_contours(axes[1], rows, (across, up), color)
    for ax in axes:
        ax.tick_params(labelsize=7)
        label_numbers(ax.xaxis, data, pair.a)
        label_numbers(ax.yaxis, data, pair.b)
        _name_axes(ax, pair.a, pair.b)
    axes[1].set_ylabel("")


def _draw_shapes(ax: Axes, data: Table, samples: Table, number: str, other: str) -> None:
    """Draw the density of a number given each cell of another column: data up, samples down."""
    labels, *codes = cells_of(data, samples, other)
    columns = [column_of(table, number) for table in (data, samples)]
    (window,) = column_limits(columns[0][~np.isnan(columns[0]), None])
    edges = np.linspace(*window, SHAPE_BINS + 1)
    for place in range(len(labels)):
        shapes = [
            _density(each[code == place], edges) for each, code in zip(columns, codes, strict=True)
        ]
        scale = SHAPE_HEIGHT / max(1e-300, *(shape.max() for shape in shapes))
        for shape, way, color in zip(shapes, (-1, 1), (DATA_COLOR, MODEL_COLOR), strict=True):
            heights = place + way * scale * shape
            ax.fill_between(edges[:-1] + np.diff(edges) / 2, heights, place, color=color, lw=0)
    ax.set(xlim=window, ylim=(len(labels) - 0.5, -0.5))
    ax.set_yticks(range(len(labels)), short_labels(labels), parse_math=False)
    ax.tick_params(labelsize=7)
    label_numbers(ax.xaxis, data, number)
    _name_axes(ax, number, other)


def _density(values: Array, edges: Array) -> Array:
    """Return a smoothed histogram; zeros where there are no values."""
    share = np.histogram(values[~np.isnan(values)], edges)[0] / max(1, len(values))
    return np.asarray(gaussian_filter1d(share, SHAPE_BLUR, mode="constant"))


def _draw_maps(part: SubFigure, data: Table, samples: Table, pair: PairTrend) -> None:
    """Draw the joint shares of data and of samples as heat maps of common colours."""
    across, x, drawn_x = cells_of(data, samples, pair.a)
    up, y, drawn_y = cells_of(data, samples, pair.b)
    shares = [
        _joint_shares(a, b, (len(across), len(up))).T for a, b in ((x, y), (drawn_x, drawn_y))
    ]
    axes, largest = part.subplots(1, 2, sharey=True), max(each.max() for each in shares)
    for ax, share, title in zip(axes, shares, ("data", "samples"), strict=True):
        drawn = ax.imshow(share, SHARES_MAP, PowerNorm(0.5, 0, largest), aspect="auto")
        ax.set_title(title, fontsize=8)
        # A $ in a name starts no formula.
        ax.set_xticks(range(len(across)), short_labels(across), rotation=90, parse_math=False)
        ax.tick_params(labelsize=7)
        _name_axes(ax, pair.a, pair.b)
    axes[0].set_yticks(range(len(up)), short_labels(up), parse_math=False)
    axes[1].set_ylabel("")
    part.colorbar(drawn, ax=[*axes], shrink=0.8, pad=0.02).ax.tick_params(labelsize=7)


def _joint_shares(a: Codes, b: Codes, sides: tuple[int, int]) -> Array:
    counts = np.bincount(a * sides[1] + b, minlength=sides[0] * sides[1])
    return counts.reshape(sides) / len(a)


def _name_axes(ax: Axes, across: str, up: str) -> None:
    ax.set_xlabel(short_name(across), fontsize=8, parse_math=False)
    ax.set_ylabel(short_name(up), fontsize=8, parse_math=False)
