"""Learning curves: training loss, validation NLL, evaluations per solve."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnf.plotting.style import DATA_COLOR, GRID_COLOR, MODEL_COLOR


def draw_learning_curve(
    ax: Axes, seconds: Sequence[float], loss: Sequence[float], validation_nll: Sequence[float]
) -> Axes:
    """Plot training loss and validation NLL over the seconds of training.

    The line of the latter has a gap where no loss follows one, as between models that begin with
    flow matching.
    """
    if np.isfinite(loss).any():
        ax.plot(seconds, loss, color=DATA_COLOR, lw=1, marker=".", ms=3, label="training loss")
    known = np.isfinite(loss)
    starts = np.flatnonzero(known[:-1] & ~known[1:]) + 1
    line = (
        np.insert(np.asarray(each, float), starts, np.nan) for each in (seconds, validation_nll)
    )
    ax.plot(*line, color=MODEL_COLOR, label="validation NLL")
    if np.isfinite(validation_nll).any():
        best = int(np.nanargmin(validation_nll))
        ax.plot(seconds[best], validation_nll[best], "o", color=MODEL_COLOR, label="best")
    # The first losses are much larger than the rest: leave them outside the panel.
    shown = np.array([*loss, *validation_nll])
    shown = shown[np.isfinite(shown)]
    if shown.size:
        low, high = shown.min(), np.quantile(shown, 0.95)
        margin = 0.08 * max(high - low, 1e-9)
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="seconds", ylabel="nats per row")
    ax.legend(frameon=False)
    return ax


def draw_evaluations(ax: Axes, seconds: Sequence[float], nfe: Sequence[float]) -> Axes:
    """Plot the field's evaluations per training solve over the seconds of training.

    Zeros, as of flow matching, which solves nothing, are left out.
    """
    counts = np.array(nfe, dtype=np.float64)
    counts[counts <= 0] = np.nan
    ax.plot(seconds, counts, color=GRID_COLOR, marker=".", ms=4)
    ax.set(xlabel="seconds", ylabel="evaluations\nper solve")
    if np.isfinite(counts).any():
        ax.set_ylim(0, 1.15 * np.nanmax(counts))
    return ax


def learning_curve_figure(
    seconds: Sequence[float],
    loss: Sequence[float],
    validation_nll: Sequence[float],
    nfe: Sequence[float],
) -> Figure:
    """Plot losses above evaluations per solve; the losses alone where nothing was solved.

    Losses are in nats, and NaN for other objectives, such as flow matching; the evaluations `nfe`
    are 0 where nothing was solved.

    Example:
        >>> figure = learning_curve_figure([1, 2], [3.0, 2.0], [2.5, 2.1], [20, 26])
        >>> len(figure.get_axes())
        2
    """
    if not np.any(np.asarray(nfe) > 0):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        draw_learning_curve(figure.subplots(), seconds, loss, validation_nll)
        return figure
    figure = Figure(figsize=(6, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    draw_learning_curve(upper, seconds, loss, validation_nll).set_xlabel("")
    draw_evaluations(lower, seconds, nfe)
    return figure
