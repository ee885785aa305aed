"""Dense output: exact for polynomials, and of its order."""

import math

import numpy as np
import pytest
import torch

from cnf.ode import TABLEAUS, solve
from cnf.ode.interpolation import interpolate

THETA = torch.linspace(0, 1, 11, dtype=torch.float64)


@pytest.mark.parametrize("degree", [3, 4])
def test_exact_for_polynomials(degree):
    coefficients = np.random.default_rng(0).normal(size=degree + 1)
    p = np.polynomial.Polynomial(coefficients)
    t, h = 0.3, 0.7
    y0, y1, slope0, slope1, middle = (
        torch.tensor(value, dtype=torch.float64)
        for value in (p(t), p(t + h), p.deriv()(t), p.deriv()(t + h), p(t + h / 2))
    )
    size = torch.tensor(h, dtype=torch.float64)
    found = interpolate(THETA, size, y0, y1, slope0, slope1, middle if degree == 4 else None)
    np.testing.assert_allclose(found.numpy(), p(t + h * THETA.numpy()), rtol=1e-12)


def test_each_row_has_its_own_place():
    states = [torch.randn(5, 3, dtype=torch.float64) for _ in range(5)]
    theta, h = (torch.rand(5, 1, dtype=torch.float64) for _ in range(2))
    together = interpolate(theta, h, *states)
    for i in range(5):
        row = interpolate(theta[i], h[i], *(state[i] for state in states))
        torch.testing.assert_close(together[i], row)


def test_gradcheck():
    inputs = [torch.rand(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(7)]
    assert torch.autograd.gradcheck(interpolate, inputs)


@pytest.mark.parametrize("name", [name for name, tableau in TABLEAUS.items() if tableau.mid])
def test_order_between_steps_by_regression(name):
    """The slope of log error on log step, on y' = y cos t with y = exp(sin t)."""
    y0 = torch.ones(1, dtype=torch.float64)
    times = torch.linspace(0, 4, 997, dtype=torch.float64)
    exact = np.exp(np.sin(times.numpy()))
    sizes = 4 / np.array([20, 40, 80, 160])
    errors = []
    for size in sizes:
        solution = solve(
            lambda t, y, args: y * torch.cos(t), y0, times, method=name, step_size=size
        )
        assert solution.stats.accepted == round(4 / size)
        errors.append(np.abs(solution.ys[:, 0].numpy() - exact).max())
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] > 4 - 0.15
    assert errors[-1] < 1e-6 < math.inf
