"""Networks of continuous depth: values, gradients, settings, and the memory of a training step."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from cnf.ode import GRADIENTS, NeuralODE
from cnf.utils.memory import PeakMemory

DOUBLE = torch.float64


class Field(nn.Module):
    """A field with a shared layer, a buffer that counts, and one that needs a gradient."""

    def __init__(self, dim=3, width=8, dtype=DOUBLE):
        super().__init__()
        self.inner = nn.Linear(dim, width, dtype=dtype)
        self.outer = nn.Linear(width, dim, dtype=dtype)
        self.again = self.outer
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.full((dim,), 0.7, dtype=dtype).requires_grad_())

    def forward(self, t, y):
        self.calls += 1
        return self.again(torch.tanh(self.inner(y) + t)) * self.scale + 0.1 * self.outer.bias


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_those_of_autograd_through_the_steps(gradient):
    """Of steps written out; those of the continuous adjoint up to the error of short steps."""
    steps = 100 if gradient == "backsolve" else 10
    model = NeuralODE(Field(), method="heun2", step_size=1 / steps, gradient=gradient)
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    y = x
    for a, b in pairwise(torch.linspace(0, 1, steps + 1, dtype=DOUBLE)):
        slope = model.field(a, y)
        y = y + (b - a) / 2 * (slope + model.field(b, y + (b - a) * slope))
    inputs = [x, *model.parameters(), model.field.scale]
    found, expected = (torch.autograd.grad(out.square().sum(), inputs) for out in (model(x), y))
    close = {"rtol": 1e-3, "atol": 1e-3} if gradient == "backsolve" else {}
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(found, expected, **close)


def test_settings_change_after_training_without_touching_the_weights():
    model = NeuralODE(Field(), rtol=1e-2, atol=1e-2)
    x = torch.randn(4, 3, dtype=DOUBLE)
    names, before = [*model.state_dict()], copy.deepcopy(model.state_dict())
    loose = model.solve(x)
    model.rtol = model.atol = 1e-9
    model.method, model.step, model.gradient, model.max_steps = "dopri8", "per_sample", "", 500
    with pytest.raises(ValueError, match="gradient"):
        model(x)
    model.gradient = "backprop"
    tight = model.solve(x)
    assert tight.stats.evaluations.min() > loose.stats.evaluations
    assert 0 < (tight.ys - loose.ys).abs().max() < 1e-2
    assert names == [*model.state_dict()] == ["field." + name for name in Field().state_dict()]
    assert all(
        before[name].equal(value)
        for name, value in model.state_dict().items()
        if "calls" not in name
    )
    assert "rtol=1e-09" in repr(model)
    assert "max_steps=500" in repr(model)


def test_a_trajectory_passes_through_the_output_and_goes_back():
    model, x = NeuralODE(Field(), span=(0.5, 2.0), rtol=1e-9, atol=1e-9), torch.randn(4, 3).double()
    path = model.trajectory(x, torch.linspace(0.5, 2.0, 5, dtype=DOUBLE))
    assert path.shape == (5, 4, 3)
    torch.testing.assert_close(path[0], x)
    torch.testing.assert_close(path[-1], model(x))
    torch.testing.assert_close(model.trajectory(path[-1], [2.0, 0.5])[-1], x, rtol=1e-6, atol=1e-6)


def test_rows_may_have_times_of_their_own():
    model = NeuralODE(Field(), rtol=1e-9, atol=1e-9)
    x, times = torch.randn(2, 3).double(), torch.tensor([[0.0, 0.3, 1.0], [0.5, 0.2, 0.2]]).double()
    path = model.trajectory(x, times)
    for row, own in enumerate((times[0], times[1, :2])):
        alone = model.trajectory(x[row : row + 1], own)
        torch.testing.assert_close(path[: len(own), row], alone[:, 0], rtol=0, atol=1e-7)


def test_the_depth_can_be_learned():
    span = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    model, x = NeuralODE(Field(), span, rtol=1e-9, atol=1e-9), torch.randn(4, 3, dtype=DOUBLE)
    y = model(x)
    (found,) = torch.autograd.grad(y.sum(), span)
    torch.testing.assert_close(found[1], model.field(span[1], y).sum())


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 4, 4)])
def test_augmented_states_start_at_zero(shape):
    """And let a map of the line that no path of the line allows: x to -x."""

    class Turn(nn.Module):
        def forward(self, t, y):
            return torch.pi * torch.cat([-y[:, 2:], y[:, :2]], 1)

    model, x = NeuralODE(Turn(), augment=2, rtol=1e-9, atol=1e-9), torch.randn(shape).double()
    assert model.solve(x).ys[0, :, 2:].eq(0).all()
    torch.testing.assert_close(model(x)[:, :2], -x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="augment of at least 0; got -1"):
        NeuralODE(Turn(), augment=-1)
    with pytest.raises(ValueError, match=r"\(rows, columns, …\) with augment; got \(3,\)"):
        NeuralODE(Turn(), augment=2)(torch.ones(3))


class Logistic(nn.Module):
    """A field that takes little time for a large state."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, t, y):
        return self.rate * y * (1 - y)


def peak_of_a_training_step(gradient, steps):
    """Return the peak of a forward and a backward pass, in states."""
    field, x = Logistic(), torch.rand(100, 128)
    model = NeuralODE(field, method="euler", step_size=1 / steps, gradient=gradient)
    with PeakMemory() as meter:
        model(x).square().mean().backward()
    return meter.peak / x.nbytes


def test_memory_is_flat_by_backsolve_and_one_state_a_step_by_checkpoint():
    NeuralODE(Logistic())(torch.rand(2))  # what a first solve makes once for all
    few, many = (peak_of_a_training_step("backsolve", steps) for steps in (10, 1000))
    assert 3 < few < many < 1.05 * few
    few, many = (peak_of_a_training_step("checkpoint", steps) for steps in (10, 1000))
    assert 0.95 * 990 < many - few < 1.001 * 990
    few, many = (peak_of_a_training_step("backprop", steps) for steps in (10, 100))
    assert many - few > 3 * 90  # the meter sees every evaluation
