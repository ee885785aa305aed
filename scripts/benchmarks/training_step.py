"""The time of a training step: −log p of a batch, and its gradient."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cnf.flow import Flow
from cnf.scripts.benchmarks.contenders import (
    AGREEMENT_ROWS,
    FFJORD,
    Contender,
    Ours,
    check_agreement,
)
from cnf.scripts.benchmarks.floor import Floor
from cnf.scripts.benchmarks.networks import (
    MINIBOONE_NETWORK,
    TOY_NETWORK,
    TRAINING_ROWS,
    TRAINING_STEPS,
    BenchmarkNetwork,
    compiled,
    exact_lineup,
    initial_flow,
    initial_zuko,
    normal_rows,
    same_field,
    table_lineup,
    toy_rows,
    trained_flow,
    trained_zuko,
)
from cnf.scripts.benchmarks.overhead import one_thread
from cnf.scripts.plot import write_figure

TOY_BATCH_SIZES = (100, 512)
TABLE_ROWS = 1000

Run = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class StepTiming:
    """The times of a training step, as medians over the repeats.

    Attributes:
        name: The name of the contender.
        forward: Seconds for the loss.
        backward: Seconds for its gradient.
        total: Seconds for both.
        evaluations: Evaluations of the field forward, and backward.
    """

    name: str
    forward: float
    backward: float
    total: float
    evaluations: tuple[int, int]


def count_evaluations(contender: Contender, x: Tensor) -> tuple[int, int]:
    """Return the evaluations of a training step, forward and backward."""
    contender.module.zero_grad()
    scored = contender.score(x)
    forward = scored.evaluations()
    (-scored.log_prob.mean()).backward()
    return forward, scored.evaluations() - forward


def time_step(contender: Contender, x: Tensor) -> tuple[float, float]:
    """Return the seconds of a training step, forward and backward, with cleared gradients."""
    contender.module.zero_grad()
    begin = time.perf_counter()
    loss = -contender.score(x).log_prob.mean()
    middle = time.perf_counter()
    loss.backward()
    return middle - begin, time.perf_counter() - middle


def compare(
    contenders: Sequence[Contender], x: Tensor, repeats: int, floor: Floor | None = None
) -> list[StepTiming]:
    """Time contenders interleaved, and the floor for the evaluations of the first one."""
    counts = {contender.name: count_evaluations(contender, x) for contender in contenders}
    runs: dict[str, Run] = {each.name: partial(time_step, each, x) for each in contenders}
    if floor is not None:
        forward, _ = counts[contenders[0].name]
        runs["floor"], counts["floor"] = partial(floor.seconds, forward), (forward, forward)
    for run in runs.values():  # the second step still fills caches and compiles
        run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(run())
    return [
        StepTiming(
            name,
            forward=median(forward for forward, _ in pairs),
            backward=median(backward for _, backward in pairs),
            total=median(map(sum, pairs)),
            evaluations=counts[name],
        )
        for name, pairs in taken.items()
    ]


def toy_lines(repeats: int, out: Path | None) -> Iterator[str]:
    """Yield the tables of the toys' network, and the path of their figure."""
    found: dict[str, list[StepTiming]] = {}
    with one_thread():
        for weights in ("initial", "trained"):
            flow, zuko = _weights(TOY_NETWORK, weights)
            for rows in TOY_BATCH_SIZES:
                timings = _toy(flow, zuko, rows, repeats)
                found[f"{rows} rows, {weights} weights"] = timings
                yield _title(TOY_NETWORK, f"{rows} rows, {weights} weights, exact trace", repeats)
                yield from _table(timings)
                yield ""
    yield "floor: only the matrix products and activations of as many evaluations as cnf's forward"
    yield "pass takes, D tangents stacked in the batch; twice as many products backward"
    yield (
        f"trained: by {TRAINING_STEPS} steps on 8gaussians; zuko's own network, which embeds time, "
        "by as many"
    )
    yield "FFJORD's method and cnf integrate the same field: their log p was compared before timing"
    if out is not None:
        yield str(_draw(found, out / "training_step.png"))


def table_lines(repeats: int) -> Iterator[str]:
    """Yield the table of MINIBOONE's network."""
    with one_thread():
        flow, x = initial_flow(MINIBOONE_NETWORK), normal_rows(MINIBOONE_NETWORK, TABLE_ROWS)
        exact = same_field(flow, MINIBOONE_NETWORK, exact=True)
        check_agreement(Ours("cnf, exact", flow), exact, x[:AGREEMENT_ROWS])
        lineup = [*table_lineup(MINIBOONE_NETWORK, flow), compiled(flow)]
        yield _title(
            MINIBOONE_NETWORK, f"{TABLE_ROWS} standard normal rows, initial weights", repeats
        )
        yield from _table(compare(lineup, x, repeats))
    yield f"FFJORD's method, exact, agrees with cnf on {AGREEMENT_ROWS} rows: they share one field"


def _weights(network: BenchmarkNetwork, weights: str) -> tuple[Flow, Any]:
    if weights == "initial":
        return initial_flow(network), initial_zuko(network)
    rows = toy_rows(TRAINING_ROWS)
    return trained_flow(network, rows), trained_zuko(network, rows)


def _toy(flow: Flow, zuko: Any, rows: int, repeats: int) -> list[StepTiming]:
    x = toy_rows(rows, seed=1)
    lineup = exact_lineup(TOY_NETWORK, flow, zuko)
    ours, theirs, _ = lineup
    assert isinstance(ours, Ours)
    assert isinstance(theirs, FFJORD)
    check_agreement(ours, theirs, x)
    floor = Floor((TOY_NETWORK.dim, *TOY_NETWORK.hidden, TOY_NETWORK.dim), rows)
    return compare([*lineup, compiled(flow)], x, repeats, floor)


def _title(network: BenchmarkNetwork, case: str, repeats: int) -> str:
    threads = torch.get_num_threads()
    return f"Training step: {network}; {case}; float32, threads: {threads}, median of {repeats}"


def _table(timings: Sequence[StepTiming]) -> Iterator[str]:
    yield (
        f"{'time_step':<22}{'forward':>10}{'backward':>10}{'total':>10}{'to cnf':>9}"
        f"{'evals':>8}{'back':>7}"
    )
    for timing in timings:
        forward, backward = timing.evaluations
        yield (
            f"{timing.name:<22}{timing.forward:>10.4f}{timing.backward:>10.4f}"
            f"{timing.total:>10.4f}{timing.total / timings[0].total:>9.2f}"
            f"{forward:>8}{backward:>7}"
        )


def _draw(found: dict[str, list[StepTiming]], path: Path) -> Path:
    """Draw bars of forward and backward time, with a panel for each case."""
    figure = Figure(figsize=(3 * len(found), 3), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (case, timings) in zip(panels, found.items(), strict=True):
        names = [timing.name for timing in timings]
        forward = [timing.forward for timing in timings]
        axes.barh(names, forward, label="forward")
        axes.barh(names, [timing.backward for timing in timings], left=forward, label="backward")
        axes.set(title=case, xlabel="seconds")
        axes.title.set_fontsize("medium")
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False)
    return write_figure(figure, path)
