"""Figures of densities, samples, paths and learning curves.

Every function that draws takes matplotlib axes and returns them; those called `…_figure` lay out a
whole figure. Nothing here touches pyplot's global state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import Tensor

from cnf.flow import Flow

Array = NDArray[np.float64]
Bounds = tuple[tuple[float, float], tuple[float, float]]
Conditional = Callable[[Array, Array], Array]
"""Rows (n, dim) and contexts (n, context columns) to log-densities (n,)."""

DENSITY_MAP = "magma"
DATA_COLOR = "#3b6fb6"
MODEL_COLOR = "#e07b39"
POINTS = 2000  # drawn in a scatter: more only turn into a blot
FRAMES = 5
GRID = 160
CHUNK = 4096  # rows scored in one solve
CONTEXTS = 5  # that a conditional density is drawn at
NEARBY = 20  # rows shown beside a density at a context, where a twentieth of all are fewer


def draw_samples(ax: Axes, samples: Array, bounds: Bounds, color: str = DATA_COLOR) -> Axes:
    """Scatter rows (n, 2) within `bounds`."""
    x, y = samples[:POINTS].T
    ax.scatter(x, y, s=_dot(samples), color=color, alpha=0.5, linewidths=0)
    return _frame(ax, bounds)


def draw_density(
    ax: Axes,
    log_prob: Callable[[Array], Array],
    bounds: Bounds,
    ceiling: float | None = None,
    grid: int = GRID,
) -> Axes:
    """Shade a density over `bounds`.

    Args:
        ax: Where to draw.
        log_prob: Takes rows (n, 2), gives log-densities (n,).
        bounds: ((xmin, xmax), (ymin, ymax)).
        ceiling: The density of the brightest colour; the largest on the grid when None.
        grid: Pixels along each side.
    """
    (x0, x1), (y0, y1) = bounds
    # Values at the centres of the pixels.
    x = x0 + (np.arange(grid) + 0.5) / grid * (x1 - x0)
    y = y0 + (np.arange(grid) + 0.5) / grid * (y1 - y0)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    density = np.exp(log_prob(points)).reshape(grid, grid)
    ax.imshow(
        density,
        extent=(x0, x1, y0, y1),
        origin="lower",
        aspect="auto",
        cmap=DENSITY_MAP,
        interpolation="bilinear",
        vmin=0,
        vmax=ceiling,
    )
    return _frame(ax, bounds)


def draw_learning_curve(
    ax: Axes, seconds: Sequence[float], loss: Sequence[float], validation_nll: Sequence[float]
) -> Axes:
    """Training loss and validation NLL over the seconds of training."""
    ax.plot(seconds, loss, color=DATA_COLOR, lw=1, label="training loss")
    ax.plot(seconds, validation_nll, color=MODEL_COLOR, label="validation NLL")
    if np.isfinite(validation_nll).any():
        best = int(np.nanargmin(validation_nll))
        ax.plot(seconds[best], validation_nll[best], "o", color=MODEL_COLOR, label="best")
    # The first values tower over the rest: show what came after them.
    shown = np.concatenate([np.asarray(loss), np.asarray(validation_nll)])
    shown = shown[np.isfinite(shown)]
    if shown.size:
        low, high = shown.min(), np.quantile(shown, 0.95)
        margin = 0.08 * max(high - low, 1e-9)
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="seconds", ylabel="nats per row")
    ax.legend(frameon=False)
    return ax


def density_figure(
    flow: Flow, data: Array, true_log_prob: Callable[[Array], Array] | None, seed: int = 0
) -> Figure:
    """A 2-D flow on one page: data, samples, density, truth where known; its path from the base.

    Args:
        flow: A flow over two columns, without a context.
        data: Rows (n, 2) to show beside its samples.
        true_log_prob: The true log-density, where it is known.
        seed: Seed of the samples.
    """
    bounds = data_bounds(data)
    samples, path = _samples_and_path(flow, seed)
    log_prob = partial(_log_prob, flow)
    columns = 4 if true_log_prob else 3
    figure = Figure(figsize=(3 * columns, 6.2), layout="constrained")
    upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1))
    panels = upper.subplots(1, columns)
    draw_samples(panels[0], data, bounds).set_title("data")
    draw_samples(panels[1], samples, bounds, MODEL_COLOR).set_title("flow: samples")
    ceiling = float(np.exp(log_prob(data[:POINTS])).max())
    if true_log_prob:
        ceiling = float(np.exp(true_log_prob(data[:POINTS])).max())
        draw_density(panels[3], true_log_prob, bounds, ceiling).set_title("truth: density")
    draw_density(panels[2], log_prob, bounds, ceiling).set_title("flow: density")
    stages = lower.subplots(1, FRAMES)
    for i, (ax, frame) in enumerate(zip(stages, path, strict=True)):
        draw_samples(ax, frame, bounds, MODEL_COLOR).set_title(f"t = {i / (FRAMES - 1):g}")
    lower.suptitle("from base (t = 0) to data (t = 1)")
    return figure


def conditional_figure(
    flow: Flow,
    data: Array,
    context: Array,
    columns: Sequence[str],
    context_columns: Sequence[str],
    true_log_prob: Conditional | None = None,
) -> Figure:
    """A conditional flow over one or two columns at a few contexts, beside the data near each.

    Args:
        flow: A flow over one or two columns, given a context.
        data: Rows (n, 1) or (n, 2).
        context: Their contexts (n, context columns); the density is drawn at `spread_rows` of them.
        columns: The rows' names.
        context_columns: The contexts' names.
        true_log_prob: The true conditional log-density, where it is known.
    """
    shown = spread_rows(context, CONTEXTS)
    near = [data[_nearest(context, row)] for row in shown]
    densities: dict[str, Conditional] = {"flow": partial(_log_prob, flow)}
    if true_log_prob:
        densities["truth"] = true_log_prob
    draw = _curves if data.shape[1] == 1 else _maps
    return draw(data, context[shown], near, densities, columns, context_columns)


def pairs_figure(data: Array, samples: Array, columns: Sequence[str], most: int = 6) -> Figure:
    """Data against samples: histograms on the diagonal, scatter of each pair of columns below it.

    Args:
        data: Rows (n, columns).
        samples: Rows (m, columns) drawn from the flow.
        columns: Names.
        most: The most columns shown; the first ones are.
    """
    shown = min(most, len(columns))
    figure = Figure(figsize=(1.9 * shown + 0.6, 1.9 * shown + 0.6), layout="constrained")
    axes = figure.subplots(shown, shown, squeeze=False)
    limits = [tuple(np.quantile(data[:, i], (0.002, 0.998))) for i in range(shown)]
    # Half a unit where nearly all are the same number, as whole numbers may be.
    margins = [0.05 * (high - low) or 0.5 for low, high in limits]
    limits = [(low - m, high + m) for (low, high), m in zip(limits, margins, strict=True)]
    for i in range(shown):
        for j in range(shown):
            _pair(axes[i, j], data, samples, (i, j), limits)
        # Names are shown as they are: a $ in one starts no formula.
        axes[-1, i].set_xlabel(columns[i], parse_math=False)
        axes[i, 0].set_ylabel(columns[i] if i else "", parse_math=False)
    handles = [
        axes[0, 0].plot([], [], "o", color=color, label=label)[0]
        for color, label in ((DATA_COLOR, "data"), (MODEL_COLOR, "flow"))
    ]
    figure.legend(handles=handles, loc="upper right", frameon=False)
    if shown < len(columns):
        figure.suptitle(f"the first {shown} of {len(columns)} columns")
    return figure


def data_bounds(data: Array) -> Bounds:
    """A square window around rows (n, 2), a little wider than all but the outermost."""
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    half = 0.6 * (high - low)
    half = np.where(half > 0, half, 0.5)  # as of a single row
    center = (low + high) / 2
    (x0, y0), (x1, y1) = (center - half).tolist(), (center + half).tolist()
    return (x0, x1), (y0, y1)


def spread_rows(context: Array, count: int) -> NDArray[np.intp]:
    """The rows at evenly spread quantiles of contexts (n, columns), from the 5th to the 95th.

    With several columns they are ordered along their principal axis, and the rows, being some of
    those given, are contexts that do occur.

    Example:
        >>> spread_rows(np.array([[4.0], [1.0], [3.0], [2.0]]), count=2)
        array([1, 0])
    """
    standard = _standardized(context)
    axis = np.linalg.svd(standard, full_matrices=False)[2][0]
    order = np.argsort(standard @ (axis * np.sign(axis[np.abs(axis).argmax()])))
    places = (np.linspace(0.05, 0.95, count) * (len(order) - 1)).round().astype(np.intp)
    return np.asarray(order[places])


def short_name(name: str, most: int = 24) -> str:
    """A column's name where there is little room.

    Example:
        >>> short_name("petal width (cm)", most=8)
        'petal w…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def png(figure: Figure, dpi: float = 110) -> bytes:
    """A figure as the content of a .png file."""
    content = BytesIO()
    with warnings.catch_warnings():  # a column's name may have letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def _standardized(context: Array) -> Array:
    spread = context.std(0)
    return np.asarray((context - context.mean(0)) / np.where(spread > 0, spread, 1.0))


def _nearest(context: Array, row: int) -> NDArray[np.intp]:
    """The rows whose contexts are nearest to that of a row: a twentieth of them.

    Of few rows it is more, but never more than keep the contexts that are drawn apart.
    """
    standard = _standardized(context)
    distance = ((standard - standard[row]) ** 2).sum(1)
    most = max(len(context) // 20, min(NEARBY, len(context) // CONTEXTS), 1)
    return np.argsort(distance)[:most]


def _at(log_prob: Conditional, context: Array) -> Callable[[Array], Array]:
    """The density of rows given one and the same context."""
    return lambda rows: log_prob(rows, np.tile(context, (len(rows), 1)))


def _context_title(ax: Axes, names: Sequence[str], context: Array) -> None:
    """What is given, a line for each of the first three columns."""
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
    """One column: a panel for each context, the densities over a histogram of the data near it."""
    figure = Figure(figsize=(2.6 * len(contexts), 3.2), layout="constrained")
    (low, high), _ = data_bounds(np.hstack([data, data]))
    x = np.linspace(low, high, 4 * GRID)[:, None]
    styles = {"flow": (MODEL_COLOR, "-"), "truth": ("black", ":")}
    panels = np.atleast_1d(figure.subplots(1, len(contexts), sharex=True))
    for ax, context, rows in zip(panels, contexts, near, strict=True):
        bars = {"density": True, "color": DATA_COLOR, "alpha": 0.3, "label": "data nearby"}
        ax.hist(rows[:, 0], 50, range=(low, high), **bars)
        for name, log_prob in densities.items():
            color, line = styles[name]
            ax.plot(x[:, 0], np.exp(_at(log_prob, context)(x)), line, color=color, label=name)
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
    """Two columns: for each context the data near it, and below it the densities."""
    figure = Figure(
        figsize=(2.4 * len(contexts), 2.4 * (1 + len(densities)) + 0.4), layout="constrained"
    )
    bounds = data_bounds(data)
    panels = figure.subplots(1 + len(densities), len(contexts), squeeze=False)
    for column, context, rows in zip(panels.T, contexts, near, strict=True):
        draw_samples(column[0], rows, bounds)
        _context_title(column[0], context_columns, context)
        ceiling = None
        # The truth first: its largest density sets the colours of both.
        for ax, log_prob in reversed([*zip(column[1:], densities.values(), strict=True)]):
            draw_density(ax, _at(log_prob, context), bounds, ceiling, GRID // 2)
            ceiling = ax.get_images()[0].get_clim()[1]
    for ax, name in zip(panels[:, 0], ["data nearby", *densities], strict=True):
        ax.set_ylabel(f"{name}\n{short_name(columns[1])}", parse_math=False)
    for ax in panels[-1]:
        ax.set_xlabel(short_name(columns[0]), parse_math=False)
    return figure


def _pair(
    ax: Axes,
    data: Array,
    samples: Array,
    pair: tuple[int, int],
    limits: Sequence[tuple[float, float]],
) -> None:
    i, j = pair
    ax.set_xticks([])
    ax.set_yticks([])
    if i < j:
        ax.axis("off")
        return
    for rows, color in ((data, DATA_COLOR), (samples, MODEL_COLOR)):
        if i == j:
            ax.hist(
                rows[:, i], 40, range=limits[i], color=color, density=True, histtype="step", lw=1.3
            )
        else:
            x, y = rows[:POINTS, [j, i]].T
            ax.scatter(x, y, s=_dot(rows), color=color, alpha=0.35, linewidths=0)
            ax.set_ylim(limits[i])
    ax.set_xlim(limits[j])


def _samples_and_path(flow: Flow, seed: int) -> tuple[Array, Array]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        path = flow.path(flow.base.sample(torch.Size((POINTS,))).to(flow.like), FRAMES)
    frames = path.double().cpu().numpy()
    return frames[-1], frames


def _log_prob(flow: Flow, rows: Array, context: Array | None = None) -> Array:
    x = torch.from_numpy(rows).to(flow.like).split(CHUNK)
    given: Sequence[Tensor | None] = [None] * len(x)
    if context is not None:
        given = torch.from_numpy(context).to(flow.like).split(CHUNK)
    with torch.no_grad():
        parts = [flow.log_prob(*pair) for pair in zip(x, given, strict=True)]
    return torch.cat(parts).double().cpu().numpy()


def _dot(rows: Array) -> float:
    """The size of a dot in a scatter: few rows are seen only as larger ones."""
    return min(12.0, max(2.0, POINTS / max(1, len(rows)) / 10))


def _frame(ax: Axes, bounds: Bounds) -> Axes:
    ax.set(xlim=bounds[0], ylim=bounds[1], xticks=[], yticks=[])
    ax.set_box_aspect(1)
    return ax
