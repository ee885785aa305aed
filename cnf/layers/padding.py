"""Padding of small batches by copies of their rows."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cnf.ode import PerRow, Solution

# Smallest number of rows in a solve: for one to three rows common BLAS libraries use other kernels,
# which round differently. The solver then chooses other steps, and in single precision a row alone
# would differ by up to 1e-5 nats from the same row among many.
MIN_BATCH = 8


def pad_batch(y: Tensor, args: Any) -> tuple[Tensor, Any]:
    """Repeat the rows of a state (rows, width), and `PerRow` arguments, up to `MIN_BATCH` at least.

    A copy keeps the probes of its row, so that it fails only where the row does.

    Example:
        >>> y, args = pad_batch(torch.zeros(3, 2), [PerRow(torch.ones(3, 4))])
        >>> y.shape, args[0].tensor.shape
        (torch.Size([9, 2]), torch.Size([9, 4]))
    """
    times = -(-MIN_BATCH // len(y)) if len(y) else 1
    if times == 1:
        return y, args

    def repeat(leaf: Any) -> Any:
        return PerRow(torch.cat([leaf.tensor] * times)) if isinstance(leaf, PerRow) else leaf

    rows = tree_map(repeat, args, is_leaf=lambda leaf: isinstance(leaf, PerRow))
    return torch.cat([y] * times), rows


def take_per_row(args: Any, rows: Tensor | slice) -> Any:
    """Return arguments with the entries of some rows in `PerRow`.

    Example:
        >>> take_per_row({"context": PerRow(torch.arange(3))}, slice(2))["context"].tensor
        tensor([0, 1])
    """

    def take(leaf: Any) -> Any:
        return PerRow(leaf.tensor[rows]) if isinstance(leaf, PerRow) else leaf

    return tree_map(take, args, is_leaf=lambda leaf: isinstance(leaf, PerRow))


def pad_rows(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Repeat rows (rows, width), each with its context if any, up to `MIN_BATCH` at least.

    Example:
        >>> x, context = pad_rows(torch.zeros(3, 2), None)
        >>> x.shape, context
        (torch.Size([9, 2]), None)
    """
    x, args = pad_batch(x, None if context is None else PerRow(context))
    return x, args and args.tensor


def drop_padding(solution: Solution, rows: int) -> Solution:
    """Return the solution of the first `rows` rows."""
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
