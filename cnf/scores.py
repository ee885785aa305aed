"""Log-densities of rows, with what they cost and how far they can be relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cnf.ode import Stats


@dataclass(frozen=True)
class Scored:
    """Log-densities with what they cost.

    Attributes:
        log_prob: log p(x) in nats per row, shape (rows,).
        stats: The evaluations and steps of all CNF layers.
        penalties: What a regularization asked for, summed over the layers, each of shape (rows,).
        passed: What came to each layer from the data's side, in the layers' order, each of shape
            (rows, columns), without a gradient.
    """

    log_prob: Tensor
    stats: Stats
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    passed: Sequence[Tensor] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-densities of rows, with their errors and how their solves went.

    Attributes:
        log_prob: log p(x) in nats, shape (*batch); NaN where a row's solve failed, -inf where it
            ended outside of the base's support.
        stderr: Its standard error from the probes of an estimated trace or the draws of noise,
            alike; zero where there are none, NaN where there is only one.
        solver_error: |log p − log p at a tenth of the tolerance with the same probes|, alike; with
            half the step where steps are fixed.
        status: `cnf.ode.Status` of each row, an array of shape (*batch): the first layer's that did
            not finish, coming from the data.
        stats: What the first of the two solves cost, for each of the rows in their flat order, or
            for all together where steps are joint.
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    status: NDArray[np.object_]
    stats: Stats
