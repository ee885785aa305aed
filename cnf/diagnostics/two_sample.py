"""Whether samples can be told from data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FOLDS = 5


@dataclass(frozen=True)
class TwoSample:
    """How well a classifier tells samples from data.

    Attributes:
        accuracy: The share of held-out rows that it puts where they belong; 0.5 where it cannot
            tell, 1 where it always can.
        stderr: The accuracy's standard error, of as many draws with this chance.
        rows: How many rows were told apart, half of them data.
    """

    accuracy: float
    stderr: float
    rows: int


def two_sample_test(data: Array, samples: Array, seed: int = 0) -> TwoSample:
    """Train a gradient-boosted classifier to tell samples from data, and test it on held-out rows.

    As many rows of each are taken, at random, and each is judged by a classifier that was trained
    on four fifths of the others. What stands in both, such as a context that samples were drawn at,
    gives a row's label away by its partner's: the accuracy then is too low.

    Args:
        data: Shape (rows, columns).
        samples: Shape (other rows, columns).
        seed: Of the rows that are taken, of the folds and of the classifier.

    Raises:
        ValueError: The columns are not as many, or either has fewer rows than there are folds.

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
            f"Expected data and samples of as many columns, at least {FOLDS} rows each; got shapes "
            f"{data.shape} and {samples.shape}"
        )
    rng = np.random.default_rng(seed)
    count = min(len(data), len(samples))
    halves = [rng.permutation(rows)[:count] for rows in (data, samples)]
    labels = np.repeat([0, 1], count)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(random_state=seed)
    told = cross_val_predict(classifier, np.vstack(halves), labels, cv=folds)
    accuracy = float((told == labels).mean())
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / (2 * count)))
    return TwoSample(accuracy, stderr, 2 * count)
