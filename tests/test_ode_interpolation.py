"""Dense output: exact for polynomials, and of its order."""

import numpy as np
import pytest
import torch
from test_ode_tableaus import SPAN, numpy_stages, numpy_turn, turn, turned

from cnf.ode import TABLEAUS, solve
from cnf.ode.interpolation import bootstrap_middle, interpolate

THETA = torch.linspace(0, 1, 11, dtype=torch.float64)

# The steps of the regressions: the fewest of them, by order of dense output.
COUNTS = {1: 200, 2: 100, 3: 100, 4: 100}


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def polynomial(degree):
    """A polynomial, a step, and what the step knows of it: ends, slopes, middle."""
    p = np.polynomial.Polynomial(np.random.default_rng(0).normal(size=degree + 1))
    t, h = 0.3, -0.7
    values = (p(t), p(t + h), p.deriv()(t), p.deriv()(t + h), p(t + h / 2))
    return p, t, h, [double(value) for value in values]


def states(count):
    return [torch.randn(5, 3, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("degree", [3, 4])
def test_exact_for_polynomials(degree):
    p, t, h, (*ends, middle) = polynomial(degree)
    found = interpolate(THETA, double(h), *ends, middle if degree == 4 else None)
    np.testing.assert_allclose(found.numpy(), p(t + h * THETA.numpy()), rtol=1e-12)


def test_the_cubic_is_not_exact_for_quartics():
    p, t, h, (*ends, _) = polynomial(4)
    found = interpolate(THETA, double(h), *ends, None)
    assert np.abs(found.numpy() - p(t + h * THETA.numpy())).max() > 1e-3


@pytest.mark.parametrize("known", [True, False])
def test_ends_and_middle_are_met(known):
    *ends, middle = states(5)
    middle = middle if known else None
    h = double(0.7)
    assert torch.equal(interpolate(double(0.0), h, *ends, middle), ends[0])
    assert torch.equal(interpolate(double(1.0), h, *ends, middle), ends[1])
    if known:
        found = interpolate(double(0.5), h, *ends, middle)
        torch.testing.assert_close(found, middle, rtol=0, atol=1e-14)


@pytest.mark.parametrize("known", [True, False])
def test_end_slopes_are_met(known):
    *ends, middle = states(5)
    h = double(0.7)

    def inside(theta):
        return interpolate(theta, h, *ends, middle if known else None)

    for theta, slope in ((0.0, ends[2]), (1.0, ends[3])):
        change = torch.autograd.functional.jacobian(inside, double(theta))
        torch.testing.assert_close(change, h * slope, rtol=0, atol=1e-13)


@pytest.mark.parametrize("known", [True, False])
def test_each_row_has_its_own_place(known):
    parts = states(5 if known else 4)
    theta, h = (torch.rand(5, 1, dtype=torch.float64) for _ in range(2))
    rest = [] if known else [None]
    together = interpolate(theta, h, *parts, *rest)
    for i in range(5):
        row = interpolate(theta[i], h[i], *(part[i] for part in parts), *rest)
        torch.testing.assert_close(together[i], row)


def test_gradcheck():
    inputs = [torch.rand(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(7)]
    assert torch.autograd.gradcheck(interpolate, inputs)
    assert torch.autograd.gradcheck(lambda *args: interpolate(*args, None), inputs[:-1])


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


def test_the_local_error_of_the_bootstrapped_middle():
    t, sizes, errors = double([0.5]), 0.4 / 2.0 ** np.arange(4), []
    for size in sizes:
        h = double(size)
        ends = turned(t), turned(t + h)
        slopes = turn(t, ends[0]), turn(t + h, ends[1])
        found = bootstrap_middle(turn, t, h, *ends, *slopes)
        errors.append((found - turned(t + h / 2)).abs().max().item())
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] > 5 - 0.15


def test_each_row_bootstraps_its_own_middle():
    ends = states(4)
    t, h = (torch.rand(5, 1, dtype=torch.float64) for _ in range(2))

    def f(t, y):
        return t * y.sin()

    together = bootstrap_middle(f, t, h, *ends)
    for i in range(5):
        row = bootstrap_middle(f, t[i], h[i], *(end[i] for end in ends))
        torch.testing.assert_close(together[i], row)


def test_gradcheck_of_the_bootstrapped_middle():
    inputs = [torch.rand(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(6)]

    def middle(*args):
        return bootstrap_middle(lambda t, y: t * y.sin(), *args)

    assert torch.autograd.gradcheck(middle, inputs)


def middle_of(tableau, t, h, stages, ends):
    """The states at the middles of steps from times t, as the tableau has them found."""
    if tableau.dense == "quartic":
        return ends[0] + h * torch.from_numpy(np.tensordot(tableau.mid, stages, 1))
    if tableau.dense == "bootstrap":
        return bootstrap_middle(lambda t, y: turn(t[:, 0], y), t[:, None], double(h), *ends)
    return None


def largest_error(tableau, count, local):
    """The largest error at 21 places in each step; with `local` from the solution at its start."""
    h = SPAN / count
    times = torch.linspace(0, SPAN, count + 1, dtype=torch.float64)
    if local:
        ys = turned(times)
    else:
        ys = solve(turn, turned(times[0]), times, method=tableau.name, step_size=times).ys
    t, y0 = times[:-1], ys[:-1]
    stages = numpy_stages(tableau, numpy_turn, t.numpy(), y0.numpy(), h)
    y1 = y0 + h * torch.from_numpy(np.tensordot(tableau.b, stages, 1))
    ends = y0, y1, turn(t, y0), turn(times[1:], y1)
    theta = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None]
    found = interpolate(theta, double(h), *ends, middle_of(tableau, t, h, stages, ends))
    return (found - turned(t + h * theta[..., 0])).abs().max().item()


def slope_of_error(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("local", [False, True])
def test_order_between_steps_by_regression(name, local):
    """The slope of log error on log step; one more where each step starts from the solution.

    That one more is what tells order 4 from 3: over a whole solve the cubic would pass for 4 too.
    """
    order = min(4, TABLEAUS[name].order)
    counts = [round(COUNTS[order] * factor) for factor in (1, 1.25, 1.5, 2)]
    errors = [largest_error(TABLEAUS[name], count, local) for count in counts]
    assert slope_of_error(counts, errors) > order + local - 0.15


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_outputs_between_steps_by_regression(name):
    """As above, of what a solve gives at times that no step ends at."""
    order = min(4, TABLEAUS[name].order)
    times = torch.linspace(0, SPAN, 997, dtype=torch.float64)
    counts = [COUNTS[order], 2 * COUNTS[order]]
    errors = []
    for count in counts:
        solution = solve(turn, turned(times[0]), times, method=name, step_size=SPAN / count)
        assert solution.stats.accepted == count
        errors.append((solution.ys - turned(times)).abs().max().item())
    assert slope_of_error(counts, errors) > order - 0.15
