"""Comparisons of data with a flow's samples: marginals, correlations, log-densities."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from cnf.plotting.panels import Array, legend_above, short_name
from cnf.plotting.style import DATA_COLOR, MODEL_COLOR

MAX_MARGINAL_PANELS = 64
PANELS_PER_ROW = 4
MAX_NAMED_BARS = 8  # categories that are drawn, the most frequent; the others are one bar
MAX_BARS = 20  # whole numbers that are drawn as bars; more are binned
TAIL_SHARE = 0.002  # share of the values on each side that does not widen a histogram
RELATIVE_ROUNDING = float(np.finfo(np.float32).eps)  # samples are float32
MAX_NAMED_COLUMNS = 40  # columns whose names fit along a correlation map
MAX_SIDE_BY_SIDE_COLUMNS = 15  # columns up to which three maps fit side by side
MIN_DIFFERENCE_SCALE = 0.1  # range of the colours of differences, so that small ones stay pale


def marginals_figure(
    data: Array,
    samples: Array,
    columns: Sequence[str],
    most: int = MAX_MARGINAL_PANELS,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw histograms of the first columns of data (n, columns) and samples (m, columns).

    They have common bins. A column of at most twenty whole numbers is drawn as bars; its samples
    are rounded. The codes of a column with `categories` are drawn as bars with their names, the
    most frequent first.
    """
    categories = categories or {}
    shown = min(most, len(columns))
    across = min(PANELS_PER_ROW, shown)
    down = -(-shown // across)
    spaced = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = Figure(figsize=(max(4.0, 2.7 * across), 1.8 * down + 0.4), layout=spaced)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for i, ax in enumerate(panels[:shown]):
        if columns[i] in categories:
            draw_categories(ax, data[:, i], samples[:, i], categories[columns[i]])
        else:
            draw_marginal(ax, data[:, i], samples[:, i])
        # A $ in a name starts no formula.
        ax.set_title(short_name(columns[i], 30), fontsize=9, parse_math=False)
    for ax in panels[shown:]:
        ax.axis("off")
    legend_above(figure, panels[0])
    return figure


def draw_marginal(ax: Axes, data: Array, samples: Array) -> Axes:
    """Draw histograms of one column of data (n,) and its samples (m,), as shares of each.

    The outermost samples do not widen the panel and may lie outside it.
    """
    whole = bool((data == np.rint(data)).all())
    low, high = _window(data, np.rint(samples) if whole else samples)
    if whole and round(high) - round(low) < MAX_BARS:
        _draw_bars(ax, data, np.rint(samples), np.arange(round(low), round(high) + 1.0))
    else:
        _draw_steps(ax, data, samples, _edges(low, high, len(data), whole))
    ax.set(yticks=[], ylim=(0, None))
    ax.tick_params(labelsize=8)
    ax.xaxis.get_offset_text().set_fontsize(8)
    return ax


def draw_categories(ax: Axes, data: Array, samples: Array, names: Sequence[str]) -> Axes:
    """Draw the shares of codes of categories in data (n,) and samples (m,) as bars side by side.

    At most eight are named, the most frequent in the data first; the others are one bar.
    """
    shares = np.stack(
        [(each[:, None] == np.arange(len(names))).mean(0) for each in (data, samples)]
    )
    order = np.argsort(-shares[0], kind="stable")
    shares, labels = shares[:, order], [short_name(names[i], 14) for i in order]
    if len(labels) > MAX_NAMED_BARS + 1:
        rest = shares[:, MAX_NAMED_BARS:].sum(1, keepdims=True)
        shares = np.hstack([shares[:, :MAX_NAMED_BARS], rest])
        labels = [*labels[:MAX_NAMED_BARS], f"{len(names) - MAX_NAMED_BARS} others"]
    places = np.arange(len(labels))
    for share, color, label, shift in (
        (shares[0], DATA_COLOR, "data", -0.2),
        (shares[1], MODEL_COLOR, "flow", 0.2),
    ):
        ax.barh(places + shift, share, 0.4, color=color, label=label)
    ax.set_yticks(places, labels, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, None)
    ax.tick_params(labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    return ax


def correlations(rows: Array) -> Array:
    """Return Pearson's correlations of the columns of rows (n, columns); NaN for constant columns.

    Example:
        >>> correlations(np.array([[0.0, 0.0, 1.0], [1.0, -2.0, 1.0]])).round(2)
        array([[ 1., -1., nan],
               [-1.,  1., nan],
               [nan, nan, nan]])
    """
    spread = rows.std(0)
    varies = spread > RELATIVE_ROUNDING * np.abs(rows).max(0)
    standard = (rows - rows.mean(0)) / np.where(varies, spread, np.nan)
    return np.asarray(standard.T @ standard / len(rows))


def correlations_figure(data: Array, samples: Array, columns: Sequence[str]) -> Figure:
    """Draw three maps: `correlations` of data, of samples, and samples' minus data's.

    Undefined correlations are grey, and up to forty columns are named.
    """
    difference = samples - data
    largest = np.abs(difference[np.isfinite(difference)]).max(initial=MIN_DIFFERENCE_SCALE)
    maps = (
        (data, 1.0, "data"),
        (samples, 1.0, "flow: samples"),
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
    legend_above(figure, ax)
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
    for values, color, label in ((data, DATA_COLOR, "data"), (samples, MODEL_COLOR, "flow")):
        share = np.histogram(values[np.isfinite(values)], edges)[0] / len(values)
        ax.stairs(share, edges, color=color, lw=1.4, label=label)
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _draw_bars(ax: Axes, data: Array, samples: Array, numbers: Array) -> None:
    for values, color, label, left in (
        (data, DATA_COLOR, "data", -0.4),
        (samples, MODEL_COLOR, "flow", 0.0),
    ):
        share = (values[:, None] == numbers).mean(0)
        ax.bar(numbers + left, share, 0.4, align="edge", color=color, label=label)
    ax.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


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
