"""The gradient modes against each other, finite differences and the closed form."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch

from cnf.fields import ConcatSquash
from cnf.ode import GRADIENTS, TABLEAUS, Backsolve, Checkpoint, PerRow, solve

STEPS = ["joint", "per_sample"]
EVERYTHING = Checkpoint(activation_bytes=2**30)
EXACT = ["backprop", "checkpoint", EVERYTHING]


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


def outputs(gradient, step, y0, t, weights, bias, row, tolerance=1e-6, **more):
    args = {"weights": weights, "rest": (bias, None), "row": PerRow(row)}
    options = {"rtol": tolerance, "atol": tolerance, "gradient": gradient, "step": step}
    return solve(dynamics, y0, t, args, **options | more).ys


def gradients(mode, step, problem, cotangent, tolerance=1e-6):
    return torch.autograd.grad(outputs(mode, step, *problem, tolerance), problem, cotangent)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoint_equals_backprop(problem, step, reverse):
    if reverse:
        problem = (problem[0], problem[1].detach().flip(0).requires_grad_(), *problem[2:])
    cotangent = torch.randn(3, 4, 3, dtype=torch.float64)
    expected = gradients("backprop", step, problem, cotangent)
    # Nothing kept, everything, and what of it fits.
    for mode in ("checkpoint", EVERYTHING, Checkpoint(activation_bytes=20_000)):
        found = gradients(mode, step, problem, cotangent)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "gradient", [*GRADIENTS, EVERYTHING, Backsolve(norm="full"), Backsolve(method="dopri5")]
)
def test_gradcheck_of_state_times_and_arguments(problem, step, gradient):
    """Every entry of the default's Jacobian; random projections of the others'."""
    assert torch.autograd.gradcheck(
        lambda *p: outputs(gradient, step, *p, tolerance=1e-10),
        problem,
        atol=1e-6,
        fast_mode=gradient != "checkpoint",
    )


@pytest.fixture
def network():
    """A solve through two hidden layers, as a function of all that it depends on, and these."""
    field = ConcatSquash(2, (16, 16), context_dim=1, zero_last=False).double()
    names, values = zip(*field.named_parameters(), strict=True)
    options = {"dtype": torch.float64, "requires_grad": True}
    t = torch.tensor([0.0, 0.4, 1.0], **options)
    inputs = (torch.randn(6, 2, **options), t, torch.randn(6, 1, **options), *values)

    def f(t, y, args):
        parameters = dict(zip(names, args[0], strict=True))
        return torch.func.functional_call(field, parameters, (t, y, args[1]))

    def ends(y0, t, context, *values, **how):
        how = {"rtol": 1e-10, "atol": 1e-10} | how
        return solve(f, y0, t, (values, PerRow(context)), **how).ys[1:].square().sum()

    return ends, inputs


@pytest.mark.parametrize("step", STEPS)
def test_the_modes_agree_on_a_network(network, step):
    """To 1e-6 at tolerance 1e-10; the exact ones to 1e-12."""
    ends, inputs = network
    found = {
        mode: torch.autograd.grad(ends(*inputs, gradient=mode, step=step), inputs)
        for mode in [*GRADIENTS, EVERYTHING]
    }
    for mode, gradient in found.items():
        close = 1e-6 if mode == "backsolve" else 1e-12
        torch.testing.assert_close(gradient, found["backprop"], rtol=close, atol=close)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("mode", GRADIENTS)
def test_the_modes_agree_with_central_differences_on_a_network(network, step, mode):
    """To 1e-6 at tolerance 1e-10, along a direction of each input."""
    ends, inputs = network
    gradients = torch.autograd.grad(ends(*inputs, gradient=mode, step=step), inputs)
    for i, gradient in enumerate(gradients):
        direction = torch.randn_like(inputs[i]) / inputs[i].numel() ** 0.5
        with torch.no_grad():
            ahead, behind = (
                ends(*inputs[:i], inputs[i] + h * direction, *inputs[i + 1 :], step=step)
                for h in (1e-4, -1e-4)
            )
        difference = (ahead - behind) / 2e-4
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-6)


def test_second_derivatives_through_backprop(problem):
    y0, t, weights, bias, row = (value.detach() for value in problem)
    assert torch.autograd.gradgradcheck(
        lambda y0, bias: outputs("backprop", "joint", y0, t, weights, bias, row, 1e-10)[-1],
        (y0.requires_grad_(), bias.requires_grad_()),
        fast_mode=True,
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


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("swapped", [False, True])
def test_complex_arguments(gradient, swapped):
    """For y' = Re(c z + r) y the gradient of y(1) is y(1) conj(c) to z and y(1) to r."""
    z = torch.tensor(0.3 - 0.2j, dtype=torch.complex128, requires_grad=True)
    r = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    args, c = (r, z) if swapped else (z, r), 1 + 0.5j

    def f(t, y, args):
        return sum((c * arg).real if arg.is_complex() else arg for arg in args) * y

    y0, options = torch.ones(1, dtype=torch.float64), {"rtol": 1e-10, "atol": 1e-10}
    y = solve(f, y0, [0.0, 1.0], args, gradient=gradient, **options).ys[-1]
    found = torch.autograd.grad(y.sum(), (z, r))
    end = math.exp(0.3 + 0.1 - 0.5)
    expected = torch.tensor(end * (1 - 0.5j), dtype=z.dtype), torch.tensor(end, dtype=r.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", EXACT)
@pytest.mark.parametrize("method", TABLEAUS)
def test_gradcheck_of_fixed_steps(problem, gradient, step, method):
    """Which go with the times: t₀, t_T and one in between that a step ends at.

    Every entry of the Jacobian for two methods, random projections for the others.
    """
    y0, t, *rest = problem
    middle = torch.tensor(1.3, dtype=torch.float64)

    def end(y0, t, *rest):
        times = torch.stack([t[0], t[1], middle, t[2]])
        return outputs(gradient, step, y0, t, *rest, method=method, step_size=times)

    fast = method not in ("rk4", "dopri5")
    assert torch.autograd.gradcheck(end, (y0, t, *rest), fast_mode=fast)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_backsolve_goes_back_through_fixed_steps(problem, step, method):
    fine = {"method": method, "step_size": 0.01}
    found, expected = (
        torch.autograd.grad(outputs(mode, step, *problem, **fine).square().sum(), problem)
        for mode in ("backsolve", "checkpoint")
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # A method of its own that can choose its steps does so.
    loose = Backsolve(method="dopri5", rtol=1e-3, atol=1e-3)
    args = {"weights": problem[2], "rest": (problem[3], None), "row": PerRow(problem[4])}
    options = {"method": "rk4", "step_size": 0.01, "step": step}
    solution = solve(dynamics, *problem[:2], args, gradient=loose, **options)
    solution.ys.sum().backward()
    assert np.max(solution.stats.backward) < 100


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_gradient_to_an_output_time_where_a_step_ends(problem, gradient, step):
    y0, t, *rest = (value.detach() for value in problem)
    t.requires_grad_()
    ys = outputs(gradient, step, y0, t, *rest, tolerance=1e-10, stops=t.detach()[1:2])
    (found,) = torch.autograd.grad(ys[1].sum(), t, retain_graph=True)
    slope = dynamics(t[1], ys[1], {"weights": rest[0], "rest": (rest[1], None), "row": rest[2]})
    assert found[1].item() == pytest.approx(slope.sum().item(), abs=1e-7)
    assert found[2].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_gradient_through_a_jump(gradient, step):
    """y' = a before t = ½ and 3 a after it: y(1) = y₀ + 2 a."""
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)

    def f(t, y, rate):
        return torch.where(t < 0.5, rate, 3 * rate).expand_as(y)

    options = {"gradient": gradient, "step": step, "rtol": 1e-8, "atol": 1e-8}
    solution = solve(f, y0, [0.0, 0.3, 1.0], rate, jumps=[0.5], **options)
    torch.testing.assert_close(solution.ys[1:, 0, 0].detach(), torch.tensor([0.21, 1.4]).double())
    assert np.all(solution.stats.rejected == 0)
    found = torch.autograd.grad(solution.ys[-1, 0, 0], (rate, y0))
    torch.testing.assert_close(found[0].item(), 2.0)
    assert found[1].flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_a_row_that_fails_leaves_the_others_their_gradient(problem, gradient, step):
    y0, t, weights, bias, row = (value.detach() for value in problem)
    options = {"tolerance": 1e-9, "on_failure": "return"}
    found = []
    for first in (1.0, math.nan):
        y0 = torch.cat([torch.full_like(y0[:1], first), y0[1:]])
        wanted = [value.clone().requires_grad_() for value in (weights, bias)]
        ys = outputs(gradient, step, y0, t, *wanted, row, **options)
        assert bool(ys[-1, 0].isnan().all()) == math.isnan(first)
        found.append(torch.autograd.grad(ys[:, 1:].square().sum(), wanted))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_a_row_whose_step_was_too_long_leaves_the_others_their_gradient(gradient):
    """y' = −w √y: the first step of the second row looks below zero, the first's is accepted."""
    w = torch.tensor(0.15, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [0.01]], dtype=torch.float64, requires_grad=True)
    options = {"rtol": 1e-6, "atol": 1e-6, "first_step": 1.0, "step": "per_sample"}
    solution = solve(lambda t, y, w: -w * y.sqrt(), y0, [0.0, 1.0], w, gradient=gradient, **options)
    assert solution.stats.rejected[1] > 0
    exact = (y0.sqrt() - w / 2).square()
    found, expected = (torch.autograd.grad(ys.sum(), (w, y0)) for ys in (solution.ys[-1], exact))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_evaluations_backward_are_counted(problem):
    y0, t, weights, bias, row = problem
    args = {"weights": weights, "rest": (bias, None), "row": PerRow(row)}
    for step in STEPS:
        counts = {}
        for mode in [*GRADIENTS, EVERYTHING]:
            solution = solve(dynamics, y0, t.detach(), args, step=step, gradient=mode)
            assert np.sum(solution.stats.backward) == 0
            solution.ys[-1].sum().backward()
            counts[mode] = solution.stats.backward
            accepted = solution.stats.accepted
        assert np.sum(counts["backprop"]) == np.sum(counts[EVERYTHING]) == 0
        # Of the seven stages the last matters to the output inside a step alone; where rows step
        # together it is evaluated for all of them.
        extra = counts["checkpoint"] - 6 * accepted
        assert np.all((extra >= 1) & (extra <= 4))
        assert np.all(counts["backsolve"] > 10)


def test_evaluations_backward_of_a_sum_of_solves():
    y0 = torch.ones(1, requires_grad=True)
    first, second = (solve(lambda t, y, args: -y, y0, [0.0, 1.0]) for _ in range(2))
    total = first.stats + second.stats
    (first.ys[-1] + second.ys[-1]).sum().backward()
    assert total.backward == first.stats.backward + second.stats.backward > 0


@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_an_argument_that_was_changed_before_the_backward_pass_is_an_error(gradient):
    rate = torch.tensor(-1.0, requires_grad=True)
    ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=gradient).ys
    with torch.no_grad():
        rate += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_two_backward_passes_give_the_same(gradient):
    rate = torch.tensor(-1.0, requires_grad=True)
    ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=gradient).ys
    first, second = (torch.autograd.grad(ys.sum(), rate, retain_graph=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_a_deleted_solution_is_freed(gradient):
    """No cycle of references holds its memory until the garbage collector runs."""
    rate = torch.tensor(-1.0, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=gradient).ys
        gone = weakref.ref(ys)
        del ys
        assert gone() is None
    finally:
        gc.enable()


def test_a_failure_in_the_backward_pass_says_so():
    rate = torch.tensor(1.0, requires_grad=True)

    def f(t, y, rate):
        # Differentiable nowhere once autograd asks.
        return torch.where(y > 0, -rate * y, y) if not y.requires_grad else y * math.nan * rate

    ys = solve(f, torch.ones(1), [0.0, 1.0], rate, gradient="backsolve").ys
    with pytest.raises(
        RuntimeError, match=r"In the backward pass: The state or its derivative is NaN"
    ):
        ys.sum().backward()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_to_times_around_jumps(gradient, step, reverse):
    """The jumps stay where they are when the ends move, and output times see their own side."""
    t = torch.tensor([0.5, 1.0, 1.7, 2.0, 2.5], dtype=torch.float64)
    t = (t.flip(0) if reverse else t).requires_grad_()
    slopes = [1.0, 1.0, 5.0, 5.0, 50.0]  # in the interval before each time, or after the first

    def f(t, y, args):
        return torch.where(t < 1, 1.0, torch.where(t < 2, 5.0, 50.0)).to(y).expand_as(y)

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    ys = solve(f, y0, t, jumps=[1.0, 2.0], step=step, gradient=gradient).ys[:, 0, 0]
    if reverse:
        slopes = [50.0, 50.0, 5.0, 5.0, 1.0]
    for i in range(1, 5):
        (found,) = torch.autograd.grad(ys[i], t, retain_graph=True)
        expected = torch.zeros(5, dtype=torch.float64)
        expected[0], expected[i] = -slopes[0], slopes[i]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_gradient_to_the_ends_of_steps_of_a_size(gradient, dtype):
    """Three steps of 0.1 to 0.3, which is a rounding more or less than that."""
    t = torch.tensor([0.0, 0.3], dtype=dtype, requires_grad=True)
    options = {"method": "rk4", "step_size": 0.1, "gradient": gradient}
    solution = solve(lambda t, y, args: -y, torch.ones(1, dtype=dtype), t, **options)
    assert solution.stats.accepted == 3
    (found,) = torch.autograd.grad(solution.ys[-1].sum(), t)
    slope = math.exp(-0.3)
    torch.testing.assert_close(found, torch.tensor([slope, -slope], dtype=dtype), rtol=1e-4, atol=0)


FAILING = {
    # A row of NaN among the arguments.
    "argument": (lambda t, y, a: -y * a[0] * a[1], [1.0, 1.0, 1.0], [1.0, math.nan, 2.0], {}),
    # A row that blows up midway.
    "blow-up": (
        lambda t, y, a: torch.where(y > 1e6, math.inf, a[0] * a[1] * y * y),
        [1.0, 1.3, 0.5],
        [1.0, 1.0, 1.0],
        {},
    ),
    # One that overflows in fixed steps.
    "fixed": (
        lambda t, y, a: a[0] * a[1] * y * y,
        [1.0, 1e160, 0.5],
        [1.0, 1.0, 1.0],
        {"step_size": 0.01},
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gradient", ["checkpoint", EVERYTHING, "backsolve"])
@pytest.mark.parametrize("case", FAILING)
def test_a_row_that_fails_midway_leaves_the_others_their_gradient(case, gradient, step):
    f, y0, factors, options = FAILING[case]
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        start = torch.tensor(y0, dtype=torch.float64)[rows, None].requires_grad_()
        factor = torch.tensor(factors, dtype=torch.float64)[rows, None]
        rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        solution = solve(
            f,
            start,
            [0.0, 0.5, 0.9],
            (rate, PerRow(factor)),
            gradient=gradient,
            step=step,
            on_failure="return",
            **{"rtol": 1e-8, "atol": 1e-8} | options,
        )
        assert len(solution.rows) == len(rows) - 2
        good = solution.ys[-1][[0, -1]]
        rate_grad, start_grad = torch.autograd.grad(good.sum(), (rate, start))
        assert start_grad.isfinite().all()
        found.append((rate_grad, start_grad[[0, -1]]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["checkpoint", EVERYTHING])
def test_a_first_state_that_was_changed_before_the_backward_pass_is_an_error(gradient):
    y0, rate = torch.ones(2, 1), torch.tensor(-1.0, requires_grad=True)
    ys = solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=gradient).ys
    y0.fill_(1000.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


@pytest.mark.parametrize("gradient", [*GRADIENTS, EVERYTHING])
def test_arguments_of_another_dtype_and_slopes_that_depend_on_nothing(gradient):
    rate = torch.tensor(-1.0, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=gradient).ys[-1].sum().backward()
    assert rate.grad.item() == pytest.approx(2 * math.exp(-1), rel=1e-4)
    ys = solve(lambda t, y, a: torch.ones_like(y), y0, [0.0, 1.0], gradient=gradient).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backsolve(method="dopri"), "method to be one of .*dopri5.*; got 'dopri'"),
        (lambda: Backsolve(norm="seminorm"), "norm to be state or full; got 'seminorm'"),
        (lambda: Checkpoint(activation_bytes=-5), "activation_bytes of at least 0 bytes; got -5"),
    ],
)
def test_wrong_settings_of_a_mode(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_backward_pass_without_an_error_estimate():
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="error estimate for the backward pass"):
        solve(lambda t, y, args: -y, y0, [0.0, 1.0], gradient=Backsolve(method="rk4"))


def test_a_gradient_mode_of_the_wrong_name():
    with pytest.raises(ValueError, match="gradient to be one of"):
        solve(lambda t, y, args: -y, torch.ones(2), [0.0, 1.0], gradient="adjoint")
