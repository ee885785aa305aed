"""Invertible layers: inverse, log-determinant, gradients, and what they refuse."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, Broken, Linear, enlarged, max_difference, near, pull_gradients, refused
from sklearn.covariance import ledoit_wolf
from torch import nn
from torch.testing import assert_close

from cnf.fields import FIELDS, ConcatSquash, make_field
from cnf.fields.divergence import Hutchinson
from cnf.layers import CNF, LAYERS, SCALINGS, Identity, Positive
from cnf.layers.settings import joint_error, per_sample_errors, row_errors
from cnf.ode import SolveError
from cnf.utils.angles import wrap


class Rotate(nn.Module):
    """A rotation and a growth, whose flow is known in closed form."""

    def __init__(self):
        super().__init__()
        self.growth = nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))

    def forward(self, t, x):
        return self.growth * x + torch.stack([-x[:, 1], x[:, 0]], 1)


class Uneven(nn.Module):
    """Far more work where x is large."""

    def forward(self, t, x):
        return torch.sin(10 * x) * x


ARGUMENTS = {
    "cnf": (ConcatSquash(3, (8, 8)),),
    "steps": (ConcatSquash(3, (8, 8)), 3),
    "bounded": ([0.0, -1.0, 5.0], [1.0, 1.0, 9.0]),
    "circular": (3, 0.0, 360.0),
    "positive": ([0.0, -2.0, 5.0],),
    "concatenate": ([Positive([0.0]), Identity(2)], [[1], [2, 0]]),
}


def made(name):
    layer = LAYERS[name](*ARGUMENTS.get(name, (3,))).double()
    if name in SCALINGS:  # each a layer's name too
        layer.fit(correlated(50, (1.0, 1.0, 1.0)))
    if name == "moving_norm":
        nn.init.normal_(layer.log_weight)
        nn.init.normal_(layer.bias)
        layer.update(layer.sums(correlated(50)))
    return layer.with_solver(rtol=1e-9, atol=1e-9) if name == "cnf" else layer


def correlated(rows, spread=(1e-3, 1.0, 1e3)):
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, -0.5], [0.0, 0.0, 0.5]], dtype=DOUBLE)
    return torch.randn(rows, 3, dtype=DOUBLE) @ mixing * torch.tensor(spread, dtype=DOUBLE) + 7


SMOOTH = [name for name in LAYERS if name not in ("dequantize", "argmax", "constant")]


@pytest.mark.parametrize("name", SMOOTH)
def test_a_layer_has_its_inverse_its_determinant_and_its_configuration(name):
    layer, z = made(name), torch.randn(10, 3, dtype=DOUBLE)
    x, log_det = layer(z)
    back, minus = layer.inverse(x)
    near(back, wrap(z) if name == "circular" else z, 1e-7)
    near(minus, -log_det, 1e-7)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda row: layer(row)[0], z[i : i + 1])
        _, expected = torch.linalg.slogdet(jacobian.reshape(3, 3))
        assert log_det[i].item() == pytest.approx(expected.item(), abs=1e-6)
    again = LAYERS[name](**layer.config()).double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(x, again(z)[0])


@pytest.mark.parametrize("divergence", ["auto", "autograd", "hutchinson"])
def test_a_users_own_field_and_the_gradient_of_its_weights(divergence):
    """x(1) = e^g R(1) z; log |det| = 2 g, which one Rademacher probe too gets right here."""
    layer = CNF(Rotate(), divergence=divergence, rtol=1e-8, atol=1e-8)
    z = torch.randn(6, 2, dtype=DOUBLE)
    x, log_det = layer(z)
    c, s = math.exp(0.3) * math.cos(1), math.exp(0.3) * math.sin(1)
    expected = z @ torch.tensor([[c, s], [-s, c]], dtype=DOUBLE)
    assert_close(x, expected, rtol=1e-6, atol=1e-6)
    assert_close(log_det, torch.full((6,), 0.6, dtype=DOUBLE), rtol=1e-6, atol=1e-6)
    (x.sum() + log_det.sum()).backward()
    assert layer.field.growth.grad.item() == pytest.approx(expected.sum().item() + 12, rel=1e-5)


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
@pytest.mark.parametrize(("divergence", "step"), [("exact", "per_sample"), ("autograd", "joint")])
def test_gradients_reach_weights_and_context(gradient, divergence, step):
    field = ConcatSquash(2, (3, 3), context_dim=1).double()
    layer = CNF(field, gradient=gradient, divergence=divergence, step=step, rtol=1e-6, atol=1e-6)
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)

    def pull(x, context, *parameters):
        return layer.inverse(x, context)

    inputs = (x, context, *field.parameters())
    assert torch.autograd.gradcheck(pull, inputs, atol=1e-4, fast_mode=True)


def test_the_probe_is_fixed_for_one_solve_and_transport_has_none():
    """A probe redrawn at each evaluation would keep the error estimate from settling."""
    layer = CNF(ConcatSquash(4, (16, 16)), divergence="hutchinson", rtol=1e-8, atol=1e-8).double()
    z = torch.randn(10, 4, dtype=DOUBLE)
    first, second = layer.push(z), layer.push(z)
    assert first.stats.rejected.max() <= 2
    assert_close(first.value, second.value)
    assert max_difference(first.log_det, second.log_det) > 1e-6  # another solve, another probe
    # Transport is a push without the log-determinant.
    layer, z = made("cnf"), torch.randn(20, 3, dtype=DOUBLE)
    x = layer.push(z).value
    near(layer.transport(z), x, 1e-7)
    path = layer.path(z, [0.0, 0.3, 1.0])
    assert torch.equal(path[0], z)
    near(path[-1], x, 1e-7)


@pytest.mark.parametrize("step", ["per_sample", "joint"])
def test_rows_do_not_depend_on_their_company_in_per_sample_steps(step):
    z = torch.full((20, 1), 1e-3, dtype=DOUBLE)
    z[::4] = torch.linspace(1, 3, 5, dtype=DOUBLE).unsqueeze(1)
    layer = CNF(Uneven(), rtol=1e-4, atol=1e-4, step=step)
    together = torch.column_stack(layer(z))
    alone = torch.cat([torch.column_stack(layer(row[None])) for row in z])
    assert (max_difference(together, alone) < 1e-9) == (step == "per_sample")


def test_per_sample_steps_meet_the_tolerance_in_every_row():
    """One row in a thousand with far larger dynamics: a joint step's mean hides it."""
    z = torch.full((1000, 1), 1e-3, dtype=DOUBLE)
    z[0] = 3.0
    exact = CNF(Uneven(), rtol=1e-11, atol=1e-11)(z)[0]
    loose = CNF(Uneven(), rtol=1e-4, atol=1e-4)
    assert max_difference(loose(z)[0], exact) < 1e-4
    assert max_difference(loose.with_solver(step="joint")(z)[0], exact) > 1e-4
    # The work is the sum of what each row needs.
    layer = CNF(Uneven())
    stats = layer.push(z).stats
    joint = layer.with_solver(step="joint").push(z).stats
    assert stats.evaluations.shape == (1000,)
    assert stats.evaluations[0] > 3 * stats.evaluations[1]
    assert stats.evaluations.sum() < 0.7 * joint.evaluations * 1000
    # The error is the coordinates' RMS or the log-density's; later columns do not affect it.
    ratio = torch.tensor([[3.0, 4.0, 0.1, 9.0], [0.0, 0.0, -2.0, 9.0]])
    expected = torch.tensor([12.5**0.5, 2.0])
    assert_close(row_errors(ratio, 2), expected)
    assert_close(per_sample_errors(ratio, 2), 10 * expected)
    assert_close(joint_error(ratio, 2), torch.tensor((16.5 / 2) ** 0.5))


@pytest.mark.parametrize("step", ["per_sample", "joint"])
@pytest.mark.parametrize(
    ("divergence", "change"),
    [
        ("auto", {"activation_bytes": 2**30}),
        ("hutchinson", {"activation_bytes": 30_000}),
        ("exact", {"gradient": "backsolve"}),
        ("hutchinson", {"gradient": "backsolve"}),
    ],
)
def test_gradient_modes_agree(step, change, divergence):
    field = ConcatSquash(2, (6, 5), zero_last=False).double()
    layer = CNF(field, divergence=divergence, step=step, rtol=1e-9, atol=1e-9)
    x = torch.randn(10, 2, dtype=DOUBLE, requires_grad=True)
    found = []
    for settings in ({}, change):
        torch.manual_seed(0)  # the same probes
        found.append(pull_gradients(layer, x, inputs=[x, *layer.parameters()], **settings)[1])
    assert_close(*found, rtol=1e-6, atol=1e-6)


def test_with_solver_shares_the_field_and_repr_has_the_divergence():
    layer = CNF(ConcatSquash(2, (4, 4)))
    other = layer.with_solver(rtol=1e-9, gradient="backprop")
    assert other.field is layer.field
    assert (other.settings.rtol, other.settings.gradient) == (1e-9, "backprop")
    assert layer.settings.rtol == 1e-5
    # What "auto" picks is in the representation.
    assert "exact by closed form" in repr(CNF(ConcatSquash(40, (4, 4))))
    assert "Hutchinson(count=1" in repr(CNF(ConcatSquash(40, (4, 4, 4))))
    # How a divergence is found is no part of a model.
    layer = CNF(ConcatSquash(2), divergence=Hutchinson(3), method="bosh3", max_steps=77)
    settings = CNF(**layer.config()).settings
    assert (settings.divergence, settings.method, settings.max_steps) == ("auto", "bosh3", 77)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    ("hidden", "context_dim", "circular"),
    [((5,), 2, ()), ((5, 6), 0, (0, 2)), ((5, 6, 4), 2, (1,))],
)
def test_gradients_of_training_are_those_of_backprop(name, hidden, context_dim, circular):
    """Joint steps with stored activations: hand-written adjoints, with context, for every field."""
    options = {"hidden": hidden, "context_dim": context_dim, "circular": circular}
    layer = CNF(enlarged(make_field(name, dim=3, **options).double(), 1.5), step="joint")
    x = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(6, context_dim, dtype=DOUBLE, requires_grad=True) if context_dim else None
    inputs = [x, *layer.parameters(), *([context] if context_dim else [])]
    expected = pull_gradients(layer, x, context, inputs, gradient="backprop")[1]
    for size in (0, 2**28):
        found = pull_gradients(layer, x, context, inputs, activation_bytes=size)[1]
        assert_close(found, expected, rtol=1e-9, atol=1e-10)


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
def test_shared_and_frozen_parameters(step, activation_bytes):
    layer, x = CNF(Shared().double(), step=step), torch.randn(5, 2, dtype=DOUBLE)
    found = pull_gradients(layer, x, activation_bytes=activation_bytes)[1]
    expected = pull_gradients(layer, x, gradient="backprop")[1]
    assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert isinstance(layer.field.net[0].weight, nn.Parameter)
    # Frozen weights get no gradient.
    field, x = ConcatSquash(2, (5, 6)), torch.randn(4, 2, requires_grad=True)
    field.layers[0].requires_grad_(False)
    options = {"step": step, "activation_bytes": activation_bytes}
    CNF(field, **options).pull(x.detach()).log_det.sum().backward()
    assert field.layers[0].linear.weight.grad is None
    assert field.layers[1].linear.weight.grad is not None
    field.requires_grad_(False)
    CNF(field, **options).pull(x).log_det.sum().backward()
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


def test_what_is_kept_stays_within_its_bytes():
    """A wide network and a small batch: stored folded weights count too."""
    field, x = ConcatSquash(2, (64, 64)), torch.randn(4, 2)
    stage = 4 * 6 * (2 * 64 * 64 + 2 * 64)  # bytes of a step's folded weights and matrix
    layer = CNF(field, step="joint", activation_bytes=5 * stage, step_size=0.05)
    result, _ = pull_gradients(layer, x)
    assert 15 <= int(result.stats.backward) // 6 < 20


def test_wrong_settings_shapes_modules_and_fields():
    field = ConcatSquash(2)
    refused("rtol to be a number of at least 0; got -1.0", CNF, field, rtol=-1.0)
    refused("method to be one of", CNF, field, method="rk45")
    refused("divergence to be one of", CNF, field, divergence="none")
    refused("gradient to be one of", CNF, field, gradient="adjoint")
    refused("step to be one of per_sample, joint", CNF, field, step="each")
    refused("max_steps of at least 1", CNF, field, max_steps=0)
    refused("step_size with method 'rk4'", CNF, field, method="rk4")
    refused("step_size to be above 0", CNF, field, step_size=0.0)
    refused("first_step to be above 0", CNF, field, first_step=-1.0)
    refused("activation_bytes of at least 0 bytes", CNF, field, activation_bytes=-1)
    refused("settings among divergence, method, .*; got tolerance", CNF, field, tolerance=1e-3)
    layer = CNF(ConcatSquash(2, context_dim=1))
    refused(r"shape \(rows, 2\)", layer, torch.randn(4, 3), torch.randn(4, 1))
    refused(r"context of shape \(4, 1\); got None", layer, torch.randn(4, 2))
    refused(r"context of shape \(4, 1\); got \(4, 2\)", layer, torch.randn(4, 2), torch.randn(4, 2))
    refused("no context", CNF(ConcatSquash(2)), torch.randn(4, 2), torch.randn(4, 2))
    refused(r"concat-squash family for compile=True; got ModuleField", CNF, Rotate(), compile=True)
    # A field of NaN and a stiff one are told apart.
    z = torch.ones(4, 2, dtype=DOUBLE)
    z[1] = 6.0
    with pytest.raises(SolveError, match=r"NaN or infinite.*\(rows 1\)"):
        CNF(Broken())(z)
    with pytest.raises(SolveError, match="step limit.*stiff"):
        CNF(Linear(-1e6 * torch.eye(2, dtype=DOUBLE)), max_steps=200)(z)


@pytest.mark.parametrize(("name", "within"), [("standardize", 1e-9), ("whiten", 5e-3)])
def test_scalings_leave_zero_mean_and_unit_variance(name, within):
    x = correlated(20_000)
    z, log_det = LAYERS[name](3).double().fit(x).inverse(x)
    covariance, own = z.T.cov(correction=0), x.T.cov(correction=0)
    near(z.mean(0), torch.zeros(3, dtype=DOUBLE), 1e-9)
    near(covariance.diagonal(), torch.ones(3, dtype=DOUBLE), within)
    if name == "standardize":
        near(log_det[0], -0.5 * own.diagonal().log().sum(), 1e-9)
        return
    near(covariance, torch.eye(3, dtype=DOUBLE), within)
    near(log_det[0], -0.5 * torch.logdet(own), within)
    # Of all white coordinates these have the highest sum of correlations with the columns.
    standard = (x - x.mean(0)) / x.std(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE)).Q
    assert (z * standard).mean(0).sum() > (z @ rotation * standard).mean(0).sum()


def test_whitening_shrinks_as_ledoit_and_wolf_do():
    """Compare with scikit-learn's, which shrinks towards the mean variance, here 1, times I."""
    x = correlated(40)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    shrunk, s = ledoit_wolf(standard.numpy(), assume_centered=True)
    mixing = LAYERS["whiten"](3).double().fit(x).mixing
    assert 0.01 < s < 0.9
    near(mixing @ mixing, torch.from_numpy(shrunk), 1e-9)
    x = x[:, :1]  # a single column is standardised
    found = (LAYERS[name](1).double().fit(x).inverse(x) for name in ("whiten", "standardize"))
    assert_close(*found)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_whitening_of_nearly_collinear_columns_stays_within_single_precision(noise):
    x = correlated(500, spread=(1.0, 1.0, 1.0))
    x[:, 2] = x[:, 0] - 2 * x[:, 1] + noise * torch.randn(500, dtype=DOUBLE)
    layer = LAYERS["whiten"](3).fit(x.float())
    values = torch.linalg.eigvalsh(layer.mixing.double() @ layer.mixing.double())
    assert values[-1] / values[0] < 1.1e6
    z, log_det = layer.inverse(x.float())
    assert all(each.isfinite().all() for each in (z, log_det))
    near(layer(z)[0], x.float(), 1e-4)
    exact = copy.deepcopy(layer).double().pull(x.float().double()).value
    near(layer.pull(x.float()).value.double(), exact, 5e-7)  # 3e-6 by products in single precision


@pytest.mark.parametrize("name", SCALINGS)
def test_weights_of_a_scaling_are_repetitions_and_what_it_refuses(name):
    x, weight = correlated(30), torch.randint(0, 4, (30,)).double()
    weighted = LAYERS[name](3).double().fit(x, 0.1 * weight)
    repeated = LAYERS[name](3).double().fit(x.repeat_interleave(weight.long(), 0))
    assert_close([weighted.loc, weighted.scale], [repeated.loc, repeated.scale])
    found = weighted.pull(x).value.std(0), repeated.pull(x).value.std(0)
    assert_close(*found, rtol=0.1, atol=0)  # a row three times is not three rows
    # What cannot be fitted is refused.
    x = torch.randn(50, 3)
    for constant in (0.0, 0.1, 1e8):
        x[:, 1] = constant
        refused("constant: column 1", LAYERS[name](3).fit, x)
    refused("at least 2 rows of 3 columns", LAYERS[name](3).fit, torch.randn(1, 3))
    refused("finite", LAYERS[name](1).fit, torch.tensor([[1.0], [math.nan]]))
