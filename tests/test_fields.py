"""Fields: their equations, and their exact traces and products against autograd, in float64."""

from functools import partial

import pytest
import torch
from helpers import DOUBLE, enlarged, near, pull_gradients, refused
from torch.nn import functional
from torch.testing import assert_close

import cnf
from cnf.fields import ACTIVATIONS, FIELDS, GivenWeights, LowRank, make_field
from cnf.fields.activations import LOGISTIC, fourier_activation
from cnf.fields.divergence import AutogradTrace, FieldTrace, TangentTrace
from cnf.layers import CNF

T = torch.tensor(0.3, dtype=DOUBLE)
TIMED = ("concat", "squash", "concat_squash")
GATED = ("ignore", *TIMED)
ROWS = {"low_rank": partial(LowRank, rank=2), "given_weights": GivenWeights}  # weights for each row
THEIRS = {
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
INSIDE = {**ACTIVATIONS, "logistic": LOGISTIC, "fourier": fourier_activation(5, 48)}


def made(name, dim=4, scale=3.0, **options):
    """A field whose weights are large enough to bend, in float64; some multiply them twice."""
    if name not in ROWS:
        field = make_field(name, dim=dim, **options).double()
        return enlarged(field, scale**0.5 if name in ("hyper", "residual") else scale)
    field = ROWS[name](dim, **options).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return field


def numbers_for(field, rows):
    """The weights of a field with separate ones for each row."""
    return 0.7 * torch.randn(rows, field.context_dim, dtype=DOUBLE)


def chain(field, x, s, activation=torch.tanh, gate=torch.sigmoid):
    """The layers of a field by their equations, one by one, without folding."""
    for layer in field.layers:
        y = layer.linear(x)
        y = y * gate(layer.gate(s)) if layer.gate else y
        y = y + layer.shift(s) if layer.shift else y
        assert_close(layer(x, s), y)
        x = activation(y)
    return field.last(x, s)


@pytest.mark.parametrize("name", INSIDE)
def test_activations_and_their_derivatives(name):
    activation = INSIDE[name]
    z = torch.linspace(-6, 6, 101, dtype=DOUBLE)
    z[-48:] = z[-96:-48] + torch.pi / 2  # as those of Fourier features are
    z.requires_grad_()
    value, slope = activation(z)
    if name in THEIRS:
        assert_close(value, THEIRS[name](z), rtol=1e-12, atol=1e-15)
    _, auxiliary = activation.function(z)
    (expected,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    assert_close(slope, expected, rtol=1e-12, atol=1e-12)
    v, d = torch.randn(2, 101, dtype=DOUBLE)
    (back,) = torch.autograd.grad((value * v).sum() + (expected * d).sum(), z)
    found = activation.adjoint(value, auxiliary, slope, v, d)
    assert_close(found, back, rtol=1e-9, atol=1e-12)


SHAPES = [(7,), (7, 9), (7, 9, 8), (5, 6, 4, 7, 3)]
FORMS = [
    *((name, {"hidden": hidden}) for name in FIELDS for hidden in SHAPES),
    *((name, {"hidden": (1, 5), "dim": 1}) for name in FIELDS),
    *((name, {"hidden": hidden}) for name in ROWS for hidden in SHAPES[:3]),
    *(
        (name, {"hidden": (7, 9), "activation": each})
        for name in (*FIELDS, *ROWS)
        for each in ACTIVATIONS
    ),
    *((name, {"hidden": (7, 9, 8), "time_features": 3}) for name in (*TIMED, "residual")),
    *((name, {"hidden": h, "x_features": 5, "x_scale": 2.0}) for name in GATED for h in SHAPES[:3]),
    *((name, {"hidden": (7,), "circular": (1, 3)}) for name in FIELDS),
    *((name, {"hidden": (7, 9, 8), "circular": (0, 1, 2, 3)}) for name in FIELDS),
]


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_exact_traces_agree(name, options):
    x = torch.randn(6, options.get("dim", 4), dtype=DOUBLE)
    if name in ROWS:
        field = made(name, **options)
        cases = [(field, numbers_for(field, 6))]
    else:
        context = torch.randn(6, 3, dtype=DOUBLE)
        cases = [(made(name, **options), None), (made(name, context_dim=3, **options), context)]
    for field, context in cases:
        for t in (T, torch.rand(6, 1, dtype=DOUBLE)):
            stage = field.at(t, context, trace=True)
            exact, *others = (
                way(field, stage, x, x) for way in (AutogradTrace(), FieldTrace(), TangentTrace())
            )
            assert exact.trace.abs().max() > 1e-3
            for traced in (exact, *others):
                assert_close(traced.velocity, field(t, x, context))
                near(traced.trace, exact.trace, 1e-10)


@pytest.mark.parametrize("name", FIELDS)
def test_products_start_and_context_of_every_field(name):
    """Products are the Jacobian's; a configuration makes the field anew."""
    field, x = made(name, dim=3, hidden=(5, 6)), torch.randn(1, 3, dtype=DOUBLE)
    stage, vectors = field.at(T), torch.randn(4, 1, 3, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda row: field(T, row), x).reshape(3, 3)
    _, products = field.products(stage, x, vectors)
    assert_close(products[:, 0], vectors[:, 0] @ jacobian.T)
    _, pulled = field.transposed_products(stage, x, vectors)
    assert_close(pulled[:, 0], vectors[:, 0] @ jacobian)
    # With its last layer at zero a field starts at zero; ignore alone ignores time.
    x, early, late = torch.randn(5, 2), torch.tensor(0.3), torch.tensor(0.6)
    assert (make_field(name, dim=2, hidden=(4, 4), zero_last=True)(early, x) == 0).all()
    field = make_field(name, dim=2, hidden=(4, 4))
    assert (field(early, x) != 0).all()
    assert torch.equal(field(early, x), field(late, x)) == (name == "ignore")
    # A context moves every field.
    field = make_field(name, dim=2, hidden=(4, 4), context_dim=1, activation="silu")
    x = torch.randn(1, 2).expand(3, 2)
    context = torch.tensor([[0.0], [1.0], [1.0]], requires_grad=True)
    velocity = field(early, x, context)
    assert not torch.equal(velocity[0], velocity[1])
    assert torch.equal(velocity[1], velocity[2])
    velocity.sum().backward()
    assert (context.grad != 0).all()
    again = make_field(name, **field.config())
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(early, x, context), velocity)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        *((name, (3, 4)) for name in FIELDS),
        *((name, hidden) for name in ROWS for hidden in [(3,), (3, 4), (3, 2, 3)]),
    ],
)
def test_gradients_of_velocity_and_trace_to_weights_and_context(name, hidden):
    options = {} if name in ROWS else {"context_dim": 2, "scale": 1.5}
    field = made(name, dim=2, hidden=hidden, **options)
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = numbers_for(field, 2) if name in ROWS else torch.randn(2, 2, dtype=DOUBLE)

    def both(x, context, *parameters):
        return field.with_divergence(T, x, context)

    inputs = (x, context.requires_grad_(), *field.parameters())
    assert torch.autograd.gradcheck(both, inputs, fast_mode=True)


def test_the_form_of_the_trace_follows_the_depth():
    """Fourier features of x count as a hidden layer, and so do waves of angles."""
    closed, tangents = "closed form", "tangents"
    for options, expected in (
        ({}, [closed, closed, tangents]),
        ({"x_features": 2}, [closed, tangents, tangents]),
        ({"circular": (0,)}, [closed, tangents, tangents]),
    ):
        forms = [cnf.ConcatSquash(3, (4,) * depth, **options).trace for depth in (1, 2, 3)]
        assert forms == expected


@pytest.mark.parametrize("gate", ["tanh", "silu"])
@pytest.mark.parametrize("name", ["squash", "concat_squash", "residual"])
def test_another_gate_is_one_change(name, gate, monkeypatch):
    """Values are those of the layers, gradients by hand those of autograd."""
    monkeypatch.setattr(cnf.fields.GatedLinear, "gate_activation", ACTIVATIONS[gate])
    field, x = made(name, dim=3, hidden=(4, 5)), torch.randn(6, 3, dtype=DOUBLE)
    if name != "residual":
        assert_close(field(T, x), chain(field, x, T.reshape(1), gate=THEIRS[gate]))
    layer = CNF(field, step="joint", activation_bytes=2**28)
    found, expected = (pull_gradients(layer, x, gradient=g)[1] for g in ("checkpoint", "backprop"))
    assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_fields_are_their_equations(name, activation):
    options = {"activation": activation, "time_features": int(name in TIMED)}
    field = made(name, hidden=(7, 9), context_dim=2, **options)
    x, context = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    angle = 2 * torch.pi * T
    time = torch.stack([T, torch.sin(angle), torch.cos(angle)]).expand(5, 3)
    conditioning = torch.cat([time, context], 1) if name in TIMED else context
    assert_close(field(T, x, context), chain(field, x, conditioning, THEIRS[activation]))


def test_features_of_x_are_waves_of_fixed_frequencies():
    field = made("concat_squash", hidden=(7,), x_features=3, x_scale=2.0)
    x = torch.randn(5, 4, dtype=DOUBLE)
    angles = x @ field.frequencies[4:7].T
    features = torch.cat([x, torch.sin(angles), torch.cos(angles)], 1)
    assert_close(field(T, x), chain(field, features, T.reshape(1)))
    assert not field.frequencies.requires_grad
    assert "frequencies" in field.state_dict()


def test_low_rank_adds_to_the_weights_and_given_weights_are_them():
    low_rank, given = (made(name, dim=2, hidden=(3,)) for name in ROWS)
    x = torch.randn(5, 2, dtype=DOUBLE)
    context = numbers_for(low_rank, 5)
    for row, numbers, found in zip(x, context, low_rank(T, x, context), strict=True):
        h, start = row, 0
        for linear, (inputs, outputs) in zip(low_rank.linears, [(2, 3), (3, 2)], strict=True):
            sizes = [2 * outputs, 2 * inputs, outputs]
            left, right, bias = numbers[start : start + sum(sizes)].split(sizes)
            start += sum(sizes)
            weight = linear.weight[:, 1:] + left.view(outputs, 2) @ right.view(2, inputs)
            h = weight @ h + T * linear.weight[:, 0] + linear.bias + bias
            h = torch.tanh(h) if outputs == 3 else h
        assert_close(found, h)
    context = numbers_for(given, 5)
    for row, numbers, found in zip(x, context, given(T, x, context), strict=True):
        first, a, b, last, c, d = numbers.split([6, 3, 3, 6, 2, 2])
        h = torch.tanh(first.view(3, 2) @ row + T * a + b)
        assert_close(found, last.view(2, 3) @ h + T * c + d)


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_weights_each_in_steps_and_in_training(name):
    layer = CNF(made(name, hidden=(7, 5)), rtol=1e-8, atol=1e-8)
    z, context = torch.randn(3, 4, dtype=DOUBLE), numbers_for(layer.field, 3)
    near(layer(z, context), layer.with_solver(step="joint")(z, context), 1e-6)
    # A generator starts a field at zero, which can leave it.
    field = ROWS[name](4, hidden=(8, 8), activation="silu")
    again = type(field)(**field.config())
    assert (again.config(), again.context_dim) == (field.config(), field.context_dim)
    make, t = field.generator(5), torch.tensor(0.5)
    x, features = torch.randn(6, 4), torch.randn(6, 5)
    parameters = [*make.parameters(), *field.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    assert field(t, x, make(features)).abs().max() == 0
    for _ in range(3):
        optimizer.zero_grad()
        (field(t, x, make(features)) - features[:, :4]).square().sum().backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in parameters)
    assert field(t, x, make(features)).abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim of at least 1; got 0"),
        ({"hidden": ()}, "at least one hidden width"),
        ({"hidden": (4, 0)}, "each at least 1"),
        ({"context_dim": -1}, "context_dim of at least 0; got -1"),
        ({"activation": "relu"}, "activation to be one of tanh, softplus, silu, gelu; got 'relu'"),
        ({"width": 3}, "arguments of the field .* among dim, hidden, .*; got width"),
        ({"time_features": -1}, "time_features of at least 0"),
        ({"x_features": -1}, "x_features of at least 0"),
        ({"x_scale": 0.0}, "x_scale above 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    taken = {name: {*cnf.fields.field_arguments(name), "width"} for name in FIELDS}
    known = [name for name in FIELDS if {*arguments} <= taken[name]]
    assert len(known) > 2
    for name in known:
        refused(message, make_field, name, **{"dim": 2, **arguments})


def test_mistakes(monkeypatch):
    refused("field among ignore, .*; got 'hyperbolic'", make_field, "hyperbolic", dim=2)
    told = "field ignore among .*; got time_features: leave it out"
    refused(told, make_field, "ignore", dim=2, time_features=1)
    assert "time_features" not in make_field("ignore", dim=2, time_features=0).config()
    field = GivenWeights(2)
    refused(r"Expected rank of at least 1; got 0", LowRank, 2, rank=0)
    refused(r"Expected at least 1 feature; got 0", field.generator, 0)
    x = torch.zeros(3, 2)
    refused(r"context of shape \(rows, \d+\); got none", field, torch.tensor(0.0), x)
    refused(r"context of shape \(3, \d+\); got \(3, 1\)", CNF(field), x, x[:, :1])
    monkeypatch.setitem(FIELDS, "decay", lambda dim: None)
    options = {"hidden": (8, 8), "activation": "silu", "context_dim": 1, "circular": (0,)}
    for name, value in (*options.items(), ("field_options", {"x_features": 2})):
        given = name if name in options else "x_features"
        told = f"field decay among dim; got {given}: leave it out"
        refused(told, cnf.ffjord, 2, field="decay", **{name: value})
