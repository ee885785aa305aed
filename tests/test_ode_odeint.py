"""`odeint` and `odeint_adjoint` against torchdiffeq, call by call, and against closed forms."""

import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
import torchdiffeq
from torch import nn

from cnf.ode import TABLEAUS, SolveError, odeint, odeint_adjoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
TIMES = torch.tensor([0.1, 0.55, 1.3], dtype=torch.float64)
UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)
ONE = torch.ones(2, dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}
BOTH = [odeint, torchdiffeq.odeint]
BOTH_ADJOINT = [odeint_adjoint, torchdiffeq.odeint_adjoint]
OURS = [odeint_adjoint, odeint]
ALL = [*BOTH_ADJOINT, odeint]

both_methods = pytest.mark.parametrize("method", ["dopri5", "rk4"])
both_ways = pytest.mark.parametrize("reverse", [False, True])
each_library = pytest.mark.parametrize("solver", BOTH)
both_libraries = pytest.mark.parametrize("solvers", [BOTH, BOTH_ADJOINT])


def swing(t, y):
    return -y * torch.cos(3 * t)


def decay(t, y):
    return -y


def each(func):
    """Dynamics of a tensor as those of a tuple."""
    return lambda t, y: tuple(func(t, part) for part in y)


def swing_exact(y0, t):
    factors = torch.exp((torch.sin(3 * t[0]) - torch.sin(3 * t)) / 3)
    return factors.view(-1, *[1] * y0.ndim) * y0


def wanting(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def times(reverse=False, grad=True, dtype=torch.float64):
    t = TIMES.flip(0) if reverse else TIMES
    return t.to(dtype).clone().requires_grad_(grad)


def call(solver, *arguments, params=(), **keywords):
    """Call a solver, with what concerns the adjoint where it is an adjoint one."""
    if solver in BOTH_ADJOINT:
        keywords["adjoint_params"] = params
    else:
        keywords = {name: value for name, value in keywords.items() if "adjoint" not in name}
    return solver(*arguments, **keywords)


def gradients(outputs, inputs):
    """Of a fixed scalar of the outputs, whatever they are."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    parts = [torch.view_as_real(y) if y.is_complex() else y for y in outputs]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in parts]
    loss = sum((y * weight).sum() for y, weight in zip(parts, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def assert_near(found, expected, close):
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


def assert_same_calls(func, y0, t, inputs, solvers=BOTH, close=1e-6, **keywords):
    """Values and gradients of the first solver and the others, called with the same arguments."""
    first, *others = (call(solver, func, y0, t, **keywords) for solver in solvers)
    found = gradients(first, inputs)
    for other in others:
        assert_near(first, other, close)
        assert_near(found, gradients(other, inputs), 10 * close)


def recorded(solver, *names, y0=ONE, t=TIMES, **keywords):
    """The calls of the callbacks in a solve: name, start, shapes, size."""
    func, calls = partial(each(swing) if isinstance(y0, tuple) else swing), []

    def record(name, t0, y0, dt):
        shapes = [part.shape for part in y0] if isinstance(y0, tuple) else y0.shape
        calls.append((name, float(t0), shapes, float(dt)))

    for name in names:
        setattr(func, f"callback_{name}", partial(record, name))
    call(solver, func, y0, t, **keywords)
    return calls


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
@pytest.mark.parametrize(
    ("method", "reverse"), [*zip(FIXED, [False, True] * 3, strict=False), ("rk4", True)]
)
def test_fixed_steps_are_those_of_torchdiffeq(method, options, reverse):
    """Values, gradients, and the calls of the callbacks."""
    y0, t, keywords = wanting(3, 2), times(reverse), {"method": method, "options": options}
    # Our cubic states between the steps of rk4 are of an order more.
    close = 1e-3 if method == "rk4" and "interp" in (options or {}) else 1e-13
    assert_same_calls(swing, y0, t, (y0, t), close=close, **keywords)
    for ours, theirs in zip(
        *(recorded(s, "step", t=t.detach(), **keywords) for s in BOTH), strict=True
    ):
        assert ours[2] == theirs[2]
        assert (ours[1], ours[3]) == pytest.approx((theirs[1], theirs[3]))


@each_library
def test_perturbed_steps_keep_to_their_side_of_a_jump(solver):
    """With a jump at a step's ends, RK4 is exact on both sides only if it does not look across."""
    t, y0 = torch.tensor([0.0, 0.5, 1.0]).double(), torch.zeros(1).double()
    options = {"method": "rk4", "options": {"perturb": True}}
    ys = solver(lambda t, y: torch.where(t < 0.5, 1.0, -3.0).to(y), y0, t, **options)
    torch.testing.assert_close(ys[:, 0], torch.tensor([0.0, 0.5, -1.0]).double())


def test_a_fixed_method_continues_through_infinity():
    assert odeint(lambda t, y: y / 0, ONE, UNIT, method="euler")[-1].isinf().all()


@pytest.mark.parametrize(
    ("method", "reverse"),
    [*zip([*ADAPTIVE, "tsit5"], [False, True] * 3, strict=True), (None, True)],
)
def test_adaptive_methods_against_the_closed_form(method, reverse):
    """With the gradient to the times, which of the default method is one where a step ends too."""
    y0, t = wanting(3, 2), times(reverse)
    order = TABLEAUS[method or "dopri5"].order
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if order == 2 else TIGHT
    options = None if method else {"step_t": TIMES[1:2]}
    ours = odeint(swing, y0, t, method=method, options=options, **tolerances)
    exact = swing_exact(y0, t)
    # The states between the long steps of dopri8 are of lower order.
    close = {2: 1e-3, 8: 1e-5}.get(order, 1e-7)
    assert_near(ours, exact, close)
    assert_near(gradients(ours, (y0, t)), gradients(exact, (y0, t)), 100 * close)


@both_libraries
def test_tuples_of_any_shapes(solvers):
    y0 = (wanting(2, 3), wanting(), wanting(1))
    rate = wanting()

    def func(t, y):
        a, b, c = y
        assert (a.shape, b.shape, c.shape) == ((2, 3), (), (1,))
        return -a * b, rate * c.sum(), a.mean() * torch.cos(t) + 0 * c

    assert_same_calls(func, y0, times(), (*y0, rate), solvers, params=(rate,), **TIGHT)
    ys = call(solvers[0], func, y0, times(), params=(rate,))
    assert [y.shape for y in ys] == [(3, 2, 3), (3,), (3, 1)]


@both_methods
def test_tuples_share_a_dtype(method):
    y0 = (wanting(2, dtype=torch.float32), wanting(3, dtype=torch.complex128))
    func = each(lambda t, y: 1j * y)
    dtypes = [[y.dtype for y in s(func, y0, TIMES, method=method)] for s in BOTH]
    assert dtypes == [[torch.complex128] * 2] * 2
    assert_same_calls(func, y0, TIMES, y0, method=method)


@pytest.mark.parametrize(("method", "reverse"), [("dopri5", True), ("midpoint", False)])
def test_scalars_and_tuples_of_one_whose_slope_is_a_list(method, reverse):
    y0, t = wanting(), times(reverse)
    for func, state in ((swing, y0), (lambda t, y: [swing(t, y[0])], (y0,))):
        assert_same_calls(func, state, t, (y0,), method=method, **TIGHT)


@both_methods
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(method, dtype):
    y0, t = wanting(3, dtype=dtype), times(reverse=True)
    rate = torch.tensor(-0.3 + 2j, dtype=dtype, requires_grad=True)
    double = dtype == torch.complex128

    def func(t, y):
        assert y.dtype == dtype
        assert not t.is_complex()
        return rate * y * torch.cos(t) + y.conj()

    tolerances = TIGHT if double else {"rtol": 1e-5, "atol": 1e-5}
    close = 1e-7 if double else 1e-3
    assert_same_calls(func, y0, t, (y0, rate), close=close, method=method, **tolerances)
    if method == "dopri5" and double:
        assert_same_calls(func, y0, t, (y0, t, rate), OURS, params=(rate,), **TIGHT)


@both_methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_dtypes_of_state_and_time(dtype, time_dtype, method):
    y0, t = wanting(2, dtype=dtype), times(dtype=time_dtype)
    seen = set()

    def func(t, y):
        seen.add((t.dtype, y.dtype, t.shape))
        return swing(t, y)

    keywords = {"method": method, "rtol": 1e-5, "atol": 1e-6}
    options = {"dtype": torch.float32} if method == "dopri5" else None
    ours = odeint(func, y0, t, options=options, **keywords)
    assert seen == {(dtype, dtype, ())}
    assert ours.dtype == dtype
    assert_near(ours, torchdiffeq.odeint(swing, y0, t, **keywords), 1e-4)
    assert gradients(ours, t)[0].dtype == time_dtype


@both_libraries
@pytest.mark.parametrize("method", ["dopri5", "euler"])
def test_a_single_time_gives_the_initial_state(solvers, method):
    y0 = (torch.randn(2, 3), torch.randn(()))
    ours, theirs = (call(s, each(decay), y0, torch.zeros(1), method=method) for s in solvers)
    torch.testing.assert_close(ours, theirs)


@both_methods
def test_slopes_that_broadcast_against_their_state(method):
    y0 = torch.zeros(2, 1, dtype=torch.float64)
    for func in (lambda t, y: t, lambda t, y: t[None], lambda t, y: (y + t).flatten()[:1]):
        assert odeint(func, y0, TIMES, method=method).shape == (3, 2, 1)


@each_library
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

    func = each(swing) if isinstance(y0, tuple) else swing
    solver(func, y0, UNIT.float(), rtol=1e-4, atol=1e-4, options={"norm": norm})
    assert seen == {expected}


def test_the_norm_of_a_tuple_is_the_largest_of_its_tensors():
    """A fast tensor is controlled as well with a thousand slow numbers as alone."""
    fast, slow = torch.ones(1).double(), torch.zeros(1000).double()

    def func(t, y):
        return (10 * torch.cos(10 * t) * y[0], *[0 * part for part in y[1:]])

    alone, together = (odeint(func, y0, UNIT, rtol=1e-5) for y0 in ((fast,), (fast, slow)))
    assert_near(alone[0], together[0], 1e-12)


@pytest.mark.parametrize(("together", "reverse"), [(False, True), (True, False)])
@pytest.mark.parametrize("solver", [*BOTH, odeint_adjoint])
def test_callbacks_of_adaptive_steps(solver, together, reverse):
    """Each step is announced, then accepted or rejected where it was tried; sizes are positive."""
    y0, t = (ONE, ONE.sum()) if together else ONE, times(reverse, grad=False)
    options = {"rtol": 1e-7, "atol": 1e-7, "options": {"first_step": 0.4}}
    calls = recorded(solver, "step", "accept_step", "reject_step", y0=y0, t=t, **options)
    announced = [each for each in calls if each[0] == "step"]
    ended = [each for each in calls if each[0] != "step"]
    assert [each[1:3] for each in announced] == [each[1:3] for each in ended]
    assert all(each[3] > 0 for each in calls)
    assert calls[0][1] == pytest.approx(float(t[0]))
    assert {each[0] for each in ended} == {"accept_step", "reject_step"}
    assert calls[0][2] == ([(2,), ()] if together else (2,))


@each_library
def test_the_sizes_of_steps_are_as_the_options_say(solver):
    calls = recorded(solver, "step", options={"first_step": 0.03})
    assert calls[0][3] == pytest.approx(0.03)
    options = {"min_step": 0.04, "max_step": 0.1, "first_step": 0.05}
    calls = recorded(solver, "accept_step", rtol=1e-12, atol=1e-12, options=options)
    sizes = [each[3] for each in calls]
    assert max(sizes) <= 0.1 + 1e-12
    assert min(sizes[:-2]) >= 0.04 - 1e-12
    options = {"first_step": 1e-3, "ifactor": 2.0, "dfactor": 0.5, "safety": 0.8}
    calls = recorded(solver, "accept_step", "reject_step", rtol=1e-7, atol=1e-7, options=options)
    growth = [after[3] / before[3] for before, after in pairwise(calls[:-2])]
    assert max(growth) == pytest.approx(2.0)
    assert min(growth) >= 0.5 - 1e-9


@both_ways
@each_library
def test_steps_end_where_they_have_to(solver, reverse):
    stops = torch.tensor([0.2, 0.7, 5.0, -3.0])  # those outside do not matter
    options = {"step_t": stops, "norm": lambda ratio: ratio.abs().max()}
    before, t = dict(options), times(reverse, grad=False)
    calls = recorded(solver, "accept_step", t=t, rtol=1e-5, atol=1e-5, options=options)
    starts = torch.tensor([each[1] for each in calls])
    assert all((starts - stop).abs().min() < 1e-7 for stop in stops[:2])
    assert options == before


@both_ways
def test_a_declared_jump_costs_less_and_is_exact(reverse):
    calls = []

    def func(t, y):
        calls.append(t)
        return -0.5 * y if t < 0.5 else y**2

    y0, t = torch.tensor([0.5, 0.3]).double(), UNIT.flip(0) if reverse else UNIT
    odeint(func, y0, t, **TIGHT)
    undeclared = len(calls)
    found = odeint(func, y0, t, options={"jump_t": torch.tensor([0.5])}, **TIGHT)[-1]
    assert len(calls) - undeclared < undeclared
    grown = math.exp(-0.25) * y0
    exact = math.exp(0.25) * y0 / (1 + 0.5 * y0) if reverse else grown / (1 - 0.5 * grown)
    assert_near(found, exact, 1e-6)


@pytest.mark.parametrize(
    ("method", "name"), [("dopri5", "step_size"), ("rk4", "first_step"), ("bosh3", "nonsense")]
)
@each_library
def test_unknown_options_are_warned_of(solver, method, name):
    with pytest.warns(UserWarning, match=f"Unexpected arguments .*{name}") as caught:
        solver(swing, ONE, TIMES, method=method, options={name: 0.1, "dtype": torch.float64})
    assert solver is not odeint or caught[0].filename == __file__


def test_tolerances_of_tensors_and_of_components():
    y0 = (ONE, ONE.sum())
    tolerances = {"rtol": (1e-9, 1e-5), "atol": (torch.full((2,), 1e-9), 1e-5)}
    ours, theirs = (solver(each(swing), y0, TIMES, **tolerances) for solver in BOTH)
    assert_near(ours[0], theirs[0], 1e-7)
    for given in (torch.full((2,), 1e-9), torch.tensor(1e-9), (1e-9, 1e-9)):
        ys = odeint(swing, ONE, TIMES, rtol=given, atol=given)
        assert_near(ys, swing_exact(ONE, TIMES), 1e-7)
    tolerances = {"rtol": torch.tensor([1e-9, 1e-7]), "atol": torch.tensor([1e-9, 1e-7])}
    ours, theirs = (solver(swing, ONE + 0j, TIMES, **tolerances) for solver in BOTH)
    assert_near(ours, theirs, 1e-5)


def whole(func, y0, t):
    return t


@both_libraries
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"t": [0.0, 1.0]}, AssertionError),
        ({"t": torch.tensor([0, 1])}, TypeError),
        ({"t": torch.zeros(2, 2)}, AssertionError),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, AssertionError),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, AssertionError),
        ({"t": torch.tensor(0.0)}, AssertionError),
        ({"y0": [ONE]}, AssertionError),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, AssertionError),
        ({"atol": torch.tensor(1e-3, requires_grad=True)}, AssertionError),
        ({"y0": (ONE, ONE), "rtol": (1e-3,)}, AssertionError),
        ({"method": "dopri55"}, ValueError),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": whole}}, ValueError),
        ({"method": "rk4", "options": {"interp": "quintic"}}, ValueError),
        ({"method": "rk4", "options": {"grid_constructor": lambda *a: a[2][:-1]}}, AssertionError),
        ({"options": {"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}}, ValueError),
    ],
)
def test_mistakes_raise_the_errors_of_torchdiffeq(solvers, change, error):
    keywords = {"func": decay, "y0": ONE, "t": torch.tensor([0.0, 0.7, 1.0])} | change
    with pytest.raises(error):
        call(solvers[1], **keywords)
    with pytest.raises(error, match="^Expected .*; got ") as caught:
        call(solvers[0], **keywords)
    assert isinstance(caught.value, ValueError | TypeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"adjoint_params": None}, "func .*adjoint_params"),
        ({"options": {"first_step": 0.1}, "adjoint_method": "bosh3"}, "adjoint_options"),
        ({"adjoint_method": "dopri55"}, "method to be one of dopri5, .*; got 'dopri55'"),
        ({"func": lambda t, y: torch.zeros(3)}, r"slope of shape \(2,\); got \(3,\)"),
        ({"func": lambda t, y: 1.0}, "tensors; got float"),
        ({"func": lambda t, y: y[:1], "y0": (ONE, ONE)}, "2 tensors; got 1"),
    ],
)
def test_mistakes_are_explained(changes, match):
    arguments = {"func": swing, "y0": ONE, "t": TIMES, "adjoint_params": ()}
    with pytest.raises(ValueError, match=match):
        odeint_adjoint(**arguments | changes)


def test_the_limit_of_steps_is_for_each_interval_of_output_times():
    t = torch.linspace(0, 10, 21, dtype=torch.float64)
    for solver, error in zip(BOTH, (SolveError, AssertionError), strict=True):
        solver(swing, ONE, t, options={"max_num_steps": 12})
        with pytest.raises(error):
            solver(swing, ONE, t, options={"max_num_steps": 1})


@pytest.mark.parametrize(
    ("solver", "method"), [(odeint_adjoint, "dopri5"), *((odeint, method) for method in ADAPTIVE)]
)
def test_components_at_zero_with_a_relative_tolerance_alone(solver, method):
    """One that stays there, one that leaves, and one that is never there."""
    y0, push = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).double().requires_grad_()
    # So that a solve that stands still ends.
    options = {"rtol": 1e-5, "atol": 0.0, "options": {"max_num_steps": 5000}}
    ys = call(solver, lambda t, y: push - y, y0, UNIT, params=(push,), method=method, **options)
    exact = math.exp(-1) * y0 + (1 - math.exp(-1)) * push
    torch.testing.assert_close(ys[-1], exact, rtol=1e-3, atol=0)
    found, expected = (torch.autograd.grad(y.sum(), push) for y in (ys[-1], exact))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", OURS)
def test_half_precision(solver, dtype):
    """What the dtype loses of the tolerances is refused, for each tensor as well; less is met."""
    y0, t = torch.tensor([0.0, 1.0], dtype=dtype), torch.linspace(0, 1, 5)
    limit = {"options": {"max_num_steps": 100}}  # so that a solve that stands still ends
    with pytest.raises(ValueError, match=f"rtol to be 0 or at least .*{dtype}; got 1e-07: pass"):
        call(solver, decay, y0, t, **limit)
    with pytest.raises(ValueError, match="rtol to be 0 .*got 1e-08: pass"):
        call(solver, each(decay), (y0, y0), t, rtol=(1e-2, 1e-8), atol=0.0, **limit)
    if dtype == torch.float16:
        with pytest.raises(ValueError, match=r"atol to be 0 or at least 6.0e-08 .*pass rtol=1e-03"):
            call(solver, decay, y0, t, rtol=1e-3)
        options = {"rtol": 1e-3, "atol": 1e-3, "adjoint_atol": 1e-9}
        with pytest.raises(ValueError, match="atol"):
            call(odeint_adjoint, decay, y0.clone().requires_grad_(), t, **options)
    for keywords in ({"rtol": 1e-2, "atol": 1e-2, **limit}, {"method": "rk4"}):
        ys = call(solver, decay, y0, t, **keywords)
        expected = math.exp(-1) * y0.float()
        torch.testing.assert_close(ys[-1].float(), expected, rtol=2e-2, atol=0)


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


@pytest.mark.parametrize(
    ("keywords", "reverse"),
    [
        ({}, False),
        ({"adjoint_options": {"norm": "seminorm"}}, True),
        ({"adjoint_rtol": 1e-10, "adjoint_atol": 1e-11}, False),
        ({"adjoint_method": "bosh3", "adjoint_rtol": 1e-7, "adjoint_atol": 1e-8}, True),
        ({"options": {"first_step": 0.05, "max_step": 0.2}}, True),
        ({"rtol": 1e-5, "atol": 1e-6}, False),
    ],
)
def test_adjoint_gradients(keywords, reverse):
    dtype = torch.float32 if "rtol" in keywords else torch.float64
    close = 1e-4 if "rtol" in keywords else 1e-5 if "adjoint_method" in keywords else 1e-6
    field, y0, t = Field(dtype), wanting(4, 2, dtype=dtype), times(reverse, dtype=dtype)
    inputs, keywords = (y0, t, *field.net.parameters()), TIGHT | keywords
    assert_same_calls(field, y0, t, inputs, ALL, close, params=None, **keywords)
    assert field.count > 0


@pytest.mark.parametrize("options", [None, {"step_size": 0.1}, {"step_size": 0.25}])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_adjoint_gradients_of_fixed_steps(method, options, interp):
    """They are those of the outputs, which between steps are interpolated."""
    field, y0 = Field(), wanting(4, 2)
    keywords = {"method": method, "options": options and options | {"interp": interp}}
    t = torch.linspace(0, 1, 21 if options is None else 4, dtype=torch.float64)
    inputs = (y0, *field.net.parameters())
    ours, theirs, straight = (s(field, y0, t, **keywords) for s in ALL)
    # Our cubic states between the steps of rk4 are of an order more.
    assert_near(ours, theirs, 1e-4 if (method, interp) == ("rk4", "cubic") else 1e-12)
    found, expected = gradients(ours, inputs), gradients(straight, inputs)
    assert_near(found, expected, 1e-5 if method == "rk4" else 0.2)


def test_adjoint_params_may_be_any_tensors_that_func_holds():
    """Some of a module's own and others, leaves or not, and with some that want no gradient."""
    field, y0, scale, shift = Field(), wanting(3, 2), wanting(2), wanting(2)
    more, constant = scale + 1, torch.ones(2, dtype=torch.float64)
    own = tuple(field.net[0].parameters())

    class Wrapped(nn.Module):
        def forward(self, t, y):
            return torch.tanh(field(t, y) * more + shift) * constant

    inputs, params = (y0, scale, shift, *own), (more, shift, constant, *own)
    assert_same_calls(Wrapped(), y0, TIMES, inputs, ALL, 1e-7, params=params, **TIGHT)
    with pytest.raises(RuntimeError, match="to not have been used"):
        gradients(odeint_adjoint(Wrapped(), y0, TIMES, adjoint_params=(shift,)), own)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,),
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

    close, tolerance = (1e-6, 1e-7) if torch.float32 in dtypes else (1e-8, 1e-10)
    keywords = {"params": iter(params), "rtol": tolerance, "atol": tolerance}
    assert_same_calls(func, y0, TIMES, (y0, *params), OURS, close, **keywords)


def test_dynamics_may_use_autograd_themselves():
    """As FFJORD's do, for the trace."""
    field = Field()

    def func(t, state):
        with torch.enable_grad():
            y = state[0].requires_grad_()
            slope = field(t, y)
            columns = (torch.autograd.grad(slope[:, i].sum(), y, create_graph=True) for i in (0, 1))
            return slope, -sum(column[:, i] for i, (column,) in enumerate(columns))

    y0 = (torch.randn(3, 2).double(), torch.zeros(3).double())
    inputs = tuple(field.net.parameters())[:3]
    keywords = {"params": tuple(field.parameters()), "rtol": 1e-7, "atol": 1e-8}
    assert_same_calls(func, y0, TIMES, inputs, BOTH_ADJOINT, **keywords)


def test_the_memory_of_the_adjoint_is_one_node():
    field = Field()
    ys = odeint_adjoint(field, wanting(4, 2), torch.linspace(0, 5, 2), **TIGHT)
    parents = {type(node).__name__ for node, _ in ys.grad_fn.next_functions if node is not None}
    assert parents <= {"AccumulateGrad", "ToCopyBackward0"}
    ys.sum().backward()
    assert not field.unused.weight.grad.any()  # zero, not None


def test_the_adjoint_warns_of_options_without_effect():
    for options in ({"norm": lambda parts: parts[1].abs().max()}, {"max_step": 0.1}):
        with pytest.warns(UserWarning, match="adjoint_options .* are not used") as caught:
            odeint_adjoint(swing, ONE, TIMES, adjoint_options=options, adjoint_params=())
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"max_step": 0.1}
        call(odeint_adjoint, swing, ONE, TIMES, options=options, adjoint_options=options)


@pytest.mark.parametrize("solver", BOTH)
def test_callbacks_that_are_not_called_are_warned_of(solver):
    with pytest.warns(UserWarning, match="does not support callbacks"):
        recorded(solver, "step", "accept_step", method="rk4")


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_callbacks_of_the_adjoint(method, dtype):
    """Steps of the backward solve, from the last time to the first, with its state in a tuple."""
    y0, rate, names = torch.ones(2, dtype=dtype), wanting(dtype=dtype), ("step", "accept_step")
    runs = []
    for solver in BOTH_ADJOINT:
        func, calls = partial(lambda t, y: rate * y * torch.cos(3 * t)), []
        for name in names if method == "dopri5" else names[:1]:

            def record(t, state, h, calls=calls, name=name):
                calls.append((name, float(t), [(p.shape, p.dtype) for p in state[1:]], float(h)))

            setattr(func, f"callback_{name}_adjoint", record)
        ys = solver(func, y0, TIMES, method=method, adjoint_params=(rate,), rtol=1e-5, atol=1e-5)
        assert not calls
        ys.abs().sum().backward()
        runs.append(calls)
    ours, theirs = runs
    assert ours[0][:2] == ("step", pytest.approx(float(TIMES[-1]))) == theirs[0][:2]
    assert {call[2][i] for call in ours for i in range(3)} == {*theirs[0][2]}
    assert {name for name, *_ in ours} == {name for name, *_ in theirs}
    assert all(call[3] > 0 for call in ours)
    assert sum(call[3] for call in ours if call[0] == "step") >= 1.2 - 1e-9
    if method == "rk4":
        assert [call[1::2] for call in ours] == [pytest.approx(call[1::2]) for call in theirs]


def test_rejected_steps_of_the_adjoint_are_called_back():
    rate, counts = wanting(dtype=torch.float64), []
    for solver in BOTH_ADJOINT:
        func, calls = partial(lambda t, y: 20 * rate * y * torch.cos(60 * t**2)), []
        func.callback_reject_step_adjoint = lambda t, y, h, calls=calls: calls.append(float(h))
        options = {"method": "dopri5", "adjoint_params": (rate,), "rtol": 1e-6, "atol": 1e-6}
        solver(func, torch.ones(2, dtype=torch.float64), TIMES, **options).abs().sum().backward()
        assert all(h > 0 for h in calls)
        counts.append(len(calls))
    assert all(counts)
