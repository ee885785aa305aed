"""Rows as the programs see them: x, and the context that it is modelled given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and their contexts.

    Attributes:
        x: Shape (n, columns).
        context: Shape (n, context columns); without a context it has no columns, but n rows still.
    """

    x: Array
    context: Array

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice) -> Rows:
        return Rows(self.x[index], self.context[index])

    def joined(self) -> Array:
        """All columns side by side, the context's first."""
        return np.hstack([self.context, self.x])

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """X and the context as a flow takes them: None where there is no context.

        Args:
            like: A tensor of the wanted dtype, on the wanted device.
        """
        return torch.from_numpy(self.x).to(like), context_tensor(self.context, like)


def no_context(n: int) -> Array:
    """The context of `n` rows that have none."""
    return np.empty((n, 0))


def context_tensor(context: Array, like: Tensor) -> Tensor | None:
    """A context (n, context columns) as a flow takes it: None where it has no columns."""
    return torch.from_numpy(context).to(like) if context.shape[1] else None
