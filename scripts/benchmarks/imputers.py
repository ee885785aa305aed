"""Imputers to compare with, by other libraries, and the scores of their draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.question_tables import Array, Mask, QuestionSplit

NEIGHBORS = 10
FOREST_ROUNDS = 5  # of miceforest


@dataclass(frozen=True)
class Design:
    """Rows as columns of standardised numbers, with one for each category: a matrix.

    Attributes:
        center: The mean of each column of numbers.
        scale: Its standard deviation.
        widths: The number of categories of each column, 0 for numbers.
    """

    center: Array
    scale: Array
    widths: tuple[int, ...]

    @staticmethod
    def of(parts: QuestionSplit) -> Design:
        """Return that of a split's training rows, which may have gaps."""
        widths = tuple(
            len(column.categories) if categorical else 0
            for column, categorical in zip(parts.schema.columns, parts.categorical, strict=True)
        )
        center = np.where(parts.categorical, 0.0, np.nanmean(parts.train, 0))
        return Design(center, parts.deviations, widths)

    def matrix(self, x: Array) -> Array:
        """Return the matrix of rows, with NaN for gaps."""
        columns = []
        for column, center, scale, width in zip(
            x.T, self.center, self.scale, self.widths, strict=True
        ):
            one = column[:, None]
            found = (one == np.arange(width)).astype(float) if width else (one - center) / scale
            columns.append(np.where(np.isnan(one), np.nan, found))
        return np.hstack(columns)

    def rows(self, matrix: Array) -> Array:
        """Return rows of a matrix, of the most likely categories."""
        ends = np.cumsum([max(1, width) for width in self.widths])
        parts = np.split(matrix, ends[:-1], axis=1)
        found = [
            part.argmax(1) if width else part[:, 0] * scale + center
            for part, center, scale, width in zip(
                parts, self.center, self.scale, self.widths, strict=True
            )
        ]
        return np.column_stack(found).astype(np.float64)


def ridge_draws(parts: QuestionSplit, x: Array, draws: int, seed: int) -> Array:
    """Impute by chained Bayesian ridge regressions, sampled."""
    imputer = IterativeImputer(sample_posterior=True, random_state=seed)
    return _by_matrix(imputer, parts, x, draws)


def neighbor_draws(parts: QuestionSplit, x: Array, draws: int, seed: int) -> Array:
    """Impute by the mean of the nearest rows, the same in all draws."""
    found = _by_matrix(KNNImputer(n_neighbors=NEIGHBORS), parts, x, 1)
    return np.repeat(found, draws, 0)


def _by_matrix(imputer: Any, parts: QuestionSplit, x: Array, draws: int) -> Array:
    design = Design.of(parts)
    with warnings.catch_warnings():  # it does not converge where it samples
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(design.matrix(parts.train))
    matrix = design.matrix(x)
    rows = [design.rows(imputer.transform(matrix)) for _ in range(draws)]
    return np.where(np.isnan(x), np.stack(rows), x)


def forest_draws(parts: QuestionSplit, x: Array, draws: int, seed: int) -> Array:
    """Impute by chained trees of gradient boosting, with mean matching.

    miceforest 6.0.5 runs with LightGBM before 4.7.
    """
    import pandas as pd

    def frame(rows: Array) -> pd.DataFrame:
        found = pd.DataFrame(rows, columns=[*parts.schema.names])
        kinds = zip(parts.schema.columns, parts.categorical, strict=True)
        for column, categorical in kinds:
            if categorical:
                found[column.name] = pd.Categorical(
                    found[column.name], [*map(float, range(len(column.categories)))]
                )
        return found

    forest = peer("miceforest")
    kernel = forest.ImputationKernel(frame(parts.train), num_datasets=draws, random_state=seed)
    kernel.mice(FOREST_ROUNDS)
    found = kernel.impute_new_data(frame(x), random_state=seed)
    return np.stack([found.complete_data(dataset=i).astype(float).to_numpy() for i in range(draws)])


Imputer = Callable[[QuestionSplit, Array, int, int], Array]
"""A function of a split with gaps, rows, draws and a seed that returns (draws, rows, columns)."""
IMPUTERS: dict[str, Imputer] = {
    "bayesian ridge": ridge_draws,
    "nearest rows": neighbor_draws,
    "miceforest": forest_draws,
}
IMPUTER_PEERS = {"miceforest": "miceforest"}  # the optional library that an imputer needs


def distances(parts: QuestionSplit, a: Array, b: Array) -> Array:
    """Return distances of cells: of numbers in standard deviations, of categories 0 or 1."""
    different = (a != b).astype(np.float64)
    return np.where(parts.categorical, different, np.abs(a - b) / parts.deviations)


@dataclass(frozen=True)
class DrawScores:
    """The scores of imputed rows, the lower the better.

        CRPS = E |X − y| − ½ E |X − X'|,    energy score = E ‖X − y‖ − ½ E ‖X − X'‖

    Attributes:
        crps: The mean over a row's gaps, (rows,).
        energy: That of all gaps of a row together, (rows,).

    Source: Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation.
    """

    crps: Array
    energy: Array

    @staticmethod
    def of(parts: QuestionSplit, truth: Array, draws: Array, gaps: Mask) -> DrawScores:
        """Score draws (draws, rows, columns) of the gaps (rows, columns), in rows that have some.

        Expectations over two draws are means over different ones.
        """
        rows = gaps.any(1)
        truth, draws, gaps = truth[rows], draws[:, rows], gaps[rows]
        counts, number = gaps.sum(1), len(draws)
        crps, energy = np.zeros(len(truth)), np.zeros(len(truth))
        for i, one in enumerate(draws):
            to_truth = distances(parts, one, truth) * gaps
            crps += to_truth.sum(1) / counts / number
            energy += np.linalg.norm(to_truth, axis=1) / number
            for other in draws[:i]:
                apart = distances(parts, one, other) * gaps
                pairs = number * (number - 1)
                crps -= apart.sum(1) / counts / pairs
                energy -= np.linalg.norm(apart, axis=1) / pairs
        return DrawScores(crps, energy)
