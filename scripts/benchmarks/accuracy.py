"""Accuracy on the DETEST problems, compared with SciPy's and torchdiffeq's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from scipy.stats import gmean

from cnf.ode import TABLEAUS, solve
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.detest import DETEST, DETEST_END, InitialValueProblem
from cnf.scripts.benchmarks.measure import Array, CountedField, TableItem
from cnf.scripts.benchmarks.options import BenchmarkOptions

DETEST_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


def shared_methods() -> list[str]:
    """Return the adaptive methods that torchdiffeq has as well."""
    peers = peer("torchdiffeq._impl.odeint").SOLVERS
    return [name for name, tableau in TABLEAUS.items() if name in peers and tableau.e is not None]


def affordable(method: str) -> list[float]:
    """Return the tolerances that a method can afford: its steps scale as tol^(-1/order)."""
    return [each for each in DETEST_TOLERANCES if each ** (-1 / TABLEAUS[method].order) < 300]


@cache
def compare_all(method: str, tolerance: float) -> pd.DataFrame:
    """Solve all problems with cnf, SciPy's RK45 and torchdiffeq, at rtol = atol = `tolerance`.

    Errors are the largest of a component at the end; below the accuracy of the reference solution,
    "resolution", they are not distinguished. torchdiffeq's numbers are NaN where its solve failed.
    """
    rows = []
    for name, problem in DETEST.items():
        exact, resolution = _truth(problem)
        options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance}
        y0, span = torch.tensor(problem.y0, dtype=torch.float64), [0.0, DETEST_END]
        ours = solve(problem.torch, y0, span, **options, max_steps=10**7)
        counted, theirs = CountedField(problem.torch), (nan, nan)
        with suppress(AssertionError):  # torchdiffeq's error for a step size that underflows
            peer("torchdiffeq").odeint(counted, y0, y0.new_tensor(span), **options)
            theirs = counted.calls, counted.steps
        ends = ours.ys[-1].numpy(), _scipy(problem, "RK45", tolerance, tolerance)
        errors = [max(float(np.abs(end - exact).max()), resolution) for end in ends]
        rows.append((name, *errors, resolution, int(ours.stats.evaluations), *theirs))
    columns = ["problem", "error", "scipy", "resolution", "evals", "tdeq", "tdeq steps"]
    return pd.DataFrame(rows, columns=columns).set_index("problem")


def summarize(method: str, tolerance: float) -> dict[str, Any]:
    """Summarize a method at a tolerance over all problems, as a row of the table.

    torchdiffeq begins every step with the last stage of the step before. Methods without the
    first-same-as-last property so lose their order: "whole" counts one more for each step.
    """
    found = compare_all(method, tolerance)
    ratio, solved = found["error"] / found["scipy"], found.dropna().sum()
    whole = solved["tdeq"] + (not TABLEAUS[method].first_same_as_last) * solved["tdeq steps"]
    return {
        "method": method,
        "tol": tolerance,
        "mean": float(gmean(ratio)),
        "worst": ratio.max(),
        "problem": ratio.idxmax(),
        "evals": int(solved["evals"]),
        "tdeq": int(solved["tdeq"]),
        "ratio": solved["evals"] / solved["tdeq"],
        "whole": solved["evals"] / whole,
        "torchdiffeq fails": ", ".join(found.index[found["tdeq"].isna()]),
    }


@cache
def _truth(problem: InitialValueProblem) -> tuple[Array, float]:
    """Return the end state by DOP853, and ten times its change at a tighter tolerance."""
    exact, tighter = (_scipy(problem, "DOP853", *each) for each in ((1e-12, 1e-15), (3e-14, 1e-16)))
    change, rounding = np.abs(exact - tighter).max(), np.finfo(np.float64).eps * np.abs(exact).max()
    return exact, 10 * float(max(change, rounding))


@cache
def _scipy(problem: InitialValueProblem, method: Any, rtol: float, atol: float) -> Array:
    y0, span = np.array(problem.y0), (0.0, DETEST_END)
    return np.asarray(solve_ivp(problem.numpy, span, y0, method, rtol=rtol, atol=atol).y[:, -1])


def lines(_: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table."""
    yield "DETEST: 25 problems, end-point error in units of SciPy RK45's at the same tolerance"
    for method in shared_methods():
        for tolerance in affordable(method):
            yield summarize(method, tolerance)
    yield "tdeq: torchdiffeq, evaluations summed over the problems; ratio: ours to theirs"
    yield "whole: with the evaluation that torchdiffeq omits in each step of methods without FSAL"
