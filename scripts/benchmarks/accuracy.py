"""Accuracy on the DETEST problems, compared with SciPy's and torchdiffeq's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from cnf.ode import TABLEAUS, solve
from cnf.scripts.benchmarks.detest import DETEST, InitialValueProblem
from cnf.scripts.benchmarks.peers import CountedField, peer

Array = NDArray[np.float64]

DETEST_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


@dataclass(frozen=True)
class SolverComparison:
    """One method on one problem at one tolerance, against SciPy's RK45 and torchdiffeq.

    Attributes:
        problem: The problem's name.
        error: Largest error of a component at the end; at least `resolution`.
        scipy_error: The error of SciPy's RK45; at least `resolution`.
        resolution: Accuracy of the reference solution: smaller errors cannot be distinguished.
        evaluations: Evaluations of the dynamics.
        theirs: Evaluations and accepted steps of torchdiffeq; None where its solve failed.
    """

    problem: str
    error: float
    scipy_error: float
    resolution: float
    evaluations: int
    theirs: tuple[int, int] | None

    @property
    def ratio(self) -> float:
        """The error in units of SciPy's."""
        return self.error / self.scipy_error


@dataclass(frozen=True)
class ComparisonSummary:
    """One method at one tolerance over all problems.

    Attributes:
        mean_ratio: Geometric mean of the error in units of SciPy's.
        worst: The comparison with the largest ratio.
        evaluations: Evaluations of the dynamics, summed over the problems that torchdiffeq solved.
        their_evaluations: Evaluations of torchdiffeq on these problems.
        their_steps: Accepted steps of torchdiffeq on these problems.
        failed: The problems that torchdiffeq did not solve.
    """

    mean_ratio: float
    worst: SolverComparison
    evaluations: int
    their_evaluations: int
    their_steps: int
    failed: tuple[str, ...]

    @property
    def evaluations_ratio(self) -> float:
        """The evaluations in units of torchdiffeq's; NaN where it solved nothing."""
        return self.evaluations / self.their_evaluations if self.their_evaluations else nan

    @property
    def whole_ratio(self) -> float:
        """The ratio of evaluations with one more for each of torchdiffeq's steps.

        torchdiffeq begins every step with the last stage of the step before. This is the slope
        there for methods with the first-same-as-last property; other methods save the evaluation
        but lose their order.
        """
        return self.evaluations / (self.their_evaluations + self.their_steps or nan)


def shared_methods() -> list[str]:
    """Return the adaptive methods that torchdiffeq has as well."""
    peers = peer("torchdiffeq._impl.odeint").SOLVERS
    return [name for name, tableau in TABLEAUS.items() if name in peers and tableau.e is not None]


def affordable(method: str, tolerance: float) -> bool:
    """Return whether a method can afford a tolerance: its steps scale as tol^(-1/order)."""
    steps: float = tolerance ** (-1 / TABLEAUS[method].order)
    return steps < 300


def compare(problem: InitialValueProblem, method: str, tolerance: float) -> SolverComparison:
    """Solve a problem with cnf, SciPy and torchdiffeq, at rtol = atol = `tolerance`."""
    exact, resolution = _truth(problem)
    ours = solve(
        problem.torch,
        torch.tensor(problem.y0, dtype=torch.float64),
        [0.0, problem.t_end],
        method=method,
        rtol=tolerance,
        atol=tolerance,
        max_steps=10**7,
    )

    def error(end: Array) -> float:
        return max(float(np.abs(end - exact).max()), resolution)

    return SolverComparison(
        problem=problem.name,
        error=error(ours.ys[-1].numpy()),
        scipy_error=error(_scipy(problem, "RK45", tolerance, tolerance)),
        resolution=resolution,
        evaluations=int(ours.stats.evaluations),
        theirs=_torchdiffeq_work(problem, method, tolerance),
    )


def compare_all(method: str, tolerance: float) -> list[SolverComparison]:
    """Compare the solvers on all problems."""
    return [compare(problem, method, tolerance) for problem in DETEST.values()]


def summarize(comparisons: Sequence[SolverComparison]) -> ComparisonSummary:
    """Summarize comparisons by means, sums and the worst one.

    Example:
        >>> two = [
        ...     SolverComparison("A1", 2.0, 1.0, 0.1, 30, (20, 5)),
        ...     SolverComparison("A2", 1.0, 2.0, 0.1, 30, (40, 5)),
        ... ]
        >>> summary = summarize(two)
        >>> summary.mean_ratio, summary.worst.problem, summary.evaluations_ratio
        (1.0, 'A1', 1.0)
    """
    work = [(each.evaluations, *each.theirs) for each in comparisons if each.theirs is not None]
    return ComparisonSummary(
        mean_ratio=geometric_mean(comparison.ratio for comparison in comparisons),
        worst=max(comparisons, key=lambda comparison: comparison.ratio),
        evaluations=sum(ours for ours, _, _ in work),
        their_evaluations=sum(theirs for _, theirs, _ in work),
        their_steps=sum(steps for _, _, steps in work),
        failed=tuple(each.problem for each in comparisons if each.theirs is None),
    )


@cache
def _truth(problem: InitialValueProblem) -> tuple[Array, float]:
    """Return the end state by DOP853, and ten times its change at a tighter tolerance."""
    exact = _scipy(problem, "DOP853", 1e-12, 1e-15)
    change = float(np.abs(exact - _scipy(problem, "DOP853", 3e-14, 1e-16)).max())
    return exact, 10 * max(change, float(np.finfo(np.float64).eps * np.abs(exact).max()))


@cache
def _scipy(problem: InitialValueProblem, method: Any, rtol: float, atol: float) -> Array:
    span = (0.0, problem.t_end)
    options = {"method": method, "rtol": rtol, "atol": atol}
    end: Array = solve_ivp(problem.numpy, span, np.array(problem.y0), **options).y[:, -1]
    return end


@cache
def _torchdiffeq_work(
    problem: InitialValueProblem, method: str, tolerance: float
) -> tuple[int, int] | None:
    counted = CountedField(problem.torch)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    times = torch.tensor([0.0, problem.t_end], dtype=torch.float64)
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    try:
        peer("torchdiffeq").odeint(counted, y0, times, **options)
    except AssertionError:  # torchdiffeq's error for a step size that underflows
        return None
    return counted.calls, counted.steps


def lines() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "DETEST: 25 problems, end-point error in units of SciPy RK45's at the same tolerance"
    yield (
        f"{'method':<15}{'tol':>7}{'mean':>8}{'worst':>9}{'':5}{'evals':>9}{'tdeq':>9}{'ratio':>7}"
        f"{'whole':>7}"
    )
    for method in shared_methods():
        last = TABLEAUS[method].first_same_as_last
        for tolerance in (each for each in DETEST_TOLERANCES if affordable(method, each)):
            summary = summarize(compare_all(method, tolerance))
            whole = summary.evaluations_ratio if last else summary.whole_ratio
            yield (
                f"{method:<15}{tolerance:>7.0e}{summary.mean_ratio:>8.3g}"
                f"{summary.worst.ratio:>9.3g} {summary.worst.problem:<4}{summary.evaluations:>9}"
                f"{summary.their_evaluations:>9}{summary.evaluations_ratio:>7.3f}{whole:>7.3f}"
                + (f"  torchdiffeq fails: {', '.join(summary.failed)}" if summary.failed else "")
            )
    yield "tdeq: torchdiffeq, evaluations summed over the problems; ratio: ours to theirs"
    yield (
        "whole: with the evaluation that torchdiffeq omits in each step of adaptive_heun and "
        "fehlberg2, whose last stage is not the first of the next step"
    )
