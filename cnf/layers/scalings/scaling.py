"""The base class of scalings, and checks that columns can be scaled."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from cnf.layers.layer import Layer
from cnf.utils.angles import circular_columns, other_columns

MAX_SPREAD_ROWS = 10_000  # rows that estimate a column's spread
# Largest distance of neighbouring numbers of a dtype, relative to a column's spread. At a ratio of
# 0.64 the NLL was 0.9 nats below the truth after 60 steps.
MAX_RELATIVE_SPACING = 0.01


class Scaling(Layer):
    """A layer whose statistics of columns are fitted to the training rows, once.

    The layer is the identity until it is fitted. Its statistics are buffers, without gradients, and
    log p stays in the data's units.

    Args:
        dim: Number of columns.
        circular: The columns that are angles, which are left unchanged.

    Attributes:
        follows: The scaling, a name in `SCALINGS`, that `cnf.ffjord` puts on its base side.
    """

    follows: ClassVar[str | None] = None
    circular: tuple[int, ...]
    loc: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, dim: int, circular: Sequence[int] = ()) -> None:
        super().__init__()
        self.dim = dim
        self.circular = circular_columns(circular, dim)
        self.scaled_columns = other_columns(self.circular, dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Tensor, weight: Tensor | None = None) -> Self:
        """Fit the statistics to rows `x`.

        Args:
            x: At least two rows, shape (rows, dim).
            weight: Weights of the rows, at least 0, shape (rows,); equal when None.

        Raises:
            ValueError: The shape does not fit, a value is not finite, a column is constant, or its
                dtype hardly resolves its values.
        """
        if x.ndim != 2 or x.shape[1] != self.dim or len(x) < 2:
            raise ValueError(
                f"Expected at least 2 rows of {self.dim} columns; got shape {tuple(x.shape)}"
            )
        if not x.isfinite().all():
            raise ValueError(
                "Expected finite values to standardise; got NaN or infinity: drop or fill them"
            )
        constant = constant_columns(x)
        if constant:
            raise ValueError(
                f"Expected columns that vary; got constant: column {', '.join(map(str, constant))} "
                "(counted from 0): leave it out, since a constant has no density"
            )
        for column, coarse in coarse_columns(x, x.dtype).items():
            raise ValueError(
                f"Expected columns whose dtype resolves their values; got column {column}, {coarse}"
            )
        if self.scaled_columns:
            self._fit(x.double()[:, self.scaled_columns], weight)
        self.fitted.fill_(True)
        return self

    def _fit(self, rows: Tensor, weight: Tensor | None) -> None:
        shares = rows.new_ones(len(rows)) if weight is None else weight.to(rows)
        shares = shares / shares.sum()
        mean = shares @ rows
        scale = (shares @ (rows - mean).square()).sqrt()
        self.loc[self.scaled_columns] = mean.to(self.loc)
        self.scale[self.scaled_columns] = scale.to(self.scale)
        self._fit_standard((rows - mean) / scale, shares)

    @abstractmethod
    def _fit_standard(self, z: Tensor, shares: Tensor) -> None:
        """Fit further statistics to standardised rows and their weights, which sum to 1."""

    def extra_repr(self) -> str:
        return f"dim={self.dim}, circular={self.circular}, fitted={bool(self.fitted)}"


def constant_columns(x: Tensor) -> list[int]:
    """Return the columns of `x` (rows, columns) whose spread is no more than rounding.

    Example:
        >>> constant_columns(torch.tensor([[1.0, 0.1], [2.0, 0.1]]))
        [1]
    """
    rows = x.double()
    spread = rows.std(0, correction=0)
    constant: list[int] = (spread <= 1e-12 * rows.abs().amax(0)).nonzero().flatten().tolist()
    return constant


def coarse_columns(x: Tensor, dtype: torch.dtype = torch.float32) -> dict[int, str]:
    """Return the columns of `x` (rows, columns) whose values a dtype hardly resolves, with reasons.

    A flow would find a few values there, each with a density that grows throughout training.

    Example:
        >>> rows = torch.tensor([[1e9 - 100, 0.5], [1e9, 0.7], [1e9 + 100, 0.9]]).double()
        >>> print(coarse_columns(rows)[0])
        which varies by 87 around 1e+09, where float32 has one number in 64: subtract 1e+09 from it
    """
    rows = x[:: -(-len(x) // MAX_SPREAD_ROWS)].double()
    low, middle, high = rows.quantile(rows.new_tensor([0.16, 0.5, 0.84]), 0)
    spread = torch.where(low < high, (high - low) / 2, rows.std(0, correction=0))
    gap = 2.0 ** middle.abs().clamp(min=1e-300).log2().floor() * torch.finfo(dtype).eps
    coarse = (gap > MAX_RELATIVE_SPACING * spread) & (spread > 1e-12 * middle.abs())
    return {
        i: f"which varies by {spread[i]:.2g} around {middle[i]:.6g}, where "
        f"{str(dtype).removeprefix('torch.')} has one number in {gap[i]:.2g}: subtract "
        f"{middle[i]:.6g} from it"
        for i in coarse.nonzero().flatten().tolist()
    }
