"""The memory of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnf.scripts.benchmarks.contenders import Contender
from cnf.scripts.benchmarks.networks import (
    MINIBOONE,
    TOY,
    Network,
    exact_lineup,
    initial_flow,
    initial_zuko,
    normal_rows,
    table_lineup,
    toy_rows,
)
from cnf.scripts.benchmarks.processes import MIB, high_water, in_new_processes, skipped
from cnf.scripts.benchmarks.training_step import work


@dataclass(frozen=True)
class Case:
    """A network and the rows of its step."""

    network: Network
    rows: int


@dataclass(frozen=True)
class Peak:
    """Memory of one contender's training step.

    Attributes:
        case: Network and rows.
        name: Whose.
        before: Peak resident memory of the process after a step of two rows, in bytes.
        after: That after the step of all rows.
    """

    case: Case
    name: str
    before: int
    after: int


CASES = (Case(TOY, 512), Case(MINIBOONE, 1000))


def lineup(case: Case) -> tuple[list[Contender], Tensor]:
    """The contenders of a case, those of its section, and its rows."""
    flow = initial_flow(case.network)
    if case.network.dim == 2:
        zuko = initial_zuko(case.network)
        return exact_lineup(case.network, flow, zuko), toy_rows(case.rows)
    return table_lineup(case.network, flow), normal_rows(case.network, case.rows)


def peaks() -> Iterator[Peak]:
    """Measure every contender of every case."""
    points = [(case, each.name) for case in CASES for each in lineup(case)[0]]
    return in_new_processes(_peak, points)


def _peak(case: Case, name: str) -> Peak:
    torch.set_num_threads(1)
    contenders, x = lineup(case)
    (contender,) = (each for each in contenders if each.name == name)
    work(contender, x[:2])  # what is loaded and made once
    before = high_water()
    work(contender, x)
    return Peak(case, name, before, high_water())


def lines() -> Iterator[str]:
    """The table."""
    if skipped():
        yield skipped()
        return
    yield "Memory: peak of a process that takes a training step in MiB, initial weights, float32"
    yield f"{'':<22}{'peak':>10}{'above a step of 2 rows':>25}"
    case = None
    for peak in peaks():
        if peak.case != case:
            case = peak.case
            yield f"{case.network}; {case.rows} rows"
        yield f"{peak.name:<22}{peak.after / MIB:>10.1f}{(peak.after - peak.before) / MIB:>25.1f}"
