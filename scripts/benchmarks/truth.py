"""How far a density is from a toy's own, over rows that no training has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.scripts.data import TOY_ROWS

Array = NDArray[np.float64]

FRESH = 20_000  # rows that a KL is taken over
CHUNK = 2000  # rows scored in one solve
TOLERANCE = 1e-6
# Streams of a seed for what is drawn here, beyond those that `cnf.scripts.data` draws parts from.
SCORED, WATCHED, BATCHES = (len(TOY_ROWS) + i for i in (1, 2, 3))


@dataclass(frozen=True)
class Distance:
    """The KL divergence from the truth p to a density q, E_p[log p − log q], by Monte Carlo.

    Attributes:
        kl: The mean of log p − log q over the rows, in nats.
        stderr: Its standard error.
    """

    kl: float
    stderr: float

    @staticmethod
    def of(truth: Array, log_prob: Array) -> Distance:
        """From log p and log q of rows that are drawn from p, both of shape (n,).

        Example:
            >>> Distance.of(np.array([0.0, -1.0]), np.array([-1.0, -2.0]))
            Distance(kl=1.0, stderr=0.0)
        """
        off = truth - log_prob
        return Distance(float(off.mean()), float(off.std(ddof=1) / len(off) ** 0.5))

    def __str__(self) -> str:
        return f"{self.kl:.4f} ± {self.stderr:.4f}"


def fresh_rows(toy: str, rows: int, seed: int, stream: int = SCORED) -> Array:
    """Rows (rows, 2) of a toy, apart from those that the programs train and select on."""
    return TOYS[toy].sample(rows, np.random.default_rng([seed, stream]))


def tight_log_prob(flow: Flow, rows: Array) -> tuple[Array, float]:
    """Log p of rows (n, 2) by exact traces at `TOLERANCE`, and the evaluations of a mean solve.

    Raises:
        SolveError: A solve fails.
    """
    tight = flow.with_solver(rtol=TOLERANCE, atol=TOLERANCE, step="joint", divergence="exact")
    log_prob, evaluations = [], []
    with torch.no_grad():
        for part in torch.from_numpy(rows).to(flow.like).split(CHUNK):
            scored = tight.score_rows(part)
            log_prob.append(scored.log_prob.double().numpy())
            evaluations.append(np.mean(scored.stats.evaluations) / max(1, flow.solves))
    return np.concatenate(log_prob), float(np.mean(evaluations))


def distance_of(flow: Flow, toy: str, rows: Array) -> tuple[Distance, float]:
    """A flow's distance from a toy over rows of it, and the evaluations of a mean solve.

    Raises:
        SolveError: A solve fails.
    """
    log_prob, evaluations = tight_log_prob(flow, rows)
    return Distance.of(TOYS[toy].log_prob(rows), log_prob), evaluations
