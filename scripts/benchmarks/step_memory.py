"""Memory of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.scripts.benchmarks.contenders import Contender
from cnf.scripts.benchmarks.networks import (
    MINIBOONE_NETWORK,
    TOY_NETWORK,
    BenchmarkNetwork,
    exact_lineup,
    initial_flow,
    initial_zuko,
    normal_rows,
    table_lineup,
    toy_rows,
)
from cnf.scripts.benchmarks.processes import MIB, high_water, in_new_processes, skipped
from cnf.scripts.benchmarks.training_step import count_evaluations


@dataclass(frozen=True)
class MemoryCase:
    """A network and the number of rows of its training step."""

    network: BenchmarkNetwork
    rows: int


@dataclass(frozen=True)
class StepMemory:
    """Memory of one contender's training step.

    Attributes:
        case: The network and the number of rows.
        name: The name of the contender.
        before: Peak resident memory of the process after a step of two rows, in bytes.
        after: Peak resident memory after the step of all rows, in bytes.
    """

    case: MemoryCase
    name: str
    before: int
    after: int


MEMORY_CASES = (MemoryCase(TOY_NETWORK, 512), MemoryCase(MINIBOONE_NETWORK, 1000))


def lineup(case: MemoryCase) -> tuple[list[Contender], Tensor]:
    """Return the contenders of a case, and its rows."""
    flow = initial_flow(case.network)
    if case.network.dim == 2:
        zuko = initial_zuko(case.network)
        return exact_lineup(case.network, flow, zuko), toy_rows(case.rows)
    return table_lineup(case.network, flow), normal_rows(case.network, case.rows)


def measure_memory() -> Iterator[StepMemory]:
    """Measure every contender of every case."""
    points = [(case, each.name) for case in MEMORY_CASES for each in lineup(case)[0]]
    return in_new_processes(_peak, points)


def _peak(case: MemoryCase, name: str) -> StepMemory:
    torch.set_num_threads(1)
    contenders, x = lineup(case)
    (contender,) = (each for each in contenders if each.name == name)
    count_evaluations(contender, x[:2])  # loads and allocates everything that is needed once
    before = high_water()
    count_evaluations(contender, x)
    return StepMemory(case, name, before, high_water())


def lines() -> Iterator[str]:
    """Yield the lines of the table."""
    if skipped():
        yield skipped()
        return
    yield "Memory: peak of a process that takes a training step in MiB, initial weights, float32"
    yield f"{'':<22}{'peak':>10}{'above a step of 2 rows':>25}"
    case = None
    for peak in measure_memory():
        if peak.case != case:
            case = peak.case
            yield f"{case.network}; {case.rows} rows"
        yield f"{peak.name:<22}{peak.after / MIB:>10.1f}{(peak.after - peak.before) / MIB:>25.1f}"
