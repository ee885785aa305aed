"""The posterior where the true one is bent or split, as a grid has it."""

import pytest
import torch
from encoders import PRIOR, Encoder, trained
from torch.distributions import MultivariateNormal, Normal

import cnf

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
    trained(encoder, h, log_likelihood, steps=220, samples=128, start=0.1)
    with torch.no_grad():
        q = encoder(h, careful=True)
        bound = cnf.elbo(q, PRIOR, log_likelihood, samples=4000)
    gap = (evidence - bound.value).item()
    gaussian = best_gaussian(log_likelihood, evidence)
    assert gaussian > 0.5
    assert -0.01 < gap < 0.1 * gaussian
