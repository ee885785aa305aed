"""The base of a flow process: independent processes of learned rates, measured with noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import log

import torch
from torch import Tensor, nn

from cnf.ode.tableaus import known_name
from cnf.series.kalman import MarkovChain

START_RATES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # tried, per span of time
START_NOISES = (0.01, 0.1, 0.4, 0.8)  # shares of the variance of a column
SMALLEST_NOISE = 1e-6  # variance of measurements: a density stays bounded
START_STEPS = 20  # of L-BFGS from the best of these, and half as many further evaluations

# Decays, spreads and the first variance, in units of the scale's, of rate times gaps of time.
Transition = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def ornstein_uhlenbeck(gaps: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return decays, spreads and the first variance of the stationary process.

    Example:
        >>> decay, spread, first = ornstein_uhlenbeck(torch.ones(1), torch.zeros(1))
        >>> torch.equal(decay**2 + spread, first)  # stationary
        True
    """
    return (-gaps).exp(), -(-2 * gaps).expm1(), torch.ones_like(first)


def wiener(gaps: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return decays, spreads and the first variance of the process that starts at time 0."""
    return torch.ones_like(gaps), 2 * gaps, 1 + 2 * first


BASES: dict[str, Transition] = {"ou": ornstein_uhlenbeck, "wiener": wiener}
"""The base processes of a `FlowProcess`."""


class BaseProcess(nn.Module):
    """Independent scalar processes z of rate θ, scale s and white noise of deviation σ.

        Ornstein-Uhlenbeck:  dz = −θ z dt + s √(2θ) dW,  z(t) ~ N(0, s²),
        Wiener:              dz = s √(2θ) dW,            z(0) ~ N(0, s²),
        measured:            y_i ~ N(z(t_i), σ²).

    Args:
        name: A name in `BASES`.
        dim: The number D of processes.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> process = BaseProcess("ou", dim=2)
        >>> process.chain(torch.tensor([[0.0, 0.3, 0.5]])).decay.shape
        torch.Size([1, 3, 2])
    """

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.name = known_name("base", name, BASES)
        self.log_rate = nn.Parameter(torch.full((dim,), 1.0))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.log_noise = nn.Parameter(torch.full((dim,), -1.0))

    def chain(self, times: Tensor) -> MarkovChain:
        """Return the processes at times (B, T) of each series, in double precision."""
        times = times.double().unsqueeze(-1)
        numbers = (self.log_rate, self.log_scale, self.log_noise)
        rate, scale, noise = (each.double().exp() for each in numbers)
        gaps = times.diff(dim=1, prepend=times[:, :1])
        decay, spread, first = BASES[self.name](rate * gaps, rate * times[:, :1])
        spread = torch.cat([first, spread[:, 1:]], 1) * scale.square()
        return MarkovChain(decay, spread, noise.square().clamp(min=SMALLEST_NOISE))

    def fit(self, times: Tensor, y: Tensor, mask: Tensor) -> None:
        """Set the parameters to about the likeliest, for observations of variance about 1.

        Each column takes the best pair of `START_RATES` and `START_NOISES`, then L-BFGS follows
        the likelihood.

        Shapes: (B, T), (B, T, D), (B, T, D).
        """
        y, mask = y.double(), mask.double()
        count = mask.sum((0, 1)).clamp(min=1)
        parameters: list[Tensor] = [self.log_rate, self.log_scale, self.log_noise]

        def mean_log_prob() -> Tensor:
            return self.chain(times).filter(y, mask).log_prob.sum((0, 1)) / count

        def take(numbers: Tensor) -> None:
            for parameter, each in zip(parameters, numbers, strict=True):
                parameter.copy_(each)

        with torch.no_grad():
            best, found = torch.full_like(count, -torch.inf), torch.stack(parameters)
            for rate, share in product(START_RATES, START_NOISES):
                for parameter, square in zip(parameters, (rate**2, 1 - share, share), strict=True):
                    parameter.fill_(0.5 * log(square))
                value = mean_log_prob()
                found = torch.where(value > best, torch.stack(parameters), found)
                best = torch.maximum(value, best)
            take(found)
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=START_STEPS,
            max_eval=START_STEPS * 3 // 2,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -mean_log_prob().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()
        with torch.no_grad():  # where the search failed, its numbers may be none
            take(torch.where(mean_log_prob() > best, torch.stack(parameters), found))
