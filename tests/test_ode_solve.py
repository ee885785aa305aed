"""The solver against closed forms, SciPy and torchdiffeq; its statuses and errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from cnf.ode import PerRow, SolveError, Status, max_norm, row_max_norm, solve

ONE = torch.ones(1, dtype=torch.float64)


def decay(t, y, args):
    return -y


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_is_of_the_order_of_the_tolerance(tolerance):
    solution = solve(decay, ONE, [0.0, 3.0], rtol=tolerance, atol=tolerance)
    assert abs(solution.ys[-1].item() - math.exp(-3)) < 5 * tolerance
    # Two for the first slope and the first step's size, then six for each step tried.
    stats = solution.stats
    assert stats.evaluations == 2 + 6 * (stats.accepted + stats.rejected)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6, unique=True), st.booleans())
@settings(deadline=None, max_examples=15)
def test_every_output_time_in_either_direction(times, reverse):
    times = sorted({round(t, 3) for t in times}, reverse=reverse)
    if len(times) < 2:
        return
    solution = solve(decay, ONE, times, rtol=1e-9, atol=1e-9)
    exact = np.exp(times[0] - np.array(times))
    np.testing.assert_allclose(solution.ys[:, 0].numpy(), exact, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_as_accurate_as_scipy_for_the_same_evaluations(tolerance):
    def van_der_pol(t, y):
        x, v = y
        return v, 2 * (1 - x**2) * v - x

    y0, options = [2.0, 0.0], {"rtol": tolerance, "atol": tolerance}
    exact = solve_ivp(van_der_pol, (0, 10), y0, method="DOP853", rtol=1e-12, atol=1e-12)
    theirs = solve_ivp(van_der_pol, (0, 10), y0, method="RK45", **options)
    rows = torch.tensor([y0], dtype=torch.float64)
    ours = solve(lambda t, y, _: torch.stack(van_der_pol(t, y.T), 1), rows, [0.0, 10.0], **options)
    our_error = np.abs(ours.ys[-1, 0].numpy() - exact.y[:, -1]).max()
    their_error = np.abs(theirs.y[:, -1] - exact.y[:, -1]).max()
    assert our_error < 10 * max(their_error, tolerance)
    assert ours.stats.evaluations < 1.2 * theirs.nfev


def kick(t, y, args):
    return torch.exp(-((t - 5) ** 2) / 0.02) + 0 * y


def wake(t, y, args):
    return torch.where(t > 0.4, torch.cos(3 * t), 0 * t) + 0 * y


@pytest.mark.parametrize("step", ["joint", "per_sample"])
@pytest.mark.parametrize(
    ("f", "end", "method", "exact", "error", "evaluations"),
    [
        (kick, 20.0, "dopri8", 1 + math.sqrt(0.02 * math.pi), 1e-5, 282),
        (wake, 1.0, "dopri5", 1 + (math.sin(3) - math.sin(1.2)) / 3, 2.3e-3, 176),
        (wake, 1.0, "bosh3", 1 + (math.sin(3) - math.sin(1.2)) / 3, 2e-5, 146),
    ],
)
def test_dynamics_that_rest_and_then_wake(f, end, method, exact, error, evaluations, step):
    """As well as after a first step of 1e-6, by about as many evaluations at most."""
    solution = solve(f, ONE.view(1, 1), [0.0, end], method=method, step=step)
    assert solution.ys[-1].item() == pytest.approx(exact, abs=error)
    assert np.all(np.asarray(solution.stats.evaluations) <= evaluations)


def test_dynamics_at_rest_take_few_steps():
    assert solve(lambda t, y, args: 0 * y, ONE, [0.0, 20.0]).stats.evaluations <= 32


def test_close_output_times_do_not_shrink_the_steps_after_them():
    sparse, dense = (solve(decay, ONE, [0.0, *inside, 5.0]) for inside in ([], [1.0, 1.0 + 1e-9]))
    assert dense.stats.accepted <= sparse.stats.accepted + 3


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype(shape, dtype):
    y0 = torch.rand(shape, dtype=dtype) + 0.5
    ys = solve(decay, y0, [0.0, 1.0], rtol=1e-6, atol=1e-6).ys
    assert ys.shape == (2, *shape)
    assert ys.dtype == dtype
    torch.testing.assert_close(ys[-1], y0 * math.exp(-1), rtol=1e-4, atol=1e-5)


def test_times_where_float32_has_little_resolution():
    solution = solve(decay, torch.ones(1), [1000.0, 1001.0])
    assert solution.ys[-1].item() == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize(
    ("f", "options", "status", "message"),
    [
        (
            lambda t, y, args: torch.where(torch.arange(5).unsqueeze(1) == 3, torch.nan, y),
            {"y0": torch.ones(5, 2)},
            Status.NOT_FINITE,
            r"NaN or infinite.*\(rows 3\)",
        ),
        (
            lambda t, y, args: -1e6 * (y - torch.cos(t)),
            {"max_steps": 500},
            Status.STEP_LIMIT,
            "step limit.*stiff.*Raise max_steps",
        ),
        (
            lambda t, y, args: torch.where(t > 1 / 3, 1e12, 0.0) * torch.ones_like(y),
            {"rtol": 1e-12, "atol": 1e-12},
            Status.STEP_TOO_SMALL,
            "resolution of time",
        ),
    ],
)
def test_failures_say_why(f, options, status, message):
    """A row of NaN, stiff dynamics, a jump."""
    with pytest.raises(SolveError, match=message) as caught:
        solve(f, **{"y0": ONE, "t": [0.0, 1.0]} | options)
    solution = caught.value.solution
    assert solution.status is status
    assert solution.rows == ((3,) if "y0" in options else (0,))
    if "max_steps" in options:
        assert solution.stats.accepted + solution.stats.rejected == options["max_steps"]
        assert 0 < solution.last_times[0] < 1


ROWS = PerRow(torch.ones(3, 1))
SLOPES = torch.zeros(1), torch.zeros(2, 3), torch.zeros(2, 2).double()
SLOPE = r"a slope like the state, \(2, 2\) and torch.float32; got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": [0.0]}, "at least two finite times"),
        ({"t": [0.0, 1.0, 0.5]}, "strictly increasing or decreasing"),
        ({"t": [0.0, 0.0]}, "strictly"),
        ({"t": [0.0, math.nan]}, "strictly"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, "floating dtype; got torch.int64"),
        ({"y0": torch.tensor(1.0), "step": "per_sample"}, "rows for per-sample steps"),
        ({"args": ROWS}, r"PerRow tensors with 2 rows.*got shape \(3, 1\)"),
        ({"args": ROWS, "step": "per_sample"}, "PerRow tensors with 2 rows"),
        ({"method": "dopri6"}, "method to be one of .*dopri5.*; got 'dopri6'"),
        ({"method": "rk4"}, "step_size with method 'rk4'"),
        ({"gradient": "adjoint"}, "gradient to be one of"),
        ({"step": "each"}, "step to be one of joint, per_sample"),
        ({"on_failure": "rise"}, "on_failure to be one of raise; got 'rise'"),
        ({"rtol": -1.0}, "rtol to be a number of at least 0"),
        ({"atol": torch.tensor([1.0, -1.0])}, "atol to be a number of at least 0"),
        ({"rtol": torch.ones(3, 2)}, r"rtol to broadcast against y0 of shape \(2, 2\)"),
        ({"norm": row_max_norm}, "norm to return a scalar with joint steps"),
        ({"norm": max_norm, "step": "per_sample"}, "one number for each row"),
        ({"max_steps": 0}, "max_steps to be above 0"),
        ({"first_step": -0.1}, "first_step to be above 0"),
        ({"max_step": 0.0}, "max_step to be above 0"),
        ({"min_step": -1.0}, "min_step to be at least 0"),
        ({"min_step": math.nan}, "min_step to be at least 0"),
        ({"step_size": -0.1}, "step_size to be above 0"),
        ({"step_size": 1e-5}, "at most max_steps = 10000 steps; got 100000"),
        ({"step_size": torch.tensor([0.0, 0.5])}, "times from 0 to 1"),
        ({"stops": [0.5, 1.5]}, "stops to be times between 0 and 1"),
        *(({"f": lambda t, y, args, slope=slope: slope}, SLOPE) for slope in SLOPES),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(**{"f": decay, "y0": torch.ones(2, 2), "t": [0.0, 1.0]} | changes)
