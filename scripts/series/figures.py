"""The figures of a trained model of series, for `cnf plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cnf.plotting.series import MOST_SERIES, latents_figure, series_figure
from cnf.scripts.figures import check_names, metrics_figure, write_figures
from cnf.scripts.plot import SERIES_FIGURES
from cnf.scripts.series.data import SeriesData, label_names
from cnf.scripts.series.evaluation import divided
from cnf.scripts.series.folder import TrainedSeries
from cnf.scripts.trained import METRICS_FILE
from cnf.series import Series, column_means

CURVE_TIMES = 150  # of a predicted curve
LATENT_SERIES = 2000  # of which latents are drawn, at most


def plot_series(
    trained: TrainedSeries,
    data: SeriesData,
    names: Sequence[str] | None = None,
    dark: bool = False,
) -> list[Path]:
    """Draw figures of a trained model of series, and return their paths.

    Args:
        trained: The model.
        data: The training data.
        names: Names in `SERIES_FIGURES`; when None all that there is something to draw of.
        dark: Whether to draw on a dark page, in files named NAME_dark.

    Raises:
        ValueError: There is no such figure of a model of series.
    """
    check_names(names or (), SERIES_FIGURES, "series")
    drawn = {
        name: SERIES_FIGURES[name](trained, data) for name in names or _default_figures(trained)
    }
    return write_figures(drawn, trained.folder / "figures", dark)


def _default_figures(trained: TrainedSeries) -> list[str]:
    latents = ["latents"] * hasattr(trained.model, "latents")
    return ["series", *latents, *["learning_curve"] * (trained.folder / METRICS_FILE).exists()]


def series(trained: TrainedSeries, data: SeriesData) -> Figure:
    """Draw the longest of some held-out series with the model's means and bands."""
    shown = _longest(data.test)
    seen, hidden = _parts(trained, shown)
    start = min(trained.model.scaling.start.item(), float(shown.times.min()))
    ends = shown.times[shown.offsets[1:] - 1]
    times = start + np.linspace(0, 1, CURVE_TIMES) * (ends[:, None] - start)
    predicted = trained.model.predict(seen, times)
    return series_figure(seen, hidden, predicted, cut=trained.task.cut)


def _parts(trained: TrainedSeries, shown: Series) -> tuple[Series, Series]:
    """Return what a model sees of series and what it does not; of the task filter in halves."""
    if trained.task.kind != "filter":
        return divided(trained, shown)
    middles = [shown.times[shown.offsets[i] : shown.offsets[i + 1]] for i in range(len(shown))]
    return shown.cut([np.median(times) for times in middles])


def _longest(test: Series) -> Series:
    """Return a few held-out series: of the first, those with most observations."""
    first = test[: 5 * MOST_SERIES]
    count = np.bincount(first.owners, first.observed.sum(1), len(first))
    return first[np.sort(np.argsort(-count, kind="stable")[:MOST_SERIES])]


def latents(trained: TrainedSeries, data: SeriesData) -> Figure:
    """Draw the latents of held-out series, coloured by their labels or a column's mean."""
    shown = data.test[:LATENT_SERIES]
    if not hasattr(trained.model, "latents"):
        raise ValueError(
            "Expected a model with latents, a latent_ode, for the figure latents; got a "
            f"{trained.model.kind}: draw series"
        )
    points = trained.model.latents(shown)
    if (names := label_names(shown)) is not None:
        texts = ["unknown" if each is None else _label(each) for each in names]
        return latents_figure(points, np.array(texts), "label", labelled=True)
    column = int(np.argmax(shown.observed.sum(0)))
    means = np.array([column_means(shown[i])[column] for i in range(len(shown))])
    return latents_figure(points, means, f"mean of {shown.columns[column]}")


def _label(name: str | float) -> str:
    return name if isinstance(name, str) else f"{name:g}"


def series_learning_curve(trained: TrainedSeries, data: SeriesData) -> Figure:
    """Draw the course of the training, from its records."""
    figure = metrics_figure(trained.folder)
    figure.get_axes()[0].set_ylabel("nats per observation")
    return figure
