"""The gradient modes against each other, finite differences and the closed form."""

import gc
import math
import weakref
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
import torch

from cnf.fields import ConcatSquash
from cnf.ode import (
    GRADIENTS,
    TABLEAUS,
    Backsolve,
    Checkpoint,
    PerRow,
    PIController,
    Status,
    solve,
)
from cnf.ode.interpolation import _bump_derivatives
from cnf.ode.step import tableau_tensors

DOUBLE = {"dtype": torch.float64, "requires_grad": True}
STEPS = ["joint", "per_sample"]
EVERYTHING = Checkpoint(activation_bytes=2**30)
MODES = [*GRADIENTS, EVERYTHING]
SOLVED_BACK = ["checkpoint", EVERYTHING, "backsolve"]

every_step = pytest.mark.parametrize("step", STEPS)
every_mode = pytest.mark.parametrize("gradient", MODES)
both_ways = pytest.mark.parametrize("reverse", [False, True])


def dynamics(t, y, args):
    """Nonlinear in everything, with arguments in a nested tree and one that is no tensor."""
    weights, (bias, nothing), row = args["weights"], args["rest"], args["row"]
    assert nothing is None
    return torch.tanh(y @ weights + bias * torch.sin(3 * t)) * row - 0.1 * y


@pytest.fixture
def problem():
    """State, times, weights, bias and an argument for each row."""
    y0, t = torch.randn(4, 3, **DOUBLE), torch.tensor([0.2, 0.9, 1.7], **DOUBLE)
    rest = torch.randn(3, 3, **DOUBLE), torch.randn(3, **DOUBLE), torch.rand(4, 1, **DOUBLE)
    return y0, t, *rest


def solution(gradient, step, y0, t, weights, bias, row, tolerance=1e-6, **more):
    args = {"weights": weights, "rest": (bias, None), "row": PerRow(row)}
    options = {"rtol": tolerance, "atol": tolerance, "gradient": gradient, "step": step}
    return solve(dynamics, y0, t, args, **options | more)


def outputs(*problem, **options):
    return solution(*problem, **options).ys


def decay(rate, gradient, y0=None, **options):
    """The states of y' = rate y at 0 and 1."""
    y0 = torch.ones(1) if y0 is None else y0
    return solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=gradient, **options).ys


@pytest.mark.parametrize(
    ("gradient", "step"),
    [
        *product(MODES, STEPS),
        *((Backsolve(norm="full"), "joint"), (Backsolve(method="dopri5"), "per_sample")),
    ],
)
def test_gradcheck_of_state_times_and_arguments(problem, step, gradient):
    def end(*inputs):
        return outputs(gradient, step, *inputs, tolerance=1e-7)

    assert torch.autograd.gradcheck(end, problem, atol=1e-5, fast_mode=True)


@every_step
@both_ways
def test_the_modes_agree_on_a_network(step, reverse):
    """The exact ones to 1e-12; with backsolve and a central difference to 1e-4.

    The checkpoints keep nothing, everything, and what of it fits. The difference is along a
    direction of all inputs, with a time where a step ends, of a solve through two hidden layers.
    """
    field = ConcatSquash(2, (8, 8), context_dim=1, zero_last=False).double()
    names, values = zip(*field.named_parameters(), strict=True)
    t = torch.tensor([1.0, 0.4, 0.0] if reverse else [0.0, 0.4, 1.0], **DOUBLE)
    inputs = (torch.randn(6, 2, **DOUBLE), t, torch.randn(6, 1, **DOUBLE), *values)

    def f(t, y, args):
        parameters = dict(zip(names, args[0], strict=True))
        return torch.func.functional_call(field, parameters, (t, y, args[1]))

    def ends(y0, t, context, *values, gradient="checkpoint"):
        options = {"rtol": 1e-7, "atol": 1e-7, "gradient": gradient, "step": step}
        args = values, PerRow(context)
        return solve(f, y0, t, args, stops=[0.4], **options).ys[1:].square().sum()

    modes = [*MODES, Checkpoint(activation_bytes=200_000)]
    found = {mode: torch.autograd.grad(ends(*inputs, gradient=mode), inputs) for mode in modes}
    for mode, gradient in found.items():
        close = 1e-4 if mode == "backsolve" else 1e-12
        torch.testing.assert_close(gradient, found["backprop"], rtol=close, atol=close)
    direction = [torch.randn_like(value) for value in inputs]
    slope = sum((g * d).sum() for g, d in zip(found["backprop"], direction, strict=True))
    with torch.no_grad():
        ahead, behind = (
            ends(*(value + h * d for value, d in zip(inputs, direction, strict=True)))
            for h in (1e-4, -1e-4)
        )
    torch.testing.assert_close(slope, (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-4)


def test_second_derivatives_through_backprop(problem):
    """In steps of one size, which are never rejected: differences have the error of rounding."""
    y0, t, *rest = problem
    controller = PIController(safety=1.0, factor_min=1.0, factor_max=1.0, beta=0.0)
    constant = {"controller": controller, "first_step": 0.3, "tolerance": 1e6}

    def end(y0, *rest):
        return outputs("backprop", "joint", y0, t.detach(), *rest, **constant)[-1]

    assert torch.autograd.gradgradcheck(end, (y0, *rest), fast_mode=True)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("swapped", [False, True])
def test_complex_arguments(gradient, swapped):
    """For y' = Re(c z + r) y the gradient of y(1) is y(1) conj(c) to z and y(1) to r."""
    z = torch.tensor(0.3 - 0.2j, dtype=torch.complex128, requires_grad=True)
    r = torch.tensor(-0.5, **DOUBLE)
    args, c = (r, z) if swapped else (z, r), 1 + 0.5j

    def f(t, y, args):
        return sum((c * arg).real if arg.is_complex() else arg for arg in args) * y

    y0, options = torch.ones(1, dtype=torch.float64), {"rtol": 1e-10, "atol": 1e-10}
    y = solve(f, y0, [0.0, 1.0], args, gradient=gradient, **options).ys[-1]
    found = torch.autograd.grad(y.sum(), (z, r))
    end = math.exp(0.3 + 0.1 - 0.5)
    expected = torch.tensor(end * (1 - 0.5j), dtype=z.dtype), torch.tensor(end, dtype=r.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@every_mode
def test_the_graph_of_a_solve(gradient):
    """Behind the outputs it is one node where nothing is kept, however many steps there were.

    It serves two backward passes, the first output alone has a gradient, unused arguments have
    none, and no cycle of references holds its memory until the garbage collector runs.
    """
    y0, rate, unused = (torch.tensor([value], requires_grad=True) for value in (1.0, -1.0, 1.0))
    gc.collect()
    gc.disable()
    try:
        args = (rate, unused)
        ys = solve(lambda t, y, a: a[0] * y, y0, [0.0, 5.0], args, gradient=gradient).ys
        first, second = (torch.autograd.grad(ys.sum(), rate, retain_graph=True) for _ in range(2))
        assert first == second
        (grad,) = torch.autograd.grad(ys[0].sum(), y0, retain_graph=True)
        assert grad.item() == 1.0
        ys.sum().backward(retain_graph=True)
        assert rate.grad == first[0]
        assert unused.grad is None or not unused.grad.any()
        assert (unused.grad is None) == (gradient != "backsolve")
        parents = [type(node).__name__ for node, _ in ys.grad_fn.next_functions if node is not None]
        assert gradient == "backprop" or parents == ["AccumulateGrad"] * 3
        gone = weakref.ref(ys)
        del ys
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("method", "gradient", "step"),
    [  # in turn by joint and by per-sample steps
        (method, gradient, STEPS[(i + j) % 2])
        for i, method in enumerate(TABLEAUS)
        for j, gradient in enumerate(["backprop", "checkpoint", EVERYTHING])
    ],
)
def test_gradcheck_of_fixed_steps(problem, gradient, step, method):
    """Which go with the times: t₀, t_T and one in between that a step ends at."""
    y0, t, *rest = problem
    middle = torch.tensor(1.3, dtype=torch.float64)

    def end(y0, t, *rest):
        times = torch.stack([t[0], t[1], middle, t[2]])
        return outputs(gradient, step, y0, t, *rest, method=method, step_size=times)

    assert torch.autograd.gradcheck(end, (y0, t, *rest), fast_mode=True)


@every_step
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_backsolve_goes_back_through_fixed_steps(problem, step, method):
    fine = {"method": method, "step_size": 0.05}
    ys = (outputs(mode, step, *problem, **fine) for mode in ("backsolve", "checkpoint"))
    found, expected = (torch.autograd.grad(each.square().sum(), problem) for each in ys)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # A method of its own that can choose its steps does so.
    loose = Backsolve(method="dopri5", rtol=1e-3, atol=1e-3)
    solved = solution(loose, step, *problem, method="rk4", step_size=0.01)
    solved.ys.sum().backward()
    assert np.max(solved.stats.backward) < 100


@every_step
@every_mode
@both_ways
def test_gradients_around_jumps(gradient, step, reverse):
    """The jumps stay where they are when the ends move, and output times see their own side."""
    t = torch.tensor([0.5, 1.0, 1.7, 2.0, 2.5], dtype=torch.float64)
    slopes = [1.0, 5.0, 5.0, 50.0]
    if reverse:
        t, slopes = t.flip(0), slopes[::-1]
    rate, y0 = torch.tensor(0.7, **DOUBLE), torch.zeros(2, 1, **DOUBLE)

    def f(t, y, rate):
        return rate * torch.where(t < 1, 1.0, torch.where(t < 2, 5.0, 50.0)).to(y).expand_as(y)

    inputs = (t.requires_grad_(), rate, y0)
    solved = solve(f, y0, t, rate, jumps=[1.0, 2.0], step=step, gradient=gradient)
    assert np.all(solved.stats.rejected == 0)
    ys = solved.ys[:, 0, 0]
    ends = np.append(0, np.cumsum(t.detach().diff().numpy() * slopes))
    np.testing.assert_allclose(ys.detach().numpy(), 0.7 * ends)
    for i in range(1, 5):
        found = torch.autograd.grad(ys[i], inputs, retain_graph=True)
        to_times = torch.zeros(5, dtype=torch.float64)
        to_times[0], to_times[i] = -0.7 * slopes[0], 0.7 * slopes[i - 1]
        expected = to_times, torch.tensor(ends[i]), torch.tensor([[1.0], [0.0]]).double()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_kept_evaluations_of_rows_that_fail_retry_and_finish_one_by_one():
    """The gradient of the others is backprop's: the first slope of one row is NaN, others retry."""
    w, y0 = torch.tensor(0.15, **DOUBLE), torch.tensor([[1.0], [-1.0], [0.01], [4.0]], **DOUBLE)
    options = {"rtol": 1e-6, "atol": 1e-6, "first_step": 1.0, "step": "per_sample"}
    options |= {"on_failure": "return"}
    w.requires_grad_()
    y0.requires_grad_()
    rows = torch.tensor([[1.0], [1.0], [2.0], [9.0]], **DOUBLE)
    expected = None
    for gradient in ("backprop", EVERYTHING, Checkpoint(activation_bytes=2000)):
        weights = (w, PerRow(w * rows))
        solved = solve(
            lambda t, y, args: -args[0] * args[1] * y.sqrt() + torch.sin(9 * args[1] * y),
            y0,
            [0.0, 1.0],
            weights,
            gradient=gradient,
            **options,
        )
        assert [status is Status.FINISHED for status in solved.row_status] == [
            True,
            False,
            True,
            True,
        ]
        assert len({*solved.stats.accepted.tolist()}) > 2
        found = torch.autograd.grad(solved.ys[-1, [0, 2, 3]].square().sum(), (w, y0))
        expected = expected or found
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not solved.stats.backward.all()


@every_mode
def test_a_row_whose_step_was_too_long_leaves_the_others_their_gradient(gradient):
    """y' = −w √y: the first step of the second row looks below zero, the first's is accepted."""
    w, y0 = torch.tensor(0.15, **DOUBLE), torch.tensor([[1.0], [0.01]], **DOUBLE)
    options = {"rtol": 1e-6, "atol": 1e-6, "first_step": 1.0, "step": "per_sample"}
    solved = solve(lambda t, y, w: -w * y.sqrt(), y0, [0.0, 1.0], w, gradient=gradient, **options)
    assert solved.stats.rejected[1] > 0
    exact = (y0.sqrt() - w / 2).square()
    found, expected = (torch.autograd.grad(ys.sum(), (w, y0)) for ys in (solved.ys[-1], exact))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_step
def test_evaluations_backward_are_counted(problem, step):
    counts = {}
    for mode in MODES:
        solved = solution(mode, step, problem[0], problem[1].detach(), *problem[2:])
        assert np.sum(solved.stats.backward) == 0
        solved.ys[-1].sum().backward()
        counts[mode] = solved.stats.backward
        assert np.array_equal((solved.stats + solved.stats).backward, 2 * counts[mode])
    assert np.sum(counts["backprop"]) == np.sum(counts[EVERYTHING]) == 0
    # Of the seven stages the last matters to the output inside a step alone; where rows step
    # together it is evaluated for all of them.
    extra = counts["checkpoint"] - 6 * solved.stats.accepted
    assert np.all((extra >= 1) & (extra <= 4))
    assert np.all(counts["backsolve"] > 10)


@pytest.mark.parametrize(
    ("changed", "gradient"),
    [*(("argument", mode) for mode in MODES), ("state", "checkpoint"), ("state", EVERYTHING)],
)
def test_an_input_that_was_changed_before_the_backward_pass_is_an_error(gradient, changed):
    y0, rate = torch.ones(2, 1), torch.tensor(-1.0, requires_grad=True)
    ys = decay(rate, gradient, y0)
    with torch.no_grad():
        (rate if changed == "argument" else y0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_a_failure_in_the_backward_pass_says_so():
    def f(t, y, rate):
        # Differentiable nowhere once autograd asks.
        return torch.where(y > 0, -rate * y, y) if not y.requires_grad else y * math.nan * rate

    rate = torch.tensor(1.0, requires_grad=True)
    ys = solve(f, torch.ones(1), [0.0, 1.0], rate, gradient="backsolve").ys
    with pytest.raises(RuntimeError, match="In the backward pass: The state or its derivative is"):
        ys.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_mode
def test_gradient_to_the_ends_of_steps_of_a_size(gradient, dtype):
    """Three steps of 0.1 to 0.3, which is a rounding more or less than that."""
    t = torch.tensor([0.0, 0.3], dtype=dtype, requires_grad=True)
    options = {"method": "rk4", "step_size": 0.1, "gradient": gradient}
    solved = solve(lambda t, y, args: -y, torch.ones(1, dtype=dtype), t, **options)
    assert solved.stats.accepted == 3
    (found,) = torch.autograd.grad(solved.ys[-1].sum(), t)
    slope = math.exp(-0.3)
    torch.testing.assert_close(found, torch.tensor([slope, -slope], dtype=dtype), rtol=1e-4, atol=0)


def shrink(t, y, a):
    return -y * a[0] * a[1]


def grow(t, y, a):
    return a[0] * a[1] * y * y


def burst(t, y, a):
    return torch.where(y > 1e6, math.inf, grow(t, y, a))


# Dynamics, first states, a factor for each row, options: the second of three rows fails.
FAILING = {
    "state": (shrink, [1.0, math.nan, 1.0], [1.0] * 3, {}),
    "argument": (shrink, [1.0] * 3, [1.0, math.nan, 2.0], {}),
    "blow-up": (burst, [1.0, 1.3, 0.5], [1.0] * 3, {}),
    "fixed": (grow, [1.0, 1e160, 0.5], [1.0] * 3, {"step_size": 0.05}),
}


@every_step
@pytest.mark.parametrize(
    ("case", "gradient"),
    # Zero times NaN is NaN where autograd records everything.
    [("state", "backprop"), *product(FAILING, SOLVED_BACK)],
)
def test_a_row_that_fails_leaves_the_others_their_gradient(case, gradient, step):
    f, y0, factors, options = FAILING[case]
    options = {"rtol": 1e-5, "atol": 1e-5, "gradient": gradient, "step": step} | options
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        start = torch.tensor(y0, dtype=torch.float64)[rows, None].requires_grad_()
        args = torch.tensor(1.0, **DOUBLE), PerRow(torch.tensor(factors).double()[rows, None])
        solved = solve(f, start, [0.0, 0.5, 0.9], args, on_failure="return", **options)
        assert solved.rows == ((1,) if len(rows) == 3 else ())
        assert solved.status is (Status.NOT_FINITE if solved.rows else Status.FINISHED)
        good = solved.ys[-1][[0, -1]]
        rate_grad, start_grad = torch.autograd.grad(good.sum(), (args[0], start))
        assert start_grad.isfinite().all()
        found.append((rate_grad, start_grad[[0, -1]]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gradient", SOLVED_BACK)
def test_where_all_rows_fail_the_first_output_has_a_gradient(gradient):
    y0, tolerance = torch.ones(2, 1, requires_grad=True), torch.tensor([[1e-5], [0.0]])
    options = {"rtol": 1e-5, "atol": tolerance, "on_failure": "return"}
    ys = solve(lambda t, y, _: y / 0, y0, [0.0, 1.0], gradient=gradient, **options).ys
    assert torch.autograd.grad(ys[0].sum(), y0)[0].tolist() == [[1.0], [1.0]]


@every_mode
def test_arguments_of_another_dtype_and_slopes_that_depend_on_nothing(gradient):
    rate, y0 = torch.tensor(-1.0, requires_grad=True), torch.ones(2, **DOUBLE)
    decay(rate, gradient, y0)[-1].sum().backward()
    assert rate.grad.item() == pytest.approx(2 * math.exp(-1), rel=1e-4)
    ys = solve(lambda t, y, a: torch.ones_like(y), y0, [0.0, 1.0], gradient=gradient).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (Backsolve, {"method": "dopri"}, "method to be one of .*dopri5.*; got 'dopri'"),
        (Backsolve, {"norm": "seminorm"}, "norm to be state or full; got 'seminorm'"),
        (Checkpoint, {"activation_bytes": -5}, "activation_bytes of at least 0 bytes; got -5"),
        (Backsolve, {"method": "rk4"}, "error estimate for the backward pass"),
    ],
)
def test_wrong_modes(mode, options, message):
    with pytest.raises(ValueError, match=message):
        decay(-1.0, mode(**options))


def test_a_first_solve_in_inference_mode_leaves_later_gradients_alone():
    """Coefficients are made in the first one, and kept."""
    tableau_tensors.cache_clear()
    _bump_derivatives.cache_clear()
    y0, options = torch.ones(2, dtype=torch.float64), {"gradient": "backprop", "method": "dopri8"}
    for mode in (torch.inference_mode(), nullcontext()):
        with mode:
            ys = solve(lambda t, y, _: -y, y0, [0.0, 0.5, 1.0], **options).ys
        y0.requires_grad_()
    torch.autograd.grad(ys[1].sum(), y0)
