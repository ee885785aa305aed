"""Figures of series and of latents: panels, limits, labels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.dates import ConciseDateFormatter

from cnf.plotting import darken, latents_figure, png, series_figure
from cnf.plotting.series import LABEL_COLORS
from cnf.series import Prediction, Series


def waves(clock="numbers"):
    times = np.tile(np.arange(8.0), 5)
    if clock == "dates":
        times = pd.Timestamp("2024-03-01") + pd.to_timedelta(times, "h")
    if clock == "durations":
        times = pd.to_timedelta(times, "h")
    frame = pd.DataFrame({"who": np.repeat(list("abcde"), 8), "when": times})
    frame["$x"] = np.sin(np.arange(40.0))
    frame["y"] = np.where(np.arange(40) % 8, 5.0, np.nan)
    return Series.from_frame(frame, id="who", time="when")


def predicted(series):
    times = np.tile(np.linspace(0, 9, 30), (len(series), 1))
    mean = np.stack([np.sin(times), np.full_like(times, 5.0)], -1)
    bands = np.stack([mean - 9, mean + 9])
    lengths, levels = np.full(len(series), 30), np.array([0.05, 0.95])
    return Prediction(series.columns, series.ids, times, lengths, mean, bands, levels)


@pytest.mark.parametrize("clock", ["numbers", "dates", "durations"])
def test_a_panel_for_each_series_and_column(clock):
    series = waves(clock)
    seen, hidden = series.cut(5.0)
    figure = series_figure(seen, hidden, predicted(series), cut=5.0)
    axes = np.array(figure.get_axes()).reshape(2, 4)
    assert [ax.get_title() for ax in axes[0]] == [f"who {name}" for name in "abcd"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["$x", "y"]
    low, high = axes[0, 0].get_ylim()  # of the observations, from which the band lies far
    assert -2 < low < -1
    assert 1 < high < 2
    label = {"numbers": "when", "dates": "when", "durations": "when (h)"}[clock]
    assert figure.get_supxlabel() == label
    dated = isinstance(axes[0, 0].xaxis.get_major_formatter(), ConciseDateFormatter)
    assert dated == (clock == "dates")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["seen by the model", "not seen", "mean", "90 % band"]
    assert png(darken(figure))[1:4] == b"PNG"


def test_chosen_columns_and_nothing_hidden():
    series = waves()
    figure = series_figure(
        series[:1], series[:1].rows(series[:1].times < 0), predicted(series), ["y"]
    )
    assert [ax.get_ylabel() for ax in figure.get_axes()] == ["y"]
    assert len(figure.legends[0].get_texts()) == 3
    with pytest.raises(ValueError, match="columns of the series, .x, y; got 'z'"):
        series_figure(series, series, predicted(series), ["z"])


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_latents_by_numbers(dimensions):
    latents = np.random.default_rng(0).normal(size=(30, dimensions))
    values = np.where(np.arange(30) % 7, np.arange(30.0), np.nan)
    axes = latents_figure(latents, values, "mean of x").get_axes()
    assert axes[1].get_ylabel() == "mean of x"
    assert ("variance" in axes[0].get_xlabel()) == (dimensions > 2)


def test_latents_by_labels_of_which_the_rare_ones_share_a_colour():
    labels = np.array(list("aaaabbbbccccddddeeeefg"))
    ax = latents_figure(np.eye(22), labels, "kind", labelled=True).get_axes()[0]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [*"abcde", "others"]
    assert len(LABEL_COLORS) == 6
    assert latents_figure(np.ones((1, 3)), np.array(["a"]), "kind", labelled=True).get_axes()
    labels = np.array([2.0, np.nan, 2.0, 1.0])
    ax = latents_figure(np.eye(4), labels, "kind", labelled=True).get_axes()[0]
    texts = ax.get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["1.0", "2.0", "unknown"]
