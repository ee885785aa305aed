"""The KL divergence from a toy to a density, over rows that no training uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.scripts.data import TOY_ROWS

Array = NDArray[np.float64]

KL_ROWS = 20_000  # over which a KL divergence is estimated
BENCHMARK_CHUNK_ROWS = 2000  # scored or drawn in one solve
KL_TOLERANCE = 1e-6
# Random streams of a seed beyond those that `cnf.scripts.data` draws from.
KL_STREAM, WATCH_STREAM, BATCH_STREAM = (len(TOY_ROWS) + i for i in (1, 2, 3))


@dataclass(frozen=True)
class Distance:
    """The KL divergence from the truth p to a density q, E_p[log p − log q], by Monte Carlo.

    Attributes:
        kl: The mean of log p − log q over the rows, in nats.
        stderr: Standard error of `kl`.
    """

    kl: float
    stderr: float

    @staticmethod
    def of(truth: Array, log_prob: Array) -> Distance:
        """Estimate the divergence from log p and log q of rows drawn from p, both of shape (n,).

        Example:
            >>> Distance.of(np.array([0.0, -1.0]), np.array([-1.0, -2.0]))
            Distance(kl=1.0, stderr=0.0)
        """
        off = truth - log_prob
        return Distance(float(off.mean()), float(off.std(ddof=1) / len(off) ** 0.5))

    def __str__(self) -> str:
        return f"{self.kl:.4f} ± {self.stderr:.4f}"


def fresh_rows(toy: str, rows: int, seed: int, stream: int = KL_STREAM) -> Array:
    """Draw rows (rows, 2) of a toy that the programs neither train nor select on."""
    return TOYS[toy].sample(rows, np.random.default_rng([seed, stream]))


def tight_log_prob(flow: Flow, rows: Array) -> tuple[Array, float]:
    """Return log p of rows (n, 2) by exact traces at `KL_TOLERANCE`, and mean evaluations.

    Raises:
        SolveError: A solve fails.
    """
    tight = flow.with_solver(rtol=KL_TOLERANCE, atol=KL_TOLERANCE, step="joint", divergence="exact")
    log_prob, evaluations = [], []
    with torch.no_grad():
        for part in torch.from_numpy(rows).to(flow.like).split(BENCHMARK_CHUNK_ROWS):
            scored = tight.score_rows(part)
            log_prob.append(scored.log_prob.double().numpy())
            evaluations.append(np.mean(scored.stats.evaluations) / max(1, flow.solves))
    return np.concatenate(log_prob), float(np.mean(evaluations))


def distance_of(flow: Flow, toy: str, rows: Array) -> tuple[Distance, float]:
    """Return the KL divergence from a toy to a flow over rows, and mean evaluations.

    Raises:
        SolveError: A solve fails.
    """
    log_prob, evaluations = tight_log_prob(flow, rows)
    return Distance.of(TOYS[toy].log_prob(rows), log_prob), evaluations
