"""Whole steps of a perceptron as one function equal its steps stage by stage."""

from collections import Counter
from functools import partial

import pytest
import torch

from cnf.fields import FIELDS
from cnf.fields.analytic import EAGER
from cnf.layers import CNF
from cnf.ode import TABLEAUS
from cnf.ode.fused_step import fused_step, fused_steps
from cnf.ode.tableau import Tableau

# The functions that are compiled, eager.
WHOLE = EAGER._replace(fused=fused_steps(EAGER.stage, lambda function: function))
GATED = ["ignore", "concat", "squash", "concat_squash"]

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
    """Return the function with its calls counted under the name."""

    def counting(*arguments):
        calls[name] += 1
        return function(*arguments)

    return counting


def found(field, x, context=None, **settings):
    """Return a solve's result, and log p's terms with their gradients to everything."""
    layer = CNF(field, step="joint", **settings)
    mapped = layer.pull(x, context)
    loss = (mapped.value**2).sum() + mapped.log_det.sum()
    inputs = [x, *field.parameters()] + ([] if context is None else [context])
    gradients = torch.autograd.grad(loss, inputs)
    return mapped, [mapped.value, mapped.log_det, *gradients]


@pytest.fixture
def field():
    torch.manual_seed(0)
    return FIELDS["concat_squash"](2, (5, 6, 4)).double()


@pytest.fixture
def x():
    return torch.randn(7, 2, dtype=torch.float64, requires_grad=True)


def agree(check, field):
    """Check that whole steps equal steps stage by stage, to a rounding and to an evaluation."""
    mapped, expected = check()
    field.functions = WHOLE
    other, own = check()
    assert other.stats.evaluations == mapped.stats.evaluations
    assert other.stats.backward == mapped.stats.backward
    for one, two in zip(own, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    return mapped.stats


@pytest.mark.parametrize("kept", ["some", "all"])
@pytest.mark.parametrize("method", [name for name, own in TABLEAUS.items() if own.adaptive])
def test_whole_steps_are_steps_stage_by_stage(method, kept, field, x):
    activation_bytes = 2**28 if kept == "all" else 6000 * TABLEAUS[method].stages * 2
    tolerance = 1e-5 if TABLEAUS[method].order < 5 else 1e-11
    options = {
        "method": method,
        "activation_bytes": activation_bytes,
        "rtol": tolerance,
        "atol": tolerance,
    }
    stats = agree(partial(found, field, x, **options), field)
    replayed = stats.backward / TABLEAUS[method].solution_stages
    assert 0 < replayed < stats.accepted if kept == "some" else replayed == 0


@pytest.mark.parametrize("method", TABLEAUS)
def test_whole_steps_of_one_size(method, field, x):
    agree(partial(found, field, x, method=method, activation_bytes=2**28, step_size=0.1), field)


def test_whole_steps_of_a_method_with_a_stage_for_the_error_alone(monkeypatch, field, x):
    monkeypatch.setitem(TABLEAUS, "odd", ODD)
    agree(
        partial(found, field, x, method="odd", activation_bytes=2**28, rtol=1e-4, atol=1e-4), field
    )


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("hidden", [(5,), (5, 6), (5, 6, 4, 3)], ids=len)
@pytest.mark.parametrize("name", GATED)
def test_of_every_field_that_has_them(name, hidden, context_dim):
    torch.manual_seed(0)
    field = FIELDS[name](3, hidden, context_dim, activation="softplus").double()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    context = None
    if context_dim:
        context = torch.randn(7, context_dim, dtype=torch.float64, requires_grad=True)
    agree(partial(found, field, x, context, activation_bytes=2**28), field)


@pytest.mark.parametrize("first_step", [None, 0.99], ids=["", "after a step that is refused"])
def test_each_step_is_one_call_and_so_is_its_adjoint(first_step, field, x):
    calls = Counter()

    def steps(tableau):
        own = fused_step(tableau, EAGER.stage)
        return own._make(counted(calls, name, each) for name, each in own._asdict().items())

    field.functions = EAGER._replace(fused=steps)
    mapped, _ = found(field, x, activation_bytes=2**28, rtol=1e-8, atol=1e-8, first_step=first_step)
    stats = mapped.stats
    assert (stats.rejected > 0) == (first_step is not None)
    assert calls == {"forward": stats.accepted + stats.rejected, "vjp": stats.accepted}
    assert stats.backward == 0


def test_no_trace_is_taken_at_unweighted_stages(field, x):
    """One stage of six of dopri5 is unweighted."""
    calls = Counter()
    *evaluations, inputs = EAGER.stage
    names = EAGER.stage._fields
    functions = [counted(calls, *each) for each in zip(names, evaluations, strict=False)]
    velocity = counted(calls, "velocity", EAGER.velocity)
    field.functions = EAGER._replace(
        stage=EAGER.stage._make([*functions, inputs]), velocity=velocity
    )
    mapped, _ = found(field, x, activation_bytes=2**28)
    steps = mapped.stats.accepted
    assert mapped.stats.rejected == 0
    assert calls["unweighted_forward"] == calls["unweighted_vjp"] == steps
    # Besides: the first slope, and the one that the first step size is chosen by.
    assert calls["forward"] == 5 * steps + 2
    assert calls["vjp"] == 5 * steps
    assert calls["velocity"] == 0
    calls.clear()
    with torch.no_grad():
        CNF(field, step="per_sample").pull(x[:1])
    assert calls["velocity"] * 5 + 2 == calls["forward"]
