"""A whitening of columns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnf.layers.layer import TransformResult
from cnf.layers.scalings.scaling import Scaling

# Smallest ratio of eigenvalues of the shrunk correlation: whitening amplifies the rounding of
# single precision by up to the inverse of its square root, 1e3.
MIN_EIGENVALUE_RATIO = 1e-6


class Whiten(Scaling):
    """The whitening x = loc + scale ∘ (R^½ z) by means, deviations and a shrunk correlation R.

        log |det| = Σ ln scale + ½ ln det R

    The training rows become uncorrelated with unit variance; among all such maps this one keeps
    each column closest to the original (ZCA-cor; Kessy et al. 2018). The sample's correlation C is
    shrunk, R = (1 − s) C + s I, by Ledoit and Wolf's (2004) s, and by more where columns are nearly
    collinear, so that the eigenvalues of R stay within a factor of a million.

    Rows are mapped in double precision: of nearly collinear columns the product has small numbers
    from large ones, and BLAS libraries round it differently with a row's place in memory.

    Arguments are those of `Scaling`.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Kessy, Lewin and Strimmer (2018), Optimal whitening and decorrelation; Ledoit and Wolf
    (2004), A well-conditioned estimator for large-dimensional covariance matrices.

    Example:
        >>> x = torch.randn(1000, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> z, log_det = Whiten(2).fit(x).inverse(x)
        >>> torch.allclose(z.T.cov(), torch.eye(2), atol=0.1)
        True
    """

    mixing: Tensor
    unmixing: Tensor
    log_mixing: Tensor

    def __init__(self, dim: int, circular: Sequence[int] = ()) -> None:
        super().__init__(dim, circular)
        self.register_buffer("mixing", torch.eye(dim))
        self.register_buffer("unmixing", torch.eye(dim))
        self.register_buffer("log_mixing", torch.zeros(()))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        x = self.loc.double() + self.scale.double() * (z.double() @ self.mixing.double())
        return TransformResult(x.to(z), self._log_det().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        u = (x.double() - self.loc.double()) / self.scale.double()
        return TransformResult((u @ self.unmixing.double()).to(x), -self._log_det().expand(len(x)))

    def _log_det(self) -> Tensor:
        return self.scale.log().sum() + self.log_mixing

    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        correlation = z.T @ (shares.unsqueeze(1) * z)
        values, vectors = torch.linalg.eigh(correlation)
        s = _shrinkage(z, shares, correlation, values)
        roots = ((1 - s) * values + s).sqrt()
        scaled = torch.tensor(self.scaled_columns)
        block = scaled.unsqueeze(1), scaled
        self.mixing[block] = (vectors * roots @ vectors.T).to(self.mixing)
        self.unmixing[block] = (vectors / roots @ vectors.T).to(self.unmixing)
        self.log_mixing.copy_(roots.log().sum())


def _shrinkage(z: Tensor, shares: Tensor, correlation: Tensor, values: Tensor) -> Tensor:
    """Return the weight of the identity in the shrunk correlation, a scalar from 0 to 1."""
    # Ledoit and Wolf: the variance of the entries over the squared distance from the identity. Rows
    # of unequal weights count as 1 / Σ shares² rows of equal weight.
    identity = torch.eye(len(values)).to(values)
    variance = shares @ z.square().sum(1).square() - correlation.square().sum()
    spread = (correlation - identity).square().sum()
    s = (shares.square().sum() * variance / spread.clamp(min=1e-30)).clamp(0, 1)
    # Eigenvalues of R: (1 − s) low + s ≥ MIN_EIGENVALUE_RATIO ((1 − s) high + s).
    low, high = values[0], values[-1]
    deficit = (MIN_EIGENVALUE_RATIO * high - low).clamp(min=0)  # zero for a single column
    return torch.maximum(s, deficit / (deficit + 1 - MIN_EIGENVALUE_RATIO))
