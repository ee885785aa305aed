"""Events: their times, states and gradients against closed forms and torchdiffeq."""

import math
from functools import partial

import pytest
import torch
import torchdiffeq
from torch import nn

from cnf.ode import odeint, odeint_adjoint, odeint_event

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

DOUBLE = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-10}
METHODS = [
    ("dopri5", None),
    ("dopri8", {"max_step": 0.2}),
    ("rk4", {"step_size": 0.05, "interp": "cubic"}),
]


def wanting(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=DOUBLE, requires_grad=True)


class Fall(nn.Module):
    """The height and the speed of a falling ball, as a tuple."""

    def __init__(self, gravity):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity, dtype=DOUBLE))

    def forward(self, t, y):
        return y[1], -self.gravity.expand_as(y[1])


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_bounces_of_a_ball_have_the_times_and_gradients_of_the_closed_form(interface):
    fall, height, bounce = Fall(9.81), wanting(2.0), wanting(0.8)
    time, y = wanting(0.5), (height, torch.zeros_like(height))
    start = time
    times = []
    for _ in range(3):
        time, (heights, speeds) = odeint_event(
            fall, y, time, event_fn=lambda t, y: y[0], odeint_interface=interface, **TIGHT
        )
        assert heights[-1].abs() < 1e-9
        y = heights[-1] + 1e-9, -bounce * speeds[-1]  # above the ground
        times.append(time)
    impact = (2 * fall.gravity * height).sqrt()
    exact = start + impact / fall.gravity
    inputs = (start, height, bounce, fall.gravity)
    for k, time in enumerate(times):
        exact = exact + (2 * bounce**k * impact / fall.gravity if k else 0)
        torch.testing.assert_close(time, exact, rtol=0, atol=1e-7)
        found, expected = (
            torch.autograd.grad(out, inputs, retain_graph=True, allow_unused=True)
            for out in (time, exact)
        )
        found, expected = (
            [torch.zeros_like(start) if part is None else part for part in parts]
            for parts in (found, expected)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("reverse", [False, True])
def test_events_are_those_of_torchdiffeq(method, options, reverse):
    """The first of two events of a tensor, in both directions of time."""
    y0, rate, t0 = wanting(1.0, 0.3), wanting(-1.3), wanting(0.2)

    def func(t, y):
        return torch.stack([-y[1], y[0]]) * rate * torch.cos(t / 3)

    def event_fn(t, y):
        return torch.stack([y[0] + 0.2 * t, y.sum() + 2.5])

    found = []
    interfaces = [
        (odeint_event, odeint),
        (odeint_event, partial(odeint_adjoint, adjoint_params=(rate,))),
        (torchdiffeq.odeint_event, torchdiffeq.odeint),
    ]
    for solver, interface in interfaces:
        time, ys = solver(
            func,
            y0,
            t0,
            event_fn=event_fn,
            reverse_time=reverse,
            odeint_interface=interface,
            method=method,
            options=options,
            rtol=1e-9,
            atol=torch.tensor(1e-9),
        )
        assert (time.shape, ys.shape) == ((), (2, 2))
        gradients = torch.autograd.grad(time * ys[1].prod() + ys[0].sum(), (y0, rate))
        found.append((time, ys, *gradients))
    close = 1e-5 if method == "rk4" else 1e-7
    for ours in found[:2]:
        torch.testing.assert_close(ours, found[2], rtol=close, atol=close)


def test_gradients_reach_the_first_time_and_what_the_event_depends_on():
    """y = e^(t − t₀) reaches the level L at t₀ + log L."""
    level, t0, y0 = wanting(3.0), wanting(0.5), wanting(1.0)
    arguments = {"event_fn": lambda t, y: y - level, **TIGHT}
    time, ys = odeint_event(lambda t, y: y, y0, t0, **arguments)
    assert time.item() == pytest.approx(0.5 + math.log(3))
    found = torch.autograd.grad(time, (level, t0, y0), retain_graph=True)
    torch.testing.assert_close(torch.stack(found), torch.tensor([1 / 3, 1, -1]).double())
    torch.testing.assert_close(torch.autograd.grad(ys[-1], level)[0], torch.ones(()).double())
    with torch.no_grad():
        assert odeint_event(lambda t, y: y, y0, t0, **arguments)[0].item() == time.item()
    # An event at the first time moves as well.
    arguments["event_fn"] = lambda t, y: y - level / 3
    time, ys = odeint_event(lambda t, y: y, y0, t0, **arguments)
    assert (time.item(), ys[-1].item()) == (0.5, 1.0)
    found = torch.autograd.grad(time, (level, t0, y0))
    torch.testing.assert_close(torch.stack(found), torch.tensor([1 / 3, 1, -1]).double())


def test_odeint_returns_the_event_and_calls_back_up_to_it():
    func, calls = partial(lambda t, y: torch.ones_like(y)), []
    func.callback_step = lambda t, y, h: calls.append(float(t))
    t, y0 = torch.tensor([0.0, 1.0]), torch.zeros(1)
    time, ys = odeint(func, y0, t, event_fn=lambda t, y: y - 7.25, rtol=1e-5, atol=1e-5)
    assert time.item() == pytest.approx(7.25, abs=1e-5)
    assert time.dtype == ys.dtype == torch.float32
    assert calls[0] == 0
    assert max(calls) < 7.25
    time, ys = odeint(func, y0, t, event_fn=lambda t, y: y, rtol=1e-5, atol=1e-5)
    assert (time.item(), ys.tolist()) == (0.0, [[0.0], [0.0]])  # it is there at the start


def test_an_event_in_fixed_steps_that_keep_to_their_side_of_jumps():
    """The speed jumps from 1 to 3 at t = 0.5; one event is at a step's end, and one inside."""

    def func(t, y):
        return torch.where(t < 0.5, 1.0, 3.0).to(y)

    y0, t = torch.zeros(1, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    options = {"step_size": 0.1, "perturb": True}
    for level, expected in ((2.0, 1.0), (1.37, 0.79)):
        arguments = {"event_fn": lambda t, y, level=level: y - level, "options": options}
        time, ys = odeint(func, y0, t, method="rk4", **arguments)
        assert time.item() == pytest.approx(expected, abs=1e-12)
        assert ys[-1].item() == pytest.approx(level, abs=1e-12)


@pytest.mark.parametrize("jump", [1.0, 1.5])
def test_jumps_of_the_dynamics_at_any_time_before_an_event(jump):
    calls, jumps = [], torch.tensor([jump, 5.0], dtype=DOUBLE)

    def func(t, y):
        calls.append(t)
        return torch.where(t < jump, 1.0, 100.0).to(y)

    arguments = {"event_fn": lambda t, y: y - jump - 20, "options": {"jump_t": jumps}}
    y0, t0 = torch.zeros(1, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    time, _ = odeint_event(func, y0, t0, **arguments)
    assert time.item() == pytest.approx(jump + 0.2)
    assert len(calls) < 150


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"t": torch.arange(3.0)}, ValueError, "two times with event_fn; got 3"),
        ({"method": "rk4"}, AssertionError, "step_size with event_fn and method 'rk4'"),
        ({"options": {"max_num_steps": 5}}, RuntimeError, "within 5 steps; got none up to t = "),
        ({"event_fn": lambda t, y: y * torch.nan}, RuntimeError, "numbers; got NaN at t = "),
        ({"func": lambda t, y: 0 * y}, RuntimeError, "its sign; got none up to t = "),
    ],
)
def test_mistakes_are_explained(changes, error, match):
    arguments = {"func": lambda t, y: torch.cos(t).expand_as(y), "y0": torch.zeros(2)}
    arguments |= {"t": torch.arange(2.0), "event_fn": lambda t, y: y + 2, "rtol": 1e-4}
    with pytest.raises(error, match=match):
        odeint(**arguments | changes)
