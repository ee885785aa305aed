"""Flows of parameters given simulations: support, encoder, Gaussian layer, training, storage."""

import numpy as np
import pytest
import torch
from helpers import near, refused
from torch import nn
from torch.distributions import constraints

import cnf
from cnf.adapters.simulation_flow import (
    fit_simulations,
    gaussian_part,
    simulation_flow,
    support_layers,
)
from cnf.layers import Bounded, Concatenate, ConditionalAffine, Positive
from cnf.layers.data_context import DataContext
from cnf.training import Recipe


def pairs(rows=300, seed=0):
    """Parameters in the unit square, and data that are their values and noise."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 2, generator=generator)
    return theta, theta + 0.1 * torch.randn(rows, 2, generator=generator)


def test_the_affine_layer_is_a_gaussian_given_its_context():
    layer = ConditionalAffine(3, context_dim=2, hidden=(4,)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    context, x = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    layer.fit(torch.randn(50, 3).double(), torch.randn(50, 2).double())
    z, log_det = layer.inverse(x, context)
    mean, _ = layer(torch.zeros_like(x), context)
    columns = [layer(unit.expand(5, -1), context)[0] - mean for unit in torch.eye(3).double()]
    root = torch.stack(columns, 2)  # of the map z → x
    law = torch.distributions.MultivariateNormal(mean, root @ root.transpose(1, 2))
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    near(standard + log_det, law.log_prob(x), 1e-10)
    back, minus = layer(z, context)
    near(back, x, 1e-10)
    near(minus, -log_det, 1e-10)
    refused("got none", layer.push, z)
    refused("hidden widths of at least 1", ConditionalAffine, 3, 2, (0,))


def test_the_affine_layer_starts_as_the_regression():
    context = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.randn(400, 3, generator=torch.Generator().manual_seed(1)).double()
    slope = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]).double()
    x = 5 + context @ slope + noise @ torch.tensor([[1.0, 1, 0], [0, 0.1, 0], [0, 0, 2]]).double()
    layer = ConditionalAffine(3, context_dim=2).double()
    layer.fit(x, context)
    z, _ = layer.inverse(x, context)
    near(z.mean(0), torch.zeros(3).double(), 1e-3)
    near(z.T @ z / 400, torch.eye(3).double(), 0.02)  # a row's residual is by the others' fit
    near(z.T @ context / 400, torch.zeros(3, 2).double(), 0.02)
    weight = (torch.arange(400) < 300).double()
    part, whole = (ConditionalAffine(3, 2).double() for _ in range(2))
    part.fit(x[:300], context[:300])
    whole.fit(x, context, weight)
    near(part.slope, whole.slope, 1e-6)
    near(part.whitening, whole.whitening, 1e-6)


def test_as_many_numbers_as_rows_are_not_interpolated():
    """Two numbers tell of x, 198 do not; by least squares log p is below −100 here."""
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(800, size, generator=generator) for size in (2, 200))
    context[:, :2] += x
    layer = ConditionalAffine(2, context_dim=200)
    layer.fit(x[:300], context[:300])
    z, log_det = layer.inverse(x[300:], context[300:])
    nll = -(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det).mean()
    assert 2.1 < nll < 2.75  # exactly 2.14, and without the context 2.84


def test_scores_tell_small_counts_apart_and_constant_columns_are_zero():
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(np.floor(rng.lognormal(2, 2, 2000))).float()
    data = torch.stack([counts, torch.full_like(counts, 3.0), torch.randn(2000)], 1)
    encoder = DataContext([3])
    encoder.fit(data)
    encoded = encoder(data)
    assert encoded.shape == (2000, 6)
    near(encoded[:, 2].mean(), torch.tensor(0.0), 1e-4)
    assert not encoded[:, [1, 4, 5]].any()
    scores = torch.stack([encoded[counts == each, 3][0] for each in (0.0, 1.0, 2.0, 5.0)])
    assert (scores.diff() > 0.1).all()
    share = (counts <= 0).float().mean() / 2
    assert abs(torch.special.ndtr(scores[0]) - share) < 0.02
    before = encoder.loc.clone()
    encoder.fit(data + 1)  # once
    assert torch.equal(encoder.loc, before)


def test_far_data_are_taken_for_the_ends_of_what_is_known():
    """A posterior given data that are off by thousands of deviations, or with heavy tails."""
    theta, x = pairs(400)
    x[:, 0] = theta[:, 0] + 0.1 * torch.distributions.Cauchy(0.0, 1.0).sample((400,))
    flow = simulation_flow(theta, x)
    fit_simulations(flow, theta, x, steps=20)
    far = torch.tensor([[1e4, 0.5], [-1e7, 1e4]])
    draws, log_prob = flow.sample_and_log_prob(100, far)
    assert draws.abs().max() < 100
    assert log_prob.abs().max() < 100
    low, high = flow.context(torch.tensor([[-1e4, 0.5], [-2e4, 0.5]]))
    assert torch.equal(low, high)


def test_columns_are_constant_by_the_dtype_and_rows_count_by_their_weights():
    offset = 1e6 + torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    encoder = DataContext([1])
    encoder.fit(offset)
    near(encoder(offset)[:, 0].std(correction=0), torch.tensor(1.0), 0.01)
    rows, weight = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 3.0, 0.0])
    encoder = DataContext([1])
    encoder.fit(rows, weight)
    near(encoder.loc, torch.tensor([0.75]), 1e-6)
    near(encoder.scale, torch.tensor([0.1875**0.5]), 1e-6)
    many = DataContext([101])
    assert many(torch.randn(3, 101)).shape == (3, 101)


def test_supports_become_layers():
    interval, positive = constraints.interval(torch.tensor(-1.0), 2.0), constraints.positive
    assert support_layers(constraints.independent(constraints.real, 1), 3) == []
    assert support_layers(constraints.real_vector, 3) == []
    (bounded,) = support_layers(constraints.independent(interval, 1), 2)
    assert isinstance(bounded, Bounded)
    assert bounded.bounds == ([-1.0, -1.0], [2.0, 2.0])
    (above,) = support_layers(constraints.greater_than_eq(torch.tensor([1.0, 3.0])), 2)
    assert isinstance(above, Positive)
    assert above.bounds == [1.0, 3.0]
    mixed = constraints.cat([positive, constraints.real, interval], 0, [1, 1, 2])
    (layer,) = support_layers(mixed, 4)
    assert isinstance(layer, Concatenate)
    x = torch.tensor([[0.5, -7.0, 1.0, 1.0]])
    near(layer(layer.inverse(x)[0])[0], x, 1e-5)
    (half,) = support_layers(constraints.interval(0.0, torch.tensor([torch.inf, 1.0])), 2)
    assert [type(each) for each in half.layers] == [Bounded, Positive]
    assert support_layers(constraints.interval(-torch.inf, torch.inf), 2) == []
    refused("give None", support_layers, constraints.simplex, 3)
    for support in (constraints.nonnegative_integer, constraints.less_than(1.0)):
        refused("half-lines with a lower end, .* give None", support_layers, support, 2)
    refused("a support of 2 parameters", support_layers, constraints.interval(torch.zeros(3), 1), 2)


def test_a_flow_learns_a_posterior_within_the_support_and_is_saved(tmp_path):
    theta, x = pairs(600)
    torch.manual_seed(0)
    flow = simulation_flow(theta, x, support=constraints.unit_interval)
    history = fit_simulations(flow, theta, x, steps=60)
    assert history.steps == 60
    new_theta, new_x = pairs(500, seed=1)
    log_prob = flow.log_prob(new_theta, new_x)
    assert log_prob.mean() > 1.3  # the prior's is 0, and the posterior's about 1.9
    assert gaussian_part(flow).log_prob(new_theta, new_x).mean() < log_prob.mean() - 0.01
    draws = flow.sample(100, new_x[:5])
    assert ((draws >= 0) & (draws <= 1)).all()
    near(flow.log_prob(new_theta[:3], new_x[:3]), log_prob[:3], 1e-5)
    cnf.save(flow, tmp_path)
    near(cnf.load(tmp_path).log_prob(new_theta, new_x), log_prob, 0.0)


def test_training_is_a_function_of_the_seed():
    theta, x = pairs(100)
    found = []
    for state, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(0)
        flow = simulation_flow(theta, x)
        torch.manual_seed(state)
        fit_simulations(flow, theta, x, steps=6, seed=seed)
        assert torch.initial_seed() == state
        found.append(flow.log_prob(theta, x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_budget_alone_limits_both_parts_by_time(monkeypatch):
    theta, x = pairs(50)
    limits = []

    def spy(*given, **named):
        limits.append((named.get("budget"), named.get("steps")))
        return cnf.fit(*given, **(named | {"budget": None, "steps": 1}))

    monkeypatch.setattr("cnf.adapters.simulation_flow.fit", spy)
    fit_simulations(simulation_flow(theta, x), theta, x, budget=50.0)
    (first, few), (rest, steps) = limits
    assert (first, few, steps) == (5.0, None, None)
    assert 5 < rest < 50


def test_an_embedding_net_is_trained_and_its_data_keep_their_shape():
    theta, x = pairs(200)
    images = torch.stack([x, x.flip(1)], 1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))  # of what is lost it can learn
    before = net[1].weight.detach().clone()
    flow = simulation_flow(theta, images, embedding_net=net)
    fit_simulations(flow, theta, images, steps=20)
    assert not torch.equal(net[1].weight, before)
    assert flow.context_dim == 4
    refused("without an embedding_net to save", flow.context.config)
    refused(r"to .2, features.; got .2, 1, 2.", DataContext, [2], nn.Unflatten(1, (1, 2)))
    refused("got mat1 and mat2 shapes", DataContext, [2], nn.Linear(3, 1))


def test_embedding_nets_validate_and_end_in_evaluation_mode():
    """So that a row's log p does not depend on its batch, or on chance, and is what was kept."""
    theta, x = pairs(100)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    theta, x = theta.double(), x.double()
    flow = simulation_flow(theta, x, embedding_net=net)
    assert net.training
    assert not net[1].running_mean.any()
    seen = []
    fit_simulations(flow, theta, x, steps=8, callbacks=[lambda event: seen.append(net.training)])
    assert all(seen)
    assert not flow.training
    assert net[1].running_mean.any()
    assert torch.equal(flow.log_prob(theta, x), flow.log_prob(theta, x))
    near(flow.log_prob(theta[:3], x[:3]), flow.log_prob(theta, x)[:3], 1e-5)


def test_a_point_alone_has_the_log_p_of_the_point_among_many():
    theta, x = pairs()
    torch.manual_seed(0)
    flow, generator = simulation_flow(theta, x), torch.Generator().manual_seed(0)
    for parameter in flow.requires_grad_(False).parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    given = x[:1].expand(300, -1)
    alone = [flow.log_prob(theta[i : i + 1], given[:1]) for i in range(50)]
    # Contexts of a single row would be rounded otherwise, which makes 4e-6.
    near(torch.cat(alone), flow.log_prob(theta, given)[:50], 5e-7)


def test_data_are_encoded_once_for_all_of_their_draws():
    net = Counted(2, 3)
    theta, x = pairs(60)
    flow = simulation_flow(theta, x, embedding_net=net)
    for draw in (flow.sample, flow.rsample, flow.sample_and_log_prob, flow.rsample_and_log_prob):
        net.rows = 0
        draw(50, x[:2])
        assert net.rows == 2
    assert flow.sample(5, x[0]).shape == (5, 2)


class Counted(nn.Linear):
    """A linear net that counts what it encodes."""

    rows = 0

    def forward(self, x):
        self.rows += len(x)
        return super().forward(x)


def test_what_does_not_fit_is_refused():
    theta, x = pairs(20)
    refused("got .20, 2. and .10, 2.", simulation_flow, theta, x[:10])
    refused("got one without a ConditionalAffine", gaussian_part, cnf.ffjord(2))
    with pytest.raises(ValueError, match="got \\(20,\\) and"):
        fit_simulations(cnf.ffjord(2), theta[:, 0], x)
    with pytest.raises(ValueError, match="without batch_norm, .*got False and whiten"):
        simulation_flow(theta, x, recipe=Recipe(scaling="whiten"))
    with pytest.raises(ValueError, match="within the support; got 20 of 20 outside"):
        simulation_flow(theta + 3, x, support=constraints.unit_interval)
    theta[0, 1] = 0
    with pytest.raises(ValueError, match="got 1 of 20 outside, or on the end of a half-line"):
        simulation_flow(theta, x, support=constraints.nonnegative)
    with pytest.raises(TypeError, match="Expected target to be a tensor; got ndarray"):
        simulation_flow(theta.numpy(), x)


def test_one_parameter_and_one_number_have_a_posterior():
    theta, x = (each[:, :1] for each in pairs(60))
    flow = simulation_flow(theta, x, support=constraints.unit_interval)
    fit_simulations(flow, theta, x, steps=3)
    assert flow.sample(7, x[:2]).shape == (7, 2, 1)
