"""Output times of each row, and dense output of all rows and times at once."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from cnf.ode import (
    TABLEAUS,
    Backsolve,
    Checkpoint,
    PerRow,
    StagedDynamics,
    Status,
    solve,
)

DOUBLE = {"dtype": torch.float64}
STEPS = ["joint", "per_sample"]
KEPT, SOME = Checkpoint(activation_bytes=2**30), Checkpoint(activation_bytes=20_000)
FIXED = {"rk4": 0.3, "heun3": 0.3}

every_step = pytest.mark.parametrize("step", STEPS)


def linear(t, y, matrix):
    return y @ matrix.T


@pytest.fixture
def problem():
    """States, times and a matrix: rows padded, decreasing, that stay where they are, any."""
    t = torch.rand(4, 5, **DOUBLE).sort(1).values * 1.5
    t[0, 3:], t[1], t[2] = t[0, 2], t[1].flip(0), 0.7
    inputs = torch.randn(4, 3, **DOUBLE), t, torch.randn(3, 3, **DOUBLE) / 2
    return tuple(value.requires_grad_() for value in inputs)


def exponential(y0, t, matrix):
    spans = (t - t[:, :1]).T[..., None, None].contiguous()
    return (torch.linalg.matrix_exp(spans * matrix) @ y0[..., None]).squeeze(-1)


def gradients(ys, problem):
    """Of a weighted sum of outputs; for the row that stays, the sum over its times."""
    weights = torch.linspace(-1, 2, ys.numel(), **DOUBLE).view_as(ys)
    y0, t, *rest = torch.autograd.grad((ys * weights).sum(), problem)
    return y0, t[[0, 1, 3]], t[2].sum(), *rest


@every_step
@pytest.mark.parametrize(
    "gradient", ["backprop", "checkpoint", KEPT, SOME, Backsolve(rtol=1e-11, atol=1e-11)]
)
def test_linear_rows_against_the_matrix_exponential(problem, step, gradient):
    y0, t, matrix = problem
    tight = {"rtol": 1e-11, "atol": 1e-11, "step": step, "gradient": gradient}
    solved, exact = solve(linear, y0, t, matrix, **tight), exponential(*problem)
    torch.testing.assert_close(solved.ys, exact, rtol=0, atol=1e-8)
    found, expected = gradients(solved.ys, problem), gradients(exact, problem)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert np.array_equal(solved.last_times, t[:, -1].detach().numpy())
    assert torch.equal(solved.ys[:, 2], y0[2].expand(5, 3))
    assert torch.equal(solved.ys[0], y0)


@every_step
@pytest.mark.parametrize("method", ["rk4", "bosh3", "tsit5", "dopri8", "heun3"])
@pytest.mark.parametrize("rows", [True, False])
def test_the_exact_modes_agree(problem, step, method, rows):
    """For every kind of dense output, with gradients to times of rows, and without to shared."""
    y0, t, matrix = problem
    t = t if rows else torch.linspace(0, 1, 7, **DOUBLE)
    inputs = problem if rows else (y0, matrix)
    options = {"method": method, "step": step, "step_size": FIXED.get(method)}
    found = []
    for gradient in ("backprop", "checkpoint", KEPT, SOME):
        solved = solve(linear, y0, t, matrix, gradient=gradient, **options)
        found.append(torch.autograd.grad(solved.ys.square().sum(), inputs))
        if gradient is KEPT and method != "dopri8":
            assert np.all(solved.stats.backward == 0)
        torch.testing.assert_close(found[-1], found[0], rtol=1e-11, atol=1e-11)


def wave(t, y, speed):
    return torch.cos(speed * t) * (1 + y.square()).sqrt()


@every_step
@pytest.mark.parametrize("options", [{}, {"step_size": 0.2}, {"max_step": 0.2}])
def test_a_row_is_unchanged_by_neighbours_padding_and_order(step, options):
    y0, speed = torch.randn(5, 1, **DOUBLE), torch.rand(5, 1, **DOUBLE) * 9
    t = torch.rand(5, 6, **DOUBLE).sort(1).values * torch.arange(1, 6).unsqueeze(1)

    def states(rows, times):
        args = PerRow(speed[rows])
        return solve(wave, y0[rows], times, args, step=step, rtol=1e-6, atol=1e-6, **options).ys

    together = states(torch.arange(5), t)
    close = {"rtol": 0, "atol": 0 if step == "per_sample" else 1e-4}
    for rows in (torch.tensor([3]), torch.tensor([2, 0, 4])):
        padded = torch.cat([t[rows], t[rows, -1:].expand(-1, 3)], 1)
        found = states(rows, padded)
        torch.testing.assert_close(found[:6], together[:, rows], **close)
        assert torch.equal(found[6:], found[5:6].expand(3, -1, -1))


@pytest.mark.parametrize("jumps", [False, True])
def test_rows_that_wait_do_not_loosen_the_tolerance(jumps):
    """Those with times that are all equal, and those without a jump at which the first stops."""
    y0 = torch.ones(200, 1, **DOUBLE, requires_grad=True)
    t = torch.zeros(200, 2, **DOUBLE)
    t[0, 1], more = 4, {}
    if jumps:
        t[:, 1] = 4
        times = torch.full((200, 1), math.nan, **DOUBLE)
        times[0] = 3.99
        more["jumps"] = (times, lambda index, t, y, _: y)
    solved = solve(lambda t, y, _: torch.cos(3 * t) * y, y0, t, gradient="backsolve", **more)
    exact = math.exp(math.sin(12) / 3)
    assert solved.ys[-1, 0].item() == pytest.approx(exact, abs=3e-5)
    gradient = torch.autograd.grad(solved.ys[-1, 0].sum(), y0)[0]
    assert gradient[0].item() == pytest.approx(exact, abs=3e-5)


def scipy_states(y0, speed, t):
    """SciPy's states of `wave` at times of which pairs may be equal."""
    times, place = np.unique(t.numpy(), return_inverse=True)
    ahead = 1 if t[-1] > t[0] else -1

    def f(s, y):
        return np.cos(speed.item() * s) * np.sqrt(1 + y**2)

    options = {"t_eval": times[::ahead], "rtol": 1e-9, "atol": 1e-9}
    return solve_ivp(f, t[[0, -1]], y0, "DOP853", **options).y[0, ::ahead][place]


@every_step
def test_shared_and_own_times_against_scipy(step):
    y0, speed = torch.randn(3, 1, **DOUBLE), torch.tensor([[1.0], [4.0], [9.0]], **DOUBLE)
    shared = torch.linspace(0, 2, 20, **DOUBLE)
    t = torch.stack([shared, shared.flip(0), shared[::2].repeat_interleave(2)])
    for times in (shared, t):
        expected = [scipy_states(*row) for row in zip(y0, speed, times.expand(3, -1), strict=True)]
        ys = solve(wave, y0, times, PerRow(speed), rtol=1e-7, atol=1e-7, step=step).ys[..., 0]
        np.testing.assert_allclose(ys.T.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in TABLEAUS if TABLEAUS[name].adaptive])
def test_outputs_inside_steps_are_as_accurate_as_their_ends(name):
    def turn(t, y, _):
        speed = (1 + torch.cos(t) / 2) * y.square().sum(-1, keepdim=True)
        return speed * torch.stack([-y[..., 1], y[..., 0]], -1)

    tolerance = {"adaptive_heun": 1e-3, "fehlberg2": 1e-3, "bosh3": 1e-5}.get(name, 1e-7)
    t = torch.linspace(0, 4, 101, **DOUBLE)
    y0 = torch.tensor([[1.0, 0.0]], **DOUBLE)
    ys = solve(turn, y0, t, method=name, rtol=tolerance, atol=tolerance).ys[:, 0]
    angle = t + t.sin() / 2
    error = (ys - torch.stack([angle.cos(), angle.sin()], 1)).abs().amax(1)
    assert error.max() < 4 * max(error[-1], tolerance)


def kink(t, y, rate):
    return rate * torch.where(t < 1, 1.0, 5.0).to(y).expand_as(y)


@every_step
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", KEPT])
@pytest.mark.parametrize("jumps", [[1.0], [[0.5, 1.0], [1.0, math.nan], [math.nan] * 2, [9, 1.0]]])
def test_jumps_of_rows(step, gradient, jumps):
    """Each row has them at its own time s, and none looks beyond one."""
    t = torch.tensor([[0, 0.5, 1, 2], [2, 1.5, 0.25, 0], [0.3] * 4, [0, 0.4, 3, 3]], **DOUBLE)
    rate, t = torch.tensor(0.7, **DOUBLE, requires_grad=True), t.requires_grad_()
    y0 = torch.zeros(4, 1, **DOUBLE)
    solved = solve(kink, y0, t, rate, jumps=jumps, step=step, gradient=gradient)
    assert np.all(solved.stats.rejected == 0)

    def integral(t):
        return t.clamp(max=1) + 5 * (t.clamp(min=1) - 1)

    exact = (rate * (integral(t) - integral(t[:, :1]))).T
    torch.testing.assert_close(solved.ys[..., 0], exact, rtol=0, atol=1e-12)
    # At the time of a jump the state moves as it came.
    weights = torch.tensor([[1.0, 2.0, 0.0, 4.0]], **DOUBLE).T
    found, expected = (
        torch.autograd.grad((each * weights)[:, [0, 1, 3]].sum(), (rate, t))
        for each in (solved.ys[..., 0], exact)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@every_step
@pytest.mark.parametrize(("begin", "jump"), [(100.0, 100.5), (0.1, 0.37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_puts_no_time_beyond_a_jump(step, begin, jump, dtype):
    t = torch.tensor([[begin, begin + 1]], dtype=dtype)
    jump = torch.tensor(jump, dtype=dtype)
    exact = jump - t[0, 0] - 100 * (t[0, 1] - jump)

    def f(t, y, _):
        return torch.where(t < jump, 1.0, -100.0).to(y)

    for options in ({"method": "rk4", "step_size": 0.5}, {}):
        found = solve(f, torch.zeros(1, 1, dtype=dtype), t, jumps=jump[None], step=step, **options)
        assert np.all(found.stats.rejected == 0)
        torch.testing.assert_close(found.ys[-1, 0, 0], exact, rtol=1e-6, atol=0)


@every_step
def test_a_row_that_stays_where_its_slope_is_not_finite(step):
    """The other's result and gradient are as without it."""
    rate = torch.ones(2, 1, **DOUBLE, requires_grad=True)
    t = torch.tensor([[0.0, 0.0], [1.0, 2.0]], **DOUBLE)
    solved = solve(lambda t, y, a: a / t, torch.ones(2, 1, **DOUBLE), t, PerRow(rate), step=step)
    assert solved.ys[-1, 0].item() == 1.0
    assert solved.ys[-1, 1].item() == pytest.approx(1 + math.log(2), abs=1e-5)
    found = torch.autograd.grad(solved.ys[-1].sum(), rate)[0][1]
    assert found.item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_rows_that_fail_stop_at_their_own_times(gradient):
    """y' = y² from 1 blows up after 1; the others and their gradients are as without that row."""
    y0 = torch.tensor([[0.5], [1.0], [0.4]], **DOUBLE, requires_grad=True)
    t = torch.tensor([[0.0, 0.5, 1.0], [2.0, 2.5, 5.0], [5.0, 5.5, 6.0]], **DOUBLE)
    rate = torch.tensor(1.0, **DOUBLE, requires_grad=True)
    options = {"step": "per_sample", "on_failure": "return", "gradient": gradient}
    options |= {"rtol": 1e-6, "atol": 1e-6, "max_steps": 60}
    solved = solve(lambda t, y, a: a * y * y, y0, t, rate, **options)
    assert solved.rows == (1,)
    assert solved.row_status[1] is not Status.FINISHED
    assert solved.last_times == pytest.approx([1.0, 3.0, 6.0], abs=0.05)
    assert solved.ys[1, 1].item() == pytest.approx(2.0, rel=1e-4)
    assert solved.ys[2, 1].isnan().all()
    good = [0, 2]
    exact = y0 / (1 - rate * y0 * (t.T[..., None] - t[:, :1]))
    found, expected = (
        torch.autograd.grad(ys[:, good].sum(), (y0, rate)) for ys in (solved.ys, exact)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
@pytest.mark.parametrize(("times", "own"), [([0.0, 1.0], False), ([0.0, 0.5, 1.0], True)])
def test_a_row_that_fails_leaves_others_the_gradient_of_their_arguments(gradient, times, own):
    """And a row of times gets none of a row that failed."""
    rates = torch.tensor([[1.0], [2.0], [3.0]], **DOUBLE, requires_grad=True)
    spans = torch.tensor([[1.0], [0.9], [1.1]], **DOUBLE)
    t = torch.tensor(times, **DOUBLE)
    t = (spans * t if own else t).requires_grad_()
    bad = PerRow(torch.tensor([[1.0], [0.0], [0.0]]))

    def f(t, y, args):
        return torch.where((args[1] > 0) & (t > 0.7), torch.nan, args[0] * y)

    options = {"on_failure": "return", "rtol": 1e-7, "atol": 1e-7, "gradient": gradient}
    solved = solve(f, torch.ones(3, 1, **DOUBLE), t, (PerRow(rates), bad), **options)
    assert solved.rows == (0,)
    exact = torch.exp(rates * (t - t[..., :1])).T[..., None]
    # The first row has reached its time in the middle, and yet gets no gradient.
    inputs = (rates, t)
    found, expected = (
        torch.autograd.grad(ys[-1, 1:].sum() + ys[1, kept:].sum(), inputs)
        for ys, kept in ((solved.ys, 0 if len(times) > 2 else 1), (exact, 1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_state_without_rows_that_fails():
    options = {"max_steps": 100, "on_failure": "return"}
    solved = solve(lambda t, y, _: y * y, torch.tensor(1.0), [0.0, 0.5, 2.0, 3.0], **options)
    assert solved.ys[1].item() == pytest.approx(2.0, rel=1e-3)
    assert solved.ys.shape == (4,)
    assert solved.ys[2:].isnan().all()


@every_step
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"method": "rk4", "step_size": 0.1}, [20, 20, 1, 3], [20, 20, 1, 3]),
        ({"max_step": 0.1}, [20, 20, 1, 3], [28, 28, 8, 8]),
        ({"min_step": 0.5, "first_step": 0.5}, [4, 4, 1, 1], [4, 4, 1, 1]),
    ],
)
def test_sizes_of_steps_are_in_the_rows_times(step, options, least, most):
    t = torch.tensor([[0.0, 1, 2], [2.0, 1, 0], [1.0, 1, 1], [0.0, 0.3, 0.3]])
    accepted = solve(lambda t, y, _: -y, torch.ones(4, 1), t, step=step, **options).stats.accepted
    chosen = slice(None) if step == "per_sample" else 0
    assert np.all(accepted >= np.array(least)[chosen])
    assert np.all(accepted <= np.array(most)[chosen])


@pytest.mark.parametrize(
    ("step", "ends"),
    [
        ("per_sample", [[0.0, 0.1], [0.0, 2.0]]),
        ("per_sample", [[0.0, 0.1, 0.2], [0.0, 2.0, 2.0]]),
        ("joint", [[0.0, 0.1, 0.2], [0.0, 2.0, 2.0]]),
    ],
)
def test_backsolve_of_fixed_steps_takes_those_of_the_longest_row(step, ends):
    rate, t = torch.tensor(-1.0, **DOUBLE, requires_grad=True), torch.tensor(ends, **DOUBLE)
    options = {"method": "rk4", "step_size": 0.1, "step": step}
    found = []
    for gradient in ("checkpoint", "backsolve"):
        solved = solve(
            lambda t, y, a: a * y, torch.ones(2, **DOUBLE), t, rate, gradient=gradient, **options
        )
        found.append(torch.autograd.grad(solved.ys.sum(), rate)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def test_backsolve_of_states_of_one_axis_has_gradients_to_times():
    t = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]], **DOUBLE, requires_grad=True)
    options = {"rtol": 1e-8, "atol": 1e-8, "gradient": "backsolve"}
    ys = solve(lambda t, y, _: -y, torch.ones(2, **DOUBLE), t, **options).ys
    exact = torch.exp(t[:, :1] - t).T
    found, expected = (torch.autograd.grad(each[1].sum(), t)[0] for each in (ys, exact))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class Oscillator(StagedDynamics):
    """Dynamics whose rate is prepared, with a quadrature."""

    def prepare(self, times, args):
        return [args * torch.cos(time) for time in times.unbind()]

    def evaluate(self, stage, y):
        return torch.cat([stage * y[:, :1], y[:, :1].square()], 1)


@every_step
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", KEPT, "backsolve"])
def test_staged_dynamics_of_rows(step, gradient):
    t = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.5, -1.0]], **DOUBLE)
    rate = torch.tensor(0.5, **DOUBLE, requires_grad=True)
    y0 = torch.tensor([[1.0, 0.0]] * 2, **DOUBLE)
    options = {"step": step, "gradient": gradient, "rtol": 1e-6, "atol": 1e-6}
    ys = solve(Oscillator(), y0, t, rate, **options).ys
    exact = torch.exp(rate * (t.sin() - t[:, :1].sin())).T
    torch.testing.assert_close(ys[..., 0], exact, rtol=1e-5, atol=0)
    found, expected = (
        torch.autograd.grad(each.sum(), rate, retain_graph=True)[0] for each in (ys[..., 0], exact)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_second_derivatives_of_outputs_inside_steps(problem):
    y0, t, matrix = problem

    def outputs(y0, matrix):
        options = {"method": "rk4", "step_size": 0.5, "gradient": "backprop"}
        return solve(linear, y0, t.detach(), matrix, **options).ys

    assert torch.autograd.gradgradcheck(outputs, (y0, matrix), fast_mode=True)


@every_step
def test_second_derivatives_of_outputs_at_the_ends_of_steps(step):
    t = torch.tensor([[0.0, 0.5, 1.0, 1.0]], **DOUBLE, requires_grad=True)
    options = {"step": step, "gradient": "backprop", "rtol": 1e-8, "atol": 1e-8}
    ys = solve(lambda t, y, _: -0.5 * y, torch.ones(1, 1, **DOUBLE), t, **options).ys
    slopes = torch.autograd.grad(ys[2].sum(), t, create_graph=True)[0]
    second = torch.autograd.grad(slopes[0, 2], t)[0]
    assert second[0, 2].item() == pytest.approx(0.25 * math.exp(-0.5), rel=1e-3)


ROWS = [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": [[0.0, 1.0, 0.5], [0.0, 1.0, 1.0]]}, r"got \[0.0, 1.0, 0.5\] in row 0: sort them"),
        ({"t": [[0.0, math.nan], [0.0, 1.0]]}, "two finite times"),
        ({"t": [[0.0], [1.0]]}, "at least two finite times"),
        ({"t": ROWS[:1]}, r"a row of times for each row of the state; got shapes \(1, 2\)"),
        ({"y0": torch.ones(0, 1)}, r"got shapes \(2, 2\) and \(0, 1\)"),
        ({"y0": torch.ones(0, 1), "t": torch.ones(0, 1)}, r"got \[\] in row 0"),
        ({"y0": torch.tensor(1.0)}, "a row of times for each row"),
        ({"step_size": [0.0, 1.0]}, "step_size to be a number with output times of each row"),
        ({"step_size": 1e-5}, "at most max_steps = 10000 steps; got 100000"),
        ({"stops": torch.zeros(3, 1)}, r"stops of shape \(times,\) or \(2, times\)"),
        (
            {"jumps": [0.5], "gradient": "backsolve", "t": [[0.0, 0.2, 1.0]] * 2},
            "no jumps or stops",
        ),
    ],
)
def test_wrong_times_of_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(**{"f": lambda t, y, _: -y, "y0": torch.ones(2, 1), "t": ROWS} | changes)
