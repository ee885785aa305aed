"""A small encoder with the posterior, and its training."""

import torch
from torch import nn
from torch.distributions import Independent, Normal
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
