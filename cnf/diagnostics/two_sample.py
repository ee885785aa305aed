"""A classifier two-sample test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FOLDS = 5
BOOSTING_ROUNDS = 100  # of the classifier


@dataclass(frozen=True)
class TwoSample:
    """A classifier's accuracy in telling samples from data.

    Attributes:
        accuracy: The share of held-out rows that are classified correctly, 0.5 by chance.
        stderr: The accuracy's binomial standard error.
        rows: Number of rows that were classified, half of them data.
    """

    accuracy: float
    stderr: float
    rows: int


def two_sample_test(data: Array, samples: Array, seed: int = 0) -> TwoSample:
    """Train a gradient-boosted classifier to tell samples from data, and test it on held-out rows.

    Equally many random rows of each are taken, and each fifth is classified by a classifier that
    was trained on the others. Values in both, such as contexts that samples were drawn at, reveal
    a row's label by that of its partner: the accuracy is then too low.

    Args:
        data: Shape (rows, columns).
        samples: Shape (other rows, columns).
        seed: Seed of the rows that are taken, of the folds and of the classifier.

    Raises:
        ValueError: The numbers of columns differ, or there are fewer rows than folds.

    Source: Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> test = two_sample_test(rng.normal(size=(200, 2)), rng.normal(3.0, size=(200, 2)))
        >>> test.accuracy > 0.95, test.rows
        (True, 400)
    """
    # Here, since they take long to import.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if data.shape[1:] != samples.shape[1:] or min(len(data), len(samples)) < FOLDS:
        raise ValueError(
            f"Expected data and samples with the same columns and at least {FOLDS} rows each; got "
            f"shapes {data.shape} and {samples.shape}"
        )
    rng = np.random.default_rng(seed)
    count = min(len(data), len(samples))
    halves = [rng.permutation(rows)[:count] for rows in (data, samples)]
    labels = np.repeat([0, 1], count)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(max_iter=BOOSTING_ROUNDS, random_state=seed)
    predicted = cross_val_predict(classifier, np.vstack(halves), labels, cv=folds)
    accuracy = float((predicted == labels).mean())
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / (2 * count)))
    return TwoSample(accuracy, stderr, 2 * count)
