"""Comparison figures of data and samples."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from cnf.plotting.comparison import (
    correlations,
    correlations_figure,
    draw_marginal,
    log_prob_figure,
    marginals_figure,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def ax():
    return Figure().subplots()


def steps(ax):
    """The shares and the edges of the data's and of the samples' histogram."""
    return [patch.get_data()[:2] for patch in ax.patches]


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "shown"), [(1, 1), (5, 5), (7, 6)])
def test_there_is_a_panel_for_each_column_up_to_the_most(columns, shown):
    rows, names = RNG.normal(size=(50, columns)), [f"${i}" + 40 * "x" for i in range(columns)]
    figure = marginals_figure(rows, rows, names, most=6)
    figure.draw_without_rendering()
    panels = [ax for ax in figure.get_axes() if ax.get_title()]
    assert [ax.get_title()[:2] for ax in panels] == [name[:2] for name in names[:shown]]
    assert all(ax.get_title().endswith("…") for ax in panels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", "flow"]


def test_steps_are_the_shares_of_either_on_common_bins(ax):
    data, samples = RNG.normal(size=1000), RNG.normal(0.5, 2.0, size=300)
    draw_marginal(ax, data, samples)
    (own, edges), (drawn, same) = steps(ax)
    assert np.array_equal(edges, same)
    for share, values in ((own, data), (drawn, samples)):
        inside = [(values >= low) & (values < high) for low, high in pairwise(edges)]
        np.testing.assert_allclose(share, np.mean(inside, axis=1), atol=1e-12)
    assert own.sum() > 0.99


def test_samples_that_are_far_away_do_not_blur_the_data(ax):
    draw_marginal(ax, RNG.uniform(size=1000), RNG.normal(size=1000) * 1e6)
    low, high = ax.get_xlim()
    assert -1.2 < low < high < 2.2


@pytest.mark.parametrize("value", [0.0, 0.3, 1e30])
def test_constant_data_are_visible_with_their_samples(value, ax):
    samples = value + max(1.0, value) * RNG.normal(size=100)
    draw_marginal(ax, np.full(5, value), samples)
    low, high = ax.get_xlim()
    assert low < np.quantile(samples, 0.01) < np.quantile(samples, 0.99) < high


def test_data_and_samples_that_are_one_and_the_same_value(ax):
    draw_marginal(ax, np.full(5, 0.3), np.full(9, 0.3))
    (own, _), (drawn, _) = steps(ax)
    assert own.sum() == drawn.sum() == 1


def test_a_few_whole_numbers_have_bars_side_by_side(ax):
    data = np.array([0.0, 0.0, 1.0, 3.0])
    draw_marginal(ax, data, np.array([0.2, 0.9, 1.4, 2.6, 1.0]))
    own, drawn = ([(bar.get_x(), bar.get_height()) for bar in bars] for bars in ax.containers)
    assert [height for _, height in own] == [0.5, 0.25, 0.0, 0.25]
    assert [height for _, height in drawn] == [0.2, 0.6, 0.0, 0.2]
    assert all(left < right for (left, _), (right, _) in zip(own, drawn, strict=True))


def test_bins_of_many_whole_numbers_hold_equally_many(ax):
    data = RNG.integers(0, 101, size=1000).astype(float)
    draw_marginal(ax, data, data)
    edges = steps(ax)[0][1]
    assert np.unique(np.diff(edges)).tolist() == [5.0]
    assert (edges % 1 == 0.5).all()


# --- correlations ---------------------------------------------------------------------------------


def test_correlations_are_pearsons():
    rows = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) * [1e6, 1.0, 1e-6, 1.0] + [
        1.7e9,
        7.0,
        1e-5,
        0.0,
    ]
    np.testing.assert_allclose(correlations(rows), np.corrcoef(rows.T), atol=1e-9)


def test_correlations_of_a_constant_are_not_known():
    rows = np.column_stack([RNG.normal(size=(9, 2)), np.full(9, 0.1), np.zeros(9)])
    known = np.isfinite(correlations(rows))
    assert known[:2, :2].all()
    assert known.sum() == 4


@pytest.mark.parametrize("columns", [2, 15, 16, 40, 41])
def test_maps_are_the_correlations_and_named_where_there_is_room(columns):
    data, samples = (correlations(RNG.normal(size=(20, columns))) for _ in range(2))
    names = [f"${i}" for i in range(columns)]
    axes = correlations_figure(data, samples, names).get_axes()[:3]
    images = [ax.get_images()[0] for ax in axes]
    for image, expected in zip(images, (data, samples, samples - data), strict=True):
        np.testing.assert_array_equal(image.get_array(), expected)
    assert [image.get_clim() for image in images[:2]] == [(-1, 1)] * 2
    largest = np.abs(samples - data).max()
    assert images[2].get_clim() == (-largest, largest)
    shown = names if columns <= 40 else []
    assert [text.get_text() for text in axes[0].get_yticklabels()] == shown
    assert all([text.get_text() for text in ax.get_xticklabels()] == shown for ax in axes)


def test_maps_of_what_is_not_known():
    unknown = np.full((3, 3), np.nan)
    figure = correlations_figure(unknown, unknown, "abc")
    figure.draw_without_rendering()
    assert figure.get_axes()[2].get_images()[0].get_clim() == (-0.1, 0.1)


# --- log p ----------------------------------------------------------------------------------------


def test_log_p_outside_of_the_panel_is_counted():
    inside = np.linspace(-3.0, -1.0, 1000)
    data = np.append(inside, [-1e9, -np.inf])
    (ax,) = log_prob_figure(data, np.append(inside, -1e3)).get_axes()
    assert ax.get_title(loc="left").endswith("2 of the data, 1 of the samples")
    assert -3.2 < ax.get_xlim()[0] < ax.get_xlim()[1] < -0.8
    (own, _), (drawn, _) = steps(ax)
    np.testing.assert_allclose([own.sum(), drawn.sum()], [1000 / 1002, 1000 / 1001])


def test_log_p_of_which_none_is_finite():
    log_prob_figure(np.full(3, -np.inf), np.full(3, -np.inf)).draw_without_rendering()
