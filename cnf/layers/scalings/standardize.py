"""Standardisation as a layer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cnf.layers.layer import TransformResult
from cnf.layers.scalings.scaling import Scaling


class Standardize(Scaling):
    """x = loc + scale ∘ z, with the columns' mean and standard deviation; log |det| = Σ ln scale.

    The identity until it is fitted. Its numbers are buffers: training leaves them alone.

    Args:
        dim: Number of columns.
        circular: Those that are angles, which are left as they are.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> import torch
        >>> layer = Standardize(1).fit(torch.tensor([[0.0], [20.0]]))
        >>> z, log_det = layer.inverse(torch.tensor([[20.0]]))
        >>> z.item(), round(log_det.item(), 4)  # the second is -ln 10
        (1.0, -2.3026)
    """

    name: ClassVar[str] = "standardize"

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into the data's units."""
        return TransformResult(self.loc + self.scale * z, self.scale.log().sum().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Into standard units."""
        return TransformResult((x - self.loc) / self.scale, -self.scale.log().sum().expand(len(x)))

    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        """Mean and standard deviation are all it has."""
