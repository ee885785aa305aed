"""The solver against closed forms, SciPy and torchdiffeq; its statuses and errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

from cnf.ode import SolveError, Status, solve

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ONE = torch.ones(1, dtype=torch.float64)


def decay(t, y, args):
    return -y


def van_der_pol(t, y, args):
    """Of shape (rows, 2), with the stiffness as argument."""
    x, v = y.unbind(1)
    return torch.stack([v, args * (1 - x**2) * v - x], 1)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_is_of_the_order_of_the_tolerance(tolerance):
    solution = solve(decay, ONE, [0.0, 3.0], rtol=tolerance, atol=tolerance)
    assert abs(solution.ys[-1].item() - math.exp(-3)) < 5 * tolerance


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6, unique=True), st.booleans())
@settings(deadline=None, max_examples=30)
def test_every_output_time_in_either_direction(times, reverse):
    times = sorted({round(t, 3) for t in times}, reverse=reverse)
    if len(times) < 2:
        return
    solution = solve(decay, ONE, times, rtol=1e-9, atol=1e-9)
    exact = np.exp(times[0] - np.array(times))
    np.testing.assert_allclose(solution.ys[:, 0].numpy(), exact, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_as_accurate_as_scipy_for_the_same_evaluations(tolerance):
    y0, t_end, mu = [2.0, 0.0], 10.0, 2.0

    def numpy_dynamics(t, y):
        return [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]

    options = {"rtol": tolerance, "atol": tolerance}
    exact = solve_ivp(numpy_dynamics, (0, t_end), y0, method="DOP853", rtol=1e-12, atol=1e-12)
    theirs = solve_ivp(numpy_dynamics, (0, t_end), y0, method="RK45", **options)
    rows = torch.tensor([y0], dtype=torch.float64)
    ours = solve(van_der_pol, rows, [0.0, t_end], torch.tensor(mu), **options)
    our_error = np.abs(ours.ys[-1, 0].numpy() - exact.y[:, -1]).max()
    their_error = np.abs(theirs.y[:, -1] - exact.y[:, -1]).max()
    assert our_error < 10 * max(their_error, tolerance)
    assert ours.stats.evaluations < 1.2 * theirs.nfev


def test_agrees_with_torchdiffeq():
    y0, times = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0, 2, 4).double()
    mu = torch.tensor(1.5, dtype=torch.float64)
    ours = solve(van_der_pol, y0, times, mu, rtol=1e-10, atol=1e-10).ys
    theirs = odeint(lambda t, y: van_der_pol(t, y, mu), y0, times, rtol=1e-10, atol=1e-10)
    assert (ours - theirs).abs().max() < 1e-8


def test_first_same_as_last_saves_an_evaluation_a_step():
    stats = solve(decay, ONE, [0.0, 3.0]).stats
    # Two for the first slope and the first step's size, then six for each step tried.
    assert stats.evaluations == 2 + 6 * (stats.accepted + stats.rejected)


def test_a_given_first_step_is_taken():
    calls = []

    def f(t, y, args):
        calls.append(t.item())
        return -y

    solve(f, ONE, [0.0, 3.0], first_step=0.01)
    assert calls[-1] == 3.0
    assert max(calls[:7]) == pytest.approx(0.01)


def test_close_output_times_do_not_shrink_the_steps_after_them():
    sparse = solve(decay, ONE, [0.0, 5.0])
    dense = solve(decay, ONE, [0.0, 1.0, 1.0 + 1e-9, 5.0])
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


def test_nan_from_the_start_names_its_rows():
    def f(t, y, args):
        return torch.where(torch.arange(5).unsqueeze(1) == 3, torch.nan, y)

    with pytest.raises(SolveError, match=r"NaN or infinite.*\(rows 3\)") as caught:
        solve(f, torch.ones(5, 2), [0.0, 1.0])
    assert caught.value.solution.status is Status.NOT_FINITE
    assert caught.value.solution.rows == (3,)


def test_nan_midway_is_distinguished_from_stiffness():
    def f(t, y, args):
        return torch.where((t > 0.5) & (torch.arange(5).unsqueeze(1) == 2), torch.nan, -y)

    solution = solve(f, torch.ones(5, 2), [0.0, 0.25, 1.0], on_failure="return")
    assert solution.status is Status.NOT_FINITE
    assert solution.rows == (2,)
    # Earlier outputs are kept, the other rows finish, the rest is NaN.
    torch.testing.assert_close(
        solution.ys[1], torch.full((5, 2), math.exp(-0.25)), atol=1e-5, rtol=0
    )
    others = torch.tensor([0, 1, 3, 4])
    end = torch.full((4, 2), math.exp(-1))
    torch.testing.assert_close(solution.ys[2, others], end, atol=1e-5, rtol=0)
    assert solution.ys[2, 2].isnan().all()


def test_stiff_dynamics_hit_the_step_limit_and_say_so():
    def f(t, y, args):
        return -1e6 * (y - torch.cos(t))

    with pytest.raises(SolveError, match="step limit.*stiff.*Raise max_steps") as caught:
        solve(f, ONE, [0.0, 1.0], max_steps=500)
    solution = caught.value.solution
    assert solution.status is Status.STEP_LIMIT
    assert solution.stats.accepted + solution.stats.rejected == 500
    assert 0 < solution.last_times[0] < 1


def test_a_jump_makes_the_step_too_small():
    def f(t, y, args):
        return torch.where(t > 1 / 3, 1e12, 0.0) * torch.ones_like(y)

    with pytest.raises(SolveError, match="resolution of time") as caught:
        solve(f, ONE, [0.0, 1.0], rtol=1e-12, atol=1e-12)
    assert caught.value.solution.status is Status.STEP_TOO_SMALL


@pytest.mark.parametrize("slope", [torch.zeros(1), torch.zeros(2, 3), torch.zeros(2).double()])
def test_a_slope_that_is_not_like_the_state(slope):
    with pytest.raises(ValueError, match=r"a slope like the state, \(2,\) and torch.float32; got"):
        solve(lambda t, y, args: slope, torch.ones(2), [0.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": [0.0]}, "at least two finite times"),
        ({"t": [0.0, 1.0, 0.5]}, "strictly increasing or decreasing"),
        ({"t": [0.0, 0.0]}, "strictly"),
        ({"t": [0.0, math.nan]}, "strictly"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, "floating dtype; got torch.int64"),
        ({"method": "dopri6"}, "method to be one of .*dopri5.*; got 'dopri6'"),
        ({"gradient": "adjoint"}, "gradient to be one of"),
        ({"rtol": -1.0}, "rtol to be a number of at least 0"),
        ({"max_steps": 0}, "max_steps to be above 0"),
        ({"first_step": -0.1}, "first_step to be above 0"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"f": decay, "y0": ONE, "t": [0.0, 1.0], **changes}
    with pytest.raises(ValueError, match=message):
        solve(**arguments)
