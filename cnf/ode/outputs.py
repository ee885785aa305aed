"""The states at the output times, gathered from the rows that pass them together."""

from __future__ import annotations

import torch
from torch import Tensor


class Outputs:
    """Collects pieces (rows, values) for each output time, and stacks them.

    Args:
        y0: The first state; the output at the first time.
        times: Number of output times.
    """

    def __init__(self, y0: Tensor, times: int) -> None:
        self.y0 = y0
        self.pieces: list[list[tuple[Tensor | None, Tensor]]] = [[] for _ in range(times)]
        self.add(0, None, y0)

    def add(self, index: int, rows: Tensor | None, values: Tensor) -> None:
        """The states of some rows (None: all) at an output time."""
        self.pieces[index].append((rows, values))

    def stack(self) -> Tensor:
        """Shape (times, *state); NaN where a row did not get."""
        return torch.stack([self._assemble(pieces) for pieces in self.pieces])

    def _assemble(self, pieces: list[tuple[Tensor | None, Tensor]]) -> Tensor:
        if len(pieces) == 1 and pieces[0][0] is None:
            return pieces[0][1]
        whole = torch.full_like(self.y0, torch.nan)
        if not pieces:
            return whole
        rows = torch.cat([rows for rows, _ in pieces if rows is not None])
        return whole.index_copy(0, rows, torch.cat([values for _, values in pieces]))
