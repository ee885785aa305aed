"""Explicit steps as a layer: Jacobians, determinants, inverses, folds, and what they refuse."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import DOUBLE, Linear, max_difference, near, refused
from torch import nn
from torch.autograd import gradcheck
from torch.func import jacrev, vmap
from torch.testing import assert_close

from cnf.fields import (
    ACTIVATIONS,
    FIELDS,
    ConcatSquash,
    GivenWeights,
    LowRank,
    as_field,
    make_field,
)
from cnf.flow import Flow, ffjord
from cnf.layers import CNF, Steps
from cnf.layers.explicit_step import ExplicitStep, inverse
from cnf.ode import SolveError, Status


def rough(field, factor=1.5):
    """Return a field whose flow is far from linear, in double precision."""
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(factor)
    return field.double()


def squash(dim=2, hidden=(8, 8), factor=1.5, **options):
    torch.manual_seed(1)
    return rough(ConcatSquash(dim, hidden, **options), factor)


class Own(nn.Module):
    """A user's field that is not a gradient: its Jacobian is not symmetric."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, t, x):
        return torch.sin(self.linear(torch.cat([x, t.expand(len(x), 1)], 1)))


def check_jacobian(field, x, context=None):
    field = as_field(field)
    t = torch.tensor(0.3, dtype=DOUBLE)
    velocity, jacobian = field.jacobian(field.at(t, context), x)

    def one(x, *context):
        given = context[0].unsqueeze(0) if context else None
        return field.velocity(field.at(t, given), x.unsqueeze(0))[0]

    given = (x,) if context is None else (x, context)
    near(velocity, field.velocity(field.at(t, context), x), 1e-12)
    near(jacobian, vmap(jacrev(one))(*given).transpose(1, 2), 1e-10)


@pytest.mark.parametrize("name", FIELDS)
def test_the_jacobian_of_each_field_is_autograds(name):
    torch.manual_seed(0)
    x, context = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    check_jacobian(make_field(name, {}, dim=3, hidden=(6, 5)).double(), x)
    check_jacobian(
        make_field(name, {}, dim=3, hidden=(6, 5, 4), context_dim=2).double(), x, context
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4, 3)])
def test_the_jacobian_of_the_concat_squash_family_in_closed_form(activation, hidden):
    torch.manual_seed(0)
    options = {"activation": activation, "x_features": 4, "time_features": 2}
    check_jacobian(ConcatSquash(3, hidden, **options).double(), torch.randn(5, 3, dtype=DOUBLE))
    check_jacobian(
        ConcatSquash(1, hidden, activation=activation).double(), torch.randn(5, 1, dtype=DOUBLE)
    )


def test_the_jacobian_of_fields_with_weights_of_rows_and_of_a_users_module():
    torch.manual_seed(0)
    x, h = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)
    for field in (LowRank(3, hidden=(6, 5)), GivenWeights(3, hidden=(6, 5))):
        field = field.double()
        check_jacobian(field, x, field.generator(4).double()(h))
    check_jacobian(Own(), x[:, :2])


@pytest.mark.parametrize("towards", ["base", "data"])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize(
    ("dim", "method"), [(1, "rk4"), (2, "midpoint"), (3, "bosh3"), (5, "heun2")]
)
def test_the_determinant_is_that_of_the_map_and_the_inverse_its_inverse(
    dim, method, learnt, towards
):
    layer = Steps(squash(dim), 3, method, learnt=learnt, towards=towards).double()
    if learnt:
        with torch.no_grad():
            for name in ("log_sizes", "a", "b", "c"):
                parameter = getattr(layer, name)
                parameter.add_(0.1 * torch.randn_like(parameter) * (parameter != 0))
    x = torch.randn(20, dim, dtype=DOUBLE)
    z, log_det = layer.inverse(x)
    jacobians = vmap(jacrev(lambda row: layer.inverse(row.unsqueeze(0))[0][0]))
    if towards == "base":  # `vmap` cannot follow the iterations of an inverse
        near(log_det, torch.linalg.slogdet(jacobians(x))[1], 1e-10)
    back, minus = layer(z)
    near(back, x, 1e-10)
    near(minus, -log_det, 1e-10)
    near(layer.transport(z), x, 1e-10)
    near(layer.preimage(x), z, 1e-10)


@pytest.mark.parametrize("learnt", [False, True])
def test_gradients_of_both_directions_are_those_of_differences(learnt):
    layer = Steps(squash(2, (3,), context_dim=1), 2, learnt=learnt).double()
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(direction, x, context, *parameters):
        given = dict(zip(names, parameters, strict=True))
        wrapped = _Direction(layer, direction)
        return torch.func.functional_call(
            wrapped, {f"layer.{name}": value for name, value in given.items()}, (x, context)
        )

    for direction in ("inverse", "forward"):
        inputs = (x, context, *layer.parameters())
        assert gradcheck(
            lambda *args, d=direction: call(d, *args), inputs, atol=1e-6, rtol=1e-5, fast_mode=True
        )


class _Direction(nn.Module):
    def __init__(self, layer, direction):
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, x, context):
        return getattr(self.layer, self.direction)(x, context)


@pytest.mark.parametrize(("method", "order"), [("midpoint", 2), ("bosh3", 3), ("rk4", 4)])
def test_more_steps_approach_the_adaptive_flow_by_the_order_of_the_method(method, order):
    field = squash()
    x = torch.randn(50, 2, dtype=DOUBLE)
    exact = CNF(field, rtol=1e-11, atol=1e-11, method="dopri8").pull(x).log_det
    errors = [max_difference(Steps(field, k, method).pull(x).log_det, exact) for k in (8, 16, 32)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.4 for rate in rates), rates


@pytest.mark.parametrize("dim", [2, 10])
def test_rows_do_not_depend_on_their_batch(dim):
    layer = Steps(squash(dim, (32, 32), factor=1.3).float(), 2)
    x = torch.randn(5001, dim)
    with torch.no_grad():
        whole, draws = layer.pull(x), layer.push(x)
        found = layer.pull(x[7:8]), layer.push(x[7:8])
        assert torch.equal(layer.preimage(x[7:8]), layer.preimage(x)[7:8])
        assert torch.equal(layer.pull(x[-3:]).value, whole.value[-3:])
    assert torch.equal(found[0].value, whole.value[7:8])
    assert torch.equal(found[0].log_det, whole.log_det[7:8])
    assert max_difference(found[1].value, draws.value[7:8]) < 2e-6
    assert max_difference(found[1].log_det, draws.log_det[7:8]) < 5e-6


@pytest.mark.parametrize(("dim", "count"), [(2, 1), (3, 4)])
def test_the_inverse_begins_after_steps_back(dim, count):
    """Shorter ones beyond the plane: for f = −3x one step of ½ back is off by 127 %, four by 15."""
    x = torch.randn(50, dim, dtype=DOUBLE)
    steps = Steps(Linear(-3 * torch.eye(dim, dtype=DOUBLE)), 2)._steps(x, None)
    end = steps.step(1)(x)
    near(end, (1 + 1.5 + 1.5**2 / 2) * x, 1e-12)
    r = 1.5 / count
    near(steps.start(1, end), (1 - r + r**2 / 2) ** count * end, 1e-12)


def test_the_inverse_of_rows_with_contexts_that_converge_slowly():
    """With a start far off, the chord method fails for some rows and Newton's method remains."""
    field = squash(2, (8, 8), factor=2.0, context_dim=1)
    layer = Steps(field, 2)
    x, context = 2 * torch.randn(200, 2, dtype=DOUBLE), torch.randn(200, 1, dtype=DOUBLE)
    found = layer.determinants(x, context)
    sound = ~found.folded
    assert sound.sum() > 20
    z = layer.pull(x[sound], context[sound])
    back = layer.push(z.value, context[sound])
    assert back.residual.max() < 1e-12
    near(layer.pull(back.value, context[sound]).value, z.value, 1e-10)
    counts = back.stats.evaluations
    assert counts.max() > counts.min()


class Cubic(nn.Module):
    """f = −c (y³ + y), whose steps towards the base grow fast."""

    def forward(self, t, x):
        return -(x**3) - x


def test_newtons_method_is_damped_far_from_the_solution():
    field = as_field(Cubic())
    step = Steps(Cubic(), 1)._steps(torch.ones(1, 1, dtype=DOUBLE), None).step(0)
    assert isinstance(step, ExplicitStep)
    end = torch.tensor([[1e3], [-1e4], [0.5]], dtype=DOUBLE)
    found = inverse(lambda rows: step, end, torch.zeros_like(end), 1e-12)
    near(step(found.value), end, 1e-7)
    assert field.trace == "autograd"


def folding(rate):
    """Return one step of `bosh3` of f = rate · x, which multiplies by 1 − r + r²/2 − r³/6."""
    return Steps(Linear(rate * torch.eye(1, dtype=DOUBLE)), 1, "bosh3")


def test_a_folded_row_has_no_density_and_says_so():
    flow = ffjord(1).double().discretized(1, "bosh3")
    flow.layers[0] = folding(3.0)
    x = torch.zeros(2, 1, dtype=DOUBLE)
    assert (flow.log_prob(x) == -math.inf).all()
    scores = flow.score(x)
    assert [*scores.status] == [Status.FOLDED] * 2
    assert (scores.log_prob == -math.inf).all()
    layer = folding(1.0)
    assert layer.pull(x).log_det.isfinite().all()


def test_a_state_without_an_inverse_is_named():
    root = 1.5960716379833215  # 1 − r + r²/2 − r³/6 = 0: all states step to zero
    with pytest.raises(SolveError, match=r"explicit steps map to this one.*rows 0, 1"):
        folding(root).push(torch.ones(2, 1, dtype=DOUBLE))
    layer = Steps(Linear(-root * torch.eye(1, dtype=DOUBLE)), 1, "bosh3", towards="data")
    flow = ffjord(1).double().discretized(1, "bosh3")
    flow.layers[0] = layer
    scores = flow.score(torch.ones(2, 1, dtype=DOUBLE))
    assert [*scores.status] == [Status.NO_INVERSE] * 2
    assert scores.log_prob.isnan().all()


@pytest.mark.parametrize("towards", ["base", "data"])
def test_rows_that_are_not_finite_are_named_and_no_rows_are_none(towards):
    flow = ffjord(2, zero_last=False).discretized(2, towards=towards)
    x = torch.randn(3, 2)
    assert flow.log_prob(x[:0]).shape == flow.score(x[:0]).log_prob.shape == (0,)
    assert flow.sample(0).shape == (0, 2)
    x[1, 0] = math.nan
    inverses = (flow.push, flow.transport) if towards == "base" else (flow.pull,)
    for call in (flow.log_prob, *inverses):
        with pytest.raises(SolveError, match=r"NaN or infinite.* \(rows 1\)"):
            call(x)
    scores = flow.score(x)
    assert [*scores.status] == [Status.FINISHED, Status.NOT_FINITE, Status.FINISHED]
    assert scores.log_prob.isnan().tolist() == [False, True, False]


def test_scores_have_no_solver_error():
    flow = ffjord(2, zero_last=False).discretized(2)
    scores = flow.score(torch.randn(50, 2))
    assert scores.solver_error.max() < 1e-5
    assert scores.stderr.max() == 0
    assert [*scores.status] == [Status.FINISHED] * 50


def path_end(layer, z):
    return layer.path(z, [0.0, 1.0])[-1]


@pytest.mark.parametrize("towards", ["base", "data"])
def test_the_path_leads_through_the_steps(towards):
    field = squash(factor=1.0)
    layer = Steps(field, 4, "rk4", towards=towards)
    z = torch.randn(10, 2, dtype=DOUBLE)
    times = [0.0, 0.1, 0.25, 0.6, 1.0]
    path = layer.path(z, times)
    near(path[-1], layer.transport(z), 1e-12)
    near(path, CNF(field, rtol=1e-9, atol=1e-9).path(z, times), 1e-3)
    near(layer.path(path[-1], times[::-1]), path.flip(0), 1e-3)
    refused("times from 0 or from 1", layer.path, z, [0.5, 1.0])
    flow = ffjord(2).double().discretized(2, towards=towards)
    assert flow.path(z, 5).shape == (5, 10, 2)
    z.requires_grad_()
    gradients = [torch.autograd.grad(end.sum(), z)[0] for end in (path_end(layer, z), layer(z)[0])]
    near(*gradients, 1e-10)


def test_a_discretized_flow_shares_its_parameters():
    flow = ffjord(2, zero_last=False, blocks=2)
    fast = flow.discretized(3, "bosh3")
    assert [type(layer).__name__ for layer in fast.layers] == ["Steps", "Steps", "Standardize"]
    assert fast.layers[0].field is flow.layers[0].field
    assert fast.solves == 0
    assert fast.with_solver(rtol=1e-3).layers[0] is fast.layers[0]
    x = torch.randn(20, 2)
    assert_close(fast.log_prob(x), flow.log_prob(x), atol=0.05, rtol=0)
    x, log_prob = fast.sample_and_log_prob(30)
    assert_close(fast.log_prob(x), log_prob, atol=1e-4, rtol=0)
    assert (fast.push(x).residual < 1e-5).all()
    z = fast.rsample(10)
    z.sum().backward()
    assert flow.layers[0].field.last.linear.weight.grad.abs().sum() > 0


def test_what_steps_refuse():
    field = squash()
    refused("at least 1; got 0", Steps, field, 0)
    refused("at least 1; got True", Steps, field, True)
    refused("at least 2 stages among .*midpoint.*got 'euler'", Steps, field, 2, "euler")
    refused("unknown", Steps, field, 2, "dopri6")
    refused("towards to be base or data", Steps, field, towards="left")
    refused("at most 32 columns .* got 100", Steps, ConcatSquash(100, (4, 4)))
    refused("without angles .* columns \\[0\\]", Steps, ConcatSquash(2, (4, 4), circular=(0,)))
    refused("at most 32 columns", Steps(nn.Linear(40, 40)).pull, torch.zeros(1, 40))
    refused("flow with CNF layers", Flow(ffjord(2).base, []).discretized, 2)
    refused("solver settings among", Steps(field).with_solver, tol=1)
