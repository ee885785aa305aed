"""A recurrent encoder whose state follows an ODE between observations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnf.ode import solve
from cnf.series.batch import SeriesBatch
from cnf.series.encoders.encoder import Encoder, Reversed, observed_times


class ODERNNEncoder(Encoder):
    """A recurrent network over observations, whose state follows an ODE from each to the next.

        dh/dt = W tanh(U h + u) + w   between times,   h ← GRU((x_i, m_i), h)   at t_i,

    backwards in time from the last observation to time 0, each series at its own times, with one
    step of a Runge-Kutta method from each observation to the next. The solve is sequential: this
    encoder takes several times as long as the others. `states` runs it forwards, as a filter.

    Args:
        columns: The number D of columns.
        hidden: The size of h, and of the vectors.
        static: The number of static columns.
        units: The number of hidden units of the field.

    Shapes and errors are those of `Encoder`.

    Source: Rubanova et al. (2019), Latent ODEs for irregularly-sampled time series, algorithm 1.

    Example:
        >>> from cnf.series.batch import SeriesBatch
        >>> times, values = torch.linspace(0, 1, 5).expand(3, 5), torch.randn(3, 5, 2)
        >>> lengths = torch.full((3,), 5)
        >>> batch = SeriesBatch(times, values, torch.ones(3, 5, 2), torch.zeros(3, 0), lengths)
        >>> encoder = ODERNNEncoder(2, hidden=16)
        >>> encoder(batch).shape, encoder.states(batch)[0].shape
        (torch.Size([3, 16]), torch.Size([3, 5, 16]))
    """

    def __init__(self, columns: int, hidden: int, static: int = 0, units: int = 64) -> None:
        super().__init__(columns, hidden, static)
        self.field = nn.Sequential(nn.Linear(hidden, units), nn.Tanh(), nn.Linear(units, hidden))
        self.cell = nn.GRUCell(2 * columns, hidden)

    def encode(self, batch: SeriesBatch) -> Tensor:
        seen = Reversed.of(batch)
        place = torch.arange(seen.times.shape[1], device=seen.times.device)
        at = seen.times.masked_fill(place >= seen.counts.unsqueeze(1), torch.nan)
        ends = torch.cat([seen.times[:, :1], torch.zeros_like(seen.times[:, :1])], 1)
        inputs = torch.cat([seen.values, seen.mask], -1)
        return self._solve(ends, at, inputs)[0][-1]

    def states(self, batch: SeriesBatch) -> tuple[Tensor, Tensor]:
        """Return the states before and after each time, forwards from time 0, (B, T, size) both.

        The state before a time depends on the observations before it alone, the other on those at
        the time as well; before all observations it is the vector of a series without any.
        """
        observed = observed_times(batch)
        at = batch.times.masked_fill(~observed, torch.nan)
        ts = torch.cat([torch.zeros_like(batch.times[:, :1]), batch.times], 1)
        after, before = self._solve(ts, at, torch.cat([batch.values, batch.mask], -1))
        after, before = (each[1:].transpose(0, 1) for each in (after, before))
        return torch.where(observed.unsqueeze(-1), before, after), after

    def _solve(self, ts: Tensor, at: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return h at times (B, T), and what it was before the last observation, (T, B, size)."""
        size = self.size

        def slope(t: Tensor, y: Tensor, args: Any) -> Tensor:
            moved: Tensor = functional_call(self.field, args["field"], (y[:, :size],))
            return torch.cat([moved, torch.zeros_like(moved)], 1)

        def jump(index: int, t: Tensor, y: Tensor, args: Any) -> Tensor:
            h = y[:, :size]
            changed = functional_call(self.cell, args["cell"], (args["inputs"][:, index], h))
            return torch.cat([changed, h], 1)

        args = {
            "field": dict(self.field.named_parameters()),
            "cell": dict(self.cell.named_parameters()),
            "inputs": inputs,
        }
        start = self.unobserved.expand(len(ts), -1)
        solution = solve(
            slope,
            torch.cat([start, start], 1),
            ts,
            args,
            method="rk4",
            step_size=1.0 + ts.detach().abs().max().item(),  # a step from each to the next
            jumps=(at, jump),
            gradient="backprop",
        )
        after, before = solution.ys.split(size, -1)
        return after, before
