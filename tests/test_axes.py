"""Axes: there and back, and the slope against differences."""

import numpy as np
import pytest
import torch

import cnf
from cnf.diagnostics.axes import Circle, HalfLine, Interval, Line, axes_of
from cnf.layers import Bounded, Circular, Concatenate, Identity, Positive

AXES = [Line(3.0, 2.0), HalfLine(-1.0), Interval(-2.0, 5.0), Circle(0.0, 24.0)]


@pytest.mark.parametrize("axis", AXES)
def test_there_and_back(axis):
    u = np.linspace(0.1, 4.0, 20)
    np.testing.assert_allclose(axis.u(axis.x(u)), u, rtol=1e-9)


@pytest.mark.parametrize("axis", AXES)
def test_the_slope_is_the_derivative(axis):
    u = np.linspace(-3.0, 3.0, 13)
    slope = (axis.x(u + 1e-5) - axis.x(u - 1e-5)) / 2e-5
    np.testing.assert_allclose(axis.log_slope(u), np.log(slope), atol=1e-8)


def test_values_at_and_beyond_a_bound_are_finite():
    assert np.isfinite(HalfLine(1.0).u(np.array([1.0, 0.0]))).all()
    assert np.isfinite(Interval(0.0, 1.0).u(np.array([0.0, 1.0, 2.0]))).all()


def test_a_circle_takes_values_a_turn_further_for_the_same():
    assert Circle(0.0, 360.0).u(np.array([-90.0, 270.0, 630.0])).tolist() == [270.0] * 3
    assert (Circle(0.0, 360.0).period, Line(0.0, 1.0).period) == (360.0, float("inf"))


def test_a_flow_says_what_its_columns_are():
    layers = [Positive([2.0]), Bounded([0.0, 1.0], [1.0, 4.0]), Circular(1, 0.0, 24.0), Identity(1)]
    columns = Concatenate(layers, [[4], [1, 0], [2], [3]])
    flow = cnf.Flow(cnf.ffjord(5, circular=(3,)).base, [columns])
    axes = axes_of(flow, np.ones((10, 5)))
    expected = [Interval(1.0, 4.0), Interval(0.0, 1.0), Circle(0.0, 24.0)]
    assert list(axes[:3]) == expected
    assert axes[4] == HalfLine(2.0)
    assert isinstance(axes[3], Line)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(Positive([1.0]), HalfLine(1.0)), (Bounded([0.0], [2.0]), Interval(0.0, 2.0))],
)
def test_a_layer_alone_says_so_too(layer, axis):
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1)
    assert axes_of(cnf.Flow(base, [layer]), np.ones((3, 1))) == (axis,)
