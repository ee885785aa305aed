"""Columns of angles in radians: which they are, wrapping, and nearest images."""

from collections.abc import Sequence
from functools import lru_cache
from math import pi

import torch
from torch import Tensor


def circular_columns(circular: Sequence[int], dim: int) -> tuple[int, ...]:
    """Check and sort the columns, of `dim` counted from 0, that are angles.

    Raises:
        ValueError: A column is out of range, or given twice.

    Example:
        >>> circular_columns([3, 0], dim=4)
        (0, 3)
    """
    found = tuple(sorted(circular))
    if len(set(found)) < len(found) or not set(found) <= set(range(dim)):
        raise ValueError(
            f"Expected circular columns from 0 to {dim - 1}, each once; got {list(circular)}"
        )
    return found


def other_columns(circular: Sequence[int], dim: int) -> list[int]:
    """Return the columns that are not angles.

    Example:
        >>> other_columns((0, 3), dim=4)
        [1, 2]
    """
    return [column for column in range(dim) if column not in circular]


def half_open(x: Tensor, low: float, high: float) -> Tensor:
    """Move values that rounding has taken to a circle's upper end to the lower one.

    Example:
        >>> half_open(torch.tensor([0.0, 359.0, 360.0]), 0.0, 360.0)
        tensor([  0., 359.,   0.])
    """
    return torch.where(x >= high, low, x)


def wrap(angles: Tensor) -> Tensor:
    """Wrap angles into [−π, π).

    Example:
        >>> wrap(torch.tensor([3.0, 4.0, -4.0]))
        tensor([ 3.0000, -2.2832,  2.2832])
    """
    return half_open(torch.remainder(angles + pi, 2 * pi) - pi, -pi, pi)


def wrap_columns(x: Tensor, circular: tuple[int, ...]) -> Tensor:
    """Wrap the angles of points x (..., dim) into [−π, π).

    Example:
        >>> wrap_columns(torch.tensor([[4.0, 4.0]]), (0,))
        tensor([[-2.2832,  4.0000]])
    """
    if not circular:
        return x
    return torch.where(_mask(circular, x.shape[-1], x.device), wrap(x), x)


def nearest_image(x: Tensor, to: Tensor, circular: tuple[int, ...]) -> Tensor:
    """Shift angles by whole turns to the images nearest to other points.

    The straight line between the two points is then the geodesic of circle × line.

    Shapes: (rows, dim), (rows, dim) → (rows, dim).

    Example:
        >>> nearest_image(torch.tensor([[3.0, 3.0]]), torch.tensor([[-3.0, -3.0]]), (0,))
        tensor([[-3.2832,  3.0000]])
    """
    if not circular:
        return x
    return torch.where(_mask(circular, x.shape[1], x.device), to + wrap(x - to), x)


@lru_cache
def _mask(circular: tuple[int, ...], dim: int, device: torch.device) -> Tensor:
    """Return a mask of the angles, cached for each device, since a copy to a GPU waits for it."""
    return torch.tensor([column in circular for column in range(dim)], device=device)
