"""Batch shapes: of draws, and of vectors against contexts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Shape = int | Sequence[int]


def sizes(shape: Shape) -> torch.Size:
    """A shape of draws, for which a number will do.

    Example:
        >>> sizes(3), sizes((2, 3))
        (torch.Size([3]), torch.Size([2, 3]))
    """
    return torch.Size([shape] if isinstance(shape, int) else shape)


def per_row(vectors: Tensor, batch: Sequence[int]) -> Tensor:
    """Vectors for each row of a batch, which their own batch shape broadcasts to.

    Shapes: (..., size) → (rows, size), with as many rows as the batch has.

    Example:
        >>> per_row(torch.tensor([[1.0], [2.0]]), (2, 2)).flatten()
        tensor([1., 2., 1., 2.])
    """
    return vectors.expand(*batch, -1).reshape(prod(batch), vectors.shape[-1])


def check_tensors(**values: object) -> None:
    """Hold that all of these are tensors, or None.

    Raises:
        TypeError: One is not.

    Example:
        >>> check_tensors(x=torch.zeros(2), context=None)
        >>> check_tensors(x=[1.0, 2.0])
        Traceback (most recent call last):
        TypeError: Expected x to be a tensor; got list. torch.as_tensor(x) makes one of it
    """
    for name, value in values.items():
        if not (value is None or isinstance(value, Tensor)):
            raise TypeError(
                f"Expected {name} to be a tensor; got {type(value).__name__}. "
                f"torch.as_tensor({name}) makes one of it"
            )


def as_rows(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Vectors and their contexts broadcast against each other, as rows, and the batch shape.

    Args:
        x: Shape (..., dim).
        context: Shape (..., context_dim).

    Example:
        >>> rows, context, batch = as_rows(torch.zeros(3, 1, 2), torch.zeros(4, 5))
        >>> rows.shape, context.shape, batch
        (torch.Size([12, 2]), torch.Size([12, 5]), torch.Size([3, 4]))
    """
    if context is None:
        return per_row(x, x.shape[:-1]), None, x.shape[:-1]
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return per_row(x, batch), per_row(context, batch), batch
