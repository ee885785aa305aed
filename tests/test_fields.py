"""Fields: their exact traces against autograd, in float64, for every depth and activation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnf.divergence import AutogradTrace, FieldTrace
from cnf.fields import ACTIVATIONS, FIELDS, ConcatSquash, GatedLinear

T = torch.tensor(0.3, dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_derivative(name):
    z = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    value, derivative = ACTIVATIONS[name](z)
    (expected,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(derivative, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("tanh", torch.tanh),
        ("softplus", torch.nn.functional.softplus),
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
    ],
)
def test_activation_is_the_one_of_its_name(name, theirs):
    z = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](z)[0], theirs(z))


@pytest.mark.parametrize("field_name", FIELDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8), (5, 6, 4, 7)])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_exact_trace_agrees_with_autograd(field_name, activation, hidden, context_dim):
    field = FIELDS[field_name](4, hidden=hidden, context_dim=context_dim, activation=activation)
    field.double()
    x = torch.randn(6, 4, dtype=torch.float64)
    context = torch.randn(6, context_dim, dtype=torch.float64) if context_dim else None
    own = FieldTrace()
    velocity, trace = own(field, T, x, context, own.constants(field, x))
    expected_velocity, expected_trace = AutogradTrace()(field, T, x, context, ())
    torch.testing.assert_close(velocity, expected_velocity, rtol=0, atol=1e-12)
    torch.testing.assert_close(trace, expected_trace, rtol=0, atol=1e-10)


@given(
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    rows=st.integers(1, 4),
    scale=st.floats(0.1, 5),
)
@settings(deadline=None, max_examples=50)
def test_exact_trace_for_any_sizes(dim, hidden, rows, scale):
    field = ConcatSquash(dim, hidden).double()
    x = scale * torch.randn(rows, dim, dtype=torch.float64)
    _, trace = field.with_divergence(T, x, None, field.constants())
    _, expected = AutogradTrace()(field, T, x, None, ())
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hidden", [(5,), (5, 6), (5, 6, 4)])
def test_gradients_of_the_trace_to_weights_and_context(hidden):
    field = ConcatSquash(2, hidden, context_dim=2).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def trace(x, context, *parameters):
        return field.with_divergence(T, x, context, field.constants())[1]

    assert torch.autograd.gradcheck(trace, (x, context, *field.parameters()))


def test_zero_last_starts_the_field_at_zero():
    x = torch.randn(5, 2)
    assert (ConcatSquash(2, (4, 4), zero_last=True)(torch.tensor(0.3), x) == 0).all()
    assert (ConcatSquash(2, (4, 4))(torch.tensor(0.3), x) != 0).all()


def test_the_form_of_the_trace_follows_the_depth():
    forms = [ConcatSquash(3, (4,) * depth).trace for depth in (1, 2, 3)]
    assert forms == ["closed form", "closed form", "tangents"]


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_gated_linear_is_its_equation(gate, shift):
    layer = GatedLinear(3, 2, signals=2, gate=gate, shift=shift).double()
    x, s = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    expected = layer.linear(x)
    if gate:
        expected = expected * torch.sigmoid(layer.gate(s))
    if shift:
        expected = expected + s @ layer.shift.weight.T
    torch.testing.assert_close(layer.at(s)(x), expected)
    # The same signals for all rows take another way to the same numbers.
    one = layer.at(s[0])(x[:1])
    torch.testing.assert_close(one, expected[:1])


def test_gated_linear_columns_are_its_linear_part_of_unit_vectors():
    layer = GatedLinear(3, 2, signals=1, gate=True, shift=True)
    for signals in (torch.tensor([0.4]), torch.rand(1, 1)):
        affine = layer.at(signals)
        columns = affine.columns()
        torch.testing.assert_close(
            columns.squeeze(1), affine.linear(torch.eye(3)[:, None, :])[:, 0]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim of at least 1"),
        ({"hidden": ()}, "at least one hidden width"),
        ({"hidden": (4, 0)}, "each at least 1"),
        ({"context_dim": -1}, "context_dim of at least 0"),
        ({"activation": "relu"}, "activation to be one of tanh, softplus, silu, gelu; got 'relu'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConcatSquash(**{"dim": 2, **arguments})
