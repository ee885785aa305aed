"""Fields: their equations, and their exact traces and products against autograd, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnf.fields import (
    ACTIVATIONS,
    FIELDS,
    ConcatSquash,
    GatedLinear,
    Ignore,
    ModuleField,
    make_field,
)
from cnf.fields.activations import LOGISTIC, fourier_activation
from cnf.fields.divergence import AutogradTrace, FieldTrace, TangentTrace
from cnf.fields.field import vector_jacobian_products
from cnf.layers import CNF

DOUBLE = torch.float64
T = torch.tensor(0.3, dtype=DOUBLE)
TIMED = ("concat", "squash", "concat_squash")
GATED = ("ignore", *TIMED)
THEIRS = {
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}
INSIDE = {**ACTIVATIONS, "logistic": LOGISTIC, "fourier": fourier_activation(5, 48)}


def made(name, dim=4, scale=3.0, **options):
    """A field whose weights are large enough to bend, in float64; some multiply them twice."""
    field = make_field(name, dim=dim, **options).double()
    scale = scale**0.5 if name in ("hyper", "residual") else scale
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(scale)
    return field


@pytest.mark.parametrize("name", INSIDE)
def test_activation_derivatives(name):
    activation = INSIDE[name]
    z = torch.linspace(-6, 6, 101, dtype=DOUBLE)
    z[-48:] = z[-96:-48]  # as those of Fourier features are
    z.requires_grad_()
    value, slope = activation(z)
    _, auxiliary = activation.function(z)
    (expected,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
    v, d = torch.randn(2, 101, dtype=DOUBLE)
    (back,) = torch.autograd.grad((value * v).sum() + (expected * d).sum(), z)
    found = activation.adjoint(value, auxiliary, slope, v, d)
    torch.testing.assert_close(found, back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", THEIRS)
def test_activation_is_the_one_of_its_name(name):
    z = torch.linspace(-6, 6, 101, dtype=DOUBLE)
    torch.testing.assert_close(ACTIVATIONS[name](z)[0], THEIRS[name](z), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8), (5, 6, 4, 7), (5, 6, 4, 7, 3)])
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("times", ["one", "rows"])
def test_exact_traces_agree(name, activation, hidden, context_dim, times):
    field = made(name, hidden=hidden, context_dim=context_dim, activation=activation)
    check_traces(field, context_dim, T if times == "one" else torch.rand(6, 1, dtype=DOUBLE))


@pytest.mark.parametrize("name", [*TIMED, "residual"])
@pytest.mark.parametrize("times", ["one", "rows"])
def test_exact_traces_agree_with_features_of_time(name, times):
    field = made(name, hidden=(7, 9, 8), context_dim=2, time_features=3)
    check_traces(field, 2, T if times == "one" else torch.rand(6, 1, dtype=DOUBLE))


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8)])
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("times", ["one", "rows"])
def test_exact_traces_agree_with_features_of_x(name, hidden, context_dim, times):
    field = made(name, hidden=hidden, context_dim=context_dim, x_features=5, x_scale=2.0)
    check_traces(field, context_dim, T if times == "one" else torch.rand(6, 1, dtype=DOUBLE))


def check_traces(field, context_dim, t):
    x = torch.randn(6, 4, dtype=DOUBLE)
    context = torch.randn(6, context_dim, dtype=DOUBLE) if context_dim else None
    stage = field.at(t, context, trace=True)
    ways = [way(field, stage, x, x) for way in (FieldTrace(), TangentTrace(), AutogradTrace())]
    expected = field(t, x, context)
    for traced in ways:
        torch.testing.assert_close(traced.velocity, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(traced.trace, ways[-1].trace, rtol=0, atol=1e-10)
    assert ways[-1].trace.abs().max() > 1e-3


@given(
    name=st.sampled_from(sorted(FIELDS)),
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    rows=st.integers(1, 4),
    scale=st.floats(0.1, 5),
)
@settings(deadline=None, max_examples=60)
def test_exact_trace_for_any_sizes(name, dim, hidden, rows, scale):
    field = make_field(name, dim=dim, hidden=hidden).double()
    x = scale * torch.randn(rows, dim, dtype=DOUBLE)
    _, trace = field.with_divergence(T, x)
    expected = AutogradTrace()(field, field.at(T), x, x).trace
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FIELDS)
def test_products_are_those_of_the_jacobian(name):
    field, x = made(name, dim=3, hidden=(5, 6)), torch.randn(1, 3, dtype=DOUBLE)
    stage, vectors = field.at(T), torch.randn(4, 1, 3, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda row: field(T, row), x).reshape(3, 3)
    _, products = field.products(stage, x, vectors)
    torch.testing.assert_close(products[:, 0], vectors[:, 0] @ jacobian.T)
    _, pulled = vector_jacobian_products(field, stage, x, vectors)
    torch.testing.assert_close(pulled[:, 0], vectors[:, 0] @ jacobian)


@pytest.mark.parametrize("name", FIELDS)
def test_gradients_of_the_trace_to_weights_and_context(name):
    field = made(name, dim=2, scale=1.5, hidden=(3, 4), context_dim=2)
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)

    def trace(x, context, *parameters):
        return field.with_divergence(T, x, context)[1]

    assert torch.autograd.gradcheck(trace, (x, context, *field.parameters()))


@pytest.mark.parametrize("name", FIELDS)
def test_zero_last_starts_the_field_at_zero(name):
    x = torch.randn(5, 2)
    assert (make_field(name, dim=2, hidden=(4, 4), zero_last=True)(torch.tensor(0.3), x) == 0).all()
    assert (make_field(name, dim=2, hidden=(4, 4))(torch.tensor(0.3), x) != 0).all()


@pytest.mark.parametrize("name", FIELDS)
def test_a_context_moves_every_field_and_gets_a_gradient(name):
    field = make_field(name, dim=2, hidden=(4, 4), context_dim=1)
    x = torch.randn(1, 2).expand(3, 2)
    context = torch.tensor([[0.0], [1.0], [1.0]], requires_grad=True)
    velocity = field(torch.tensor(0.3), x, context)
    assert not torch.equal(velocity[0], velocity[1])
    assert torch.equal(velocity[1], velocity[2])
    velocity.sum().backward()
    assert (context.grad != 0).all()


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_made_anew_from_its_configuration(name):
    field = make_field(name, dim=3, hidden=(5, 6), context_dim=2, activation="silu")
    again = make_field(name, **field.config())
    again.load_state_dict(field.state_dict())
    x, context, t = torch.randn(4, 3), torch.randn(4, 2), torch.tensor(0.3)
    assert torch.equal(field(t, x, context), again(t, x, context))


def test_the_form_of_the_trace_follows_the_depth():
    forms = [ConcatSquash(3, (4,) * depth).trace for depth in (1, 2, 3)]
    assert forms == ["closed form", "closed form", "tangents"]
    # Fourier features of x count as a hidden layer.
    assert ConcatSquash(3, (4,), x_features=2).trace == "closed form"
    assert ConcatSquash(3, (4, 4), x_features=2).trace == "tangents"


@pytest.mark.parametrize("name", FIELDS)
def test_only_ignore_ignores_time(name):
    field, x = made(name, hidden=(7, 9)), torch.randn(3, 4, dtype=DOUBLE)
    same = torch.equal(field(T, x), field(2 * T, x))
    assert same == (name == "ignore")


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_gated_linear_is_its_equation(gate, shift):
    layer = GatedLinear(3, 2, conditioning=2, gate=gate, shift=shift).double()
    x, s = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    expected = x @ layer.linear.weight.T + layer.linear.bias
    if gate:
        expected = expected * torch.sigmoid(s @ layer.gate.weight.T + layer.gate.bias)
    if shift:
        expected = expected + s @ layer.shift.weight.T
    torch.testing.assert_close(layer(x, s), expected)


@pytest.mark.parametrize("gate", ["tanh", "silu"])
@pytest.mark.parametrize("name", ["squash", "concat_squash", "residual"])
def test_another_gate_is_one_change(name, gate, monkeypatch):
    """Values are those of the layers, gradients by hand those of autograd."""
    monkeypatch.setattr(GatedLinear, "gate_activation", ACTIVATIONS[gate])
    field, x = made(name, dim=3, hidden=(4, 5)), torch.randn(6, 3, dtype=DOUBLE)
    if name != "residual":
        h = x
        for layer in field.layers:
            gates = THEIRS[gate](layer.gate(T.reshape(1)))
            shifts = layer.shift(T.reshape(1)) if layer.shift else 0
            h = torch.tanh(layer.linear(h) * gates + shifts)
        torch.testing.assert_close(field(T, x), field.last(h, T.reshape(1)))
    found = []
    for gradient in ("checkpoint", "backprop"):
        layer = CNF(field, step="joint", gradient=gradient, activation_bytes=2**28)
        loss = layer.pull(x).log_det.sum()
        found.append(torch.autograd.grad(loss, [*field.parameters()]))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_fields_are_chains_of_their_layers(name, activation):
    """Against the layers called one by one, without folding and as tanh networks."""
    features = int(name in TIMED)
    options = {"activation": activation, "time_features": features}
    field = made(name, hidden=(7, 9), context_dim=2, **options)
    x, context = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    angle = 2 * torch.pi * T
    time = torch.stack([T, torch.sin(angle), torch.cos(angle)]).expand(5, 3)
    conditioning = context if isinstance(field, Ignore) else torch.cat([time, context], 1)
    h = x
    for layer in field.layers:
        h = THEIRS[activation](layer(h, conditioning))
    torch.testing.assert_close(field(T, x, context), field.last(h, conditioning))


def test_features_of_x_are_waves_of_fixed_frequencies():
    field = made("concat_squash", hidden=(7,), x_features=3, x_scale=2.0)
    x = torch.randn(5, 4, dtype=DOUBLE)
    frequencies = field.frequencies[4:7]
    h = torch.cat([x, torch.sin(x @ frequencies.T), torch.cos(x @ frequencies.T)], 1)
    h = torch.tanh(field.layers[0](h, T.reshape(1)))
    torch.testing.assert_close(field(T, x), field.last(h, T.reshape(1)))
    assert not field.frequencies.requires_grad
    assert "frequencies" in field.state_dict()


def test_a_module_is_a_field():
    module = torch.nn.Linear(3, 3).double()

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, t, x):
            return t * self.inner(x)

    field, x = ModuleField(Field()), torch.randn(4, 3, dtype=DOUBLE)
    traced = field.traced(field.at(T), x)
    torch.testing.assert_close(traced.trace, (T * module.weight.trace()).expand(4))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim of at least 1; got 0"),
        ({"hidden": ()}, "at least one hidden width"),
        ({"hidden": (4, 0)}, "each at least 1"),
        ({"context_dim": -1}, "context_dim of at least 0; got -1"),
        ({"activation": "relu"}, "activation to be one of tanh, softplus, silu, gelu; got 'relu'"),
        ({"width": 3}, "arguments of the field .* among dim, hidden, .*; got width"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_field(name, **{"dim": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_features": -1}, "time_features of at least 0"),
        ({"x_features": -1}, "x_features of at least 0"),
        ({"x_scale": 0.0}, "x_scale above 0"),
    ],
)
def test_wrong_features(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConcatSquash(2, **arguments)


def test_no_features_of_time_where_it_does_not_enter():
    with pytest.raises(ValueError, match="no time_features for the field ignore"):
        Ignore(2, time_features=1)


def test_an_unknown_field():
    with pytest.raises(ValueError, match="field among ignore, .*; got 'hyperbolic'"):
        make_field("hyperbolic", dim=2)
