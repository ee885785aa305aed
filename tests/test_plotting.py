"""Figures of densities, samples, motion and comparison, and their colours."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure, SubFigure

import cnf
from cnf import plotting
from cnf.datasets import CONDITIONAL_TOYS, TOYS, ColumnType, Table
from cnf.diagnostics.similarity import pair_trends
from cnf.plotting import DATA_COLOR, DENSITY_MAP, MODEL_COLOR, TIME_MAP, comparison
from cnf.plotting.cells import cells_of, is_mixed
from cnf.plotting.panels import draw_shades, grid_size, smooth_histogram
from cnf.plotting.scatter import highest_density_level
from cnf.plotting.shares import pair_shares_figure
from cnf.plotting.style import DARK_INK, DARK_PAGE

BOUNDS = ((-4.0, 4.0), (-2.0, 6.0))
RNG = np.random.default_rng(0)
WIDE = ((-3.0, 3.0), (-1.0, 2.0))


@pytest.fixture
def ax():
    return Figure().subplots()


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def pixels(monkeypatch, count, *constants):
    for constant in constants:
        monkeypatch.setattr(f"cnf.plotting.{constant}", count)


def brightest(ax):
    (image,) = ax.get_images()
    assert image.origin == "lower"
    x0, x1, y0, y1 = image.get_extent()
    height, width = image.get_array().shape
    row, column = np.unravel_index(image.get_array().argmax(), (height, width))
    return x0 + (column + 0.5) / width * (x1 - x0), y0 + (row + 0.5) / height * (y1 - y0)


def texts(labels):
    return [text.get_text() for text in labels]


def table_of(*columns, **given):
    """A table of columns, named x, y, z."""
    values = np.array(columns, dtype=float).T
    return Table("t", values, tuple("xyz"[: len(columns)]), **given)


def marginal(data, samples, **given):
    """The panel of a column of data and of samples, whose share axes are their own."""
    ax = Figure().subplots()
    comparison.draw_marginal(ax, table_of(data, **given), table_of(samples, **given), "x")
    return ax


def heights(ax):
    """The heights of the bars of data and of samples."""
    return [[bar.get_height() for bar in bars] for bars in ax.containers]


def test_densities_are_drawn_the_right_way_up(ax):
    plotting.draw_density(ax, lambda rows: -((rows - [3.0, 5.0]) ** 2).sum(1), BOUNDS)
    assert brightest(ax) == (pytest.approx(3.0, abs=0.05), pytest.approx(5.0, abs=0.05))
    assert ax.get_images()[0].get_extent() == [-4.0, 4.0, -2.0, 6.0]
    rows = 0.2 * normal(20_000, 2) + [3.0, 5.0]
    other = Figure().subplots()
    draw_shades(other, smooth_histogram(rows, BOUNDS), BOUNDS)
    assert brightest(other) == (pytest.approx(3.0, abs=0.4), pytest.approx(5.0, abs=0.4))
    density = smooth_histogram(rows, BOUNDS, (40, 20))
    assert density.shape == (20, 40)
    assert density.sum() * 0.2 * 0.4 == pytest.approx(1.0, abs=1e-3)

    # Rows beyond the window count in the scale.
    density = smooth_histogram(np.array([[0.0, 0.0], [99.0, 99.0]]), ((-1.0, 1.0), (-1.0, 1.0)), 8)
    assert density.sum() / 16 == pytest.approx(0.5)


def test_samples_are_dots_larger_where_there_are_few(ax):
    for rows, size in ((100, 12), (500, 8), (2000, 2), (100_000, 2)):
        drawn = normal(rows, 2)
        plotting.draw_samples(ax, drawn, BOUNDS)
        assert ax.collections[-1].get_sizes() == [size]
        shown = ax.collections[-1].get_offsets()
        np.testing.assert_array_equal(shown, drawn[: plotting.SCATTER_POINTS])
    assert ax.get_xlim() == BOUNDS[0]


@pytest.mark.parametrize("truth", [True, False])
def test_density_figure_has_its_panels(truth):
    toy = TOYS["moons"]
    data, true = toy.sample(500, seed=0), toy.log_prob if truth else None
    figure = plotting.density_figure(cnf.ffjord(2, hidden=(8,)), data, true)
    titles = [ax.get_title() for ax in figure.get_axes()]
    assert titles[:3] == ["data", "flow: samples", "flow: density"]
    assert ("truth: density" in titles) == truth
    assert titles[-5:] == ["t = 0", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1"]


@pytest.mark.parametrize(("columns", "shown"), [(1, "a"), (3, "abc"), (9, "cdfi")])
def test_pairs_have_dots_below_and_contours_above(columns, shown):
    """Of more columns than there is room for those that differ most."""
    rows, names = normal(1000, columns), [*"abcdefghi"[:columns]]
    samples = rows + [0.8 * (name in "cdfi") for name in names]
    figure = plotting.pairs_figure(rows, samples, names, most=4)
    axes = np.array(figure.get_axes()).reshape(len(shown), -1)
    assert [ax.get_xlabel() for ax in axes[-1]] == [*shown]
    expected = {0: [], 1: ["PathCollection"] * 2, -1: ["QuadContourSet"] * 2}
    for (i, j), ax in np.ndenumerate(axes):
        assert [type(each).__name__ for each in ax.collections] == expected[int(np.sign(i - j))]


def test_bounds_hold_the_data_but_its_outliers():
    rows = normal(10_000, 2) * [1, 10] + [0, 100]
    rows[0] = 1e6
    (x0, x1), (y0, y1) = plotting.data_bounds(rows)
    assert -6 < x0 < -3 < 3 < x1 < 6
    assert 40 < y0 < 70 < 130 < y1 < 160


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("name", CONDITIONAL_TOYS)
def test_conditional_figure_has_the_densities_given_each_panels_context(name, truth, monkeypatch):
    pixels(monkeypatch, 16, "conditional.DENSITY_PIXELS")
    toy = CONDITIONAL_TOYS[name]
    x, context = toy.sample(500, seed=0)
    flow = cnf.ffjord(len(toy.columns), hidden=(8,), context_dim=1, zero_last=False)
    names = (toy.columns, toy.context_columns)
    figure = plotting.conditional_figure(flow, x, context, *names, toy.log_prob if truth else None)
    axes, parts = figure.get_axes(), ["data nearby", "flow", "truth"][: 2 + truth]
    chosen = context[plotting.spread_rows(context, 5)]
    assert [ax.get_title() for ax in axes[:5]] == [f"c = {value:.3g}" for (value,) in chosen]
    if name == "rotor":
        assert [ax.get_ylabel() for ax in axes[::5]] == [f"{part}\ny" for part in parts]
        # A flow that is not sharp enough is seen to be duller: it has the scale of the truth.
        for own, true in zip(axes[5:10], axes[10:], strict=truth):
            scale = true.get_images()[0].get_array().max()
            assert {ax.get_images()[0].get_clim() for ax in (own, true)} == {(0, scale)}
        return
    assert len(axes) == 5
    assert texts(figure.legends[0].get_texts()) == parts
    for ax, row in zip(axes, chosen, strict=True):
        own, *true = ax.get_lines()
        at = own.get_xdata()[:, None]
        given = np.broadcast_to(row, at.shape)
        expected = flow.log_prob(*map(torch.Tensor, (at, given.copy()))).exp().detach()
        np.testing.assert_allclose(own.get_ydata(), expected, atol=1e-4)
        assert len(true) == truth
        for line in true:
            np.testing.assert_allclose(line.get_ydata(), np.exp(toy.log_prob(at, given)))


@pytest.mark.parametrize(("rows", "dim"), [(1, 2), (3, 1), (15, 2)])
def test_conditional_figure_of_few_rows_and_many_contexts(rows, dim, monkeypatch):
    pixels(monkeypatch, 8, "conditional.DENSITY_PIXELS")
    names = [f"${i}" + "x" * 50 for i in range(4)]
    flow = cnf.ffjord(dim, hidden=(8,), context_dim=4)
    x, context = normal(rows + 1, dim), normal(rows + 1, 4)
    figure = plotting.conditional_figure(flow, x, context, names[:dim], names)
    figure.draw_without_rendering()
    title = figure.get_axes()[0].get_title()
    assert title.count("\n") == 3
    assert title.endswith("…")


def test_spread_rows_are_quantiles_along_the_principal_axis():
    t, expected = RNG.permutation(np.arange(101.0)), [5, 27, 50, 72, 95]
    assert t[plotting.spread_rows(t[:, None], 5)].tolist() == expected
    several = t[plotting.spread_rows(t[:, None] * [1e6, -1e-6, 0.0], 5)].tolist()
    assert several in (expected, expected[::-1])


def test_strip_has_each_time_in_its_panel():
    def moving(t, rows):
        return -20 * ((rows - [6 * t - 3, 2.0]) ** 2).sum(1)

    axes = Figure().subplots(1, 3)
    plotting.draw_density_strip(axes, moving, BOUNDS, grid=40)
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 0.5", "t = 1"]
    for ax, place in zip(axes, (-3, 0, 3), strict=True):
        assert brightest(ax)[0] == pytest.approx(place, abs=0.2)


def test_trajectories_run_from_rings_to_dots(ax):
    path = normal(4, 7, 2)
    plotting.draw_trajectories(ax, path, BOUNDS)
    lines, rings, dots = ax.collections
    np.testing.assert_array_equal(rings.get_offsets(), path[0])
    np.testing.assert_array_equal(dots.get_offsets(), path[-1])
    np.testing.assert_array_equal(lines.get_segments()[7:14], path[1:3].swapaxes(0, 1))
    np.testing.assert_allclose(lines.get_array(), np.repeat([0, 0.5, 1], 7))


def test_arrows_point_as_points_move(ax):
    bounds = ((0.0, 4.0), (0.0, 1.0))
    plotting.draw_field(ax, lambda rows: rows * [1.0, -2.0], bounds, arrows=grid_size(bounds, 8))
    (arrows,) = ax.collections
    x, y = arrows.get_offsets().T
    assert len(x) == 8 * 2
    np.testing.assert_allclose(np.arctan2(arrows.V, arrows.U), np.arctan2(-2 * y, x))
    length = np.hypot(arrows.U, arrows.V)
    assert length.max() == pytest.approx(0.5)  # the distance between arrows
    slow = length < 0.499
    assert slow.sum() > 8
    assert np.ptp(length[slow] / np.hypot(x, 2 * y)[slow]) < 1e-9
    plotting.draw_field(ax, np.zeros_like, BOUNDS)
    assert not ax.collections[1].U.any()


def test_grid_is_regular_at_the_base_and_transported_by_the_flow(fitted, ax):
    grid = plotting.base_grid(fitted, lines=5, nodes=9)
    upright, lying = grid[:5, :, 0], grid[5:, :, 1]
    assert max(np.ptp(lines, axis=1).max() for lines in (upright, lying)) == 0
    assert grid.min() < -2.5 < 2.5 < grid.max()
    path = plotting.grid_path(fitted, 3, lines=5, nodes=9)
    expected = fitted.transport(torch.from_numpy(grid.reshape(-1, 2))).detach().numpy()
    np.testing.assert_allclose(path[-1].reshape(-1, 2), expected, atol=1e-3)
    plotting.draw_grid(ax, path[-1], BOUNDS)
    assert [len(lines.get_segments()) for lines in ax.collections] == [5, 5]


def test_contours_hold_their_shares_of_the_rows(ax):
    """Of a normal: discs, with radii by the chi distribution."""
    plotting.draw_contours(ax, normal(50_000, 2), ((-4.0, 4.0), (-4.0, 4.0)))
    for path, mass in zip(ax.collections[0].get_paths(), (0.9, 0.5), strict=True):
        radius = np.hypot(*path.vertices.T)
        assert radius.mean() == pytest.approx(np.sqrt(-2 * np.log(1 - mass)), rel=0.1)
        assert radius.std() < 0.15
    assert highest_density_level(np.ones((3, 3)), 0.5) == 1


def test_contours_of_few_rows_or_rows_beyond_the_window():
    for rows, value, drawn in ((0, 0, 0), (1, 0, 0), (2, 0, 1), (5, 0, 1), (9, 99.0, 0)):
        ax = Figure().subplots()
        plotting.draw_contours(ax, np.full((rows, 2), value), BOUNDS)
        assert len(ax.collections) == drawn


def test_projection_shows_what_is_within_the_limits():
    ax = Figure().add_subplot(projection="3d")
    rows = np.array([[0.0, 1.0, 2.0], [0.5, 0.5, 0.5], [99.0, 0.0, 0.0]])
    assert plotting.draw_projection(ax, rows, [(-1.0, 3.0)] * 3) is ax
    np.testing.assert_array_equal(np.array(ax.collections[0]._offsets3d).T, rows[:2])
    # A figure has data and samples from three sides.
    rows = normal(50, 3)
    axes = plotting.projections_figure(rows, rows, ["a", "b", "c"]).get_axes()
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[::3]] == ["data", "flow: samples"]
    assert len({(ax.elev, ax.azim) for ax in axes}) == 3
    with pytest.raises(ValueError, match="Expected rows of 3 columns"):
        plotting.projections_figure(rows[:, :2], rows[:, :2], ["a", "b"])


@pytest.mark.parametrize(
    ("loss", "nll", "nfe", "labels", "counts"),
    [
        (np.nan, [3.0, 2.0], [0, 0], ["validation NLL", "best"], None),
        (9.0, [3.0, 2.0], [0, 9], ["training loss", "validation NLL", "best"], [np.nan, 9]),
        (np.nan, [np.nan, np.inf], [20, 30], ["validation NLL"], [20, 30]),
    ],
)
def test_learning_curves_have_evaluations_where_they_were(loss, nll, nfe, labels, counts):
    axes = plotting.learning_curve_figure([1, 2], [loss, loss], nll, nfe).get_axes()
    assert texts(axes[0].get_legend().get_texts()) == labels
    if "best" in labels:
        assert axes[0].get_lines()[-1].get_xydata().tolist() == [[2, 2.0]]
    drawn = [ax.get_lines()[0].get_ydata() for ax in axes[1:]]
    np.testing.assert_array_equal(drawn, [] if counts is None else [counts])


def test_learning_curves_have_a_gap_where_another_model_begins():
    loss = [np.nan, 3.0, 2.0, np.nan, 4.0]  # flow matching has none in nats
    figure = plotting.learning_curve_figure(range(5), loss, [5.0, 4.0, 3.0, 6.0, 5.0], [0] * 5)
    line = figure.get_axes()[0].get_lines()[1].get_xydata()
    np.testing.assert_array_equal(line[:, 1], [5.0, 4.0, 3.0, np.nan, 6.0, 5.0])
    np.testing.assert_array_equal(line[:, 0], [0, 1, 2, np.nan, 3, 4])


@pytest.mark.parametrize(
    ("draw", "panels", "bounds"),
    [
        (plotting.strip_figure, 12, None),
        (plotting.strip_figure, 12, WIDE),
        (plotting.trajectories_figure, 1, WIDE),
        (plotting.field_figure, 5, WIDE),
        (plotting.grid_figure, 5, WIDE),
    ],
)
def test_figures_of_motion_have_their_panels(draw, panels, bounds, fitted, monkeypatch):
    pixels(monkeypatch, 10, "density.STRIP_PIXELS", "motion.GRID_LINE_NODES")
    axes = draw(fitted, TOYS["moons"].sample(500, seed=0), bounds=bounds).get_axes()
    assert len(axes) == panels
    if bounds is not None:
        assert {(ax.get_xlim(), ax.get_ylim()) for ax in axes} == {bounds}
        assert {ax.get_box_aspect() for ax in axes} == {0.5}


def test_strip_ends_with_the_flows_density(fitted, monkeypatch):
    pixels(monkeypatch, 10, "density.STRIP_PIXELS")
    data, bounds = TOYS["moons"].sample(500, seed=0), ((-3.0, 3.0), (-2.0, 2.0))
    figure = plotting.strip_figure(fitted, data, frames=2, bounds=bounds)
    shades = figure.get_axes()[1].get_images()[0].get_array()
    assert shades.shape == (7, 10)
    at = torch.tensor([[-3 + 6 * 3.5 / 10, -2 + 4 * 4.5 / 7]], dtype=torch.float64)
    expected = fitted.log_prob(at).exp().item()
    assert shades[4, 3] == pytest.approx(expected, rel=0.02, abs=1e-3)


def steps(ax):
    """Return the shares and edges of the data's and of the samples' histogram."""
    return [patch.get_data()[:2] for patch in ax.patches]


@pytest.mark.parametrize(("columns", "shown"), [(1, 1), (7, 6)])
def test_there_is_a_panel_for_each_column_up_to_the_most(columns, shown):
    names = tuple(f"${i}" + 40 * "x" for i in range(columns))
    table = Table("t", RNG.normal(size=(50, columns)), names)
    figure = comparison.marginals_figure(table, table, most=6)
    figure.draw_without_rendering()
    titles = [ax.get_title() for ax in figure.get_axes() if ax.get_title()]
    assert titles == [name[:29] + "…" for name in names[:shown]]
    assert texts(figure.legends[0].get_texts()) == ["data", "samples"]


COLOURS = {"categories": {"y": ("red", "blue", "grey")}}


def test_pairs_without_a_shape_are_maps_of_shares_with_named_cells():
    data = table_of([0.0, 1, 1, 0], [1, 1, 1, 0], **COLOURS)
    samples = table_of([0.0, 3], [1, 2], **COLOURS)
    figure = pair_shares_figure(data, samples, pair_trends(data, samples))
    of_data, of_samples, _ = figure.get_axes()
    assert texts(of_data.get_xticklabels()) == ["0", "1", "other"]
    assert texts(of_data.get_yticklabels()) == ["blue", "red", "grey"]
    np.testing.assert_allclose(
        of_data.images[0].get_array(), [[0.25, 0.5, 0], [0.25, 0, 0], [0] * 3]
    )
    np.testing.assert_allclose(of_samples.images[0].get_array(), np.diag([0.5, 0, 0.5]))
    assert {ax.images[0].get_cmap().name for ax in (of_data, of_samples)} == {"Blues"}
    plotting.darken(figure).draw_without_rendering()
    assert {ax.images[0].get_cmap().name for ax in (of_data, of_samples)} == {"Blues_r"}


def test_numbers_have_a_density_for_each_category_and_contours_against_numbers():
    code, x, z = np.arange(300) % 2, normal(300), normal(2, 300)[1]
    data = table_of(x + 3 * code, code, z, **COLOURS)
    samples = table_of(x[code == 0], np.zeros(150), z[code == 0], **COLOURS)
    trends = {(pair.a, pair.b): pair for pair in pair_trends(data, samples)}
    figure = pair_shares_figure(data, samples, [trends["x", "y"], trends["x", "z"]])
    shapes, dots, contours = figure.get_axes()
    assert texts(shapes.get_yticklabels()) == ["red", "blue", "grey"]
    # Of red data and samples, of blue data, and of no blue samples: up is data.
    outlines = [each.get_paths()[0].vertices for each in shapes.collections]
    modes = [each[np.abs(each[:, 1] - i // 2).argmax()] for i, each in enumerate(outlines)]
    np.testing.assert_allclose(modes[0], [0, -0.42], atol=0.6)
    assert modes[1] == pytest.approx([0, 0.42], abs=0.6)
    assert modes[1][1] > 0.3
    assert modes[2] == pytest.approx([3, 0.58], abs=0.6)
    assert np.ptp(outlines[3][:, 1]) == 0
    assert [type(each).__name__ for each in dots.collections] == ["PathCollection"] * 2
    assert [type(each).__name__ for each in contours.collections] == ["QuadContourSet"] * 2


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_mixed_pairs_are_those_that_differ_most_below_their_columns(columns):
    code, other = np.arange(200.0) % 2, np.arange(200.0) // 2 % 2
    data = table_of(*(code, other, code)[:columns])
    samples = table_of(*(code, other, 1 - code)[:columns])
    figure = plotting.mixed_pairs_figure(data, samples, most=1)
    plotting.darken(figure).draw_without_rendering()
    assert all(part.get_facecolor() == to_rgba(DARK_PAGE) for part in figure.findobj(SubFigure))
    titles = [ax.get_title() for ax in figure.get_axes() if ax.get_title()]
    assert (
        titles
        == {1: ["x"], 2: ["x", "y", "data", "samples"], 3: ["x", "z", "data", "samples"]}[columns]
    )
    assert figure.get_supxlabel() == (
        "the 1 of 3 pairs of columns that differ most" * (columns > 2)
    )


def test_cells_are_categories_booleans_few_values_dates_or_deciles():
    hundred = np.arange(100.0)
    labels, cells, drawn = cells_of(table_of(hundred), table_of([3.0, np.nan]), "x")
    assert (labels[:2], labels[-1]) == (["≤ 9.9", "≤ 19.8"], "missing")
    assert (np.bincount(cells).tolist(), drawn.tolist()) == ([10] * 10, [0, 10])
    names = {"categories": {"x": tuple(f"c{i}" for i in range(12))}}
    codes = np.repeat(np.arange(12.0), np.arange(1, 13))
    labels, cells, drawn = cells_of(table_of(codes, **names), table_of([0.0, -1.0], **names), "x")
    assert labels == [*names["categories"]["x"][:2:-1], "3 others"]
    assert (np.bincount(cells).tolist(), drawn.tolist()) == ([*range(12, 3, -1), 6], [9, 9])
    for type, values, expected in (
        (ColumnType("bool"), [0, 1, 1, 1], ["false", "true"]),
        (
            ColumnType("datetime64[s]", "D", "2024-01-01"),
            [0, 0, 31, 31],
            ["2024-01-01", "2024-02-01"],
        ),
        (ColumnType(), [0, 0, 329054, 329054], ["0", "329054"]),
    ):
        table = table_of(values, types={"x": type})
        assert cells_of(table, table, "x")[0] == expected


def test_numbers_of_dates_are_labelled_by_their_days():
    hours = {"types": {"x": ColumnType("datetime64[us]", "h", "2024-01-01")}}
    ax = marginal(np.arange(100.0), np.arange(100.0), **hours)
    ax.figure.draw_without_rendering()
    assert {"2024-01-01", "2024-01-03"} <= {*texts(ax.get_xticklabels())}


def test_tables_of_real_columns_are_not_mixed():
    real = normal(200)
    assert not is_mixed(table_of(real))
    assert not is_mixed(table_of(real[:5]))
    for other, given in (
        (np.arange(200) % 3, {}),
        (np.where(real > 0, real, 0.0), {}),
        (np.zeros(200), COLOURS),
        (np.zeros(200), {"types": {"y": ColumnType("bool")}}),
    ):
        assert is_mixed(table_of(real, other, **given))


def test_categories_are_bars_with_names_and_rare_ones_one_bar():
    names = {"categories": {"x": tuple(f"c{i}" for i in range(12))}}
    ax = marginal(np.repeat(np.arange(12.0), np.arange(1, 13)), [0.0], **names)
    assert texts(ax.get_yticklabels()) == [*names["categories"]["x"][:2:-1], "3 others"]
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths[:10], np.array([*range(12, 3, -1), 6]) / 78)
    np.testing.assert_allclose(widths[10:], [0] * 9 + [1])
    # Of many values each second has its name.
    ax = marginal(np.repeat(np.arange(14.0) / 8, 2), [0.0])
    assert texts(ax.get_yticklabels()) == [
        f"{value / 8:g}" for value in (0, 2, 4, 6, 8, 10, 12, 13)
    ]


def test_values_with_a_mass_are_bars_beside_the_histogram_of_the_others():
    data = np.concatenate([np.zeros(300), np.full(100, 0.5), RNG.uniform(1, 2, size=600)])
    ax = marginal(data, np.concatenate([np.zeros(50), RNG.uniform(1, 2, size=50)]))
    bars, others = ax.child_axes
    assert texts(bars.get_xticklabels()) == ["0", "0.5"]
    assert heights(bars) == [[0.3, 0.1], [0.5, 0.0]]
    shares = [share.sum() for share, _ in steps(others)]
    np.testing.assert_allclose(shares, [0.6, 0.5], atol=0.02)
    assert others.get_xlim()[0] > 0.9
    assert not marginal(np.repeat(np.arange(25.0) / 2, 40), [0.0]).child_axes  # a grid's values


def test_steps_are_the_shares_of_either_on_common_bins():
    data, samples = RNG.normal(size=1000), RNG.normal(0.5, 2.0, size=300)
    (own, edges), (drawn, same) = steps(marginal(data, samples))
    assert np.array_equal(edges, same)
    for share, values in ((own, data), (drawn, samples)):
        inside = (values[:, None] >= edges[:-1]) & (values[:, None] < edges[1:])
        np.testing.assert_allclose(share, inside.mean(axis=0), atol=1e-12)
    assert own.sum() > 0.99

    # Distant samples do not blur the data.
    low, high = marginal(RNG.uniform(size=1000), RNG.normal(size=1000) * 1e6).get_xlim()
    assert -1.2 < low < high < 2.2


def test_constant_data_are_visible_with_their_samples():
    for value in (0.0, 0.3, 1e30):
        samples = value + max(1.0, value) * RNG.normal(size=100)
        low, high = marginal(np.full(50, value), samples).get_xlim()
        assert low < np.quantile(samples, 0.01) < np.quantile(samples, 0.99) < high
    alone = marginal(np.full(5, 0.3), np.full(9, 0.3))
    assert [share.sum() for share, _ in steps(alone)] == [1, 1]


def test_a_few_whole_numbers_have_bars_side_by_side():
    ax = marginal([0.0, 0.0, 1.0, 3.0], [0.2, 0.9, 1.4, 2.6, 1.0])
    assert heights(ax) == [[0.5, 0.25, 0.0, 0.25], [0.2, 0.6, 0.0, 0.2]]
    own, drawn = ([bar.get_x() for bar in bars] for bars in ax.containers)
    assert all(left < right for left, right in zip(own, drawn, strict=True))
    ax = marginal([0.0, 2.0, np.nan, 2.0], [0.2, 1.0, 2.0, 2.0])
    assert heights(ax) == [[0.25, 0.0, 0.5, 0.25], [0.25, 0.25, 0.5, 0.0]]
    assert texts(ax.get_xticklabels()) == ["0", "1", "2", "missing"]


def test_bins_of_many_whole_numbers_hold_equally_many():
    data = RNG.integers(0, 101, size=1000).astype(float)
    edges = steps(marginal(data, data))[0][1]
    assert np.unique(np.diff(edges)).tolist() == [5.0]
    assert (edges % 1 == 0.5).all()


def test_correlations_are_pearsons_and_unknown_for_constants():
    rows = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) * [1e6, 1.0, 1e-6, 1.0]
    rows += np.array([1.7e9, 7.0, 1e-5, 0.0])
    np.testing.assert_allclose(comparison.correlations(rows), np.corrcoef(rows.T), atol=1e-9)
    rows[:, 2:] = 0.1, 0.0
    known = np.isfinite(comparison.correlations(rows))
    np.testing.assert_array_equal(known, np.outer([1, 1, 0, 0], [1, 1, 0, 0]))


@pytest.mark.parametrize("columns", [2, 16, 41])
def test_maps_are_the_correlations_and_named_where_there_is_room(columns):
    data, samples = (comparison.correlations(RNG.normal(size=(20, columns))) for _ in range(2))
    names = [f"${i}" for i in range(columns)]
    axes = comparison.correlations_figure(data, samples, names).get_axes()[:3]
    largest = max(0.1, np.abs(samples - data).max())
    drawn = ((data, 1), (samples, 1), (samples - data, largest))
    shown = names if columns <= 40 else []
    for ax, (expected, limit) in zip(axes, drawn, strict=True):
        (image,) = ax.get_images()
        np.testing.assert_array_equal(image.get_array(), expected)
        assert image.get_clim() == (-limit, limit)
        assert texts(ax.get_xticklabels()) == shown
    assert texts(axes[0].get_yticklabels()) == shown


def test_unknown_values_are_drawn():
    unknown = np.full((3, 3), np.nan)
    figure = comparison.correlations_figure(unknown, unknown, "abc")
    figure.draw_without_rendering()
    assert figure.get_axes()[2].get_images()[0].get_clim() == (-0.1, 0.1)
    comparison.log_prob_figure(np.full(3, -np.inf), np.full(3, -np.inf)).draw_without_rendering()


def test_log_p_outside_of_the_panel_is_counted():
    inside = np.linspace(-3.0, -1.0, 1000)
    data = np.append(inside, [-1e9, -np.inf])
    (ax,) = comparison.log_prob_figure(data, np.append(inside, -1e3)).get_axes()
    assert ax.get_title(loc="left").endswith("2 of the data, 1 of the samples")
    assert -3.2 < ax.get_xlim()[0] < ax.get_xlim()[1] < -0.8
    (own, _), (drawn, _) = steps(ax)
    np.testing.assert_allclose([own.sum(), drawn.sum()], [1000 / 1002, 1000 / 1001])


# Of linear RGB, by Machado, Oliveira & Fernandes (2009), at severity 1.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lightness(colors: np.ndarray, eyes: str = "all cones") -> np.ndarray:
    """CIE L* of sRGB colours (n, 3)."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eyes]), 0, 1)
    y = seen @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("eyes", EYES)
def test_maps_only_get_lighter_and_data_and_model_differ_in_lightness(eyes):
    for name in (DENSITY_MAP, TIME_MAP):  # which print in grey
        shades = lightness(matplotlib.colormaps[name](np.linspace(0, 1, 64))[:, :3], eyes)
        assert (np.diff(shades) > -0.05).all()
        assert shades[-1] - shades[0] > 60
    data, model = lightness(np.array([to_rgb(DATA_COLOR), to_rgb(MODEL_COLOR)]), eyes)
    assert abs(model - data) > 6


@pytest.mark.parametrize("page", ["white", DARK_PAGE])
def test_data_and_model_are_seen_on_both_pages(page):
    y = (lightness(np.array([to_rgb(c) for c in (DATA_COLOR, MODEL_COLOR, page)])) + 16) / 116
    data, model, background = y**3
    for own in (data, model):
        ratio = (own + 0.05) / (background + 0.05)
        assert max(ratio, 1 / ratio) > 2.8


def test_dark_page_leaves_nothing_black_and_no_trace():
    before = dict(matplotlib.rcParams)
    figure = Figure()
    ax, other = figure.subplots(1, 2)
    ax.plot([0, 1], [0, 1], color="black", label="truth")
    ax.plot([0, 1], [1, 0], color=DATA_COLOR)
    ax.set(title="title", xlabel="x")
    ax.legend(frameon=False)
    plotting.draw_field(other, lambda rows: rows, ((-1.0, 1.0), (-1.0, 1.0)))
    figure.suptitle("all")
    plotting.darken(figure).draw_without_rendering()
    assert figure.get_facecolor() == ax.get_facecolor() == to_rgba(DARK_PAGE)
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    assert len(texts) > 10
    assert {to_rgba(text.get_color()) for text in texts} == {to_rgba(DARK_INK)}
    assert [line.get_color() for line in ax.get_lines()] == [DARK_INK, DATA_COLOR]
    assert to_rgba(other.collections[0].get_facecolor()[0])[:3] == to_rgba(DARK_INK)[:3]
    assert {to_rgba(line.get_color()) for line in ax.xaxis.get_ticklines()} == {to_rgba(DARK_INK)}
    assert dict(matplotlib.rcParams) == before
