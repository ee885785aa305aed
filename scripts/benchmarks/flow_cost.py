"""The time of a training step (−log p of a batch, and its gradient), and of exact log p."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnf.layers import SolverSettings
from cnf.scripts.benchmarks.contenders import (
    FFJORD,
    MINIBOONE_NETWORK,
    TOY_NETWORK,
    TRAINING_STEPS,
    TRAINING_TOLERANCE,
    BenchmarkNetwork,
    Contender,
    Ours,
    check_agreement,
    initial_flow,
    initial_spline,
    initial_zuko,
    same_field,
    trained,
)
from cnf.scripts.benchmarks.ffjord_repository import COPIED_NAME, OWN_NAME, FFJORDRepository
from cnf.scripts.benchmarks.measure import TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import FFJORD_REPOSITORY, BenchmarkOptions
from cnf.scripts.benchmarks.toys import toy_recipe
from cnf.training.data import Rows
from cnf.training.learner import Learner
from cnf.training.schedule import stages

TOY_BATCH_SIZES = (100, 512)
TABLE_ROWS = SCORED_ROWS = 1000
SCORED_NETWORKS = tuple(
    BenchmarkNetwork(dim, (20 * dim, 20 * dim), "softplus", rtol=1e-5, atol=1e-5)
    for dim in (43, 63)
)
# The forward and the backward part of a step.
StepParts = tuple[Callable[[], None], Callable[[], None]]


@dataclass(frozen=True)
class TrainingStep:
    """A training step on a batch, with the evaluations of the field forward and backward."""

    name: str
    step: Callable[[], object]
    forward: float | None = None  # unknown, or none at all
    backward: float | None = None


def toy_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of training steps of the toys' network, by weights and number of rows.

    Each has a user's loop on the defaults of this library, on the view for training, `fit`'s own
    step, joint steps at the tolerance of the other libraries, FFJORD's own code, and zuko's flows.
    """
    for weights in ("new", "random", "trained"):
        flow, others = _contenders(weights, options.ffjord)
        for rows in TOY_BATCH_SIZES:
            yield (
                f"Training step: {flow.network}; {rows} rows, {weights} weights, exact trace; "
                + (f"float32, {threads_used(options.repeats)}")
            )
            x = TOY_NETWORK.rows(rows, seed=1)
            for each in (same_field(flow, exact=True), *others):
                if isinstance(each, FFJORD | FFJORDRepository) and each.name != OWN_NAME:
                    check_agreement(flow, each, x)
            yield from _compare(
                [*own_steps(flow, x), *(_timed(each, x) for each in others)], options
            )
            yield ""
    yield "new: as each library makes a flow; cnf's is zero where it starts, zuko's embeds time"
    yield "random: PyTorch's default weights, in cnf's last layer too; copied: to FFJORD's own code"
    yield f"trained: by {TRAINING_STEPS} steps on 8gaussians at tolerance {TRAINING_TOLERANCE:g}"
    yield "cnf, default loop and for_training: (-flow.log_prob(x).mean()).backward()"
    yield "cnf, fit's step: with clipping, AdamW and the moving average; its evals: forward"
    yield "floor: only the matrix products and activations of cnf, joint's evaluations, D tangents"
    if options.ffjord is None:
        yield (
            f"FFJORD's own code is left out: git clone {FFJORD_REPOSITORY[0]} DIR, and "
            "give --ffjord DIR"
        )
    else:
        yield (
            "FFJORD's own code: concatsquash, brute_force, T = 0.5, dopri5 and its adjoint at "
            f"{TOY_NETWORK.rtol:g}; its last layer is gated as well"
        )


def _contenders(weights: str, folder: Path | None) -> tuple[Ours, list[Contender]]:
    """Return this library's flow in joint steps and other libraries' flows."""
    builders: list[Callable[[BenchmarkNetwork], Any]] = [initial_zuko, initial_spline]
    if folder is not None and weights != "random":
        builders.insert(0, partial(FFJORDRepository, folder))
    if weights == "trained":
        flow = trained(initial_flow, TOY_NETWORK)
        others = [trained(build, TOY_NETWORK) for build in builders]
    else:
        flow = initial_flow(TOY_NETWORK, zero_last=weights == "new")
        others = [build(TOY_NETWORK) for build in builders]
    if folder is not None and weights != "new":
        others.insert(0, FFJORDRepository(folder, TOY_NETWORK, flow))
    return flow, others


def own_steps(ours: Ours, x: Tensor) -> list[TrainingStep]:
    """Return this library's training steps: a user's, `fit`'s, and in joint steps."""
    defaults = {name: getattr(SolverSettings, name) for name in ("step", "activation_bytes")}
    view = Ours("cnf, for_training", ours.module.for_training(), ours.network)
    return [
        _timed(ours.solved("cnf, default loop", **defaults), x),
        _timed(view, x),
        _fit_step(ours, x),
        _timed(ours, x),
        _timed(ours.solved("cnf, compiled", compile=True), x),
        _floor_step(ours, x),
    ]


def _timed(contender: Contender, x: Tensor) -> TrainingStep:
    """Return the step of a loop of a user's own, with cleared gradients."""

    def step() -> None:
        contender.module.zero_grad()
        log_prob = contender.module.log_prob if isinstance(contender, Ours) else contender.log_prob
        (-log_prob(x).mean()).backward()

    counts = count_evaluations(contender, x)
    return TrainingStep(contender.name, step, *(counts if sum(counts) else ()))


def _fit_step(ours: Ours, x: Tensor) -> TrainingStep:
    """Return `fit`'s own step of maximum likelihood by the toys' recipe, at a rate of zero."""
    _, recipe = toy_recipe("mle")
    learner, (stage,) = Learner(copy.deepcopy(ours.module), recipe), stages(recipe)
    step = partial(learner.step, stage.objective, Rows(x), 0.0, 1.0)
    return TrainingStep("cnf, fit's step", step, step().nfe)


def _floor_step(ours: Ours, x: Tensor) -> TrainingStep:
    """Return the matrix products and activations of a joint solve's evaluations."""
    count, _ = count_evaluations(ours, x)
    forward, backward = floor_parts(ours.network, len(x), count)
    return TrainingStep("floor", lambda: (forward(), backward()), count, count)


def _compare(steps: Sequence[TrainingStep], options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each step, with its ratio to FFJORD's own code, if any on these weights."""
    seconds = median_seconds({each.name: each.step for each in steps}, options.repeats)
    theirs = next((seconds[name] for name in (COPIED_NAME, OWN_NAME) if name in seconds), None)
    for each in steps:
        taken = seconds[each.name]
        ratio = {} if theirs is None else {"times as fast as FFJORD's": theirs / taken}
        counts = ("" if count is None else count for count in (each.forward, each.backward))
        evaluations = dict(zip(("evals", "back"), counts, strict=True))
        yield {"training step": each.name, "ms": 1000 * taken, **ratio, **evaluations}


def table_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of training steps of MINIBOONE's network.

    FFJORD's method is a rewrite here. Its exact traces would take minutes, so this library's closed
    form is compared with estimates by Hutchinson's method.
    """
    ours, x = initial_flow(MINIBOONE_NETWORK), MINIBOONE_NETWORK.rows(TABLE_ROWS)
    estimating = ours.solved("cnf, hutchinson", divergence="hutchinson")
    contenders = (ours, estimating, same_field(ours, exact=False))
    case = f"{TABLE_ROWS} standard normal rows, initial weights"
    yield from _step_table(case, contenders, x, options.repeats)


@torch.no_grad()
def log_prob_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of exact log p in many dimensions, one for each network.

    The time of FFJORD's method, a rewrite, is estimated: whole solves with exact divergences take
    minutes.
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
    yield "FFJORD rewritten: an exact evaluation's time, for as many as an estimate's solve takes"


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
    runs = {(name, i): part for name, both in parts.items() for i, part in enumerate(both)}
    seconds = median_seconds(runs, repeats)
    for name, (evals, back) in counts.items():
        own, parted = ((seconds[each, 0], seconds[each, 1]) for each in (ours.name, name))
        times = {"forward": parted[0], "backward": parted[1], "total": sum(parted)}
        ratio = {"to cnf": sum(parted) / sum(own)}
        yield {"seconds": name, **times, **ratio, "evals": evals, "back": back}
