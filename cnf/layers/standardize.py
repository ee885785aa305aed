"""Standardisation as a layer, so that log p is always in the data's own units."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cnf.layers.layer import Layer, Mapped


class Standardize(Layer):
    """x = loc + scale ∘ z, with the columns' mean and standard deviation; log |det| = Σ ln scale.

    The identity until it is fitted. Its numbers are buffers: training leaves them alone.

    Args:
        dim: Number of columns.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Example:
        >>> layer = Standardize(1).fit(torch.tensor([[0.0], [20.0]]))
        >>> z, log_det = layer.inverse(torch.tensor([[20.0]]))
        >>> z.item(), round(log_det.item(), 4)  # the second is -ln 10
        (1.0, -2.3026)
    """

    name: ClassVar[str] = "standardize"

    loc: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Tensor) -> Standardize:
        """Take mean and standard deviation (over n) from rows `x` of shape (rows, dim).

        Raises:
            ValueError: The shape does not fit, a value is not finite, or a column is constant.
        """
        if x.ndim != 2 or x.shape[1] != self.dim or len(x) < 2:
            raise ValueError(
                f"Expected at least 2 rows of {self.dim} columns; got shape {tuple(x.shape)}"
            )
        if not x.isfinite().all():
            raise ValueError("Expected finite values to standardise; got NaN or infinity")
        constant = constant_columns(x)
        if constant:
            raise ValueError(
                f"Expected columns that vary; constant: column {', '.join(map(str, constant))} "
                "(counted from 0). Leave it out: a constant has no density"
            )
        self.loc.copy_(x.double().mean(0))
        self.scale.copy_(x.double().std(0, correction=0))
        self.fitted.fill_(True)
        return self

    def push(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Into the data's units."""
        return Mapped(self.loc + self.scale * z, self.scale.log().sum().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Into standard units."""
        return Mapped((x - self.loc) / self.scale, -self.scale.log().sum().expand(len(x)))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim}

    def extra_repr(self) -> str:
        """The size and whether it is fitted, for the module's repr."""
        return f"dim={self.dim}, fitted={bool(self.fitted)}"


def constant_columns(x: Tensor) -> list[int]:
    """The columns of `x` (rows, columns) whose spread is no more than rounding leaves.

    Example:
        >>> constant_columns(torch.tensor([[1.0, 0.1], [2.0, 0.1]]))
        [1]
    """
    rows = x.double()
    spread = rows.std(0, correction=0)
    constant: list[int] = (spread <= 1e-12 * rows.abs().amax(0)).nonzero().flatten().tolist()
    return constant
