"""The DETEST problems: written right, and solved as well as SciPy does for torchdiffeq's price.

`cnf benchmark solver --section detest` prints the same numbers for every tolerance.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from cnf.ode import TABLEAUS
from cnf.scripts.benchmarks.accuracy import (
    DETEST_TOLERANCES,
    affordable,
    compare_all,
    shared_methods,
    summarize,
)
from cnf.scripts.benchmarks.detest import DETEST

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

QUICK = (1e-3, 1e-6, 1e-9)


def cases(methods, quick):
    """Every method at every tolerance that it can reach; those not in `quick` run with -m slow."""
    return [
        pytest.param(
            method, tolerance, marks=[] if tolerance in quick(method) else pytest.mark.slow
        )
        for method in methods
        for tolerance in DETEST_TOLERANCES
        if affordable(method, tolerance)
    ]


# End states known in closed form.
CLOSED = {
    "A1": [np.exp(-20)],
    "A2": [1 / np.sqrt(21)],
    "A3": [np.exp(np.sin(20))],
    "A4": [20 / (1 + 19 * np.exp(-5))],
    "E1": [np.sqrt(2 / (np.pi * 21)) * np.sin(21)],
}


def end(problem, rtol=1e-12):
    span = (0, problem.t_end)
    options = {"method": "DOP853", "rtol": rtol, "atol": rtol * 1e-3}
    return solve_ivp(problem.numpy, span, problem.y0, **options).y[:, -1]


def test_five_problems_in_each_of_five_classes():
    assert list(DETEST) == [f"{letter}{number}" for letter in "ABCDE" for number in range(1, 6)]
    assert all(problem.t_end == 20 for problem in DETEST.values())


@pytest.mark.parametrize("name", DETEST)
def test_numpy_and_torch_agree(name):
    problem = DETEST[name]
    y = np.array(problem.y0) + 0.1
    theirs = problem.torch(torch.tensor(0.7, dtype=torch.float64), torch.from_numpy(y))
    assert theirs.dtype == torch.float64
    np.testing.assert_allclose(problem.numpy(0.7, y), theirs.numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form(name):
    """To what DOP853 at 1e-12 has left after 20 units of time."""
    found = end(DETEST[name])[: len(CLOSED[name])]
    np.testing.assert_allclose(found, CLOSED[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D4", "D5"])
def test_orbits_follow_keplers_equation(name):
    """y1 = cos u − e with u − e sin u = t: another way to the same place."""
    eccentricity, u = 1 - DETEST[name].y0[0], 20.0
    for _ in range(200):
        u -= (u - eccentricity * np.sin(u) - 20) / (1 - eccentricity * np.cos(u))
    place = [np.cos(u) - eccentricity, np.sqrt(1 - eccentricity**2) * np.sin(u)]
    np.testing.assert_allclose(end(DETEST[name])[:2], place, atol=1e-9)


@pytest.mark.parametrize("name", ["B2", "B3", "C1", "C2"])
def test_nothing_is_lost_on_the_way(name):
    assert end(DETEST[name]).sum() == pytest.approx(sum(DETEST[name].y0), abs=1e-10)


def test_outer_planets_one_pair_at_a_time():
    """C5 once more, as the paper's double sum."""
    from cnf.scripts.benchmarks.detest import _GRAVITY, _MASSES, _SUN

    y = np.array(DETEST["C5"].y0)
    places = y[:15].reshape(3, 5).T
    expected = np.zeros((5, 3))
    for j, own in enumerate(places):
        expected[j] = -(_SUN + _MASSES[j]) * own / np.linalg.norm(own) ** 3
        for k, other in enumerate(places):
            if k != j:
                pull = (other - own) / np.linalg.norm(other - own) ** 3
                expected[j] += _MASSES[k] * (pull - other / np.linalg.norm(other) ** 3)
    found = DETEST["C5"].numpy(0.0, y)[15:].reshape(3, 5).T
    np.testing.assert_allclose(found, _GRAVITY * expected, rtol=1e-12)


@pytest.mark.parametrize(("method", "tolerance"), cases(["dopri5"], lambda _: QUICK))
def test_as_accurate_as_scipy_over_all_problems(method, tolerance):
    """Errors below what is known of the truth (ten times the change from DOP853 at 1e-12 to one at
    3e-14) count as that much on both sides, so that no lucky zero makes a ratio.
    """
    comparisons = compare_all(method, tolerance)
    # At these tolerances there is room between errors and truth: the floor decides nothing.
    assert sum(each.error == each.resolution for each in comparisons) <= 1
    summary = summarize(comparisons)
    assert summary.mean_ratio <= 1.2
    assert summary.worst.ratio <= 10, summary.worst


@pytest.mark.parametrize(
    ("method", "tolerance"),
    cases(shared_methods(), lambda method: QUICK if method == "dopri5" else QUICK[:1]),
)
def test_no_more_evaluations_than_torchdiffeq(method, tolerance):
    """Each of its steps counted whole, see `Summary.whole_ratio`."""
    summary = summarize(compare_all(method, tolerance))
    last = TABLEAUS[method].first_same_as_last
    assert (summary.evaluations_ratio if last else summary.whole_ratio) <= 1.1, summary
