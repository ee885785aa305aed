"""Making each column normal, as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from cnf.layers.layer import TransformResult
from cnf.layers.scalings.quantiles import BINS, normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic
from cnf.layers.scalings.scaling import Scaling

KNOTS = BINS[-1] + 1


class Gaussianize(Scaling):
    """x_i = F_i⁻¹(Φ(z_i)): each column for itself from a standard normal one.

    F_i is the column's distribution function, an increasing curve through quantiles of the training
    rows whose number is chosen by cross-validation (`cnf.layers.scalings.quantiles`), with exponential
    tails. Spikes, edges, gaps and skewness of single columns are then no longer the field's
    business, which is left with how they depend on each other.
    log |det| = −Σ ln ∂z_i/∂x_i.

    The identity until it is fitted. Its numbers are buffers: training leaves them alone.

    Args:
        dim: Number of columns.
        circular: Those that are angles, which are left as they are.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Chen and Gopinath (2000), Gaussianization; Laparra, Camps-Valls and Malo (2011),
    Iterative Gaussianization: from ICA to random rotations.

    Example:
        >>> x = torch.randn(1000, 1, dtype=torch.float64).exp()
        >>> layer = Gaussianize(1).double().fit(x)
        >>> z, log_det = layer.inverse(x)
        >>> skewness = ((z - z.mean()) / z.std()).pow(3).mean()
        >>> abs(skewness.item()) < 0.2
        True
    """

    name: ClassVar[str] = "gaussianize"

    knots: Tensor
    normal: Tensor
    slope: Tensor
    last: Tensor
    shaped: Tensor

    def __init__(self, dim: int, circular: Sequence[int] = ()) -> None:
        super().__init__(dim, circular)
        self.register_buffer("knots", torch.linspace(-1, 1, KNOTS).repeat(dim, 1))
        self.register_buffer("normal", self.knots.clone())
        self.register_buffer("slope", torch.ones(dim, KNOTS))
        self.register_buffer("last", torch.full((dim, 1), KNOTS - 1))
        self.register_buffer("shaped", torch.zeros(dim, dtype=torch.bool))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into the data's units."""
        u = torch.where(self.shaped, self._curves.backward(z.T).T, z)
        return TransformResult(self.loc + self.scale * u, -self._normalized(u)[1])

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into normal columns."""
        return TransformResult(*self._normalized((x - self.loc) / self.scale))

    def _normalized(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Normal columns from standardised ones, and the log-determinant from the data's."""
        z, log_slope = self._curves.forward(u.T)
        log_det = torch.where(self.shaped, log_slope.T, 0.0).sum(1) - self.scale.log().sum()
        return torch.where(self.shaped, z.T, u), log_det

    @property
    def _curves(self) -> RationalQuadratic:
        """From standardised columns to normal ones."""
        return RationalQuadratic(self.knots, self.normal, self.slope, self.last)

    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        """The columns' curves."""
        weights = shares.cpu().numpy()
        for column, values in zip(self.scaled, z.T.cpu().numpy(), strict=True):
            curve = normalizing_curve(values, weights)
            count = curve.x.shape[1]
            for kept, found in zip((self.knots, self.normal, self.slope), curve[:3], strict=True):
                kept[column, :count] = found[0].to(kept)
                kept[column, count:] = inf  # what stands behind the last is above it
            self.last[column] = count - 1
            self.shaped[column] = True
