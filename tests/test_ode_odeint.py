"""`odeint` and `odeint_adjoint` against torchdiffeq, call by call, and against closed forms."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
import torchdiffeq
from torch import nn

from cnf.ode import TABLEAUS, SolveError
from cnf.ode.odeint import odeint, odeint_adjoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
TIMES = torch.tensor([0.1, 0.55, 1.3], dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}
BOTH = [odeint, torchdiffeq.odeint]
BOTH_ADJOINT = [odeint_adjoint, torchdiffeq.odeint_adjoint]


def swing(t, y):
    return -y * torch.cos(3 * t)


def swing_exact(y0, t):
    factors = torch.exp((torch.sin(3 * t[0]) - torch.sin(3 * t)) / 3)
    return factors.view(-1, *[1] * y0.ndim) * y0


def wanting(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def times(reverse=False, grad=True, dtype=torch.float64):
    t = TIMES.flip(0) if reverse else TIMES
    return t.to(dtype).clone().requires_grad_(grad)


def gradients(outputs, inputs):
    """Of a fixed scalar of the outputs, whatever they are."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    parts = [torch.view_as_real(y) if y.is_complex() else y for y in outputs]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in parts]
    loss = sum((y * weight).sum() for y, weight in zip(parts, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def assert_same_calls(func, y0, t, inputs, solvers=BOTH, close=1e-6, **keywords):
    """Values and gradients of both libraries' functions, called with the same arguments."""
    ours, theirs = (solver(func, y0, t, **keywords) for solver in solvers)
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    ours, theirs = (gradients(ys, inputs) for ys in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=10 * close, atol=10 * close)


# Fixed steps: the same numbers


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        None,
        {"step_size": 0.1},
        {"step_size": 0.1, "interp": "cubic"},
        {"step_size": 0.3, "perturb": True},
        {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], t[1:2] * 0.9, t[2:]])},
    ],
)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_those_of_torchdiffeq(method, options, reverse):
    y0, t = wanting(3, 2), times(reverse)
    # Our cubic states between the steps of rk4 are of an order more.
    better = method == "rk4" and "interp" in (options or {})
    close = 1e-3 if better else 1e-13
    assert_same_calls(swing, y0, t, (y0, t), close=close, method=method, options=options)


@pytest.mark.parametrize("solver", BOTH)
def test_perturbed_steps_keep_to_their_side_of_a_jump(solver):
    """With a jump at a step's ends, RK4 is exact on both sides only if it does not look across."""

    def jump(t, y):
        return torch.where(t < 0.5, 1.0, -3.0).to(y)

    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    ys = solver(jump, torch.zeros(1).double(), t, method="rk4", options={"perturb": True})
    torch.testing.assert_close(ys[:, 0], torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64))


def test_a_fixed_method_continues_through_infinity():
    y = odeint(lambda t, y: y / 0, torch.ones(1), torch.tensor([0.0, 1.0]), method="euler")
    assert y[-1].isinf().all()


# Adaptive steps: as accurate at least


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", [*ADAPTIVE, "tsit5"])
def test_adaptive_methods_against_the_closed_form(method, reverse):
    y0, t = wanting(3, 2), times(reverse)
    loose = {"rtol": 1e-6, "atol": 1e-7} if TABLEAUS[method].order == 2 else TIGHT
    ours, exact = odeint(swing, y0, t, method=method, **loose), swing_exact(y0, t)
    # The states between the long steps of dopri8 are of lower order.
    close = 1e-3 if TABLEAUS[method].order == 2 else 1e-5 if method == "dopri8" else 1e-7
    torch.testing.assert_close(ours, exact, rtol=close, atol=close)
    found, expected = gradients(ours, (y0, t)), gradients(exact, (y0, t))
    torch.testing.assert_close(found, expected, rtol=100 * close, atol=100 * close)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", None])
def test_adaptive_methods_against_torchdiffeq(method, reverse):
    y0, t = wanting(3, 2), times(reverse)
    close = 1e-5 if method == "dopri8" else 1e-7
    assert_same_calls(swing, y0, t, (y0,), close=close, method=method, **TIGHT)


def test_the_gradient_to_an_output_time_where_a_step_ends_is_the_slope():
    y0, t = wanting(2), times()
    options = {"step_t": TIMES[1:2]}
    ys = odeint(swing, y0, t, options=options, **TIGHT)
    torch.testing.assert_close(
        gradients(ys, (t,)), gradients(swing_exact(y0, t), (t,)), rtol=1e-4, atol=1e-4
    )


def test_gradients_reach_what_is_caught_in_a_closure():
    y0, t, weight = wanting(4, 2), times(), wanting(2, 2)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def func(t, y):
        return net(y) + torch.sin(t) * y @ weight

    assert_same_calls(func, y0, t, (y0, weight, *net.parameters()), close=1e-6, **TIGHT)


def test_second_derivatives():
    y0, rate = wanting(2), wanting()
    found = []
    for solver in BOTH:
        end = solver(lambda t, y: rate * y, y0, times(grad=False), **TIGHT)[-1].sum()
        (first,) = torch.autograd.grad(end, rate, create_graph=True)
        found.append(torch.autograd.grad(first, (rate, y0)))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


# Every form of state


@pytest.mark.parametrize("solvers", [BOTH, BOTH_ADJOINT])
def test_tuples_of_any_shapes(solvers):
    y0 = (wanting(2, 3), wanting(), wanting(1))
    rate = wanting()

    def func(t, y):
        a, b, c = y
        assert (a.shape, b.shape, c.shape) == ((2, 3), (), (1,))
        return -a * b, rate * c.sum(), a.mean() * torch.cos(t) + 0 * c

    keywords = {"adjoint_params": (rate,)} if solvers is BOTH_ADJOINT else {}
    assert_same_calls(func, y0, times(), (*y0, rate), solvers, **TIGHT, **keywords)
    shapes = [y.shape for y in solvers[0](func, y0, times(), **keywords)]
    assert shapes == [(3, 2, 3), (3,), (3, 1)]


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_tuples_share_a_dtype(method):
    y0 = (torch.ones(2), torch.ones(3, dtype=torch.complex128))

    def func(t, y):
        return tuple(1j * part for part in y)

    ours, theirs = (solver(func, y0, TIMES, method=method) for solver in BOTH)
    assert [y.dtype for y in ours] == [y.dtype for y in theirs] == [torch.complex128] * 2
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_tuple_of_one_and_a_slope_that_is_a_list():
    y0 = (wanting(2, 2),)
    (ours,), (theirs,) = (solver(lambda t, y: [-y[0]], y0, times(), **TIGHT) for solver in BOTH)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(method, dtype):
    y0, t = wanting(3, dtype=dtype), times(reverse=True)
    rate = torch.tensor(-0.3 + 2j, dtype=dtype, requires_grad=True)

    def func(t, y):
        assert y.dtype == dtype
        assert not t.is_complex()
        return rate * y * torch.cos(t) + y.conj()

    tolerances = TIGHT if dtype == torch.complex128 else {"rtol": 1e-5, "atol": 1e-5}
    close = 1e-7 if dtype == torch.complex128 else 1e-3
    assert_same_calls(func, y0, t, (y0, rate), close=close, method=method, **tolerances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_dtypes_of_state_and_time(dtype, time_dtype, method):
    y0, t = wanting(2, dtype=dtype), times(dtype=time_dtype)
    seen = set()

    def func(t, y):
        seen.add((t.dtype, y.dtype, t.shape))
        return swing(t, y)

    options = {"dtype": torch.float32} if method == "dopri5" else None
    ours = odeint(func, y0, t, method=method, rtol=1e-5, atol=1e-6, options=options)
    assert seen == {(dtype, dtype, ())}
    assert ours.dtype == dtype
    theirs = torchdiffeq.odeint(swing, y0, t, method=method, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert gradients(ours, t)[0].dtype == time_dtype


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_scalar_states(method, reverse):
    y0, t = wanting(), times(reverse)
    assert_same_calls(swing, y0, t, (y0,), method=method, **TIGHT)


@pytest.mark.parametrize("solvers", [BOTH, BOTH_ADJOINT])
@pytest.mark.parametrize("method", ["dopri5", "euler"])
def test_a_single_time_gives_the_initial_state(solvers, method):
    y0 = (torch.randn(2, 3), torch.randn(()))
    keywords = {"adjoint_params": ()} if solvers is BOTH_ADJOINT else {}
    ours, theirs = (
        solver(lambda t, y: y, y0, torch.zeros(1), method=method, **keywords) for solver in solvers
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_slopes_that_broadcast_against_their_state(method):
    y0 = torch.zeros(2, 1, dtype=torch.float64)
    for func in (lambda t, y: t, lambda t, y: t[None], lambda t, y: (y + t).flatten()[:1]):
        ours = odeint(func, y0, TIMES, method=method)
        assert ours.shape == (3, 2, 1)


# Options


@pytest.mark.parametrize("solver", BOTH)
@pytest.mark.parametrize(
    ("y0", "expected"),
    [
        (torch.tensor(1.0), ()),
        (torch.ones(2, 3), (2, 3)),
        ((torch.ones(2, 3), torch.tensor(1.0)), ((2, 3), ())),
        ((torch.ones(1),), ((1,),)),
        (torch.ones(2, dtype=torch.complex64), (2,)),
    ],
)
def test_what_a_norm_gets(solver, y0, expected):
    seen = set()

    def norm(ratio):
        if isinstance(ratio, tuple):
            seen.add(tuple(part.shape for part in ratio))
            return max(part.abs().max() for part in ratio)
        assert ratio.is_complex() == y0.is_complex()
        seen.add(ratio.shape)
        return ratio.abs().max()

    def func(t, y):
        return tuple(-part for part in y) if isinstance(y, tuple) else -y

    solver(func, y0, torch.tensor([0.0, 1.0]), rtol=1e-4, atol=1e-4, options={"norm": norm})
    assert seen == {expected}


def test_the_norm_of_a_tuple_is_the_largest_of_its_tensors():
    """A fast tensor is controlled as well with a thousand slow numbers as alone."""
    fast, slow = torch.ones(1).double(), torch.zeros(1000).double()

    def func(t, y):
        return (10 * torch.cos(10 * t) * y[0], *[0 * part for part in y[1:]])

    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alone, together = (odeint(func, y0, t, rtol=1e-5, atol=1e-5) for y0 in ((fast,), (fast, slow)))
    torch.testing.assert_close(alone[0], together[0], rtol=1e-12, atol=1e-12)


class Recorder:
    """Dynamics that record the calls of their callbacks."""

    def __init__(self, names):
        self.calls = []
        for name in names:
            setattr(self, f"callback_{name}", self.recorder(name))

    def recorder(self, name):
        def record(t0, y0, dt):
            shapes = [part.shape for part in y0] if isinstance(y0, tuple) else y0.shape
            self.calls.append((name, float(t0), shapes, float(dt)))

        return record

    def __call__(self, t, y):
        if isinstance(y, tuple):
            return tuple(swing(t, part) for part in y)
        return swing(t, y)

    def of(self, name):
        return [call for call in self.calls if call[0] == name]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_callbacks_of_fixed_steps_are_those_of_torchdiffeq(method, reverse):
    found = []
    for solver in BOTH:
        func = Recorder(["step"])
        t = times(reverse, grad=False)
        solver(func, torch.ones(2).double(), t, method=method, options={"step_size": 0.2})
        found.append(func.calls)
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert ours[2] == theirs[2]
        assert (ours[1], ours[3]) == pytest.approx((theirs[1], theirs[3]))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("solver", [*BOTH, odeint_adjoint])
def test_callbacks_of_adaptive_steps(solver, together, reverse):
    """Each step is announced, then accepted or rejected where it was tried; sizes are positive."""
    func = Recorder(["step", "accept_step", "reject_step"])
    y0 = torch.ones(2).double()
    keywords = {"adjoint_params": ()} if solver is odeint_adjoint else {}
    y0 = (y0, y0.sum()) if together else y0
    t = times(reverse, grad=False)
    options = {"first_step": 0.4}
    solver(func, y0, t, rtol=1e-7, atol=1e-7, options=options, **keywords)
    announced = func.of("step")
    ended = [call for call in func.calls if call[0] != "step"]
    assert [call[1:3] for call in announced] == [call[1:3] for call in ended]
    assert all(call[3] > 0 for call in func.calls)
    assert func.calls[0][1] == pytest.approx(float(t[0]))
    assert func.of("accept_step")
    assert func.of("reject_step")
    assert func.calls[0][2] == ([(2,), ()] if together else (2,))


def test_callbacks_that_a_method_does_not_have_are_warned_of():
    func = Recorder(["step", "accept_step"])
    for solver in BOTH:
        with pytest.warns(UserWarning, match="does not support callbacks"):
            solver(func, torch.ones(2).double(), TIMES, method="rk4")


def test_the_first_step_is_the_one_given():
    for solver in BOTH:
        func = Recorder(["step"])
        solver(func, torch.ones(2).double(), TIMES, options={"first_step": 0.03})
        assert func.calls[0][3] == pytest.approx(0.03)


def test_steps_stay_between_the_smallest_and_the_largest():
    for solver in BOTH:
        func = Recorder(["accept_step"])
        options = {"min_step": 0.04, "max_step": 0.1, "first_step": 0.05}
        solver(func, torch.ones(2).double(), TIMES, rtol=1e-12, atol=1e-12, options=options)
        sizes = [call[3] for call in func.calls]
        assert max(sizes) <= 0.1 + 1e-12
        assert min(sizes[:-2]) >= 0.04 - 1e-12


def test_steps_grow_and_shrink_by_the_given_factors_at_most():
    for solver in BOTH:
        func = Recorder(["accept_step", "reject_step"])
        options = {"first_step": 1e-3, "ifactor": 2.0, "dfactor": 0.5, "safety": 0.8}
        solver(func, torch.ones(2).double(), TIMES, rtol=1e-7, atol=1e-7, options=options)
        sizes = [call[3] for call in func.calls]
        growth = [after / before for before, after in pairwise(sizes[:-2])]
        assert max(growth) == pytest.approx(2.0)
        assert min(growth) >= 0.5 - 1e-9


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_end_where_they_have_to(reverse):
    stops = torch.tensor([0.2, 0.7, 5.0, -3.0])  # those outside do not matter
    for solver in BOTH:
        func = Recorder(["accept_step"])
        t = times(reverse, grad=False)
        solver(func, torch.ones(2).double(), t, rtol=1e-5, atol=1e-5, options={"step_t": stops})
        starts = torch.tensor([call[1] for call in func.calls])
        assert all((starts - stop).abs().min() < 1e-7 for stop in stops[:2])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_declared_jump_costs_less_and_is_exact(reverse):
    calls = [0]

    def func(t, y):
        calls[0] += 1
        return -0.5 * y if t < 0.5 else y**2

    y0, t = torch.tensor([0.5, 0.3]).double(), torch.tensor([0.0, 1.0]).double()
    found, counts = [], []
    for options in (None, {"jump_t": torch.tensor([0.5], dtype=torch.float64)}):
        calls[0] = 0
        found.append(odeint(func, y0, t.flip(0) if reverse else t, options=options, **TIGHT)[-1])
        counts.append(calls[0])
    assert counts[1] < counts[0]
    before, after = (lambda y: y * torch.exp(torch.tensor(-0.25))), (lambda y: y / (1 - 0.5 * y))
    exact = after(before(y0))
    if reverse:
        exact = (y0 / (1 + 0.5 * y0)) * torch.exp(torch.tensor(0.25))
    torch.testing.assert_close(found[1], exact.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("dopri5", {"step_size": 0.1}, "step_size"),
        ("rk4", {"first_step": 0.1, "dtype": torch.float64}, "first_step"),
        ("bosh3", {"nonsense": 1}, "nonsense"),
    ],
)
def test_unknown_options_are_warned_of(method, options, word):
    for solver in BOTH:
        with pytest.warns(UserWarning, match=f"Unexpected arguments .*{word}"):
            solver(swing, torch.ones(2).double(), TIMES, method=method, options=options)


def test_a_user_is_shown_the_line_that_is_warned_of():
    with pytest.warns(UserWarning, match="Unexpected arguments") as caught:
        odeint(swing, torch.ones(2).double(), TIMES, options={"nonsense": 1})
    assert caught[0].filename == __file__


def test_options_are_not_changed():
    options = {"step_t": torch.tensor([0.2]), "norm": lambda ratio: ratio.abs().max()}
    before = dict(options)
    odeint(swing, torch.ones(2).double(), TIMES.flip(0), options=options)
    assert options == before


def test_tolerances_for_each_tensor_of_a_tuple():
    y0 = (torch.ones(2).double(), torch.ones(()).double())
    tolerances = {"rtol": (1e-9, 1e-5), "atol": (torch.full((2,), 1e-9), 1e-5)}

    def func(t, y):
        return tuple(swing(t, part) for part in y)

    ours, theirs = (solver(func, y0, TIMES, **tolerances) for solver in BOTH)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-7, atol=1e-7)
    for given in (torch.full((2,), 1e-9), torch.tensor(1e-9), (1e-9, 1e-9)):
        ys = odeint(swing, y0[0], TIMES, rtol=given, atol=given)
        torch.testing.assert_close(ys, swing_exact(y0[0], TIMES), rtol=1e-7, atol=1e-7)


def test_tolerances_for_each_number_of_a_complex_state():
    y0 = torch.ones(2, dtype=torch.complex128)
    tolerance = torch.tensor([1e-9, 1e-7])
    ours, theirs = (solver(swing, y0, TIMES, rtol=tolerance, atol=tolerance) for solver in BOTH)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Mistakes

ONE = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize("solvers", [BOTH, BOTH_ADJOINT])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"t": [0.0, 1.0]}, AssertionError),
        ({"t": torch.tensor([0, 1])}, TypeError),
        ({"t": torch.zeros(2, 2)}, AssertionError),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, AssertionError),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, AssertionError),
        ({"t": torch.tensor([0.0, 0.0])}, AssertionError),
        ({"t": torch.tensor(0.0)}, AssertionError),
        ({"y0": [ONE]}, AssertionError),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, AssertionError),
        ({"atol": torch.tensor(1e-3, requires_grad=True)}, AssertionError),
        ({"y0": (ONE, ONE), "rtol": (1e-3,)}, AssertionError),
        ({"method": "dopri55"}, ValueError),
        (
            {
                "method": "rk4",
                "options": {"step_size": 0.1, "grid_constructor": lambda func, y0, t: t},
            },
            ValueError,
        ),
        ({"method": "rk4", "options": {"interp": "quintic"}}, ValueError),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda func, y0, t: t[:-1]}},
            AssertionError,
        ),
        (
            {"options": {"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}},
            ValueError,
        ),
    ],
)
def test_mistakes_raise_the_errors_of_torchdiffeq(solvers, change, error):
    keywords = {"func": lambda t, y: y, "y0": ONE, "t": torch.tensor([0.0, 0.7, 1.0])} | change
    if solvers is BOTH_ADJOINT:
        keywords["adjoint_params"] = ()
    with pytest.raises(error):
        solvers[1](**keywords)
    with pytest.raises(error, match="^Expected .*; got ") as caught:
        solvers[0](**keywords)
    assert isinstance(caught.value, ValueError | TypeError)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_raises_with_the_closest():
    with pytest.raises(ValueError, match="Expected method to be one of dopri5, .*; got 'dopri55'"):
        odeint(swing, ONE, TIMES, method="dopri55")


@pytest.mark.parametrize("solver", BOTH_ADJOINT)
def test_mistakes_of_the_adjoint(solver):
    with pytest.raises(ValueError, match="func .*adjoint_params"):
        solver(swing, ONE, TIMES)
    keywords = {"adjoint_params": (), "options": {"first_step": 0.1}, "method": "dopri5"}
    with pytest.raises(ValueError, match="adjoint_options"):
        solver(swing, ONE, TIMES, adjoint_method="bosh3", **keywords)


def test_an_unknown_method_of_the_backward_solve():
    with pytest.raises(ValueError, match="Expected method to be one of"):
        odeint_adjoint(swing, ONE, TIMES, adjoint_method="dopri55", adjoint_params=())


@pytest.mark.parametrize(
    ("func", "match"),
    [
        (lambda t, y: torch.zeros(3).double(), r"slope of shape \(2,\); got \(3,\)"),
        (lambda t, y: 1.0, "tensors; got float"),
    ],
)
def test_slopes_that_do_not_fit(func, match):
    with pytest.raises(ValueError, match=match):
        odeint(func, ONE, TIMES)


def test_a_slope_with_too_few_tensors():
    with pytest.raises(ValueError, match="2 tensors; got 1"):
        odeint(lambda t, y: y[:1], (ONE, ONE), TIMES)


@pytest.mark.parametrize(
    ("func", "options"),
    [
        (swing, {"max_num_steps": 1}),
        (lambda t, y: y / 0, {}),
        (lambda t, y: 1 / (t - 0.6) ** 3 + 0 * y, {}),
    ],
)
def test_failures(func, options):
    """The limit of steps, a state that is not finite, a step size that underflows."""
    with pytest.raises(AssertionError):
        torchdiffeq.odeint(func, ONE, TIMES, options=options)
    with pytest.raises(SolveError):
        odeint(func, ONE, TIMES, options=options)


def test_the_limit_of_steps_is_for_each_interval_of_output_times():
    options = {"max_num_steps": 12}
    t = torch.linspace(0, 10, 21, dtype=torch.float64)
    for solver in BOTH:
        solver(swing, ONE, t, options=options)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_components_at_zero_with_a_relative_tolerance_alone(solver, method):
    """One that stays there, one that leaves, and one that is never there."""
    y0 = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    push = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    keywords = {"adjoint_params": (push,)} if solver is odeint_adjoint else {}
    limit = {"max_num_steps": 5000}  # so that a solve that stands still ends
    ys = solver(
        lambda t, y: push - y, y0, t, rtol=1e-6, atol=0.0, method=method, options=limit, **keywords
    )
    e = math.exp(-1)
    exact = torch.tensor([0.0, 1 - e, e], dtype=torch.float64)
    torch.testing.assert_close(ys[-1], exact, rtol=1e-4, atol=0)
    (found,) = torch.autograd.grad(ys[-1].sum(), push)
    torch.testing.assert_close(found, torch.full_like(found, 1 - e), rtol=1e-4, atol=0)


@pytest.mark.parametrize("option", [{"safety": 3.0}, {"dfactor": 1.0}])
def test_a_rejected_step_is_not_repeated(option):
    options = {"first_step": 1.0, "max_num_steps": 500, **option}
    ys = odeint(lambda t, y: -100 * y, ONE, TIMES, rtol=1e-6, atol=1e-6, options=options)
    torch.testing.assert_close(ys[-1], torch.zeros_like(ONE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(bad):
    options = {"norm": lambda ratio: torch.tensor(bad), "max_num_steps": 100}
    with pytest.raises(SolveError, match="The norm of the error is NaN.*Check norm"):
        odeint(swing, ONE, TIMES, options=options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_half_precision(solver, dtype):
    """What the dtype loses of the tolerances is refused, for each tensor as well; less is met."""
    y0, t = torch.tensor([0.0, 1.0], dtype=dtype), torch.tensor([0.0, 1.0])
    options = {"max_num_steps": 100}  # so that a solve that stands still ends
    keywords = {"options": options} | ({"adjoint_params": ()} if solver is odeint_adjoint else {})
    with pytest.raises(ValueError, match=f"rtol to be 0 or at least .*{dtype}; got 1e-07: pass"):
        solver(lambda t, y: -y, y0, t, **keywords)
    with pytest.raises(ValueError, match="rtol to be 0 .*got 1e-08: pass"):
        solver(lambda t, y: y, (y0, y0), t, rtol=(1e-2, 1e-8), atol=0.0, **keywords)
    ys = solver(lambda t, y: -y, y0, t, rtol=1e-2, atol=1e-2, **keywords)
    torch.testing.assert_close(ys[-1].float(), math.exp(-1) * y0.float(), rtol=2e-2, atol=0)


def test_an_absolute_tolerance_that_rounds_to_zero():
    y0, t = torch.ones(2, dtype=torch.float16), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"atol to be 0 or at least 6.0e-08 .*pass rtol=1e-03"):
        odeint(lambda t, y: -y, y0, t, rtol=1e-3)
    with pytest.raises(ValueError, match="atol"):
        odeint_adjoint(
            lambda t, y: -y,
            y0.requires_grad_(),
            t,
            rtol=1e-3,
            atol=1e-3,
            adjoint_atol=1e-9,
            adjoint_params=(),
        )


def test_fixed_steps_in_half_precision_have_no_tolerance():
    y0, t = torch.ones(2, dtype=torch.float16), torch.linspace(0, 1, 5)
    ys = odeint(lambda t, y: -y, y0, t, method="rk4")
    torch.testing.assert_close(ys[-1].float(), torch.full((2,), math.exp(-1)), rtol=5e-3, atol=0)


# The adjoint


class Field(nn.Module):
    """With a layer that is not used, and a buffer that counts evaluations."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.unused = nn.Linear(2, 5).to(dtype)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, t, y):
        self.count += 1
        return self.net(y) * torch.cos(t) - 0.1 * y


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_rtol": 1e-10, "adjoint_atol": 1e-11},
        {"adjoint_method": "bosh3", "adjoint_rtol": 1e-8, "adjoint_atol": 1e-9},
        {"options": {"first_step": 0.05, "max_step": 0.2}},
    ],
)
def test_adjoint_gradients(keywords, reverse):
    field, y0, t = Field(), wanting(4, 2), times(reverse)
    inputs = (y0, t, *field.net.parameters())
    assert_same_calls(field, y0, t, inputs, BOTH_ADJOINT, close=1e-6, **TIGHT | keywords)
    assert field.count > 0
    straight = gradients(odeint(field, y0, t, **TIGHT), inputs)
    adjoint = gradients(odeint_adjoint(field, y0, t, **TIGHT | keywords), inputs)
    torch.testing.assert_close(adjoint, straight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [None, {"step_size": 0.1}, {"step_size": 0.25}])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_adjoint_gradients_of_fixed_steps(method, options, interp):
    """They are those of the outputs, which between steps are interpolated."""
    field, y0 = Field(), wanting(4, 2)
    options = options and options | {"interp": interp}
    t = torch.linspace(0, 1, 21 if options is None else 4, dtype=torch.float64)
    inputs = (y0, *field.net.parameters())
    ours, theirs = (s(field, y0, t, method=method, options=options) for s in BOTH_ADJOINT)
    # Our cubic states between the steps of rk4 are of an order more.
    close = 1e-4 if (method, interp) == ("rk4", "cubic") else 1e-12
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    straight = odeint(field, y0, t, method=method, options=options)
    found, expected = gradients(ours, inputs), gradients(straight, inputs)
    close = 1e-5 if method == "rk4" else 0.2
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize("solver", BOTH_ADJOINT)
def test_unused_parameters_get_a_gradient_of_zero(solver):
    field = Field()
    solver(field, wanting(4, 2), TIMES).sum().backward()
    assert not field.unused.weight.grad.any()


def test_adjoint_params_may_be_any_tensors_that_func_holds():
    """Leaves or not, and with some that want no gradient."""
    y0, scale, shift, constant = wanting(3, 2), wanting(2), wanting(2), torch.ones(2).double()
    found = []
    for solver in (odeint_adjoint, torchdiffeq.odeint_adjoint, odeint):
        square = scale.square()
        params = {"adjoint_params": (p for p in (square, shift, constant))}
        ys = solver(
            lambda t, y, square=square: torch.tanh(y * square + shift) * constant,
            y0,
            TIMES,
            **TIGHT,
            **({} if solver is odeint else params),
        )
        found.append(gradients(ys, (y0, scale, shift)))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-6, atol=1e-6)


def test_adjoint_params_of_a_module_may_be_some_of_its_own_and_others():
    field, outside = Field(), wanting(2)
    chosen = (*field.net[0].parameters(), outside)

    class Wrapped(nn.Module):
        def forward(self, t, y):
            return field(t, y) + outside

    y0 = wanting(3, 2)
    ys = odeint_adjoint(Wrapped(), y0, TIMES, adjoint_params=chosen, **TIGHT)
    straight = gradients(odeint(Wrapped(), y0, TIMES, **TIGHT), chosen)
    torch.testing.assert_close(gradients(ys, chosen), straight, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="to not have been used"):
        gradients(odeint_adjoint(Wrapped(), y0, TIMES, adjoint_params=(outside,)), chosen)


def test_adjoint_of_complex_states_and_parameters():
    rate = torch.tensor(-0.3 + 2j, dtype=torch.complex128, requires_grad=True)
    y0, t = wanting(3, dtype=torch.complex128), times(reverse=True)

    def func(t, y):
        return rate * y * torch.cos(t) + y.conj()

    ours = odeint_adjoint(func, y0, t, adjoint_params=(rate,), **TIGHT)
    straight = odeint(func, y0, t, **TIGHT)
    found, expected = (gradients(ys, (y0, t, rate)) for ys in (ours, straight))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.complex128, torch.float64),
        (torch.float64, torch.complex128),
        (torch.float32, torch.complex128, torch.float64, torch.complex64),
    ],
)
def test_adjoint_params_of_any_dtypes_in_any_order(dtypes):
    numbers = [0.3 - 0.2j, 0.7 + 0.4j, -0.1 + 0.5j, 0.2 - 0.6j]
    params = [
        torch.tensor(z if dtype.is_complex else z.real, dtype=dtype, requires_grad=True)
        for z, dtype in zip(numbers, dtypes, strict=False)
    ]
    y0 = wanting(3)

    def func(t, y):
        return sum(((1 + k - 0.5j) * p).real for k, p in enumerate(params)) * torch.cos(t) * y

    keywords = {"rtol": 1e-11, "atol": 1e-12}
    ours = odeint_adjoint(func, y0, TIMES, adjoint_params=params, **keywords)
    straight = odeint(func, y0, TIMES, **keywords)
    found, expected = (gradients(ys, (y0, *params)) for ys in (ours, straight))
    close = 1e-5 if torch.float32 in dtypes else 1e-8
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


def test_adjoint_params_of_another_dtype():
    rate = wanting(dtype=torch.float32)
    y0 = wanting(3)
    ys = odeint_adjoint(lambda t, y: rate * y, y0, TIMES, adjoint_params=(rate,), **TIGHT)
    straight = odeint(lambda t, y: rate * y, y0, TIMES, **TIGHT)
    torch.testing.assert_close(gradients(ys, (rate,)), gradients(straight, (rate,)))


def test_adjoint_in_float32():
    field, y0 = Field(torch.float32), wanting(4, 2, dtype=torch.float32)
    t = times(dtype=torch.float32)
    inputs = (y0, t, *field.net.parameters())
    keywords = {"rtol": 1e-5, "atol": 1e-6}
    assert_same_calls(field, y0, t, inputs, BOTH_ADJOINT, close=1e-4, **keywords)


def test_dynamics_may_use_autograd_themselves():
    """As FFJORD's do, for the trace."""
    field = Field()

    def func(t, state):
        y, _ = state
        with torch.enable_grad():
            y = y.requires_grad_()
            slope = field(t, y)
            columns = [
                torch.autograd.grad(slope[:, i].sum(), y, create_graph=True)[0][:, i]
                for i in range(2)
            ]
        return slope, -sum(columns)

    y0 = (torch.randn(3, 2).double(), torch.zeros(3).double())
    inputs = tuple(field.net.parameters())[:3]
    keywords = {"adjoint_params": tuple(field.parameters())} | TIGHT
    ours, theirs = (gradients(s(func, y0, TIMES, **keywords), inputs) for s in BOTH_ADJOINT)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_memory_of_the_adjoint_is_one_node():
    ys = odeint_adjoint(Field(), wanting(4, 2), torch.linspace(0, 5, 2), **TIGHT)
    parents = {type(node).__name__ for node, _ in ys.grad_fn.next_functions if node is not None}
    assert parents <= {"AccumulateGrad", "ToCopyBackward0"}


def test_the_adjoint_warns_of_options_without_effect():
    keywords = {"adjoint_params": ()}
    for options in ({"norm": lambda parts: parts[1].abs().max()}, {"max_step": 0.1}):
        with pytest.warns(UserWarning, match="adjoint_options .* are not used") as caught:
            odeint_adjoint(swing, ONE, TIMES, adjoint_options=options, **keywords)
        assert caught[0].filename == __file__
    func = Recorder(["step_adjoint"])
    with pytest.warns(UserWarning, match="does not support callbacks"):
        odeint_adjoint(func, ONE, TIMES, **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"max_step": 0.1}
        odeint_adjoint(swing, ONE, TIMES, options=options, adjoint_options=options, **keywords)


# Finite differences


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4", "midpoint"])
def test_gradcheck(method):
    y0, t, rate = wanting(2), times(), wanting()
    options = {"interp": "cubic", "step_size": 0.11} if method in FIXED else None
    assert torch.autograd.gradcheck(
        lambda y0, t, rate: odeint(
            lambda t, y: torch.sin(rate * y) * t, y0, t, method=method, options=options, **TIGHT
        ),
        (y0, t, rate),
        atol=1e-5,
    )


def test_gradcheck_of_a_complex_tuple():
    y0 = (wanting(2, dtype=torch.complex128), wanting(1))
    assert torch.autograd.gradcheck(
        lambda *y0: odeint(lambda t, y: (1j * y[0] * y[1], -y[1]), y0, TIMES, **TIGHT),
        y0,
        atol=1e-5,
    )


@pytest.mark.parametrize("norm", ["seminorm", None])
def test_gradcheck_of_the_adjoint(norm):
    y0, t, rate = wanting(2), times(), wanting()
    assert torch.autograd.gradcheck(
        lambda y0, t, rate: odeint_adjoint(
            lambda t, y: torch.sin(rate * y) * t,
            y0,
            t,
            adjoint_params=(rate,),
            adjoint_options={"norm": norm} if norm else None,
            **TIGHT,
        ),
        (y0, t, rate),
        atol=1e-5,
    )
