"""Five tasks of simulation-based inference as sbibm defines them: priors and simulators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log, pi, sqrt
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.nn.functional import conv1d

POPULATION, SAMPLED = 1_000_000.0, 1000  # people in the SIR model, and of them those tested
TEST_DAYS = tuple(range(0, 161, 17))
STIMULUS_SEED, STIMULUS_LENGTH, FILTER_LENGTH = 42, 100, 9


@dataclass(frozen=True)
class InferenceTask:
    """A prior p(θ), and a simulator of p(x | θ).

    With PyTorch's generator set to the seed of one of sbibm's observations, `prior.sample((1,))`
    and `simulate` of it draw the stored parameters and the stored observation.

    Attributes:
        make_prior: Returns the prior.
        simulate: Maps parameters (rows, parameters) to data (rows, numbers), at random.

    Source: Lueckmann et al. (2021), Benchmarking simulation-based inference, appendix T.
    """

    make_prior: Callable[[], Distribution]
    simulate: Callable[[Tensor], Tensor]

    @cached_property
    def prior(self) -> Distribution:
        """The prior p(θ)."""
        return self.make_prior()

    def draw(self, simulations: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return parameters (simulations, …) from the prior and their data, by a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parameters = self.prior.sample(torch.Size([simulations]))
            return parameters, self.simulate(parameters)


def two_moons(parameters: Tensor) -> Tensor:
    """Draw a point on a crescent that the parameters shift; the posterior has two."""
    count = torch.Size([len(parameters), 1])
    angle = Uniform(-pi / 2, pi / 2).sample(count)
    radius = Normal(0.1, 0.01).sample(count)
    crescent = torch.cat([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    first, second = parameters[:, :1], parameters[:, 1:]
    shift = torch.cat([-(first + second).abs(), second - first], 1) / sqrt(2)
    return crescent + shift


def slcp(parameters: Tensor) -> Tensor:
    """Draw four points of a Gaussian in the plane whose mean and covariance are the parameters."""
    first, second = parameters[:, 2] ** 2, parameters[:, 3] ** 2
    covariance = parameters[:, 4].tanh() * first * second
    matrix = torch.stack([first**2, covariance, covariance, second**2], 1).view(-1, 2, 2)
    matrix = matrix + 1e-6 * torch.eye(2)
    points = MultivariateNormal(parameters[:, None, :2], matrix.unsqueeze(1))
    return _drawn(points.expand(torch.Size([len(parameters), 4]))).flatten(1)


def gaussian_linear(parameters: Tensor) -> Tensor:
    """Draw a Gaussian whose mean is the parameters."""
    return _drawn(MultivariateNormal(parameters, precision_matrix=10 * torch.eye(10)))


def sir(parameters: Tensor) -> Tensor:
    """Draw numbers of infected people among those tested in the course of an epidemic."""
    infected = infected_shares(parameters.double().numpy())
    shares = torch.from_numpy(infected).float().clamp(0.0, 1.0)
    return _drawn(Binomial(SAMPLED, shares))


def infected_shares(parameters: Any) -> Any:
    """Return the infected share of the population on `TEST_DAYS`, (rows, days).

        dS/dt = −β S I,   dI/dt = β S I − γ I,   with one infected person at first.

    All epidemics are one system of equations, in the log of I, which grows and falls by orders of
    magnitude.

    Args:
        parameters: The rates (β, γ) a day, (rows, 2).

    Example:
        >>> shares = infected_shares(np.array([[0.4, 0.125]]))
        >>> shares.shape, round(float(shares.max()), 2)
        ((1, 10), 0.31)
    """
    contact, recovery = np.asarray(parameters).T

    def slopes(_: float, state: Any) -> Any:
        susceptible, logarithm = state.reshape(2, -1)
        met = contact * susceptible
        return np.concatenate([-met * np.exp(logarithm), met - recovery])

    begin = np.repeat([1 - 1 / POPULATION, -log(POPULATION)], len(contact))
    span = (TEST_DAYS[0], TEST_DAYS[-1])
    found = solve_ivp(slopes, span, begin, "DOP853", t_eval=TEST_DAYS, rtol=1e-8, atol=1e-8)
    return np.exp(found.y[len(contact) :])


def bernoulli_glm(parameters: Tensor) -> Tensor:
    """Draw the number of spikes, and the sums of the stimulus before them, of a neuron."""
    stimulus = glm_stimulus()
    design = glm_design(stimulus)
    chance = (parameters @ design.T).sigmoid()
    spikes = (torch.rand_like(chance) < chance).float()
    triggered = conv1d(spikes.unsqueeze(1), stimulus.view(1, 1, -1), padding=FILTER_LENGTH - 1)
    return torch.cat([spikes.sum(1, keepdim=True), triggered[:, 0, -FILTER_LENGTH:]], 1)


def glm_stimulus() -> Tensor:
    """Return the white noise that drives the neuron, (times,)."""
    drawn = np.random.RandomState(STIMULUS_SEED).randn(STIMULUS_LENGTH)
    return torch.from_numpy(drawn.astype(np.float32))


def glm_design(stimulus: Tensor) -> Tensor:
    """Return a column of ones and the stimulus at each lag, (times, 1 + lags)."""
    design = torch.zeros(len(stimulus), FILTER_LENGTH)
    for lag in range(FILTER_LENGTH):
        design[lag:, lag] = stimulus[: len(stimulus) - lag]
    return torch.cat([torch.ones(len(stimulus), 1), design], 1)


def glm_prior() -> Distribution:
    """Return the prior of an offset, and of a filter that second differences keep smooth."""
    lags = FILTER_LENGTH
    difference = torch.eye(lags) - torch.diag(torch.ones(lags - 1), -1)
    root = difference @ difference + torch.diag(torch.arange(lags) / lags).sqrt()
    precision = torch.block_diag(torch.tensor([[0.5]]), root.T @ root)
    return MultivariateNormal(torch.zeros(lags + 1), precision_matrix=precision)


def _drawn(law: Distribution) -> Tensor:
    drawn: Tensor = law.sample()
    return drawn


def _box(dim: int, bound: float) -> Distribution:
    return Independent(Uniform(-bound * torch.ones(dim), bound * torch.ones(dim)), 1)


def _sir_prior() -> Distribution:
    loc = torch.tensor([log(0.4), log(0.125)])
    return Independent(LogNormal(loc, torch.tensor([0.5, 0.2])), 1)


def _wide_normal() -> Distribution:
    return MultivariateNormal(torch.zeros(10), precision_matrix=10 * torch.eye(10))


INFERENCE_TASKS = {
    "two_moons": InferenceTask(lambda: _box(2, 1.0), two_moons),
    "slcp": InferenceTask(lambda: _box(5, 3.0), slcp),
    "gaussian_linear": InferenceTask(_wide_normal, gaussian_linear),
    "sir": InferenceTask(_sir_prior, sir),
    "bernoulli_glm": InferenceTask(glm_prior, bernoulli_glm),
}
"""The tasks by sbibm's names."""
