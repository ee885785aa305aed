"""Poisson likelihoods of the times at which columns are observed, given a latent path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import silu

from cnf.ode import Dynamics


class PoissonEvents(nn.Module):
    """Event times of each column as a Poisson process, whose rate a latent path drives.

    With log λ_d(t) = (A z(t) + W silu(U z(t) + u) + b)_d and events at t_1 … t_n in (s, e],

        log L_d = Σ_i log λ_d(t_i) − ∫_s^e λ_d(t) dt.

    The integrals are further coordinates of the solve of the path, Λ′ = λ(z), by `augmented`.

    Args:
        columns: The number D of columns.
        latent_dim: The size of z.
        hidden: The number of hidden units; 0 for log-rates that are linear in z.

    Raises:
        ValueError: A number is out of range.

    Shapes: `forward`: (…, latent_dim) → (…, D).

    Source: Chen et al. (2018), Neural ordinary differential equations, section 5.1; Rubanova et al.
    (2019), Latent ODEs for irregularly-sampled time series, section 3.4, where they are the times
    at which each column is measured.

    Example:
        >>> from cnf.ode import solve
        >>> events = PoissonEvents(columns=2, latent_dim=3)
        >>> slope, args = events.augmented(lambda t, z, rate: rate * z, torch.tensor(-1.0))
        >>> solution = solve(slope, events.initial(torch.ones(5, 3)), [0.0, 0.5, 1.0], args)
        >>> states, integrals = solution.ys.split([3, 2], -1)
        >>> rates = events(states[1:2])  # one event of each column at t = 0.5
        >>> events.log_prob(rates, torch.ones(1, 5, 2), integrals[-1]).shape
        torch.Size([5, 2])
    """

    def __init__(self, columns: int, latent_dim: int, hidden: int = 32) -> None:
        super().__init__()
        if min(columns, latent_dim) < 1 or hidden < 0:
            raise ValueError(
                "Expected columns and latent_dim of at least 1, and hidden of at least 0; got "
                f"{columns}, {latent_dim} and {hidden}"
            )
        self.columns, self.latent_dim = columns, latent_dim
        self.linear = nn.Linear(latent_dim, columns)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.hidden = nn.Linear(latent_dim, hidden) if hidden else None
        self.last = nn.Linear(hidden, columns, bias=False) if hidden else None
        if self.last is not None:
            nn.init.zeros_(self.last.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Return log λ at states, (…, latent_dim) → (…, D)."""
        log_rates: Tensor = self.linear(z)
        if self.hidden is not None and self.last is not None:
            log_rates = log_rates + self.last(silu(self.hidden(z)))
        return log_rates

    @torch.no_grad()
    def start(self, counts: Tensor, span: float | Tensor) -> None:
        """Set the rates to the constant ones of mean counts (D,) of events in a time span."""
        self.linear.weight.zero_()
        self.linear.bias.copy_((counts.clamp(min=1e-3) / span).log())
        if self.last is not None:
            self.last.weight.zero_()

    def initial(self, z: Tensor) -> Tensor:
        """Return the state of the solve, z with integrals 0, (…, latent_dim + D)."""
        return torch.cat([z, z.new_zeros(*z.shape[:-1], self.columns)], -1)

    def augmented(
        self, slope: Callable[[Tensor, Tensor, Any], Tensor], args: Any
    ) -> tuple[Dynamics, Any]:
        """Return the dynamics of (z, Λ) and their arguments, which hold the rates' parameters.

        Args:
            slope: The dynamics of z, called as slope(t, z, args).
            args: Their arguments.
        """
        latent_dim = self.latent_dim

        def both(t: Tensor, y: Tensor, args: Any) -> Tensor:
            z = y[..., :latent_dim]
            log_rates: Tensor = functional_call(self, args[1], (z,))
            return torch.cat([slope(t, z, args[0]), log_rates.exp()], -1)

        return both, (args, dict(self.named_parameters()))

    @staticmethod
    def log_prob(log_rates: Tensor, events: Tensor, integrals: Tensor) -> Tensor:
        """Return log L of each column.

        Args:
            log_rates: log λ at times, (T, …, D).
            events: 1 where the column has an event at the time, 0 elsewhere and in the padding,
                which broadcasts to (T, …, D).
            integrals: ∫ λ dt over the window that events may be in, (…, D).

        Shapes: (T, …, D), (T, …, D), (…, D) → (…, D).

        Example:
            >>> rate = torch.tensor(2.0)
            >>> log_rates = rate.log().expand(3, 1, 1)  # 3 ln 2 − 2
            >>> round(PoissonEvents.log_prob(log_rates, torch.ones(3, 1, 1), rate).item(), 4)
            0.0794
        """
        return (log_rates * events).sum(0) - integrals
