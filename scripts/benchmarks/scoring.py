"""Cost of exact log p in many dimensions, without a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from cnf.scripts.benchmarks.contenders import AGREEMENT_ROWS, Ours, check_agreement
from cnf.scripts.benchmarks.ffjord import AugmentedDynamics
from cnf.scripts.benchmarks.networks import (
    BenchmarkNetwork,
    compiled,
    initial_flow,
    normal_rows,
    same_field,
)
from cnf.scripts.benchmarks.overhead import one_thread, seconds_of

SCORED_ROWS = 1000
SCORED_NETWORKS = (
    BenchmarkNetwork(43, (860, 860), "softplus", rtol=1e-5, atol=1e-5),
    BenchmarkNetwork(63, (1260, 1260), "softplus", rtol=1e-5, atol=1e-5),
)


@dataclass(frozen=True)
class ScoringCost:
    """The cost of log p of all rows.

    Attributes:
        evaluations: Evaluations of the dynamics.
        seconds: Seconds of all evaluations, including the solver where it was run.
    """

    evaluations: int
    seconds: float


def cost_of_ours(ours: Ours, x: Tensor, repeats: int) -> ScoringCost:
    """Measure whole solves of this library, with the median time of the repeats."""
    evaluations = ours.score(x).evaluations()  # the warm-up too
    return ScoringCost(
        evaluations, median(seconds_of(partial(ours.score, x), 1) for _ in range(repeats))
    )


def cost_of_theirs(ours: Ours, network: BenchmarkNetwork, x: Tensor) -> ScoringCost:
    """Estimate the cost of FFJORD's method with the exact divergence.

    The time is the median of three evaluations times their number, which is counted in a solve with
    Hutchinson's estimate: it takes about the same steps in a fraction of the time.
    """
    estimate = same_field(ours.flow, network, exact=False)
    evaluations = estimate.score(x).evaluations()
    dynamics = AugmentedDynamics(estimate.network)
    one = partial(dynamics, x.new_tensor(0.5), (x, x.new_zeros(len(x))))
    one()  # the warm-up allocates memory for as many graphs as dimensions
    return ScoringCost(evaluations, evaluations * median(seconds_of(one, 1) for _ in range(3)))


def lines(repeats: int) -> Iterator[str]:
    """Yield the lines of the table."""
    with torch.no_grad(), one_thread():
        yield (
            f"Exact log p of {SCORED_ROWS} standard normal rows, no gradient, joint steps, initial "
            f"weights; float32, threads: {torch.get_num_threads()}, median of {repeats}"
        )
        yield f"{'network':<52}{'':<18}{'evals':>8}{'seconds':>10}{'to cnf':>9}"
        for network in SCORED_NETWORKS:
            ours, x = Ours("cnf", initial_flow(network)), normal_rows(network, SCORED_ROWS)
            own = [ours, compiled(ours.flow)]
            check_agreement(ours, same_field(ours.flow, network, exact=True), x[:AGREEMENT_ROWS])
            costs = {each.name: cost_of_ours(each, x, repeats) for each in own}
            costs["FFJORD's method"] = cost_of_theirs(ours, network, x)
            for name, cost in costs.items():
                yield (
                    f"{network!s:<52}{name:<18}{cost.evaluations:>8}{cost.seconds:>10.2f}"
                    f"{cost.seconds / costs[ours.name].seconds:>9.1f}"
                )
    yield "FFJORD's method: the median of three evaluations (a vector-Jacobian product for each"
    yield "dimension) times the number in a solve with Hutchinson's estimate, which steps similarly"
