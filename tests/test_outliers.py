"""The estimator of outliers: scikit-learn's checks, labels, p-values, explanations, mistakes."""

import pickle
from unittest.mock import patch

import numpy as np
import pandas as pd
import polars
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from cnf import CNFOutlier
from cnf.outliers import conformal_p_values, conformal_threshold, detector

SCALE = np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 1.5, 100.0]])
X = np.random.default_rng(0).normal(size=(400, 3)) @ SCALE + 5
NEW = np.random.default_rng(1).normal(size=(1000, 3)) @ SCALE + 5
FAR = np.array([[11.0, 5.0, 5.0], [5.0, 5.0, 900.0], [5e6, 5.0, 5.0]])


def quick(**options):
    return CNFOutlier(**{"max_steps": 20, "random_state": 0, "threads": 1, **options})


@pytest.fixture(scope="module")
def novelty():
    return quick().fit(X)


@patch.multiple(detector, COMPONENTS=8, HIDDEN=(16, 16))
@pytest.mark.filterwarnings("ignore:Expected at least 19 rows for the threshold:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks():
    ours, theirs = (
        {
            str(check["check_name"]): check["status"]
            for check in check_estimator(estimator, on_fail=None, on_skip=None)
        }
        for estimator in (CNFOutlier(max_steps=1, threads=1), IsolationForest(n_estimators=5))
    )
    assert len(ours) > 40
    assert "failed" not in ours.values()
    passed = {name for name, status in theirs.items() if status == "passed"}
    absent = passed - ours.keys()
    assert all("sample_weight" in name or "sparse" in name for name in absent)
    assert {ours[name] for name in passed - absent} == {"passed"}


@pytest.mark.parametrize("count", [5, 19, 100])
def test_p_values_of_new_normal_rows_are_at_most_uniform(count):
    """For scores of any law: P(p ≤ α) = ⌊α (n + 1)⌋ / (n + 1)."""
    scores = np.random.default_rng(2).exponential(size=(5000, count + 1))
    p = np.array([conformal_p_values(row[:1], row[1:])[0] for row in scores])
    for level in (0.01, 0.05, 0.2, 0.5):
        expected = np.floor(level * (count + 1) + 1e-9) / (count + 1)
        assert (p <= level).mean() == pytest.approx(expected, abs=0.022)
    for level in (0.05, 0.2):
        below = [row[0] < conformal_threshold(row[1:], level) for row in scores]
        assert_array_equal(below, p <= level)


def test_ties_count_and_few_calibration_rows_have_no_threshold():
    assert conformal_p_values([0.0, 1.0], [1.0, 1.0, 2.0]).tolist() == [0.25, 0.75]
    assert conformal_threshold([3.0, 1.0, 2.0], 0.05) == -np.inf
    assert conformal_threshold([], 0.9) == -np.inf
    assert conformal_threshold([3.0, 1.0], 1.0) == 3.0
    for act in (
        lambda: conformal_p_values([np.nan], [1.0]),
        lambda: conformal_p_values([1.0], [np.nan]),
        lambda: conformal_threshold([np.nan], 0.5),
    ):
        with pytest.raises(ValueError, match=r"scores that are numbers; got NaN: leave such rows"):
            act()


def test_few_rows_raise_no_false_alarms():
    """Of 10 rows two are for calibration, and no p-value is below 1/3."""
    with pytest.warns(UserWarning, match=r'at least 19 rows for the threshold of "auto"; got 2'):
        detector = quick(max_steps=2).fit(X[:10])
    assert detector.offset_ == -np.inf
    assert set(detector.predict(np.concatenate([NEW, FAR]))) == {1}
    assert detector.p_values(FAR).tolist() == [1 / 3] * 3


def test_views_of_any_strides(novelty):
    scores = novelty.score_samples(NEW)
    assert_array_equal(novelty.score_samples(NEW[::-1]), scores[::-1])
    assert_array_equal(novelty.score_samples(NEW[:, ::-1].copy()[:, ::-1]), scores)
    assert_array_equal(novelty.score_samples(np.asfortranarray(NEW)), scores)


def test_a_fit_that_failed_is_none():
    detector = quick()
    with pytest.raises(ValueError, match="columns of X that vary"):
        detector.fit(np.ones((20, 2)))
    for ask in (detector.predict, detector.p_values, detector.explain):
        with pytest.raises(NotFittedError):
            ask(np.ones((2, 2)))


def test_novelties_are_found_at_the_promised_rate_of_false_alarms(novelty):
    scores, decision = novelty.score_samples(NEW), novelty.decision_function(NEW)
    assert_array_equal(decision, scores - novelty.offset_)
    assert_array_equal(novelty.predict(NEW), np.where(decision < 0, -1, 1))
    assert (novelty.predict(NEW) == -1).mean() < 0.12  # Beta(4, 77), which 80 rows have
    assert novelty.predict(FAR).tolist() == [-1, -1, -1]
    p = novelty.p_values(NEW)
    assert_array_equal(p <= 0.05, decision < 0)
    assert_array_equal(p, conformal_p_values(scores, novelty.calibration_scores_))
    assert novelty.p_values(FAR).tolist() == [1 / 81] * 3
    assert_array_equal(novelty.score_samples(NEW[7:9]), scores[7:9])


def test_rows_that_are_held_out_do_not_shape_the_model():
    """Nor does any other row move when they are replaced."""
    order = np.random.default_rng(np.random.RandomState(0).randint(2**31 - 1)).permutation(len(X))
    other = X.copy()
    other[order[:80]] = NEW[:80]
    one, two = quick(max_steps=2).fit(X), quick(max_steps=2).fit(other)
    assert_array_equal(one.score_samples(NEW), two.score_samples(NEW))
    assert_array_equal(one.calibration_scores_, np.sort(one.score_samples(X[order[:80]])))
    assert_array_equal(two.calibration_scores_, np.sort(two.score_samples(NEW[:80])))


def test_contaminated_rows():
    rows = X.copy()
    rows[:40] = np.random.default_rng(3).uniform(-1, 1, (40, 3)) * [12, 25, 1200] + 5
    labels = quick(contamination=0.1).fit_predict(rows)
    assert (labels == -1).sum() == 40
    assert (labels[:40] == -1).mean() > 0.7
    every = quick(contamination=0.1, calibration=0, max_steps=2).fit(rows)
    assert (every.predict(rows) == -1).sum() == 40
    with pytest.raises(ValueError, match=r"calibration=0, which has no p-values: fit with 0\.2"):
        every.p_values(rows)
    trusting = quick(calibration=0, max_steps=2).fit(X)
    assert (trusting.predict(X) == -1).sum() == 19  # of 400, ⌊0.05 · 401⌋ less one


def test_the_random_state_determines_a_fit(novelty):
    one, same, other = (quick(max_steps=2, random_state=seed).fit(X) for seed in (0, 0, 1))
    assert_array_equal(one.score_samples(NEW), same.score_samples(NEW))
    assert (one.score_samples(NEW) != other.score_samples(NEW)).any()
    again, copied = pickle.loads(pickle.dumps(novelty)), clone(novelty)
    assert_array_equal(again.predict(NEW), novelty.predict(NEW))
    assert copied.get_params() == novelty.get_params()
    with pytest.raises(NotFittedError):
        copied.p_values(X)
    pipeline = make_pipeline(StandardScaler(), quick(max_steps=2)).fit(X)
    assert set(pipeline.predict(X)) == {-1, 1}


@pytest.fixture(scope="module")
def explaining():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(300, 1)) + 0.1 * rng.normal(size=(300, 3))
    return quick(max_steps=2).fit(pd.DataFrame(rows, columns=["a", "b", "c"]))


def test_a_planted_shift_is_named_first(explaining):
    assert explaining.density_ is None
    wrong = pd.DataFrame({"a": [0.0, 3.0], "b": [0.1, 0.1], "c": [2.0, 0.0]})
    found = explaining.explain(wrong)
    first = found.groupby("row").first()
    assert first["column"].tolist() == ["c", "a"]
    np.testing.assert_allclose(first["expected"], [0.05, 0.05], atol=0.2)
    density = explaining.density_
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        answer = explaining.explain(wrong.to_numpy())
    assert explaining.density_ is density
    assert answer.shape == (3, 2, 3)
    assert answer[1].argmax(1).tolist() == [2, 0]
    table = explaining.explain(polars.from_pandas(wrong))
    assert table.columns == ["row", "column", "surprise", "excess", "expected"]
    assert table["excess"].to_list() == found["excess"].tolist()


def test_explanations_are_by_the_normal_rows_of_the_last_fit(explaining):
    rows = X.copy()
    rows[:20] += 1000
    detector = pickle.loads(pickle.dumps(explaining)).set_params(contamination=0.05).fit(rows)
    assert detector.density_ is None
    expected = detector.explain(X[20:30] + np.array([0, 0, 500]))[2]
    assert (np.abs(expected[:, 2]) < 500).all()


def test_frames_keep_their_names():
    frame = pd.DataFrame(X, columns=["width", "height", "depth"])
    detector = quick(max_steps=2).fit(frame)
    assert list(detector.feature_names_in_) == ["width", "height", "depth"]
    assert_array_equal(
        detector.score_samples(frame), detector.score_samples(polars.from_pandas(frame))
    )
    with pytest.raises(ValueError, match="feature names"):
        detector.score_samples(frame.iloc[:, ::-1])
    for frame_, message in (
        (frame.assign(depth="deep"), "got column 'depth', which holds text: encode it as numbers"),
        (frame.assign(depth=np.nan), r"got a gap \(NaN\) in column 'depth' of X, row 1"),
        (frame.assign(depth=pd.Timestamp(0)), "got column 'depth', which holds dates: encode"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.score_samples(frame_)


def test_columns_without_a_density():
    """Constants, few values, and rows that are repeated."""
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.integers(0, 3, 200), rng.normal(size=200), np.ones(200)])
    rows[100:] = rows[:100]
    detector = quick(max_steps=5).fit(rows)
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all()
    assert_array_equal(scores[100:], scores[:100])
    assert_array_equal(detector.score_samples(rows + np.array([0, 0, 1])), scores)


def test_mistakes(novelty):
    hole, beyond = X.copy(), X.copy()
    hole[3, 1], beyond[3, 2] = np.nan, np.inf
    for options, rows, message in (
        ({"contamination": 0.6}, X, "'auto', or a share above 0 and at most 0.5; got 0.6"),
        ({"contamination": "all"}, X, "'auto', or a share above 0 and at most 0.5; got 'all'"),
        ({"contamination": np.array([0.1, 0.2])}, X, "'auto', or a share above 0 and at most 0.5"),
        ({"calibration": None}, X, "calibration, a share from 0 and below 1; got None"),
        ({"calibration": 1}, X, "calibration, a share from 0 and below 1; got 1"),
        ({"calibration": 0.99}, X, "at least 5 rows to learn from; got 400 samples, of which 396"),
        ({}, X[:1], "at least 5 rows to learn from; got 1 sample, of which 1 are held out"),
        ({}, np.ones((20, 2)), "columns of X that vary; got 16 equal rows to learn from"),
        ({}, hole, r"got a gap \(NaN\) in column 'x1' of X, row 4 .*1 such rows.: fill it"),
        ({}, np.ma.masked_greater(X, 200), r"got a gap \(NaN\) in column 'x2' of X"),
        ({}, beyond, "got infinity in column 'x2' of X, row 4"),
        ({}, X * [1, 1, 1e300], r"up to 3\.4e\+38 in X; got .* column 'x2': rescale it"),
        ({}, [["a", 1.0]] * 30, "numbers in an array; got text, 'a': encode it as numbers, or"),
        ({}, X.astype("M8[s]"), "numbers in an array; got datetime64.s.: encode it as numbers"),
        ({}, X[:, 0], r"^Expected 2D array, got 1D .*array.reshape\(-1, 1\) .* sample.$"),
        ({"budget": -1}, X, "budget to be above 0; got -1"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            quick(**options).fit(rows)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="X has 2 features, but CNFOutlier is expecting 3"):
        novelty.predict(X[:, :2])
