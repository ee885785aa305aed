"""Angles in radians among other columns: which they are, and the shortest way between two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import pi

import torch
from torch import Tensor


def circular_columns(circular: Sequence[int], dim: int) -> tuple[int, ...]:
    """The columns that are angles, checked and in order.

    Args:
        circular: The columns, counted from 0.
        dim: How many there are in all.

    Raises:
        ValueError: One is not among them, or is named twice.

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
    """The columns that are not angles.

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


def wrapped(angles: Tensor) -> Tensor:
    """The same angles in [−π, π).

    Example:
        >>> wrapped(torch.tensor([3.0, 4.0, -4.0]))
        tensor([ 3.0000, -2.2832,  2.2832])
    """
    return half_open(torch.remainder(angles + pi, 2 * pi) - pi, -pi, pi)


def wrapped_columns(x: Tensor, circular: tuple[int, ...]) -> Tensor:
    """The same points with their angles in [−π, π).

    Args:
        x: Points, shape (..., dim).
        circular: Which columns are angles.

    Example:
        >>> wrapped_columns(torch.tensor([[4.0, 4.0]]), (0,))
        tensor([[-2.2832,  4.0000]])
    """
    if not circular:
        return x
    return torch.where(_mask(circular, x.shape[-1], x.device), wrapped(x), x)


def nearest(x: Tensor, to: Tensor, circular: tuple[int, ...]) -> Tensor:
    """The same points with each angle turned round until it is the nearest to another point's.

    The straight line between the two is then the geodesic of circle × line.

    Args:
        x: Points, shape (rows, dim).
        to: The others, alike.
        circular: Which columns are angles.

    Example:
        >>> nearest(torch.tensor([[3.0, 3.0]]), torch.tensor([[-3.0, -3.0]]), (0,))
        tensor([[-3.2832,  3.0000]])
    """
    if not circular:
        return x
    return torch.where(_mask(circular, x.shape[1], x.device), to + wrapped(x - to), x)


@lru_cache
def _mask(circular: tuple[int, ...], dim: int, device: torch.device) -> Tensor:
    """Which columns are angles, made once for each device: to bring it to a GPU is to wait."""
    return torch.tensor([column in circular for column in range(dim)], device=device)
