"""Irregular time series with the bands of a model, and latents in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cnf.datasets import ColumnType
from cnf.datasets.dates import UNITS
from cnf.plotting.panels import Array, dot_size, short_name
from cnf.plotting.style import DATA_COLOR, GRID_COLOR, MODEL_COLOR, TIME_MAP

if TYPE_CHECKING:
    from cnf.series import Prediction, Series

MOST_SERIES, MOST_COLUMNS = 4, 4  # panels across and down
PANEL_SIZE = (2.9, 1.7)  # inches
MANY_POINTS = 60  # of a panel, from which on dots are small
# Distinct for all kinds of colour blindness and, by their markers, in greyscale.
LABEL_COLORS = (DATA_COLOR, MODEL_COLOR, "#3a9b62", "#8c5fa8", "#b8a23a", GRID_COLOR)
LABEL_MARKERS = "o^sDvP"


def series_figure(
    seen: Series,
    hidden: Series,
    predicted: Prediction,
    columns: Sequence[str] | None = None,
    cut: float | None = None,
) -> Figure:
    """Draw series with a model's mean and band: a panel for each series and column.

    The first `MOST_SERIES` series are drawn. Observations that the model saw are filled dots, those
    that it did not see are circles. The band lies between the outermost quantiles.

    Args:
        seen: Observations that the model saw.
        hidden: Observations of the same series that it did not see.
        predicted: Prediction for the same series, at times that lie densely.
        columns: Names of the columns; when None the `MOST_COLUMNS` with most observations.
        cut: The time after which nothing was seen, drawn as a line; no line when None.

    Raises:
        ValueError: The series have no such column.
    """
    count = min(len(seen), MOST_SERIES)
    places = _places(seen, hidden, columns)
    width, height = PANEL_SIZE
    size = (width * count + 0.6, height * len(places) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(places), count, squeeze=False, sharex="col", sharey="row")
    for row, place in zip(axes, places, strict=True):
        for i, ax in enumerate(row):
            draw_series(ax, seen[i], hidden[i], predicted, i, place, cut)
        # A $ in a name starts no formula.
        row[0].set_ylabel(short_name(seen.columns[place], 18), parse_math=False)
        _limit(row, seen, hidden, place, count)
    for ax, name in zip(axes[0], seen.ids, strict=False):
        ax.set_title(short_name(f"{seen.id_column} {name}"), fontsize=9, parse_math=False)
    figure.supxlabel(_time_label(seen), fontsize=10, parse_math=False)
    _legend(figure, predicted, bool(len(hidden.times)))
    return figure


def draw_series(
    ax: Axes,
    seen: Series,
    hidden: Series,
    predicted: Prediction,
    row: int,
    place: int,
    cut: float | None = None,
) -> Axes:
    """Draw one column of one series, with a row of a prediction."""
    times, order = np.unique(predicted.times[row], return_index=True)
    low, *_, high = predicted.quantiles[:, row, order, place]
    clock = seen.clock
    across = axis_times(times, clock)
    ax.fill_between(across, low, high, color=MODEL_COLOR, alpha=0.25, lw=0)
    ax.plot(across, predicted.mean[row, order, place], color=MODEL_COLOR, lw=1.3)
    points = len(seen.times) + len(hidden.times)
    size = 3.2 if points < MANY_POINTS else 2.0
    dots: dict[str, Any] = {"ls": "", "marker": "o", "color": DATA_COLOR, "ms": size}
    ax.plot(axis_times(seen.times, clock), seen.values[:, place], mew=0, alpha=0.9, **dots)
    behind = axis_times(hidden.times, clock)
    ax.plot(behind, hidden.values[:, place], mfc="none", mew=0.8, **dots)
    if cut is not None:
        ax.axvline(axis_times(np.array([cut]), clock)[0], color=GRID_COLOR, lw=0.8, ls=":")
    ax.tick_params(labelsize=7)
    if clock.origin:
        locator = AutoDateLocator(minticks=2, maxticks=5)  # type: ignore[no-untyped-call]
        ax.xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        ax.xaxis.set_major_formatter(formatter)
        ax.xaxis.get_offset_text().set_fontsize(7)
    return ax


def _places(seen: Series, hidden: Series, columns: Sequence[str] | None) -> list[int]:
    """Return the positions of columns by name, or of those with most observations."""
    if columns is not None:
        for name in columns:
            if name not in seen.columns:
                known = ", ".join(seen.columns[:8])
                raise ValueError(f"Expected columns of the series, {known}; got {name!r}")
        return [seen.columns.index(name) for name in columns]
    first = min(len(seen), MOST_SERIES)
    known = sum(np.isfinite(each[:first].values).sum(0) for each in (seen, hidden))
    most = np.argsort(-np.asarray(known), kind="stable")[:MOST_COLUMNS]
    return sorted(most.tolist())


def _limit(axes: Sequence[Axes], seen: Series, hidden: Series, place: int, count: int) -> None:
    """Set the limits of a row of panels by its observations, from which a band may lie far."""
    own = np.concatenate([each[:count].values[:, place] for each in (seen, hidden)])
    own = own[np.isfinite(own)]
    if not own.size:
        return
    bands = np.concatenate([line.get_ydata() for ax in axes for line in ax.get_lines()[:1]])
    low, high = min(own.min(), np.nanmin(bands)), max(own.max(), np.nanmax(bands))
    margin = 0.25 * (high - low) if high > low else 0.5
    axes[0].set_ylim(low - margin, high + margin)


def _legend(figure: Figure, predicted: Prediction, hidden: bool) -> None:
    low, high = predicted.levels[0], predicted.levels[-1]
    dots: dict[str, Any] = {"color": DATA_COLOR, "ls": "", "marker": "o", "ms": 4}
    handles: list[Line2D | Patch] = [Line2D([], [], label="seen by the model", mew=0, **dots)]
    if hidden:
        handles.append(Line2D([], [], label="not seen", mfc="none", **dots))
    handles += [
        Line2D([], [], color=MODEL_COLOR, label="mean"),
        Patch(color=MODEL_COLOR, alpha=0.25, lw=0, label=f"{100 * (high - low):.3g} % band"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def axis_times(times: Array, clock: ColumnType) -> NDArray[Any]:
    """Return times as an axis has them: dates where they are counts of a unit since an origin.

    Example:
        >>> day = ColumnType("datetime64[s]", "D", "2024-03-01")
        >>> print(axis_times(np.array([1.5]), day)[0])
        2024-03-02T12:00:00.000000
    """
    if not clock.origin:
        return times
    ticks = np.round(times * (UNITS[clock.unit] / UNITS["us"])).astype("m8[us]")
    return np.asarray(np.datetime64(clock.origin, "us") + ticks)


def _time_label(series: Series) -> str:
    """Return the label of a time axis: the column's name and, of durations, their unit."""
    unit = "" if series.clock.origin else series.clock.unit
    return f"{series.time_column} ({unit})" if unit else series.time_column


def latents_figure(
    latents: Array, values: NDArray[np.generic], name: str, labelled: bool = False
) -> Figure:
    """Scatter latents (n, dimensions) in two dimensions, coloured by values or labels (n,).

    More than two dimensions are projected to the two principal components.

    Args:
        latents: One row for each series.
        values: A number of each series, NaN where it has none, or its label.
        name: What they are, for the legend.
        labelled: Whether they are labels, of which those after the fifth share a colour.

    Example:
        >>> figure = latents_figure(np.random.randn(50, 4), np.arange(50) % 2, "label", True)
        >>> len(figure.get_axes())
        1
    """
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    ax = figure.subplots()
    points, shares = _projected(latents)
    size = 2.5 * dot_size(points)
    if labelled:
        _draw_labels(ax, points, values, name, size)
    else:
        numbers = np.asarray(values, dtype=np.float64)
        known = np.isfinite(numbers)
        x, y = points[~known].T
        ax.scatter(x, y, s=size, color=GRID_COLOR, alpha=0.5, linewidths=0)
        x, y = points[known].T
        drawn = ax.scatter(x, y, s=size, c=numbers[known], cmap=TIME_MAP, alpha=0.8, linewidths=0)
        figure.colorbar(drawn, ax=ax).set_label(short_name(name, 40), parse_math=False)
    if shares is None:
        ax.set(xlabel="first latent", ylabel="second latent")
    else:
        first, second = (f"{100 * share:.0f} % of the variance" for share in shares)
        ax.set(xlabel=f"first component, {first}", ylabel=f"second component, {second}")
    ax.tick_params(labelsize=8)
    return figure


def _draw_labels(
    ax: Axes, points: Array, values: NDArray[np.generic], name: str, size: float
) -> None:
    unknown = np.array([each != each for each in values.tolist()])  # NaN
    if unknown.any():
        values = np.where(unknown, "unknown", values.astype(str))
    known, counts = np.unique(values, return_counts=True)
    last = len(LABEL_COLORS) - 1
    shown = known[np.sort(np.argsort(-counts, kind="stable")[:last])]
    for label, color, marker in zip(shown, LABEL_COLORS, LABEL_MARKERS, strict=False):
        x, y = points[values == label].T
        style: dict[str, Any] = {"color": color, "marker": marker, "label": str(label)}
        ax.scatter(x, y, s=size, alpha=0.6, linewidths=0, **style)
    rest = ~np.isin(values, shown)
    if rest.any():
        x, y = points[rest].T
        ax.scatter(x, y, s=size, color=GRID_COLOR, alpha=0.4, linewidths=0, label="others")
    ax.legend(title=short_name(name, 40), frameon=False)


def _projected(latents: Array) -> tuple[Array, Array | None]:
    """Return latents in two dimensions, and the shares of variance where they were projected."""
    rows = np.asarray(latents, dtype=np.float64)
    if rows.shape[1] < 2:
        return np.column_stack([rows, np.zeros((len(rows), 2 - rows.shape[1]))]), None
    if rows.shape[1] == 2:
        return rows, None
    centred = rows - rows.mean(0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    if len(scales) < 2:  # of a single series
        return np.zeros((len(rows), 2)), np.zeros(2)
    return left[:, :2] * scales[:2], scales[:2] ** 2 / max(1e-300, (scales**2).sum())
