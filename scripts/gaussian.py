"""The baseline of every flow: a Gaussian, or a linear regression with Gaussian errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from cnf.scripts.rows import Array, ContextRows


@dataclass(frozen=True, eq=False)
class GaussianBaseline:
    """The full-covariance Gaussian of (c, x) for some rows, read as a density of x given c.

    With a context this is linear regression,

        p(x | c) = N(x; μₓ + Σₓ꜀ Σ꜀꜀⁻¹ (c − μ꜀), Σₓₓ − Σₓ꜀ Σ꜀꜀⁻¹ Σ꜀ₓ),

    and without one the Gaussian of x itself.

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
        """Fit a Gaussian by maximum likelihood.

        A billionth of each variance is added, so that collinear columns have a finite density too.
        """
        joined = rows.joined()
        covariance = np.atleast_2d(np.cov(joined.T, bias=True))
        return GaussianBaseline(joined.mean(0), covariance + 1e-9 * np.diag(np.diag(covariance)))

    def log_prob(self, rows: ContextRows) -> Array:
        """Return log p(x | c) of rows, in nats.

        The lower triangle L of Σ = L Lᵀ whitens the context first, so that the whitened x is
        independent of the context, and the last rows of L give p(x | c).
        """
        cholesky = np.linalg.cholesky(self.covariance)
        white = solve_triangular(cholesky, (rows.joined() - self.mean).T, lower=True)
        x = slice(rows.context.shape[1], None)
        scale = np.log(np.sqrt(2 * np.pi) * np.diag(cholesky)[x]).sum()
        return np.asarray(-0.5 * (white[x] ** 2).sum(0) - scale)
