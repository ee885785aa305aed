"""Layers that bring the data to a common scale; log p stays in the data's own units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cnf.layers.layer import Layer
from cnf.utils.angles import circular_columns, other_columns

MOST_LOOKED_AT = 10_000  # rows that tell how a column varies
# Of a column's spread: numbers that a dtype has are less apart. At 64 of 100 the NLL came out 0.9
# nats below the truth after 60 steps.
COARSE = 0.01


class Scaling(Layer):
    """A layer of columns' own numbers, which are taken from the training rows, once.

    The identity until it is fitted. Its numbers are buffers: training leaves them alone.

    Args:
        dim: Number of columns.
        circular: Those that are angles, which are left as they are.
    """

    circular: tuple[int, ...]
    loc: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, dim: int, circular: Sequence[int] = ()) -> None:
        super().__init__()
        self.dim = dim
        self.circular = circular_columns(circular, dim)
        self.scaled = other_columns(self.circular, dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Tensor, weight: Tensor | None = None) -> Self:
        """Take its numbers from rows `x` of shape (rows, dim).

        Args:
            x: At least two rows.
            weight: Shape (rows,), at least 0: how often each row counts. All alike when None.

        Raises:
            ValueError: The shape does not fit, a value is not finite, a column is constant, or its
                dtype hardly tells its values apart.
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
        for column, coarse in coarse_columns(x, x.dtype).items():
            raise ValueError(f"Expected columns of numbers apart; got column {column}, {coarse}")
        if self.scaled:
            self._fit(x.double()[:, self.scaled], weight)
        self.fitted.fill_(True)
        return self

    def _fit(self, rows: Tensor, weight: Tensor | None) -> None:
        """Take its numbers from the columns that it scales."""
        shares = rows.new_ones(len(rows)) if weight is None else weight.to(rows)
        shares = shares / shares.sum()
        mean = shares @ rows
        scale = (shares @ (rows - mean).square()).sqrt()
        self.loc[self.scaled] = mean.to(self.loc)
        self.scale[self.scaled] = scale.to(self.scale)
        self._fit_standard((rows - mean) / scale, shares)

    @abstractmethod
    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        """Take what else is needed from standardised rows and their shares, which sum to 1."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim, "circular": [*self.circular]}

    def extra_repr(self) -> str:
        """The size, the angles and whether it is fitted, for the module's repr."""
        return f"dim={self.dim}, circular={self.circular}, fitted={bool(self.fitted)}"


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


def coarse_columns(x: Tensor, dtype: torch.dtype = torch.float32) -> dict[int, str]:
    """The columns of `x` (rows, columns) whose values a dtype hardly tells apart, and how so.

    Around 1e9 single precision has one number in 64: of a column that varies by 100 there a flow
    would find a few values, each with a density that grows for as long as one trains.

    Example:
        >>> rows = torch.tensor([[1e9 - 100, 0.5], [1e9, 0.7], [1e9 + 100, 0.9]]).double()
        >>> print(coarse_columns(rows)[0])
        which varies by 87 around 1e+09, where float32 has one number in 64: subtract 1e+09 from it
    """
    rows = x[:: -(-len(x) // MOST_LOOKED_AT)].double()
    low, middle, high = rows.quantile(rows.new_tensor([0.16, 0.5, 0.84]), 0)
    spread = torch.where(low < high, (high - low) / 2, rows.std(0, correction=0))
    gap = 2.0 ** middle.abs().clamp(min=1e-300).log2().floor() * torch.finfo(dtype).eps
    coarse = (gap > COARSE * spread) & (spread > 1e-12 * middle.abs())
    return {
        i: f"which varies by {spread[i]:.2g} around {middle[i]:.6g}, where "
        f"{str(dtype).removeprefix('torch.')} has one number in {gap[i]:.2g}: subtract "
        f"{middle[i]:.6g} from it"
        for i in coarse.nonzero().flatten().tolist()
    }
