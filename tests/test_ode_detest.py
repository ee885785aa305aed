"""The DETEST problems: written right, and solved as well as SciPy does for torchdiffeq's price.

`cnf benchmark solver --section detest` prints the same numbers for every tolerance.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from cnf.ode import solve
from cnf.scripts.benchmarks import accuracy
from cnf.scripts.benchmarks.accuracy import affordable, compare_all, shared_methods, summarize
from cnf.scripts.benchmarks.detest import _GRAVITY, _MASSES, _SUN, DETEST, DETEST_END

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

FIRST = {name: problem for name, problem in DETEST.items() if name[1] == "1"}  # of each class
QUICK = [("dopri5", 1e-3), ("dopri5", 1e-5), ("dopri8", 1e-3), ("bosh3", 1e-3), ("fehlberg2", 1e-3)]
CASES = [(name, each) for name in shared_methods() for each in affordable(name)]

# End states known in closed form.
CLOSED = {
    "A1": [np.exp(-20)],
    "A2": [1 / np.sqrt(21)],
    "A3": [np.exp(np.sin(20))],
    "A4": [20 / (1 + 19 * np.exp(-5))],
    "E1": [np.sqrt(2 / (np.pi * 21)) * np.sin(21)],
}


def end(problem):
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-15}
    return solve_ivp(problem.numpy, (0, DETEST_END), problem.y0, **options).y[:, -1]


@pytest.mark.parametrize("name", [f"{letter}{i}" for letter in "ABCDE" for i in range(1, 6)])
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


@pytest.mark.parametrize(("tolerance", "evaluations"), [(1e-3, 248), (1e-5, 578), (1e-8, 1784)])
def test_start_from_rest(tolerance, evaluations):
    """E3 starts from zero at a slope of zero: no more evaluations than from a step of 1e-6."""
    y0 = torch.tensor(DETEST["E3"].y0, dtype=torch.float64)
    solution = solve(DETEST["E3"].torch, y0, [0, DETEST_END], rtol=tolerance, atol=tolerance)
    assert solution.stats.evaluations <= evaluations
    assert np.abs(solution.ys[-1].numpy() - end(DETEST["E3"])).max() < 200 * tolerance


def assert_as_good(method, tolerance):
    """With no more evaluations than torchdiffeq (see `summarize`), dopri5 is as accurate as RK45.

    Errors below what is known of the truth (ten times the change from DOP853 at 1e-12 to one at
    3e-14) count as that much on both sides, so that no lucky zero makes a ratio.
    """
    summary = summarize(method, tolerance)
    assert summary["whole"] <= 1.1
    if method == "dopri5":
        found = compare_all(method, tolerance)
        # At these tolerances there is room between errors and truth: the floor decides nothing.
        assert (found["error"] == found["resolution"]).sum() <= 1
        assert summary["mean"] <= 1.2
        assert summary["worst"] <= 10, summary


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tolerance"), CASES)
def test_evaluations_of_torchdiffeq_and_accuracy_of_scipy_over_all_problems(method, tolerance):
    assert_as_good(method, tolerance)


@pytest.mark.parametrize(("method", "tolerance"), QUICK)
def test_evaluations_and_accuracy_over_a_problem_of_each_class(method, tolerance, monkeypatch):
    monkeypatch.setattr(accuracy, "DETEST", FIRST)
    compare_all.cache_clear()  # whose values depend on the problems
    try:
        assert_as_good(method, tolerance)
    finally:
        compare_all.cache_clear()
