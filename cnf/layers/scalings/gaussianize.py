"""A Gaussianization of columns."""

from collections.abc import Sequence
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from cnf.layers.layer import TransformResult
from cnf.layers.scalings.quantiles import BIN_COUNTS, Array, normalizing_curve
from cnf.layers.scalings.rational_quadratic import RationalQuadratic
from cnf.layers.scalings.scaling import Scaling

MAX_KNOTS = BIN_COUNTS[-1] + 1


class Gaussianize(Scaling):
    """The marginal Gaussianization x_i = F_i⁻¹(Φ(z_i)) of each column.

        log |det| = −Σ ln ∂z_i/∂x_i

    F_i is the column's distribution function, an increasing curve with exponential tails through
    quantiles of the training rows, whose number cross-validation chooses
    (`cnf.layers.scalings.quantiles`). The field then has to model only the columns' dependence.

    Arguments are those of `Scaling`.

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

    follows: ClassVar[str | None] = "whiten"

    knots: Tensor
    normal: Tensor
    slope: Tensor
    last: Tensor
    shaped: Tensor

    def __init__(self, dim: int, circular: Sequence[int] = ()) -> None:
        super().__init__(dim, circular)
        self.register_buffer("knots", torch.linspace(-1, 1, MAX_KNOTS).repeat(dim, 1))
        self.register_buffer("normal", self.knots.clone())
        self.register_buffer("slope", torch.ones(dim, MAX_KNOTS))
        self.register_buffer("last", torch.full((dim, 1), MAX_KNOTS - 1))
        self.register_buffer("shaped", torch.zeros(dim, dtype=torch.bool))

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        u = torch.where(self.shaped, self._curves.inverse(z.T).T, z)
        return TransformResult(self.loc + self.scale * u, -self._normalize(u)[1])

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(*self._normalize((x - self.loc) / self.scale))

    def _normalize(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map standardised columns to normal ones, with the log-determinant from the data."""
        z, log_slope = self._curves.forward(u.T)
        log_det = torch.where(self.shaped, log_slope.T, 0.0).sum(1) - self.scale.log().sum()
        return torch.where(self.shaped, z.T, u), log_det

    @property
    def _curves(self) -> RationalQuadratic:
        """The curves from standardised to normal columns."""
        return RationalQuadratic(self.knots, self.normal, self.slope, self.last)

    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        weights = shares.cpu().numpy()
        for column, values in zip(self.scaled_columns, z.T.cpu().numpy(), strict=True):
            if not self._needs_curve(values, weights):
                continue
            curve = normalizing_curve(values, weights)
            count = curve.x.shape[1]
            buffers = (self.knots, self.normal, self.slope)
            for buffer, fitted in zip(buffers, curve[:3], strict=True):
                buffer[column, :count] = fitted[0].to(buffer)
                buffer[column, count:] = inf  # padding above the last knot
            self.last[column] = count - 1
            self.shaped[column] = True

    def _needs_curve(self, values: Array, weights: Array) -> bool:
        """Return whether a column gets a curve, else it is only standardised."""
        return True
