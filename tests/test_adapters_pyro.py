"""Flows in Pyro's models and guides: one solve for each site, Pyro's shapes, known evidences."""

import copy
import pickle
import subprocess
import sys
import weakref

import pyro
import pytest
import torch
from helpers import enlarged, exact_log_prob, near, refused
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_feasible,
)
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule
from torch import nn

import cnf
from cnf.adapters.pyro import AutoFlow, PyroDistribution
from cnf.layers import CNF, Bounded, Concatenate, Constant, Dequantize, Positive


@pytest.fixture(autouse=True)
def _clear():
    pyro.clear_param_store()


@pytest.fixture
def solves(monkeypatch):
    """The rows of each solve, in their order."""
    rows, solve = [], CNF._solve

    def counted(layer, dynamics, y0, *others, **options):
        rows.append(len(y0))
        return solve(layer, dynamics, y0, *others, **options)

    monkeypatch.setattr(CNF, "_solve", counted)
    return rows


def bent(**options):
    """A flow that is not the identity."""
    return enlarged(cnf.ffjord(2, hidden=(8,), zero_last=False, **options), 2)


def conditional(rows=5):
    return bent(context_dim=3), torch.randn(rows, 3)


def of_flow(rows=5):
    flow, context = conditional(rows)
    return flow.distribution(context)


def of_posterior(rows=5):
    posterior = cnf.FlowPosterior(2, context_dim=3, hidden=(8,)).accurate()
    loc, scale = torch.randn(rows, 2), torch.rand(rows, 2) + 0.5
    enlarged(posterior, 2)
    nn.init.normal_(posterior.flow.field.last.linear.weight)
    return posterior(torch.randn(rows, 3), loc, scale)


@pytest.mark.parametrize("make", [of_flow, of_posterior])
def test_a_site_takes_one_solve_and_has_the_flows_log_density(make, solves):
    q = make()

    def guide():
        with pyro.plate("rows", 5):
            return pyro.sample("z", PyroDistribution(q))

    trace = poutine.trace(guide).get_trace()
    trace.compute_score_parts()
    site = trace.nodes["z"]
    assert solves == [5]
    assert site["value"].shape == (5, 2)
    near(site["log_prob"], q.log_prob(site["value"]), 1e-4)
    replayed = poutine.trace(poutine.replay(guide, trace)).get_trace()
    replayed.compute_log_prob()
    near(replayed.nodes["z"]["log_prob"], site["log_prob"], 1e-4)
    assert solves == [5, 5, 5]


@pytest.mark.parametrize("make", [of_flow, of_posterior])
def test_a_kept_log_density_is_of_the_very_draw(make, solves):
    """A change in place of anything that it depends on, or another tensor, takes a new solve."""
    q = make()
    p = PyroDistribution(q)
    z = p.rsample()
    log_prob = p.log_prob(z)
    assert p.log_prob(z) is log_prob
    assert len(solves) == 1
    for other in (z.clone(), z.detach(), z[:]):
        near(p.log_prob(other), log_prob, 1e-4)
    p.expand((5,)).log_prob(z)
    assert len(solves) == 5
    with torch.no_grad():
        q.context.add_(1.0)
    near(p.log_prob(z), q.log_prob(z), 1e-5)
    assert (p.log_prob(z) - log_prob).abs().max() > 1e-2
    z = p.rsample()
    before = p.log_prob(z)
    with torch.no_grad():
        next(q.flow.parameters()).mul_(2)
    assert (p.log_prob(z) - before).abs().max() > 1e-2
    z = p.rsample()
    before = p.log_prob(z)
    parameter = next(q.flow.parameters())
    parameter.data = parameter.data / 2
    assert (p.log_prob(z) - before).abs().max() > 1e-2
    with torch.no_grad():
        z = p.rsample()
        kept = p.log_prob(z)
    found = p.log_prob(z)
    assert found.requires_grad
    assert not kept.requires_grad
    with torch.inference_mode():
        z = p.rsample()
        last = p.log_prob(z)
        assert p.log_prob(z) is last
        z += 1
    assert (p.log_prob(z) - last).abs().max() > 1e-2


def test_a_kept_log_density_follows_optimizers_and_the_base():
    """Pyro's own optimizer steps by `.data`, which PyTorch counts nowhere."""
    flow = bent()
    loc = torch.zeros(2)
    flow.base = dist.Normal(loc, 1.0).to_event(1)
    p = PyroDistribution(flow.distribution())
    z = p.rsample()
    before = p.log_prob(z)
    before.backward(retain_graph=True)
    pyro.optim.ClippedAdam({"lr": 0.1})(flow.parameters())
    after = p.log_prob(z)
    assert (after - before).abs() > 1e-2
    near(after, flow.log_prob(z), 1e-5)
    z = p.rsample()
    before = p.log_prob(z)
    loc.add_(1.0)
    assert (p.log_prob(z) - before).abs() > 1e-2


@pytest.mark.parametrize("make", [of_flow, of_posterior])
def test_a_log_density_is_kept_no_longer_than_its_draw(make):
    p = PyroDistribution(make())
    z = p.rsample()
    kept = weakref.ref(p.log_prob(z))
    assert kept() is p.log_prob(z)
    del z
    assert kept() is None


def test_copies_keep_no_log_density(solves):
    p = PyroDistribution(of_flow()).has_rsample_(False)
    p.rsample()
    z = p.rsample().detach()
    expected = p.log_prob(z)
    for copied in (copy.deepcopy(p), copy.copy(p), pickle.loads(pickle.dumps(p))):
        assert not copied.has_rsample
        solves.clear()
        near(copied.log_prob(z), expected, 1e-5)
        assert solves == [5]


@pytest.mark.parametrize("make", [of_flow, of_posterior])
def test_shapes_are_those_of_pyros_distributions(make, solves):
    p, normal = PyroDistribution(make()), dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)
    mask = torch.tensor([True, False, True, False, True])
    changes = [
        lambda d: d,
        lambda d: d.expand((4, 5)),
        lambda d: d.expand_by((4, 3)),
        lambda d: d.expand((4, 5)).to_event(1),
        lambda d: d.to_event(1).expand((3,)),
        lambda d: d.mask(mask),
        lambda d: d.expand((4, 5)).mask(mask).to_event(1),
    ]
    for change in changes:
        found, expected = change(p), change(normal)
        assert (found.batch_shape, found.event_shape) == (
            expected.batch_shape,
            expected.event_shape,
        )
        for shape in [(), (2,)]:
            x = found(torch.Size(shape))
            assert x.shape == expected(torch.Size(shape)).shape
            assert x.requires_grad
            assert found.log_prob(x).shape == expected.log_prob(x).shape
    assert len(solves) == 2 * len(changes)
    masked = p.mask(mask)
    x = masked()
    near(masked.log_prob(x), p.log_prob(x) * mask, 1e-4)
    assert p.support is torch.distributions.constraints.real_vector
    assert not p.has_enumerate_support


def test_a_flow_without_a_context_has_the_batch_of_its_plates():
    flow = bent()

    def model(x=None):
        with pyro.plate("columns", 3), pyro.plate("rows", 5):
            pyro.sample("x", PyroDistribution(flow.distribution()), obs=x)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    x, log_prob = (trace.nodes["x"][name] for name in ("value", "log_prob"))
    assert (x.shape, log_prob.shape) == ((5, 3, 2), (5, 3))
    assert len(x.reshape(-1, 2).unique(dim=0)) == 15
    given = poutine.trace(poutine.scale(model, 2.0)).get_trace(x)
    near(given.log_prob_sum(), 2 * flow.log_prob(x).sum(), 1e-3)


def test_elbos_and_their_gradients_are_those_of_the_flow(solves):
    """For each kind of ELBO, as there is no closed form of the divergence."""
    flow, context = conditional()
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        with pyro.plate("rows", 5):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.zeros(5))

    def guide():
        pyro.module("flow", flow)
        with pyro.plate("rows", 5):
            pyro.sample("z", PyroDistribution(flow.distribution(context)))

    torch.manual_seed(1)
    likelihood = lambda z: dist.Normal(z.sum(-1), 1.0).log_prob(torch.zeros(5))  # noqa: E731
    bound = cnf.elbo(flow.distribution(context), prior, likelihood).value.sum()
    expected = torch.autograd.grad(-bound, [*flow.parameters()])
    for number, elbo in enumerate([Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(0.9)], 2):
        flow.zero_grad()
        torch.manual_seed(1)
        loss = elbo.loss_and_grads(model, guide)
        if not isinstance(elbo, RenyiELBO):  # which draws twice at least
            assert abs(loss + bound.item()) < 1e-3
            for parameter, gradient in zip(flow.parameters(), expected, strict=True):
                near(parameter.grad, gradient, 1e-4)
        assert len(solves) == number + isinstance(elbo, RenyiELBO)


class Encoder(PyroModule):
    """A guide of a small VAE, whose modules register themselves."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.posterior = cnf.FlowPosterior(2, context_dim=8, hidden=(8,))

    def forward(self, x, size):
        with pyro.plate("rows", len(x), subsample_size=size) as rows:
            h = self.features(x[rows]).tanh()
            loc, log_scale = self.head(h).chunk(2, -1)
            pyro.sample("z", PyroDistribution(self.posterior(h, loc, log_scale.exp())))


def test_a_posterior_trains_as_the_guide_of_a_vae_with_subsampling(solves):
    x, decoder, guide = torch.randn(20, 3), nn.Linear(2, 3), Encoder()

    def model(x, size):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x), subsample_size=size) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[rows])

    before = [parameter.clone() for parameter in guide.parameters()]
    many = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    whole, part = (many.loss(model, guide, x, size) for size in (20, 10))
    assert solves == [2000, 1000]
    assert abs(part / whole - 1) < 0.2  # of the same scale
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceMeanField_ELBO())
    for _ in range(30):
        svi.step(x, 10)
    assert solves[2:] == [10] * 30
    assert all(not torch.equal(*pair) for pair in zip(before, guide.parameters(), strict=True))
    assert many.loss(model, guide, x, 20) < whole
    names = pyro.get_param_store().keys()
    assert sum(name.startswith("posterior$$$flow.field") for name in names) == len(
        list(guide.posterior.parameters())
    )


def test_noisy_columns_are_observed_and_have_no_reparameterised_draw():
    flow = cnf.ffjord(1, hidden=(8,), columns=[Dequantize(1)])
    p = PyroDistribution(flow.distribution())
    assert not p.has_rsample
    assert p.support.is_discrete
    x = p((4,))
    assert torch.equal(x, x.round())
    assert p.log_prob(x).requires_grad


def bounded_prior(**options):
    """A model whose rows of latents have a flow over [0, 2] × [1, ∞) as their prior."""
    columns = [Concatenate([Bounded([0.0], [2.0]), Positive([1.0])], [[0], [1]])]
    flow = cnf.ffjord(2, hidden=(8,), columns=columns, **options)
    context = torch.randn(3, 1) if options else None

    def model():
        with pyro.plate("rows", 3):
            pyro.sample("z", PyroDistribution(flow.distribution(context)))

    return model, flow, context


@pytest.mark.parametrize("guide", [AutoFlow, AutoNormal])
@pytest.mark.parametrize("options", [{}, {"context_dim": 1}])
def test_a_flow_with_bounded_columns_is_a_prior_of_latents(guide, options):
    """The latents of a new one are standard normal where they are unconstrained."""
    model, flow, context = bounded_prior(**options)
    guide = guide(model, init_loc_fn=init_to_feasible, init_scale=1.0)
    z = guide()["z"]
    assert z.shape == (3, 2)
    assert flow.support(context).check(z).all()
    assert not flow.support(context).check(-z).any()
    assert abs(Trace_ELBO().loss(model, guide)) < 1e-3
    if isinstance(guide, AutoFlow):
        assert abs(TraceMeanField_ELBO().loss(model, guide)) < 1e-3


@pytest.mark.parametrize("options", [{}, {"context_dim": 1}])
def test_nuts_samples_latents_within_the_flows_support(options):
    model, flow, context = bounded_prior(**options)
    kernel = NUTS(model, step_size=0.5, adapt_step_size=False, max_tree_depth=2)
    sampler = MCMC(kernel, num_samples=4, warmup_steps=1, disable_progbar=True)
    sampler.run()
    z = sampler.get_samples()["z"]
    assert z.shape == (4, 3, 2)
    assert flow.support(context).check(z).all()
    assert (z[0] != z[-1]).all()


def test_constant_columns_have_no_latents():
    layer = Concatenate([Positive([1.0]), Constant([7.0])], [[1], [0]])
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1)
    flow = cnf.Flow(base, [layer])
    guide = AutoNormal(lambda: pyro.sample("z", PyroDistribution(flow.distribution())))
    z = guide()["z"]
    assert (z[0] == 7, z[1] > 1) == (True, True)


def test_draws_without_rsample_have_the_gradient_of_the_score():
    p = PyroDistribution(of_flow()).has_rsample_(False).expand((2, 5))
    z = p()
    assert not z.requires_grad
    parts = p.score_parts(z)
    assert parts.log_prob.requires_grad
    assert parts.score_function is parts.log_prob


# A guide of a model's latents


X = torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.0, 1.2]])
Y = torch.tensor([1.0, 0.5, 2.0])
NOISE = 0.2


def regression():
    """Return a linear model, its log evidence, and the best bound of independent Gaussians."""

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal((w * X).sum(-1), NOISE), obs=Y)

    covariance = X @ X.T + NOISE**2 * torch.eye(3)
    evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(Y)
    precision = torch.eye(2) + X.T @ X / NOISE**2
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    return model, evidence.item(), (evidence - gap).item()


def trained(model, guide, steps, particles=10, rate=0.05):
    torch.manual_seed(0)
    pyro.clear_param_store()
    schedule = pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.05 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, schedule, elbo)
    for _ in range(steps):
        svi.step()
    return guide


@torch.no_grad()
def bound(model, guide, particles=4000):
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    return -elbo.loss(model, guide)


def test_the_bound_of_a_guide_reaches_a_known_evidence():
    model, evidence, independent = regression()
    guide = trained(model, AutoFlow(model, hidden=(32,)), 150, rate=0.1)
    found = bound(model, guide.accurate())
    assert independent < evidence - 1.5
    assert evidence - 0.2 < found < evidence + 0.01


def positive():
    """Two latents that are constrained, and three in a plate."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, rate), obs=torch.tensor([1.0, -2.0, 0.5]))


def bent_guide(model=positive, **options):
    guide = AutoFlow(model, hidden=(8,), zero_last=False, **options)
    guide()
    enlarged(guide.flow, 3)
    return guide


def test_a_new_guide_is_a_gaussian_at_the_place_to_start_at(solves):
    model = regression()[0]
    options = {"init_loc_fn": init_to_feasible, "init_scale": 0.3}
    found, expected = AutoFlow(model, **options), AutoDiagonalNormal(model, **options)
    found(), expected()
    torch.manual_seed(1)
    z = found.get_posterior().sample((4,))
    torch.manual_seed(1)
    near(z, expected.get_posterior().sample((4,)), 1e-6)
    near(found.get_posterior().log_prob(z), expected.get_posterior().log_prob(z), 1e-5)
    pyro.clear_param_store()
    start = AutoFlow(positive, init_loc_fn=lambda site: site["fn"].mean, init_scale=1e-4)()
    near(start["rate"], torch.tensor(2.0), 1e-2)
    near(start["share"], torch.full((3,), 1 / 3), 1e-2)


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO, TraceMeanField_ELBO, lambda **given: RenyiELBO(0.0, **given)]
)
def test_every_bound_takes_one_solve_for_all_particles(elbo, solves):
    """Also the one by divergences, for which Pyro's own points lose their log-density."""
    guide = bent_guide(rtol=1e-5, atol=1e-5)
    posterior = guide.get_posterior()
    solves.clear()
    torch.manual_seed(2)
    elbo = elbo(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    found = elbo.loss(positive, guide)
    assert solves == [10]
    torch.manual_seed(2)
    z = posterior.expand((10, 1)).sample()
    log_ratios = torch.stack([log_ratio(guide, each) for each in z])
    expected = log_ratios.mean()
    if isinstance(elbo, RenyiELBO):
        expected = log_ratios.logsumexp(0) - torch.tensor(10.0).log()
    assert abs(found + expected) < 2e-3


def log_ratio(guide, z):
    """Return log p(x, z) − log q(z) of one unconstrained z, by the model with its values given."""
    values, volume = {}, torch.zeros(())
    for site, unconstrained in guide._unpack_latent(z.squeeze(0)):
        transform = torch.distributions.biject_to(site["fn"].support)
        values[site["name"]] = transform(unconstrained)
        volume = volume + transform.log_abs_det_jacobian(unconstrained, values[site["name"]]).sum()
    log_p = poutine.trace(poutine.condition(positive, values)).get_trace().log_prob_sum()
    return log_p + volume - guide.get_posterior().log_prob(z.squeeze(0))


def test_an_accurate_guide_shares_parameters():
    new = AutoFlow(positive)
    for method in (new.accurate, new.median, lambda: new.quantiles([0.5])):
        refused("^Expected a guide that has been called; got a new one: call it .*$", method)
    guide = bent_guide(rtol=1e-1, atol=1e-1)
    accurate = guide.accurate()
    assert [*map(id, accurate.parameters())] == [*map(id, guide.parameters())]
    affine, z = guide.get_transform().parts[1], guide.get_posterior().sample((20,))
    exact = exact_log_prob(guide.flow, affine.inv(z))
    exact -= affine.log_abs_det_jacobian(z, z).detach()
    near(accurate.get_posterior().log_prob(z).double(), exact, 1e-3)
    assert (guide.get_posterior().log_prob(z) - exact).abs().max() > 1e-2
    assert guide.model is accurate.model
    names = {name for name, _ in accurate.named_pyro_params()}
    assert {"loc", "scale"} < names


def test_medians_and_quantiles_are_those_of_draws():
    guide = AutoFlow(positive, init_scale=0.5)
    guide()
    gaussian = AutoDiagonalNormal(positive, init_scale=0.5)
    gaussian()
    with torch.no_grad():
        gaussian.loc.copy_(guide.loc)
    found, expected = (each.quantiles([0.1, 0.5, 0.9]) for each in (guide, gaussian))
    assert {name: each.shape for name, each in found.items()} == {
        name: each.shape for name, each in expected.items()
    }
    for name, each in found.items():
        near(each, expected[name], 0.05)
        near(guide.median()[name], each[1], 0.05)


def test_predictions_and_other_bases():
    guide = bent_guide(base=dist.StudentT(5.0, 0.0, 1.0))
    assert isinstance(guide.flow.base.base_dist, torch.distributions.StudentT)
    drawn = Predictive(positive, guide=guide, num_samples=6, parallel=True)()
    assert {name: tuple(each.shape) for name, each in drawn.items()} == {
        "rate": (6, 1),
        "share": (6, 1, 3),
        "z": (6, 3),
        "x": (6, 3),
    }

    def double():
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    pyro.clear_param_store()
    guide = AutoFlow(double, hidden=(8,))
    assert guide()["z"].dtype == torch.float64
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float64}


# Mistakes


def test_other_distributions_and_scales_are_refused():
    refused(
        r"^Expected flow.distribution\(context\), or what a FlowPosterior returns; got Normal: ",
        *(PyroDistribution, dist.Normal(0.0, 1.0)),
    )
    refused("^Expected init_scale above zero; got 0.0$", AutoFlow, positive, init_scale=0.0)
    refused("^Expected solver settings among .*; got hiden$", AutoFlow, positive, hiden=(8,))
    refused("^Expected a context of shape", AutoFlow, positive, context_dim=2)
    message = (
        r"^Expected a base of Pyro's over numbers, without a batch; got Normal\(.*: write it as "
    )
    for base in (torch.distributions.Normal(0.0, 1.0), dist.Normal(torch.zeros(2), 1.0)):
        refused(message, AutoFlow, positive, base=base)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_program_is_refused():
    guide = bent_guide()
    refused(
        "Expected a program that is not traced", JitTrace_ELBO().loss_and_grads, positive, guide
    )


def test_pyro_is_imported_when_it_is_used():
    code = "import sys, cnf; cnf.adapters; assert not {'pyro', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cnf.adapters.pyro.AutoFlow.__name__ == "AutoFlow"


# Slow


def banana():
    """A posterior that is bent, with evidence 1: N(0, 2) for one latent, N(a²/2, 1/2) given it."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    a, b = z.unbind(-1)
    prior = dist.Normal(0.0, 1.0)
    bent = dist.Normal(0.0, 2.0).log_prob(a) + dist.Normal(a**2 / 2, 0.5).log_prob(b)
    pyro.factor("bent", bent - prior.log_prob(a) - prior.log_prob(b))


@pytest.mark.slow
def test_a_bent_posterior_is_beyond_gaussians_and_not_flows():
    found = bound(banana, trained(banana, AutoFlow(banana), 1000, rate=0.01).accurate())
    gaussian = bound(banana, trained(banana, AutoMultivariateNormal(banana), 1000))
    assert -0.4 < found < 0.05
    assert gaussian < found - 0.4


@pytest.mark.slow
def test_neutra_samples_the_posterior_in_the_coordinates_of_the_base():
    model, _, _ = regression()
    guide = trained(model, AutoFlow(model, hidden=(32,)), 150, rate=0.1)
    neutra = NeuTraReparam(guide.accurate())
    kernel = NUTS(neutra.reparam(model), max_tree_depth=3)
    sampler = MCMC(kernel, num_samples=150, warmup_steps=30, disable_progbar=True)
    sampler.run()
    base = sampler.get_samples()["w_shared_latent"]
    assert base.shape == (150, 2)
    w = neutra.transform_sample(base.unsqueeze(-2))["w"].squeeze(-2)
    precision = torch.eye(2) + X.T @ X / NOISE**2
    mean = precision.inverse() @ X.T @ Y / NOISE**2
    standardized = (w - mean) @ torch.linalg.cholesky(precision)
    assert standardized.mean(0).abs().max() < 0.5
    assert (standardized.std(0).log().abs() < 0.4).all()
