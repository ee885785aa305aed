"""Rows with their contexts: the variables x, and those that x is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.datasets import Table

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ContextRows:
    """Rows and their contexts."""

    x: Array  # the modelled columns, shape (n, columns)
    context: Array  # shape (n, context columns): (n, 0) without a context

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice) -> ContextRows:
        return ContextRows(self.x[index], self.context[index])

    def at(self, places: NDArray[np.intp]) -> ContextRows:
        """Return the rows at some places, counted from 0."""
        return ContextRows(self.x[places], self.context[places])

    def joined(self) -> Array:
        """Return all columns in one array, the context's first."""
        return np.hstack([self.context, self.x])

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x and the context as tensors like another one, with None for no context."""
        return torch.from_numpy(self.x).to(like), context_tensor(self.context, like)


def no_context(n: int) -> Array:
    """Return the empty context of `n` rows, shape (n, 0)."""
    return np.empty((n, 0))


def context_tensor(context: Array, like: Tensor) -> Tensor | None:
    """Return a context (n, context columns) as a tensor; None where it has no columns."""
    return torch.from_numpy(context).to(like) if context.shape[1] else None


def joined_table(context: Table, x: Table) -> Table:
    """Return one table of contexts and of the columns given them."""
    return Table(
        x.name,
        np.hstack([context.values, x.values]),
        (*context.columns, *x.columns),
        categories={**context.categories, **x.categories},
        types={**context.types, **x.types},
    )
