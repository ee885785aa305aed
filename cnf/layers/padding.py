"""Copies of rows, beside which few rows are solved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from cnf.ode import PerRow, Solution

# Rows that are solved together at least, by repeating fewer: products of one to three rows are
# other kernels' in common BLAS, and round otherwise. That chooses other steps, so that in single
# precision a row alone would be off by up to 1e-5 nats from what it is among many.
FEW = 8


def copies(rows: int) -> int:
    """Return how many times a number of rows is repeated in a solve.

    Example:
        >>> copies(3), copies(30), copies(0)
        (3, 1, 1)
    """
    return -(-FEW // rows) if rows else 1


def repeated(y: Tensor, args: Any, times: int) -> tuple[Tensor, Any]:
    """Repeat a state's rows, with all that belongs to them in `args`.

    A copy has its row's own probes, so that it fails only where the row does.

    Example:
        >>> import torch
        >>> y, args = repeated(torch.zeros(3, 2), [PerRow(torch.ones(3, 4))], times=3)
        >>> y.shape, args[0].tensor.shape
        (torch.Size([9, 2]), torch.Size([9, 4]))
    """
    if times == 1:
        return y, args

    def repeat(leaf: Any) -> Any:
        return PerRow(_repeated(leaf.tensor, times)) if isinstance(leaf, PerRow) else leaf

    rows = tree_map(repeat, args, is_leaf=lambda leaf: isinstance(leaf, PerRow))
    return _repeated(y, times), rows


def without_copies(solution: Solution, rows: int) -> Solution:
    """Return the solution of the first rows."""
    if rows == len(solution.row_status):
        return solution
    return replace(
        solution,
        ys=solution.ys[:, :rows],
        row_status=solution.row_status[:rows],
        stats=solution.stats.first(rows),
        rows=tuple(row for row in solution.rows if row < rows),
        last_times=solution.last_times[:rows],
        last_states=solution.last_states[:rows],
    )


def _repeated(rows: Tensor, times: int) -> Tensor:
    return rows.repeat(times, *(1,) * (rows.ndim - 1))
