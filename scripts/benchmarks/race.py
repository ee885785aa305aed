"""The time that FFJORD's method as published takes to reach the KL of this library's flow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite, isnan, nan
from typing import Any

import torch

from cnf.scripts.benchmarks.fits import ToyFit, default_recipe, fit_of, trial_of
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.reference import PUBLISHED_SETTINGS, FFJORDReference
from cnf.scripts.benchmarks.result_cache import fingerprint
from cnf.scripts.benchmarks.truth import KL_ROWS, WATCH_STREAM, Distance, fresh_rows

RACE_TOYS = ("8gaussians", "moons")
MEASURE_SECONDS = 30.0  # seconds of training between two measurements
WATCH_ROWS = 5000  # of the frequent measurements

MeasureDistance = Callable[[], Distance]


@dataclass(frozen=True)
class RaceRules:
    """The end conditions of a race.

    Attributes:
        target: The KL to reach, in nats.
        cap: The longest training time, in seconds.
        every: Seconds of training between two measurements.
    """

    target: float
    cap: float
    every: float = MEASURE_SECONDS


@dataclass(frozen=True)
class RacePoint:
    """A measurement during a race.

    Attributes:
        seconds: Seconds of training so far.
        steps: Training steps so far.
        kl: KL divergence in nats; NaN where training failed.
        stderr: Standard error of `kl`.
        confirmed: Whether `kl` is over all rows, not only over the watched ones.
        reached: Whether the target is reached over all rows.
    """

    seconds: float
    steps: int
    kl: float
    stderr: float
    confirmed: bool = False
    reached: bool = False

    def __str__(self) -> str:
        rows = KL_ROWS if self.confirmed else WATCH_ROWS
        far = Distance(self.kl, self.stderr)
        return f"{self.seconds:>8.0f} s{self.steps:>9} steps   KL {far} over {rows} rows"


@dataclass(frozen=True)
class RaceKey:
    """The key of a finished race in the cache."""

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
    watch: MeasureDistance,
    confirm: MeasureDistance,
    rules: RaceRules,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[RacePoint]:
    """Train until the target or the cap, with measurements that do not count as training time.

    Args:
        step: Takes a training step. An AssertionError, torchdiffeq's error for a step size that
            underflows, ends the race with a point of NaN, here and in measurements.
        watch: Measures on few rows.
        confirm: Measures on all rows, once `watch` reaches the target; this result decides.
        rules: Target, cap and interval of measurements.
        clock: Returns the time in seconds.
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
            point = RacePoint(seconds, steps, nan, nan)
        yield point
        if point.reached or seconds >= rules.cap or isnan(point.kl):
            return
        due = seconds + rules.every


def race_result(toy: str, ours: ToyFit, last: RacePoint) -> str:
    """Return the result of a race from its last point.

    Example:
        >>> ours = ToyFit(0.01, 0.001, 60.0, 900, 20.0, 40.0, "budget")
        >>> race_result("moons", ours, RacePoint(600.0, 5000, 0.01, 0.001, True, True))
        "moons: cnf took 60 s, FFJORD's method 600 s: 10.0 times as long"
        >>> race_result("moons", ours, RacePoint(900.0, 9000, 0.02, 0.001))
        "moons: cnf took 60 s, FFJORD's method more than 900 s: more than 15.0 times as long"
    """
    if isnan(last.kl):
        return f"{toy}: FFJORD's training failed after {last.seconds:.0f} s"
    more = "" if last.reached else "more than "
    return (
        f"{toy}: cnf took {ours.seconds:.0f} s, FFJORD's method {more}{last.seconds:.0f} s: "
        f"{more}{last.seconds / ours.seconds:.1f} times as long"
    )


def lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the lines of the race on each toy, point by point."""
    name, _ = default_recipe()
    yield (
        f"FFJORD's method as published, to the KL of recipe {name} after {options.budget:g} s; "
        f"seconds of training, up to {options.cap:g}; threads: {torch.get_num_threads()}"
    )
    yield _settings()
    for toy in options.toys or RACE_TOYS:
        ours = fit_of(options, trial_of(options, toy))
        cached = ", cached" if ours.cached else ""
        yield f"{toy}: cnf {ours.seconds:.0f} s, {ours.steps} steps, KL {ours.distance}{cached}"
        if isfinite(ours.kl):
            yield from _race_lines(options, toy, ours)
        else:
            yield f"{toy}: no race; cnf's training {ours.reason}"


def _race_lines(options: BenchmarkOptions, toy: str, ours: ToyFit) -> Iterator[str]:
    """Yield the points and the result of a toy's race, from the cache if it has finished."""
    seed, threads = 0, torch.get_num_threads()
    mark = fingerprint(asdict(PUBLISHED_SETTINGS))
    key = RaceKey(toy, ours.kl, options.cap, MEASURE_SECONDS, seed, threads, mark)
    found = options.toy_results.find(asdict(key), ["points"])
    if found is not None:
        points = [_point(each) for each in found["points"]]
        yield from map(str, points)
        yield f"{race_result(toy, ours, points[-1])}, cached"
        return
    points = []
    for point in _races(key):
        points.append(point)
        yield str(point)
    options.toy_results.add(asdict(key), {"points": [asdict(point) for point in points]})
    yield race_result(toy, ours, points[-1])


def _races(key: RaceKey) -> Iterator[RacePoint]:
    """Run a race, with the target confirmed on the rows that it was measured on."""
    reference = FFJORDReference(key.toy, key.seed)
    few = fresh_rows(key.toy, WATCH_ROWS, key.seed, WATCH_STREAM)
    every = fresh_rows(key.toy, KL_ROWS, key.seed)
    return race(
        reference.step,
        partial(reference.distance, few),
        partial(reference.distance, every),
        RaceRules(key.target, key.cap, key.every),
    )


def _measure(
    watch: MeasureDistance, confirm: MeasureDistance, target: float, seconds: float, steps: int
) -> RacePoint:
    far = watch()
    if far.kl > target:
        return RacePoint(seconds, steps, far.kl, far.stderr)
    far = confirm()
    return RacePoint(seconds, steps, far.kl, far.stderr, confirmed=True, reached=far.kl <= target)


def _point(numbers: dict[str, Any]) -> RacePoint:
    known: dict[str, Any] = {k: nan if v is None else v for k, v in numbers.items()}
    return RacePoint(**known)


def _settings() -> str:
    chosen = PUBLISHED_SETTINGS
    sizes = "-".join(map(str, (2, *chosen.hidden, 2)))
    return (
        f"{sizes} tanh, exact divergence, dopri5 with adjoint at {chosen.tolerance:g}, time to "
        f"{chosen.end:g}; {chosen.batch} fresh rows a step, Adam at {chosen.learning_rate:g}, "
        f"weight decay {chosen.weight_decay:g}"
    )
