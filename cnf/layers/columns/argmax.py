"""A layer of categories."""

from collections.abc import Sequence
from math import lgamma

import torch
from torch import Tensor, inf, nan

from cnf.layers.columns.stochastic import StochasticLayer, uniform
from cnf.layers.layer import TransformResult
from cnf.utils.random import RowNoise


class Argmax(StochasticLayer):
    """The categorical layer x = argmax(z, 0) of an argmax flow, whose x numbers a category.

    With K categories of shares π, Gumbel noise g and v = ln π + g, category k is the largest of v
    with probability π_k. The flow models the K − 1 differences zⱼ = vⱼ − v_K, whose density is that
    of the multivariate logistic distribution,

        f(z) = (K − 1)! Π eⱼ / (Σ eⱼ)^K,    eⱼ = πⱼ e^(−zⱼ),    z_K = 0,

    which is smooth and has one mode. Towards the base z is drawn from q(z | x = k) = f(z) / π_k
    where k is the largest; the mean of log p(z) − log q(z | x) is a lower bound on the log-mass of
    x. The log-determinant of other numbers, which have no mass, is −∞, and of a missing value NaN.

    Args:
        shares: Shares of the categories, above 0; they are normalised to sum to 1.

    Shapes: (rows, K − 1) → (rows, 1), (rows,).

    Raises:
        ValueError: There are fewer than two categories, or a share is not above 0.

    Source: Hoogeboom et al. (2021), Argmax flows and multinomial diffusion; truncated Gumbels by
    Maddison, Tarlow and Minka (2014), A* sampling.

    Example:
        >>> layer = Argmax([0.5, 0.3, 0.2])
        >>> z, log_det = layer.inverse(torch.tensor([[0.0], [1.0], [2.0]]))
        >>> z.shape, layer(z)[0].flatten().tolist()
        (torch.Size([3, 2]), [0.0, 1.0, 2.0])
    """

    surjective = False
    log_shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        if len(shares) < 2 or not all(share > 0 for share in shares):
            raise ValueError(
                f"Expected shares above 0 of at least 2 categories; got {list(shares)}: drop the "
                "categories that never occur, and a column with a single one"
            )
        self.shares = [float(share) for share in shares]
        self.widths = len(shares) - 1, 1
        total = torch.tensor(self.shares, dtype=torch.float64)
        self.register_buffer("log_shares", (total / total.sum()).log().float())

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        x = self._with_reference(z).argmax(1, keepdim=True)
        return TransformResult(x.to(z), self._log_noise(z, x))

    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        invalid = ~self.in_range(x)
        category = x.masked_fill(invalid.unsqueeze(1), 0.0).long()
        v = self._gumbels(category, noise)
        z = v[:, :-1] - v[:, -1:]
        log_det = (-self._log_noise(z, category)).masked_fill(invalid, -inf)
        return TransformResult(z, log_det.masked_fill(x.isnan().squeeze(1), nan))

    def in_range(self, x: Tensor) -> Tensor:
        return ((x == x.floor()) & (x >= 0) & (x < len(self.shares))).squeeze(1)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a z for which the category is the largest by 1 or 2."""
        categories = torch.arange(len(self.shares) - 1, device=x.device)
        return torch.where(x == categories, 1.0, -1.0).to(x)

    def _gumbels(self, category: Tensor, noise: RowNoise | None) -> Tensor:
        """Draw v given the largest category: its value first, the others truncated below it."""
        like = self.log_shares.expand(len(category), -1)
        tiny = torch.finfo(like.dtype).tiny
        drawn = uniform(like, noise).clamp(min=tiny, max=1 - 1e-7)
        exponential = -drawn.log()  # e^(−g) of a Gumbel g
        largest = exponential.gather(1, category)
        v = -(largest + exponential * (-self.log_shares).exp()).log()
        return v.scatter(1, category, -largest.log())

    def _log_noise(self, z: Tensor, category: Tensor) -> Tensor:
        logits = self.log_shares - self._with_reference(z)
        count = len(self.shares)
        log_density = lgamma(count) + logits.sum(1) - count * logits.logsumexp(1)
        return log_density - self.log_shares[category.squeeze(1)]

    def _with_reference(self, z: Tensor) -> Tensor:
        """Append the last category's difference from itself, zero."""
        return torch.cat([z, z.new_zeros(len(z), 1)], 1)
