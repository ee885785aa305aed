"""The scikit-learn estimator: scikit-learn's checks and tools, weights, contexts, schemas."""

import pickle
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import sklearn
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from cnf import CNFDensity
from cnf.layers.scalings import quantiles
from cnf.mixtures import normal as mixture
from cnf.tables import CodeRecipe, RowModel, row_training
from cnf.tables.masked_training import ValuesRecipe
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

SMALL = Recipe(objective="mle", hidden=(8,), batch_size=64, validations=5)
MATCHING = replace(SMALL, objective="matching", hidden=(16,), matching_batch=128)
MATCHING = replace(MATCHING, matching_rate=1e-2, validations=2)
X = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + 5


@dataclass(frozen=True)
class FewGroups(ValuesRecipe):
    groups: int = 2
    group_rows: int = 4
    validation_groups: int = 2


def small(**options):
    return CNFDensity(**{"recipe": SMALL, "max_steps": 5, "random_state": 0, **options})


def matched(steps):
    """An estimator that is fitted without solves, which many steps take little time of."""
    return small(recipe=MATCHING, max_steps=steps)


@pytest.fixture(scope="module")
def density():
    return small().fit(X)


@patch.object(mixture, "COMPONENTS", (1,))
@patch.object(quantiles, "BIN_COUNTS", (1, 4))
@patch.object(row_training, "ValuesRecipe", FewGroups)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"recipe": replace(MATCHING, hidden=(4,), validations=1), "max_steps": 2},
        pytest.param(  # a part of the model of values
            {"recipe": CodeRecipe(validations=1, batch_size=32), "max_steps": 1, "threads": 1},
            marks=pytest.mark.slow,
        ),
        {"missing": "model", "max_steps": 1, "threads": 1},
    ],
    ids=["flow", "codes", "values"],
)
def test_scikit_learns_checks(options):
    ours, theirs = (
        {
            str(check["check_name"]): check["status"]
            for check in check_estimator(estimator, on_fail=None, on_skip=None)
        }
        for estimator in (CNFDensity(**options), KernelDensity())
    )
    assert len(ours) > 30
    assert "failed" not in ours.values()
    passed = {name for name, status in theirs.items() if status == "passed"}
    assert {ours.get(name, "passed") for name in passed} == {"passed"}


def test_fits_are_better_than_a_gaussian():
    rng = np.random.default_rng(1)
    train, test = (rng.normal(size=(n, 2)) ** 2 for n in (4000, 500))
    density = matched(200).fit(train)
    gaussian = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()
    assert density.score(test) > gaussian + 0.5
    assert density.score(test) == pytest.approx(density.score_samples(test).mean(), abs=1e-12)


def test_scores_are_the_flows_and_the_random_state_determines_them(density):
    found, other = density.score_samples(X), small().fit(X)
    expected = density.flow_.log_prob(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert density.flow_.like.dtype == torch.float64
    assert density.history_.steps == 5
    np.testing.assert_array_equal(found, other.score_samples(X))
    assert (found != small(random_state=1).fit(X).score_samples(X)).any()
    drawn = density.sample(7, random_state=3)
    np.testing.assert_array_equal(drawn, other.sample(7, random_state=3))
    assert (drawn != density.sample(7, random_state=4)).all()
    assert isinstance(drawn, np.ndarray)
    again, copied = pickle.loads(pickle.dumps(density)), clone(density)
    np.testing.assert_array_equal(again.score_samples(X), found)
    assert copied.get_params() == density.get_params()
    with pytest.raises(NotFittedError):
        copied.score_samples(X)


def test_draws_have_the_rows_moments():
    drawn = small(max_steps=60).fit(X).sample(4000, random_state=0)
    assert drawn.shape == (4000, 2)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=0.2)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(X.T), rtol=0.2, atol=0.25)


def test_weights_mean_repetition():
    """Two clusters of 150 rows: with weights 3 and 1 the first is three quarters of the density."""
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(-2, 1, (150, 1)), rng.normal(2, 1, (150, 1))])
    weight = np.repeat([3, 1], 150)
    weighted = matched(150).fit(rows, sample_weight=weight)
    repeated = matched(150).fit(np.repeat(rows, weight, axis=0))
    for density in (weighted, repeated):
        share = (density.sample(2000, random_state=0) < 0).mean()
        assert share == pytest.approx(0.75, abs=0.06)
    assert weighted.score(rows[:150]) == pytest.approx(repeated.score(rows[:150]), abs=0.1)
    one, other = (matched(2).fit(rows, sample_weight=each) for each in (weight, 0.01 * weight))
    np.testing.assert_array_equal(one.score_samples(rows), other.score_samples(rows))
    far = np.concatenate([X[:200], X[200:] + 1000])
    kept = small().fit(far, sample_weight=np.repeat([1, 0], [200, 100]))
    np.testing.assert_allclose(kept.flow_.layers[-1].loc, X[:200].mean(0), atol=0.3)
    assert (kept.score_samples(X[:200]) > -20).all()


def test_frames_give_frames():
    frame = pd.DataFrame(X, columns=["width", "height"])
    framed = small().fit(frame)
    assert list(framed.feature_names_in_) == ["width", "height"]
    drawn = framed.sample(3, random_state=0)
    assert isinstance(drawn, pd.DataFrame)
    assert list(drawn.columns) == ["width", "height"]
    with pytest.raises(ValueError, match="feature names"):
        framed.score_samples(frame[["height", "width"]])


def test_grid_search_and_pipelines():
    search = GridSearchCV(matched(1), {"max_steps": [1, 80]}, cv=2).fit((X - 5) ** 2)
    assert search.best_params_ == {"max_steps": 80}
    pipeline = make_pipeline(StandardScaler(), small()).fit(X)
    assert pipeline.score_samples(X).shape == (300,)
    assert np.isfinite(pipeline.score(X))


def test_conditional_densities():
    """x | c ~ N(c, 0.1²): a density that knows c is far better than one that does not."""
    rng = np.random.default_rng(3)
    c = rng.uniform(-3, 3, 1000)
    rows = (c + 0.1 * rng.normal(size=1000))[:, None]
    density = matched(200).fit(rows, context=c)
    assert density.n_context_features_in_ == 1
    assert density.score(rows, context=c) > matched(50).fit(rows).score(rows) + 1
    drawn = density.sample(200, random_state=0, context=[[-2.0], [2.0]])
    assert drawn.shape == (400, 1)
    np.testing.assert_allclose(drawn.reshape(2, 200).mean(1), [-2, 2], atol=0.2)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = small().set_fit_request(context=True).set_score_request(context=True)
        search = GridSearchCV(routed, {"max_steps": [1, 3]}, cv=2)
        search.fit(rows[:200], context=c[:200])
        assert search.best_estimator_.n_context_features_in_ == 1


def test_mistakes_in_a_fit():
    named = Schema((Column("a"), Column("b")))
    whole = Schema((Column("x0", "integer"), Column("x1")))
    for options, arguments, message in (
        ({"budget": -1}, {}, "budget to be above 0; got -1"),
        ({"recipe": "toys"}, {}, "a recipe among toy"),
        ({"objective": "mel"}, {}, "objective to be one of"),
        ({}, {"context": X[:5]}, "inconsistent numbers of samples"),
        ({}, {"context": np.where(X > 5, np.nan, X)}, r"NaN\) in column 'c0' of context, row"),
        ({}, {"context": [["a"]] * 300}, "could not convert string to float: 'a'"),
        ({}, {"X": [["a", 1.0]] * 300}, "numbers in an array; got text, 'a': .*schema=\"infer\""),
        ({}, {"X": np.where(X > 9, np.inf, X)}, "infinity in column 'x1' of X, row"),
        ({}, {"X": np.where(X > 9, np.nan, X)}, r"NaN\) in column 'x1' of X, row .*missing=\"drop"),
        (
            {"missing": "drop"},
            {"X": np.where(X[:, [0]] > X[:, 0].min(), [np.nan, 1.0], X)},
            "3 rows without gaps; got 1 of 300: leave out column 'x0', which has 299",
        ),
        ({"missing": "keep"}, {}, "missing among refuse, drop, model; got 'keep'"),
        ({}, {"sample_weight": np.zeros(300)}, "zero"),
        ({}, {"sample_weight": -np.ones(300)}, "[Nn]egative"),
        (
            {},
            {"X": np.ones((50, 2))},
            "'x0', which is constant, 1 in every row .and 1 more.: leave",
        ),
        ({"schema": "infer"}, {"X": np.ones((50, 2))}, "'x0', which is constant, 1 in every row"),
        ({"schema": "guess"}, {}, "a Schema, 'infer' or None for schema; got 'guess'"),
        ({"schema": named}, {}, "a schema of X's columns, x0, x1; got one of a, b"),
        ({"schema": whole}, {}, "of x0: integer; got"),
        (
            {"recipe": "codes", "objective": "mle"},
            {},
            "no objective, .* codes; got 'mle': leave",
        ),
        ({}, {"X": X[:, 0]}, r"^Expected 2D array, got 1D .*array.reshape\(-1, 1\) .* sample.$"),
        ({}, {"X": X.astype(int).astype("M8[s]")}, "an array; got datetime64.s.: pass a table"),
        ({}, {"X": X * [1, 1e300]}, r"up to 3.4e\+38 in X; got .* column 'x1': rescale it"),
        ({}, {"X": pd.DataFrame(index=range(9))}, "a table with columns; got one without any"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options).fit(**{"X": X, **arguments})


def test_mistakes_after_a_fit(density):
    given = small().fit(X, context=X)
    for act, message in (
        (lambda: density.score_samples(X, context=X), "no context, as in fit; got one"),
        (lambda: given.sample(2), "a context of 2 columns, as in fit; got none"),
        (lambda: given.sample(2, context=X[:, :1]), "2 columns; got 1"),
        (lambda: density.score_samples([[np.nan, 0.0]]), "NaN"),
        (lambda: density.sample(0), "n_samples, a whole number of at least 1; got 0"),
        (lambda: density.sample(2.5), "n_samples, a whole number of at least 1; got 2.5"),
    ):
        with pytest.raises(ValueError, match=message):
            act()


@pytest.fixture(scope="module")
def frame():
    """Columns of many types."""
    rng, rows = np.random.default_rng(0), 300
    times = pd.date_range("2024-01-01", periods=rows, freq="90min", tz="Asia/Tokyo")
    return pd.DataFrame(
        {
            "colour": np.array(["red", "green", "blue"])[
                rng.choice(3, p=[0.6, 0.3, 0.1], size=rows)
            ],
            "count": pd.array(rng.poisson(30, rows), "Int64"),
            "size": pd.Categorical(rng.choice([3, 1], rows), categories=[3, 2, 1], ordered=True),
            "share": rng.beta(2, 2, rows).astype("float32"),
            "flag": rng.random(rows) < 0.3,
            "when": times[rng.permutation(rows)],
            "price": rng.integers(100, 900, rows) * 100,
            "unit": "cm",
        }
    )


@pytest.fixture(scope="module", params=[MATCHING, "codes"], ids=["flow", "codes"])
def inferred(frame, request):
    return small(schema="infer", recipe=request.param, max_steps=2, threads=1).fit(frame)


def test_inferred_columns_are_drawn_in_their_types(inferred, frame):
    kinds = " ".join(column.kind for column in inferred.schema_.columns)
    assert kinds == "categorical integer categorical real boolean datetime grid constant"
    drawn = pickle.loads(pickle.dumps(inferred)).sample(50, random_state=0)
    pd.testing.assert_frame_equal(drawn.head(0), frame.head(0))
    assert set(drawn["colour"]) <= {"red", "green", "blue"}
    assert (drawn["unit"] == "cm").all()
    assert (drawn["price"] % 100 == 0).all()
    assert np.isfinite(inferred.score_samples(drawn)).all()
    again = clone(inferred).fit(frame)
    np.testing.assert_array_equal(again.score_samples(drawn), inferred.score_samples(drawn))


def test_a_row_has_its_score_in_any_table(inferred, frame):
    """With other origins of dates and other codes of categories, too."""
    whole = inferred.score_samples(frame)
    assert inferred.score(frame) == whole.mean()
    found, uncertainty = inferred.score_samples_uncertainty(frame[:5])
    exact = isinstance(inferred.model_, RowModel)
    assert ((uncertainty < 1e-4) if exact else (uncertainty > 0)).all()
    within = 1e-4 if exact else 1e-9  # by rounding
    np.testing.assert_allclose(found, whole[:5], rtol=0, atol=within)
    for some in (frame.index[frame["colour"] != "blue"][::7], [3], [200]):
        found = inferred.score_samples(frame.loc[some])
        np.testing.assert_allclose(found, whole[some], rtol=0, atol=within)
    for column in ("colour", "when"):
        with pytest.raises(ValueError, match=f"in column '{column}'; got int64: correct them"):
            inferred.score_samples(frame.assign(**{column: 1}))
    gaps = frame.iloc[:5].convert_dtypes().astype({"size": frame["size"].dtype})
    gaps.loc[2, "flag"] = None
    with pytest.raises(ValueError, match=r"NaN\) in column 'flag' of X, row 3"):
        inferred.score_samples(gaps)
    dropping = pickle.loads(pickle.dumps(inferred)).set_params(missing="drop")
    found = dropping.score_samples(gaps)
    np.testing.assert_allclose(found, np.where(np.arange(5) == 2, np.nan, whole[:5]), atol=within)
    assert dropping.score(gaps) == pytest.approx(np.nanmean(found))
    assert np.isnan(dropping.score_samples(gaps[2:3])).all()


@pytest.mark.parametrize("kind", [polars.from_pandas, pyarrow.Table.from_pandas])
def test_tables_of_other_libraries(kind, frame):
    table = kind(frame.drop(columns="size"))
    density = small(schema="infer", recipe=MATCHING, max_steps=2).fit(table)
    assert list(density.feature_names_in_) == list(frame.drop(columns="size"))
    drawn = pickle.loads(pickle.dumps(density)).sample(3, random_state=0)
    assert (type(drawn), drawn.schema) == (type(table), table.schema)
    assert getattr(drawn.schema, "metadata", None) == getattr(table.schema, "metadata", None)
    assert np.isfinite(density.score_samples(drawn)).all()


@pytest.mark.parametrize("labels", [[0, 1], pd.MultiIndex.from_tuples([("a", 1), ("a", "b")])])
def test_any_labels(labels):
    frame = pd.DataFrame(X.astype("float32")).set_axis(labels, axis=1)
    density = matched(2).fit(frame)
    assert not hasattr(density, "feature_names_in_")
    pd.testing.assert_frame_equal(density.sample(3).head(0), frame.head(0))
    np.testing.assert_array_equal(
        density.score_samples(frame), density.score_samples(frame.to_numpy())
    )
    with pytest.raises(ValueError, match=r"columns of X as in fit, \S+, \S+; got"):
        density.score_samples(frame.iloc[:, ::-1])


def test_columns_that_are_no_numbers_are_named_without_a_schema(frame):
    for column, held in (
        ("colour", "text"),
        ("size", "categories"),
        ("flag", "booleans"),
        ("when", "dates"),
    ):
        message = f"column '{column}', which holds {held}: pass schema=\"infer\", or leave it out"
        with pytest.raises(ValueError, match=message):
            small().fit(frame[["share", column]])
    with pytest.raises(ValueError, match="column 'colour', which holds text: encode it"):
        small().fit(frame[["share"]], context=frame[["colour"]])


def test_gaps_masks_and_weights():
    """Their rows are left out, of weights and contexts, too."""
    masked = np.ma.masked_greater(X, 9)
    weight, context = np.arange(300.0), np.where(X[:, 0] < 4, np.nan, X[:, 0])
    keep = ~masked.mask.any(1) & ~np.isnan(context)
    dropping, plain = (
        small(recipe=MATCHING, max_steps=2, missing=how) for how in ("drop", "refuse")
    )
    dropping.fit(masked, sample_weight=weight, context=context)
    plain.fit(X[keep], sample_weight=weight[keep], context=context[keep])
    np.testing.assert_array_equal(
        dropping.score_samples(masked, context=context)[keep],
        plain.score_samples(X[keep], context=context[keep]),
    )
    with pytest.raises(ValueError, match="NaN"):
        dropping.sample(1, context=context)


def test_a_constant_context_is_ignored():
    context = np.stack([np.ones(300), X[:, 0]], axis=1)
    both = small(recipe=MATCHING, max_steps=2).fit(X, context=polars.DataFrame(context))
    one = small(recipe=MATCHING, max_steps=2).fit(X, context=X[:, 0])
    np.testing.assert_array_equal(
        both.score_samples(X, context=context), one.score_samples(X, context=X[:, 0])
    )
    none = small(recipe=MATCHING, max_steps=2).fit(X, context=np.ones(300))
    assert none.sample(2, context=[1.0, 1.0, 1.0]).shape == (6, 2)
    assert none.score_samples(X[:4], context=np.ones(4)).shape == (4,)


def test_contexts_are_frames_of_numbers_and_booleans():
    frame = pd.DataFrame({"width": X[:, 0], "wide": X[:, 0] > 4})
    density = small(recipe=MATCHING, max_steps=2).fit(X, context=frame)
    found = density.score_samples(X[:9], context=frame[:9])
    np.testing.assert_array_equal(density.score_samples(X[:9], context=frame[:9].to_numpy()), found)
    with pytest.raises(ValueError, match="columns of context as in fit, width, wide; got wide"):
        density.score_samples(X, context=frame[["wide", "width"]])


def test_warnings_name_columns():
    columns = {"x": X[:, 0], "spend": np.where(X[:, 1] < 6, 0.0, X[:, 1])}
    for schema in (None, "infer"):
        with pytest.warns(UserWarning, match=r"column 'spend' is 0 in \d+ % of rows: no density"):
            small(schema=schema, recipe=MATCHING, max_steps=1).fit(pd.DataFrame(columns))
    # Codes have a mass there.
    small(schema="infer", recipe=None, max_steps=1, threads=1).fit(pd.DataFrame(columns))


def test_a_given_schema():
    rows = np.stack([np.random.default_rng(0).beta(2, 2, 300), np.arange(300.0) % 7], axis=1)
    schema = Schema((Column("x0", "bounded", 0.0, 1.0), Column("x1", "integer", 0, 6)))
    density = small(schema=schema, max_steps=2).fit(rows)
    schema.check(density.sample(200, random_state=0))
    message = r"'x0' \(from 0 to 1\) of X has 1.5 in row 2 \(counting from 1; 2 such rows\): log p"
    with pytest.warns(UserWarning, match=message):
        found = density.score_samples([[0.5, 3.0], [1.5, 3.0], [0.5, 3.5]])
    assert np.isneginf(found).tolist() == [False, True, True]
