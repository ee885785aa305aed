"""A standardisation of columns."""

from torch import Tensor

from cnf.layers.layer import TransformResult
from cnf.layers.scalings.scaling import Scaling


class Standardize(Scaling):
    """The standardisation x = loc + scale ∘ z by means and deviations; log |det| = Σ ln scale.

    Arguments are those of `Scaling`.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> import torch
        >>> layer = Standardize(1).fit(torch.tensor([[0.0], [20.0]]))
        >>> z, log_det = layer.inverse(torch.tensor([[20.0]]))
        >>> z.item(), round(log_det.item(), 4)  # the second is -ln 10
        (1.0, -2.3026)
    """

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult(self.loc + self.scale * z, self.scale.log().sum().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return TransformResult((x - self.loc) / self.scale, -self.scale.log().sum().expand(len(x)))

    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        """Fit nothing further."""
