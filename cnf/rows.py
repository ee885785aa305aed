"""Rows to train and validate on: data with its context, checked, on the flow's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.flow import Flow


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and their context.

    Attributes:
        x: Shape (n, dim).
        context: Shape (n, context_dim), or None.
    """

    x: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.x[index], None if self.context is None else self.context[index])

    def split(self, size: int) -> Iterator[Rows]:
        """Consecutive parts of `size` rows, the last one with what is left."""
        for i in range(0, len(self), size):
            yield self[i : i + size]

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Rows]:
        """Batches of `size` rows for ever, in a new random order each time through."""
        size = min(size, len(self))
        while True:
            order = torch.randperm(len(self), generator=generator).to(self.x.device)
            for i in range(0, len(self) - size + 1, size):
                yield self[order[i : i + size]]


def rows_for(flow: Flow, name: str, x: Tensor, context: Tensor | None) -> Rows:
    """`x` and `context` as rows in the flow's dtype and on its device.

    Raises:
        ValueError: A shape does not fit, or a value is not finite; `name` says of what.
    """
    if x.ndim != 2 or x.shape[1] != flow.dim or not len(x):
        raise ValueError(
            f"Expected {name} of shape (rows, {flow.dim}) with at least one row; "
            f"got {tuple(x.shape)}"
        )
    if context is not None and (context.ndim != 2 or len(context) != len(x)):
        raise ValueError(
            f"Expected a context of shape ({len(x)}, context_dim) for {name}; "
            f"got {tuple(context.shape)}"
        )
    rows = Rows(x.to(flow.like), None if context is None else context.to(flow.like))
    _check_finite(name, rows.x)
    if rows.context is not None:
        _check_finite(f"the context of {name}", rows.context)
    return rows


def hold_out(rows: Rows, generator: torch.Generator) -> tuple[Rows, Rows]:
    """A random nine tenths of the rows, and the other tenth.

    Raises:
        ValueError: There is only one row.
    """
    if len(rows) < 2:
        raise ValueError("Expected at least 2 rows to hold one out for validation; got 1")
    order = torch.randperm(len(rows), generator=generator).to(rows.x.device)
    tenth = max(1, len(rows) // 10)
    return rows[order[tenth:]], rows[order[:tenth]]


def _check_finite(name: str, values: Tensor) -> None:
    if values.isfinite().all():
        return
    row, column = (~values.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"Expected finite numbers in {name}; got {values[row, column].item()} in row {row}, "
        f"column {column} (counted from 0)"
    )
