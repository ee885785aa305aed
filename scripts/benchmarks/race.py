"""The time that FFJORD's method as published takes to come as close as this library's flow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite, isnan, nan
from typing import Any

import torch

from cnf.scripts.benchmarks.cells import fingerprint
from cnf.scripts.benchmarks.fits import Fit, cell_of, default_recipe, fit_of
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.reference import PUBLISHED, Reference
from cnf.scripts.benchmarks.truth import FRESH, WATCHED, Distance, fresh_rows

RACED = ("8gaussians", "moons")
EVERY = 30.0  # seconds of training between two measurements
WATCH = 5000  # rows that are enough to see where it stands

Measure = Callable[[], Distance]


@dataclass(frozen=True)
class Rules:
    """When a race is over.

    Attributes:
        target: The KL to reach, in nats.
        cap: The most seconds of training.
        every: Seconds of training between two measurements.
    """

    target: float
    cap: float
    every: float = EVERY


@dataclass(frozen=True)
class Point:
    """A measurement on the way.

    Attributes:
        seconds: Of training so far.
        steps: Taken in them.
        kl: In nats; NaN where training failed.
        stderr: Its standard error.
        confirmed: Whether it is over all rows, not only those that are watched.
        reached: Whether the target is, over all of them.
    """

    seconds: float
    steps: int
    kl: float
    stderr: float
    confirmed: bool = False
    reached: bool = False

    def __str__(self) -> str:
        rows = FRESH if self.confirmed else WATCH
        far = Distance(self.kl, self.stderr)
        return f"{self.seconds:>8.0f} s{self.steps:>9} steps   KL {far} over {rows} rows"


@dataclass(frozen=True)
class Contest:
    """What is measured: by which a finished race is known again."""

    toy: str
    target: float
    cap: float
    every: float
    seed: int
    threads: int
    settings: str
    method: str = "ffjord"


def race(
    step: Callable[[], object],
    watch: Measure,
    confirm: Measure,
    rules: Rules,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Point]:
    """Train until the target or the cap, and measure now and then while the clock stands.

    Args:
        step: Takes a training step. An AssertionError, torchdiffeq's word for a step size that
            underflows, ends the race with a point of NaN, here and while measuring.
        watch: Measures on few rows.
        confirm: Measures on all of them, once `watch` says that the target is reached; its word
            counts.
        rules: Target, cap, and how often.
        clock: In seconds.
    """
    seconds, steps, due = 0.0, 0, rules.every
    while True:
        try:
            begin = clock()
            step()
            seconds, steps = seconds + clock() - begin, steps + 1
            if seconds < min(due, rules.cap):
                continue
            point = _measure(watch, confirm, rules.target, seconds, steps)
        except AssertionError:
            point = Point(seconds, steps, nan, nan)
        yield point
        if point.reached or seconds >= rules.cap or isnan(point.kl):
            return
        due = seconds + rules.every


def verdict(toy: str, ours: Fit, last: Point) -> str:
    """What a race's last point says.

    Example:
        >>> ours = Fit(0.01, 0.001, 60.0, 900, 20.0, 40.0, "budget")
        >>> verdict("moons", ours, Point(600.0, 5000, 0.01, 0.001, True, True))
        "moons: cnf took 60 s, FFJORD's method 600 s: 10.0 times as long"
        >>> verdict("moons", ours, Point(900.0, 9000, 0.02, 0.001))
        "moons: cnf took 60 s, FFJORD's method more than 900 s: more than 15.0 times as long"
    """
    if isnan(last.kl):
        return f"{toy}: FFJORD's training failed after {last.seconds:.0f} s"
    more = "" if last.reached else "more than "
    return (
        f"{toy}: cnf took {ours.seconds:.0f} s, FFJORD's method {more}{last.seconds:.0f} s: "
        f"{more}{last.seconds / ours.seconds:.1f} times as long"
    )


def lines(options: Options) -> Iterator[str]:
    """The race on each toy, point by point as they come."""
    name, _ = default_recipe()
    yield (
        f"FFJORD's method as published, to the KL of recipe {name} after {options.budget:g} s; "
        f"seconds of training, up to {options.cap:g}; threads: {torch.get_num_threads()}"
    )
    yield _settings()
    for toy in options.toys or RACED:
        ours = fit_of(options, cell_of(options, toy))
        kept = ", there already" if ours.kept else ""
        yield f"{toy}: cnf {ours.seconds:.0f} s, {ours.steps} steps, KL {ours.distance}{kept}"
        if isfinite(ours.kl):
            yield from _race_lines(options, toy, ours)
        else:
            yield f"{toy}: no race; cnf's training {ours.reason}"


def _race_lines(options: Options, toy: str, ours: Fit) -> Iterator[str]:
    """The points of a toy's race, and the verdict; those of a race that is finished already."""
    seed, threads = 0, torch.get_num_threads()
    mark = fingerprint(asdict(PUBLISHED))
    contest = Contest(toy, ours.kl, options.cap, EVERY, seed, threads, mark)
    found = options.toy_cells.find(asdict(contest), ["points"])
    if found is not None:
        points = [_point(each) for each in found["points"]]
        yield from map(str, points)
        yield f"{verdict(toy, ours, points[-1])}, there already"
        return
    points = []
    for point in _races(contest):
        points.append(point)
        yield str(point)
    options.toy_cells.add(asdict(contest), {"points": [asdict(point) for point in points]})
    yield verdict(toy, ours, points[-1])


def _races(contest: Contest) -> Iterator[Point]:
    """Run a race; the target is to be reached on the very rows that it was measured on."""
    reference = Reference(contest.toy, contest.seed)
    few = fresh_rows(contest.toy, WATCH, contest.seed, WATCHED)
    every = fresh_rows(contest.toy, FRESH, contest.seed)
    return race(
        reference.step,
        partial(reference.distance, few),
        partial(reference.distance, every),
        Rules(contest.target, contest.cap, contest.every),
    )


def _measure(watch: Measure, confirm: Measure, target: float, seconds: float, steps: int) -> Point:
    far = watch()
    if far.kl > target:
        return Point(seconds, steps, far.kl, far.stderr)
    far = confirm()
    return Point(seconds, steps, far.kl, far.stderr, confirmed=True, reached=far.kl <= target)


def _point(numbers: dict[str, Any]) -> Point:
    known: dict[str, Any] = {k: nan if v is None else v for k, v in numbers.items()}
    return Point(**known)


def _settings() -> str:
    chosen = PUBLISHED
    sizes = "-".join(map(str, (2, *chosen.hidden, 2)))
    return (
        f"{sizes} tanh, exact divergence, dopri5 with adjoint at {chosen.tolerance:g}, time to "
        f"{chosen.end:g}; {chosen.batch} fresh rows a step, Adam at {chosen.learning_rate:g}, "
        f"weight decay {chosen.weight_decay:g}"
    )
