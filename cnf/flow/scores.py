"""Log-densities of rows, with their cost and their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from cnf.ode import Stats
from cnf.ode.solution import Count


@dataclass(frozen=True)
class RowLogProbs:
    """Log-densities of rows with the cost of their solves.

    Attributes:
        log_prob: log p(x) in nats per row, shape (rows,).
        stats: The evaluations and steps of all CNF layers.
        penalties: The integrals of each regularizer, summed over the layers, of shape (rows,).
        layer_inputs: The rows that each layer received from the data's side, in the layers' order,
            each of shape (rows, columns), without a gradient.
    """

    log_prob: Tensor
    stats: Stats
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    layer_inputs: Sequence[Tensor] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-densities of rows, with their errors and how their solves went.

    Attributes:
        log_prob: log p(x) in nats, shape (*batch); NaN where a row failed, and -inf, which is never
            a failure, where there is no density: out of the base's support, or of a column's.
        stderr: The standard error of log_prob from the probes of an estimated trace or the draws of
            noise, shape (*batch); zero where there are none, NaN where there is only one.
        solver_error: |log_prob − tighter|, shape (*batch): the error of solver and rounding.
        status: `cnf.ode.Status` of each row, an array of shape (*batch): the first layer's that did
            not finish, coming from the data; or that log p is no number.
        stats: What the first of the two solves cost, for each of the rows in their flat order, or
            for all together where steps are joint.
        tighter: Log p in double precision by dopri8 at a tenth of the tolerance, or at half the
            step where steps are fixed, with the same probes and noise, shape (*batch). NaN where
            that solve failed.
        probes: How many estimates, or draws, `stderr` is of.
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    status: NDArray[np.object_]
    stats: Stats
    tighter: Tensor
    probes: int

    @property
    def uncertainty(self) -> Tensor:
        """The bound on log_prob's error, in nats, that holds for 95 of 100 rows; shape (*batch).

            √((t stderr)² + (2 solver_error)²)

        The parts are independent: the noise of estimates, and what a solve does not resolve. With
        `probes` estimates t is Student's, 2.13 for 16 of them, since the standard error is itself
        made of so few. The solver's error is doubled, since it is told by a solve that is off too:
        that is enough as long as the tighter one is off by less than half as much, which holds for
        97 to 100 rows in 100, also where fixed steps of a method of first order are halved.
        Measured against SciPy's DOP853 at 1e-12 it is twice the distance in the median.

        It is about log p of x as the flow's precision holds it. NaN where a part is.
        """
        factor = float(stdtrit(self.probes - 1, 0.975)) if self.probes > 1 else 1.0
        return torch.hypot(factor * self.stderr, 2 * self.solver_error)

    def reshape(self, batch: Sequence[int]) -> Scores:
        """Return the scores with another batch shape; `stats` stays that of the rows."""
        return replace(
            self,
            log_prob=self.log_prob.reshape(batch),
            stderr=self.stderr.reshape(batch),
            solver_error=self.solver_error.reshape(batch),
            status=self.status.reshape(batch),
            tighter=self.tighter.reshape(batch),
        )


def concatenate(parts: Sequence[Scores]) -> Scores:
    """Return the scores of at least one part as those of all rows, in their order."""
    stats = [part.stats for part in parts]
    return Scores(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.stderr for part in parts]),
        torch.cat([part.solver_error for part in parts]),
        np.concatenate([part.status for part in parts]),
        Stats(
            _join_counts([each.evaluations for each in stats]),
            _join_counts([each.accepted for each in stats]),
            _join_counts([each.rejected for each in stats]),
        ),
        torch.cat([part.tighter for part in parts]),
        parts[0].probes,
    )


def _join_counts(counts: Sequence[Count]) -> Count:
    """Return counts per row concatenated, and counts per solve summed."""
    if isinstance(counts[0], np.ndarray):
        return np.concatenate(counts)
    return sum(counts, start=0)
