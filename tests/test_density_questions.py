"""Gaps and questions about parts of rows by the density estimator: meaning, types, mistakes."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from cnf import CNFDensity, Flow
from cnf.datasets import Table, frame_table, from_any
from cnf.tables import CodeRecipe, RowModel
from cnf.tables.inputs import column_flags, given_table
from cnf.tables.outputs import fill_frame
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

KINDS = {
    "pandas": lambda frame: frame,
    "polars": polars.from_pandas,
    "pyarrow": lambda frame: pyarrow.Table.from_pandas(frame, preserve_index=False),
}


def hide(frame, share, seed=0):
    """A frame with gaps at random, in types that hold them."""
    rng = np.random.default_rng(seed)
    frame = frame.astype({name: "boolean" for name in frame.select_dtypes("bool")})
    return frame.mask(rng.random(frame.shape) < share)


def mixed(rows, seed=0):
    """A colour on which a flag, an amount that is 0 without the flag, and a day depend."""
    rng = np.random.default_rng(seed)
    place = rng.choice(3, p=[0.5, 0.3, 0.2], size=rows)
    flag = rng.random(rows) < np.array([0.05, 0.5, 0.95])[place]
    return pd.DataFrame(
        {
            "colour": np.array(["red", "green", "blue"], object)[place],
            "flag": flag,
            "spend": np.where(flag, rng.lognormal(0.5 * place), 0.0),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(place * 150 + flag, "D"),
        }
    )


def real(rows, seed=0):
    """Three normal columns of correlation 0.9."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 1)) * 3 + rng.normal(size=(rows, 3)) + [0.0, 5.0, -5.0]


def quick(steps=2, **options):
    fixed = {"missing": "model", "max_steps": steps, "random_state": 0, "threads": 1}
    return CNFDensity(**{**fixed, **options})


@pytest.fixture(scope="module")
def coded():
    fast = quick(100, schema="infer", recipe=CodeRecipe(batch_size=64, validations=2))
    return fast.fit(hide(mixed(1200), 0.2))


@pytest.fixture(scope="module")
def valued():
    rows = real(1000)
    rows[np.random.default_rng(1).random(rows.shape) < 0.2] = np.nan
    return quick(20).fit(rows)


# --- the model ------------------------------------------------------------------------------------


def test_columns_and_contexts_choose_the_model():
    frame, numbers = hide(mixed(200), 0.1), real(200)
    numbers[::3, 0] = np.nan
    flags = pd.DataFrame({"x": numbers[:, 1], "y": numbers[:, 2] > 0})
    gap_value = Schema((Column("x0", gaps="value"), Column("x1"), Column("x2")))
    for data, options, context, values in (
        (frame, {"schema": "infer"}, None, False),
        (flags, {"schema": "infer"}, None, True),
        (flags[["y"]], {"schema": "infer"}, None, False),
        (numbers, {}, None, True),
        (numbers, {"recipe": "codes"}, None, False),
        (numbers, {"schema": gap_value}, None, True),
        (numbers[:, :2], {}, numbers[:, 2], True),
    ):
        density = quick(1, **options).fit(data, context=context)
        assert isinstance(density.model_, RowModel)
        assert (density.model_.values is not None) == values, options
        assert density.history_.steps == 1
        assert np.isfinite(density.score(data, context=context))


def test_the_random_state_determines_a_fit():
    rows = real(100)
    rows[::4, 1] = np.nan
    one, same, other = (quick(random_state=seed).fit(rows).sample(3, 0) for seed in (0, 0, 1))
    assert_array_equal(one, same)
    assert (one != other).any()


# --- questions ------------------------------------------------------------------------------------


def test_scores_are_of_the_cells_that_are_there(coded):
    """Of the first columns and of the others given these, they sum up to that of all."""
    rows = mixed(50, seed=1)
    first = rows.assign(spend=np.nan, day=pd.NaT)
    whole, part = coded.score_samples(rows), coded.score_samples(first)
    rest = coded.score_samples(rows, given=["colour", "flag"])
    assert_allclose(part + rest, whole, atol=1e-4)
    assert part.mean() > whole.mean()
    assert_array_equal(coded.score_samples(rows, given=[0, 1]), rest)
    assert_array_equal(coded.score_samples(first, given=["colour", "flag"]), 0)
    assert_array_equal(coded.score_samples(rows, given=list(rows)), 0)
    nothing = pd.DataFrame({name: [None] for name in rows})
    assert_array_equal(coded.score_samples(nothing), [0])
    found, uncertainty = coded.score_samples_uncertainty(first)
    assert_allclose(found, part, atol=1e-4)
    assert (uncertainty < 1e-4).all()
    assert coded.score(first) == pytest.approx(part.mean())


def test_scores_of_values_are_those_of_their_normal_distribution(valued):
    """Of correlation 0.9: x2 | x0 has variance 10 − 81/10."""
    rows = real(200, seed=2)
    for places, variance in (([], 10), ([0], 1.9)):
        asked = rows.copy()
        asked[:, 1] = np.nan
        asked[:, 0] = rows[:, 0] if places else np.nan
        found = valued.score_samples(asked, given=places or None).mean()
        assert found == pytest.approx(-0.5 * np.log(2 * np.pi * np.e * variance), abs=0.2)
    assert_array_equal(valued.score_samples(np.full((2, 3), np.nan)), 0)


def test_samples_have_the_given_cells(coded, valued):
    days = pd.to_datetime(["2024-05-30", "2024-10-28"])
    some = pd.DataFrame({"day": days, "colour": ["green", None]})
    drawn = coded.sample(300, random_state=0, given=KINDS["polars"](some))
    assert list(drawn) == ["colour", "flag", "spend", "day"]
    assert (drawn["day"] == np.repeat(days, 300)).all()
    assert (drawn["colour"][:300] == "green").all()
    assert (drawn["colour"][300:] == "blue").mean() > 0.5
    assert drawn.notna().all(axis=None)
    assert_array_equal(drawn["spend"] == 0, coded.sample(300, 0, given=some)["spend"] == 0)
    cells = np.array([[np.nan, 1.25, np.nan], [4.0, 9.123456789012345, 2.0]])
    drawn = valued.sample(400, random_state=1, given=cells)
    assert_array_equal(drawn[400:], np.tile(cells[1], (400, 1)))
    assert (drawn[:400, 1] == 1.25).all()
    assert drawn[:400, 0].mean() == pytest.approx(-0.9 * 3.75, abs=0.5)
    assert (valued.sample(2, 1, given=pd.DataFrame({"x1": [1.25]}))[:, 1] == 1.25).all()


def test_given_cells_come_back_that_are_rounded_in_the_model(coded):
    """Numbers between those of a grid count as the nearest ones, and stay what they are."""
    frame = mixed(300).assign(price=np.random.default_rng(0).integers(1, 9, 300) * 0.5)
    density = quick(2, schema="infer").fit(frame)
    with pytest.warns(UserWarning, match="'price' .* of given has 0.7 in row 1 .* nearest number"):
        drawn = density.sample(3, given=pd.DataFrame({"price": [0.7]}))
    assert (drawn["price"] == 0.7).all()


def test_imputations(coded, valued):
    gappy = hide(mixed(200, seed=3), 0.3, seed=4).set_axis(np.arange(200) + 7, axis=0)
    one, other = coded.impute(gappy, draws=2, random_state=0)
    for filled in (one, other):
        assert filled.notna().all(axis=None)
        pd.testing.assert_frame_equal(filled.mask(gappy.isna()), gappy)
    assert (one != other).any(axis=None)
    pd.testing.assert_frame_equal(coded.impute(gappy, random_state=0), one)
    assert ((one["spend"] == 0) != one["flag"]).mean() > 0.8
    full = mixed(5)
    pd.testing.assert_frame_equal(coded.impute(full), full)
    rows = real(2000, seed=3)
    hidden = rows.copy()
    hidden[:, 2] = np.nan
    filled = valued.impute(hidden, random_state=0)
    assert_array_equal(filled[:, :2], rows[:, :2])
    assert np.corrcoef(filled.T)[0, 2] == pytest.approx(0.9, abs=0.05)


def test_explanations_name_the_odd_cell(coded, valued):
    rows = mixed(60, seed=5)
    rows["flag"] = ~rows["flag"].where(rows["colour"] == "red", ~rows["flag"])
    rows = rows[rows["colour"] == "red"].head(20)
    found = coded.explain(KINDS["polars"](rows))
    assert found.columns == ["row", "column", "surprise", "excess", "expected"]
    assert len(found) == 20 * 4
    first = found.filter(polars.col("row").is_first_distinct())
    assert (first["excess"].to_numpy() > 1).mean() > 0.8
    expected = found.filter(polars.col("column") == "flag")["expected"]
    assert (expected == "false").mean() > 0.5
    numbers = real(50, seed=5)
    numbers[:, 2] += 20
    surprise, excess, expected = valued.explain(numbers)
    assert (excess.argmax(1) == 2).mean() > 0.9
    assert (surprise[:, 2] > surprise[:, 0]).mean() > 0.9
    assert_allclose(expected[:, 2], numbers[:, :2].mean(1) - 7.5, atol=4)
    some = pd.DataFrame(numbers[:2] * [1, np.nan, 1], columns=["x0", "x1", "x2"])
    with pytest.warns(UserWarning, match="fitted without feature names"):
        frame = valued.explain(some)
    assert frame["expected"].dtype == float
    assert frame["column"].tolist()[::3] == ["x2", "x2"]
    assert frame["excess"].isna().tolist() == [False, False, True] * 2


def test_models_of_complete_rows_answer_and_have_their_policy():
    frame = mixed(300)
    density = quick(2, schema="infer", missing="refuse").fit(frame)
    gappy = frame.head(4).copy()
    gappy.loc[1, "colour"] = None
    assert (density.sample(2, given=frame[["flag"]].head(1))["flag"] == frame["flag"][0]).all()
    assert density.impute(gappy).notna().all(axis=None)
    for ask in (
        density.score_samples,
        density.explain,
        lambda X: density.score_samples(X, None, [1]),
    ):
        with pytest.raises(ValueError, match=r"NaN\) in column 'colour' of X, row 2 .*\"model\""):
            ask(gappy)
    dropping = pickle.loads(pickle.dumps(density)).set_params(missing="drop")
    given = dropping.score_samples(gappy, given=["flag"])
    assert np.isnan(given).tolist() == [False, True, False, False]
    explained = dropping.explain(gappy)
    assert explained.loc[explained["row"] == 1, "surprise"].isna().all()
    assert explained.loc[explained["row"] != 1, "surprise"].notna().all()


# --- gaps -----------------------------------------------------------------------------------------


def test_gaps_that_are_a_value():
    """They are a third of x0's, and are there where x1 is positive."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(900, 2))
    rows[(rows[:, 1] > 0) & (rng.random(900) < 2 / 3), 0] = np.nan
    schema = Schema((Column("x0", gaps="value"), Column("x1")))
    density = quick(80, schema=schema, recipe=CodeRecipe(batch_size=64)).fit(rows)
    drawn = density.sample(1000, random_state=0)
    assert np.isnan(drawn[:, 0]).mean() == pytest.approx(1 / 3, abs=0.06)
    assert not np.isnan(drawn[:, 1]).any()
    drawn = density.sample(500, random_state=0, given=[[np.nan, -1.0], [np.nan, 1.0]])
    none, most = np.isnan(drawn[:, 0]).reshape(2, 500).mean(1)
    assert none < 0.15
    assert most > 0.5
    (share,) = density.score_samples([[np.nan, np.nan]])
    assert share == pytest.approx(np.log(1 / 3), abs=0.2)
    filled = density.impute([[np.nan, 1.0], [0.5, np.nan]])
    assert np.isnan(filled).tolist() == [[True, False], [False, False]]


def test_a_row_has_its_score_beside_rows_with_other_gaps(coded):
    gappy = hide(mixed(100, seed=6), 0.4, seed=7)
    whole = coded.score_samples(gappy)
    assert np.isfinite(whole).all()
    for some in ([3], [50, 7], range(40, 60)):
        assert_allclose(coded.score_samples(gappy.iloc[some]), whole[some], atol=1e-4)


def test_weights_and_columns_of_gaps_alone():
    rows = real(200)
    rows[:100, 1] = rows[150] = np.nan
    weight = np.repeat([0.0, 1.0], 100)
    assert np.isfinite(quick(2).fit(rows, sample_weight=weight).score(rows))
    for options, data, weights, name in (
        ({}, rows * [np.nan, 1, 1], None, "x0"),
        ({}, rows, 1 - weight, "x1"),
        ({"schema": "infer"}, mixed(50).assign(flag=None), None, "flag"),
    ):
        with pytest.raises(ValueError, match=f"column '{name}' of X; got gaps alone: leave it out"):
            quick(2, **options).fit(data, sample_weight=weights)


def test_checks_are_of_what_is_there():
    rows = real(300)
    rows = np.column_stack([rows, rows[:, 0] - rows[:, 1]])
    rows[::5, 0] = rows[1::5, 3] = np.nan
    with pytest.warns(UserWarning, match="'x3' is a linear combination of 'x0', 'x1'"):
        quick(1).fit(rows)
    constant = np.where(np.isnan(rows), np.nan, [0.0, 0.0, 0.0, 2.0]) + [1, 1, 1, 0] * rows
    with pytest.raises(ValueError, match="'x3', which is constant, 2 in every row"):
        quick(1).fit(constant)
    few = real(300)
    for i in range(298):
        few[i, i % 3] = np.nan
    quick(1).fit(few)  # the two rows without gaps are no reason to warn


# --- types ----------------------------------------------------------------------------------------


ROWS = 24
TYPED = pd.DataFrame(
    {
        "text": ["a", "b", "c"] * 8,
        "object": np.array(["yes", "no"] * 12, object),
        "count": pd.array(range(100, 100 + ROWS), "Int64"),
        "small": pd.array([1, 2, 3, 4] * 6, "UInt8"),
        "share": np.linspace(0.1, 0.9, ROWS),
        "single": np.linspace(-1, 1, ROWS).astype("float32") ** 3,
        "flag": pd.array([True, False] * 12, "boolean"),
        "size": pd.Categorical(["L", "S", "M"] * 8, categories=["S", "M", "L"], ordered=True),
        "when": pd.date_range("2024-01-01", periods=ROWS, freq="90min", tz="Asia/Tokyo"),
        "day": pd.date_range("2024-01-01", periods=ROWS, freq="D"),
        "wait": pd.to_timedelta(np.arange(ROWS) ** 2, "h"),
        "date": (pd.Timestamp("2023-12-31") + pd.to_timedelta(range(1, 25), "D")).strftime(
            "%d.%m.%Y"
        ),
        "unit": "cm",
    }
)
TYPED_TABLE = frame_table(from_any(TYPED)[0])
TYPED_SCHEMA = Schema.infer(TYPED_TABLE)


@given(
    gaps=st.lists(
        st.lists(st.booleans(), min_size=TYPED.shape[1], max_size=TYPED.shape[1]),
        min_size=1,
        max_size=6,
    ),
    start=st.integers(0, ROWS - 6),
    kind=st.sampled_from(sorted(KINDS)),
)
@settings(max_examples=12, deadline=None)
def test_filled_tables_have_their_own_types(gaps, start, kind):
    """Whichever cells are gaps; the others are the very ones."""
    part = TYPED.iloc[start : start + len(gaps)]
    hidden = np.array(gaps, bool)
    part = part.mask(hidden)
    X = KINDS[kind](part)
    table = frame_table(from_any(X)[0], "X", TYPED_SCHEMA.types)
    full = TYPED_TABLE.values[::-1][: len(gaps)]
    numbers = TYPED_SCHEMA.numbers(full, TYPED_TABLE.categories, TYPED_TABLE.types)
    filled = fill_frame(X, table, TYPED_SCHEMA, numbers)
    assert type(filled) is type(X)
    if kind == "pandas":
        assert filled.dtypes.equals(part.dtypes)
    else:
        assert filled.schema == X.schema
    frame, before, other = (from_any(each)[0] for each in (filled, X, TYPED[::-1][: len(gaps)]))
    assert frame.notna().all(axis=None)
    assert frame.mask(hidden).astype(object).equals(before.mask(hidden).astype(object))
    for name, gap in zip(TYPED, hidden.T, strict=True):
        assert frame[name][gap].tolist() == other[name][gap].tolist(), name


@given(
    shown=st.lists(st.lists(st.booleans(), min_size=13, max_size=13), min_size=1, max_size=3),
    start=st.integers(0, ROWS - 3),
    kind=st.sampled_from(sorted(KINDS)),
)
@settings(max_examples=8, deadline=None)
def test_given_cells_come_back(typed, shown, start, kind):
    """In tables of the types of the fit, each twice."""
    part = TYPED.iloc[start : start + len(shown)].where(np.array(shown))
    drawn = typed.sample(2, random_state=0, given=KINDS[kind](part))
    assert drawn.dtypes.equals(TYPED.dtypes)
    for name in TYPED:
        seen = part[name].notna().to_numpy()
        for each in (drawn[name][::2], drawn[name][1::2]):
            assert each[seen].tolist() == part[name][seen].tolist(), name


@pytest.fixture(scope="module")
def typed():
    return quick(1, schema="infer").fit(TYPED.mask(np.eye(ROWS, 13) > 0))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_gaps_alone_have_the_models_types(coded, kind):
    """Their own says nothing, which is of objects, or null."""
    for gap in (None, np.nan):
        X = KINDS[kind](pd.DataFrame({name: [gap, gap] for name in mixed(1)}))
        filled = coded.impute(X, random_state=0)
        assert type(filled) is type(X)
        frame = from_any(filled)[0]
        assert set(frame["colour"]) <= {"red", "green", "blue"}
        assert frame["day"].iloc[0] >= pd.Timestamp("2024-01-01")
        if kind != "pandas" and gap is None:
            own = filled.schema.types if kind == "pyarrow" else filled.dtypes
            types = dict(zip(frame, own, strict=True))
            assert str(types["flag"]).lower().startswith("bool")
            assert str(types["day"]).lower().startswith(("datetime", "timestamp"))


@pytest.mark.parametrize("kind", ["polars", "pyarrow"])
def test_tables_with_gaps_of_other_libraries_are_fitted(kind):
    table = KINDS[kind](hide(mixed(60), 0.2))
    density = quick(1, schema="infer").fit(table)
    drawn = density.sample(3, random_state=0)
    assert (type(drawn), drawn.schema) == (type(table), table.schema)
    assert np.isfinite(density.score(table))


def test_sparse_columns_keep_the_value_that_they_leave_out():
    x, y = np.random.default_rng(0).normal(size=(2, 60))
    y[::3] = np.nan
    frame = pd.DataFrame({"x": x, "y": pd.arrays.SparseArray(y, fill_value=0.0)})
    filled = quick(1).fit(frame).impute(frame, random_state=0)
    assert filled.dtypes.equals(frame.dtypes)
    assert filled["y"].notna().all()


def test_categories_that_a_table_lacks_are_added(coded):
    for index, lacking in ((["red"], {"green", "blue"}), ([], {"red", "green", "blue"})):
        colour = pd.Categorical([None] * 40, categories=index)
        if index:
            colour[:5] = "red"
        X = pd.DataFrame({"colour": colour, "flag": [True] * 40, "spend": 2.0, "day": pd.NaT})
        filled = coded.impute(X, random_state=0)["colour"]
        assert filled.dtype == "category"
        assert set(filled) & lacking
        assert (filled[: 5 * len(index)] == "red").all()


def test_arrays_keep_their_precision(valued):
    for X, dtype in (
        (np.array([[0.5, np.nan, -4.0]], np.float32), np.float32),
        ([[0.5, None, -4.0]], np.float64),
        (np.ma.masked_invalid([[0.5, np.nan, -4.0]]), np.float64),
        (np.array([[0.5, None, -4]], object), np.float64),
    ):
        filled = valued.impute(X, random_state=0)
        assert type(filled) is np.ndarray
        assert filled.dtype == dtype
        assert filled[0, [0, 2]].tolist() == [0.5, -4.0]
        assert np.isfinite(filled).all()
    assert_array_equal(valued.impute(np.ones((2, 3), int)), 1.0)


# --- mistakes -------------------------------------------------------------------------------------


def test_flows_answer_no_questions():
    flow = Recipe(objective="matching", hidden=(4,), matching_batch=32, validations=1)
    for options, got in (
        ({"recipe": flow}, "recipe Recipe"),
        ({"recipe": "table"}, "recipe 'table'"),
        ({"objective": "mle"}, "objective 'mle'"),
    ):
        with pytest.raises(ValueError, match=f'with missing="model".*; got {got}.*: leave one'):
            quick(1, **options).fit(real(50))
    density = quick(1, missing="refuse", recipe=flow).fit(real(50))
    assert isinstance(density.model_, Flow)
    rows = real(3)
    gappy = np.where(np.eye(3) > 0, np.nan, rows)
    asking = pickle.loads(pickle.dumps(density)).set_params(missing="model")
    assert_array_equal(asking.score_samples(rows, given=[]), density.score_samples(rows))
    for ask in (
        lambda: density.score_samples(gappy, given=["x0"]),
        lambda: density.sample(1, given=gappy),
        lambda: density.impute(gappy),
        lambda: density.explain(gappy),
        lambda: asking.score_samples(gappy),
        lambda: asking.score_samples_uncertainty(gappy),
    ):
        with pytest.raises(ValueError, match="questions about parts of a row; got a flow: fit"):
            ask()


def test_contexts_have_no_gaps():
    rows, context = real(200), real(200, seed=1)[:, :1]
    rows[::2, 0] = np.nan
    gappy = np.where(context > 3, np.nan, context)
    with pytest.raises(ValueError, match=r"NaN\) in column 'c0' of context, row .*: fill it, or"):
        quick(1).fit(rows, context=gappy)
    density = quick(2).fit(rows, context=context)
    assert np.isfinite(density.impute(rows, context=context)).all()
    drawn = density.sample(2, given=rows[:3], context=context[:3])
    assert_array_equal(drawn[1::2][~np.isnan(rows[:3])], rows[:3][~np.isnan(rows[:3])])
    for ask in (density.score_samples, density.impute, density.explain):
        with pytest.raises(ValueError, match="column 'c0' of context"):
            ask(rows, context=gappy)
    with pytest.raises(ValueError, match="column 'c0' of context"):
        density.sample(1, context=gappy)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[2, 3\]"):
        density.sample(1, given=rows[:3], context=context[:2])


def test_mistakes_in_questions(coded, valued):
    frame = mixed(3)
    pink = frame.assign(colour=["red", "pink", "red"], spend=np.nan)
    for ask, message in (
        (lambda: coded.impute(frame, draws=0), "draws, a whole number of at least 1; got 0"),
        (lambda: coded.impute(frame, draws=1.5), "draws, a whole number of at least 1; got 1.5"),
        (
            lambda: coded.score_samples(frame, given=["color"]),
            "colour, .* from 0 to 3; got 'color'",
        ),
        (lambda: coded.score_samples(frame, given=[4]), "places from 0 to 3; got 4"),
        (lambda: coded.score_samples(frame, given=[True]), "got True"),
        (lambda: coded.impute(pink), "values as in fit; .*'pink' in row 2 .*: correct it"),
        (lambda: coded.sample(1, given=pink), "values as in fit; .*of given has 'pink'"),
        (lambda: coded.sample(1, given=frame.assign(x=1)), "columns of X, colour, .*; got 'x'"),
        (
            lambda: coded.sample(1, given=["day"]),
            "given to be a table of some .*; got a list: pass",
        ),
        (lambda: valued.sample(1, given={"x0": [1.0]}), "an array of all; got a dict: pass cells"),
        (lambda: coded.sample(1, given=frame[:0]), "rows in given; got none"),
        (lambda: valued.sample(1, given=[[0.0, 1.0]]), "3 columns for given, .*; got 2"),
        (lambda: valued.sample(1, given=[[np.inf, 1.0, 2.0]]), "infinity in column 'x0' of given"),
        (lambda: valued.impute([[np.inf, 1.0, 2.0]]), "infinity in column 'x0' of X"),
        (lambda: valued.impute([[1.0, 2.0]]), "X has 2 features"),
        (lambda: coded.impute(frame.drop(columns="day")), "Feature names"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_values_that_a_given_column_cannot_have(coded):
    pink = mixed(3).assign(colour=["red", "pink", "red"])
    with pytest.warns(UserWarning, match=r"'pink' in row 2 .*: log p is NaN"):
        found = coded.score_samples(pink, given=["colour"])
    assert np.isnan(found).tolist() == [False, True, False]
    with pytest.warns(UserWarning, match=r"'pink' in row 2 .*: log p is -inf"):
        found = coded.score_samples(pink, given=["flag"])
    assert np.isneginf(found).tolist() == [False, True, False]
    with pytest.warns(UserWarning, match=r"'pink' in row 2 .*: it is hidden from"):
        explained = coded.explain(pink)
    assert np.isposinf(explained.loc[explained["row"] == 1, "surprise"]).sum() == 1


def test_columns_and_cells_that_are_given():
    assert column_flags("b", ("a", "b")).tolist() == [False, True]
    assert column_flags([np.int64(1)], ("a", "b")).tolist() == [False, True]
    assert column_flags([], ("a", "b")).tolist() == [False, False]
    table = given_table(pd.DataFrame({"b": ["u", None], "a": [None, None]}), ("a", "b", "c"), {})
    assert table.columns == ("a", "b", "c")
    assert table.categories == {"b": ("u",)}
    assert isinstance(table, Table)
    assert np.isnan(table.values).tolist() == [[True, False, True], [True] * 3]
    assert replace(table).name == "given"
