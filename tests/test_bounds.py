"""Bounds against a known log p(x), and posteriors that are trained by them."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import DOUBLE, near, standard
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, OneHotCategorical
from torch.distributions import kl_divergence as kl
from torch.nn.functional import softplus

import cnf

A = torch.tensor([[1.0, 0.8], [0.6, 1.0], [1.0, 1.0]], dtype=DOUBLE)
NOISE, PRIOR, PRIOR32 = 0.5, standard(), standard(dtype=torch.float32)


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=DOUBLE)


def likelihood(x, weight=A):
    return lambda z: Independent(Normal(z @ weight.T, NOISE), 1).log_prob(x)


def evidence(x, weight=A):
    covariance = weight @ weight.T + NOISE**2 * torch.eye(3, dtype=x.dtype)
    return MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)


def true_posterior(x, weight=A):
    precision = torch.eye(2, dtype=x.dtype) + weight.T @ weight / NOISE**2
    loc = x @ weight / NOISE**2 @ precision.inverse()
    return MultivariateNormal(loc, precision_matrix=precision)


def best_factorised(x, weight=A):
    true = true_posterior(x, weight)
    scale = true.precision_matrix.diagonal(dim1=-2, dim2=-1) ** -0.5
    return Independent(Normal(true.loc, scale), 1)


@pytest.mark.parametrize("samples", [1, 7])
def test_the_true_posterior_has_no_gap(x, samples):
    bound = cnf.elbo(true_posterior(x), PRIOR, likelihood(x), samples=samples)
    torch.testing.assert_close(bound.value, evidence(x))
    torch.testing.assert_close(bound.log_likelihood - bound.kl, bound.value)
    found = cnf.iwae(true_posterior(x), PRIOR, likelihood(x), samples=samples)
    torch.testing.assert_close(found, evidence(x))


def test_elbo_is_log_p_less_the_divergence_from_the_true_posterior(x):
    q = best_factorised(x)
    as_one = MultivariateNormal(q.mean, q.variance.diag_embed())
    found = cnf.elbo(q, PRIOR, likelihood(x), samples=100_000)
    near(found.value, evidence(x) - kl(as_one, true_posterior(x)), 0.02)
    near(found.kl, kl(q, Independent(Normal(torch.zeros_like(q.mean), 1.0), 1)), 0.02)
    bound = cnf.elbo(q, PRIOR, likelihood(x), samples=3, beta=0.25)
    torch.testing.assert_close(bound.value, bound.log_likelihood - 0.25 * bound.kl)


def test_iwae_rises_to_log_p_from_below(x):
    true, gaps = true_posterior(x), []
    # A Gaussian as wide as the true posterior in each coordinate: all weights are bounded.
    wide = Independent(Normal(true.mean, true.variance.sqrt()), 1)
    for samples in (1, 10, 100, 10_000):
        q = wide.expand((400 if samples < 1000 else 8, 4))
        found = cnf.iwae(q, PRIOR, likelihood(x), samples=samples, rows=40_000)
        gaps.append((evidence(x) - found.mean(0)).mean().item())
    assert gaps[0] > 1.5 * gaps[1] > 2.25 * gaps[2] > 0
    assert abs(gaps[3]) < 0.02


def test_chunks_are_one_sum_with_one_gradient(x):
    seen, q = [], best_factorised(x)

    def recorded(weight):
        def log_p(z):
            seen.append(z.shape[0])
            return likelihood(x, weight)(z)

        return log_p

    weight, other = A.clone().requires_grad_(), A.clone().requires_grad_()
    torch.manual_seed(1)
    found = cnf.iwae(q, PRIOR, recorded(weight), samples=7, rows=15)
    assert seen == [3, 3, 1]
    found.sum().backward()
    assert sorted(seen[3:]) == [1, 3, 3]
    torch.manual_seed(1)
    z = torch.cat([q.rsample((size,)) for size in (3, 3, 1)])
    logs = likelihood(x, other)(z) + PRIOR.log_prob(z) - q.log_prob(z)
    expected = logs.logsumexp(0) - math.log(7)
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weight.grad, other.grad)
    seen.clear()
    with torch.no_grad():  # more data than rows: one draw at a time
        cnf.iwae(q, PRIOR, recorded(weight), samples=3, rows=1)
    assert seen == [1, 1, 1]


def test_mistakes(x):
    arguments = {"posterior": best_factorised(x), "prior": PRIOR, "log_likelihood": likelihood(x)}
    shape = r"'s log-density to have the shape of log q\(z \| x\), \(4,\); got"
    categorical = OneHotCategorical(torch.ones(4, 2))
    for name, value, message in (
        ("samples", 0, "Expected samples of at least 1; got 0"),
        ("beta", -1.0, "Expected beta of at least 0; got -1.0"),
        ("log_likelihood", lambda z: torch.zeros(4, 3), rf"likelihood{shape} \(4, 3\)"),
        ("prior", Normal(0.0, 1.0), rf"the prior{shape} \(4, 2\). .*Independent"),
        ("posterior", categorical, "Expected a posterior with rsample.*; got OneHotCategorical"),
    ):
        with pytest.raises(ValueError, match=message):
            cnf.elbo(**{**arguments, name: value})
    for name in ("samples", "rows"):
        with pytest.raises(ValueError, match=f"Expected {name} of at least 1; got 0"):
            cnf.iwae(**arguments, **{"samples": 2, name: 0})


class Encoder(nn.Module):
    def __init__(self, features, hidden):
        super().__init__()
        self.head = nn.Linear(features, 4)
        self.posterior = cnf.FlowPosterior(2, features, hidden=hidden)

    def forward(self, h, accurate=False):
        loc, scale = self.head(h).chunk(2, -1)
        posterior = self.posterior.accurate() if accurate else self.posterior
        return posterior(h, loc, softplus(scale))


def train(posterior, parameters, log_likelihood, *, steps, samples, start=1.0, rate=2e-2):
    """Maximise the evidence lower bound, whose KL term weighs more and more."""
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        beta = min(1.0, start + 2 * step / steps)
        bound = cnf.elbo(posterior(), PRIOR32, log_likelihood, samples=samples, beta=beta)
        optimizer.zero_grad()
        (-bound.value.mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()


def test_a_gaussian_posterior():
    weight, x = A.float().requires_grad_(), torch.randn(8, 3)
    log_likelihood, evidences = likelihood(x, weight), evidence(x, weight)
    (exact,) = torch.autograd.grad(evidences.sum(), weight)
    evidences, best = evidences.detach(), best_factorised(x, weight.detach())
    encoder, numbers = Encoder(3, hidden=(16,)), {"steps": 120, "samples": 16, "rate": 3e-2}
    train(lambda: encoder(x), [*encoder.parameters()], log_likelihood, **numbers)
    bound = cnf.elbo(best, PRIOR32, log_likelihood, samples=500)
    assert (evidences - bound.value).mean() > 0.5
    bound = cnf.elbo(encoder(x, accurate=True), PRIOR32, log_likelihood, samples=2000)
    assert -0.004 < (evidences - bound.value).mean() < 0.03
    # The gradient to the decoder is that of log p(x) where the posterior is the true one: it is
    # off in the first order of what its bound is off in the second. By the Gaussian of the bound
    # above it is off by 0.6, and by IWAE with 20 draws by 0.3.
    (found,) = torch.autograd.grad(bound.value.sum(), weight)
    assert (found - exact).norm() < 0.15 * exact.norm()
    many = cnf.iwae(encoder(x).expand((10, 8)), PRIOR32, log_likelihood, samples=200, rows=8000)
    (found,) = torch.autograd.grad(many.mean(0).sum(), weight)
    assert (found - exact).norm() < 0.06 * exact.norm()
    encoder.posterior = encoder.posterior.with_solver(rtol=1e-5, atol=1e-5)
    gaps = []
    with torch.no_grad():
        for samples, times in ((1, 1000), (20, 50), (200, 5)):
            bounds = cnf.iwae(encoder(x).expand((times, 8)), PRIOR32, log_likelihood, samples)
            gaps.append((evidences - bounds).mean().item())
    assert gaps[0] < 0.03
    assert abs(gaps[2]) < 8e-3
    # Gaps are positive and fall, up to noise of 2e-3 in the means.
    assert all(-8e-3 < later < before + 8e-3 for before, later in pairwise(gaps))


# The mean and standard deviation of x given z, x, and how the posterior is trained.
SHAPES = {
    "banana": (lambda z: z[..., 1] + z[..., 0] ** 2 - 1, 0.3, 0.0, (32, 32), (200, 64, 2e-2)),
    "bimodal": (lambda z: z[..., 0] ** 2 + 0.5 * z[..., 1], 0.6, 1.5, (16, 16), (120, 128, 3e-2)),
}


@pytest.mark.parametrize("shape", [pytest.param("banana", marks=pytest.mark.slow), "bimodal"])
def test_a_bent_and_a_split_posterior(shape):
    mean, noise, x, hidden, numbers = SHAPES[shape]
    numbers = dict(zip(("steps", "samples", "rate"), numbers, strict=True))

    def log_likelihood(z):
        return Normal(x, noise).log_prob(mean(z))

    axis = torch.linspace(-6, 6, 601)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    joint = log_likelihood(grid) + PRIOR32.log_prob(grid)
    log_p = joint.double().logsumexp(0) + 2 * (axis[1] - axis[0]).double().log()
    encoder, h = Encoder(4, hidden=hidden), torch.ones(1, 4)
    weights = [*encoder.parameters()]
    train(lambda: encoder(h), weights, log_likelihood, start=0.1, **numbers)
    with torch.no_grad():
        bound = cnf.elbo(encoder(h, accurate=True), PRIOR32, log_likelihood, samples=2000)
    gap, gaps = (log_p - bound.value).item(), []
    for start in (0.0, 1.0):  # of Gaussians of any covariance
        loc = torch.tensor([[start, 0.0]], requires_grad=True)
        tril = (0.5 * torch.eye(2).unsqueeze(0)).requires_grad_()

        def gaussian(loc=loc, tril=tril):
            diagonal = tril.diagonal(dim1=1, dim2=2).abs() + 1e-4
            return MultivariateNormal(loc, scale_tril=tril.tril(-1) + diagonal.diag_embed())

        train(gaussian, [loc, tril], log_likelihood, steps=60, samples=100, rate=5e-2)
        with torch.no_grad():
            bound = cnf.elbo(gaussian(), PRIOR32, log_likelihood, samples=4000)
        gaps.append((log_p - bound.value).item())
    assert min(gaps) > 0.5
    assert -0.01 < gap < 0.2 * min(gaps)


# The changes of a VAE in plain PyTorch.
CHANGES = {
    "import torch\n": "import torch\nimport cnf\nfrom torch.distributions import Normal\n",
    "self.decoder =": "self.posterior = cnf.FlowPosterior(LATENT, context_dim=64)\n"
    "        self.decoder =",
    "z = loc + torch.exp(0.5 * log_var) * torch.randn_like(loc)": "z, log_q = self.posterior("
    "h, loc, torch.exp(0.5 * log_var)).rsample_and_log_prob()",
    "-0.5 * torch.sum(1 + log_var - loc.pow(2) - log_var.exp(), dim=1)": "log_q - Normal(0.0, 1.0)"
    ".log_prob(z).sum(1)",
}


@pytest.mark.slow  # a notebook compares the two as well
def test_any_vae_trains_better_with_a_few_changed_lines():
    """On scikit-learn's digits in black and white."""
    x = (torch.from_numpy(load_digits().data).float() > 8).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    plain = (Path(__file__).parent / "plain_vae.py").read_text()
    flow = plain
    for old, new in CHANGES.items():
        assert flow.count(old) == 1
        flow = flow.replace(old, new)
    assert len({*flow.splitlines()} - {*plain.splitlines()}) < 10
    losses = []
    for source in (plain, flow):
        module = {}
        exec(source, module)
        torch.manual_seed(0)
        model = module["train"](module["VAE"](), x[:1500])
        with torch.no_grad():
            losses.append(module["loss_of"](model, x[1500:].repeat(20, 1)).item())
    assert model.posterior.flow.field.last.linear.weight.abs().max() > 0.01  # it has left its start
    assert losses[1] < losses[0] < 22
