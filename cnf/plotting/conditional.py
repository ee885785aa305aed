"""Conditional densities at a few contexts, compared with the data nearest to each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.plotting.evolution import log_prob_of
from cnf.plotting.panels import (
    DENSITY_PIXELS,
    Array,
    Density,
    data_bounds,
    draw_density,
    draw_samples,
    short_name,
)
from cnf.plotting.style import DATA_COLOR, INK, MODEL_COLOR

Conditional = Callable[[Array, Array], Array]
"""Conditional log-density (n,) of rows (n, dim) given contexts (n, context columns)."""

Panel = tuple[str, Array, Mapping[str, Density]]
"""Title of a context, the data nearest to it, and the densities given it."""

SHOWN_CONTEXTS = 5
MIN_NEAREST_ROWS = 20  # rows drawn with a context, where a twentieth of all rows are fewer


def conditional_figure(
    flow: Flow,
    data: Array,
    context: Array,
    columns: Sequence[str],
    context_columns: Sequence[str],
    true_log_prob: Conditional | None = None,
) -> Figure:
    """Draw a conditional flow over one or two columns at a few contexts, with the nearest data.

    Args:
        flow: A flow over one or two columns, given a context.
        data: Rows (n, 1) or (n, 2).
        context: Contexts (n, context columns) of the rows; the density is drawn at `spread_rows`
            of them.
        columns: Names of the rows' columns.
        context_columns: Names of the contexts' columns.
        true_log_prob: True conditional log-density, if known.
    """
    densities: dict[str, Conditional] = {"flow": partial(log_prob_of, flow)}
    if true_log_prob:
        densities["truth"] = true_log_prob
    standard = _standardized(context)
    most = max(len(context) // 20, min(MIN_NEAREST_ROWS, len(context) // SHOWN_CONTEXTS), 1)
    panels = []
    for row in spread_rows(context, SHOWN_CONTEXTS):
        values = zip(context_columns[:3], context[row, :3], strict=True)
        title = "\n".join(f"{short_name(name)} = {x:.3g}" for name, x in values)
        title += "\n…" * (len(context_columns) > 3)
        nearest = np.argsort(((standard - standard[row]) ** 2).sum(1))[:most]
        given = {name: _given_context(each, context[row]) for name, each in densities.items()}
        panels.append((title, data[nearest], given))
    draw = _curves if data.shape[1] == 1 else _maps
    return draw(data, panels, [short_name(name) for name in columns])


def spread_rows(context: Array, count: int) -> NDArray[np.intp]:
    """Return indices of rows at evenly spread percentiles of contexts (n, columns), 5th to 95th.

    Several columns are ordered along their principal axis. Only contexts that occur are chosen.

    Example:
        >>> spread_rows(np.array([[4.0], [1.0], [3.0], [2.0]]), count=2)
        array([1, 0])
    """
    standard = _standardized(context)
    axis = np.linalg.svd(standard, full_matrices=False)[2][0]
    order = np.argsort(standard @ (axis * np.sign(axis[np.abs(axis).argmax()])))
    places = (np.linspace(0.05, 0.95, count) * (len(order) - 1)).round().astype(np.intp)
    return np.asarray(order[places])


def _standardized(context: Array) -> Array:
    spread = context.std(0)
    return np.asarray((context - context.mean(0)) / np.where(spread > 0, spread, 1.0))


def _given_context(log_prob: Conditional, context: Array) -> Density:
    return lambda rows: log_prob(rows, np.tile(context, (len(rows), 1)))


def _curves(data: Array, shown: Sequence[Panel], columns: Sequence[str]) -> Figure:
    """Draw one column: for each context the densities over a histogram of the nearest data."""
    figure = Figure(figsize=(2.6 * len(shown), 3.2), layout="constrained")
    (low, high), _ = data_bounds(np.hstack([data, data]))
    x = np.linspace(low, high, 4 * DENSITY_PIXELS)[:, None]
    styles = {"flow": (MODEL_COLOR, "-"), "truth": (INK, ":")}
    bars = {"density": True, "color": DATA_COLOR, "alpha": 0.3, "label": "data nearby"}
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharex=True))
    for ax, (title, rows, curves) in zip(panels, shown, strict=True):
        ax.hist(rows[:, 0], 50, range=(low, high), **bars)
        for name, log_prob in curves.items():
            color, line = styles[name]
            ax.plot(x[:, 0], np.exp(log_prob(x)), line, color=color, label=name)
        ax.set(xlim=(low, high), ylim=(0, None), yticks=[])
        ax.set_xlabel(columns[0], parse_math=False)
        ax.set_title(title, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _maps(data: Array, shown: Sequence[Panel], columns: Sequence[str]) -> Figure:
    """Draw two columns: for each context the nearest data and, below, the densities."""
    names, bounds = ["data nearby", *shown[0][2]], data_bounds(data)
    size = (2.4 * len(shown), 2.4 * len(names) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(names), len(shown), squeeze=False)
    for column, (title, rows, maps) in zip(panels.T, shown, strict=True):
        draw_samples(column[0], rows, bounds).set_title(title, parse_math=False)
        ceiling = None
        # The truth comes first: its largest density sets the colours of both.
        for ax, log_prob in reversed([*zip(column[1:], maps.values(), strict=True)]):
            draw_density(ax, log_prob, bounds, ceiling, DENSITY_PIXELS // 2)
            ceiling = ax.get_images()[0].get_clim()[1]
        column[-1].set_xlabel(columns[0], parse_math=False)
    for ax, name in zip(panels[:, 0], names, strict=True):
        ax.set_ylabel(f"{name}\n{columns[1]}", parse_math=False)
    return figure
