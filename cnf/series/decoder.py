"""The decoder of latent states: columns' means and noise, corrections of a baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu, softplus

from cnf.series.batch import SeriesBatch
from cnf.series.likelihoods import LOWEST_LOG_SCALE
from cnf.series.series import Series
from cnf.utils.registry import Registry

STATE_NOISE = 1.5  # the largest change of log σ by the state
RATES = (2.0, 12.0, 70.0, 400.0)  # of kernels, over the span of the training series
PRIORS = (0.01, 1000.0)  # the ends of what κ starts at
NEAR = (1, 2, 3)  # the kernels whose means are features


class Baseline(nn.Module, ABC):
    """A module that makes curves of columns out of what is seen of series.

    Attributes:
        features: The number of features F of what is seen near a time.
    """

    features = 0

    @abstractmethod
    def forward(self, seen: SeriesBatch, times: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return curves at times (B, T), which broadcast to (B, T, D), and features (B, T, ·).

        The curves are 0 at the training mean; the features' sizes sum to F.
        """


class NoBaseline(Baseline):
    """The training means."""

    def __init__(self, columns: int) -> None:
        super().__init__()

    def forward(self, seen: SeriesBatch, times: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return zeros, shape (1, 1, 1)."""
        return times.new_zeros(1, 1, 1), ()


class OwnMean(Baseline):
    """The mean of what is seen of each column, drawn to the training mean where that is little.

    With n values seen and a learned number κ of each column it is n / (n + κ) times their mean. κ
    starts at the variance within series over that between their means.

    Args:
        columns: Number of columns.

    Example:
        >>> values = torch.tensor([[[2.0], [4.0]]])
        >>> seen = SeriesBatch(torch.tensor([[0.0, 1.0]]), values, torch.ones(1, 2, 1),
        ...                    torch.zeros(1, 0), torch.tensor([2]), None)
        >>> baseline = OwnMean(1)
        >>> mean, _ = baseline(seen, seen.times)
        >>> torch.allclose(mean, 6 / (2 + baseline.prior()))
        True
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.raw_prior = nn.Parameter(torch.full((columns,), -2.0))

    def prior(self) -> Tensor:
        """Return κ of each column, (D,)."""
        return softplus(self.raw_prior)

    @torch.no_grad()
    def start(self, series: Series) -> None:
        """Start κ at the ratio of the variance components of scaled series, where there is one.

        Source: Searle, Casella & McCulloch (1992), Variance components, section 3.6.
        """
        observed, values = series.observed, np.nan_to_num(series.values)
        count, total = np.zeros((2, len(series), len(series.columns)))
        np.add.at(count, series.owners, observed)
        np.add.at(total, series.owners, values)
        means = total / np.maximum(count, 1)
        rows, groups = count.sum(0), (count > 0).sum(0)
        known = (rows > groups) & (groups > 1)
        within = (np.square(values - means[series.owners]) * observed).sum(0)
        within = within / np.maximum(rows - groups, 1)
        center = total.sum(0) / np.maximum(rows, 1)
        spread = (count * np.square(means - center)).sum(0) / np.maximum(groups - 1, 1)
        size = (rows - np.square(count).sum(0) / np.maximum(rows, 1)) / np.maximum(groups - 1, 1)
        between = np.maximum((spread - within) / np.maximum(size, 1e-6), 1e-6)
        prior = torch.from_numpy(np.clip(within / between, *PRIORS)).to(self.raw_prior)
        start = prior + (-(-prior).expm1()).log()  # whose softplus it is
        self.raw_prior.copy_(torch.where(torch.from_numpy(known), start, self.raw_prior))

    def forward(self, seen: SeriesBatch, times: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the means (B, 1, D)."""
        total, count = (seen.values * seen.mask).sum(1), seen.mask.sum(1)
        return (total / (count + self.prior()))[:, None], ()


class LastValue(OwnMean):
    """The last value seen of each column, which decays to the series' own mean.

    With the last value x at a time s and the own mean μ, drawn to the training mean, it is at t

        μ + ρ exp(−max(t − s, 0) / τ) (x − μ),

    ρ and τ learned for each column: the conditional mean of an Ornstein–Uhlenbeck process that is
    observed with noise.
    """

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.raw_share = nn.Parameter(torch.full((columns,), 2.0))
        self.log_rate = nn.Parameter(torch.full((columns,), -1.0))

    def forward(self, seen: SeriesBatch, times: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the curves (B, T, D)."""
        mean, _ = super().forward(seen, times)
        place = seen.mask * torch.arange(1.0, seen.mask.shape[1] + 1).to(seen.mask)[:, None]
        last = place.amax(1)  # counted from 1; 0 where nothing is seen
        index = (last - 1).clamp(min=0).long()
        value = seen.values.gather(1, index[:, None])
        since = seen.times.gather(1, index)
        gap = (times[..., None] - since[:, None]).clamp(min=0)
        share = self.raw_share.sigmoid() * (last > 0)[:, None]
        return mean + share * (-gap * self.log_rate.exp()).exp() * (value - mean), ()


class LocalMean(Baseline):
    """A mean of what is seen of each column, of larger weight near a time, and what is seen nearby.

    With the values x_i that are seen of a column at times t_i it is at t

        b(t) = Σ_i w(t − t_i) x_i / (κ + Σ_i w(t − t_i)),   w(s) = Σ_r exp(γ_r − λ_r |s|),

    γ and κ learned for each column, for rates λ of 0, 2, 12, 70 and 400 over the span of training.
    Features for the decoder are, for the three largest and every column, the deviation
    Σ_i e^(−λ|t − t_i|) (x_i − b(t)) / (½ + n) of what is seen near t and its amount n / (½ + n),
    n = Σ_i e^(−λ|t − t_i|): columns that were measured at the same time say something of one that
    was not. What is seen of an entry itself is among them: train on entries that are hidden.

    Source: Nadaraya (1964) and Watson (1964), for kernel-weighted means.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.features = 2 * len(NEAR) * columns
        self.raw_prior = nn.Parameter(torch.full((columns,), -2.0))
        self.log_weight = nn.Parameter(torch.zeros(1 + len(RATES), columns))

    def forward(self, seen: SeriesBatch, times: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the curves (B, T, D), and deviations and amounts of each rate, (B, T, D) each."""
        total, amount = self._kernels(seen, times)
        weight, whole = self.log_weight[1:].exp(), self.log_weight[0].exp()
        upper = whole * (seen.values * seen.mask).sum(1)[:, None]
        lower = softplus(self.raw_prior) + whole * seen.mask.sum(1)[:, None]
        for rate in range(len(RATES)):  # faster than a contraction, which copies
            upper = torch.addcmul(upper, total[rate], weight[rate])
            lower = torch.addcmul(lower, amount[rate], weight[rate])
        mean = upper / lower
        features: list[Tensor] = []
        for place in NEAR:
            share = 1 / (0.5 + amount[place])
            known = amount[place] * share
            features += [torch.addcmul(total[place] * share, known, mean, value=-1), known]
        return mean, features

    @torch.no_grad()
    def _kernels(self, seen: SeriesBatch, times: Tensor) -> tuple[Sequence[Tensor], ...]:
        """Return Σ_i e^(−λ|t − t_i|) x_i and Σ_i e^(−λ|t − t_i|) for each rate, (B, T, D) each."""
        entries, at = torch.cat([seen.values * seen.mask, seen.mask], -1), seen.times
        rates = torch.tensor(RATES).to(at)
        if times is at:
            found = kernel_sums(at, entries, rates)
        else:  # the times that are asked for join, without an entry
            joined = torch.cat([at, times], 1)
            order, rows = joined.argsort(1), torch.arange(len(at), device=at.device)[:, None]
            entries = pad(entries, (0, 0, 0, times.shape[1]))[rows, order]
            found = kernel_sums(joined.gather(1, order), entries, rates)
            found = found[:, rows, order.argsort(1)[:, at.shape[1] :]]
        total, amount = found.chunk(2, -1)
        return total.unbind(), amount.unbind()


def kernel_sums(times: Tensor, entries: Tensor, rates: Tensor) -> Tensor:
    """Return Σ_j e^(−λ|t_i − t_j|) x_j at sorted times, for each rate λ.

    Sums over earlier entries follow from one another, and those over later ones, so that time and
    memory grow with the number of times, not with its square.

    Shapes: times (B, T), entries (B, T, C), rates (R,) → (R, B, T, C).

    Example:
        >>> times, entries = torch.tensor([[0.0, 1.0, 3.0]]), torch.ones(1, 3, 1)
        >>> kernel_sums(times, entries, torch.tensor([0.0, 100.0])).flatten(1)
        tensor([[3., 3., 3.],
                [1., 1., 1.]])
    """
    gaps = times.diff(dim=1, prepend=times[:, :1])
    decay = (-rates[:, None, None] * gaps).exp()[..., None]
    found = entries.new_empty(len(rates), *entries.shape)
    found[:, :, 0] = entries[:, 0]
    for i in range(1, times.shape[1]):
        torch.addcmul(entries[:, i], found[:, :, i - 1], decay[:, :, i], out=found[:, :, i])
    later = torch.zeros_like(found[:, :, 0])
    for i in range(times.shape[1] - 2, -1, -1):
        later.add_(entries[:, i + 1]).mul_(decay[:, :, i + 1])
        found[:, :, i] += later
    return found


DECODER_BASELINES: Registry[type[Baseline]] = Registry(
    {
        "mean": "cnf.series.decoder:OwnMean",
        "last": "cnf.series.decoder:LastValue",
        "local": "cnf.series.decoder:LocalMean",
        "none": "cnf.series.decoder:NoBaseline",
    }
)
"""The baselines of decoders by name: modules of the number of columns."""


class Decoder(nn.Module):
    """Means and noise of columns given latent states.

        loc = baseline + A s + W u + V silu(U u + b) + c,   log σ = a + 1.5 tanh(S silu(U u + b))

    u is z with the features of the baseline, if it has any, and s the static columns; S is absent
    unless the noise depends on the state.

    Args:
        columns: Number D of columns.
        latent_dim: Size of z.
        hidden: Number of hidden units.
        static: Number of static columns.
        baseline: Name in `DECODER_BASELINES`.
        state_noise: Whether the noise depends on the state.
    """

    def __init__(
        self,
        columns: int,
        latent_dim: int,
        hidden: int,
        static: int,
        baseline: str,
        state_noise: bool,
    ) -> None:
        super().__init__()
        self.columns = columns
        self.baseline = DECODER_BASELINES[baseline](columns)
        inputs = latent_dim + self.baseline.features
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden + inputs, columns)
        with torch.no_grad():
            self.out.weight[:, :hidden] = 0.0
            self.out.weight[:, hidden:] *= 0.1
            # Curves of the prior have the variance of the columns: the encoder learns sooner.
            nn.init.normal_(self.out.weight[:, hidden : hidden + latent_dim], std=latent_dim**-0.5)
            self.out.bias.zero_()
        self.static = nn.Linear(static, columns, bias=False) if static else None
        self.log_scale = nn.Parameter(torch.full((columns,), -0.5))
        self.state_scale = nn.Linear(hidden, columns, bias=False) if state_noise else None
        for part in (self.static, self.state_scale):
            if part is not None:
                nn.init.zeros_(part.weight)

    def forward(self, states: Tensor, times: Tensor, seen: SeriesBatch) -> tuple[Tensor, Tensor]:
        """Return loc (B, K, T, D) and log σ, which broadcasts to it.

        Shapes: states (B, K, T, latent), times (B, T).
        """
        baseline, features = self.baseline(seen, times)
        hidden = silu(_linear(self.hidden, states, features))
        loc = _linear(self.out, torch.cat([hidden, states], -1), features)
        if self.static is not None:
            baseline = baseline + self.static(seen.static.nan_to_num(nan=0.0))[:, None]
        log_scale = self.log_scale.clamp(min=LOWEST_LOG_SCALE)
        if self.state_scale is not None:
            log_scale = log_scale + STATE_NOISE * linear(hidden, self.state_scale.weight).tanh()
        return loc + baseline[:, None], log_scale


def _linear(layer: nn.Linear, states: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Return a layer of states (B, K, T, ·) and features (B, T, ·), side by side.

    Features, the same for all K draws, are not copied.
    """
    sizes = [states.shape[-1], *(each.shape[-1] for each in features)]
    weight, *others = layer.weight.split(sizes, 1)
    if not features:
        return linear(states, weight, layer.bias)
    found: Tensor = layer.bias
    for each, matrix in zip(features, others, strict=True):
        found = torch.addmm(found, each.flatten(0, 1), matrix.T)
    of_features = found.unflatten(0, features[0].shape[:2])
    total: Tensor = linear(states, weight) + of_features[:, None]
    return total
