"""Rows that are solved so many at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cnf.ode import Solution, SolveError

# Rows that are solved together at least, by repeating fewer: products of one to three rows are
# other kernels' in common BLAS, and round otherwise. That chooses other steps, so that in single
# precision a row alone would be off by up to 1e-5 nats from what it is among many.
FEW = 8


def chunks(count: int, max_batch: int | None) -> list[slice]:
    """Which of `count` rows are solved together; one chunk at least, and of all when None.

    Raises:
        ValueError: `max_batch` is below 1.

    Example:
        >>> chunks(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if max_batch is None:
        return [slice(0, count)]
    if max_batch < 1:
        raise ValueError(f"Expected max_batch of at least 1; got {max_batch}")
    starts = range(0, max(1, count), max_batch)
    return [slice(start, min(count, start + max_batch)) for start in starts]


def in_chunks(
    solve: Callable[[Tensor, Tensor | None], Tensor],
    rows: Tensor,
    context: Tensor | None,
    max_batch: int | None,
) -> Tensor:
    """What `solve` makes of rows and their contexts, so many at a time.

    Args:
        solve: Of rows (n, columns) and contexts, gives a tensor of shape (n, …).
        rows: Shape (rows, columns).
        context: Shape (rows, context_dim).
        max_batch: The most rows in one solve; all when None.

    Raises:
        SolveError: From it, naming rows by their numbers among all.
    """
    parts = []
    for chunk in chunks(len(rows), max_batch):
        count = chunk.stop - chunk.start
        try:
            given = None if context is None else filled(context[chunk])
            parts.append(solve(filled(rows[chunk]), given)[:count])
        except SolveError as error:
            first = None if max_batch is None else chunk.start
            raise SolveError(_without_copies(error.solution, count), first=first) from None
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def filled(rows: Tensor) -> Tensor:
    """Rows (n, …), all of them repeated where they are few.

    Example:
        >>> filled(torch.zeros(3, 2)).shape, filled(torch.zeros(30, 2)).shape
        (torch.Size([9, 2]), torch.Size([30, 2]))
    """
    if not 0 < len(rows) < FEW:
        return rows
    return rows.repeat(-(-FEW // len(rows)), 1)


def _without_copies(solution: Solution, count: int) -> Solution:
    """A solution's first rows."""
    return replace(
        solution,
        ys=solution.ys[:, :count],
        row_status=solution.row_status[:count],
        rows=tuple(row for row in solution.rows if row < count),
        last_times=solution.last_times[:count],
        last_states=solution.last_states[:count],
    )
