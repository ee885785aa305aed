"""The yardstick beside every flow: a Gaussian, or a linear regression with Gaussian errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from cnf.scripts.rows import Rows

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The full-covariance Gaussian of (c, x) for some rows, read as a density of x given c.

    With a context this is linear regression,

        p(x | c) = N(x; μₓ + Σₓ꜀ Σ꜀꜀⁻¹ (c − μ꜀), Σₓₓ − Σₓ꜀ Σ꜀꜀⁻¹ Σ꜀ₓ),

    and without one the Gaussian of x itself.

    Attributes:
        mean: Shape (context columns + columns,), the context first.
        covariance: Shape (context columns + columns, the same).

    Example:
        >>> c = np.linspace(0.0, 1.0, 100)[:, None]
        >>> errors = np.tile([[1.0], [-1.0], [-1.0], [1.0]], (25, 1))
        >>> rows = Rows(3 * c + errors, c)
        >>> Gaussian.fit(rows).log_prob(rows[:1]).round(2)  # -1/2 - log(2 pi)/2
        array([-1.42])
    """

    mean: Array
    covariance: Array

    @staticmethod
    def fit(rows: Rows) -> Gaussian:
        """The maximum-likelihood fit.

        A billionth of each variance is added to it, so that exactly collinear columns, whose
        Gaussian has no density, still give a finite number.
        """
        joined = rows.joined()
        covariance = np.atleast_2d(np.cov(joined.T, bias=True))
        return Gaussian(joined.mean(0), covariance + 1e-9 * np.diag(np.diag(covariance)))

    def log_prob(self, rows: Rows) -> Array:
        """Log p(x | c) of rows, in nats.

        The lower triangle L of Σ = L Lᵀ whitens the context first: what it then makes of x has
        been freed of the context, and the last rows of L are those of p(x | c).
        """
        cholesky = np.linalg.cholesky(self.covariance)
        white = solve_triangular(cholesky, (rows.joined() - self.mean).T, lower=True)
        own = slice(rows.context.shape[1], None)
        scale = np.log(np.sqrt(2 * np.pi) * np.diag(cholesky)[own]).sum()
        return np.asarray(-0.5 * (white[own] ** 2).sum(0) - scale)

    def json(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}
