"""Scalar Gauss-Markov processes, observed with noise: the Kalman filter and smoother."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor


class Filtered(NamedTuple):
    """The output of a Kalman filter.

    Attributes:
        log_prob: log p of each observation given those before it, 0 without one, (B, T, D).
        mean: Mean of the state given the observations up to its time, (B, T, D).
        variance: Its variance, (B, T, D).
    """

    log_prob: Tensor
    mean: Tensor
    variance: Tensor


class BackwardKernel(NamedTuple):
    """The law of each state given the next one and the observations up to its time.

    The state is normal with mean b + J z, z the next state, and variance c; the last one has J = 0.

    Attributes:
        gain: J, (B, T, D).
        offset: b, (B, T, D).
        variance: c, (B, T, D).
    """

    gain: Tensor
    offset: Tensor
    variance: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each state given all observations, both (B, T, D)."""
        mean = variance = torch.zeros_like(self.offset[:, 0])
        means, variances = [], []
        for gain, offset, own in _backwards(*self):
            mean, variance = offset + gain * mean, own + gain.square() * variance
            means.append(mean)
            variances.append(variance)
        return torch.stack(means[::-1], 1), torch.stack(variances[::-1], 1)

    def draws(self, noise: Tensor) -> Tensor:
        """Return joint draws of all states given all observations, of standard normal noise.

        Shapes: (K, B, T, D) → (K, B, T, D).
        """
        deviation = self.variance.sqrt()
        state, states = torch.zeros_like(noise[:, :, 0]), []
        for gain, offset, own, normal in _backwards(self.gain, self.offset, deviation, noise):
            state = offset + gain * state + own * normal
            states.append(state)
        return torch.stack(states[::-1], 2)


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """The states of independent scalar Gauss-Markov processes at the times of each series.

        z_1 ~ N(0, q_1),   z_t ~ N(a_t z_{t−1}, q_t),   y_t ~ N(z_t, σ²) where it is observed.

    Attributes:
        decay: a, the first of no account, (B, T, D).
        spread: q, (B, T, D).
        noise: σ², the variance of measurements, (D,).

    Source: Särkkä & Svensson (2023), Bayesian filtering and smoothing, sections 4.3, 8.2 and 8.5.

    Example:
        >>> half = torch.full((1, 3, 1), 0.5)
        >>> chain = MarkovChain(half, half, torch.ones(1))
        >>> filtered = chain.filter(torch.ones(1, 3, 1), torch.ones(1, 3, 1))
        >>> [each.shape for each in chain.backward_kernel(filtered).moments()]
        [torch.Size([1, 3, 1]), torch.Size([1, 3, 1])]
    """

    decay: Tensor
    spread: Tensor
    noise: Tensor

    def filter(self, y: Tensor, mask: Tensor) -> Filtered:
        """Return the states given observations y, mask 1 where there is one, both (B, T, D)."""
        mean = variance = torch.zeros_like(self.decay[:, 0])
        found: list[tuple[Tensor, ...]] = []
        steps = zip(*(each.unbind(1) for each in (self.decay, self.spread, y, mask)), strict=True)
        for decay, spread, value, observed in steps:
            mean = decay * mean
            variance = spread + decay.square() * variance
            total, residual = variance + self.noise, value - mean
            gain = observed * variance / total
            mean = mean + gain * residual
            variance = variance - gain * variance
            found.append((residual, total, mean, variance))
        residual, total, mean, variance = (
            torch.stack(each, 1) for each in zip(*found, strict=True)
        )
        log_prob = -0.5 * mask * (residual.square() / total + total.log() + log(2 * pi))
        return Filtered(log_prob, mean, variance)

    def backward_kernel(self, filtered: Filtered) -> BackwardKernel:
        """Return the kernel by which states are smoothed or drawn from the last to the first."""
        mean, variance = filtered.mean, filtered.variance
        decay, spread = self.decay.roll(-1, 1), self.spread.roll(-1, 1)  # to the next time
        ahead = decay.square() * variance + spread  # variance of the next state
        gain = variance * decay / ahead.clamp(min=torch.finfo(ahead.dtype).tiny)
        gain = torch.cat([gain[:, :-1], torch.zeros_like(gain[:, -1:])], 1)
        # (1 − Ja)² v + J² q is v (1 − Ja), without its cancellation.
        own = (1 - gain * decay).square() * variance + gain.square() * spread
        return BackwardKernel(gain, (1 - gain * decay) * mean, own)


def _backwards(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """Return the slices of tensors along their axis of times (…, T, D), from the last."""
    return zip(*(each.unbind(-2)[::-1] for each in tensors), strict=True)
