"""The time of a training step (−log p of a batch, and its gradient), and of exact log p."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from cnf.scripts.benchmarks.contenders import (
    MINIBOONE_NETWORK,
    TOY_NETWORK,
    TRAINING_STEPS,
    BenchmarkNetwork,
    Contender,
    Ours,
    check_agreement,
    initial_flow,
    initial_zuko,
    same_field,
    trained,
)
from cnf.scripts.benchmarks.measure import TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions

TOY_BATCH_SIZES = (100, 512)
TABLE_ROWS = SCORED_ROWS = 1000
SCORED_NETWORKS = tuple(
    BenchmarkNetwork(dim, (20 * dim, 20 * dim), "softplus", rtol=1e-5, atol=1e-5)
    for dim in (43, 63)
)
# The forward and the backward part of a step.
StepParts = tuple[Callable[[], None], Callable[[], None]]


def toy_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of training steps of the toys' network."""
    for weights in ("initial", "trained"):
        ours, zuko = initial_flow(TOY_NETWORK), initial_zuko(TOY_NETWORK)
        if weights == "trained":
            ours, zuko = trained(initial_flow, TOY_NETWORK), trained(initial_zuko, TOY_NETWORK)
        for rows in TOY_BATCH_SIZES:
            case = f"{rows} rows, {weights} weights, exact trace"
            others, x = (same_field(ours, exact=True), zuko), TOY_NETWORK.rows(rows, seed=1)
            yield from _step_table(case, (ours, *others), x, options.repeats)
            yield ""
    yield "floor: only the matrix products and activations of cnf's evaluations, with D tangents"
    yield f"trained: by {TRAINING_STEPS} steps on 8gaussians; zuko's own network, which embeds time"


def table_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of training steps of MINIBOONE's network.

    FFJORD's exact traces would take minutes, so this library's closed form is compared with
    estimates by Hutchinson's method.
    """
    ours, x = initial_flow(MINIBOONE_NETWORK), MINIBOONE_NETWORK.rows(TABLE_ROWS)
    estimating = ours.solved("cnf, hutchinson", divergence="hutchinson")
    contenders = (ours, estimating, same_field(ours, exact=False))
    case = f"{TABLE_ROWS} standard normal rows, initial weights"
    yield from _step_table(case, contenders, x, options.repeats)


@torch.no_grad()
def log_prob_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of exact log p in many dimensions, one for each network.

    The time of FFJORD's method is estimated: whole solves with exact divergences take minutes.
    """
    yield (
        f"Exact log p of {SCORED_ROWS} standard normal rows, no gradient, joint steps, initial "
        f"weights; float32, {threads_used(options.repeats)}"
    )
    for network in SCORED_NETWORKS:
        ours, x = initial_flow(network), network.rows(SCORED_ROWS)
        theirs, estimate = (same_field(ours, exact=exact) for exact in (True, False))
        check_agreement(ours, theirs, x)
        own = (ours, ours.solved("cnf, compiled", compile=True))
        runs = {each.name: partial(each.log_prob, x) for each in own}
        seconds = median_seconds(runs, options.repeats)
        estimate.log_prob(x)
        one = partial(theirs, x.new_tensor(0.5), (x, x.new_zeros(len(x))))
        seconds[theirs.name] = estimate.evaluations * median_seconds({"": one}, repeats=3)[""]
        yield f"{network}"
        counts = [*(each.evaluations for each in own), estimate.evaluations]
        for count, (name, taken) in zip(counts, seconds.items(), strict=True):
            ratio = taken / seconds[ours.name]
            yield {"": name, "evals": count, "seconds": taken, "to cnf": ratio}
    yield "FFJORD's method: an exact evaluation's time, for as many as an estimate's solve takes"


def step_parts(contender: Contender, x: Tensor) -> StepParts:
    """Return the parts of a training step: the loss with cleared gradients, and its gradient."""
    loss: Tensor

    def forward() -> None:
        nonlocal loss
        contender.module.zero_grad()
        loss = -contender.log_prob(x).mean()

    def backward() -> None:
        loss.backward()

    return forward, backward


def count_evaluations(contender: Contender, x: Tensor) -> tuple[int, int]:
    """Take a training step, and return the evaluations of the field, forward and backward."""
    forward, backward = step_parts(contender, x)
    forward()
    count = contender.evaluations
    backward()
    return count, contender.evaluations - count


def floor_parts(network: BenchmarkNetwork, rows: int, evaluations: int) -> StepParts:
    """Return the matrix products and activations of a tanh network with its exact trace.

    The products between hidden layers have D tangents stacked in the batch. Those of the first
    layer are the columns of its weights; those of the last enter only by their sum.
    """
    forward: list[Callable[[], Tensor]] = []
    backward: list[Callable[[], Tensor]] = []
    sizes = (network.dim, *network.hidden, network.dim)
    counts = [rows, *[rows * (1 + network.dim)] * (len(sizes) - 3), rows]
    for count, (inputs, outputs) in zip(counts, pairwise(sizes), strict=True):
        x, weight = torch.randn(count, inputs), torch.randn(outputs, inputs)
        slope = torch.randn(count, outputs)
        forward.append(partial(torch.mm, x, weight.T, out=torch.empty_like(slope)))
        backward.append(partial(torch.mm, slope, weight, out=torch.empty_like(x)))
        backward.append(partial(torch.mm, slope.T, x, out=torch.empty_like(weight)))
    for width in network.hidden:
        z, h = torch.randn(rows, width), torch.empty(rows, width)
        forward.append(partial(torch.tanh, z, out=h))
        backward.append(partial(torch.mul, z, z, out=h))  # as costly as the derivative
    return partial(_call_all, forward * evaluations), partial(_call_all, backward * evaluations)


def _call_all(operations: Sequence[Callable[[], Tensor]]) -> None:
    for operation in operations:
        operation()


def _step_table(
    case: str, contenders: tuple[Ours, *tuple[Contender, ...]], x: Tensor, repeats: int
) -> Iterator[TableItem]:
    """Check that the contenders integrate one field, and yield the rows of their times."""
    ours, *others = contenders
    yield f"Training step: {ours.network}; {case}; float32, {threads_used(repeats)}"
    check_agreement(ours, same_field(ours, exact=True), x)
    lined_up = (ours, *others, ours.solved("cnf, compiled", compile=True))
    counts = {each.name: count_evaluations(each, x) for each in lined_up}
    parts = {each.name: step_parts(each, x) for each in lined_up}
    if ours.network.dim == 2:
        count, _ = counts[ours.name]
        parts["floor"], counts["floor"] = floor_parts(ours.network, len(x), count), (count, count)
    runs = {(name, i): part for name, both in parts.items() for i, part in enumerate(both)}
    seconds = median_seconds(runs, repeats)
    for name, (evals, back) in counts.items():
        own, parted = ((seconds[each, 0], seconds[each, 1]) for each in (ours.name, name))
        times = {"forward": parted[0], "backward": parted[1], "total": sum(parted)}
        ratio = {"to cnf": sum(parted) / sum(own)}
        yield {"seconds": name, **times, **ratio, "evals": evals, "back": back}
