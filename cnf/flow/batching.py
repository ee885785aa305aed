"""Batches of rows, each small enough for one solve."""

from collections.abc import Callable

import torch
from torch import Tensor

from cnf.ode import SolveError, Status

MAX_REDRAWN = 0.01  # of the base draws
FEW_REDRAWN = 10  # which are, whatever their share


def chunks(count: int, max_batch: int | None) -> list[slice]:
    """Return the slices of `count` rows, at least one, each of at most `max_batch` if not None.

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
    """Apply `solve` to at most `max_batch` rows and their contexts at a time; all when None.

    Shapes: `solve`: (n, columns), (n, context_dim) → (n, …), for chunks of all rows.

    Raises:
        SolveError: `solve` raises it; rows are named by their numbers among all rows.
    """
    parts = []
    for chunk in chunks(len(rows), max_batch):
        try:
            parts.append(solve(rows[chunk], None if context is None else context[chunk]))
        except SolveError as error:
            if max_batch is None:
                raise
            raise SolveError(error.solution, first=chunk.start) from None
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def carry_or_redraw(
    carry: Callable[[Tensor, Tensor | None], Tensor],
    draw: Callable[[torch.Size], Tensor],
    z: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Return what base draws are carried to, where those without a preimage are drawn anew.

    Next to a fold of explicit steps a base draw may have none. The others follow the density,
    divided by its integral.

    Args:
        carry: Base draws (n, dim) with their contexts → (n, …).
        draw: A shape → base draws.
        z: Base draws (n, dim).
        context: Their contexts (n, context_dim).

    Raises:
        SolveError: `carry` fails for another reason, or for more than a hundredth of the draws.
    """
    lost = 0
    while True:
        try:
            return carry(z, context)
        except SolveError as error:
            rows = [*error.solution.rows]
            lost += len(rows)
            others = (error.solution.row_status[rows] != Status.NO_INVERSE).any()
            if others or lost > FEW_REDRAWN + MAX_REDRAWN * len(z):
                raise
            anew = draw(torch.Size((len(rows),))).reshape(len(rows), -1).to(z)
            z = z.index_copy(0, torch.tensor(rows, device=z.device), anew)
