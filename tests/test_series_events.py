"""Poisson likelihoods of event times, against quadrature."""

from math import cos, exp, log, pi, sin

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from cnf.ode import solve
from cnf.series.events import PoissonEvents

TIMES = [0.0, 0.15, 0.4, 0.45, 0.9, 1.3]  # the window is from the first to the last
FREQUENCY = 2 * pi * 0.7


def rotation(t: Tensor, z: Tensor, frequency: Tensor) -> Tensor:
    return frequency * torch.stack([-z[..., 1], z[..., 0]], -1)


def solved(events: PoissonEvents, z: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-rates at the inner times and the integrals over the window."""
    slope, args = events.augmented(rotation, frequency)
    tight = {"method": "dopri8", "rtol": 1e-10, "atol": 1e-10, "stops": TIMES}
    ys = solve(slope, events.initial(z), TIMES, args, **tight).ys
    states, integrals = ys.split(2, -1)
    return events(states[1:-1]), integrals[-1] - integrals[0]


@pytest.fixture
def events() -> PoissonEvents:
    """Return a model of two columns: log λ = 0.4, and log λ = 1.1 + 0.8 sin ωt − 0.3 cos ωt."""
    made = PoissonEvents(columns=2, latent_dim=2, hidden=0).double()
    made.linear.weight.data = torch.tensor([[0.0, 0.0], [-0.3, 0.8]], dtype=torch.float64)
    made.linear.bias.data = torch.tensor([0.4, 1.1], dtype=torch.float64)
    return made


def test_constant_and_log_periodic_rates_match_quadrature(events: PoissonEvents) -> None:
    frequency = torch.tensor(FREQUENCY, dtype=torch.float64, requires_grad=True)
    log_rates, integrals = solved(events, torch.tensor([[1.0, 0.0]]).double(), frequency)
    mask = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 1]]).double().unsqueeze(1)
    found = events.log_prob(log_rates, mask, integrals)
    assert found.shape == (1, 2)

    def log_rate(t: float, frequency: float = FREQUENCY) -> float:
        return 1.1 + 0.8 * sin(frequency * t) - 0.3 * cos(frequency * t)

    def expected(frequency: float) -> float:
        rate = quad(lambda t: exp(log_rate(t, frequency)), TIMES[0], TIMES[-1], epsabs=1e-12)[0]
        return float(sum(log_rate(t, frequency) for t in TIMES[2:-1]) - rate)

    constant = 2 * 0.4 - exp(0.4) * TIMES[-1]
    np.testing.assert_allclose(found.tolist(), [[constant, expected(FREQUENCY)]], atol=1e-8)
    found.sum().backward()
    slope = (expected(FREQUENCY + 1e-4) - expected(FREQUENCY - 1e-4)) / 2e-4
    assert frequency.grad is not None
    assert frequency.grad.item() == pytest.approx(slope, abs=1e-6)
    events_bias = events.linear.bias.grad
    assert events_bias is not None  # the number of events less the integral
    counts = mask.sum((0, 1)) - integrals[0].detach()
    torch.testing.assert_close(events_bias, counts)


def test_likelihood_integrates_to_one(events: PoissonEvents) -> None:
    """Check Σ_n ∫ L = 1 over event sets, by draws from the process of rate 1 per unit of time."""
    frequency = torch.tensor(FREQUENCY, dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0]]).double()
    slope, args = events.augmented(rotation, frequency)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    states, integrals = solve(slope, events.initial(z), grid, args).ys.split(2, -1)
    generator = np.random.default_rng(0)
    counts = generator.poisson(1.0, 20_000)
    places = torch.from_numpy(generator.integers(1, 101, (20_000, counts.max())))
    mask = torch.arange(counts.max()) < torch.from_numpy(counts).unsqueeze(1)
    log_rates = events(states)[places, 0].transpose(0, 1)
    likelihood = events.log_prob(log_rates, mask.T.unsqueeze(-1), integrals[-1] - 1.0)
    mean, deviation = likelihood.exp().mean(0), likelihood.exp().std(0) / 20_000**0.5
    assert ((mean - 1).abs() < 4 * deviation + 0.01).all()


def test_start_and_nonlinear_rates() -> None:
    torch.manual_seed(0)
    events = PoissonEvents(columns=3, latent_dim=2, hidden=4)
    counts = torch.tensor([5.0, 0.5, 0.0])
    z = torch.randn(7, 2)
    events.start(counts, span=2.0)
    torch.testing.assert_close(events(z)[:, :2].exp(), (counts[:2] / 2).expand(7, 2))
    assert events(z)[0, 2].item() == pytest.approx(log(1e-3 / 2))  # none was seen
    solve_args = events.augmented(rotation, torch.tensor(1.0))
    solution = solve(solve_args[0], events.initial(z), [0.0, 1.0], solve_args[1])
    (-solution.ys[..., 2:][-1].sum()).backward()
    for name, parameter in events.named_parameters():
        assert parameter.grad is not None, name
    with pytest.raises(ValueError, match="Expected columns and latent_dim of at least 1"):
        PoissonEvents(columns=0, latent_dim=2)
