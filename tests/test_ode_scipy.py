"""`method="scipy_solver"`: stiff dynamics against SciPy and torchdiffeq, and their gradients."""

import numpy as np
import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import nn

from cnf.ode import SolveError, odeint, odeint_adjoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

DOUBLE = torch.float64
SCIPY = {"method": "scipy_solver"}
TIGHT = {"rtol": 1e-7, "atol": 1e-8}
TIMES = torch.tensor([0.0, 0.4, 1.3], dtype=DOUBLE)


class Robertson(nn.Module):
    """Three substances whose reactions differ by nine orders of magnitude in speed."""

    def __init__(self):
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([0.04, 1e4, 3e7], dtype=DOUBLE).log())

    def forward(self, t, y):
        (a, b, c), (slow, back, fast) = y, self.logs.exp()
        first, second, third = slow * a, back * b * c, fast * b**2
        return torch.stack([second - first, first - second - third, third])


WEIGHTS = np.array([[0.0, 0, 0], [0, 1e4, 1], [1, 0, 0]])


@pytest.fixture(scope="module")
def reaction():
    """The states at three times by SciPy, and the gradients by central differences."""

    def slope(t, y, rates):
        a, b, c = y
        first, second, third = rates[0] * a, rates[1] * b * c, rates[2] * b**2
        return [second - first, first - second - third, third]

    def states(logs, start=1.0):
        keywords = {"method": "LSODA", "t_eval": (0, 1, 40), "rtol": 1e-9, "atol": 1e-13}
        args = (np.exp(logs),)
        return solve_ivp(slope, (0, 40), [start, 0.0, 0.0], args=args, **keywords).y.T

    logs = np.log([0.04, 1e4, 3e7])
    pairs = [(states(logs + step), states(logs - step)) for step in 1e-3 * np.eye(3)]
    pairs.append((states(logs, 1.001), states(logs, 0.999)))
    return states(logs), [(WEIGHTS * (up - down)).sum() / 2e-3 for up, down in pairs]


@pytest.mark.parametrize("solver", ["LSODA", "Radau"])
def test_a_stiff_reaction_and_its_gradients(solver, reaction):
    field, y0 = Robertson(), torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE, requires_grad=True)
    t = torch.tensor([0.0, 1.0, 40.0], dtype=DOUBLE)
    options = {**SCIPY, "options": {"solver": solver}, "rtol": 1e-5, "atol": 1e-9}
    ys = odeint_adjoint(field, y0, t, **options)
    np.testing.assert_allclose(ys.detach(), reaction[0], rtol=1e-3, atol=1e-8)
    found = torch.autograd.grad((torch.from_numpy(WEIGHTS) * ys).sum(), (field.logs, y0))
    np.testing.assert_allclose([*found[0], found[1][0]], reaction[1], rtol=5e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", ["RK45", "BDF"])
def test_values_and_gradients_are_those_of_torchdiffeq(solver, reverse):
    y0, rate = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True), torch.randn(3, dtype=DOUBLE)
    rate.requires_grad_()

    def func(t, y):
        return torch.tanh(rate * y) * torch.cos(t)

    found = []
    for interface, how in (
        (odeint_adjoint, SCIPY | {"options": {"solver": solver}}),
        (torchdiffeq.odeint_adjoint, {"method": "dopri5"}),
    ):
        t = (TIMES.flip(0) if reverse else TIMES).clone().requires_grad_()
        ys = interface(func, y0, t, adjoint_params=(rate,), **how, **TIGHT)
        found.append((ys, *torch.autograd.grad(ys.square().sum() - ys[1].sum(), (y0, t, rate))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_tuples_complex_numbers_and_what_odeint_returns():
    y0 = (torch.ones(2), torch.ones((), dtype=torch.complex64))
    tolerances = {"rtol": (1e-5, 1e-6), "atol": 1e-6}
    for interface in (odeint, odeint_adjoint):
        more = {} if interface is odeint else {"adjoint_params": ()}
        ys = interface(lambda t, y: (-y[0], 1j * y[1]), y0, TIMES, **SCIPY, **tolerances, **more)
        assert [y.shape for y in ys] == [(3, 2), (3,)]
        assert {y.dtype for y in ys} == {torch.complex64}
        torch.testing.assert_close(ys[1], torch.exp(1j * TIMES).to(ys[1]), rtol=1e-4, atol=1e-4)
    leaf = torch.ones(2, requires_grad=True)
    assert not odeint(lambda t, y: -y, leaf, TIMES, **SCIPY)[-1].requires_grad
    assert odeint(lambda t, y: -y, leaf, TIMES[:1], **SCIPY).tolist() == [[1.0, 1.0]]


def test_a_constant_slope_without_parameters():
    y0, options = torch.ones(2, dtype=DOUBLE, requires_grad=True), {"min_step": 1e-9, "max_step": 1}
    ys = odeint_adjoint(
        lambda t, y: torch.ones_like(y), y0, TIMES, adjoint_params=(), options=options, **SCIPY
    )
    torch.testing.assert_close(ys[:, 0], 1 + TIMES)
    assert torch.autograd.grad(ys.sum(), y0)[0].tolist() == [3.0, 3.0]


def test_mistakes_and_failures_are_explained():
    arguments = {"func": lambda t, y: -y, "y0": torch.ones(2), "t": TIMES} | SCIPY
    for unused in ({"step_size": 0.1}, {"norm": torch.linalg.vector_norm}):
        with pytest.warns(UserWarning, match=f"Unexpected arguments .*{next(iter(unused))}"):
            odeint(**arguments, options=unused)
    with pytest.raises(ValueError, match="solver to be one of LSODA.*; got 'Gear'"):
        odeint(**arguments, options={"solver": "Gear"})
    with pytest.raises(ValueError, match="Runge-Kutta method with event_fn; got 'scipy_solver'"):
        odeint(**arguments, event_fn=lambda t, y: y)
    with pytest.raises(ValueError, match="adjoint_method to be one of scipy_solver; got 'rk4'"):
        odeint_adjoint(**arguments, adjoint_params=(), adjoint_method="rk4")
    with pytest.raises(ValueError, match=r"rtol to broadcast against y0 of shape \(2,\); got \(3,"):
        odeint(**arguments, rtol=torch.ones(3))
    with pytest.raises(SolveError, match="Stopped at t = 1 after up to"):
        odeint(**arguments | {"func": lambda t, y: y**2}, options={"solver": "RK45"})


@pytest.mark.parametrize(("solver", "start"), [("RK45", 0.0), ("Radau", 0.0), ("LSODA", 0.5)])
def test_slopes_that_are_not_finite_are_a_failure(solver, start):
    def func(t, y):
        return -y if t < start else y * torch.nan

    with pytest.raises(SolveError, match="NaN or infinite") as caught:
        odeint(func, torch.ones(2), TIMES, options={"solver": solver}, **SCIPY)
    assert caught.value.solution.last_times == pytest.approx([start], abs=0.2)


def test_a_first_step_longer_than_the_way_and_failures_of_the_backward_pass():
    y0, broken = torch.ones(2, dtype=DOUBLE, requires_grad=True), []

    def func(t, y):
        return y * torch.nan if broken else -y

    options = {"first_step": 1.0}
    ys = odeint_adjoint(func, y0, TIMES, adjoint_params=(), options=options, **SCIPY, **TIGHT)
    grad = torch.autograd.grad(ys[-1].sum(), y0, retain_graph=True)[0]
    torch.testing.assert_close(grad, (-TIMES[-1]).exp().expand(2), rtol=1e-5, atol=0)
    broken.append(True)
    with pytest.raises(SolveError, match="In the backward pass: The state"):
        ys.sum().backward()
