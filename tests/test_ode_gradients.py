"""The gradient modes against each other, finite differences and the closed form."""

import math

import pytest
import torch

from cnf.ode import GRADIENTS, solve


def dynamics(t, y, args):
    """Nonlinear in everything, with arguments in a nested tree and one that is no tensor."""
    weights, (bias, nothing) = args["weights"], args["rest"]
    assert nothing is None
    return torch.tanh(y @ weights + bias * torch.sin(3 * t)) - 0.1 * y


@pytest.fixture
def problem():
    options = {"dtype": torch.float64, "requires_grad": True}
    y0 = torch.randn(4, 3, **options)
    t = torch.tensor([0.2, 0.9, 1.7], **options)
    return y0, t, torch.randn(3, 3, **options), torch.randn(3, **options)


def outputs(gradient, y0, t, weights, bias, tolerance=1e-6):
    args = {"weights": weights, "rest": (bias, None)}
    return solve(dynamics, y0, t, args, rtol=tolerance, atol=tolerance, gradient=gradient).ys


@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoint_equals_backprop(problem, reverse):
    y0, t, weights, bias = problem
    if reverse:
        t = t.detach().flip(0).requires_grad_()
    cotangent = torch.randn(3, 4, 3, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(outputs(mode, y0, t, weights, bias), (y0, t, weights, bias), cotangent)
        for mode in ("checkpoint", "backprop")
    ]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradcheck_of_state_times_and_arguments(problem, gradient):
    assert torch.autograd.gradcheck(lambda *p: outputs(gradient, *p, tolerance=1e-10), problem)


def test_second_derivatives_through_backprop(problem):
    y0, t, weights, bias = problem
    assert torch.autograd.gradgradcheck(
        lambda y0, bias: outputs("backprop", y0, t.detach(), weights.detach(), bias, 1e-10)[-1],
        (y0, bias),
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_to_the_end_times_is_the_slope(gradient):
    """For y' = a y, dy(t₁)/dt₁ = a y(t₁) and dy(t₁)/dt₀ = −a y(t₁)."""
    t = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    end = solve(lambda t, y, a: a * y, y0, t, -0.7, rtol=1e-9, atol=1e-9, gradient=gradient).ys[-1]
    (gradient_t,) = torch.autograd.grad(end, t)
    slope = -0.7 * math.exp(-0.7 * 1.5)
    torch.testing.assert_close(gradient_t, torch.tensor([-slope, slope], dtype=torch.float64))


def test_checkpoint_leaves_unused_arguments_without_a_gradient():
    y0 = torch.ones(2, requires_grad=True)
    used, unused = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    solve(lambda t, y, args: -args[0] * y, y0, [0.0, 1.0], (used, unused)).ys[-1].sum().backward()
    assert used.grad is not None
    assert unused.grad is None


def test_checkpoint_keeps_no_graph_of_the_steps():
    """The graph behind the outputs is one node, however many steps there were."""
    y0 = torch.ones(2, requires_grad=True)
    ys = solve(lambda t, y, args: -y, y0, [0.0, 5.0], rtol=1e-9, atol=1e-9).ys
    parents = [node for node, _ in ys.grad_fn.next_functions if node is not None]
    assert [type(node).__name__ for node in parents] == ["AccumulateGrad"]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_only_the_first_output_has_a_gradient(gradient):
    y0 = torch.ones(2, requires_grad=True)
    ys = solve(lambda t, y, args: -y, y0, [0.0, 1.0], gradient=gradient).ys
    (grad,) = torch.autograd.grad(ys[0].sum(), y0)
    torch.testing.assert_close(grad, torch.ones(2))
