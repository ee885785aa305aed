"""Error norms, the controller and the first step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import RK45

from cnf.ode import PIController, Tolerance, rms_norm
from cnf.ode.controllers import first_step_size

CONTROLLER = PIController()


@given(st.floats(0, 1e10), st.floats(1e-12, 1))
def test_factor_stays_within_its_bounds(error, previous):
    factor = CONTROLLER.factor(error, previous, order=5)
    assert CONTROLLER.factor_min <= factor <= CONTROLLER.factor_max


@given(st.floats(1.0, 1e10, exclude_min=True), st.floats(1e-12, 1))
def test_a_rejected_step_never_grows(error, previous):
    assert CONTROLLER.factor(error, previous, order=5) <= 1


def test_integral_control_aims_at_the_tolerance():
    """With beta = 0 and error c·hᵠ, the next error is safetyᵠ."""
    controller = PIController(beta=0.0, safety=0.8)
    step = controller.factor(error=0.3, previous=1.0, order=5)
    assert 0.3 * step**5 == pytest.approx(0.8**5)


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_shrinks_the_step(error):
    assert CONTROLLER.factor(error, 1.0, order=5) == CONTROLLER.factor_min


def test_an_error_of_zero_grows_the_step():
    assert CONTROLLER.factor(0.0, 1.0, order=5) == CONTROLLER.factor_max


def test_ratio_is_in_units_of_the_tolerance():
    tolerance = Tolerance(rtol=0.1, atol=1.0)
    error, y0, y1 = (torch.tensor([value]) for value in (3.0, -10.0, 20.0))
    assert tolerance.ratio(error, y0, y1).item() == pytest.approx(3.0 / (1.0 + 0.1 * 20))
    assert rms_norm(torch.tensor([3.0, 4.0])).item() == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    ("rtol", "atol"), [(-1e-3, 1e-3), (1e-3, -1.0), (0.0, 0.0), (math.nan, 1e-3), (1e-3, math.inf)]
)
def test_tolerances_out_of_range(rtol, atol):
    with pytest.raises(ValueError, match="Expected"):
        Tolerance(rtol, atol)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
def test_first_step_is_that_of_scipy(rate, tolerance):
    y = torch.ones(1, dtype=torch.float64)
    options = {"rtol": tolerance, "atol": tolerance}
    theirs = RK45(lambda t, y: -rate * y, 0.0, y.numpy(), 1e6, **options).h_abs
    ours = first_step_size(
        lambda t, y: -rate * y, torch.tensor(0.0), y, -rate * y, 1.0, 5, Tolerance(**options)
    )
    assert ours == pytest.approx(theirs)


def test_first_step_of_dynamics_that_stand_still():
    y = torch.zeros(3)
    step = first_step_size(
        lambda t, y: 0 * y, torch.tensor(0.0), y, y, 1.0, 5, Tolerance(1e-6, 1e-6)
    )
    assert 0 < step <= 1e-6
