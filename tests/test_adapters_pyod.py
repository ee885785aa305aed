"""PyOD's detector: the properties that PyOD tests of its own detectors."""

import pickle
from importlib import reload
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from cnf.adapters import hosts

pytest.importorskip("pyod")
from pyod.models.base import BaseDetector
from pyod.utils.data import generate_data

from cnf.adapters import pyod as adapter
from cnf.adapters.pyod import CNFDetector

X, NEW, Y, NEW_Y = generate_data(n_train=200, n_test=100, contamination=0.1, random_state=42)


def quick(**options):
    return CNFDetector(**{"max_steps": 20, "random_state": 0, "threads": 1, **options})


@pytest.fixture(scope="module")
def detector():
    return quick(contamination=0.1).fit(X)


def test_attributes_of_a_fit(detector):
    assert isinstance(detector, BaseDetector)
    assert detector.decision_scores_.shape == (200,)
    assert detector.labels_.sum() == 20
    assert_array_equal(detector.labels_, detector.decision_scores_ > detector.threshold_)
    assert detector._mu == detector.decision_scores_.mean()
    assert detector._sigma == detector.decision_scores_.std()
    assert_array_equal(detector.decision_scores_, detector.decision_function(X))
    assert detector.n_features_in_ == 2
    assert quick(contamination=np.float32(0.1), max_steps=2).fit(X).labels_.sum() == 20


def test_scores_are_larger_for_outliers(detector):
    scores = detector.decision_function(NEW)
    assert scores.shape == (100,)
    assert roc_auc_score(Y, detector.decision_scores_) >= 0.8
    assert roc_auc_score(NEW_Y, scores) >= 0.8
    assert_array_equal(scores, -detector.detector_.score_samples(NEW))
    assert detector.decision_function([[1e9, 0.0]])[0] > scores.max()


def test_labels_and_confidence(detector):
    labels, confidence = detector.predict(NEW, return_confidence=True)
    assert_array_equal(labels, detector.predict(NEW))
    assert set(labels) == {0, 1}
    assert labels.shape == confidence.shape == (100,)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert_array_equal(confidence, detector.predict_confidence(NEW))
    rejected = detector.predict_with_rejection(NEW, c_r=0.1)
    assert set(rejected) <= {-2, 0, 1}


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities(method, detector):
    chances, confidence = detector.predict_proba(NEW, method=method, return_confidence=True)
    assert chances.shape == (100, 2)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert_allclose(chances.sum(1), 1)
    assert roc_auc_score(NEW_Y, chances[:, 1]) >= 0.8
    assert confidence.shape == (100,)


def test_ranks_keep_the_order(detector):
    scores = detector.decision_function(NEW)
    for normalized, most in ((False, 200), (True, 1)):
        ranks = detector._predict_rank(NEW, normalized=normalized)
        assert_allclose(rankdata(ranks), rankdata(scores), atol=4)
        assert ranks.min() >= 0
        assert ranks.max() <= most


@pytest.mark.filterwarnings("ignore:Function fit_predict:FutureWarning")
def test_a_fit_and_its_labels_at_once(capsys):
    brief = quick(max_steps=2)
    assert_array_equal(brief.fit_predict(X), brief.labels_)
    assert brief.labels_.sum() == 20
    for scoring in ("roc_auc_score", "prc_n_score"):
        assert 0 <= brief.fit_predict_score(NEW, NEW_Y, scoring=scoring) <= 1
        assert scoring in capsys.readouterr().out
    with pytest.raises(NotImplementedError):
        brief.fit_predict_score(NEW, NEW_Y, scoring="something")
    with pytest.warns(UserWarning, match="y should not be presented"):
        brief.fit(X, Y)


def test_clones_and_pickles(detector):
    copied = clone(detector)
    assert copied.get_params() == detector.get_params()
    assert not hasattr(copied, "detector_")
    again = pickle.loads(pickle.dumps(detector))
    assert_array_equal(again.predict(NEW), detector.predict(NEW))


def test_thresholds_of_other_libraries():
    """An object with PyThresh's interface."""

    class Above:
        def fit(self, scores):
            self.thresh_ = np.median(scores)
            self.labels_ = self.predict(scores)

        def predict(self, scores):
            return (scores > self.thresh_).astype(int)

    found = quick(contamination=Above(), max_steps=2).fit(X)
    assert found.labels_.sum() == 100
    assert_array_equal(found.predict(X), found.labels_)


def test_mistakes(detector):
    for act, message in (
        (lambda: quick(contamination="auto").fit(X), "object of PyThresh; got 'auto'"),
        (lambda: quick(contamination=None).fit(X), "object of PyThresh; got None"),
        (lambda: quick(contamination=0.7), r"contamination must be in \(0, 0.5\]"),
        (lambda: quick().fit(np.where(X > 2, np.nan, X)), r"got a gap \(NaN\) in column 'x"),
        (lambda: detector.decision_function(X[:, :1]), "1 features, but CNFOutlier is expecting 2"),
        (lambda: detector.predict_proba(X, method="something"), "not a valid probability"),
        (lambda: quick().decision_function(X), "not fitted yet"),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_a_host_that_is_missing_or_another_version_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    for found, message in ((missing, "no installation"), (lambda name: "2.1.0", "2.1.0")):
        monkeypatch.setattr(hosts, "version", found)
        expected = rf"Expected pyod 3 for cnf.adapters.pyod; got {message}: pip install 'cnf-flows"
        with pytest.raises(ImportError, match=expected):
            reload(adapter)
