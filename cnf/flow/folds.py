"""Folds of flows made of explicit steps: the mass they count twice, by importance sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from cnf.flow.flow import Flow
from cnf.flow.mixture import FlowMixture
from cnf.flow.proposals import DRAWS, MORE, PLANE, SOLVE_ROWS, Proposal, propose
from cnf.flow.scores import log_prob_or_nan
from cnf.layers import Steps
from cnf.layers.layer import ScoringOptions
from cnf.utils.random import RowNoise

MAX_FOLD_MASS = 1e-3  # of a flow whose log p is to be trusted
MIN_EFFECTIVE = 1000  # draws of an estimate: with fewer, one of them may carry the folds' mass


@dataclass(frozen=True)
class FoldMass:
    """The mass that a flow's folds count twice, and the integral of its density.

    Attributes:
        mass: E_q[p/q · 1(some det_k < 0)], where p takes the determinants' absolute values; at
            most `MAX_FOLD_MASS` in a flow to be trusted.
        stderr: Its standard error.
        integral: E_q[p/q], the integral of p, which is 1 without folds.
        integral_stderr: Its standard error.
        effective: The effective sample size (Σ w)² / Σ w² of the weights w = p/q.
        draws: Number of draws from q.
    """

    mass: float
    stderr: float
    integral: float
    integral_stderr: float
    effective: float
    draws: int

    @property
    def known(self) -> bool:
        """Whether the effective sample is large enough, of at least `MIN_EFFECTIVE`."""
        return self.effective >= MIN_EFFECTIVE

    @property
    def covered(self) -> bool:
        """Whether the integral is 1 within four standard errors: draws may have missed mass."""
        return abs(self.integral - 1) <= 4 * self.integral_stderr

    @property
    def accepted(self) -> bool:
        """Whether the mass is known, and at most `MAX_FOLD_MASS`."""
        return self.known and self.mass <= MAX_FOLD_MASS

    def __str__(self) -> str:
        if not self.known:
            return (
                f"an unknown fold mass, by an effective sample of {self.effective:.0f} of "
                f"{self.draws} draws"
            )
        return f"a fold mass of {self.mass:.2g} ± {self.stderr:.1g}"


@torch.no_grad()
def fold_mass(
    flow: Flow | FlowMixture,
    *,
    draws: int = DRAWS,
    context: Tensor | None = None,
    seed: int = 0,
    near: Flow | FlowMixture | None = None,
    proposal: Proposal | None = None,
) -> FoldMass:
    """Return the mass of a flow's folds, and the integral of its density, by importance sampling.

        mass = E_q[ p(x)/q(x) · 1(det ∂F_k/∂y < 0 for some step k) ],   ∫ p dx = E_q[ p(x)/q(x) ],

    with p by the determinants' absolute values, and q of `cnf.flow.proposals.propose`, which has
    mass wherever p has. Where the effective sample size is below 1000 the mass is not `known`.

    With steps towards the data draws are exact, and log p of a draw is wrong only where the map
    takes another point to it too.

    Args:
        flow: The flow; without `Steps` layers the mass is 0. A mixture's is the weighted mean of
            its flows', and as well known as the least known of them.
        draws: Number of draws from q; four times as many where too few of them count.
        context: Rows of context (n, context_dim) of a conditional flow: the mass is their mean.
        seed: Seed of the draws.
        near: A flow whose draws serve beyond the plane: that which this one was distilled from. Its
            own field may be that of another density once it is tuned.
        proposal: Draws to weigh in place of new ones.

    Raises:
        ValueError: As in `propose`; or `near` is a mixture of more or fewer flows than `flow`.
        SolveError: A solve of the proposal failed.

    Source: importance sampling of a normalising constant, Owen (2013), Monte Carlo theory, chapter
    9, with the effective sample size of Kong (1992).

    Example:
        >>> from cnf.flow import ffjord
        >>> found = fold_mass(ffjord(2).discretized(2))
        >>> found.mass, found.known, abs(found.integral - 1) < 0.05
        (0.0, True, True)
    """
    if isinstance(flow, FlowMixture):
        if proposal is not None:
            raise ValueError(
                "Expected no proposal for a mixture, whose flows have their own; got one"
            )
        given: dict[str, Any] = {"draws": draws, "context": context}
        others = near.weighted if isinstance(near, FlowMixture) else [near] * len(flow.weighted)
        if len(others) != len(flow.weighted):
            raise ValueError(
                f"Expected near to have {len(flow.weighted)} flows of some weight, as the mixture "
                f"has; got {len(others)}"
            )
        parts = [
            fold_mass(each, seed=seed + k, near=other, **given)
            for k, (each, other) in enumerate(zip(flow.weighted, others, strict=True))
        ]
        return _mean_mass(parts, flow.weights[flow.weights > 0].double())
    if proposal is not None:
        return _weighed(flow, proposal)
    source = near if isinstance(near, Flow) and flow.dim > PLANE else flow
    found = _weighed(flow, propose(source, draws, context, seed))
    return found if found.known else _weighed(flow, propose(source, MORE * draws, context, seed))


def _mean_mass(parts: Sequence[FoldMass], weights: Tensor) -> FoldMass:
    def numbers(name: str) -> Tensor:
        return torch.tensor([getattr(each, name) for each in parts]).to(weights)

    def error(name: str) -> float:
        return (weights * numbers(name)).square().sum().sqrt().item()

    return FoldMass(
        (weights * numbers("mass")).sum().item(),
        error("stderr"),
        (weights * numbers("integral")).sum().item(),
        error("integral_stderr"),
        min(each.effective for each in parts),
        sum(each.draws for each in parts),
    )


def _weighed(flow: Flow, proposal: Proposal) -> FoldMass:
    log_p, folded = _absolute(flow, proposal.x, proposal.context)
    ratios = (log_p.double() - proposal.log_q.double()).exp().nan_to_num(0.0)
    bad = ratios * folded
    count = len(ratios)
    total, square = ratios.sum().item(), ratios.square().sum().item()
    return FoldMass(
        bad.mean().item(),
        _standard_error(bad),
        total / count,
        _standard_error(ratios),
        total**2 / square if square else 0.0,
        count,
    )


def _standard_error(values: Tensor) -> float:
    return values.std().item() / len(values) ** 0.5 if len(values) > 1 else nan


def _absolute(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return log p of rows by the determinants' absolute values, and whether a step folds."""
    parts = []
    contexts = [None] * len(x) if context is None else context.split(SOLVE_ROWS)
    for rows, given in zip(x.split(SOLVE_ROWS), contexts, strict=False):
        parts.append(_absolute_part(flow, rows, given))
    log_p, folded = (torch.cat(each) for each in zip(*parts, strict=True))
    return log_p, folded


def _absolute_part(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    context = flow.standardized(context)
    log_det, folded = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for layer in reversed(flow.layers):
        if not isinstance(layer, Steps):
            pulled = layer.pull(x, context)
            x, log_det = pulled.value, log_det + pulled.log_det
        elif layer.towards == "base":
            found = layer.determinants(x, context)
            x, log_det = found.value, log_det + found.logs.sum(1)
            folded |= found.folded
        else:  # a row without an inverse has NaN, and so no weight
            noise = RowNoise(0, x, context)
            x = layer.pull_scored(x, context, ScoringOptions(1, noise)).result.value
            found = layer.determinants(x, context)
            log_det = log_det - found.logs.sum(1)
            folded |= found.folded
    return log_prob_or_nan(flow.base, x) + log_det, folded
