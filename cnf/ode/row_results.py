"""Results of the rows of a batch: their statuses, and their last states."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.ode.controllers import Array
from cnf.ode.solution import Status

STATUSES = tuple(Status)
NOT_FINITE = STATUSES.index(Status.NOT_FINITE)


class RowStatus:
    """The status of each row of a batch, how far it got, and its state there."""

    def __init__(self, y0: Tensor) -> None:
        batch = y0.shape[0] if y0.ndim else 1
        self.codes = np.zeros(batch, dtype=np.int8)  # positions in `STATUSES`
        self.fractions: Array = np.zeros(batch)  # of the way to the last time
        self.states = y0.detach()

    @property
    def statuses(self) -> NDArray[np.object_]:
        """Each row's status."""
        named: NDArray[np.object_] = np.array(STATUSES, dtype=object)[self.codes]
        return named

    def mark(self, rows: NDArray[np.int64], status: Status) -> None:
        """Set the status of failed rows, unless they have failed before."""
        fresh = rows[self.codes[rows] == 0]
        self.codes[fresh] = STATUSES.index(status)

    def store(self, rows: Tensor | None, fractions: Array, states: Tensor) -> None:
        """Store how far some rows (None: all) got, and their states there."""
        if rows is None:
            self.fractions[:], self.states = fractions, states.detach()
            return
        self.fractions[rows.cpu().numpy()] = fractions
        self.states = self.states.index_copy(0, rows, states.detach())

    def worst_first(self, ratio: Tensor | None) -> tuple[int, ...]:
        """Return the failed rows: first those not finite, then by decreasing error ratio."""
        rows = np.flatnonzero(self.codes)
        error = np.zeros(len(self.codes))
        if len(rows) and ratio is not None and ratio.ndim:
            size = ratio.detach().abs().nan_to_num(nan=torch.inf).reshape(len(error), -1)
            error = size.amax(1).double().cpu().numpy()
        error[self.codes == NOT_FINITE] = np.inf
        return tuple(rows[np.argsort(-error[rows], kind="stable")].tolist())


class Ends:
    """The states at the last time, collected from the rows as they get there."""

    def __init__(self, y0: Tensor) -> None:
        self.y0 = y0
        self.found: list[tuple[Tensor | None, Tensor]] = []

    def add(self, rows: Tensor | None, values: Tensor) -> None:
        """Add the states of some rows (None: all)."""
        self.found.append((rows, values))

    def stack(self) -> Tensor:
        """Return the first and the last states; NaN where a row did not get there."""
        return torch.stack([self.y0, self._assemble()])

    def _assemble(self) -> Tensor:
        if len(self.found) == 1 and self.found[0][0] is None:
            return self.found[0][1]
        whole = torch.full_like(self.y0, torch.nan)
        if not self.found:
            return whole
        rows = torch.cat([rows for rows, _ in self.found if rows is not None])
        return whole.index_copy(0, rows, torch.cat([values for _, values in self.found]))
