"""What the figures show."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from cnf.datasets import TOYS
from cnf.plotting import (
    POINTS,
    data_bounds,
    density_figure,
    draw_density,
    draw_learning_curve,
    draw_samples,
    pairs_figure,
)

BOUNDS = ((-4.0, 4.0), (-2.0, 6.0))


@pytest.fixture
def ax():
    return Figure().subplots()


def test_density_is_drawn_the_right_way_up(ax):
    draw_density(ax, lambda rows: -((rows - [3.0, 5.0]) ** 2).sum(1), BOUNDS)
    (image,) = ax.get_images()
    row, column = np.unravel_index(image.get_array().argmax(), image.get_array().shape)
    height, width = image.get_array().shape
    x = BOUNDS[0][0] + (column + 0.5) / width * 8
    y = BOUNDS[1][0] + (row + 0.5) / height * 8
    assert (x, y) == (pytest.approx(3.0, abs=0.05), pytest.approx(5.0, abs=0.05))
    assert image.origin == "lower"
    assert image.get_extent() == [-4.0, 4.0, -2.0, 6.0]


def test_samples_are_where_they_are(ax):
    rows = np.random.default_rng(0).normal(size=(3 * POINTS, 2))
    draw_samples(ax, rows, BOUNDS)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), rows[:POINTS])
    assert ax.get_xlim() == BOUNDS[0]


def test_learning_curve_marks_the_best(ax):
    draw_learning_curve(ax, [1, 2, 3], [9.0, 2.0, 1.0], [8.0, 2.0, 2.5])
    best = ax.get_lines()[-1]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (2, 2.0)


def test_learning_curve_without_a_finite_number(ax):
    draw_learning_curve(ax, [1], [float("nan")], [float("inf")])


@pytest.mark.parametrize("truth", [True, False])
def test_density_figure_has_its_panels(fitted, truth):
    toy = TOYS["moons"]
    data = toy.sample(500, seed=0)
    figure = density_figure(fitted, data, toy.log_prob if truth else None)
    titles = [ax.get_title() for ax in figure.get_axes()]
    assert titles[:3] == ["data", "flow: samples", "flow: density"]
    assert ("truth: density" in titles) == truth
    assert titles[-5:] == ["t = 0", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1"]


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_pairs_figure_shows_the_first_columns(columns):
    rows = np.random.default_rng(0).normal(size=(100, columns))
    names = [f"c{i}" for i in range(columns)]
    figure = pairs_figure(rows, rows, names, most=4)
    shown = min(columns, 4)
    assert len(figure.get_axes()) == shown**2
    assert [ax.get_xlabel() for ax in figure.get_axes()[-shown:]] == names[:shown]


def test_bounds_hold_the_data_but_its_outliers():
    rows = np.random.default_rng(0).normal(size=(10_000, 2)) * [1, 10] + [0, 100]
    rows[0] = 1e6
    (x0, x1), (y0, y1) = data_bounds(rows)
    assert -6 < x0 < -3 < 3 < x1 < 6
    assert 40 < y0 < 70 < 130 < y1 < 160
