"""Regularizers: their values against closed forms, their gradients, and where they may not show."""

import pytest
import torch
from helpers import DOUBLE, Linear, refused
from torch import nn
from torch.testing import assert_close

import cnf
from cnf.fields import as_field, make_field
from cnf.fields.divergence import AutogradTrace, FieldTrace, Hutchinson, trace_of
from cnf.fields.regularizers import REGULARIZERS, PathPoint, Regularization
from cnf.layers import CNF
from cnf.training.objectives import MaximumLikelihood

EVERYTHING = Regularization(dict.fromkeys(REGULARIZERS, 0.3), steer=0.3)


def point(module, x, way, probe=None):
    field = as_field(module)
    stage = field.at(x.new_tensor(0.3), trace=True)
    traced = way(field, stage, x, way.probes(field, stage, x))
    return PathPoint(field, stage, x, traced, probe)


def test_values_for_a_linear_field():
    matrix, x = torch.randn(3, 3, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    here = point(Linear(matrix), x, AutogradTrace())
    v = x @ matrix.T
    expected = {
        "kinetic": (v**2).sum(1),
        "jacobian": (matrix**2).sum().expand(5),
        "path_l1": v.abs().sum(1),
        "path_l2": (v**2).sum(1).sqrt(),
        "directional": 0.5 * ((v @ matrix) ** 2).mean(1),
    }
    for name, value in expected.items():
        assert_close(REGULARIZERS[name](here), value)


@pytest.mark.parametrize("way", [Hutchinson(2), FieldTrace()], ids=["probes", "one probe"])
def test_the_jacobian_is_estimated_without_bias(way):
    field = make_field("concat_squash", dim=4, hidden=(8, 8)).double()
    row = torch.randn(1, 4, dtype=DOUBLE)
    x = row.expand(5000, 4)
    with torch.no_grad():
        probe = torch.randint_like(x, 0, 2).unsqueeze(1) * 2 - 1
        found = REGULARIZERS["jacobian"](point(field, x, way, probe))
        exact = REGULARIZERS["jacobian"](point(field, row, AutogradTrace()))
    assert (found.mean() - exact).abs() < 4 * found.std() / 5000**0.5
    assert trace_of(field, x[:4], Hutchinson(5)).products.shape == (5, 4, 4)


def test_integrals_over_a_constant_velocity():
    class Push(nn.Module):
        def forward(self, t, x):
            return torch.full_like(x, 2.0)

    layer = CNF(Push(), step="joint")
    mapped = layer.pull_regularized(torch.zeros(3, 2), None, EVERYTHING, 0.0)
    for name, value in {"kinetic": 8.0, "path_l1": 4.0, "path_l2": 8**0.5, "jacobian": 0.0}.items():
        assert_close(mapped.penalties[name], torch.full((3,), value))
    assert_close(mapped.value, torch.full((3, 2), -2.0))


@pytest.mark.parametrize(("name", "context_dim"), [("concat_squash", 2), ("residual", 0)])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradients_are_those_of_backprop(name, divergence, context_dim):
    field = make_field(name, dim=3, hidden=(5, 6, 4), context_dim=context_dim).double()
    x = torch.randn(6, 3, dtype=DOUBLE)
    context = torch.randn(6, context_dim, dtype=DOUBLE) if context_dim else None

    def gradients(**settings):
        layer = CNF(field, step="joint", divergence=divergence, **settings)
        torch.manual_seed(1)
        mapped = layer.pull_regularized(x, context, EVERYTHING, 0.2)
        loss = mapped.log_det.sum() + sum(p.sum() for p in mapped.penalties.values())
        return torch.autograd.grad(loss, [*field.parameters()])

    expected = gradients(gradient="backprop")
    for activation_bytes in (0, 2**28):
        found = gradients(activation_bytes=activation_bytes)
        assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_penalties_do_not_steer_and_are_no_part_of_log_p():
    flow = cnf.ffjord(2, hidden=(8, 8), zero_last=False).with_solver(step="joint")
    x = torch.randn(20, 2)
    plain = flow.score_rows(x)
    heavy = flow.score_rows(x, regularization=Regularization(dict.fromkeys(REGULARIZERS, 1e6)))
    assert_close(heavy.log_prob, plain.log_prob)
    assert heavy.stats.evaluations == plain.stats.evaluations
    assert not plain.penalties
    some = Regularization({"path_l1": 2.0}, kinetic=0.0)
    assert [*flow.score_rows(x, regularization=some).penalties] == ["path_l1"]


def test_the_objective_adds_penalties_and_steers():
    flow, x = cnf.ffjord(2, hidden=(8, 8), zero_last=False).double(), torch.randn(20, 2).double()
    base, once, twice = (
        MaximumLikelihood(Regularization(kinetic=weight))(flow, x).value for weight in (0, 1, 2)
    )
    assert_close(base, MaximumLikelihood()(flow, x).value)
    assert twice > once > base
    assert_close(twice - base, 2 * (once - base))
    # Steering moves the base's time within its interval.
    times = [Regularization(steer=0.5).base_time() for _ in range(200)]
    assert -0.5 <= min(times) < -0.4
    assert 0.4 < max(times) <= 0.5
    assert Regularization().base_time() == 0.0
    # A path that goes nowhere has no derivative of its length: a subgradient must not be NaN.
    flow = cnf.ffjord(2, hidden=(8, 8), zero_last=True)
    MaximumLikelihood(EVERYTHING)(flow, torch.randn(9, 2)).value.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_wrong_arguments():
    refused("kinetic to be finite and at least 0; got -1", Regularization, kinetic=-1.0)
    refused("jacobian to be finite", Regularization, jacobian=float("inf"))
    refused("steer below 1", Regularization, steer=1.0)
    refused("regularizers among kinetic, .*; got elastic", Regularization, elastic=1.0)
