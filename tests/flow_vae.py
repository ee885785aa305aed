"""The VAE of `plain_vae.py` with a flow for its posterior."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.distributions import Independent, Normal

import cnf

LATENT = 6


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
        self.loc = nn.Linear(64, LATENT)
        self.log_var = nn.Linear(64, LATENT)
        self.posterior = cnf.FlowPosterior(LATENT, context_dim=64)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x):
        h = self.encoder(x)
        loc, log_var = self.loc(h), self.log_var(h)
        z, log_q = self.posterior(h, loc, torch.exp(0.5 * log_var)).rsample_and_log_prob()
        kl = log_q - Independent(Normal(torch.zeros_like(loc), 1.0), 1).log_prob(z)
        return self.decoder(z), kl


def loss_of(model, x):
    logits, kl = model(x)
    bce = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    return (bce + kl).mean()


def train(model, x, steps=300):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (100,))]
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model
