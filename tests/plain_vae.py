"""A VAE as one finds them: plain PyTorch, and nothing of this library."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

LATENT = 6


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
        self.loc = nn.Linear(64, LATENT)
        self.log_var = nn.Linear(64, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x):
        h = self.encoder(x)
        loc, log_var = self.loc(h), self.log_var(h)
        z = loc + torch.exp(0.5 * log_var) * torch.randn_like(loc)
        kl = -0.5 * torch.sum(1 + log_var - loc.pow(2) - log_var.exp(), dim=1)
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
