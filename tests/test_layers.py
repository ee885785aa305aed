"""Invertible layers: inverse, log-determinant, gradients, and what they refuse."""

import math
import shutil

import numpy as np
import pytest
import torch
from helpers import max_difference
from sklearn.covariance import ledoit_wolf
from torch import nn

from cnf.fields import FIELDS, ConcatSquash, make_field
from cnf.fields.analytic import compiled_functions
from cnf.fields.divergence import Hutchinson
from cnf.layers import (
    CNF,
    LAYERS,
    SCALINGS,
    Circular,
    Concatenate,
    Identity,
    Positive,
    Standardize,
    Whiten,
)
from cnf.layers.settings import joint_error, per_sample_errors, row_errors
from cnf.ode import SolveError
from cnf.utils.angles import wrap

DOUBLE = torch.float64


class Rotate(nn.Module):
    """A user-defined field: a rotation and a growth, whose flow is known in closed form."""

    growth = 0.3

    def forward(self, t, x):
        return self.growth * x + torch.stack([-x[:, 1], x[:, 0]], 1)


class Broken(nn.Module):
    def forward(self, t, x):
        return torch.where(x[:, :1] > 5, torch.nan, x)


class Stiff(nn.Module):
    def forward(self, t, x):
        return -1e6 * (x - torch.cos(10 * t))


def made(name):
    if name == "cnf":
        return CNF(ConcatSquash(3, (8, 8)), rtol=1e-9, atol=1e-9).double()
    if name in SCALINGS:  # each a layer's name too
        mixed = torch.randn(50, 3) @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [0, 0, 1.0]])
        return LAYERS[name](3).double().fit(mixed + 2)
    if name == "bounded":
        return LAYERS[name]([0.0, -1.0, 5.0], [1.0, 1.0, 9.0]).double()
    if name == "circular":
        return Circular(3, 0.0, 360.0)
    if name == "positive":
        return Positive([0.0, -2.0, 5.0]).double()
    if name == "moving_norm":
        layer = LAYERS[name](3).double()
        torch.nn.init.normal_(layer.log_weight)
        torch.nn.init.normal_(layer.bias)
        layer.update(layer.sums(3 * torch.randn(50, 3) + 2))
        return layer
    if name == "concatenate":
        return Concatenate([Positive([0.0]), Identity(2)], [[1], [2, 0]]).double()
    return LAYERS[name](3).double()


SMOOTH = [name for name in LAYERS if name not in ("dequantize", "argmax", "constant")]


@pytest.mark.parametrize("name", SMOOTH)
def test_inverse_undoes_forward_and_log_determinants_cancel(name):
    layer, z = made(name), torch.randn(20, 3, dtype=DOUBLE)
    x, log_det = layer(z)
    back, minus = layer.inverse(x)
    assert max_difference(wrap(z) if name == "circular" else z, back) < 1e-7
    assert max_difference(log_det, -minus) < 1e-7


@pytest.mark.parametrize("name", SMOOTH)
def test_log_determinant_agrees_with_autograd(name):
    layer, z = made(name), torch.randn(4, 3, dtype=DOUBLE)
    _, log_det = layer(z)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda row: layer(row)[0], z[i : i + 1])
        _, expected = torch.linalg.slogdet(jacobian.reshape(3, 3))
        assert log_det[i].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_configuration_makes_the_layer_anew(name):
    layer = made(name)
    again = LAYERS[name](**layer.config()).double()
    again.load_state_dict(layer.state_dict())
    z = torch.randn(5, 3, dtype=DOUBLE)
    assert torch.equal(layer(z)[0], again(z)[0])


@pytest.mark.parametrize("divergence", ["auto", "autograd", "hutchinson"])
def test_a_users_own_field(divergence):
    """x(1) = e^g R(1) z; log |det| = 2 g, which one Rademacher probe too gets right here."""
    layer = CNF(Rotate(), divergence=divergence, rtol=1e-8, atol=1e-8)
    z = torch.randn(6, 2, dtype=DOUBLE)
    x, log_det = layer(z)
    c, s = math.exp(0.3) * math.cos(1), math.exp(0.3) * math.sin(1)
    expected = z @ torch.tensor([[c, s], [-s, c]], dtype=DOUBLE)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, torch.full((6,), 0.6, dtype=DOUBLE), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
@pytest.mark.parametrize("divergence", ["exact", "autograd"])
@pytest.mark.parametrize("step", ["per_sample", "joint"])
def test_gradients_reach_weights_and_context(gradient, divergence, step):
    """Check all entries of the Jacobian for the exact trace, random projections for autograd's."""
    field = ConcatSquash(2, (3, 3), context_dim=1).double()
    layer = CNF(field, gradient=gradient, divergence=divergence, step=step, rtol=1e-9, atol=1e-9)
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)

    def pull(x, context, *parameters):
        return layer.inverse(x, context)

    inputs = (x, context, *field.parameters())
    assert torch.autograd.gradcheck(pull, inputs, fast_mode=divergence == "autograd")


def test_gradients_reach_a_users_own_weights():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))

        def forward(self, t, x):
            return self.rate * x

    layer = CNF(Scale(), rtol=1e-9, atol=1e-9)
    x, log_det = layer(torch.ones(1, 3, dtype=DOUBLE))
    (x.sum() + log_det.sum()).backward()
    # x = 3 e^r and log |det| = 3 r.
    assert layer.field.rate.grad.item() == pytest.approx(3 * math.exp(0.5) + 3, rel=1e-6)


def test_the_probe_is_fixed_for_one_solve():
    """A probe redrawn at each evaluation would keep the error estimate from settling."""
    layer = CNF(ConcatSquash(4, (16, 16)), divergence="hutchinson", rtol=1e-8, atol=1e-8).double()
    z = torch.randn(10, 4, dtype=DOUBLE)
    first, second = layer.push(z), layer.push(z)
    assert first.stats.rejected.max() <= 2
    torch.testing.assert_close(first.value, second.value)
    assert max_difference(first.log_det, second.log_det) > 1e-6  # another solve, another probe


def test_transport_is_push_without_the_log_determinant():
    layer, z = made("cnf"), torch.randn(20, 3, dtype=DOUBLE)
    assert max_difference(layer.transport(z), layer.push(z).value) < 1e-7
    path = layer.path(z, [0.0, 0.3, 1.0])
    assert torch.equal(path[0], z)
    assert max_difference(path[-1], layer.push(z).value) < 1e-7


class Uneven(nn.Module):
    """Far more work where x is large."""

    def forward(self, t, x):
        return torch.sin(10 * x) * x


@pytest.mark.parametrize("step", ["per_sample", "joint"])
def test_rows_do_not_depend_on_their_company_in_per_sample_steps(step):
    z = torch.full((100, 1), 1e-3, dtype=DOUBLE)
    z[::10] = torch.linspace(1, 3, 10, dtype=DOUBLE).unsqueeze(1)
    layer = CNF(Uneven(), rtol=1e-4, atol=1e-4, step=step)
    together = layer.push(z)
    alone = [layer.push(z[i : i + 1]) for i in range(0, 100, 5)]
    difference = max(
        max_difference(together.value[::5], torch.cat([result.value for result in alone])),
        max_difference(together.log_det[::5], torch.cat([result.log_det for result in alone])),
    )
    assert (difference < 1e-9) == (step == "per_sample")


def test_per_sample_steps_meet_the_tolerance_in_every_row():
    """One row in a thousand with far larger dynamics: a joint step's mean hides it."""
    z = torch.full((1000, 1), 1e-3, dtype=DOUBLE)
    z[0] = 3.0
    exact = CNF(Uneven(), rtol=1e-11, atol=1e-11)(z)[0]
    loose = CNF(Uneven(), rtol=1e-4, atol=1e-4)
    assert max_difference(loose(z)[0], exact) < 1e-4
    assert max_difference(loose.with_solver(step="joint")(z)[0], exact) > 1e-4


def test_per_sample_work_is_the_sum_of_what_each_row_needs():
    z = torch.full((100, 1), 1e-3, dtype=DOUBLE)
    z[0] = 3.0
    layer = CNF(Uneven())
    stats = layer.push(z).stats
    joint = layer.with_solver(step="joint").push(z).stats
    assert stats.evaluations.shape == (100,)
    assert stats.evaluations[0] > 3 * stats.evaluations[1]
    assert stats.evaluations.sum() < 0.7 * joint.evaluations * 100


@pytest.mark.parametrize("step", ["per_sample", "joint"])
@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4)])
def test_context_goes_with_its_rows(step, hidden):
    field = ConcatSquash(2, hidden, context_dim=1).double()
    layer = CNF(field, step=step, rtol=1e-8, atol=1e-8)
    z, context = torch.randn(30, 2, dtype=DOUBLE), 4 * torch.randn(30, 1, dtype=DOUBLE)
    x, log_det = layer(z, context)
    one = [layer(z[i : i + 1], context[i : i + 1]) for i in range(30)]
    assert max_difference(x, torch.cat([value for value, _ in one])) < 1e-6
    assert max_difference(log_det, torch.cat([change for _, change in one])) < 1e-6


def test_the_row_error():
    """The coordinates' RMS or the log-density's error; later columns do not affect it."""
    ratio = torch.tensor([[3.0, 4.0, 0.1, 9.0], [0.0, 0.0, -2.0, 9.0]])
    expected = torch.tensor([12.5**0.5, 2.0])
    torch.testing.assert_close(row_errors(ratio, 2), expected)
    torch.testing.assert_close(per_sample_errors(ratio, 2), 10 * expected)
    torch.testing.assert_close(joint_error(ratio, 2), torch.tensor((16.5 / 2) ** 0.5))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_fixed_steps(method):
    field = ConcatSquash(2, (6, 5), zero_last=False).double()
    z = torch.randn(10, 2, dtype=DOUBLE)
    exact = CNF(field, rtol=1e-11, atol=1e-11)(z)
    fixed = CNF(field, method=method, step_size=0.01)
    assert max_difference(fixed(z)[0], exact[0]) < 1e-6
    assert max_difference(fixed(z)[1], exact[1]) < 1e-6
    assert (fixed.push(z).stats.accepted == 100).all()


@pytest.mark.parametrize("step", ["per_sample", "joint"])
@pytest.mark.parametrize(
    "change", [{"activation_bytes": 2**30}, {"activation_bytes": 30_000}, {"gradient": "backsolve"}]
)
@pytest.mark.parametrize("divergence", ["auto", "exact", "hutchinson"])
def test_gradient_modes_agree(step, change, divergence):
    field = ConcatSquash(2, (6, 5), zero_last=False).double()
    layer = CNF(field, divergence=divergence, step=step, rtol=1e-9, atol=1e-9)
    z = torch.randn(10, 2, dtype=DOUBLE, requires_grad=True)
    found = []
    for each in (layer, layer.with_solver(**change)):
        torch.manual_seed(0)  # the same probes
        x, log_det = each(z)
        loss = x.square().sum() + log_det.sum()
        found.append(torch.autograd.grad(loss, (z, *layer.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_with_solver_shares_the_field():
    layer = CNF(ConcatSquash(2, (4, 4)))
    other = layer.with_solver(rtol=1e-9, gradient="backprop")
    assert other.field is layer.field
    assert (other.settings.rtol, other.settings.gradient) == (1e-9, "backprop")
    assert layer.settings.rtol == 1e-5


def test_repr_says_what_auto_picked():
    assert "exact by closed form" in repr(CNF(ConcatSquash(40, (4, 4))))
    assert "Hutchinson(count=1" in repr(CNF(ConcatSquash(40, (4, 4, 4))))


def test_how_a_divergence_is_found_is_no_part_of_a_model():
    layer = CNF(ConcatSquash(2), divergence=Hutchinson(3), method="bosh3", max_steps=77)
    again = CNF(**layer.config())
    assert again.settings.divergence == "auto"
    assert (again.settings.method, again.settings.max_steps) == ("bosh3", 77)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("hidden", [(5,), (5, 6), (5, 6, 4), (5, 6, 4, 3)])
def test_gradients_of_training_are_those_of_backprop(name, context_dim, hidden):
    """Joint steps with stored activations: hand-written adjoints, with context, for every field."""
    field = make_field(name, dim=3, hidden=hidden, context_dim=context_dim).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(1.5)
    x = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(6, context_dim, dtype=DOUBLE, requires_grad=True) if context_dim else None
    inputs = [x, *field.parameters(), *([context] if context_dim else [])]

    def gradients(**settings):
        result = CNF(field, step="joint", **settings).pull(x, context)
        loss = result.value.square().sum() + result.log_det.sum()
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    expected = gradients(gradient="backprop")
    for activation_bytes in (0, 2**28):
        for one, other in zip(gradients(activation_bytes=activation_bytes), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_frozen_weights_get_no_gradient():
    field = ConcatSquash(2, (5, 6))
    field.layers[0].requires_grad_(False)
    CNF(field, step="joint", activation_bytes=2**28).pull(
        torch.randn(4, 2)
    ).log_det.sum().backward()
    assert field.layers[0].linear.weight.grad is None
    assert field.layers[1].linear.weight.grad is not None
    for parameter in field.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(4, 2, requires_grad=True)
    CNF(field, step="joint").pull(x).log_det.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("step", ["joint", "per_sample"])
@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_no_product_is_taken_at_inner_stages(step, gradient, monkeypatch):
    """One stage of six of dopri5 is an inner one: the solver sees the velocity alone there."""
    estimate, calls = Hutchinson.__call__, []

    def counting(*arguments):
        calls.append(1)
        return estimate(*arguments)

    monkeypatch.setattr(Hutchinson, "__call__", counting)
    field, x = ConcatSquash(2, (5, 6)), torch.randn(1, 2, requires_grad=True)
    result = CNF(field, step=step, gradient=gradient, divergence="hutchinson").pull(x)
    steps = int(np.sum(result.stats.accepted) + np.sum(result.stats.rejected))
    assert len(calls) == np.sum(result.stats.evaluations) - steps
    result.log_det.sum().backward()
    again = int(np.sum(result.stats.backward))  # six evaluations of each accepted step, or none
    assert len(calls) == np.sum(result.stats.evaluations) - steps + again * 5 // 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute:UserWarning"
)  # raised by the compiler itself
@pytest.mark.parametrize("step", ["joint", "per_sample"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_compiled_code_gives_the_same(step):
    field, x = ConcatSquash(2, (5, 6, 4)), torch.randn(7, 2)
    found = []
    for compiled in (False, True):
        layer = CNF(field, step=step, activation_bytes=2**28 * (step == "joint"), compile=compiled)
        result = layer.pull(x)
        loss = result.value.sum() + result.log_det.sum()
        found.append((loss, *torch.autograd.grad(loss, [*field.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_there_is_a_warning_and_a_result(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    compiled_functions.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    field, x = ConcatSquash(2, (4, 4)), torch.randn(3, 2)
    with pytest.warns(RuntimeWarning, match="compile=True has no effect.*no C\\+\\+ compiler"):
        layer = CNF(field, compile=True)
    torch.testing.assert_close(layer(x), CNF(field)(x))
    compiled_functions.cache_clear()


def test_a_module_of_ones_own_is_not_compiled():
    with pytest.raises(ValueError, match=r"concat-squash family for compile=True; got ModuleField"):
        CNF(Rotate(), compile=True)


def test_a_field_of_nan_and_a_stiff_one_are_told_apart():
    z = torch.ones(4, 2, dtype=DOUBLE)
    z[1] = 6.0
    with pytest.raises(SolveError, match=r"NaN or infinite.*\(rows 1\)"):
        CNF(Broken())(z)
    with pytest.raises(SolveError, match="step limit.*stiff"):
        CNF(Stiff(), max_steps=200)(z)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": -1.0}, "rtol to be a number of at least 0; got -1.0"),
        ({"method": "rk45"}, "method to be one of"),
        ({"divergence": "none"}, "divergence to be one of"),
        ({"gradient": "adjoint"}, "gradient to be one of"),
        ({"step": "each"}, "step to be one of per_sample, joint"),
        ({"max_steps": 0}, "max_steps of at least 1"),
        ({"method": "rk4"}, "step_size with method 'rk4'"),
        ({"step_size": 0.0}, "step_size to be above 0"),
        ({"first_step": -1.0}, "first_step to be above 0"),
        ({"activation_bytes": -1}, "activation_bytes of at least 0 bytes"),
        ({"tolerance": 1e-3}, "settings among divergence, method, .*; got tolerance"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CNF(ConcatSquash(2), **settings)


def test_wrong_shapes():
    layer = CNF(ConcatSquash(2, context_dim=1))
    with pytest.raises(ValueError, match=r"shape \(rows, 2\)"):
        layer(torch.randn(4, 3), torch.randn(4, 1))
    with pytest.raises(ValueError, match=r"context of shape \(4, 1\); got None"):
        layer(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"context of shape \(4, 1\); got \(4, 2\)"):
        layer(torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="no context"):
        CNF(ConcatSquash(2))(torch.randn(4, 2), torch.randn(4, 2))


def test_standardize_gives_zero_mean_and_unit_variance():
    x = torch.randn(500, 3, dtype=DOUBLE) * torch.tensor([1e-3, 1.0, 1e3]) + 7
    z, log_det = Standardize(3).double().fit(x).inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(log_det[0], -x.std(0, correction=0).log().sum())


def correlated(rows, spread=(1e-3, 1.0, 1e3)):
    mixed = torch.randn(rows, 3, dtype=DOUBLE) @ torch.tensor(
        [[1.0, 0.8, 0.0], [0.0, 0.6, -0.5], [0.0, 0.0, 0.5]], dtype=DOUBLE
    )
    return mixed * torch.tensor(spread, dtype=DOUBLE) + 7


def test_whitening_leaves_unit_covariance_and_the_columns_nearly_what_they_were():
    x = correlated(20_000)
    layer = Whiten(3).double().fit(x)
    z, log_det = layer.inverse(x)
    covariance = (z - z.mean(0)).T @ (z - z.mean(0)) / len(z)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=DOUBLE), rtol=0, atol=5e-3)
    expected = -0.5 * torch.logdet(x.T.cov(correction=0))
    assert log_det[0].item() == pytest.approx(expected.item(), abs=5e-3)
    # Of all white coordinates these have the highest sum of correlations with the columns.
    standard = (x - x.mean(0)) / x.std(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE)).Q
    assert (z * standard).mean(0).sum() > (z @ rotation * standard).mean(0).sum()


def test_whitening_shrinks_as_ledoit_and_wolf_do():
    """Compare with scikit-learn's, which shrinks towards the mean variance, here 1, times I."""
    x = correlated(40)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    shrunk, s = ledoit_wolf(standard.numpy(), assume_centered=True)
    layer = Whiten(3).double().fit(x)
    found = layer.mixing @ layer.mixing
    assert 0.01 < s < 0.9
    torch.testing.assert_close(found, torch.from_numpy(shrunk), rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_whitening_of_nearly_collinear_columns_stays_within_single_precision(noise):
    x = correlated(500, spread=(1.0, 1.0, 1.0))
    x[:, 2] = x[:, 0] - 2 * x[:, 1] + noise * torch.randn(500, dtype=DOUBLE)
    layer = Whiten(3).fit(x.float())
    values = torch.linalg.eigvalsh(layer.mixing.double() @ layer.mixing.double())
    assert values[-1] / values[0] < 1.1e6
    z, log_det = layer.inverse(x.float())
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert max_difference(layer(z)[0], x.float()) < 1e-3


def test_whitening_of_one_column_standardises_it():
    x = correlated(50)[:, :1]
    found = Whiten(1).double().fit(x).inverse(x), Standardize(1).double().fit(x).inverse(x)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", SCALINGS)
def test_weights_of_a_scaling_are_repetitions(name):
    x, weight = correlated(30), torch.randint(0, 4, (30,)).double()
    weighted = LAYERS[name](3).double().fit(x, 0.1 * weight)
    repeated = LAYERS[name](3).double().fit(x.repeat_interleave(weight.long(), 0))
    torch.testing.assert_close(weighted.loc, repeated.loc)
    torch.testing.assert_close(weighted.scale, repeated.scale)
    found = weighted.pull(x).value.std(0), repeated.pull(x).value.std(0)
    torch.testing.assert_close(*found, rtol=0.1, atol=0)  # a row three times is not three rows


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8])
def test_scalings_refuse_a_constant_column(name, constant):
    x = torch.randn(50, 3)
    x[:, 1] = constant
    with pytest.raises(ValueError, match="constant: column 1"):
        LAYERS[name](3).fit(x)


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_refuse_what_they_cannot_fit(name):
    with pytest.raises(ValueError, match="at least 2 rows of 3 columns"):
        LAYERS[name](3).fit(torch.randn(1, 3))
    with pytest.raises(ValueError, match="finite"):
        LAYERS[name](1).fit(torch.tensor([[1.0], [math.nan]]))


class Shared(nn.Module):
    """One submodule in two places, and one parameter in two modules."""

    def __init__(self):
        super().__init__()
        twice = nn.Linear(2, 2)
        self.net = nn.Sequential(twice, nn.Tanh(), twice)
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight

    def forward(self, t, x):
        return self.net(x) + self.other(torch.tanh(self.one(x)))


@pytest.mark.parametrize(
    ("step", "activation_bytes"), [("per_sample", 0), ("joint", 0), ("joint", 2**20)]
)
def test_modules_and_parameters_in_two_places(step, activation_bytes):
    field, x = Shared().double(), torch.randn(5, 2, dtype=DOUBLE)

    def gradients(**settings):
        result = CNF(field, step=step, **settings).pull(x)
        loss = result.value.sum() + result.log_det.sum()
        return torch.autograd.grad(loss, [*field.parameters()])

    for one, other in zip(
        gradients(activation_bytes=activation_bytes), gradients(gradient="backprop"), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert isinstance(field.net[0].weight, nn.Parameter)


def test_what_is_kept_stays_within_its_bytes():
    """A wide network and a small batch: stored folded weights count too."""
    field, x = ConcatSquash(2, (64, 64)), torch.randn(4, 2)
    stage = 4 * 6 * (2 * 64 * 64 + 2 * 64)  # bytes of a step's folded weights and matrix
    layer = CNF(field, step="joint", activation_bytes=5 * stage, step_size=0.05)
    result = layer.pull(x)
    result.log_det.sum().backward()
    replayed = int(result.stats.backward) // 6
    assert 15 <= replayed < 20
