"""A mixture of normal distributions with noise of any scale: density, and expected clean rows."""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import Self

import torch
from torch import Tensor, nn

FLOOR = 0.05  # least standard deviation of a component, where that of a column is about 1
FIRST_VARIANCE = 0.5  # of all components
POOLED_ROWS = 4.0  # of the components' mean variance that each one is given beforehand
PASS_ROWS = 4096  # at once
LEAST_COUNT = 1e-6  # rows of a component that has none


class NoisyMixture(nn.Module):
    """A mixture of axis-aligned normal distributions, seen through noise of standard deviation σ.

        p_σ(y) = Σ_k w_k N(y; μ_k, V_k + σ² I),
        E[x | y] = Σ_k r_k(y) (μ_k + V_k (V_k + σ² I)⁻¹ (y − μ_k)),   r_k ∝ w_k N(y; μ_k, V_k + σ²)

    for y = x + σ ε with standard normal ε. Unlike `cnf.mixtures.normal.NormalMixture`, whose full
    covariances would be factorised for each σ and component, it is cheap at many scales of noise.

    Args:
        components: K, the number of components.
        dim: The number of columns.

    Example:
        >>> mixture = NoisyMixture.fit(torch.randn(200, 3), components=4)
        >>> mixture.denoise(torch.zeros(2, 5, 3), torch.tensor([0.1, 1.0])).shape
        torch.Size([2, 5, 3])
        >>> mixture.log_prob(torch.zeros(5, 3), torch.tensor(0.1)).shape
        torch.Size([5])
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, components: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("log_weights", torch.zeros(components).log_softmax(0))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("variances", torch.ones(components, dim))

    @classmethod
    @torch.no_grad()
    def fit(cls, x: Tensor, components: int, passes: int = 15, seconds: float = inf) -> Self:
        """Return a mixture fitted to rows by expectation maximisation from random rows.

        Args:
            x: Rows (rows, dim), the columns' standard deviations about 1 or less.
            components: K, at most the number of rows.
            passes: Passes over the rows, at most.
            seconds: Seconds after which no pass begins, but for the first.

        Source: Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the
        EM algorithm.
        """
        mixture, begin = cls(components, x.shape[1]).to(x), perf_counter()
        chosen = torch.randperm(len(x))[:components].to(x.device)
        mixture.means.copy_(x[chosen])
        mixture.variances.fill_(FIRST_VARIANCE)
        for done in range(passes):
            if done and perf_counter() - begin > seconds:
                break
            mixture.improve(x)
        return mixture

    @torch.no_grad()
    def improve(self, x: Tensor) -> None:
        """Take a pass of expectation maximisation over rows (rows, dim), some at a time."""
        counts, sums, squares = self.log_weights * 0, self.means * 0, self.means * 0
        for part in x.split(PASS_ROWS):
            shares = self.logits(part, self.variances).softmax(-1)
            counts += shares.sum(0)
            sums += shares.mT @ part
            squares += shares.mT @ part.square()
        rows = counts + LEAST_COUNT
        self.log_weights.copy_((rows / rows.sum()).log())
        rows = rows.unsqueeze(1)
        self.means.copy_(sums / rows)
        variances = (squares / rows - self.means.square()).clamp(min=0.0)
        pooled = self.log_weights.exp() @ variances
        shrunk = (rows * variances + POOLED_ROWS * pooled) / (rows + POOLED_ROWS)
        self.variances.copy_(shrunk.clamp(min=FLOOR**2))

    def logits(self, y: Tensor, variances: Tensor) -> Tensor:
        """Return log w_k + log N(y; μ_k, variances), but for −½ dim log 2π: (…, rows, K).

        Shapes: y (…, rows, dim), variances (…, K, dim).
        """
        precisions = variances.reciprocal()
        scaled = self.means * precisions
        squares = y.square() @ precisions.mT - 2 * y @ scaled.mT
        constants = (self.means * scaled + variances.log()).sum(-1)
        return self.log_weights - 0.5 * (squares + constants.unsqueeze(-2))

    def denoise(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x | y], the expected rows without noise.

        Shapes: y (levels, rows, dim), σ (levels,) → (levels, rows, dim).
        """
        variances = self.variances + sigma[:, None, None].square()
        shares, kept = self.logits(y, variances).softmax(-1), self.variances / variances
        return shares @ (self.means * (1 - kept)) + (shares @ kept) * y

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_σ(x), but for −½ dim log 2π, of rows (rows, dim) for a scalar σ: (rows,)."""
        return self.logits(x, self.variances + sigma.square()).logsumexp(-1)
