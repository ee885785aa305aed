"""The time that a rewrite of FFJORD's training takes to reach the KL of this library's flow.

The settings are the defaults of train_toy.py. The end time of the flow stays at 0.5: the script
declares it trainable, but builds the solver's times with `torch.tensor`, which stops the gradient.

Source: https://github.com/rtqichen/ffjord, train_toy.py and lib/layers/cnf.py; Grathwohl et al.
(2019), FFJORD: Free-form continuous dynamics for scalable reversible generative models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isnan, nan

import numpy as np
import torch
from torch import nn

from cnf.datasets import TOYS
from cnf.fields.gated_linear import GatedLinear
from cnf.scripts.benchmarks.contenders import FFJORD, ConcatSquashNetwork
from cnf.scripts.benchmarks.density import score_array
from cnf.scripts.benchmarks.measure import Array, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.toys import BATCH_STREAM, KL_ROWS, fit_of, fresh_rows, toy_recipe
from cnf.utils.random import seeded

RACE_COLUMNS = ("seconds", "steps", "KL", "stderr", "note")
RACE_TOYS = ("8gaussians", "moons")
MEASURE_SECONDS = 30.0  # seconds of training between two measurements


@dataclass(eq=False)
class FFJORDReference:
    """A flow of FFJORD's method with its training: exact log p, no schedule, no averaging.

    The base is the standard normal, and rows are not standardised. An AssertionError of a method is
    torchdiffeq's: the step size of its solve underflows.
    """

    toy: str
    seed: int = 0
    hidden: tuple[int, ...] = (64, 64, 64)
    end: float = 0.5
    tolerance: float = 1e-5
    batch: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5  # added to the gradient by Adam

    def __post_init__(self) -> None:
        with seeded(self.seed):
            pairs = pairwise((2, *self.hidden, 2))
            layers = [GatedLinear(i, o, 1, gate=True, shift=True) for i, o in pairs]
            network = ConcatSquashNetwork(layers, nn.Tanh())
        self.flow = FFJORD(network, self.tolerance, self.tolerance, exact=True, end=self.end)
        self.optimizer = torch.optim.Adam(
            network.parameters(), self.learning_rate, weight_decay=self.weight_decay
        )
        self.random = np.random.default_rng([self.seed, BATCH_STREAM])

    def step(self) -> float:
        """Take a step of Adam on fresh rows, and return the loss before it, in nats."""
        x = torch.from_numpy(TOYS[self.toy].sample(self.batch, self.random)).float()
        self.optimizer.zero_grad()
        loss = -self.flow.log_prob(x).mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def distance(self, rows: Array) -> Average:
        """Return the KL divergence from the toy to the flow, by the solver of training."""
        return Average.of(TOYS[self.toy].log_prob(rows) - score_array(self.flow.log_prob, rows))


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the races on toys, each with its result."""
    published = {toy: FFJORDReference(toy) for toy in options.toys or RACE_TOYS}
    chosen = next(iter(published.values()))
    yield (
        f"FFJORD's training as published, rewritten, to the KL of recipe {toy_recipe()[0]} after "
        f"{options.budget:g} s; seconds of training, up to {options.cap:g}; {threads_used()}; KL "
        f"over {KL_ROWS} fresh rows"
    )
    yield f"tanh, exact divergence, dopri5 with adjoint, fresh rows, Adam; {chosen}"
    for toy, reference in published.items():
        ours = fit_of(options, toy)
        yield {"training": f"cnf, {toy}", **{name: ours[name] for name in RACE_COLUMNS}}
        if isnan(ours["KL"]):
            yield f"{toy}: no race"
            continue
        names = {"toy": toy, "target": ours["KL"], "cap": options.cap, "every": MEASURE_SECONDS}
        # The KL is over the rows that the target was measured on.
        far = partial(reference.distance, fresh_rows(toy, KL_ROWS, seed=0))
        run = partial(race, reference.step, far, ours["KL"], options.cap)
        theirs = options.results.recall(key_of(names, reference), run)
        yield {"training": f"FFJORD's, {toy}", **theirs}
        yield race_result(toy, ours, theirs)


def race(
    step: Callable[[], object],
    distance: Callable[[], Average],
    target: float,
    cap: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Take training steps until the KL reaches the target or the cap, and return `RACE_COLUMNS`.

    The KL is measured every `MEASURE_SECONDS` of training, which measurements do not add to. An
    AssertionError, in a step or a measurement, ends the race with a KL of NaN.
    """
    seconds, steps, far, note = 0.0, 0, Average(nan, nan), ""
    while not (far.mean <= target or seconds >= cap or note):
        due = min(seconds + MEASURE_SECONDS, cap)
        try:
            while seconds < due:
                begin = clock()
                step()
                seconds, steps = seconds + clock() - begin, steps + 1
            far = distance()
        except AssertionError:
            far, note = Average(nan, nan), "failed"
    return dict(zip(RACE_COLUMNS, (seconds, steps, far.mean, far.stderr, note), strict=True))


def race_result(toy: str, ours: Row, last: Row) -> str:
    """Return the result of a race from the fit that it started from and its last measurement."""
    if isnan(last["KL"]):
        return f"{toy}: FFJORD's training failed"
    more = "" if last["KL"] <= ours["KL"] else "more than "
    ratio = last["seconds"] / ours["seconds"]
    return f"{toy}: FFJORD's training takes {more}{ratio:.1f} times as long"
