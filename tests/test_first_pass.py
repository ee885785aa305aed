"""Tests of the first pass of solves, by steps at times that rows share."""

import numpy as np
import pytest
import torch
from torch import nn

from cnf.fields import Concat, ConcatSquash, as_field
from cnf.fields.divergence import Hutchinson
from cnf.flow import ffjord
from cnf.layers import CNF
from cnf.layers.augmented import DensityDynamics, VelocityDynamics
from cnf.ode import SolveError, Status


def rough(dim=2, scale=3.0, **options):
    """Return a gated layer of some curvature, in double precision."""
    torch.manual_seed(0)
    layer = CNF(ConcatSquash(dim, hidden=(16, 16), **options)).double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.mul_(scale)
    return layer


def tight(layer):
    return layer.with_solver(method="dopri8", rtol=1e-11, atol=1e-11, first_pass=False)


def points(rows=200, dim=2):
    return torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_result_is_within_tolerance_of_a_tight_solve(direction, tolerance):
    layer, x = rough().with_solver(rtol=tolerance, atol=tolerance), points()
    found, true = (getattr(each, direction)(x) for each in (layer, tight(layer)))
    assert (found.value - true.value).abs().max() < 20 * tolerance
    assert (found.log_det - true.log_det).abs().max() < 20 * tolerance
    assert found.stats.evaluations.shape == (len(x),)


def test_transport_and_path_of_two_times_agree_with_a_tight_solve():
    layer, z = rough(), points()
    x = layer.transport(z)
    torch.testing.assert_close(x, tight(layer).transport(z), atol=1e-4, rtol=0)
    torch.testing.assert_close(layer.preimage(x), z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_result_of_a_row_is_its_own(context_dim):
    layer, x = rough(context_dim=context_dim), points(2000)
    context = points(2000, context_dim) if context_dim else None
    together = layer.pull(x, context)
    for row in (0, 7, 1999):
        alone = layer.pull(x[row : row + 1], None if context is None else context[row : row + 1])
        torch.testing.assert_close(alone.log_det[0], together.log_det[row], atol=1e-12, rtol=0)
        assert alone.stats.evaluations[0] == together.stats.evaluations[row]


def test_result_of_a_row_is_its_own_in_single_precision():
    layer, x = rough().float(), points(2000).float()
    together = layer.pull(x).log_det
    alone = torch.cat([layer.pull(row.unsqueeze(0)).log_det for row in x[:20]])
    torch.testing.assert_close(alone, together[:20], atol=2e-6, rtol=0)


def test_context_and_probes_are_those_of_the_rows():
    layer, x = rough(context_dim=2).with_solver(divergence=Hutchinson(2)), points()
    context = points(200)
    results = []
    for view in (layer, tight(layer)):
        torch.manual_seed(3)
        results.append(view.pull(x, context))
    torch.testing.assert_close(results[0].log_det, results[1].log_det, atol=1e-4, rtol=0)


def test_resting_field_takes_eight_evaluations_and_one_step():
    flow = ffjord(2)
    with torch.no_grad():
        stats = flow.pull(torch.randn(50, 2)).stats
    assert stats.evaluations.tolist() == [8] * 50
    assert stats.accepted.tolist() == [1] * 50


class Stiff(nn.Module):
    """A field with fast rotation beyond radius 1: only there are short steps needed."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.times = rate, []

    def forward(self, t, x):
        self.times.append(t.shape)
        fast = torch.sigmoid(10 * (x.detach().square().sum(1, keepdim=True) - 1))
        return (0.5 + self.rate * fast) * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_steps_of_both_directions_end_at_the_same_times_and_are_short_near_the_data(monkeypatch):
    real, ends = DensityDynamics.prepare, list[set[float]]()

    def recorded(self, times, args):
        ends[-1] |= {round(each.item(), 9) for each in (times.min(), times.max())}
        return real(self, times, args)

    monkeypatch.setattr(DensityDynamics, "prepare", recorded)
    layer, x = rough(scale=2.0).with_solver(rtol=1e-6, atol=1e-6), points()
    for map_rows in (layer.pull, layer.push):
        ends.append(set())
        map_rows(x)
    quarters = {round(1 - (k / 4) ** 1.12, 9) for k in range(5)}  # the data are at time 1
    assert quarters <= ends[0] & ends[1]


def test_rows_that_need_shorter_steps_get_them():
    module = Stiff(30.0)
    layer = CNF(module, rtol=1e-6, atol=1e-6)
    x = points(20)
    x = x / x.norm(dim=1, keepdim=True) * torch.linspace(0.3, 1.7, 20).double().unsqueeze(1)
    with torch.no_grad():
        found = layer._solve(*velocity_of(layer, x))
        assert torch.Size([]) in module.times
        assert torch.Size([20, 1]) not in module.times  # the slow rows share all their times
        other = layer.with_solver(first_pass=False)._solve(*velocity_of(layer, x))
    torch.testing.assert_close(found.ys, other.ys, atol=1e-3, rtol=0)
    slow = torch.linspace(0.3, 1.7, 20) < 0.6
    evaluations = torch.from_numpy(found.stats.evaluations)
    assert evaluations[slow].max() < 60
    assert evaluations[~slow].max() > 150
    assert found.stats.rejected[~slow.numpy()].max() > 0


class Wall(nn.Module):
    """A field without a value beyond x = 0."""

    def forward(self, t, x):
        return torch.where(x[:, :1] > 0, torch.nan, -0.1 * x)


def test_failed_rows_have_the_status_of_a_solve_and_others_their_values():
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-2.0, 1.0]])
    layer = CNF(Wall())
    solution = layer._solve(*velocity_of(layer, x), on_failure="return")
    assert solution.row_status[1] == Status.NOT_FINITE
    assert solution.rows == (1,)
    assert solution.ys[-1].isfinite().all(1).tolist() == [True, False, True]
    assert solution.last_times.tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(SolveError, match=r"rows 1\b"), torch.no_grad():
        layer.pull(x)


def velocity_of(layer, x):
    return VelocityDynamics(as_field(layer.field), 2), x, None, (1.0, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"first_pass": False},
        {"step": "joint"},
        {"first_step": 0.1},
        {"step_size": 0.25},
        rough().settings.tightened(0.1),
    ],
)
def test_pass_is_left_out(settings, monkeypatch):
    used = counted_passes(monkeypatch)
    rough().with_solver(**settings).pull(points())
    assert not used


def test_pass_is_left_out_where_autograd_records(monkeypatch):
    used, layer, x = counted_passes(monkeypatch), rough(), points()
    layer.pull(x.requires_grad_()).log_det.sum().backward()
    layer.requires_grad_(True)
    layer.pull(x.detach())
    layer.path(x.detach(), [0.0, 0.5, 1.0])
    assert not used
    with torch.no_grad():
        layer.pull(x)
    assert len(used) == 1


def counted_passes(monkeypatch):
    import cnf.layers.cnf as module

    used, real = [], module.first_pass
    monkeypatch.setattr(module, "first_pass", lambda *a: used.append(1) or real(*a))
    return used


def test_solver_error_is_honest():
    torch.manual_seed(0)
    flow = ffjord(2, hidden=(16, 16), zero_last=False).requires_grad_(False)
    for parameter in flow.parameters():
        parameter.mul_(2.5)
    flow, x = flow.with_solver(rtol=1e-4, atol=1e-4), points(300).float()
    scores = flow.score(x)
    true = tight(flow.in_double()).log_prob(x.double())
    error = (scores.log_prob - true).abs()
    assert (error <= scores.uncertainty + 1e-6).double().mean() >= 0.95
    assert scores.solver_error.max() > 0
    assert (scores.uncertainty < 1e-2).all()


@pytest.mark.parametrize("rows", [0, 1, 1100])
def test_any_number_of_rows(rows):
    layer, x = rough(), points(rows)
    result = layer.pull(x)
    assert result.value.shape == (rows, 2)
    torch.testing.assert_close(result.log_det, tight(layer).pull(x).log_det, atol=1e-4, rtol=0)


def test_several_layers_and_angles():
    torch.manual_seed(0)
    layers = [rough(circular=(0,)), CNF(Concat(2, hidden=(8,))).double().requires_grad_(False)]
    x = points(50)
    z = layers[0].pull(layers[1].pull(x).value).value
    torch.testing.assert_close(layers[1].push(layers[0].push(z).value).value, x, atol=1e-4, rtol=0)


def test_evaluations_are_counted():
    module = Stiff(2.0)
    layer, x = CNF(module, divergence="autograd"), points(20)
    with torch.no_grad():
        stats = layer.pull(x[:1].repeat(8, 1)).stats
    assert np.unique(stats.evaluations).tolist() == [len(module.times)]
