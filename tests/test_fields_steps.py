"""Whole steps of a perceptron as one function are its steps stage by stage."""

from functools import partial

import pytest
import torch

from cnf.fields import FIELDS
from cnf.fields.kernels import Kernels
from cnf.fields.steps import step_kernels
from cnf.layers import CNF
from cnf.ode import TABLEAUS

WHOLE = Kernels(steps=step_kernels)  # what is compiled, uncompiled
GATED = ["ignore", "concat", "squash", "concat_squash"]


def found(field, x, context, **settings):
    """log p's terms at both ends, and the gradients to everything."""
    layer = CNF(field, step="joint", rtol=1e-6, atol=1e-6, **settings)
    mapped = layer.pull(x, context)
    loss = (mapped.value**2).sum() + mapped.log_det.sum()
    inputs = [x, *field.parameters()] + ([] if context is None else [context])
    return mapped, [mapped.value, mapped.log_det, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("keep", [30_000, 2**28], ids=["a few steps", "all"])
@pytest.mark.parametrize("method", [name for name, own in TABLEAUS.items() if own.adaptive])
def test_whole_steps_are_steps_stage_by_stage(method, keep):
    torch.manual_seed(0)
    field = FIELDS["concat_squash"](2, (5, 6, 4)).double()
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    check = partial(found, field, x, None, method=method, keep=keep)
    mapped, expected = check()
    field.kernels = WHOLE
    other, own = check()
    assert other.stats.evaluations == mapped.stats.evaluations
    for one, two in zip(own, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


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
    _, expected = found(field, x, context, keep=2**28)
    field.kernels = WHOLE
    _, own = found(field, x, context, keep=2**28)
    for one, two in zip(own, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first_step", [None, 5.0], ids=["", "after a step that is refused"])
def test_each_step_is_one_call_and_so_is_its_way_back(first_step):
    calls = {"push": 0, "pull": 0}

    def counted(name, function, *arguments):
        calls[name] += 1
        return function(*arguments)

    def steps(tableau):
        own = step_kernels(tableau)
        return own._make(partial(counted, name, each) for name, each in own._asdict().items())

    torch.manual_seed(0)
    field, x = FIELDS["concat_squash"](2, (5, 6, 4)), torch.randn(7, 2, requires_grad=True)
    field.kernels = Kernels(steps=steps)
    settings = {} if first_step is None else {"first_step": first_step}
    mapped, _ = found(field, x, None, keep=2**28, **settings)
    stats = mapped.stats
    assert calls == {"push": stats.accepted + stats.rejected, "pull": stats.accepted}
    assert stats.backward == 0
