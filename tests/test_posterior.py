"""The posterior as a distribution: its density, gradients, shapes and mistakes."""

import math

import pytest
import torch
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.func import functional_call

import cnf
from cnf.variational.posterior import AMORTIZATIONS

DOUBLE = torch.float64


def made(amortize, latent_dim=2, context_dim=3, hidden=(6, 5), scale=0.25, **solver):
    """A posterior that is far from its start, solved with care."""
    solver = {"step": "per_sample", "rtol": 1e-7, "atol": 1e-7, "method": "dopri5", **solver}
    posterior = cnf.FlowPosterior(
        latent_dim, context_dim, amortize, hidden=hidden, rank=2, **solver
    ).double()
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return posterior


def encoded(*batch, latent_dim=2, context_dim=3):
    loc, scale = torch.randn(2, *batch, latent_dim, dtype=DOUBLE)
    return torch.randn(*batch, context_dim, dtype=DOUBLE), loc, 0.3 + scale.abs()


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_it_starts_as_the_gaussian(amortize):
    h, loc, scale = encoded(5)
    q = cnf.FlowPosterior(2, 3, amortize).double()(h, loc, scale)
    z, log_q = q.rsample_and_log_prob((4,))
    expected = Independent(Normal(loc, scale), 1).log_prob(z)
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(q.log_prob(z), expected)


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_density_integrates_to_one(amortize):
    q = made(amortize, rtol=1e-5, atol=1e-5, step="joint")(*encoded(2))
    axis = torch.linspace(-7, 7, 57, dtype=DOUBLE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    grid = q.loc + q.scale * grid if q.context is not None else grid
    with torch.no_grad():
        density = q.log_prob(grid).exp()
    cell = (axis[1] - axis[0]) ** 2
    cell = cell * (q.scale.prod(-1) if q.context is not None else 1.0)
    torch.testing.assert_close(
        density.sum(0) * cell, torch.ones(2, dtype=DOUBLE), rtol=0, atol=1e-2
    )
    gaussian = Independent(Normal(q.loc, q.scale), 1).log_prob(grid)
    assert (density - gaussian.exp()).abs().max() > 0.05 * density.max()


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_draws_have_their_log_prob(amortize):
    q = made(amortize)(*encoded(4))
    z, log_q = q.rsample_and_log_prob((3,))
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=0, atol=1e-6)
    torch.manual_seed(3)
    with_log_prob = q.rsample_and_log_prob(3)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(q.rsample(3), with_log_prob, rtol=0, atol=1e-6)


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
@pytest.mark.parametrize("hidden", [(3,), (3, 2)])
def test_gradients_to_the_encoder_and_all_weights(amortize, hidden):
    posterior = made(amortize, hidden=hidden, method="rk4", step_size=0.5, step="joint")
    weights = dict(posterior.named_parameters())
    h, loc, scale = (tensor.requires_grad_() for tensor in encoded(2))
    z = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)

    def drawn(h, loc, scale, z, *values):
        torch.manual_seed(0)
        q = functional_call(posterior, dict(zip(weights, values, strict=True)), (h, loc, scale))
        return *q.rsample_and_log_prob(), q.log_prob(z)

    inputs = (h, loc, scale, z, *weights.values())
    assert torch.autograd.gradcheck(drawn, inputs, fast_mode=True)
    torch.autograd.backward(drawn(*inputs), [torch.randn(2, 2), torch.randn(2), torch.randn(2)])
    assert all((tensor.grad != 0).any() for tensor in inputs if tensor is not h)
    assert amortize == "none" or (h.grad != 0).any()


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_shapes_are_those_of_torch_distributions(amortize):
    h, loc, scale = encoded(4)
    posterior = made(amortize)
    q = posterior(h, loc, scale)
    assert isinstance(q, Distribution)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4,), (2,), True)
    assert q.support is constraints.real_vector
    assert not q.sample((3,)).requires_grad
    assert q.sample().shape == (4, 2)
    z, log_q = q.rsample_and_log_prob((5, 3))
    assert (z.shape, log_q.shape) == ((5, 3, 4, 2), (5, 3, 4))
    wide = q.expand((5, 4))
    assert (wide.batch_shape, wide.sample((3,)).shape) == ((5, 4), (3, 5, 4, 2))
    assert q.expand((2, 4)).log_prob(z[0, 0]).shape == (2, 4)
    assert q.log_prob(z[0, 0, 0]).shape == (4,)
    assert q.sample((0,)).shape == (0, 4, 2)


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_each_row_of_many_samples_has_its_own_datum(amortize):
    h, loc, scale = encoded(4)
    posterior = made(amortize)
    z = torch.randn(3, 4, 2, dtype=DOUBLE)
    together = posterior(h, loc, scale).log_prob(z)
    for i in range(4):
        alone = posterior(h[i], loc[i], scale[i])
        assert alone.batch_shape == ()
        torch.testing.assert_close(alone.log_prob(z[:, i]), together[:, i], rtol=0, atol=1e-6)
    broadcast = posterior(h.unsqueeze(1), loc.unsqueeze(1), scale[:1])
    assert broadcast.batch_shape == (4, 1)


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
@pytest.mark.parametrize("hidden", [(8,), (8, 8)])
def test_the_trace_is_exact_for_64_latents(amortize, hidden):
    posterior = made(amortize, 64, hidden=hidden, scale=0.1, rtol=1e-6, atol=1e-6)
    arguments = encoded(3, latent_dim=64)
    z = torch.randn(3, 64, dtype=DOUBLE)
    with torch.no_grad():
        found = posterior(*arguments).log_prob(z)
        plain = posterior.with_solver(divergence="autograd")(*arguments).log_prob(z)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


def test_views_share_the_weights():
    posterior = cnf.FlowPosterior(2, 3)
    careful = posterior.accurate()
    assert [*careful.parameters()] == [*posterior.parameters()]
    assert (careful.flow.settings.step, posterior.flow.settings.step) == ("per_sample", "joint")
    assert posterior.with_solver(rtol=1e-2).flow.settings.rtol == 1e-2
    assert posterior.flow.settings.rtol == 1e-3
    assert cnf.FlowPosterior(2, 3, method="tsit5").flow.settings.method == "tsit5"


@pytest.mark.parametrize("amortize", AMORTIZATIONS)
def test_the_cheap_solver_is_near_the_careful_one(amortize):
    posterior = made(amortize, scale=0.2).with_solver(
        method="bosh3", step="joint", rtol=1e-3, atol=1e-3, first_step=0.5
    )
    arguments = encoded(200)
    z, log_q = posterior(*arguments).rsample_and_log_prob()
    careful = posterior.accurate()(*arguments).log_prob(z)
    assert (log_q - careful).abs().mean() < 5e-3
    one = posterior.accurate()(*(tensor[:1] for tensor in arguments)).log_prob(z[:1])
    torch.testing.assert_close(one, careful[:1], rtol=0, atol=1e-12)


def test_no_features_are_asked_for_where_none_count():
    posterior = cnf.FlowPosterior(2, amortize="none")
    z = posterior(None, torch.zeros(3, 2), torch.ones(3, 2)).sample()
    assert z.shape == (3, 2)


H, LOC, SCALE = torch.zeros(4, 3), torch.zeros(4, 2), torch.ones(4, 2)


def spoiled(tensor, value):
    """Return a copy with one number replaced."""
    tensor = tensor.clone()
    tensor[2, 1] = value
    return tensor


CALLS = {
    "h not finite": ((spoiled(H, math.nan), LOC, SCALE), r"h to be finite; got nan at \(2, 1\)"),
    "loc not finite": ((H, spoiled(LOC, math.inf), SCALE), r"loc to be finite; got inf at"),
    "scale not finite": ((H, LOC, spoiled(SCALE, math.nan)), r"scale to be finite and above zero"),
    "scale of zero": ((H, LOC, spoiled(SCALE, 0.0)), r"above zero; got 0.0 at \(2, 1\), one of 1"),
    "scale below zero": ((H, LOC, -SCALE), r"above zero; got -1.0 at \(0, 0\), one of 8"),
    "latent size": ((H, LOC[:, :1], SCALE), r"loc of shape \(\.\.\., 2\).*; got \(4, 1\)"),
    "scale's size": ((H, LOC, torch.ones(4, 3)), r"scale of shape \(\.\.\., 2\).*; got \(4, 3\)"),
    "h's size": ((H[:, :2], LOC, SCALE), r"h of shape \(\.\.\., 3\).*; got \(4, 2\)"),
    "no h": ((None, LOC, SCALE), r"h of shape \(\.\.\., 3\) for amortize='bias'; got None"),
    "batches": (
        (H[:3], LOC, SCALE),
        r"batch shapes that broadcast; got \(4,\), \(4,\), \(3,\) of loc, scale, h",
    ),
}


@pytest.mark.parametrize("mistake", CALLS)
def test_mistakes_of_a_call(mistake):
    arguments, message = CALLS[mistake]
    with pytest.raises(ValueError, match=f"Expected .*{message}") as raised:
        cnf.FlowPosterior(2, 3)(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amortize": "all"}, r"amortize to be one of none, bias, rank, hyper; got 'all'"),
        ({"context_dim": 0}, r"context_dim, the size of h, of at least 1.*; got 0"),
        ({"latent_dim": 0}, r"dim of at least 1; got 0"),
        ({"amortize": "rank", "rank": 0}, r"rank of at least 1; got 0"),
        ({"tolerance": 1.0}, r"solver settings among .*; got tolerance"),
    ],
)
def test_mistakes_of_making_one(arguments, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        cnf.FlowPosterior(**{"latent_dim": 2, "context_dim": 3, **arguments})


def test_mistake_of_a_value():
    q = cnf.FlowPosterior(2, 3)(H, LOC, SCALE)
    with pytest.raises(ValueError, match=r"Expected z of shape \(\.\.\., 2\); got \(4, 3\)"):
        q.log_prob(torch.zeros(4, 3))
