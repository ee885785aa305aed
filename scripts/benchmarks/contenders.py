"""Flows behind one interface for timing: this library's, FFJORD's method, zuko's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from cnf.flow import Flow
from cnf.scripts.benchmarks.ffjord import (
    AugmentedDynamics,
    ConcatSquashNetwork,
    pull,
    rademacher,
)

AGREEMENT_ROWS = 20  # rows whose log p is compared where comparing all would take minutes


@dataclass(frozen=True)
class CountedLogProb:
    """Log-densities, with a count of the evaluations of the field.

    Attributes:
        log_prob: Log p in nats, shape (rows,).
        evaluations: Returns the evaluations of the solve so far, including those of the backward
            pass after it.
    """

    log_prob: Tensor
    evaluations: Callable[[], int]


class Contender(ABC):
    """A flow with a solver.

    Attributes:
        name: The name in tables.
        module: The module that is trained.
    """

    name: str
    module: nn.Module

    @abstractmethod
    def score(self, x: Tensor) -> CountedLogProb:
        """Return log p of rows (rows, dim)."""


class Ours(Contender):
    """This library's flow."""

    def __init__(self, name: str, flow: Flow) -> None:
        self.name, self.module, self.flow = name, flow, flow

    def score(self, x: Tensor) -> CountedLogProb:
        """Return log p of rows."""
        scored = self.flow.score_rows(x)
        stats = scored.stats
        return CountedLogProb(scored.log_prob, lambda: int(stats.evaluations) + int(stats.backward))


class FFJORD(Contender):
    """FFJORD's method on a network.

    Args:
        name: The name in tables.
        network: The velocity.
        rtol: Relative tolerance of the solve and its adjoint.
        atol: Absolute tolerance of both.
        exact: Whether the divergence is exact; otherwise Hutchinson's, with a probe for each solve.
        end: End time of the flow.
    """

    def __init__(
        self,
        name: str,
        network: ConcatSquashNetwork,
        rtol: float,
        atol: float,
        *,
        exact: bool,
        end: float = 1.0,
    ) -> None:
        self.name, self.module, self.network = name, network, network
        self.rtol, self.atol, self.exact, self.end = rtol, atol, exact, end

    def score(self, x: Tensor) -> CountedLogProb:
        """Return log p of rows, or an estimate of it."""
        dynamics = AugmentedDynamics(self.network, None if self.exact else rademacher(x))
        z, log_det = pull(dynamics, x, self.rtol, self.atol, self.end)
        base = Independent(Normal(torch.zeros_like(z[0]), torch.ones_like(z[0])), 1)
        return CountedLogProb(base.log_prob(z) + log_det, lambda: dynamics.evaluations)


class Zuko(Contender):
    """zuko's continuous flow, `zuko.flows.CNF`, with its network and its adjoint."""

    def __init__(self, name: str, flow: Any) -> None:
        self.name, self.module, self.flow = name, flow, flow
        self.calls = 0
        flow.transform.ode.register_forward_hook(self._count)

    def score(self, x: Tensor) -> CountedLogProb:
        """Return log p of rows."""
        before = self.calls
        log_prob: Tensor = self.flow().log_prob(x)
        return CountedLogProb(log_prob, lambda: self.calls - before)

    def _count(self, *_: object) -> None:
        self.calls += 1


def check_agreement(ours: Ours, theirs: FFJORD, x: Tensor, tolerance_factor: float = 20.0) -> None:
    """Check that two contenders compute the same log p of rows.

    Args:
        ours: This library's flow.
        theirs: FFJORD's method, exact, on the same weights.
        x: Rows.
        tolerance_factor: The largest accepted difference in tolerances, as the root mean square
            over the rows, which joint steps control: each step of both errs by up to one tolerance,
            and the flow may amplify that. Measured: 1 at initial weights, 5 at trained ones.

    Raises:
        RuntimeError: The difference is larger.
    """
    with torch.no_grad():
        a, b = ours.score(x).log_prob, theirs.score(x).log_prob
    units = (a - b) / (theirs.atol + theirs.rtol * a.abs())
    excess = units.square().mean().sqrt().item()
    if not excess <= tolerance_factor:
        raise RuntimeError(
            f"Expected {ours.name} and {theirs.name} to agree on log p within {tolerance_factor:g} "
            f"tolerances; got {excess:.3g}: correct their fields, or the table compares two models"
        )
