"""The posterior as a distribution: its density, gradients, shapes and mistakes."""

import math

import pytest
import torch
from helpers import DOUBLE, near
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.func import functional_call

import cnf
from cnf.variational import AMORTIZATIONS
from cnf.variational.posterior import POSTERIOR_SOLVER

H, LOC, SCALE = torch.zeros(4, 3), torch.zeros(4, 2), torch.ones(4, 2)


@pytest.fixture(params=AMORTIZATIONS)
def amortize(request):
    return request.param


def made(amortize, latent_dim=2, context_dim=3, hidden=(6, 5), scale=0.25, **solver):
    """A posterior that is far from its start, solved accurately."""
    solver = {"step": "per_sample", "rtol": 1e-7, "atol": 1e-7, "method": "dopri5", **solver}
    posterior = cnf.FlowPosterior(latent_dim, context_dim, amortize, hidden, rank=2, **solver)
    posterior = posterior.double()
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return posterior


def encoded(*batch, latent_dim=2, context_dim=3):
    loc, scale = torch.randn(2, *batch, latent_dim, dtype=DOUBLE)
    return torch.randn(*batch, context_dim, dtype=DOUBLE), loc, 0.3 + scale.abs()


def test_it_starts_as_the_gaussian(amortize):
    h, loc, scale = encoded(5)
    q = cnf.FlowPosterior(2, 3, amortize).double()(h, loc, scale)
    z, log_q = q.rsample_and_log_prob((4,))
    for found in (log_q, q.log_prob(z)):
        torch.testing.assert_close(found, Independent(Normal(loc, scale), 1).log_prob(z))


@pytest.mark.parametrize("steps", [None, 4])
def test_density_integrates_to_one(amortize, steps):
    posterior = made(amortize, rtol=1e-5, atol=1e-5, step="joint")
    q = (posterior if steps is None else posterior.discretized(steps))(*encoded(2))
    axis = torch.linspace(-7, 7, 41, dtype=DOUBLE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    grid = q.loc + q.scale * grid if q.context is not None else grid
    with torch.no_grad():
        density = q.log_prob(grid).exp()
    cell = (axis[1] - axis[0]) ** 2 * (q.scale.prod(-1) if q.context is not None else 1.0)
    assert (density.sum(0) * cell).tolist() == pytest.approx([1, 1], abs=1e-2)
    gaussian = Independent(Normal(q.loc, q.scale), 1).log_prob(grid)
    assert (density - gaussian.exp()).abs().max() > 0.05 * density.max()


@pytest.mark.parametrize("learnt", [False, True])
def test_explicit_steps_have_an_exact_log_q(amortize, learnt):
    """By autograd's Jacobians of the draws, by its integral, and near to the solver's."""
    posterior = made(amortize)
    steps = posterior.discretized(4, "rk4", learnt=learnt)
    h, loc, scale = encoded(3)
    q, solved = steps(h, loc, scale), posterior(h, loc, scale)
    noise = torch.randn(3, 2, dtype=DOUBLE)

    def drawn(noise):
        z = q._affine(noise, before=True)
        return q._affine(q.flow.transport(z, q.context), before=False)

    jacobians = torch.autograd.functional.jacobian(lambda e: drawn(e).sum(0), noise).transpose(0, 1)
    expected = Independent(Normal(0 * loc, 1.0 + 0 * loc), 1).log_prob(noise)
    expected = expected - torch.linalg.slogdet(jacobians).logabsdet
    near(q.log_prob(drawn(noise)), expected, atol=1e-9)
    z, log_q = q.rsample_and_log_prob()
    near(q.log_prob(z), log_q, atol=1e-9)
    near(solved.log_prob(z), log_q, atol=2e-3)
    assert not torch.equal(posterior.discretized(1)(h, loc, scale).log_prob(z), log_q)
    near(steps.accurate()(h, loc, scale).log_prob(z), log_q, atol=1e-9)
    assert steps.with_solver(rtol=1e-9).flow is steps.flow
    own = [*steps.flow.parameters(recurse=False)]
    assert bool(own) == learnt
    h = h.requires_grad_()
    _, log_q = steps(h, loc, scale).rsample_and_log_prob()
    gradients = torch.autograd.grad(
        log_q.sum(), [h, *steps.parameters()], allow_unused=True, materialize_grads=True
    )
    assert gradients[0].any() == (amortize != "none")
    assert all(grad.isfinite().all() for grad in gradients)
    assert sum(bool(grad.any()) for grad in gradients) > 2 + len(own)
    shared = {id(each) for each in steps.parameters()} - {id(each) for each in own}
    assert shared == {id(each) for each in posterior.parameters()}


def test_gradients_to_the_encoder_and_all_weights(amortize):
    posterior = made(amortize, hidden=(3, 2), method="rk4", step_size=0.5, step="joint")
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


def test_shapes_are_those_of_torch_distributions(amortize):
    posterior = made(amortize)
    h, loc, scale = encoded(4)
    q = posterior(h, loc, scale)
    assert isinstance(q, Distribution)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4,), (2,), True)
    assert q.support is constraints.real_vector
    assert not q.sample((3,)).requires_grad
    assert q.sample().shape == (4, 2)
    torch.manual_seed(3)
    z, log_q = q.rsample_and_log_prob((5, 3))
    assert (z.shape, log_q.shape) == ((5, 3, 4, 2), (5, 3, 4))
    near(q.log_prob(z), log_q, 1e-6)
    torch.manual_seed(3)
    near(q.rsample((5, 3)), z, 1e-6)
    wide = q.expand((5, 4))
    assert (wide.batch_shape, wide.sample((3,)).shape) == ((5, 4), (3, 5, 4, 2))
    assert q.expand((2, 4)).log_prob(z[0, 0]).shape == (2, 4)
    assert q.log_prob(z[0, 0, 0]).shape == (4,)
    assert q.sample((0,)).shape == (0, 4, 2)
    for i in range(2):
        alone = posterior(h[i], loc[i], scale[i])
        assert alone.batch_shape == ()
        near(alone.log_prob(z[:, :, i]), log_q[:, :, i], 1e-6)
    assert posterior(h.unsqueeze(1), loc.unsqueeze(1), scale[:1]).batch_shape == (4, 1)


def test_the_trace_is_exact_for_64_latents(amortize):
    posterior = made(amortize, 64, hidden=(8, 8), scale=0.1, rtol=1e-6, atol=1e-6)
    arguments = encoded(3, latent_dim=64)
    z = torch.randn(3, 64, dtype=DOUBLE)
    plain = posterior.with_solver(divergence="autograd")
    with torch.no_grad():
        near(posterior(*arguments).log_prob(z), plain(*arguments).log_prob(z), 1e-5)


def test_views_share_the_weights():
    posterior = cnf.FlowPosterior(2, 3)
    careful = posterior.accurate()
    assert [*careful.parameters()] == [*posterior.parameters()]
    assert (careful.flow.settings.step, posterior.flow.settings.step) == ("per_sample", "joint")
    assert posterior.with_solver(rtol=1e-2).flow.settings.rtol == 1e-2
    assert posterior.flow.settings.rtol == 1e-3
    assert cnf.FlowPosterior(2, 3, method="tsit5").flow.settings.method == "tsit5"
    featureless = cnf.FlowPosterior(2, amortize="none")
    assert featureless(None, torch.zeros(3, 2), torch.ones(3, 2)).sample().shape == (3, 2)


def test_the_training_solver_is_near_the_accurate_one(amortize):
    posterior, arguments = made(amortize, scale=0.2).with_solver(**POSTERIOR_SOLVER), encoded(60)
    z, log_q = posterior(*arguments).rsample_and_log_prob()
    careful = posterior.accurate()(*arguments).log_prob(z)
    assert (log_q - careful).abs().mean() < 5e-3
    one = posterior.accurate()(*(tensor[:1] for tensor in arguments)).log_prob(z[:1])
    near(one, careful[:1], 1e-12)


def spoiled(tensor, value):
    return tensor.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(value))


def test_mistakes_of_a_call():
    posterior = cnf.FlowPosterior(2, 3)
    for name, value, message in (
        ("h", spoiled(H, math.nan), r"h to be finite; got nan at \(2, 1\)"),
        ("loc", spoiled(LOC, math.inf), "loc to be finite; got inf at"),
        ("scale", spoiled(SCALE, math.nan), "scale to be finite and above zero"),
        ("scale", spoiled(SCALE, 0.0), r"above zero; got 0.0 at \(2, 1\), one of 1"),
        ("scale", -SCALE, r"above zero; got -1.0 at \(0, 0\), one of 8"),
        ("loc", LOC[:, :1], r"loc of shape \(\.\.\., 2\).*; got \(4, 1\)"),
        ("scale", torch.ones(4, 3), r"scale of shape \(\.\.\., 2\).*; got \(4, 3\)"),
        ("h", H[:, :2], r"h of shape \(\.\.\., 3\).*; got \(4, 2\)"),
        ("h", None, r"h of shape \(\.\.\., 3\) for amortize='bias'; got None"),
        ("h", H[:3], r"batch shapes that broadcast; got \(4,\), \(4,\), \(3,\) of loc, scale, h"),
    ):
        with pytest.raises(ValueError, match=f"Expected .*{message}") as raised:
            posterior(**{"h": H, "loc": LOC, "scale": SCALE, name: value})
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"Expected z of shape \(\.\.\., 2\); got \(4, 3\)"):
        posterior(H, LOC, SCALE).log_prob(torch.zeros(4, 3))


def test_a_fold_of_explicit_steps_makes_no_bound_better():
    posterior = made("none", scale=5.0).discretized(1)
    q = posterior(None, LOC[:1].double(), SCALE[:1].double())
    z, log_q = q.rsample_and_log_prob((200,))
    folded = log_q == math.inf
    assert 0 < folded.sum() < 200
    assert log_q[~folded].isfinite().all()
    far = cnf.FlowPosterior(2, 3)(torch.zeros(1, 3), LOC[:1], SCALE[:1])
    assert far.log_prob(torch.full((1, 2), 1e25)) == -math.inf  # without a fold
    assert posterior.flow.determinants(q._noise((200,))[:, 0]).folded.any()
    flow = cnf.Flow(Independent(Normal(0 * z[0, 0], 1 + 0 * z[0, 0]), 1), [posterior.flow])
    _, log_prob = flow.sample_and_log_prob(200)
    assert 0 < (log_prob == -math.inf).sum() < 200


def test_mistakes_of_explicit_steps():
    for arguments, message in (
        ((0,), "steps of at least 1; got 0"),
        ((2, "euler"), "at least 2 stages"),
        ((2, "leapfrog"), "unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            made("bias").discretized(*arguments)
    with pytest.raises(ValueError, match="at most 32 columns"):
        cnf.FlowPosterior(64, 3).discretized(2)


def test_mistakes_of_making_one():
    for name, value, message in (
        ("amortize", "all", "amortize to be one of none, bias, rank, hyper; got 'all'"),
        ("context_dim", 0, "context_dim, the size of h, of at least 1.*; got 0"),
        ("latent_dim", 0, "dim of at least 1; got 0"),
        ("rank", 0, "rank of at least 1; got 0"),
        ("tolerance", 1.0, "solver settings among .*; got tolerance"),
    ):
        arguments = {"latent_dim": 2, "context_dim": 3, "amortize": "rank", name: value}
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            cnf.FlowPosterior(**arguments)
