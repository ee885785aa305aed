"""Flows with one interface for timing: this library's, FFJORD's (own code, rewritten), zuko's.

Each has a name, the module that is trained, `log_prob` of rows (rows, dim) in nats, and the number
of evaluations of the field by the last `log_prob` and the backward pass after it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cnf.datasets import TOYS
from cnf.fields import ConcatSquash
from cnf.fields.gated_linear import GatedLinear
from cnf.flow import Flow, ffjord
from cnf.layers import CNF
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.density import SMALL_NETWORK
from cnf.scripts.benchmarks.ffjord_repository import FFJORDRepository
from cnf.utils.random import seeded

AGREEMENT_ROWS, AGREEMENT_TOLERANCES = 20, 20.0
TRAINING_STEPS, TRAINING_BATCH, TRAINING_TOLERANCE = 300, 512, 1e-3
ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}


class Ours:
    """This library's flow, with the network that it has."""

    def __init__(self, name: str, flow: Flow, network: BenchmarkNetwork) -> None:
        self.name, self.module, self.network = name, flow, network

    def solved(self, name: str, **changes: Any) -> Ours:
        """Return the flow with other settings of the solver, on the same weights."""
        return Ours(name, self.module.with_solver(**changes), self.network)

    def log_prob(self, x: Tensor) -> Tensor:
        scored = self.module.score_rows(x)
        self.stats = scored.stats
        return scored.log_prob

    @property
    def evaluations(self) -> int:
        return int(np.max(self.stats.evaluations)) + int(np.max(self.stats.backward))

    @property
    def field(self) -> ConcatSquash:
        """The flow's only field."""
        (field,) = (layer.field for layer in self.module.layers if isinstance(layer, CNF))
        assert isinstance(field, ConcatSquash)
        return field


class ConcatSquashNetwork(nn.Module):
    """A network f(t, x) of layers conditioned on the time, of which cnf's last is not gated.

    Shapes: scalar t, x (rows, inputs) → (rows, outputs).
    """

    def __init__(self, layers: Iterable[GatedLinear], activation: nn.Module) -> None:
        super().__init__()
        self.layers, self.activation = nn.ModuleList(layers), activation

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.activation(x), t.reshape(1))
        return x


class FFJORD(nn.Module):
    """A rewrite of FFJORD's method, on torchdiffeq: dopri5 from t = 1 to 0, and its adjoint.

    It checks that fields are equal, and stands where FFJORD's own code does not run: see
    `FFJORDRepository`.

    State and log-determinant are integrated together, with the divergence by vector-Jacobian
    products of autograd: `exact` by one for each dimension, otherwise Hutchinson's estimate with a
    Rademacher probe for each solve. The adjoint has the tolerances of the solve and torchdiffeq's
    default norm, which includes the gradient of the parameters.

    Source: Grathwohl et al. (2019), FFJORD.
    """

    def __init__(self, network: nn.Module, rtol: float, atol: float, *, exact: bool) -> None:
        super().__init__()
        self.name = "FFJORD rewritten" if exact else "rewritten, hutchinson"
        self.module, self.evaluations = network, 0
        self.rtol, self.atol, self.exact = rtol, atol, exact

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivatives of (x, log-determinant), with the published code's graph."""
        self.evaluations += 1
        x, _ = state
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            velocity = self.module(t, x)
            if not self.exact:
                (product,) = torch.autograd.grad(velocity, x, self.probe, create_graph=True)
                return velocity, (product * self.probe).sum(1)
            divergence = x.new_zeros(len(x))
            for i in range(x.shape[1]):
                (row,) = torch.autograd.grad(velocity[:, i].sum(), x, create_graph=True)
                divergence = divergence + row[:, i]
            return velocity, divergence

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p of rows, or an estimate of it."""
        self.evaluations, self.probe = 0, torch.randint_like(x, 0, 2) * 2 - 1
        z, log_det = peer("torchdiffeq").odeint_adjoint(
            self,
            (x, x.new_zeros(len(x))),
            torch.tensor([1.0, 0.0], dtype=x.dtype),
            rtol=self.rtol,
            atol=self.atol,
            method="dopri5",
            adjoint_params=tuple(self.module.parameters()),
        )
        log_prob: Tensor = torch.distributions.Normal(0.0, 1.0).log_prob(z[-1]).sum(1) + log_det[-1]
        return log_prob


class Zuko:
    """A flow of zuko, of which the evaluations of `counted` are counted."""

    def __init__(self, name: str, flow: Any, counted: nn.Module | None = None) -> None:
        self.name, self.module, self.evaluations = name, flow, 0
        if counted is not None:
            counted.register_forward_hook(self._count)

    def log_prob(self, x: Tensor) -> Tensor:
        self.evaluations = 0
        log_prob: Tensor = self.module().log_prob(x)
        return log_prob

    def _count(self, *_: object) -> None:
        self.evaluations += 1


Contender = Ours | FFJORD | FFJORDRepository | Zuko
SomeContender = TypeVar("SomeContender", Ours, FFJORDRepository, Zuko)


def check_agreement(ours: Contender, theirs: FFJORD | FFJORDRepository, x: Tensor) -> None:
    """Check that a flow and FFJORD, rewritten or its own code, agree on log p of the first rows.

    Joint steps control the root mean square of the difference. It may be several tolerances, since
    the flow amplifies each step's error: 1 measured at initial weights, 5 at trained ones.
    """
    with torch.no_grad():
        a, b = (each.log_prob(x[:AGREEMENT_ROWS]) for each in (ours, theirs))
    excess = ((a - b) / (theirs.atol + theirs.rtol * a.abs())).square().mean().sqrt().item()
    if not excess <= AGREEMENT_TOLERANCES:
        raise RuntimeError(
            f"Expected {ours.name} and {theirs.name} to agree on log p within "
            f"{AGREEMENT_TOLERANCES:g} tolerances; got {excess:.3g}: correct their fields"
        )


@dataclass(frozen=True)
class BenchmarkNetwork:
    """The sizes of a network with an activation in `ACTIVATION_MODULES`, and its tolerances."""

    dim: int
    hidden: tuple[int, ...]
    activation: str
    rtol: float
    atol: float

    @property
    def tolerances(self) -> dict[str, Any]:
        return {"rtol": self.rtol, "atol": self.atol}

    def __str__(self) -> str:
        sizes = "-".join(map(str, (self.dim, *self.hidden, self.dim)))
        return f"{sizes}, {self.activation}, rtol {self.rtol:g}, atol {self.atol:g}"

    def rows(self, count: int, seed: int = 0) -> Tensor:
        """Draw rows: of 8gaussians, standardised, in the plane; else standard normal ones."""
        if self.dim != 2:
            return torch.randn(count, self.dim, generator=torch.Generator().manual_seed(seed))
        x = torch.from_numpy(TOYS["8gaussians"].sample(count, seed)).float()
        return (x - x.mean(0)) / x.std(0)


TOY_NETWORK = BenchmarkNetwork(2, (64, 64, 64), "tanh", rtol=1e-5, atol=1e-5)
MINIBOONE_NETWORK = BenchmarkNetwork(43, (860, 860), "softplus", rtol=1e-6, atol=1e-8)


def initial_flow(network: BenchmarkNetwork, *, zero_last: bool = False) -> Ours:
    """Return this library's flow in joint steps, with PyTorch's default weights.

    There is no standardisation. With `zero_last` the field is zero, as that of a new flow is.
    """
    with seeded(0):
        # The activations' memory is the default of recipes.
        solver = {**network.tolerances, "step": "joint", "activation_bytes": 2**28}
        sizes = network.dim, network.hidden
        flow = ffjord(*sizes, activation=network.activation, zero_last=zero_last, **solver)
    return Ours("cnf, joint", flow, network)


def initial_spline(network: BenchmarkNetwork) -> Zuko:
    """Return zuko's neural spline flow, the smaller of the two that tables are fitted with."""
    with seeded(0):
        return Zuko("zuko's NSF", peer("zuko").flows.NSF(network.dim, **SMALL_NETWORK))


def initial_zuko(network: BenchmarkNetwork) -> Zuko:
    """Return zuko's CNF, with its time embedding and its default weights."""
    with seeded(0):
        activation = ACTIVATION_MODULES[network.activation]
        options = {"hidden_features": network.hidden, "activation": activation, "exact": True}
        flow = peer("zuko").flows.CNF(network.dim, **options, **network.tolerances)
    return Zuko("zuko's CNF", flow, flow.transform.ode)


def trained(
    build: Callable[[BenchmarkNetwork], SomeContender], network: BenchmarkNetwork
) -> SomeContender:
    """Return a contender after steps of Adam on fresh rows, taken at a loose tolerance."""
    loose = replace(network, rtol=TRAINING_TOLERANCE, atol=TRAINING_TOLERANCE)
    fast, exact = build(loose), build(network)
    optimizer = torch.optim.Adam(fast.module.parameters(), lr=3e-3)
    for step in range(TRAINING_STEPS):
        optimizer.zero_grad()
        (-fast.log_prob(network.rows(TRAINING_BATCH, seed=step)).mean()).backward()
        optimizer.step()
    exact.module.load_state_dict(fast.module.state_dict())
    return exact


def same_field(ours: Ours, *, exact: bool) -> FFJORD:
    """Return the rewrite of FFJORD's method on a copy of a flow's weights."""
    layers = copy.deepcopy([*ours.field.layers, ours.field.last])
    twin = ConcatSquashNetwork(layers, ACTIVATION_MODULES[ours.network.activation]())
    return FFJORD(twin, ours.network.rtol, ours.network.atol, exact=exact)
