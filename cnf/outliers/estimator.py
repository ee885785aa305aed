"""The scikit-learn estimator of outliers."""

from __future__ import annotations

from math import ceil, inf
from numbers import Real
from typing import Any, Literal, Self
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from cnf.datasets import Table, frame_table, from_any, like_frame
from cnf.outliers.conformal import conformal_p_values, conformal_threshold
from cnf.outliers.detector import OutlierModel, fit_detector
from cnf.tables.estimators import CNFDensity
from cnf.tables.inputs import check_names, check_numbers, checked_array, is_frame
from cnf.tables.outputs import long_form
from cnf.tables.schema import Column, Schema, check_single_precision
from cnf.training.callbacks import ProgressBar
from cnf.utils.threads import Threads

Array = NDArray[np.float64]
State = int | np.random.RandomState | None

FALSE_ALARMS = 0.05  # share of new normal rows that score below the offset of "auto"
MIN_TRAINING_ROWS = 5
ENCODE = "encode it as numbers, or leave it out"


class CNFOutlier(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A density of rows, a mixture and a denoising network, as an estimator of outliers.

    As with `IsolationForest`, one fitted estimator judges the training rows (`fit_predict`) and new
    ones (`predict`); what it takes the training rows for depends on `contamination`.

    - `"auto"`, novelty detection: all are normal. The threshold is that of split conformal
      inference: a new normal row is taken for an outlier with a probability of at most 5 %. Fewer
      than 19 calibration rows cannot tell such a threshold: no row is then taken for an outlier.
    - A share, outlier detection: so many are outliers, nobody knows which. The likelihood is
      trimmed: the model learns from the rows but for the least likely ones, thrice that share and
      half of all at most. The share of the training rows are below the threshold.

    Scores do not depend on the rows that are scored together. X holds finite numbers, in an array
    or a table of pandas, polars and pyarrow. Columns that are constant in the training rows are
    left out: no value in them makes an outlier.

    Args:
        contamination: The share of outliers in the training rows, above 0 and at most 0.5; `"auto"`
            where there are none.
        calibration: The share of training rows that are held out for the p-values and for the
            threshold of `"auto"`, below 1. With 0 the model learns from all rows, there are no
            p-values, and 5 % of the training rows are below the threshold of `"auto"`.
        budget: Seconds of training, None for no limit on them. The first call of `explain` trains
            for as long again.
        max_steps: The most optimizer steps. A fit that they end, and not the budget, depends on
            `random_state` alone, where `threads` is a number.
        random_state: Seed of the held-out rows, the weights and the order of the data.
        device: The device to compute on, such as `"cuda"`; a GPU where there is one when None.
        threads: PyTorch's threads in training: a number, `"auto"` for the fastest by its steps
            unless the caller chose one, or None for PyTorch's number.
        verbose: Whether a progress bar is shown on a terminal.

    Attributes:
        model_: The fitted `cnf.outliers.OutlierModel`, on the CPU.
        offset_: The threshold: rows that score below it are outliers; −inf where calibration rows
            are too few for one.
        calibration_scores_: The scores of the rows held out for calibration, increasing.
        density_: The `cnf.CNFDensity` that `explain` asks; None before its first call.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, where X had any.

    Source: split conformal inference as in Bates et al. (2023), Testing for outliers with conformal
    p-values; trimmed likelihood by Neykov and Neytchev (1990), A robust alternative of the maximum
    likelihood estimators.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> detector = CNFOutlier(max_steps=5, random_state=0).fit(X)
        >>> detector.predict([[0.0, 0.1], [9.0, 9.0]]).tolist()
        [1, -1]
        >>> detector.p_values([[9.0, 9.0]]).round(3).tolist()  # 1 / 61, by 60 held-out rows
        [0.016]
    """

    def __init__(
        self,
        *,
        contamination: float | Literal["auto"] = "auto",
        calibration: float = 0.2,
        budget: float | None = 20,
        max_steps: int | None = None,
        random_state: State = None,
        device: str | None = None,
        threads: Threads = "auto",
        verbose: bool = False,
    ) -> None:
        self.contamination = contamination
        self.calibration = calibration
        self.budget = budget
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device
        self.threads = threads
        self.verbose = verbose

    def fit(self, X: Any, y: object = None) -> Self:
        """Fit the model and its threshold to X.

        Args:
            X: Shape (n_samples, n_features), finite.
            y: Not used.

        Raises:
            ValueError: A shape does not fit, a value is no finite number, all columns are constant,
                or a parameter is out of range.
            cnf.training.TrainingError: Every step failed.

        Warns:
            UserWarning: Under `"auto"`, fewer than 19 rows are for calibration.
        """
        share = self._share()
        table = self._table(X, reset=True)
        check_single_precision(table)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = table.values[np.random.default_rng(seed).permutation(len(table.values))]
        training, held_out = self._split(rows)
        self.model_: OutlierModel = fit_detector(
            torch.tensor(training).to(self._device()),
            contamination=share,
            budget=self.budget,
            steps=self.max_steps,
            seed=seed,
            threads=self.threads,
            callbacks=[ProgressBar()] if self.verbose else [],
        ).cpu()
        self.calibration_scores_ = np.sort(self._scores(held_out))
        if share:
            scores = self._scores(rows)
            self.offset_ = float(np.percentile(scores, 100 * share))
            rows = rows[scores >= self.offset_]
        else:
            known = self.calibration_scores_ if len(held_out) else self._scores(rows)
            self.offset_ = conformal_threshold(known, FALSE_ALARMS)
            if self.offset_ == -inf:
                warn_of_few(len(known))
        self.density_: CNFDensity | None = None
        self._normal, self._seed = rows, seed  # of the training rows, for `explain`
        return self

    def _split(self, rows: Array) -> tuple[Array, Array]:
        """Return the rows to learn from, and those for calibration."""
        count = ceil(self.calibration * len(rows))
        training = rows[count:]
        if len(training) < MIN_TRAINING_ROWS:
            raise ValueError(
                f"Expected at least {MIN_TRAINING_ROWS} rows to learn from; got {len(rows)} "
                f"sample{'s' if len(rows) > 1 else ''}, of which {count} are held out for "
                "calibration: pass more"
            )
        if (training == training[0]).all():
            raise ValueError(
                f"Expected columns of X that vary; got {len(training)} equal rows to learn from: "
                "pass others"
            )
        return training, rows[:count]

    def score_samples(self, X: Any) -> Array:
        """Return the scores of rows, the larger the more normal, shape (n_samples,).

        They are finite: of a value more than 10⁶ deviations from its column's mean as of one that
        is 10⁶ away, so that such rows may tie.

        Args:
            X: Shape (n_samples, n_features), finite.

        Raises:
            ValueError: A shape does not fit, or a value is no finite number.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        check_is_fitted(self, "model_")
        return self._scores(self._table(X, reset=False).values)

    def decision_function(self, X: Any) -> Array:
        """Return `score_samples` less `offset_`, below 0 for outliers, shape (n_samples,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int_]:
        """Return 1 for normal rows and −1 for outliers, shape (n_samples,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> Array:
        """Return p-values of rows by split conformal inference, shape (n_samples,).

            p(x) = (1 + #{calibration rows that score at most as x}) / (1 + n)

        of n calibration rows, at least 1 / (1 + n). A new normal row has a p-value of at most α
        with a probability of at most α. This holds for any model, where the training rows are
        normal and the new row comes from the same source. Outliers among the training rows make the
        p-values larger than needed, and the training rows themselves have none that are valid.

        Args:
            X: New rows, shape (n_samples, n_features), finite.

        Raises:
            ValueError: `calibration` was 0 in the fit, a shape does not fit, or a value is no
                finite number.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        check_is_fitted(self, "model_")
        if not len(self.calibration_scores_):
            raise ValueError(
                "Expected rows held out for calibration; got a fit with calibration=0, which has "
                "no p-values: fit with 0.2"
            )
        return conformal_p_values(self.score_samples(X), self.calibration_scores_)

    def explain(self, X: Any) -> Any:
        """Return how unlikely each cell of rows is given the others, and what was expected.

        The answers are those of `cnf.CNFDensity.explain`, by a model of rows that is fitted to the
        training rows at the first call, for `budget` seconds; with a share of `contamination`, to
        those that are normal by their scores. The cell with the largest excess is the first to look
        at. Whole numbers and values that repeat have a mass, and a value that no training row could
        have there has an infinite surprise.

        Args:
            X: Shape (n_samples, n_features), finite.

        Returns:
            Of an array, the surprise, excess and expected value of each cell, an array of shape
            (3, n_samples, n_features). Of a table one of its kind with an entry for each cell:
            `row`, counted from 0, `column`, `surprise`, `excess` and `expected`; the cells of a row
            come by their excess, the largest first.

        Raises:
            ValueError: A shape does not fit, or a value is no finite number.
            sklearn.exceptions.NotFittedError: There is no fit yet.

        Warns:
            UserWarning: A value is one that its column cannot have; columns of the training rows
                are redundant.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> X = rng.normal(size=(500, 1)) + 0.1 * rng.normal(size=(500, 3))
            >>> detector = CNFOutlier(max_steps=2, random_state=0).fit(X)
            >>> surprise, excess, expected = detector.explain([[0.0, 0.1, 2.0]])
            >>> int(excess[0].argmax()), bool(abs(expected[0, 2]) < 0.5)
            (2, True)
        """
        check_is_fitted(self, "model_")
        table = self._table(X, reset=False)
        if self.density_ is None:
            self.density_ = self._new_density().fit(self._normal)
        found = self.density_.explain(table.values)
        if not is_frame(X):
            return found
        schema = Schema(tuple(map(Column, table.columns)))
        return like_frame(long_form(schema, *found), X)

    def _new_density(self) -> CNFDensity:
        return CNFDensity(
            schema="infer",
            missing="model",
            budget=self.budget,
            max_steps=self.max_steps,
            random_state=self._seed,
            device=self.device,
            threads=self.threads,
            verbose=self.verbose,
        )

    def _scores(self, rows: Array) -> Array:
        device = self._device()
        given = torch.tensor(np.ascontiguousarray(rows)).to(device)
        scores = self.model_.to(device).score(given)
        self.model_.cpu()
        return np.asarray(scores.cpu().numpy(), np.float64)

    def _share(self) -> float:
        """Return the share of outliers in the training rows, after a check of the parameters."""
        if not isinstance(self.calibration, Real) or not 0 <= self.calibration < 1:
            raise ValueError(
                f"Expected calibration, a share from 0 and below 1; got {self.calibration!r}"
            )
        if isinstance(self.contamination, str) and self.contamination == "auto":
            return 0.0
        if not isinstance(self.contamination, Real) or not 0 < self.contamination <= 0.5:
            raise ValueError(
                "Expected contamination to be 'auto', or a share above 0 and at most 0.5; got "
                f"{self.contamination!r}"
            )
        return float(self.contamination)

    def _table(self, X: Any, reset: bool) -> Table:
        """Return X as a table of finite numbers, after scikit-learn's checks of shape and names."""
        options: dict[str, Any] = {"dtype": np.float64, "reset": reset, "ensure_all_finite": False}
        if is_frame(X):
            table = frame_table(from_any(X)[0], "X")
            check_numbers(table, ENCODE, booleans=True)
            check_names(self, X, table, **options)
        else:
            rows = checked_array(self, X, ENCODE, **options)
            table = Table("X", rows, tuple(f"x{i}" for i in range(rows.shape[1])))
        check_finite(table)
        return table

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def warn_of_few(rows: int) -> None:
    """Warn that rows are too few for a threshold, in the name of the caller's caller.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_few(4)
        >>> str(caught[0].message)[:58]
        'Expected at least 19 rows for the threshold of "auto"; got'
    """
    warn(
        f'Expected at least {ceil(1 / FALSE_ALARMS) - 1} rows for the threshold of "auto"; got '
        f"{rows}: predict will call no row an outlier; pass more rows, or a larger calibration",
        UserWarning,
        stacklevel=3,
    )


def check_finite(table: Table) -> None:
    """Raise a ValueError with the place of the first value of a table that is not finite.

    Example:
        >>> check_finite(Table("X", np.zeros((2, 1)), ("x0",)))
    """
    bad = ~np.isfinite(table.values)
    if not bad.any():
        return
    row, place = divmod(int(bad.argmax()), bad.shape[1])
    what = "a gap (NaN)" if np.isnan(table.values[row, place]) else "infinity"
    raise ValueError(
        f"Expected finite values; got {what} in column {table.columns[place]!r} of {table.name}, "
        f"row {row + 1} (counting from 1; {bad.any(1).sum()} such rows): fill it, or leave the row "
        "out"
    )
