"""Problems and reference solutions that several tests share."""

import copy

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.distributions import Independent, Normal

from cnf.flow import Flow
from cnf.layers import CNF, TransformResult


def standard(dim: int = 2, dtype: torch.dtype = torch.float64) -> Independent:
    """Return a standard normal base."""
    zeros = torch.zeros(dim, dtype=dtype)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def exact_log_prob(flow: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Compute log p of rows by SciPy's DOP853 at 1e-12 in float64, with autograd's trace."""
    flow, x = copy.deepcopy(flow).double(), x.double()
    given = () if context is None else (flow.standardized(context.double()),)
    log_det = torch.zeros(len(x), dtype=torch.float64)
    for layer in reversed(flow.layers):
        if isinstance(layer, CNF):
            x, change = _exact_pull(layer, x, given)
        else:
            x, change = layer.inverse(x)
        log_det = log_det + change
    return (flow.base.log_prob(x) + log_det).detach()


def _exact_pull(layer: CNF, x: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    rows, dim = x.shape

    def dynamics(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y.reshape(rows, dim + 1)[:, :dim].copy()).requires_grad_()
        velocity = layer.field(torch.tensor(t, dtype=torch.float64), state, *given)
        # No row's velocity depends on another row: one product for each column serves them all.
        trace = sum(
            torch.autograd.grad(velocity[:, i].sum(), state, retain_graph=True)[0][:, i]
            for i in range(dim)
        )
        return torch.cat([velocity, trace.unsqueeze(1)], 1).detach().numpy().ravel()

    start = torch.cat([x.detach(), torch.zeros(rows, 1, dtype=torch.float64)], 1).numpy().ravel()
    solved = solve_ivp(dynamics, (1.0, 0.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    end = torch.from_numpy(solved.y[:, -1].reshape(rows, dim + 1))
    return end[:, :dim], end[:, dim]


def max_difference(left: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference."""
    return (left - right).abs().max().item()


class Counted(CNF):
    """A CNF layer that counts its solves."""

    solves = 0

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        self.solves += 1
        return super().push(z, context)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        self.solves += 1
        return super().pull(x, context)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.solves += 1
        return super().transport(z, context)
