"""Conditional densities at a few contexts, compared with the data nearest to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.flow import Flow
from cnf.plotting.evolution import log_prob_of
from cnf.plotting.panels import (
    DENSITY_PIXELS,
    data_bounds,
    draw_density,
    draw_samples,
    short_name,
)
from cnf.plotting.style import DATA_COLOR, INK, MODEL_COLOR

Array = NDArray[np.float64]
Conditional = Callable[[Array, Array], Array]
"""Conditional log-density (n,) of rows (n, dim) given contexts (n, context columns)."""

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
    shown = spread_rows(context, SHOWN_CONTEXTS)
    near = [data[_nearest(context, row)] for row in shown]
    densities: dict[str, Conditional] = {"flow": partial(log_prob_of, flow)}
    if true_log_prob:
        densities["truth"] = true_log_prob
    draw = _curves if data.shape[1] == 1 else _maps
    return draw(data, context[shown], near, densities, columns, context_columns)


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


def _nearest(context: Array, row: int) -> NDArray[np.intp]:
    """Return indices of the twentieth of the rows whose contexts are nearest to a row's.

    At least twenty rows are returned where the drawn contexts remain separate.
    """
    standard = _standardized(context)
    distance = ((standard - standard[row]) ** 2).sum(1)
    most = max(len(context) // 20, min(MIN_NEAREST_ROWS, len(context) // SHOWN_CONTEXTS), 1)
    return np.argsort(distance)[:most]


def _given_context(log_prob: Conditional, context: Array) -> Callable[[Array], Array]:
    """Return the log-density of rows given one context."""
    return lambda rows: log_prob(rows, np.tile(context, (len(rows), 1)))


def _context_title(ax: Axes, names: Sequence[str], context: Array) -> None:
    """Write the context as the title, a line for each of the first three columns."""
    lines = [
        f"{short_name(name)} = {x:.3g}" for name, x in zip(names[:3], context[:3], strict=True)
    ]
    ax.set_title("\n".join([*lines, *["…"] * (len(names) > 3)]), parse_math=False)


def _curves(
    data: Array,
    contexts: Array,
    near: Sequence[Array],
    densities: dict[str, Conditional],
    columns: Sequence[str],
    context_columns: Sequence[str],
) -> Figure:
    """Draw one column: for each context the densities over a histogram of the nearest data."""
    figure = Figure(figsize=(2.6 * len(contexts), 3.2), layout="constrained")
    (low, high), _ = data_bounds(np.hstack([data, data]))
    x = np.linspace(low, high, 4 * DENSITY_PIXELS)[:, None]
    styles = {"flow": (MODEL_COLOR, "-"), "truth": (INK, ":")}
    panels = np.atleast_1d(figure.subplots(1, len(contexts), sharex=True))
    for ax, context, rows in zip(panels, contexts, near, strict=True):
        bars = {"density": True, "color": DATA_COLOR, "alpha": 0.3, "label": "data nearby"}
        ax.hist(rows[:, 0], 50, range=(low, high), **bars)
        for name, log_prob in densities.items():
            color, line = styles[name]
            ax.plot(
                x[:, 0], np.exp(_given_context(log_prob, context)(x)), line, color=color, label=name
            )
        ax.set(xlim=(low, high), ylim=(0, None), yticks=[])
        ax.set_xlabel(short_name(columns[0]), parse_math=False)
        _context_title(ax, context_columns, context)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _maps(
    data: Array,
    contexts: Array,
    near: Sequence[Array],
    densities: dict[str, Conditional],
    columns: Sequence[str],
    context_columns: Sequence[str],
) -> Figure:
    """Draw two columns: for each context the nearest data and, below, the densities."""
    figure = Figure(
        figsize=(2.4 * len(contexts), 2.4 * (1 + len(densities)) + 0.4), layout="constrained"
    )
    bounds = data_bounds(data)
    panels = figure.subplots(1 + len(densities), len(contexts), squeeze=False)
    for column, context, rows in zip(panels.T, contexts, near, strict=True):
        draw_samples(column[0], rows, bounds)
        _context_title(column[0], context_columns, context)
        ceiling = None
        # The truth comes first: its largest density sets the colours of both.
        for ax, log_prob in reversed([*zip(column[1:], densities.values(), strict=True)]):
            draw_density(
                ax, _given_context(log_prob, context), bounds, ceiling, DENSITY_PIXELS // 2
            )
            ceiling = ax.get_images()[0].get_clim()[1]
    for ax, name in zip(panels[:, 0], ["data nearby", *densities], strict=True):
        ax.set_ylabel(f"{name}\n{short_name(columns[1])}", parse_math=False)
    for ax in panels[-1]:
        ax.set_xlabel(short_name(columns[0]), parse_math=False)
    return figure
