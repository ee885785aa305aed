"""The scikit-learn face: its checks, its tools, and what they are told."""

import pickle

import numpy as np
import pandas as pd
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
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

SMALL = Recipe(objective="mle", hidden=(8,), batch_size=64, validations=5)
X = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + 5


def small(**options):
    return CNFDensity(**{"recipe": SMALL, "max_steps": 5, "random_state": 0, **options})


def outcomes(estimator):
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    return {str(check["check_name"]): check["status"] for check in found}


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks():
    ours, theirs = outcomes(CNFDensity(max_steps=20)), outcomes(KernelDensity())
    assert len(ours) > 30
    assert {name for name, status in ours.items() if status == "failed"} == set()
    passed = {name for name, status in theirs.items() if status == "passed"}
    assert {name for name in passed if ours.get(name, "passed") != "passed"} == set()


def test_it_fits_a_density_and_its_score_is_the_mean_log_likelihood():
    rng = np.random.default_rng(1)
    train, test = (rng.normal(size=(n, 2)) ** 2 for n in (4000, 1000))
    density = small(budget=None, max_steps=150).fit(train)
    gaussian = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()
    assert density.score(test) > gaussian + 0.5
    assert density.score(test) == pytest.approx(density.score_samples(test).mean(), abs=1e-12)


def test_scores_are_the_flows_log_densities():
    density = small().fit(X)
    expected = density.flow_.log_prob(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(density.score_samples(X), expected, atol=1e-9)
    assert density.flow_.like.dtype == torch.float64
    assert density.history_.steps == 5


def test_the_same_random_state_gives_the_same_fit_and_draws():
    one, other, third = small().fit(X), small().fit(X), small(random_state=1).fit(X)
    np.testing.assert_array_equal(one.score_samples(X), other.score_samples(X))
    assert (one.score_samples(X) != third.score_samples(X)).any()
    np.testing.assert_array_equal(one.sample(7, random_state=3), other.sample(7, random_state=3))
    assert (one.sample(7, random_state=3) != one.sample(7, random_state=4)).all()


def test_draws_are_like_the_rows():
    density = small(max_steps=60).fit(X)
    drawn = density.sample(4000, random_state=0)
    assert drawn.shape == (4000, 2)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=0.2)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(X.T), rtol=0.2, atol=0.25)


def test_weights_mean_repetition():
    """Two clusters of 150 rows: with weights 3 and 1 the first is three quarters of the density."""
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(-2, 1, (150, 1)), rng.normal(2, 1, (150, 1))])
    weight = np.repeat([3, 1], 150)
    fitted = {
        "weighted": small(max_steps=100).fit(rows, sample_weight=weight),
        "scaled": small(max_steps=100).fit(rows, sample_weight=0.01 * weight),
        "repeated": small(max_steps=100).fit(np.repeat(rows, weight, axis=0)),
    }
    shares = {
        name: (density.sample(4000, random_state=0) < 0).mean() for name, density in fitted.items()
    }
    assert shares["weighted"] == pytest.approx(0.75, abs=0.06)
    assert shares["repeated"] == pytest.approx(0.75, abs=0.06)
    np.testing.assert_array_equal(
        fitted["weighted"].score_samples(rows), fitted["scaled"].score_samples(rows)
    )
    scores = [density.score(rows[:150]) for density in fitted.values()]
    assert scores[0] == pytest.approx(scores[2], abs=0.1)


def test_rows_of_weight_zero_are_as_if_they_were_not_there():
    weight = np.ones(300)
    weight[200:] = 0
    far = np.concatenate([X[:200], X[200:] + 1000])
    kept = small().fit(far, sample_weight=weight)
    np.testing.assert_allclose(kept.flow_.layers[-1].loc, X[:200].mean(0), atol=0.3)
    assert (kept.score_samples(X[:200]) > -20).all()


def test_frames_come_back_as_frames():
    frame = pd.DataFrame(X, columns=["width", "height"])
    density = small().fit(frame)
    assert list(density.feature_names_in_) == ["width", "height"]
    drawn = density.sample(3, random_state=0)
    assert isinstance(drawn, pd.DataFrame)
    assert list(drawn.columns) == ["width", "height"]
    assert isinstance(small().fit(X).sample(3), np.ndarray)
    with pytest.raises(ValueError, match="feature names"):
        density.score_samples(frame[["height", "width"]])


def test_clones_and_pickles():
    density = small().fit(X)
    again = pickle.loads(pickle.dumps(density))
    np.testing.assert_array_equal(again.score_samples(X), density.score_samples(X))
    copied = clone(density)
    assert copied.get_params() == density.get_params()
    with pytest.raises(NotFittedError):
        copied.score_samples(X)


def test_grid_search_and_pipelines():
    search = GridSearchCV(small(), {"max_steps": [1, 40]}, cv=2, refit=True).fit(X)
    assert search.best_params_ == {"max_steps": 40}
    pipeline = make_pipeline(StandardScaler(), small()).fit(X)
    assert pipeline.score_samples(X).shape == (300,)
    assert np.isfinite(pipeline.score(X))


def test_conditional_densities():
    """x | c ~ N(c, 0.1²): a density that knows c is far better than one that does not."""
    rng = np.random.default_rng(3)
    c = rng.uniform(-3, 3, 1000)
    rows = (c + 0.1 * rng.normal(size=1000))[:, None]
    density = small(max_steps=120).fit(rows, context=c)
    assert density.n_context_features_in_ == 1
    assert density.score(rows, context=c) > small(max_steps=120).fit(rows).score(rows) + 1
    drawn = density.sample(200, random_state=0, context=[[-2.0], [2.0]])
    assert drawn.shape == (400, 1)
    np.testing.assert_allclose(drawn.reshape(2, 200).mean(1), [-2, 2], atol=0.2)


def test_a_context_goes_through_metadata_routing():
    rng = np.random.default_rng(4)
    c = rng.uniform(-3, 3, 200)
    rows = (c + rng.normal(size=200))[:, None]
    with sklearn.config_context(enable_metadata_routing=True):
        density = small().set_fit_request(context=True).set_score_request(context=True)
        search = GridSearchCV(density, {"max_steps": [1, 3]}, cv=2).fit(rows, context=c)
        assert search.best_estimator_.n_context_features_in_ == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: small(budget=-1).fit(X), "budget to be above 0; got -1"),
        (lambda: small(recipe="toys").fit(X), "a recipe among toy"),
        (lambda: small(objective="mel").fit(X), "objective to be one of"),
        (lambda: small().fit(X, context=X[:5]), "inconsistent numbers of samples"),
        (lambda: small().fit(X, context=np.full(300, np.nan)), "context contains NaN"),
        (lambda: small().fit(X, sample_weight=np.zeros(300)), "zero"),
        (lambda: small().fit(X, sample_weight=-np.ones(300)), "[Nn]egative"),
        (lambda: small().fit(np.ones((50, 2))), "constant: column 0, 1"),
        (lambda: small().fit(X).score_samples(X, context=X), "no context, as in fit; got one"),
        (
            lambda: small().fit(X, context=X).sample(2),
            "a context of 2 columns, as in fit; got none",
        ),
        (lambda: small().fit(X, context=X).sample(2, context=X[:, :1]), "2 columns; got 1"),
        (lambda: small().fit(X).score_samples([[np.nan, 0.0]]), "NaN"),
        (lambda: small().fit(X).sample(0), "n_samples of at least 1; got 0"),
    ],
)
def test_mistakes(act, message):
    with pytest.raises(ValueError, match=message):
        act()


# --- columns of other kinds -----------------------------------------------------------------------


def mixed(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    colours = np.array(["red", "green", "blue"])[rng.choice(3, p=[0.6, 0.3, 0.1], size=rows)]
    count = rng.poisson(30, rows)
    frame = {"colour": colours, "count": count, "share": rng.beta(2, 2, rows), "unit": "cm"}
    return pd.DataFrame(frame)


def test_columns_that_are_inferred_come_back_as_they_were():
    frame = mixed()
    density = small(schema="infer").fit(frame)
    kinds = [column.kind for column in density.schema_.columns]
    assert kinds == ["categorical", "integer", "real", "constant"]
    drawn = density.sample(50, random_state=0)
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["colour"]) <= {"red", "green", "blue"}
    assert drawn["count"].dtype == np.int64
    assert (drawn["unit"] == "cm").all()
    scores = density.score_samples(drawn)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, density.score_samples(drawn))
    few = drawn[drawn["colour"] != "green"]  # whose categories have other numbers
    assert np.isfinite(density.score_samples(few)).all()
    again = clone(density).fit(frame)
    np.testing.assert_array_equal(again.score_samples(frame), density.score_samples(frame))


def test_a_schema_of_ones_own():
    rows = np.stack([np.random.default_rng(0).beta(2, 2, 300), np.arange(300.0) % 7], axis=1)
    schema = Schema((Column("x0", "bounded", 0.0, 1.0), Column("x1", "integer", 0, 6)))
    density = small(schema=schema).fit(rows)
    drawn = density.sample(200, random_state=0)
    schema.check(drawn)
    assert np.isneginf(density.score_samples([[1.5, 3.0], [0.5, 3.5]])).all()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("guess", "Expected a Schema, 'infer' or None for schema; got 'guess'"),
        (Schema((Column("a"), Column("b"))), "a schema of X's columns, x0, x1; got one of a, b"),
        (Schema((Column("x0", "integer"), Column("x1"))), "values of x0: integer; got"),
    ],
)
def test_mistakes_in_a_schema(schema, message):
    with pytest.raises(ValueError, match=message):
        small(schema=schema).fit(X)
