"""What the figures show."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import cnf
from cnf.datasets import CONDITIONAL_TOYS, TOYS
from cnf.plotting import (
    POINTS,
    conditional_figure,
    data_bounds,
    density_figure,
    draw_density,
    draw_learning_curve,
    draw_samples,
    pairs_figure,
    spread_rows,
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


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_conditional_figure_has_a_panel_for_each_context(name, truth, monkeypatch):
    monkeypatch.setattr("cnf.plotting.conditional.GRID", 16)
    toy = CONDITIONAL_TOYS[name]
    x, context = toy.sample(500, seed=0)
    flow = cnf.ffjord(len(toy.columns), hidden=(8,), context_dim=1)
    names = (toy.columns, toy.context_columns)
    figure = conditional_figure(flow, x, context, *names, toy.log_prob if truth else None)
    axes = figure.get_axes()
    assert len(axes) == (5 if name == "fan" else 5 * (2 + truth))
    shown = [f"c = {value:.3g}" for value in context[spread_rows(context, 5), 0]]
    assert [ax.get_title() for ax in axes[:5]] == shown
    if name == "fan":
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["data nearby", "flow", "truth"][: 2 + truth]
    else:
        assert [ax.get_ylabel() for ax in axes[::5]] == [
            f"{row}\ny" for row in ("data nearby", "flow", "truth")[: 2 + truth]
        ]


def test_conditional_curves_are_the_densities_given_the_panels_context():
    toy = CONDITIONAL_TOYS["fan"]
    x, context = toy.sample(500, seed=0)
    flow = cnf.ffjord(1, hidden=(8,), context_dim=1, zero_last=False)
    figure = conditional_figure(flow, x, context, ("x",), ("c",), toy.log_prob)
    for ax, row in zip(figure.get_axes(), spread_rows(context, 5), strict=True):
        flows, truth = ax.get_lines()
        at = flows.get_xdata()[:, None]
        given = np.broadcast_to(context[row], at.shape)
        np.testing.assert_allclose(truth.get_ydata(), np.exp(toy.log_prob(at, given)))
        tensors = (torch.from_numpy(part.copy()).float() for part in (at, given))
        expected = flow.log_prob(*tensors).exp().detach()
        np.testing.assert_allclose(flows.get_ydata(), expected, atol=1e-4)


def test_map_of_flow_has_the_scale_of_the_truth(monkeypatch):
    """So that a flow that is not sharp enough is seen to be duller."""
    monkeypatch.setattr("cnf.plotting.conditional.GRID", 32)
    toy = CONDITIONAL_TOYS["rotor"]
    flow = cnf.ffjord(2, hidden=(8,), context_dim=1)
    names = (toy.columns, toy.context_columns)
    axes = conditional_figure(flow, *toy.sample(99, seed=0), *names, toy.log_prob).get_axes()
    flows, truths = ([ax.get_images()[0] for ax in axes[i : i + 5]] for i in (5, 10))
    for own, truth in zip(flows, truths, strict=True):
        assert own.get_clim() == truth.get_clim() == (0, truth.get_array().max())


@pytest.mark.parametrize("rows", [1, 3, 15])
@pytest.mark.parametrize("dim", [1, 2])
def test_conditional_figure_of_few_rows_and_many_contexts(rows, dim, monkeypatch):
    monkeypatch.setattr("cnf.plotting.conditional.GRID", 8)
    random = np.random.default_rng(0)
    x, context = random.normal(size=(rows + 1, dim)), random.normal(size=(rows + 1, 4))
    flow = cnf.ffjord(dim, hidden=(8,), context_dim=4)
    names = [f"${i}" + "x" * 50 for i in range(4)]
    figure = conditional_figure(flow, x, context, names[:dim], names)
    figure.draw_without_rendering()
    title = figure.get_axes()[0].get_title()
    assert title.count("\n") == 3
    assert title.endswith("…")


def test_spread_rows_are_quantiles_of_one_context():
    context = np.random.default_rng(0).permutation(np.arange(101.0))[:, None]
    assert context[spread_rows(context, 5), 0].tolist() == [5, 27, 50, 72, 95]


def test_spread_rows_run_along_the_principal_axis():
    """Whatever the columns' units."""
    t = np.random.default_rng(0).permutation(np.arange(101.0))
    context = np.stack([1e6 * t, -1e-6 * t, 0 * t], 1)
    shown = t[spread_rows(context, 5)]
    assert sorted(shown) == [5, 27, 50, 72, 95]
    assert (np.diff(shown) > 0).all() or (np.diff(shown) < 0).all()
