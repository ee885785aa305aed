"""The posterior where the true one has a closed form."""

from itertools import pairwise

import torch
from encoders import PRIOR, Encoder, trained
from torch.distributions import Independent, MultivariateNormal, Normal

import cnf


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
    encoder.posterior = encoder.posterior.with_solver(rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        gaps = []
        for samples, times in ((1, 2000), (20, 100), (400, 5)):
            bounds = cnf.iwae(encoder(x).expand((times, 8)), PRIOR, log_likelihood, samples)
            gaps.append((evidence - bounds).mean().item())
    assert gaps[0] < 0.01
    # Gaps are positive and fall, up to noise of 1e-3 in the means.
    assert all(-4e-3 < later < before + 4e-3 for before, later in pairwise(gaps))
    assert abs(gaps[2]) < 4e-3
