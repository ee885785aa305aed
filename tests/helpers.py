"""Problems, fields and reference solutions that several tests share."""

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from cnf.flow import Flow
from cnf.layers import CNF, Standardize

DOUBLE = torch.float64


def standard(dim=2, dtype=DOUBLE):
    return Independent(Normal(torch.zeros(dim, dtype=dtype), torch.ones(dim, dtype=dtype)), 1)


def scaled(loc, scale):
    layer = Standardize(len(loc)).double()
    layer.loc.copy_(torch.tensor(loc))
    layer.scale.copy_(torch.tensor(scale))
    return layer


def enlarged(module, factor):
    """Return the module with its parameters multiplied, so that its paths bend."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module


def exact_log_prob(flow: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Compute log p of rows by SciPy's DOP853 at 1e-12 in float64, with autograd's trace."""
    flow, x = copy.deepcopy(flow).double(), x.double()
    given = () if context is None else (flow.standardized(context.double()),)
    log_det = torch.zeros(len(x), dtype=DOUBLE)
    for layer in reversed(flow.layers):
        if isinstance(layer, CNF):
            x, change = _exact_pull(layer, x, given)
        else:
            x, change = layer.inverse(x)
        log_det = log_det + change
    return (flow.base.log_prob(x) + log_det).detach()


def _exact_pull(layer, x, given):
    rows, dim = x.shape

    def dynamics(t, y):
        state = torch.from_numpy(y.reshape(rows, dim + 1)[:, :dim].copy()).requires_grad_()
        velocity = layer.field(torch.tensor(t, dtype=DOUBLE), state, *given)
        # No row's velocity depends on another row: one product for each column serves them all.
        trace = sum(
            torch.autograd.grad(velocity[:, i].sum(), state, retain_graph=True)[0][:, i]
            for i in range(dim)
        )
        return torch.cat([velocity, trace.unsqueeze(1)], 1).detach().numpy().ravel()

    start = np.column_stack([x.detach().numpy(), np.zeros(rows)]).ravel()
    solved = solve_ivp(dynamics, (1.0, 0.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    end = torch.from_numpy(solved.y[:, -1].reshape(rows, dim + 1))
    return end[:, :dim], end[:, dim]


def max_difference(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def near(found, expected, atol):
    """Check that tensors are equal within an absolute tolerance."""
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def refused(message, call, *arguments, **options):
    """Check that a call raises a ValueError whose message matches."""
    with pytest.raises(ValueError, match=message):
        call(*arguments, **options)


def pull_gradients(layer, x, context=None, inputs=None, **settings):
    """Return a solve's result, and its value, log-determinant and a loss's gradients."""
    result = layer.with_solver(**settings).pull(x, context)
    loss = result.value.square().sum() + result.log_det.sum()
    inputs = [*layer.parameters()] if inputs is None else inputs
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return result, [result.value, result.log_det, *gradients]


def seeded_draw(distribution, *arguments, draw="sample"):
    """Return a draw from the same seed each time."""
    torch.manual_seed(1)
    return getattr(distribution, draw)(*arguments)


class Linear(nn.Module):
    """f(t, x) = A x, whose divergence is tr A everywhere."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, x):
        return x @ self.matrix.T


class Broken(nn.Module):
    """A field that is NaN where x is large."""

    def forward(self, t, x):
        return torch.where(x[:, :1] > 5, torch.nan, -x)


class Counted(CNF):
    solves = 0

    def _solve(self, *arguments, **options):
        self.solves += 1
        return super()._solve(*arguments, **options)


class Stop(Exception):  # noqa: N818
    """What a run is stopped with, as a kill would stop it."""


def stopping(at, error=Stop):
    """Return a callback that raises after a step of a run."""

    def stop(event):
        if event.step == at:
            raise error

    return stop
