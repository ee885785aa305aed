"""Fields with separate weights for each row: equations, traces and gradients, in float64."""

import pytest
import torch

from cnf.fields import ACTIVATIONS, GivenWeights, LowRank
from cnf.fields.divergence import AutogradTrace, FieldTrace, TangentTrace
from cnf.layers import CNF

DOUBLE = torch.float64
T = torch.tensor(0.3, dtype=DOUBLE)
MAKERS = {"low_rank": lambda *a, **k: LowRank(*a, rank=2, **k), "given_weights": GivenWeights}


def made(name, dim=4, **options):
    """A field whose every parameter counts."""
    field = MAKERS[name](dim, **options).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return field


def context_for(field, rows=6):
    return 0.7 * torch.randn(rows, field.context_dim, dtype=DOUBLE)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8)])
@pytest.mark.parametrize("times", ["one", "rows"])
def test_exact_traces_agree(name, activation, hidden, times):
    field = made(name, hidden=hidden, activation=activation)
    t = T if times == "one" else torch.rand(6, 1, dtype=DOUBLE)
    x, context = torch.randn(6, 4, dtype=DOUBLE), context_for(field)
    stage = field.at(t, context, trace=True)
    ways = [way(field, stage, x, x) for way in (FieldTrace(), TangentTrace(), AutogradTrace())]
    for traced in ways:
        torch.testing.assert_close(traced.velocity, field(t, x, context), rtol=0, atol=1e-12)
        torch.testing.assert_close(traced.trace, ways[-1].trace, rtol=0, atol=1e-10)
    assert ways[-1].trace.abs().max() > 1e-3


def test_low_rank_is_what_it_says():
    field = made("low_rank", dim=2, hidden=(3,))
    x, context = torch.randn(5, 2, dtype=DOUBLE), context_for(field, 5)
    velocity = field(T, x, context)
    for row, numbers, found in zip(x, context, velocity, strict=True):
        h, start = row, 0
        for linear, (inputs, outputs) in zip(field.linears, [(2, 3), (3, 2)], strict=True):
            left, right, bias = numbers[start:].split_with_sizes(
                [2 * outputs, 2 * inputs, outputs, len(numbers) - start - 3 * outputs - 2 * inputs]
            )[:3]
            start += 3 * outputs + 2 * inputs
            weight = linear.weight[:, 1:] + left.view(outputs, 2) @ right.view(2, inputs)
            h = weight @ h + T * linear.weight[:, 0] + linear.bias + bias
            h = torch.tanh(h) if outputs == 3 else h
        torch.testing.assert_close(found, h)


def test_given_weights_are_what_they_say():
    field = made("given_weights", dim=2, hidden=(3,))
    x, context = torch.randn(5, 2, dtype=DOUBLE), context_for(field, 5)
    velocity = field(T, x, context)
    for row, numbers, found in zip(x, context, velocity, strict=True):
        first, a, b, last, c, d = numbers.split([6, 3, 3, 6, 2, 2])
        h = torch.tanh(first.view(3, 2) @ row + T * a + b)
        torch.testing.assert_close(found, last.view(2, 3) @ h + T * c + d)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("hidden", [(3,), (3, 4), (3, 2, 3)])
def test_gradients_of_the_trace(name, hidden):
    field = made(name, dim=2, hidden=hidden)
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = context_for(field, 2).requires_grad_()

    def both(x, context, *parameters):
        return field.with_divergence(T, x, context)

    assert torch.autograd.gradcheck(both, (x, context, *field.parameters()))


@pytest.mark.parametrize("name", MAKERS)
def test_rows_keep_their_weights_in_steps_of_their_own(name):
    layer = CNF(made(name, hidden=(7, 5)), rtol=1e-8, atol=1e-8)
    z, context = torch.randn(6, 4, dtype=DOUBLE), context_for(layer.field)
    x, log_det = layer(z, context)
    joint, joint_log_det = layer.with_solver(step="joint")(z, context)
    torch.testing.assert_close(x, joint, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, joint_log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_a_generator_starts_a_field_at_zero_that_can_leave_it(name):
    field = MAKERS[name](4, hidden=(8, 8))
    make = field.generator(5)
    x, features = torch.randn(6, 4), torch.randn(6, 5)
    parameters = [*make.parameters(), *field.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    assert field(torch.tensor(0.5), x, make(features)).abs().max() == 0
    for _ in range(3):
        optimizer.zero_grad()
        (field(torch.tensor(0.5), x, make(features)) - features[:, :4]).square().sum().backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in parameters)
    assert field(torch.tensor(0.5), x, make(features)).abs().max() > 0


@pytest.mark.parametrize("name", MAKERS)
def test_config_makes_it_anew(name):
    field = made(name, hidden=(5,), activation="silu")
    again = type(field)(**field.config())
    assert again.config() == field.config()
    assert again.context_dim == field.context_dim


def test_mistakes():
    field = GivenWeights(2)
    with pytest.raises(ValueError, match=r"Expected rank of at least 1; got 0"):
        LowRank(2, rank=0)
    with pytest.raises(ValueError, match=r"Expected at least 1 feature; got 0"):
        field.generator(0)
    with pytest.raises(ValueError, match=r"Expected a context of shape \(rows, \d+\); got none"):
        field(torch.tensor(0.0), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"Expected a context of shape \(3, \d+\); got \(3, 1\)"):
        CNF(field)(torch.zeros(3, 2), torch.zeros(3, 1))
