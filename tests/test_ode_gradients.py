"""The gradient modes against each other, finite differences and the closed form."""

import math

import pytest
import torch

from cnf.fields import ConcatSquash
from cnf.ode import GRADIENTS, Backsolve, PerRow, solve

STEPS = ["joint", "per_sample"]


def dynamics(t, y, args):
    """Nonlinear in everything, with arguments in a nested tree and one that is no tensor."""
    weights, (bias, nothing), row = args["weights"], args["rest"], args["row"]
    assert nothing is None
    return torch.tanh(y @ weights + bias * torch.sin(3 * t)) * row - 0.1 * y


@pytest.fixture
def problem():
    """State, times, weights, bias and an argument for each row."""
    options = {"dtype": torch.float64, "requires_grad": True}
    y0 = torch.randn(4, 3, **options)
    t = torch.tensor([0.2, 0.9, 1.7], **options)
    return (
        y0,
        t,
        torch.randn(3, 3, **options),
        torch.randn(3, **options),
        torch.rand(4, 1, **options),
    )


def outputs(gradient, step, y0, t, weights, bias, row, tolerance=1e-6):
    args = {"weights": weights, "rest": (bias, None), "row": PerRow(row)}
    options = {"rtol": tolerance, "atol": tolerance, "gradient": gradient, "step": step}
    return solve(dynamics, y0, t, args, **options).ys


def gradients(mode, step, problem, cotangent, tolerance=1e-6):
    return torch.autograd.grad(outputs(mode, step, *problem, tolerance), problem, cotangent)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoint_equals_backprop(problem, step, reverse):
    if reverse:
        problem = (problem[0], problem[1].detach().flip(0).requires_grad_(), *problem[2:])
    cotangent = torch.randn(3, 4, 3, dtype=torch.float64)
    left, right = (gradients(mode, step, problem, cotangent) for mode in ("checkpoint", "backprop"))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "gradient", [*GRADIENTS, Backsolve(norm="full"), Backsolve(method="dopri5")]
)
def test_gradcheck_of_state_times_and_arguments(problem, step, gradient):
    assert torch.autograd.gradcheck(
        lambda *p: outputs(gradient, step, *p, tolerance=1e-10), problem, atol=1e-6
    )


@pytest.mark.parametrize("step", STEPS)
def test_the_modes_agree_on_a_network(step):
    """To 1e-6 at tolerance 1e-10, on two hidden layers, context and times included."""
    field = ConcatSquash(2, (16, 16), context_dim=1).double()
    names, values = zip(*field.named_parameters(), strict=True)
    y0 = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    context = torch.randn(6, 1, dtype=torch.float64, requires_grad=True)
    wanted = (y0, t, context, *values)

    def f(t, y, args):
        parameters = dict(zip(names, args[0], strict=True))
        return torch.func.functional_call(field, parameters, (t, y, args[1]))

    found = []
    for mode in GRADIENTS:
        options = {"rtol": 1e-10, "atol": 1e-10, "gradient": mode, "step": step}
        end = solve(f, y0, t, (values, PerRow(context)), **options).ys[-1]
        found.append(torch.autograd.grad(end.square().sum(), wanted))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-6, atol=1e-6)


def test_second_derivatives_through_backprop(problem):
    y0, t, weights, bias, row = (value.detach() for value in problem)
    assert torch.autograd.gradgradcheck(
        lambda y0, bias: outputs("backprop", "joint", y0, t, weights, bias, row, 1e-10)[-1],
        (y0.requires_grad_(), bias.requires_grad_()),
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


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_no_graph_of_the_steps_is_kept(gradient):
    """The graph behind the outputs is one node, however many steps there were."""
    y0 = torch.ones(2, requires_grad=True)
    options = {"rtol": 1e-9, "atol": 1e-9, "gradient": gradient}
    ys = solve(lambda t, y, args: -y, y0, [0.0, 5.0], **options).ys
    parents = [node for node, _ in ys.grad_fn.next_functions if node is not None]
    assert [type(node).__name__ for node in parents] == ["AccumulateGrad"]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_only_the_first_output_has_a_gradient(gradient):
    y0 = torch.ones(2, requires_grad=True)
    ys = solve(lambda t, y, args: -y, y0, [0.0, 1.0], gradient=gradient).ys
    (grad,) = torch.autograd.grad(ys[0].sum(), y0)
    torch.testing.assert_close(grad, torch.ones(2))


def test_a_gradient_mode_of_the_wrong_name():
    with pytest.raises(ValueError, match="gradient to be one of"):
        solve(lambda t, y, args: -y, torch.ones(2), [0.0, 1.0], gradient="adjoint")
