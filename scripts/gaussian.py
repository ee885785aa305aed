"""The baseline of every flow: a Gaussian, or a linear regression with Gaussian errors."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from scipy.linalg import solve_triangular

from cnf.mixtures.normal import NormalMixture
from cnf.scripts.rows import Array, ContextRows

SHRINKAGES: Array = np.append(0.0, np.geomspace(1e-6, 1.0, 61))
FOLDS = 5
MAX_GAPPY_ROWS = 20_000
MAX_GAPPY_WORK = 3e8  # different sets of gaps times the cube of columns: some ten seconds
COLLINEAR_VARIANCE = 1e-9  # added to that of standardised columns
MIN_GAIN = 0.01  # nats a row, without which the covariance is not shrunk


@dataclass(frozen=True, eq=False)
class GaussianBaseline:
    """The full-covariance Gaussian of (c, x) for some rows, read as a density of x given c.

    With a context this is linear regression,

        p(x | c) = N(x; μₓ + Σₓ꜀ Σ꜀꜀⁻¹ (c − μ꜀), Σₓₓ − Σₓ꜀ Σ꜀꜀⁻¹ Σ꜀ₓ),

    and without one the Gaussian of x itself. Gaps, NaN in x, are marginalised; so are those that
    are values for a model, whose share it does not know.

    Attributes:
        mean: Shape (context columns + columns,), the context first.
        covariance: Shape (context columns + columns, context columns + columns).

    Example:
        >>> c = np.linspace(0.0, 1.0, 100)[:, None]
        >>> errors = np.tile([[1.0], [-1.0], [-1.0], [1.0]], (25, 1))
        >>> rows = ContextRows(3 * c + errors, c)
        >>> GaussianBaseline.fit(rows).log_prob(rows[:1]).round(2)  # -1/2 - log(2 pi)/2
        array([-1.42])
    """

    mean: Array
    covariance: Array

    @staticmethod
    def fit(rows: ContextRows) -> GaussianBaseline:
        """Fit a Gaussian by maximum likelihood, with a shrunk correlation where rows are few.

        The correlation R becomes (1 − s) R + s I, by the s of highest likelihood in
        cross-validation where that is higher than at 0. A billionth of each variance, or of 1 where
        a column is constant, is added, so that collinear columns have a finite density too. Where
        there are gaps, the likelihood is that of what is there, by expectation maximisation on some
        of the rows, and the correlation is shrunk as by one more row of R = I for each column.
        """
        joined = rows.joined()
        if np.isnan(joined).any():
            return _fit_with_gaps(joined)
        mean, scale = joined.mean(0), joined.std(0)
        covariance = np.atleast_2d(np.cov(joined.T, bias=True))
        variances = np.diag(covariance)
        diagonal = np.diag(np.where(variances > 0, variances, 1.0))
        s = _shrinkage(joined, mean, np.where(scale > 0, scale, 1.0))
        return GaussianBaseline(mean, (1 - s) * covariance + (s + COLLINEAR_VARIANCE) * diagonal)

    def log_prob(self, rows: ContextRows) -> Array:
        """Return log p(x | c) of rows, in nats, and of those with gaps that of what is there.

        The lower triangle L of Σ = L Lᵀ whitens the context first, so that the whitened x is
        independent of the context, and the last rows of L give p(x | c).
        """
        if np.isnan(rows.x).any():
            return self._log_prob_with_gaps(rows)
        cholesky = np.linalg.cholesky(self.covariance)
        white = solve_triangular(cholesky, (rows.joined() - self.mean).T, lower=True)
        x = slice(rows.context.shape[1], None)
        scale = np.log(np.sqrt(2 * np.pi) * np.diag(cholesky)[x]).sum()
        return np.asarray(-0.5 * (white[x] ** 2).sum(0) - scale)

    def _log_prob_with_gaps(self, rows: ContextRows) -> Array:
        mixture = NormalMixture(1, len(self.mean))
        mixture.means.copy_(torch.from_numpy(self.mean))
        mixture.covariances.copy_(torch.from_numpy(self.covariance))
        joined = torch.from_numpy(rows.joined())
        of_context = torch.arange(len(self.mean)) < rows.context.shape[1]
        asked = ~joined.isnan() & ~of_context
        return np.asarray(mixture.log_prob(joined, of_context.expand(asked.shape), asked).numpy())


def _fit_with_gaps(rows: Array) -> GaussianBaseline:
    columns, sets = rows.shape[1], len(np.unique(np.isnan(rows), axis=0))
    every = ceil(max(len(rows) / MAX_GAPPY_ROWS, sets * columns**3 / MAX_GAPPY_WORK))
    taken, prior = torch.from_numpy(rows[::every]), float(columns)
    found = NormalMixture.fit(taken, components=1, prior=prior, floor=COLLINEAR_VARIANCE)
    return GaussianBaseline(found.means[0].numpy(), found.covariances[0].numpy())


def _shrinkage(rows: Array, mean: Array, scale: Array) -> float:
    """Return the shrinkage of rows' correlation with the highest likelihood in cross-validation.

    It is 0 where no other raises the log-likelihood of a row by a hundredth of a nat. Rows are in
    random order.
    """
    folds = np.array_split(rows, FOLDS)
    moments = [white.T @ white for white in ((fold - mean) / scale for fold in folds)]
    total, scores = np.sum(moments, axis=0), np.zeros(len(SHRINKAGES))
    for fold, moment in zip(folds, moments, strict=True):
        values, vectors = np.linalg.eigh((total - moment) / max(1, len(rows) - len(fold)))
        s = SHRINKAGES[:, None]
        variances = (1 - s) * values.clip(0) + s + COLLINEAR_VARIANCE
        squares = (vectors * (moment @ vectors)).sum(0)
        scores -= 0.5 * (len(fold) * np.log(variances) + squares / variances).sum(1)
    best = int(scores.argmax())
    return float(SHRINKAGES[best]) if scores[best] > scores[0] + MIN_GAIN * len(rows) else 0.0
