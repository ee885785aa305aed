"""Batch shapes of draws, vectors and contexts."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Shape = int | Sequence[int]


def sizes(shape: Shape) -> torch.Size:
    """Return a shape of draws, given as a shape or a number.

    Example:
        >>> sizes(3), sizes((2, 3))
        (torch.Size([3]), torch.Size([2, 3]))
    """
    return torch.Size([shape] if isinstance(shape, int) else shape)


def per_row(vectors: Tensor, batch: Sequence[int]) -> Tensor:
    """Return a vector for each row of a batch, to which the vectors' batch shape broadcasts.

    Shapes: (..., size) → (rows, size), with rows = prod(batch).

    Example:
        >>> per_row(torch.tensor([[1.0], [2.0]]), (2, 2)).flatten()
        tensor([1., 2., 1., 2.])
    """
    return vectors.expand(*batch, -1).reshape(prod(batch), vectors.shape[-1])


def check_tensors(**values: object) -> None:
    """Check that all values are tensors or None.

    Raises:
        TypeError: A value is neither.

    Example:
        >>> check_tensors(x=torch.zeros(2), context=None)
        >>> check_tensors(x=[1.0, 2.0])
        Traceback (most recent call last):
        TypeError: Expected x to be a tensor; got list: pass torch.as_tensor(x)
    """
    for name, value in values.items():
        if not (value is None or isinstance(value, Tensor)):
            raise TypeError(
                f"Expected {name} to be a tensor; got {type(value).__name__}: "
                f"pass torch.as_tensor({name})"
            )


def as_rows(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Broadcast vectors and contexts against each other and flatten them to rows.

    Shapes: (..., dim), (..., context_dim) → (rows, dim), (rows, context_dim), the batch shape.

    Example:
        >>> rows, context, batch = as_rows(torch.zeros(3, 1, 2), torch.zeros(4, 5))
        >>> rows.shape, context.shape, batch
        (torch.Size([12, 2]), torch.Size([12, 5]), torch.Size([3, 4]))
    """
    if context is None:
        return per_row(x, x.shape[:-1]), None, x.shape[:-1]
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return per_row(x, batch), per_row(context, batch), batch
