"""An affine layer whose mean and scales are functions of a context: a Gaussian given it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cnf.layers.layer import Layer, TransformResult
from cnf.layers.padding import pad_rows

# Candidates of the ridge penalty per row, for standardised columns; some may be constant.
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-12, 7))
JITTER = 1e-6  # on the variances of residuals
LARGEST_LOG = 5.0  # of the diagonal, approached smoothly: contexts far from those of the fit


class ConditionalAffine(Layer):
    """An affine map x = b + W c + R⁻¹ (m(c) + A(c)⁻¹ z), with a normal base a Gaussian given c.

        log |det ∂x/∂z| = −Σ ln R_ii − Σ ln A_ii(c)

    b, W and R are fitted once, the ridge regression of x on c and the matrix that makes its
    leave-one-out residuals white; before that they are 0, 0 and 1. The penalty is the one that
    makes these residuals least, by the determinant of their covariance: numbers in c as many as the
    rows are not interpolated. A is lower triangular with a positive diagonal. The mean m, the log
    of the diagonal, which is kept within ±5, and the entries below it are trained: a linear map of
    c plus a perceptron of c, all zero at first.

    Args:
        dim: Number of columns.
        context_dim: Size of the context c; without one the Gaussian is the same for all rows.
        hidden: Widths of the perceptron's hidden layers; with none there is no perceptron.

    Raises:
        ValueError: A width is below 1, the context's size is negative, or it is not given.

    Shapes: (rows, dim), context (rows, context_dim) → (rows, dim), (rows,).

    Example:
        >>> layer = ConditionalAffine(1, context_dim=1)
        >>> c = torch.linspace(-2, 2, 100).unsqueeze(1)
        >>> layer.fit(2 * c + 0.1 * (-1) ** torch.arange(100).unsqueeze(1), c)
        >>> z, log_det = layer.inverse(2 * c, c)
        >>> z.abs().max().item() < 0.1, 2.2 < log_det[0].item() < 2.31  # log 10 is 2.30
        (True, True)
    """

    bias: Tensor
    slope: Tensor
    whitening: Tensor
    fitted: Tensor

    def __init__(self, dim: int, context_dim: int = 0, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        if min(dim, context_dim + 1, *hidden) < 1:
            raise ValueError(
                "Expected dim and hidden widths of at least 1, and context_dim of at least 0; got "
                f"dim={dim}, context_dim={context_dim} and hidden={tuple(hidden)}"
            )
        self.dim, self.context_dim, self.hidden = dim, context_dim, tuple(hidden)
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("slope", torch.zeros(dim, context_dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.register_buffer("fitted", torch.tensor(False))
        self.rows, self.columns = torch.tril_indices(dim, dim, -1).tolist()
        count = 2 * dim + len(self.rows)
        self.constant = nn.Parameter(torch.zeros(count))
        self.linear = self.perceptron = None
        if context_dim:
            self.linear = _zero(nn.Linear(context_dim, count, bias=False))
            self.perceptron = _perceptron((context_dim, *self.hidden), count) if hidden else None

    @torch.no_grad()
    def fit(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit the regression to rows x (rows, dim), unless it is fitted already.

        Args:
            x: Rows (rows, dim).
            context: Their context (rows, context_dim).
            weight: Weights of the rows (rows,); equal when None.
        """
        if self.fitted:
            return
        rows, inputs = x.double(), x.new_zeros(len(x), 0).double()
        if self.context_dim:
            inputs = self._checked(context).double()
        shares = rows.new_ones(len(x)) if weight is None else weight.to(rows)
        shares = (shares / shares.sum()).unsqueeze(1)
        middle, centre = (shares * inputs).sum(0), (shares * rows).sum(0)
        slope, covariance = _ridge(inputs - middle, rows - centre, shares)
        self.bias.copy_(centre - middle @ slope)
        self.slope.copy_(slope.T)
        self.whitening.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)))
        self.fitted.fill_(True)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        rows, given = pad_rows(z, context)
        centre, mean, logs, matrix = self._maps(rows, given)
        white = mean + _solved(matrix, rows.unsqueeze(2)).squeeze(2)
        x = centre + _solved(self.whitening, white.T).T
        return TransformResult(x[: len(z)], -self._log_det(logs)[: len(z)])

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        rows, given = pad_rows(x, context)
        centre, mean, logs, matrix = self._maps(rows, given)
        white = (rows - centre) @ self.whitening.T
        z = (matrix * (white - mean).unsqueeze(1)).sum(2)
        return TransformResult(z[: len(x)], self._log_det(logs)[: len(x)])

    def _log_det(self, logs: Tensor) -> Tensor:
        return logs.sum(1) + self.whitening.diagonal().log().sum()

    def _maps(self, like: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return b + W c, m and the log of A's diagonal (rows, dim), and A (rows, dim, dim)."""
        numbers = self.constant.expand(len(like), -1)
        centre = self.bias
        if self.linear is not None:
            given = self._checked(context)
            centre = centre + given @ self.slope.T
            numbers = numbers + self.linear(given)
            if self.perceptron is not None:
                numbers = numbers + self.perceptron(given)
        mean, logs, below = numbers.split([self.dim, self.dim, len(self.rows)], 1)
        logs = LARGEST_LOG * (logs / LARGEST_LOG).tanh()
        matrix = torch.diag_embed(logs.exp())
        if self.rows:
            lower = torch.zeros_like(matrix)
            lower[:, self.rows, self.columns] = below
            matrix = matrix + lower
        return centre, mean, logs, matrix

    def _checked(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(f"Expected a context of shape (rows, {self.context_dim}); got none")
        return context


def _ridge(inputs: Tensor, outputs: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return a regression's slope (inputs, outputs), and the covariance of its residuals.

    Columns are centred by the rows' shares (rows, 1). Residuals r_i / (1 − h_i) are those of each
    row by a regression on the others, with h the diagonal of the matrix that maps outputs to fits.
    """
    root = shares.sqrt()
    scores, variances, axes = _principal(root * inputs)
    products = scores.T @ (root * outputs)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        kept = (1 / (variances + penalty)).unsqueeze(1)
        leverage = (shares + scores.square() @ kept).clamp(max=1 - JITTER)
        residuals = (root * outputs - scores @ (kept * products)) / (1 - leverage)
        covariance = residuals.T @ residuals + JITTER * torch.eye(outputs.shape[1]).to(outputs)
        size = covariance.logdet().item()
        if best is None or size < best[0]:
            best = size, axes @ (kept * products), covariance
    assert best is not None
    return best[1], best[2]


def _principal(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the principal components of rows (n, p): scores (n, k), variances, axes (p, k)."""
    if rows.shape[1] > len(rows):
        left, roots, axes = torch.linalg.svd(rows, full_matrices=False)
        return left * roots, roots.square(), axes.T
    variances, axes = torch.linalg.eigh(rows.T @ rows)  # the smaller problem
    return rows @ axes, variances.clamp(min=0), axes


def _solved(matrix: Tensor, columns: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(matrix, columns, upper=False)
    return solved


def _perceptron(widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a perceptron whose last layer is zero."""
    layers = [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.SiLU())]
    return nn.Sequential(*layers, _zero(nn.Linear(widths[-1], outputs)))


def _zero(linear: nn.Linear) -> nn.Linear:
    """Return a linear map, set to zero."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
