"""Figures of densities, samples and motion."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import cnf
from cnf.datasets import CONDITIONAL_TOYS, TOYS
from cnf.plotting import (
    SCATTER_POINTS,
    base_grid,
    conditional_figure,
    data_bounds,
    density_figure,
    draw_contours,
    draw_density,
    draw_density_strip,
    draw_evaluations,
    draw_field,
    draw_grid,
    draw_learning_curve,
    draw_projection,
    draw_samples,
    draw_trajectories,
    field_figure,
    grid_figure,
    grid_path,
    learning_curve_figure,
    pairs_figure,
    projections_figure,
    spread_rows,
    strip_figure,
    trajectories_figure,
)
from cnf.plotting.pairs import highest_density_level
from cnf.plotting.panels import draw_shades, grid_size, smooth_histogram

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
    rows = np.random.default_rng(0).normal(size=(3 * SCATTER_POINTS, 2))
    draw_samples(ax, rows, BOUNDS)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), rows[:SCATTER_POINTS])
    assert ax.get_xlim() == BOUNDS[0]


@pytest.mark.parametrize(("rows", "size"), [(100, 12), (500, 8), (2000, 2), (100_000, 2)])
def test_few_rows_are_larger_dots(rows, size, ax):
    draw_samples(ax, np.zeros((rows, 2)), BOUNDS)
    (dots,) = ax.collections
    assert dots.get_sizes() == [size]


def test_learning_curve_marks_the_best(ax):
    draw_learning_curve(ax, [1, 2, 3], [9.0, 2.0, 1.0], [8.0, 2.0, 2.5])
    best = ax.get_lines()[-1]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (2, 2.0)


def test_learning_curve_without_a_finite_number(ax):
    draw_learning_curve(ax, [1], [float("nan")], [float("inf")])


@pytest.mark.parametrize("truth", [True, False])
def test_density_figure_has_its_panels(truth):
    toy = TOYS["moons"]
    data = toy.sample(500, seed=0)
    figure = density_figure(cnf.ffjord(2, hidden=(8,)), data, toy.log_prob if truth else None)
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
    monkeypatch.setattr("cnf.plotting.conditional.DENSITY_PIXELS", 16)
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
    monkeypatch.setattr("cnf.plotting.conditional.DENSITY_PIXELS", 32)
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
    monkeypatch.setattr("cnf.plotting.conditional.DENSITY_PIXELS", 8)
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


def test_histogram_is_a_density_the_right_way_up(ax):
    rows = np.random.default_rng(0).normal([3.0, 5.0], 0.2, (20_000, 2))
    density = smooth_histogram(rows, BOUNDS, (40, 20))
    assert density.shape == (20, 40)
    assert density.sum() * 0.2 * 0.4 == pytest.approx(1.0, abs=1e-3)
    draw_shades(ax, smooth_histogram(rows, BOUNDS), BOUNDS)
    shades = ax.get_images()[0].get_array()
    row, column = np.unravel_index(shades.argmax(), shades.shape)
    assert BOUNDS[0][0] + column / 20 == pytest.approx(3.0, abs=0.4)
    assert BOUNDS[1][0] + row / 20 == pytest.approx(5.0, abs=0.4)


def test_rows_beyond_the_window_count_in_the_scale_of_a_histogram():
    rows = np.array([[0.0, 0.0], [99.0, 99.0]])
    density = smooth_histogram(rows, ((-1.0, 1.0), (-1.0, 1.0)), 8)
    assert density.sum() / 16 == pytest.approx(0.5)


def test_strip_has_each_time_in_its_panel():
    """A normal that moves to the right: bright where it is then."""
    axes = Figure().subplots(1, 3)
    draw_density_strip(
        axes, lambda t, rows: -20 * ((rows - [6 * t - 3, 2.0]) ** 2).sum(1), BOUNDS, grid=40
    )
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 0.5", "t = 1"]
    for ax, place in zip(axes, (-3, 0, 3), strict=True):
        column = np.asarray(ax.get_images()[0].get_array()).sum(0).argmax()
        assert -4 + (column + 0.5) / 5 == pytest.approx(place, abs=0.2)


def test_trajectories_run_from_rings_to_dots(ax):
    path = np.random.default_rng(0).normal(size=(4, 7, 2))
    draw_trajectories(ax, path, BOUNDS)
    lines, rings, dots = ax.collections
    np.testing.assert_array_equal(rings.get_offsets(), path[0])
    np.testing.assert_array_equal(dots.get_offsets(), path[-1])
    segments = np.array(lines.get_segments())
    np.testing.assert_array_equal(segments[7:14, 0], path[1])
    np.testing.assert_array_equal(segments[7:14, 1], path[2])
    np.testing.assert_allclose(lines.get_array(), np.repeat([0, 0.5, 1], 7))


def test_arrows_point_as_points_move(ax):
    bounds = ((0.0, 4.0), (0.0, 1.0))
    draw_field(ax, lambda rows: rows * [1.0, -2.0], bounds, arrows=grid_size(bounds, 8))
    (arrows,) = ax.collections
    x, y = arrows.get_offsets().T
    assert len(x) == 8 * 2
    np.testing.assert_allclose(np.arctan2(arrows.V, arrows.U), np.arctan2(-2 * y, x))
    length = np.hypot(arrows.U, arrows.V)
    assert length.max() == pytest.approx(0.5)  # the distance between arrows
    speed = np.hypot(x, 2 * y)
    slow = length < 0.499
    assert slow.sum() > 8
    assert np.ptp(length[slow] / speed[slow]) < 1e-9


def test_field_that_stands_still(ax):
    draw_field(ax, np.zeros_like, BOUNDS)
    assert not ax.collections[0].U.any()


def test_grid_is_regular_at_the_base_and_carried_by_the_flow(fitted, ax):
    grid = base_grid(fitted, lines=5, nodes=9)
    assert np.ptp(grid[:5, :, 0], axis=1).max() == 0  # upright
    assert np.ptp(grid[5:, :, 1], axis=1).max() == 0  # lying
    assert grid.min() < -2.5
    assert grid.max() > 2.5
    path = grid_path(fitted, 3, lines=5, nodes=9)
    carried = fitted.transport(torch.from_numpy(grid.reshape(-1, 2))).detach().numpy()
    np.testing.assert_allclose(path[-1].reshape(-1, 2), carried, atol=1e-3)
    draw_grid(ax, path[-1], BOUNDS)
    assert [len(lines.get_segments()) for lines in ax.collections] == [5, 5]


def test_contours_hold_their_shares_of_the_rows(ax):
    """Of a normal: discs, with radii by the chi distribution."""
    rows = np.random.default_rng(0).normal(size=(50_000, 2))
    draw_contours(ax, rows, ((-4.0, 4.0), (-4.0, 4.0)))
    for path, mass in zip(ax.collections[0].get_paths(), (0.9, 0.5), strict=True):
        radius = np.hypot(*path.vertices.T)
        assert radius.mean() == pytest.approx(np.sqrt(-2 * np.log(1 - mass)), rel=0.1)
        assert radius.std() < 0.15


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_contours_of_few_rows(ax, rows):
    draw_contours(ax, np.zeros((rows, 2)), BOUNDS)
    assert len(ax.collections) == (rows > 1)


def test_contours_of_rows_beyond_the_window(ax):
    draw_contours(ax, np.full((9, 2), 99.0), BOUNDS)
    assert not ax.collections


def test_level_of_a_flat_density_is_its_own():
    assert highest_density_level(np.ones((3, 3)), 0.5) == 1


@pytest.mark.parametrize("columns", [1, 3])
def test_pairs_have_dots_below_and_contours_above(columns):
    rows = np.random.default_rng(0).normal(size=(300, columns))
    figure = pairs_figure(rows, rows + 0.5, [f"c{i}" for i in range(columns)])
    axes = np.array(figure.get_axes()).reshape(columns, columns)
    for i in range(columns):
        for j in range(columns):
            kinds = [type(each).__name__ for each in axes[i, j].collections]
            assert (
                kinds
                == {0: [], 1: ["PathCollection"] * 2, -1: ["QuadContourSet"] * 2}[
                    int(np.sign(i - j))
                ]
            )


def test_projection_shows_what_is_within_the_limits():
    ax = Figure().add_subplot(projection="3d")
    rows = np.array([[0.0, 1.0, 2.0], [0.5, 0.5, 0.5], [99.0, 0.0, 0.0]])
    assert draw_projection(ax, rows, [(-1.0, 3.0)] * 3) is ax
    np.testing.assert_array_equal(np.array(ax.collections[0]._offsets3d).T, rows[:2])


def test_projections_figure_has_data_and_samples_from_three_sides():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    axes = projections_figure(rows, rows, ["a", "b", "c"]).get_axes()
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[::3]] == ["data", "flow: samples"]
    assert len({(ax.elev, ax.azim) for ax in axes}) == 3
    with pytest.raises(ValueError, match="Expected rows of 3 columns"):
        projections_figure(rows[:, :2], rows[:, :2], ["a", "b"])


def test_evaluations_of_matching_are_none(ax):
    draw_evaluations(ax, [1, 2, 3], [0.0, 20.0, 30.0])
    counts = ax.get_lines()[0].get_ydata()
    assert np.isnan(counts[0])
    assert list(counts[1:]) == [20, 30]


@pytest.mark.parametrize(("nfe", "panels"), [([0, 0], 1), ([0, 9], 2)])
def test_learning_curve_figure_has_evaluations_where_something_was_solved(nfe, panels):
    nan = float("nan")
    figure = learning_curve_figure([1, 2], [nan, nan], [3.0, 2.0], nfe)
    axes = figure.get_axes()
    assert len(axes) == panels
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["validation NLL", "best"]


@pytest.mark.parametrize("bounds", [None, ((-3.0, 3.0), (-1.0, 2.0))])
@pytest.mark.parametrize(
    ("draw", "panels"),
    [(strip_figure, 12), (trajectories_figure, 1), (field_figure, 5), (grid_figure, 5)],
)
def test_figures_of_motion_have_their_panels(draw, panels, bounds, fitted, monkeypatch):
    monkeypatch.setattr("cnf.plotting.density.STRIP_PIXELS", 10)
    monkeypatch.setattr("cnf.plotting.motion.GRID_LINE_NODES", 10)
    figure = draw(fitted, TOYS["moons"].sample(500, seed=0), bounds=bounds)
    axes = figure.get_axes()
    assert len(axes) == panels
    if bounds is not None:
        assert {(ax.get_xlim(), ax.get_ylim()) for ax in axes} == {bounds}
        assert {ax.get_box_aspect() for ax in axes} == {0.5}


def test_strip_ends_with_the_flows_density(fitted, monkeypatch):
    monkeypatch.setattr("cnf.plotting.density.STRIP_PIXELS", 10)
    bounds = ((-3.0, 3.0), (-2.0, 2.0))
    figure = strip_figure(fitted, TOYS["moons"].sample(500, seed=0), frames=2, bounds=bounds)
    shades = figure.get_axes()[1].get_images()[0].get_array()
    assert shades.shape == (7, 10)
    at = torch.tensor([[-3 + 6 * 3.5 / 10, -2 + 4 * 4.5 / 7]], dtype=torch.float64)
    expected = fitted.log_prob(at).exp().item()
    assert shades[4, 3] == pytest.approx(expected, rel=0.02, abs=1e-3)
