"""What became of each row: its status, how far it got, and its state there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.ode.lanes import Array
from cnf.ode.solution import Status

STATUSES = tuple(Status)
NOT_FINITE = STATUSES.index(Status.NOT_FINITE)


class Fates:
    """What became of each row of a batch.

    Args:
        y0: The batch's first state.

    Attributes:
        codes: Each row's status, as a position in `STATUSES`.
        reached: How far each row got, as a fraction of the way.
        states: The states there.
    """

    def __init__(self, y0: Tensor) -> None:
        batch = y0.shape[0] if y0.ndim else 1
        self.codes = np.zeros(batch, dtype=np.int8)
        self.reached: Array = np.zeros(batch)
        self.states = y0.detach()

    @property
    def statuses(self) -> NDArray[np.object_]:
        """Each row's status."""
        named: NDArray[np.object_] = np.array(STATUSES, dtype=object)[self.codes]
        return named

    @property
    def failed(self) -> Tensor:
        """A mask of the rows that did not finish."""
        return torch.from_numpy(self.codes > 0).to(self.states.device)

    def mark(self, rows: NDArray[np.int64], status: Status) -> None:
        """Write down what rows failed of; the first reason stands."""
        fresh = rows[self.codes[rows] == 0]
        self.codes[fresh] = STATUSES.index(status)

    def let_go(self, rows: Tensor | None, fractions: Array, states: Tensor) -> None:
        """Keep how far some rows (None: all) got, and their states there."""
        if rows is None:
            self.reached[:], self.states = fractions, states.detach()
            return
        self.reached[rows.cpu().numpy()] = fractions
        self.states = self.states.index_copy(0, rows, states.detach())

    def worst_first(self, ratio: Tensor | None) -> tuple[int, ...]:
        """The rows that did not finish, first what is not finite, then by their error ratios."""
        rows = np.flatnonzero(self.codes)
        error = np.zeros(len(self.codes))
        if len(rows) and ratio is not None and ratio.ndim:
            size = ratio.detach().abs().nan_to_num(nan=torch.inf).reshape(len(error), -1)
            error = size.amax(1).double().cpu().numpy()
        error[self.codes == NOT_FINITE] = np.inf
        return tuple(rows[np.argsort(-error[rows], kind="stable")].tolist())
