"""The KL of FFJORD's own code, trained as by its train_toy.py, beside that of this library's flow.

The settings are the defaults of train_toy.py. The end time of its flow stays at 0.5: it is a
parameter (`train_T`), but the solver's times are built with `torch.tensor`, which stops the
gradient. Rows are drawn from this library's toys, whose densities the KL is measured against: the
repository's have the same scales, but its moons are evenly spaced along the curves in each batch,
with both ends, and so have a slightly different distribution.

Source: https://github.com/rtqichen/ffjord, train_toy.py, lib/toy_data.py and lib/layers/cnf.py;
Grathwohl et al. (2019), FFJORD: Free-form continuous dynamics for scalable reversible generative
models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.contenders import TOY_NETWORK
from cnf.scripts.benchmarks.density import score_array
from cnf.scripts.benchmarks.ffjord_repository import OWN_NAME, SETTINGS, FFJORDRepository
from cnf.scripts.benchmarks.measure import Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import FFJORD_REPOSITORY, BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.toys import BATCH_STREAM, KL_ROWS, fit_of, fresh_rows, toy_recipe

RACE_COLUMNS = ("seconds", "steps", "KL", "stderr", "note")
RACE_TOYS = ("8gaussians", "moons")
RACE_MARKS = (120.0, 300.0, 600.0, 900.0, 1200.0, 1500.0, 1800.0)  # seconds of training
BATCH_SIZE = 100
OPTIMIZER: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-5}  # of Adam


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the KL of both trainings on toys, FFJORD's at several times, each with its result."""
    if options.ffjord is None:
        yield f"{OWN_NAME} is needed: git clone {FFJORD_REPOSITORY[0]} DIR, and give --ffjord DIR"
        return
    yield (
        f"{OWN_NAME}, trained as by its train_toy.py, beside recipe {toy_recipe()[0]} after "
        f"{options.budget:g} s; seconds of training, up to {options.cap:g}; {threads_used()}; KL "
        f"over {KL_ROWS} fresh rows"
    )
    yield (
        f"FFJORD: {TOY_NETWORK}, exact divergence, dopri5 and its adjoint, T = 0.5; {BATCH_SIZE} "
        f"fresh rows a step, Adam, {', '.join(f'{k} {v:g}' for k, v in OPTIMIZER.items())}"
    )
    for toy in options.toys or RACE_TOYS:
        ours = fit_of(options, toy)
        yield {"training": f"cnf, {toy}", **{name: ours[name] for name in RACE_COLUMNS}}
        if isnan(ours["KL"]):
            yield f"{toy}: no race"
            continue
        theirs: list[Row] = []
        for row in measured_rows(options, options.ffjord, toy):
            yield {"training": f"FFJORD's, {toy}", **row}
            theirs.append(row)
        yield race_result(toy, ours, theirs)


def measured_rows(options: BenchmarkOptions, folder: Path, toy: str) -> Iterator[Row]:
    """Yield the row of FFJORD's training at each time that is not cached, up to a failure."""
    training = FFJORDTraining(FFJORDRepository(folder, TOY_NETWORK), toy)
    for mark in (*(each for each in RACE_MARKS if each < options.cap), options.cap):
        key = key_of({"toy": toy, "training": mark}, TOY_NETWORK, SETTINGS, OPTIMIZER, BATCH_SIZE)
        row = options.results.recall(key, partial(training.until, mark))
        yield row
        if isnan(row["KL"]):
            return


class FFJORDTraining:
    """A training of FFJORD's own flow on fresh rows of a toy, as by its train_toy.py.

    Args:
        flow: A flow with its `module`, and `log_prob` by the solver of training.
        toy: The name of the toy.
        clock: A function that returns seconds.
    """

    def __init__(
        self, flow: FFJORDRepository, toy: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.flow, self.toy, self.clock = flow, toy, clock
        self.seconds, self.steps = 0.0, 0
        self.optimizer = torch.optim.Adam(flow.module.parameters(), **OPTIMIZER)
        self.random = np.random.default_rng([0, BATCH_STREAM])

    def until(self, mark: float) -> Row:
        """Train up to a number of seconds, and return `RACE_COLUMNS`.

        Measurements of the KL do not add to the seconds. An AssertionError, which torchdiffeq
        raises where the step size underflows, is noted, with a KL of NaN.
        """
        far, note = Average(nan, nan), ""
        try:
            while self.seconds < mark:
                begin = self.clock()
                self.step()
                self.seconds, self.steps = self.seconds + self.clock() - begin, self.steps + 1
            far = self.distance()
        except AssertionError as error:
            note = f"failed: {error}"
        numbers = (self.seconds, self.steps, far.mean, far.stderr, note)
        return dict(zip(RACE_COLUMNS, numbers, strict=True))

    def step(self) -> None:
        """Take a step of Adam on fresh rows."""
        x = torch.from_numpy(TOYS[self.toy].sample(BATCH_SIZE, self.random)).float()
        self.optimizer.zero_grad()
        (-self.flow.log_prob(x).mean()).backward()
        self.optimizer.step()

    def distance(self) -> Average:
        """Return the KL divergence from the toy to the flow, over the rows of cnf's own."""
        rows = fresh_rows(self.toy, KL_ROWS, seed=0)
        return Average.of(TOYS[self.toy].log_prob(rows) - score_array(self.flow.log_prob, rows))


def race_result(toy: str, ours: Row, theirs: Sequence[Row]) -> str:
    """Return how many times as long as this library's fit FFJORD's training takes to its KL."""
    name, times = f"{toy}: FFJORD's own training", 0.0
    for row in theirs:
        before, times = times, row["seconds"] / ours["seconds"]
        if row["KL"] <= ours["KL"]:
            least = f"{before:.1f} to" if before else "at most"
            return f"{name} takes {least} {times:.1f} times as long"
    if isnan(theirs[-1]["KL"]):
        return f"{name} failed, after {times:.1f} times as long"
    return f"{name} takes more than {times:.1f} times as long"
