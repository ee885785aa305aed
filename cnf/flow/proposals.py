"""Draws from a density that has mass wherever a flow's has, to weigh its folds by."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
    TransformedDistribution,
)

from cnf.flow.flow import Flow
from cnf.layers import CNF, Layer, Steps
from cnf.ode import SolveError
from cnf.utils.random import seeded

DRAWS = 4000
MORE = 4  # times as many draws, where too few of them count
WIDTH = 1.15  # of the proposal's base, whose tails are then above the density's
SOLVE_ROWS = 1000  # draws in one solve
# The weights p/q need log q to the statistical error's size alone.
PROPOSAL_SOLVER = {"method": "dopri5", "step": "joint", "rtol": 1e-4, "atol": 1e-4}
PLANE = 2  # columns, up to which kernels around draws and a uniform share cover a density
UNIFORM_SHARE = 0.2
CENTERS = 4000  # of kernels
NEIGHBOURS = 20  # as far as the kernel of a draw is wide
MIN_WIDTH = 1e-6  # of a kernel, in deviations
RIDGE = 1e-12  # of variances, which makes up for rounding
BOX = 2.0  # times the range of the draws


@dataclass(frozen=True, eq=False)
class Proposal:
    """Draws x (draws, dim) given a context (draws, context_dim), with their log q (draws,)."""

    x: Tensor
    context: Tensor | None
    log_q: Tensor


def adaptive(flow: Flow) -> Flow:
    """Return a flow that solves on the same fields where another one takes explicit steps.

    It shares the parameters, steps jointly, and is accurate to about 1e-4.

    Example:
        >>> from cnf.flow import ffjord
        >>> steps = ffjord(2).discretized(2)
        >>> adaptive(steps).solves
        1
    """
    layers = [
        CNF(layer.field, **PROPOSAL_SOLVER)
        if isinstance(layer, Steps)
        else layer.with_solver(**PROPOSAL_SOLVER)
        for layer in flow.layers
    ]
    return type(flow)(flow.base, layers, flow.context)


@torch.no_grad()
def propose(
    flow: Flow, draws: int = DRAWS, context: Tensor | None = None, seed: int = 0
) -> Proposal:
    """Return draws from a density that has mass wherever a flow's has, with their log q.

    They are from the flow with a base widened by 1.15, solved adaptively. Of explicit steps in the
    plane, which may have become another map than that of their field, they are from a mixture: a
    kernel around each of the flow's own draws, as wide as its `NEIGHBOURS` nearest ones, and a
    uniform distribution over the draws' box, doubled.

    Args:
        flow: The flow.
        draws: Number of draws.
        context: Rows of context (n, context_dim), which take turns; every draw has one.
        seed: Seed of the draws.

    Raises:
        ValueError: The number of draws is below 1, or a conditional flow has no context.
        SolveError: A solve failed.
    """
    if draws < 1:
        raise ValueError(f"Expected draws of at least 1; got {draws}")
    if flow.context_dim and (context is None or not len(context)):
        raise ValueError(
            "Expected a context for the fold mass of a conditional flow; got no rows: pass rows of "
            "the context that its densities are wanted for"
        )
    if flow.dim <= PLANE and not flow.context_dim and any(map(_is_towards_base, flow.layers)):
        try:
            with seeded(seed, flow.like.device):
                return _around_draws(flow, draws)
        except SolveError:  # of a map that folds so much that some draws have no inverse
            pass
    wide = type(flow)(_widened(flow.base), adaptive(flow).layers, flow.context)
    shape: tuple[int, ...] = (draws,)
    if context is not None:
        shape = ()
        context = context[torch.arange(draws, device=context.device) % len(context)].to(flow.like)
    with seeded(seed, flow.like.device):
        x, log_q = wide.sample_and_log_prob(shape, context, max_batch=SOLVE_ROWS)
    return Proposal(x, context, log_q)


def _is_towards_base(layer: Layer) -> bool:
    return isinstance(layer, Steps) and layer.towards == "base"


def _around_draws(flow: Flow, draws: int) -> Proposal:
    """Return draws from kernels around a flow's own draws, or uniform over their box, doubled.

    Both are of whitened draws, so that neither the columns' units nor their correlation matter.
    """
    found = flow.sample((CENTERS,)).double()
    middle, spread = found.mean(0), found.T.cov().reshape(flow.dim, flow.dim)
    spread.diagonal().mul_(1 + RIDGE)
    factor = torch.linalg.cholesky(spread)
    centers = torch.linalg.solve_triangular(factor, (found - middle).T, upper=False).T
    widths = torch.cdist(centers, centers).kthvalue(1 + NEIGHBOURS, 1).values
    widths = widths.clamp(min=MIN_WIDTH)
    low, high = (BOX * side for side in centers.aminmax(dim=0))  # about the mean, which is 0
    chosen = torch.randint(CENTERS, (draws,), device=centers.device)
    near = centers[chosen] + widths[chosen, None] * torch.randn_like(centers[chosen])
    uniform = torch.rand(draws, 1, device=near.device) < UNIFORM_SHARE
    x = middle + torch.where(uniform, low + (high - low) * torch.rand_like(near), near) @ factor.T
    x = x.to(flow.like)  # rounded, before log q is taken
    white = torch.linalg.solve_triangular(factor, (x.double() - middle).T, upper=False).T
    kernels = _log_kernels(white, centers, widths) + log(1 - UNIFORM_SHARE)
    inside = ((white >= low) & (white <= high)).all(1)
    level = torch.where(inside, log(UNIFORM_SHARE) - (high - low).log().sum(), -torch.inf)
    return Proposal(x, None, torch.logaddexp(kernels, level) - factor.diagonal().log().sum())


def _log_kernels(x: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
    """Return the log-density of a mixture of normal kernels, whose widths differ."""
    count, dim = centers.shape
    scales = dim * (widths.log() + 0.5 * log(2 * pi)) + log(count)
    parts = [
        torch.logsumexp(-0.5 * (torch.cdist(part, centers) / widths).square() - scales, 1)
        for part in x.split(SOLVE_ROWS)
    ]
    return torch.cat(parts)


def _widened(base: Distribution) -> Distribution:
    """Return z ↦ m + 1.15 (z − m) of a base of mean m, from 0 where it has or knows none.

    Components of a mixture of normal distributions are widened one by one.
    """
    if isinstance(base, MixtureSameFamily):
        parts = base.component_distribution
        if isinstance(parts, MultivariateNormal):
            wide = MultivariateNormal(parts.loc, scale_tril=WIDTH * parts.scale_tril)
            return MixtureSameFamily(base.mixture_distribution, wide)
    try:
        mean = base.mean
    except NotImplementedError:
        mean = torch.zeros_like(base.sample())
    shift = mean.mul(1 - WIDTH) if mean.isfinite().all() else torch.zeros_like(mean)
    widen = AffineTransform(shift, torch.full_like(shift, WIDTH), event_dim=1)
    return TransformedDistribution(base, [widen], validate_args=False)
