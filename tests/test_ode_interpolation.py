"""Dense output: exact for polynomials, and of its order."""

from functools import partial

import numpy as np
import pytest
import torch
from test_ode_tableaus import COUNTS, SPAN, largest_error, order_of

from cnf.ode import TABLEAUS
from cnf.ode.interpolation import bootstrap_middle, interpolate

THETA = torch.linspace(0, 1, 11, dtype=torch.float64)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def polynomial(degree):
    """A polynomial, a step, and what the step knows of it: ends, slopes, middle."""
    p = np.polynomial.Polynomial(np.random.default_rng(0).normal(size=degree + 1))
    t, h = 0.3, -0.7
    values = (p(t), p(t + h), p.deriv()(t), p.deriv()(t + h), p(t + h / 2))
    return p, t, h, [double(value) for value in values]


@pytest.mark.parametrize(("degree", "known", "error"), [(3, 0, 0), (4, 1, 0), (4, 0, 1e-3)])
def test_exact_for_cubics_and_with_the_middle_for_quartics(degree, known, error):
    p, t, h, (*ends, middle) = polynomial(degree)
    found = interpolate(THETA, double(h), *ends, middle if known else None)
    exact = p(t + h * THETA.numpy())
    if error:
        assert np.abs(found.numpy() - exact).max() > error
    else:
        np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_ends_middle_and_slopes_are_met(known):
    *ends, middle = torch.randn(5, 5, 3, dtype=torch.float64)
    h = double(0.7)

    def inside(theta):
        return interpolate(theta, h, *ends, middle if known else None)

    assert torch.equal(inside(double(0.0)), ends[0])
    assert torch.equal(inside(double(1.0)), ends[1])
    if known:
        torch.testing.assert_close(inside(double(0.5)), middle, rtol=0, atol=1e-14)
    for theta, slope in ((0.0, ends[2]), (1.0, ends[3])):
        change = torch.autograd.functional.jacobian(inside, double(theta))
        torch.testing.assert_close(change, h * slope, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (interpolate, 5),
        (lambda *args: interpolate(*args, None), 4),
        (partial(bootstrap_middle, lambda t, y: t * y.sin()), 4),
    ],
)
def test_each_row_has_its_own_place_and_gradient(function, count):
    places, parts = torch.rand(2, 5, 1).double(), torch.randn(count, 5, 3).double()
    together = function(*places, *parts)
    for i in range(5):
        torch.testing.assert_close(together[i], function(*places[:, i], *parts[:, i]))
    inputs = [each[:2].clone().requires_grad_() for each in (*places, *parts)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("degree", [4, 5])
def test_the_bootstrapped_middle_is_exact_for_polynomials(degree):
    p, t, h, (*ends, middle) = polynomial(degree)
    calls = []

    def f(t, y):
        calls.append(t)
        return p.deriv()(t)

    found = bootstrap_middle(f, double(t), double(h), *ends)
    torch.testing.assert_close(found, middle, rtol=0, atol=1e-13)
    assert len(calls) == 1


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_outputs_between_steps_by_regression(name, local):
    """The slope of log error on log step; one more where each step starts from the solution.

    That one more is what tells order 4 from 3: over a whole solve the cubic would pass for 4 too.
    """
    tableau = TABLEAUS[name]
    order = tableau.order if tableau.error_order is None else tableau.error_order
    order = max(order, min(4, tableau.order))
    counts, errors = [COUNTS[tableau.order], 2 * COUNTS[tableau.order]], []
    for h in (SPAN / count for count in counts):
        starts = [(21, t, t + h) for t in np.arange(0, SPAN, 0.5)] if local else [(497,)]
        errors.append(max(largest_error(name, h, *start) for start in starts))
    assert order_of(counts, errors) > order + local - 0.15
