"""Whole steps of a perceptron as one function equal its steps stage by stage."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from helpers import DOUBLE, near, pull_gradients

from cnf.fields import FIELDS
from cnf.fields.activations import find_activation
from cnf.fields.analytic import EAGER, Perceptron, trace_matrices
from cnf.layers import CNF
from cnf.ode import TABLEAUS
from cnf.ode.fused_step import fused_step, fused_steps
from cnf.ode.tableau import Tableau

# The functions that are compiled, eager.
WHOLE = EAGER._replace(fused=fused_steps(EAGER.stage, lambda function: function))

# Its second stage is weighed by the error alone, its third one's state by nothing but the second.
ODD = Tableau(
    name="odd",
    order=2,
    error_order=1,
    c=(0, 1 / 2, 1),
    a=((), (1 / 2,), (1, 0)),
    b=(1 / 2, 0, 1 / 2),
    e=(1 / 2, -1, 1 / 2),
)


def counted(calls, name, function):
    def counting(*arguments):
        calls[name] += 1
        return function(*arguments)

    return counting


def solved(field, context=None, **settings):
    """Return the statistics of a pull of seven rows, and its results with their gradients."""
    torch.manual_seed(1)
    x = torch.randn(7, field.dim, dtype=DOUBLE, requires_grad=True)
    inputs = [x, *field.parameters()] + ([] if context is None else [context])
    settings = {"activation_bytes": 2**28, **settings}
    result, found = pull_gradients(CNF(field, step="joint", **settings), x, context, inputs)
    return result.stats, found


def agree(field, context=None, **settings):
    """Check that whole steps equal steps stage by stage, to a rounding and to an evaluation."""
    stats, expected = solved(field, context, **settings)
    field.functions = WHOLE
    other, found = solved(field, context, **settings)
    assert (other.evaluations, other.backward) == (stats.evaluations, stats.backward)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    return stats


@pytest.fixture
def field():
    return FIELDS["concat_squash"](2, (5, 6, 4)).double()


@pytest.mark.parametrize(
    ("method", "kept"),
    [("dopri5", "all"), *((name, "some") for name, own in TABLEAUS.items() if own.adaptive)],
)
def test_whole_steps_are_steps_stage_by_stage(method, kept, field):
    tableau = TABLEAUS[method]
    activation_bytes = 2**28 if kept == "all" else 6000 * tableau.stages * 2
    tolerance = 1e-4 if tableau.order < 5 else 1e-10
    solver = {"method": method, "rtol": tolerance, "atol": tolerance}
    stats = agree(field, activation_bytes=activation_bytes, **solver)
    replayed = stats.backward / tableau.solution_stages
    assert 0 < replayed < stats.accepted if kept == "some" else replayed == 0


@pytest.mark.parametrize("method", TABLEAUS)
def test_whole_steps_of_one_size(method, field):
    agree(field, method=method, step_size=0.25)


def test_whole_steps_of_a_method_with_a_stage_for_the_error_alone(monkeypatch, field):
    monkeypatch.setitem(TABLEAUS, "odd", ODD)
    agree(field, method="odd", rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "context_dim"), [((5,), 3), ((5, 6), 0), ((5, 6, 4, 3), 3)])
@pytest.mark.parametrize("name", ["ignore", "concat", "squash", "concat_squash"])
def test_of_every_field_that_has_them(name, hidden, context_dim):
    field = FIELDS[name](3, hidden, context_dim, activation="softplus").double()
    context = torch.randn(7, context_dim, dtype=DOUBLE, requires_grad=True) if context_dim else None
    agree(field, context)


@pytest.mark.parametrize("first_step", [None, 0.99], ids=["", "after a step that is refused"])
def test_each_step_is_one_call_and_so_is_its_adjoint(first_step, field):
    calls = Counter()

    def steps(tableau):
        own = fused_step(tableau, EAGER.stage)
        return own._make(counted(calls, name, each) for name, each in own._asdict().items())

    field.functions = EAGER._replace(fused=steps)
    stats, _ = solved(field, rtol=1e-8, atol=1e-8, first_step=first_step)
    assert (stats.rejected > 0) == (first_step is not None)
    assert calls == {"forward": stats.accepted + stats.rejected, "vjp": stats.accepted}
    assert stats.backward == 0


def test_no_trace_is_taken_at_unweighted_stages(field):
    """One stage of six of dopri5 is unweighted."""
    calls = Counter()
    *evaluations, inputs = EAGER.stage
    names = EAGER.stage._fields
    functions = [counted(calls, *each) for each in zip(names, evaluations, strict=False)]
    field.functions = EAGER._replace(
        stage=EAGER.stage._make([*functions, inputs]),
        velocity=counted(calls, "velocity", EAGER.velocity),
    )
    stats, _ = solved(field)
    assert stats.rejected == 0
    assert calls["unweighted_forward"] == calls["unweighted_vjp"] == stats.accepted
    # Besides: the first slope, and the one that the first step size is chosen by.
    assert calls["forward"] == 5 * stats.accepted + 2
    assert calls["vjp"] == 5 * stats.accepted
    assert calls["velocity"] == 0
    calls.clear()
    with torch.no_grad():
        CNF(field, step="per_sample", first_pass=False).pull(torch.randn(1, 2, dtype=DOUBLE))
    assert calls["velocity"] * 5 + 2 == calls["forward"]


@pytest.mark.parametrize("rows", [0, 7], ids=["gates folded in", "gates of rows"])
@pytest.mark.parametrize("sizes", [(2, 5, 2), (2, 5, 6, 2), (3, 5, 6, 4, 3), (2, 4, 6, 5, 3, 2)])
def test_adjoints_written_out_are_those_of_autograd(sizes, rows):
    """Of closed forms and of tangents, for the velocity with its trace and without."""
    hidden, dim, width = len(sizes) - 2, sizes[0], sum(sizes[1:])
    weights = [torch.randn(out, into, dtype=DOUBLE) for into, out in pairwise(sizes)]
    weights = tuple(weight.requires_grad_() for weight in weights)
    shape = (rows, width) if rows else (width,)
    offsets = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    gates = None
    if rows:
        gates = torch.rand(rows, width - dim, dtype=DOUBLE, requires_grad=True)
    matrices = tuple(each.detach().requires_grad_() for each in trace_matrices(weights))
    net = Perceptron(weights, offsets, gates, matrices)
    x = torch.randn(7, dim, dtype=DOUBLE, requires_grad=True)
    cotangent = torch.randn(7, dim + 1, dtype=DOUBLE)
    activations = [find_activation("silu")] * hidden
    for forward, vjp in ((0, 1), (2, 3)):
        slope, _ = EAGER.stage[forward](net, activations, x)
        inputs = [x, *net.tensors()]
        expected = torch.autograd.grad(
            slope, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            _, saved = EAGER.stage[forward](net, activations, x)
            state, found = EAGER.stage[vjp](net, activations, x, saved, cotangent)
        near(state[:, :-1], expected[0], 1e-10)
        assert (state[:, -1] == 0).all()
        for own, other in zip(found.tensors(), expected[1:], strict=True):
            near(own, other, 1e-10)
