import json
from dataclasses import replace
from math import log, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from cnf.tables.coding import Coding, has_codes
from cnf.tables.coordinates import Coded, count_without
from cnf.tables.kinds.column_values import MAX_MASSES, find_masses
from cnf.tables.schema import Column, Schema

ROWS = 3000
COLUMNS = (
    Column("color", "categorical", categories=("red", "green", "blue")),
    Column("flag", "boolean"),
    Column("same", "constant", 4.0),
    Column("few", "integer", 0, 5),
    Column("count", "integer", 0),
    Column("capped", "integer", -3, 4000),
    Column("price", "grid", step=0.5),
    Column("day", "datetime"),
    Column("x", "real"),
    Column("size", "positive"),
    Column("share", "bounded", 0.0, 0.3),
    Column("spike", "spike", atoms=((0.0, 0.5),)),
    Column("hour", "circular", 0.0, 24.0),
)
SCHEMA = Schema(COLUMNS)


def table(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Numbers of every kind of column, of which some of the counts and reals occur with a mass."""
    rng = np.random.default_rng(seed)
    count = rng.geometric(0.003, rows) - 1.0
    count[: rows // 3] = rng.choice([0.0, 40.0, 41.0, 5000.0], rows // 3)
    share = 0.3 * rng.beta(0.5, 2.0, rows)
    share[:2] = 0.0, 0.3
    return np.column_stack(
        [
            rng.integers(0, 3, rows),
            rng.integers(0, 2, rows),
            np.full(rows, 4.0),
            rng.integers(0, 4, rows),
            count,
            rng.integers(-3, 4001, rows),
            np.rint(rng.normal(size=rows) * 1000),
            rng.integers(15_000, 20_000, rows),
            rng.standard_cauchy(rows),
            rng.lognormal(3.0, 2.0, rows),
            share,
            np.where(rng.random(rows) < 0.5, 0.0, rng.normal(size=rows)),
            rng.uniform(0, 24, rows),
        ]
    )


TABLE = table()


@pytest.fixture(scope="module")
def coding() -> Coding:
    return Coding.fit(SCHEMA, TABLE, bins=16)


def single(column: Column, values: np.ndarray, bins: int) -> Coding:
    return Coding.fit(Schema((column,)), values[:, None], bins)


def log_weight(coded: Coded) -> np.ndarray:
    """ln of N(z; 0, 1) |∂z/∂x| of present values."""
    normal = -0.5 * (coded.z**2 + log(2 * pi))
    return (normal * coded.present + coded.log_det).sum(1)


def mass_of_counts(coding: Coding, counts: np.ndarray, nodes: int = 64) -> np.ndarray:
    """The mass of each code over whole numbers, by Gauss's rule over the noise of each."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    masses = np.zeros(coding.sizes[0])
    for u, weight in zip((at + 1) / 2, weights / 2, strict=True):
        coded = coding.encode(counts[:, None], np.full((len(counts), 1), u))
        each = np.where(coded.known[:, 0], np.exp(log_weight(coded)), 0.0) * weight
        masses += np.bincount(coded.codes[:, 0], each, minlength=len(masses))
    return masses


def test_codes_of_every_kind(coding):
    assert coding.dim == len(COLUMNS)
    assert len(coding.sizes) == len(COLUMNS) - 1
    assert coding.noisy
    named = dict(zip([c.name for c in COLUMNS if c.width], range(20), strict=False))
    sizes = {name: (coding.sizes[i], coding.first_bin[i]) for name, i in named.items()}
    assert sizes["color"] == (3, 3)
    assert sizes["flag"] == (2, 2)
    assert sizes["few"] == (6, 6)  # those that the schema has, too
    assert sizes["count"][0] == sizes["count"][1] + 16
    assert sizes["x"] == (16, 0)
    assert sizes["spike"] == (17, 1)
    assert coding.continuous == tuple(range(3, 12))
    for i, features in enumerate(coding.features):
        if i < 2:
            assert features is None
        else:
            assert features.shape == (coding.sizes[i], 2)
            assert np.abs(features).max() <= 1
            assert (np.diff(features[coding.first_bin[i] :], axis=0) > 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_rows_return_from_coordinates(coding, seed):
    numbers = table(100, seed)
    uniforms = np.random.default_rng(seed).uniform(0.01, 0.99, numbers.shape)
    coded = coding.encode(numbers, uniforms)
    assert (coded.codes >= 0).all()
    assert (coded.codes < coding.sizes).all()
    assert (coded.z[~coded.present] == 0).all()
    assert np.isfinite(coded.z).all()
    assert np.isfinite(coded.log_det).all()
    found = coding.decode(coded.codes, coded.z)
    rest = coded.known.all(1)
    assert rest.mean() > 0.9
    np.testing.assert_allclose(found[rest, 8:], numbers[rest, 8:], rtol=1e-7, atol=1e-12)
    assert (found[rest, :8] == numbers[rest, :8]).all()


def test_training_rows_are_known_and_normal_within_bins_of_equal_mass(coding):
    coded = coding.encode(TABLE, np.random.default_rng(1).random(TABLE.shape))
    assert coded.known.all()
    for place in coding.continuous:
        z = coded.z[coded.present[:, place], place]
        assert abs(z.mean()) < 0.15
        assert abs(z.std() - 1) < 0.1
        codes = coded.codes[coded.present[:, place], place] - coding.first_bin[place]
        shares = np.bincount(codes, minlength=16) / len(codes)
        assert shares.max() < 1.5 / 16
        assert shares.min() > 0.5 / 16


def test_draws_are_within_bounds(coding):
    rng = np.random.default_rng(2)
    codes = np.column_stack([rng.integers(0, size, ROWS) for size in coding.sizes])
    z = rng.normal(size=codes.shape) * 3
    numbers = coding.decode(codes, z)
    assert np.isfinite(numbers).all()
    SCHEMA.check(numbers)
    again = coding.encode(numbers)
    bins = codes >= coding.first_bin
    assert again.known.all()
    assert ((again.codes == codes) | bins).all()
    assert (again.codes == codes).mean() > 0.999  # but on an edge, by rounding


@pytest.mark.parametrize("bins", [1, 16])
@pytest.mark.parametrize("bounds", [(), (0,), (0, 4000)])
def test_counts_have_mass_1(bins, bounds):
    rng = np.random.default_rng(0)
    counts = np.minimum(rng.geometric(0.01, ROWS) - 1.0, 4000.0)
    counts[:900] = rng.choice([0.0, 7.0, 8.0, 300.0], 900)
    coding = single(Column("n", "integer", *bounds), counts, bins)
    assert coding.first_bin[0] >= 4
    assert coding.sizes[0] == coding.first_bin[0] + bins
    low = 0 if bounds else -30_000
    high = 4001 if len(bounds) == 2 else 60_000
    masses = mass_of_counts(coding, np.arange(low - 5.0, high + 5.0), 8)
    np.testing.assert_allclose(masses, 1.0, atol=2e-3)
    beyond = coding.encode(np.array([[-1.0], [4001.0], [20.5]]))
    assert beyond.known[:, 0].tolist() == [not bounds, len(bounds) < 2, True]


def test_cells_have_their_mass_whatever_the_noise():
    """No cell is in two bins."""
    counts = np.random.default_rng(0).integers(0, 2000, ROWS).astype(float)
    coding = single(Column("n", "integer", 0), counts, 16)
    every = np.arange(3000.0)[:, None]
    codes = [coding.encode(every, np.full_like(every, u)).codes for u in (1e-12, 0.5, 1 - 1e-12)]
    assert (codes[0] == codes[1]).all()
    assert (codes[1] == codes[2]).all()


@pytest.mark.parametrize(
    ("column", "least", "most"),
    [
        (Column("x", "spike", atoms=((0.0, 0.3),)), None, None),
        (Column("x", "positive", 1.0), 1.0, None),
        (Column("x", "bounded", -1.0, 2.0), -1.0, 2.0),
    ],
)
@pytest.mark.parametrize("bins", [1, 8])
def test_density_of_numbers_integrates_to_1(column, least, most, bins):
    rng = np.random.default_rng(0)
    values = rng.normal(size=ROWS)
    if least is not None:
        values = least + (values**2 if most is None else 3 * rng.beta(2, 3, ROWS))
    values[:900] = 0.0 if least is None else 1.5
    coding = single(column, values, bins)
    coordinate = coding.coordinates[0]
    assert coding.first_bin == (1,)
    s = np.linspace(-9, 9, 200_001)  # even in the normal column
    x = coordinate.marginal.inverse(s)
    coded = coding.encode(x[:, None])
    density = np.where(coded.known[:, 0], np.exp(log_weight(coded)), 0.0)
    for code in range(1, coding.sizes[0]):
        mine = np.where(coded.codes[:, 0] == code, density, 0.0)
        assert np.sum((mine[1:] + mine[:-1]) / 2 * np.diff(x)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bins", [1, 32])
def test_log_det_is_the_slope_of_z(bins):
    values = np.random.default_rng(0).standard_t(3, ROWS)
    coding = single(Column("x", "real"), values, bins)
    x, step = np.linspace(-8, 8, 501)[:, None], 1e-6
    before, here, after = (coding.encode(x + shift) for shift in (-step, 0.0, step))
    inner = (before.codes == after.codes)[:, 0] & (np.abs(here.z[:, 0]) < 5)
    slope = (after.z - before.z)[inner, 0] / (2 * step)
    np.testing.assert_allclose(np.log(slope), here.log_det[inner, 0], atol=1e-3)


@pytest.mark.parametrize("kind", ["real", "positive", "integer"])
@pytest.mark.parametrize("bins", [1, 16])
def test_outliers_have_a_density(kind, bins):
    values = np.rint(np.random.default_rng(0).lognormal(7, 0.5, ROWS)) + 1
    coding = single(Column("x", kind), values, bins)
    far = np.array([[1e4], [1e6], [1e9], [1e12]])
    coded = coding.encode(far)
    assert coded.known.all()
    density = log_weight(coded)
    assert np.isfinite(density).all()
    assert (np.diff(density) < 0).all()
    np.testing.assert_allclose(coding.decode(coded.codes, coded.z), far, rtol=1e-9)


def test_unseen_values_are_not_known(coding):
    rows = np.repeat(TABLE[:1], 9, axis=0)
    changes = [(0, 3.0), (0, -1.0), (1, 0.5), (3, 6.0), (4, -1.0), (9, 0.0), (10, 0.4)]
    rows = rows[:8]
    for row, (column, value) in enumerate(changes):
        rows[row, column] = value
    coded = coding.encode(rows)
    assert coded.known.all(1).tolist() == [False] * 7 + [True]
    assert np.isfinite(coded.log_det).all()
    for column in (i for i, each in enumerate(COLUMNS) if each.width):
        gap = TABLE[:1].copy()
        gap[0, column] = np.nan
        assert not coding.encode(gap).known.all()
        assert coding.unseen(gap).sum() == 1


def test_numbers_of_a_grid_and_of_a_turn_are_the_nearest(coding):
    rows = np.repeat(TABLE[:1], 2, axis=0)
    rows[1, [3, 6, 7, 12]] += 0.3, -0.4, 0.2, 48.0
    coded = coding.encode(rows)
    assert (coded.codes[0] == coded.codes[1]).all()
    np.testing.assert_allclose(coded.z[0], coded.z[1], atol=1e-9)


def test_nearest_numbers_have_codes(coding):
    rows = np.full((3, len(COLUMNS)), np.nan)
    rows[1:] = [[-1e9], [1e9]]
    rows[1:, :2] = 1.0
    found = coding.nearest(rows)
    assert np.isnan(found[0, [i for i, c in enumerate(COLUMNS) if c.width]]).all()
    assert coding.encode(found).known[1:].all()
    assert found[1:, 3].tolist() == [0.0, 5.0]
    assert found[1:, 5].tolist() == [-3.0, 4000.0]


FEW = [
    (Column("n", "grid", step=2.0), np.array([1.0, 5.0, 9.0]), -3000, 3000),
    (Column("n", "integer", 0), np.array([0.0, 1.0, 2.0, 4.0]), 0, 3000),
    (Column("n", "integer", 0), np.array([3.0]), 0, 3000),
    (Column("n", "integer", 0, 400), np.arange(300.0), 0, 401),
    (Column("n", "integer", -5, 400), np.array([-5.0, 399.0]), -5, 401),
]


@pytest.mark.parametrize(("column", "values", "least", "end"), FEW)
def test_few_values_of_a_grid_have_codes_and_others_a_mass(column, values, least, end):
    coding = single(column, np.repeat(values, 30), 8)
    first = len(values)
    assert (coding.first_bin, coding.sizes) == ((first,), (first + 1,))
    assert not coding.noisy
    assert coding.continuous == ()
    every = np.arange(float(least), end)
    coded = coding.encode(every[:, None])
    assert coded.known.all()
    other = coded.codes[:, 0] == first
    assert every[~other].tolist() == values.tolist()
    assert np.exp(coded.log_alone[other, 0]).sum() == pytest.approx(1, abs=1e-6)
    draws = coding.decode(np.full((99, 1), first), np.random.default_rng(0).normal(size=(99, 1)))
    assert not np.isin(draws, values).any()
    assert coding.encode(draws).known.all()
    beyond = coding.encode(np.array([[least - 1.0], [float(end)]])).known[:, 0]
    assert beyond.tolist() == [column.low is None, column.high is None]


def test_few_real_values_have_codes_and_others_a_density():
    for column, values, low, high in (
        (Column("x", "real"), [0.5, 1.5], -40, 40),
        (Column("x", "positive"), [0.5, 1.5], 1e-9, 200),
        (Column("x", "bounded", 0, 3), [0.0, 1.5, 3.0], 0, 3),
        (Column("x", "circular", 0, 24), [0.0, 6.0], 0, 24),
        (Column("x", "real"), [7.0], -40, 60),
    ):
        coding = single(column, np.repeat(values, 50), 8)
        assert coding.sizes == (len(values) + 1,)
        assert coding.continuous == ()
        x = np.linspace(low, high, 200_001)
        coded = coding.encode(x[:, None])
        density = np.where(coded.present[:, 0], np.exp(coded.log_alone[:, 0]), np.nan)
        found = np.isfinite(density)
        assert np.trapezoid(density[found], x[found]) == pytest.approx(1, abs=2e-3)


def test_all_numbers_between_bounds_need_no_others():
    coding = single(Column("n", "integer", 0, 5), np.repeat([1.0, 2.0], 50), 8)
    assert coding.sizes == coding.first_bin == (6,)
    assert coding.encode(np.array([[0.0], [6.0]])).known[:, 0].tolist() == [True, False]


def test_the_most_frequent_values_are_masses():
    counts = np.array([19, 20, 1500, 4])
    assert find_masses(np.arange(4.0), counts).tolist() == [1.0, 2.0]
    assert find_masses(np.arange(4.0), counts * 1000).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert find_masses(np.arange(2.0), np.array([99_900, 100])).tolist() == [0.0]
    assert find_masses(np.arange(3.0), np.array([9, 10, 41])).tolist() == [1.0, 2.0]
    often = np.arange(20, 320)  # of 300 values
    assert find_masses(np.arange(300.0), often).tolist() == [*range(300 - MAX_MASSES, 300)]


def test_counts_without_masses_have_no_gaps():
    masses = np.array([0.0, 3.0, 4.0, 9.0])
    others = np.setdiff1d(np.arange(-2.0, 13.0), masses)
    assert count_without(others, masses).tolist() == [*range(-2, 9)]


def test_tables_with_masses_have_codes():
    rng = np.random.default_rng(0)
    real, many = rng.normal(size=1000), rng.permutation(1000) * 1.0
    for column, values, found in (
        (Column("x", "real"), real, False),
        (Column("x", "real"), np.maximum(real, 0), True),
        (Column("x", "real"), np.round(real, 1), False),  # rounded, and a density by the schema
        (Column("x", "spike", atoms=((0.0, 0.1),)), real, True),
        (Column("n", "integer"), many, False),
        (Column("n", "integer"), many % 10, True),
        (Column("b", "boolean"), many % 2, True),
        (Column("same", "constant", 4.0), np.full(1000, 4.0), False),
        (Column("day", "datetime"), np.arange(250.0), False),
        (Column("day", "datetime"), np.arange(500.0) // 2, False),
        (Column("day", "datetime"), np.arange(500.0) // 10, True),
    ):
        assert has_codes(Schema((column,)), values[:, None]) is found


def test_json_returns_the_same_coding(coding):
    stored = Coding.of(json.loads(json.dumps(coding.json(), allow_nan=False)))
    assert stored == coding
    first, second = coding.encode(TABLE), stored.encode(TABLE)
    assert (first.z == second.z).all()
    assert (first.log_det == second.log_det).all()


def test_mistakes():
    constant = Schema((Column("same", "constant", 4.0),))
    with pytest.raises(ValueError, match="a column that varies"):
        Coding.fit(constant, np.full((100, 1), 4.0))
    with pytest.raises(ValueError, match="at least 1 bin; got 0"):
        Coding.fit(SCHEMA, TABLE, bins=0)


def test_bounded_numbers_that_reach_their_bounds_have_a_density_of_one():
    """The marginal goes beyond the bounds, where no number is."""
    values = np.append(np.random.default_rng(0).random(500), [0.0, 1.0])
    coding = Coding.fit(Schema((Column("x", "bounded", 0.0, 1.0),)), values[:, None], bins=64)
    grid = expit(np.linspace(-35, 35, 400_001))  # dense at the bounds
    coded = coding.encode(grid[:, None])
    density, codes = np.exp(coded.log_alone[:, 0]), coded.codes[:, 0]
    cells = np.diff(grid) * (density[1:] + density[:-1]) / 2
    masses = np.bincount(codes[1:], cells)
    np.testing.assert_allclose(masses, 1.0, atol=1e-2)


def test_whole_numbers_beyond_what_double_precision_counts_have_a_mass():
    values = np.append(np.random.default_rng(0).integers(0, 10**6, 3000), [9e15, 8e15]) * 1.0
    coding = Coding.fit(Schema((Column("k", "integer", 0.0),)), values[:, None])
    coded = coding.encode(values[:, None])
    assert np.isfinite(coded.log_alone).all()
    assert coded.log_alone[-1] < coded.log_alone[:-2].min()


def test_gaps_that_are_a_value_have_one_more_code(coding):
    """In every kind of column, and nothing else changes for the other numbers."""
    schema = Schema(tuple(replace(each, gaps="value") for each in COLUMNS))
    assert has_codes(Schema((replace(COLUMNS[8], gaps="value"),)), TABLE[:, [8]])
    gaps = np.where(np.random.default_rng(0).random(TABLE.shape) < 0.2, np.nan, TABLE)
    found = Coding.fit(schema, gaps, bins=16)
    assert len(found.sizes) == len(COLUMNS)  # one of the constant, too
    assert Coding.of(json.loads(json.dumps(found.json(), allow_nan=False))) == found
    coded = found.encode(gaps)
    missing = np.isnan(gaps)
    assert not found.unseen(gaps).any()
    assert coded.known.all()
    assert (coded.codes[missing] == np.tile(found.first_bin, (ROWS, 1))[missing] - 1).all()
    assert not coded.present[missing].any()
    assert (coded.log_alone[missing] == 0).all()
    again = found.decode(coded.codes, coded.z)
    np.testing.assert_allclose(again, gaps, rtol=1e-7, atol=1e-9)
    assert np.isnan(found.nearest(gaps)[missing]).all()
    for each, size in zip(found.features, found.sizes, strict=True):
        assert each is None or each.shape == (size, 2)
    whole = Coding.fit(schema, TABLE, bins=16)
    assert whole.sizes[0] == coding.sizes[0] + 1
    part, plain = whole.encode(TABLE), coding.encode(TABLE)
    others = [i for i, column in enumerate(COLUMNS) if column.width]
    assert (part.log_alone[:, others] == plain.log_alone).all()


def test_columns_with_gaps_have_the_coordinates_of_their_other_numbers(coding):
    rows = np.vstack([TABLE, np.full((50, len(COLUMNS)), np.nan)])
    assert Coding.fit(SCHEMA, rows, bins=16) == coding
    unseen = coding.unseen(rows)
    assert unseen[ROWS:].all()
    assert not unseen[:ROWS].any()
    schema = Schema((Column("x", "real"),))
    values = np.append(np.zeros(100), np.arange(300) + 0.5)[:, None]
    binned = Coding.fit(schema, values, bins=8)
    assert binned.sizes == (9,)
    assert binned.mostly_binned(values).tolist() == [True]
    assert binned.without_bins(np.array([True])).sizes == (2,)
