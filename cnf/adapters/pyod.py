"""PyOD's interface to the outlier detector, whose scores are the larger the less normal."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from cnf.adapters.hosts import check_host
from cnf.outliers.estimator import CNFOutlier, State
from cnf.utils.threads import Threads

check_host("pyod")

from pyod.models.base import BaseDetector  # noqa: E402 - the check comes first

Array = NDArray[np.float64]


class CNFDetector(BaseDetector):  # type: ignore[misc]
    """A density of rows, a mixture and a denoising network, as one of PyOD's detectors.

    It is a `cnf.CNFOutlier` with the opposite sign, fitted to all rows: the more abnormal a row,
    the larger its score, and labels are 1 for outliers. `predict_proba`, `predict_confidence` and
    `predict_with_rejection` are PyOD's own.

    Args:
        contamination: The share of outliers in the training rows, above 0 and at most 0.5, without
            which the model is trained, and which is above the threshold; or one of PyThresh's
            objects, which finds the threshold by the scores of a model of all rows.
        budget: Seconds of training, None for no limit on them.
        max_steps: The most optimizer steps.
        random_state: Seed of the weights and the order of the data.
        device: The device to compute on; a GPU where there is one when None.
        threads: PyTorch's threads in training, as in `cnf.CNFOutlier`.
        verbose: Whether a progress bar is shown on a terminal.

    Attributes:
        detector_: The fitted `cnf.CNFOutlier`, which has `explain`.
        decision_scores_: The scores of the training rows, larger for outliers.
        threshold_: The score above which rows are outliers.
        labels_: 1 for the training rows that are, 0 for the others.
        n_features_in_: Number of columns of X.

    Source: Zhao, Nasrullah and Li (2019), PyOD: a Python toolbox for scalable outlier detection.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> X[0] = 9.0
        >>> detector = CNFDetector(contamination=0.01, max_steps=5, random_state=0).fit(X)
        >>> int(detector.decision_scores_.argmax()), int(detector.labels_[0])
        (0, 1)
    """

    def __init__(
        self,
        contamination: Any = 0.1,
        *,
        budget: float | None = 20,
        max_steps: int | None = None,
        random_state: State = None,
        device: str | None = None,
        threads: Threads = "auto",
        verbose: bool = False,
    ) -> None:
        super().__init__(contamination=contamination)
        self.budget = budget
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device
        self.threads = threads
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model to rows, and the threshold to their scores.

        Args:
            X: Shape (n_samples, n_features), finite.
            y: Not used; PyOD warns where it is given.

        Raises:
            ValueError: As `cnf.CNFOutlier.fit`, or `contamination` is neither a share nor has the
                methods of PyThresh's objects.
        """
        self._set_n_classes(y)
        options = {**self.get_params(deep=False), "contamination": self._training_share()}
        self.detector_ = CNFOutlier(calibration=0.0, **options).fit(X)
        self.n_features_in_ = self.detector_.n_features_in_
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def _training_share(self) -> float | Literal["auto"]:
        """Return the share of outliers that the model is trained without."""
        given: Any = self.get_params(deep=False)["contamination"]
        if isinstance(given, Real):
            self.contamination = share = float(given)  # the type that PyOD looks for
            return share
        if not hasattr(given, "fit"):
            raise ValueError(
                "Expected contamination to be a share above 0 and at most 0.5, or an object of "
                f"PyThresh; got {given!r}"
            )
        return "auto"

    def decision_function(self, X: Any) -> Array:
        """Return the scores of rows, the larger the more abnormal, shape (n_samples,).

        Args:
            X: Shape (n_samples, n_features), finite.

        Raises:
            ValueError: A shape does not fit, or a value is no finite number.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        check_is_fitted(self, "detector_")
        return -self.detector_.score_samples(X)
