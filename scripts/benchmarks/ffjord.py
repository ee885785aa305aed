"""FFJORD's method as published, on torchdiffeq: the reference for the cost of a flow.

A network of concat-squash layers, the divergence by vector-Jacobian products of autograd, state and
log-determinant integrated together, gradients by the continuous adjoint at the solve's tolerances.

Source: Grathwohl et al. (2019), FFJORD: Free-form continuous dynamics for scalable reversible
generative models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cnf.scripts.benchmarks.peers import peer


class ConcatSquashLinear(nn.Module):
    """y = (W x + b) ∘ sigmoid(G t + g) + B t; without a gate (W x + b) + B t.

    Args:
        inputs: Size of x.
        outputs: Size of y.
        gated: Whether y is gated.
    """

    def __init__(self, inputs: int, outputs: int, *, gated: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs) if gated else None
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the layer's output for rows, at one time for all."""
        time = t.reshape(1)
        y: Tensor = self.linear(x)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(time))
        shift: Tensor = self.shift(time)
        return y + shift


class ConcatSquashNetwork(nn.Module):
    """A network of concat-squash layers with an activation between them.

    Args:
        sizes: Sizes of the input, the hidden layers and the output.
        activation: The activation between the layers.
        gate_last: Whether the last layer is gated, as in FFJORD; in cnf it is not.

    Shapes: scalar t, x (rows, sizes[0]) → (rows, sizes[-1]).

    Example:
        >>> network = ConcatSquashNetwork((2, 8, 2), nn.Tanh())
        >>> network(torch.tensor(0.5), torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, sizes: Sequence[int], activation: nn.Module, *, gate_last: bool = True
    ) -> None:
        super().__init__()
        gates = [True] * (len(sizes) - 2) + [gate_last]
        self.layers = nn.ModuleList(
            ConcatSquashLinear(inputs, outputs, gated=gated)
            for (inputs, outputs), gated in zip(pairwise(sizes), gates, strict=True)
        )
        self.activation = activation

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity of rows."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(t, x))
        velocity: Tensor = last(t, x)
        return velocity


class AugmentedDynamics(nn.Module):
    """The joint dynamics of x and the log-determinant, with a count of evaluations.

    Args:
        network: The velocity.
        probe: The probe of Hutchinson's estimate; the divergence is exact when None.

    Attributes:
        evaluations: The evaluations so far, forward and backward.
    """

    def __init__(self, network: nn.Module, probe: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.probe = probe
        self.evaluations = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivatives of (x, log-determinant)."""
        self.evaluations += 1
        x, _ = state
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            velocity = self.network(t, x)
            if self.probe is None:
                return velocity, exact_divergence(velocity, x)
            return velocity, estimated_divergence(velocity, x, self.probe)


def exact_divergence(velocity: Tensor, x: Tensor) -> Tensor:
    """Return the divergence Σ_i ∂f_i/∂x_i by one vector-Jacobian product per dimension.

    As published, the graph of the products is built even where nothing is differentiated, which
    takes no measurable time, and memory for one evaluation.
    """
    divergence = x.new_zeros(len(x))
    for i in range(x.shape[1]):
        (row,) = torch.autograd.grad(velocity[:, i].sum(), x, create_graph=True)
        divergence = divergence + row[:, i]
    return divergence


def estimated_divergence(velocity: Tensor, x: Tensor, probe: Tensor) -> Tensor:
    """Return Hutchinson's estimate εᵀ (∂f/∂x) ε by one vector-Jacobian product."""
    (product,) = torch.autograd.grad(velocity, x, probe, create_graph=True)
    return (product * probe).sum(1)


def rademacher(x: Tensor) -> Tensor:
    """Draw a Rademacher probe of the shape of `x`."""
    return torch.randint_like(x, 0, 2) * 2 - 1


def pull(
    dynamics: AugmentedDynamics, x: Tensor, rtol: float, atol: float, end: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return base points and log-determinants of rows, shapes (rows, dim) and (rows,).

    The solve from t = `end` to 0 is by dopri5. The adjoint has the same tolerances and
    torchdiffeq's default norm, which includes the gradient of the parameters.
    """
    odeint = peer("torchdiffeq").odeint_adjoint
    z, log_det = odeint(
        dynamics,
        (x, x.new_zeros(len(x))),
        torch.tensor([end, 0.0], dtype=x.dtype),
        rtol=rtol,
        atol=atol,
        method="dopri5",
        adjoint_params=tuple(dynamics.parameters()),
    )
    return z[-1], log_det[-1]
