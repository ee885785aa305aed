"""The posterior against true ones: in closed form, and on a grid."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn.functional import softplus

import cnf

PRIOR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


class Encoder(nn.Module):
    """A loc and a scale beside its features, and the posterior."""

    def __init__(self, features, hidden):
        super().__init__()
        self.head = nn.Linear(features, 4)
        self.posterior = cnf.FlowPosterior(2, features, hidden=hidden)

    def forward(self, h, careful=False):
        loc, scale = self.head(h).chunk(2, -1)
        posterior = self.posterior.accurate() if careful else self.posterior
        return posterior(h, loc, softplus(scale))


def trained(encoder, h, log_likelihood, *, steps, samples, start=1.0):
    """Train by the evidence lower bound, whose KL term weighs more and more."""
    optimizer = torch.optim.Adam(encoder.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        beta = min(1.0, start + 2 * step / steps)
        bound = cnf.elbo(encoder(h), PRIOR, log_likelihood, samples=samples, beta=beta)
        optimizer.zero_grad()
        (-bound.value.mean()).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def test_a_linear_decoder_of_a_gaussian():
    weight = torch.tensor([[1.0, 0.8], [0.6, 1.0], [1.0, 1.0]], requires_grad=True)
    noise, x = 0.5, torch.randn(8, 3)

    def log_likelihood(z):
        return Independent(Normal(z @ weight.T, noise), 1).log_prob(x)

    covariance = weight @ weight.T + noise**2 * torch.eye(3)
    evidence = MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    (exact,) = torch.autograd.grad(evidence.sum(), weight)
    evidence = evidence.detach()

    precision = torch.eye(2) + weight.detach().T @ weight.detach() / noise**2
    loc = x @ weight.detach() / noise**2 @ precision.inverse()
    best = Independent(Normal(loc, precision.diagonal() ** -0.5), 1)
    encoder = Encoder(3, hidden=(32,))
    trained(encoder, x, log_likelihood, steps=200, samples=32)

    gap = (evidence - cnf.elbo(best, PRIOR, log_likelihood, samples=1000).value).mean()
    assert gap > 0.5
    q = encoder(x, careful=True)
    bound = cnf.elbo(q, PRIOR, log_likelihood, samples=4000)
    assert -0.002 < (evidence - bound.value).mean() < 0.01
    # The gradient to the decoder is that of log p(x) where the posterior is the true one: it is
    # off in the first order of what its bound is off in the second.
    (found,) = torch.autograd.grad(bound.value.sum(), weight)
    assert (found - exact).norm() < 0.08 * exact.norm()
    many = cnf.iwae(encoder(x).expand((20, 8)), PRIOR, log_likelihood, samples=200, rows=8000)
    (found,) = torch.autograd.grad(many.mean(0).sum(), weight)
    assert (found - exact).norm() < 0.02 * exact.norm()
    with torch.no_grad():
        gaps = []
        for samples, times in ((1, 2000), (20, 100), (400, 5)):
            bounds = cnf.iwae(encoder(x).expand((times, 8)), PRIOR, log_likelihood, samples)
            gaps.append((evidence - bounds).mean().item())
    print(gaps)
    assert gaps[0] < 0.01
    # From below and down, but for the chance in the means and the training solver's error.
    assert all(-4e-3 < later < before + 4e-3 for before, later in pairwise(gaps))
    assert abs(gaps[2]) < 4e-3


SHAPES = {
    "banana": (lambda z: z[..., 1] + z[..., 0] ** 2 - 1, 0.0, 0.3),
    "bimodal": (lambda z: z[..., 0] ** 2 + 0.5 * z[..., 1], 1.5, 0.6),
}


def best_gaussian(log_likelihood, evidence):
    """The gap of the best Gaussian, of any covariance, that is found from two starts."""
    gaps = []
    for start in (0.0, 1.0):
        loc, tril = torch.tensor([[start, 0.0]]), 0.5 * torch.eye(2).unsqueeze(0)
        optimizer = torch.optim.Adam([loc.requires_grad_(), tril.requires_grad_()], 3e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)

        def gaussian(loc=loc, tril=tril):
            diagonal = tril.diagonal(dim1=1, dim2=2).abs() + 1e-4
            return MultivariateNormal(loc, scale_tril=tril.tril(-1) + diagonal.diag_embed())

        for _ in range(120):
            optimizer.zero_grad()
            bound = cnf.elbo(gaussian(), PRIOR, log_likelihood, samples=100)
            (-bound.value.sum()).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            bound = cnf.elbo(gaussian(), PRIOR, log_likelihood, samples=10_000)
        gaps.append((evidence - bound.value).item())
    return min(gaps)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bent_and_a_split_posterior(shape):
    mean, x, noise = SHAPES[shape]

    def log_likelihood(z):
        return Normal(x, noise).log_prob(mean(z))

    axis = torch.linspace(-6, 6, 601)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    joint = log_likelihood(grid) + PRIOR.log_prob(grid)
    evidence = joint.double().logsumexp(0) + 2 * (axis[1] - axis[0]).double().log()

    encoder, h = Encoder(4, hidden=(32, 32)), torch.ones(1, 4)
    trained(encoder, h, log_likelihood, steps=250, samples=128, start=0.1)
    with torch.no_grad():
        q = encoder(h, careful=True)
        bound = cnf.elbo(q, PRIOR, log_likelihood, samples=4000)
    gap = (evidence - bound.value).item()
    gaussian = best_gaussian(log_likelihood, evidence)
    assert gaussian > 0.5
    assert -0.01 < gap < 0.1 * gaussian
