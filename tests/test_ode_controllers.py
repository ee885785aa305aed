"""Error norms, the controllers and the first step."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import RK45

from cnf.ode import IController, PIController, Tolerance
from cnf.ode.controllers import first_step_size, max_norm, rms_norm, row_max_norm, row_rms_norm

CONTROLLER = PIController()


def factor(controller, error, previous=1.0):
    return controller.factors(np.array([error]), np.array([previous]), order=5).item()


@pytest.mark.parametrize(
    "controller", [CONTROLLER, PIController(safety=3.0), PIController(factor_min=1.0)]
)
@given(error=st.floats(1.0, 1e10, exclude_min=True), previous=st.floats(1e-12, 1e12))
def test_a_rejected_step_is_tried_again_with_a_shorter_one(controller, error, previous):
    assert factor(controller, error, previous) < 1


@given(st.floats(0, 1e10), st.floats(1e-12, 1))
def test_factor_stays_within_its_bounds(error, previous):
    found = factor(CONTROLLER, error, previous)
    assert CONTROLLER.factor_min <= found <= CONTROLLER.factor_max


@given(st.lists(st.floats(0, 1e3) | st.just(math.nan), min_size=1, max_size=5))
def test_entries_are_controlled_one_by_one(errors):
    together = CONTROLLER.factors(np.array(errors), np.ones(len(errors)), order=5)
    np.testing.assert_array_equal(together, [factor(CONTROLLER, error) for error in errors])


@pytest.mark.parametrize("controller", [IController(safety=0.8), PIController(0.8, beta=0.0)])
def test_integral_control_aims_at_the_tolerance(controller):
    """With an error c·hᵠ, the next error is safetyᵠ."""
    assert 0.3 * factor(controller, 0.3) ** 5 == pytest.approx(0.8**5)


def test_extreme_errors_have_the_extreme_factors():
    assert factor(CONTROLLER, 0.0) == CONTROLLER.factor_max
    assert factor(CONTROLLER, math.nan) == factor(CONTROLLER, math.inf) == CONTROLLER.factor_min


def test_ratio_is_in_units_of_the_tolerance():
    """Where that is zero no error is 0, an error is infinite, NaN stays NaN."""
    error, y0, y1 = (torch.tensor([value]) for value in (3.0, -10.0, 20.0))
    ratio = Tolerance(rtol=0.1, atol=1.0).ratio(error, y0, y1)
    assert ratio.item() == pytest.approx(3.0 / (1.0 + 0.1 * 20))
    error, zeros = torch.tensor([0.0, 1e-9, math.nan]), torch.zeros(3)
    ratio = Tolerance(rtol=0.1, atol=0.0).ratio(error, zeros, zeros)
    torch.testing.assert_close(ratio, torch.tensor([0.0, math.inf, math.nan]), equal_nan=True)


def test_norms():
    ratio = torch.randn(4, 3, 2, dtype=torch.float64)
    rows = ratio.reshape(4, -1)
    torch.testing.assert_close(rms_norm(ratio), ratio.square().mean().sqrt())
    torch.testing.assert_close(max_norm(ratio), ratio.abs().max())
    torch.testing.assert_close(row_rms_norm(ratio), rows.square().mean(1).sqrt())
    torch.testing.assert_close(row_max_norm(ratio), rows.abs().amax(1))


@pytest.mark.parametrize(
    ("rtol", "atol"), [(-1e-3, 1e-3), (1e-3, -1.0), (0.0, 0.0), (math.nan, 1e-3), (1e-3, math.inf)]
)
def test_tolerances_out_of_range(rtol, atol):
    with pytest.raises(ValueError, match="Expected"):
        Tolerance(rtol, atol)


def first_step(tolerance, y, slope, change):
    def size(vector):
        return tolerance.norm(tolerance.ratio(vector, y)).reshape(1).numpy()

    return first_step_size(size, change, y, slope, 5, span=1e6, rest_share=0.1).item()


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
def test_first_step_is_that_of_scipy(rate, tolerance):
    """For y' = −rate · y from 1; the share of the span where the dynamics stand still."""
    y, options = torch.ones(1, dtype=torch.float64), {"rtol": tolerance, "atol": tolerance}
    found = first_step(Tolerance(**options), y, -rate * y, lambda h: rate**2 * torch.from_numpy(h))
    if rate:
        theirs = RK45(lambda t, y: -rate * y, 0.0, np.ones(1), 1e6, **options).h_abs
        assert found == pytest.approx(theirs)
    else:
        assert found == 1e5


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_first_step_where_the_tolerance_is_zero(y):
    tolerance, y = Tolerance(rtol=1e-6, atol=0.0), torch.tensor([y, 0.0])
    step = first_step(tolerance, y, torch.ones(2), lambda step: torch.zeros(2))
    assert 0 < step < math.inf
