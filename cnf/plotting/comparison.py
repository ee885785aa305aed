"""Comparisons of data with samples: marginals, correlations, log-densities."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from cnf.datasets import Table
from cnf.plotting.cells import (
    EDGE_DIGITS,
    Codes,
    cells_of,
    column_of,
    is_boolean,
    is_discrete,
    label_numbers,
    spikes_of,
    value_text,
)
from cnf.plotting.panels import Array, legend_above, short_labels, short_name
from cnf.plotting.style import DATA_COLOR, MODEL_COLOR

MAX_MARGINAL_PANELS = 64
PANELS_PER_ROW = 4
MAX_NAMED_BARS = 10  # of more every second is named, and the last
MAX_BARS = 20  # whole numbers that are drawn as bars; more are binned
TAIL_SHARE = 0.002  # share of the values on each side that does not widen a histogram
RELATIVE_ROUNDING = float(np.finfo(np.float32).eps)  # samples are float32
MAX_NAMED_COLUMNS = 40  # columns whose names fit along a correlation map
MAX_SIDE_BY_SIDE_COLUMNS = 15  # columns up to which three maps fit side by side
MIN_DIFFERENCE_SCALE = 0.1  # range of the colours of differences, so that small ones stay pale


def marginals_figure(data: Table, samples: Table, most: int = MAX_MARGINAL_PANELS) -> Figure:
    """Draw the distributions of the first columns of data and samples, as `draw_marginal` does."""
    names = data.columns[:most]
    width, height = marginals_size(len(names))
    spaced = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = Figure(figsize=(width, height + 0.4), layout=spaced)
    draw_marginals(figure, data, samples, names)
    legend_above(figure)
    return figure


def marginals_size(columns: int) -> tuple[float, float]:
    """Return the width and height of columns' panels, in inches."""
    across = min(PANELS_PER_ROW, columns)
    return max(4.0, 2.7 * across), 1.8 * -(-columns // across)


def draw_marginals(
    figure: Figure | SubFigure, data: Table, samples: Table, names: Sequence[str]
) -> None:
    """Draw the distribution of each of some columns in a panel."""
    across = min(PANELS_PER_ROW, len(names))
    panels = figure.subplots(-(-len(names) // across), across, squeeze=False).ravel()
    for name, ax in zip(names, panels, strict=False):
        # A $ in a name starts no formula.
        draw_marginal(ax, data, samples, name).set_title(
            short_name(name, 30), fontsize=9, parse_math=False
        )
    for ax in panels[len(names) :]:
        ax.axis("off")


def draw_marginal(ax: Axes, data: Table, samples: Table, name: str) -> Axes:
    """Draw the distribution of a column of data and of samples, as shares of each.

    Few values have bars side by side: categories with their names, the most frequent first, and at
    most twenty whole numbers, to which samples are rounded, with a bar of gaps. Others have
    histograms with common bins, and the values that occur with a mass have bars beside these. Gaps
    count in the shares. The outermost samples do not widen the panel and may lie outside it.
    """
    values, drawn = (column_of(table, name) for table in (data, samples))
    known = values[~np.isnan(values)]
    whole = name not in data.categories and bool((known == np.rint(known)).all())
    low, high = _window(values, np.rint(drawn) if whole else drawn)
    if whole and round(high) - round(low) < MAX_BARS and not is_boolean(data, name):
        _draw_whole(ax, values, np.rint(drawn), np.arange(round(low), round(high) + 1.0))
        _frame_shares(ax)
    elif is_discrete(data, name):
        _draw_cells(ax, *cells_of(data, samples, name))
    elif len(spikes := spikes_of(values)):
        _draw_spikes(ax, data, samples, name, spikes)
    else:
        _draw_steps(ax, values, drawn, _edges(low, high, len(values), whole))
        label_numbers(ax.xaxis, data, name)
        _frame_shares(ax)
    return ax


def _draw_whole(ax: Axes, data: Array, samples: Array, numbers: Array) -> None:
    """Draw bars of whole numbers, and one of gaps where there are any."""
    ticks = MaxNLocator(6, integer=True)
    ax.xaxis.set_major_locator(ticks)
    if np.isnan(data).any() or np.isnan(samples).any():
        gap = numbers[-1] + 2.0
        data, samples = (np.where(np.isnan(each), gap, each) for each in (data, samples))
        room = max(2.0, 0.2 * len(numbers))  # of the name
        shown = [
            each
            for each in ticks.tick_values(numbers[0], numbers[-1])
            if numbers[0] <= each <= gap - room
        ]
        numbers = np.append(numbers, gap)
        ax.set_xticks([*shown, gap], [*(f"{each:g}" for each in shown), "missing"])
    _draw_bars(ax, data, samples, numbers, numbers)


def _frame_shares(ax: Axes) -> None:
    ax.set(yticks=[], ylim=(0, None))
    ax.tick_params(labelsize=8)
    ax.xaxis.get_offset_text().set_fontsize(8)


def _draw_spikes(ax: Axes, data: Table, samples: Table, name: str, spikes: Array) -> None:
    """Draw bars of values with a mass, and beside them histograms of the others."""
    ax.axis("off")
    width, places = 0.1 + 0.06 * len(spikes), np.arange(1.0 * len(spikes))
    bars, steps = (
        ax.inset_axes((left, 0, across, 1))
        for left, across in ((0, width), (width + 0.04, 0.96 - width))
    )
    values, drawn = (column_of(table, name) for table in (data, samples))
    _draw_bars(bars, values, drawn, spikes, places)
    bars.set_xticks(places, [value_text(data, name, value, EDGE_DIGITS) for value in spikes])
    bars.tick_params(labelsize=7)
    bars.yaxis.set_major_locator(MaxNLocator(3))
    rest, others = (np.where(np.isin(each, spikes), np.nan, each) for each in (values, drawn))
    known = rest[~np.isnan(rest)]
    whole = bool((known == np.rint(known)).all())
    _draw_steps(steps, rest, others, _edges(*_window(rest, others), len(known), whole))
    label_numbers(steps.xaxis, data, name)
    _frame_shares(steps)


def _draw_cells(ax: Axes, labels: Sequence[str], data: Codes, samples: Codes) -> None:
    """Draw the shares of cells as bars side by side, with as many names as there is room for."""
    places = np.arange(len(labels))
    for codes, color, shift in ((data, DATA_COLOR, -0.2), (samples, MODEL_COLOR, 0.2)):
        share = np.bincount(codes, minlength=len(labels)) / len(codes)
        ax.barh(places + shift, share, 0.4, color=color)
    apart = -(-len(labels) // MAX_NAMED_BARS)
    named = np.union1d(places[::apart], places[-1:])
    ax.set_yticks(named, short_labels([labels[i] for i in named], 14), parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, None)
    ax.tick_params(labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(3))


def correlations(rows: Array) -> Array:
    """Return Pearson's correlations of the columns of rows (n, columns); NaN for constant columns.

    Those of columns with gaps are of the pairs of values that are there.

    Example:
        >>> correlations(np.array([[0.0, 0.0, 1.0], [1.0, -2.0, 1.0]])).round(2)
        array([[ 1., -1., nan],
               [-1.,  1., nan],
               [nan, nan, nan]])
    """
    import pandas as pd  # here, since it takes long to import

    found = pd.DataFrame(rows)
    varies = found.std(ddof=0) > RELATIVE_ROUNDING * found.abs().max()
    return found.where(varies, axis=1).corr().to_numpy()


def correlations_figure(data: Array, samples: Array, columns: Sequence[str]) -> Figure:
    """Draw three maps: `correlations` of data, of samples, and samples' minus data's.

    Undefined correlations are grey, and up to forty columns are named.
    """
    difference = samples - data
    largest = np.abs(difference[np.isfinite(difference)]).max(initial=MIN_DIFFERENCE_SCALE)
    maps = (
        (data, 1.0, "data"),
        (samples, 1.0, "samples"),
        (difference, largest, "samples minus data"),
    )
    figure, axes = _map_axes(len(columns))
    # Side by side, the first two maps share a colour bar, and all share the names of the rows.
    stacked = MAX_SIDE_BY_SIDE_COLUMNS < len(columns) <= MAX_NAMED_COLUMNS
    for i, (ax, (values, limit, title)) in enumerate(zip(axes, maps, strict=True)):
        drawn = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.set_facecolor("0.75")
        if stacked or i > 0:
            figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.02).ax.tick_params(labelsize=8)
        _name_map(ax, columns, rows=stacked or i == 0)
    return figure


def log_prob_figure(data: Array, samples: Array) -> Figure:
    """Draw histograms of log p of data (n,) and of samples (m,), as shares of each.

    The title counts the values that lie outside the panel.
    """
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    ax = figure.subplots()
    low, high = _window(data, samples)
    _draw_steps(ax, data, samples, _edges(low, high, len(data), whole=False))
    ax.set(xlabel="log p in nats", ylabel="share of the rows", ylim=(0, None))
    outside = [int(((values < low) | (values > high)).sum()) for values in (data, samples)]
    if any(outside):
        title = "outside of the panel: {} of the data, {} of the samples".format(*outside)
        ax.set_title(title, loc="left", fontsize=8)
    legend_above(figure)
    return figure


def _window(data: Array, samples: Array) -> tuple[float, float]:
    """Return the limits of a histogram of data and samples without their outermost values."""
    (low, high), (left, right) = _span(data), _span(samples)
    least = RELATIVE_ROUNDING * max(abs(low), abs(high))
    width = high - low
    if width > least:  # distant samples must not blur the data
        left, right = max(left, low - width), min(right, high + width)
    low, high = min(low, left), max(high, right)
    margin = 0.02 * (max(high - low, least) or 1.0)
    return low - margin, high + margin


def _span(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 0.0
    low, high = np.quantile(finite, (TAIL_SHARE, 1 - TAIL_SHARE)).tolist()
    return low, high


def _edges(low: float, high: float, rows: int, whole: bool) -> Array:
    """Return the edges of bins by Rice's rule; each holds equally many whole numbers."""
    bins = int(np.clip(2 * np.cbrt(rows), 12, 60))
    if not whole:
        return np.linspace(low, high, bins + 1)
    step = max(1, round((high - low) / bins))
    return np.arange(np.floor(low) - 0.5, np.ceil(high) + 0.5 + step, step)


def _draw_steps(ax: Axes, data: Array, samples: Array, edges: Array) -> None:
    for values, color in ((data, DATA_COLOR), (samples, MODEL_COLOR)):
        share = np.histogram(values[np.isfinite(values)], edges)[0] / len(values)
        ax.stairs(share, edges, color=color, lw=1.4)
    ax.set_xlim(edges[0], edges[-1])


def _draw_bars(ax: Axes, data: Array, samples: Array, values: Array, places: Array) -> None:
    """Draw the shares of single values at places, of data and of samples side by side."""
    for each, color, left in ((data, DATA_COLOR, -0.4), (samples, MODEL_COLOR, 0.0)):
        share = (each[:, None] == values).mean(0)
        ax.bar(places + left, share, 0.4, align="edge", color=color)
    ax.set_xlim(places[0] - 0.6, places[-1] + 0.6)


def _map_axes(columns: int) -> tuple[Figure, Sequence[Axes]]:
    """Lay out three axes for maps: side by side, or one below another where names need room."""
    names = 1.6 if columns <= MAX_NAMED_COLUMNS else 0.3
    if MAX_SIDE_BY_SIDE_COLUMNS < columns <= MAX_NAMED_COLUMNS:
        side = 0.2 * columns
        figure = Figure(figsize=(side + names + 0.8, 3 * (side + names)), layout="compressed")
        return figure, figure.subplots(3, 1)
    side = max(2.4, 0.2 * columns) if columns <= MAX_SIDE_BY_SIDE_COLUMNS else 3.2
    figure = Figure(figsize=(3 * side + names + 1.2, side + names), layout="compressed")
    return figure, figure.subplots(1, 3)


def _name_map(ax: Axes, columns: Sequence[str], rows: bool) -> None:
    ax.set(xticks=[], yticks=[])
    if len(columns) > MAX_NAMED_COLUMNS:
        return
    names = [short_name(name, 20) for name in columns]
    size = 8 if len(columns) <= MAX_SIDE_BY_SIDE_COLUMNS else 7
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=size, parse_math=False)
    if rows:
        ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
