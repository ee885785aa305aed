"""Regularizers: their values against closed forms, their gradients, and where they may not show."""

import pytest
import torch
from torch import nn

import cnf
from cnf.fields import as_field, make_field
from cnf.fields.divergence import AutogradTrace, FieldTrace, Hutchinson, trace_of
from cnf.fields.regularizers import REGULARIZERS, PathPoint, Regularization
from cnf.layers import CNF
from cnf.training.objectives import MaximumLikelihood

DOUBLE = torch.float64
EVERYTHING = Regularization(0.1, 0.2, 0.3, 0.4, 0.5, steer=0.3)


class Linear(nn.Module):
    """f(t, x) = A x."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, x):
        return x @ self.matrix.T


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
    assert set(expected) == set(REGULARIZERS)
    for name, value in expected.items():
        torch.testing.assert_close(REGULARIZERS[name](here), value)


@pytest.mark.parametrize("source", ["probes", "one probe"])
def test_the_jacobian_is_estimated_without_bias(source):
    field = make_field("concat_squash", dim=4, hidden=(8, 8)).double()
    row = torch.randn(1, 4, dtype=DOUBLE)
    x = row.expand(5000, 4)
    with torch.no_grad():
        probe = torch.randint_like(x, 0, 2).unsqueeze(1) * 2 - 1
        way = Hutchinson(2) if source == "probes" else FieldTrace()
        found = REGULARIZERS["jacobian"](point(field, x, way, probe))
        exact = REGULARIZERS["jacobian"](point(field, row, AutogradTrace()))
    assert (found.mean() - exact).abs() < 4 * found.std() / 5000**0.5


def test_the_shortest_way_has_the_least_energy():
    """∫ |f|² over a constant velocity is the squared distance."""

    class Push(nn.Module):
        def forward(self, t, x):
            return torch.full_like(x, 2.0)

    layer = CNF(Push(), step="joint")
    mapped = layer.pull_regularized(torch.zeros(3, 2), None, EVERYTHING, 0.0)
    torch.testing.assert_close(mapped.penalties["kinetic"], torch.full((3,), 8.0))
    torch.testing.assert_close(mapped.penalties["path_l1"], torch.full((3,), 4.0))
    torch.testing.assert_close(mapped.penalties["path_l2"], torch.full((3,), 8.0**0.5))
    torch.testing.assert_close(mapped.penalties["jacobian"], torch.zeros(3))
    torch.testing.assert_close(mapped.value, torch.full((3, 2), -2.0))


@pytest.mark.parametrize("name", ["concat_squash", "residual"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("context_dim", [0, 2])
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
        for own, other in zip(gradients(activation_bytes=activation_bytes), expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)


def test_penalties_do_not_steer_and_are_no_part_of_log_p():
    flow = cnf.ffjord(2, hidden=(8, 8), zero_last=False).with_solver(step="joint")
    x = torch.randn(20, 2)
    plain = flow.score_rows(x)
    heavy = flow.score_rows(x, regularization=Regularization(1e6, 1e6, 1e6, 1e6, 1e6))
    torch.testing.assert_close(heavy.log_prob, plain.log_prob)
    assert heavy.stats.evaluations == plain.stats.evaluations
    assert not plain.penalties


def test_the_objective_adds_what_it_is_told():
    flow, x = cnf.ffjord(2, hidden=(8, 8), zero_last=False).double(), torch.randn(20, 2).double()
    base = MaximumLikelihood()(flow, x).value
    twice = MaximumLikelihood(Regularization(kinetic=2.0))(flow, x).value
    once = MaximumLikelihood(Regularization(kinetic=1.0))(flow, x).value
    assert twice > once > base
    torch.testing.assert_close(twice - base, 2 * (once - base))


def test_steer_moves_the_base_time_within_its_interval():
    torch.manual_seed(0)
    times = [Regularization(steer=0.5).base_time() for _ in range(200)]
    assert min(times) < -0.4
    assert max(times) > 0.4
    assert max(map(abs, times)) <= 0.5
    assert Regularization().base_time() == 0.0


def test_a_zero_field_has_a_gradient():
    """The length of a path that goes nowhere has no derivative; a subgradient must not be NaN."""
    flow = cnf.ffjord(2, hidden=(8, 8), zero_last=True)
    MaximumLikelihood(EVERYTHING)(flow, torch.randn(9, 2)).value.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_what_fit_makes_of_a_recipe():
    recipe = cnf.training.recipes.Recipe(kinetic=0.5, steer=0.1)
    assert recipe.regularization == Regularization(kinetic=0.5, steer=0.1)
    assert cnf.training.recipes.Recipe().regularization is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinetic": -1.0}, "kinetic to be finite and at least 0; got -1"),
        ({"jacobian": float("inf")}, "jacobian to be finite"),
        ({"steer": 1.0}, "steer below 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Regularization(**arguments)


def test_trace_of_uses_the_probes_it_draws():
    field = make_field("concat_squash", dim=3, hidden=(5, 6))
    traced = trace_of(field, torch.randn(4, 3), Hutchinson(5))
    assert traced.products.shape == (5, 4, 3)
