"""The networks that flows are compared on, and the contenders built from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnf.datasets import TOYS
from cnf.flow import Flow, ffjord
from cnf.layers import CNF
from cnf.scripts.benchmarks.contenders import FFJORD, Contender, Ours, Zuko
from cnf.scripts.benchmarks.ffjord import ConcatSquashNetwork
from cnf.scripts.benchmarks.peers import peer
from cnf.training.loop import fit
from cnf.training.recipes import Recipe
from cnf.utils.random import seeded

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}
ACTIVATION_BYTES = 2**28  # the default of recipes
TRAINING_STEPS, TRAINING_ROWS, TRAINING_BATCH = 300, 10_000, 512
TRAINING_TOLERANCE = 1e-3

# The recipe of the tables that train FFJORD's network.
TRAINING_RECIPE = Recipe(
    objective="mle",
    hidden=(64, 64, 64),
    activation="tanh",
    batch_size=TRAINING_BATCH,
    learning_rate=2e-2,
    warmup=0.02,
    max_grad_norm=5.0,
    ema_decay=0.995,
    method="dopri5",
    rtol=TRAINING_TOLERANCE,
    atol=TRAINING_TOLERANCE,
)


@dataclass(frozen=True)
class BenchmarkNetwork:
    """The sizes of a network, and the tolerances of its flow.

    Attributes:
        dim: Size of x.
        hidden: Widths of the hidden layers.
        activation: A name in `ACTIVATION_MODULES`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    dim: int
    hidden: tuple[int, ...]
    activation: str
    rtol: float
    atol: float

    def __str__(self) -> str:
        sizes = "-".join(map(str, (self.dim, *self.hidden, self.dim)))
        return f"{sizes}, {self.activation}, rtol {self.rtol:g}, atol {self.atol:g}"


TOY_NETWORK = BenchmarkNetwork(2, (64, 64, 64), "tanh", rtol=1e-5, atol=1e-5)
MINIBOONE_NETWORK = BenchmarkNetwork(43, (860, 860), "softplus", rtol=1e-6, atol=1e-8)


def initial_flow(network: BenchmarkNetwork, seed: int = 0) -> Flow:
    """Return this library's flow with PyTorch's default weights and no standardisation."""
    with seeded(seed):
        return ffjord(
            network.dim,
            network.hidden,
            activation=network.activation,
            zero_last=False,
            rtol=network.rtol,
            atol=network.atol,
            step="joint",
            activation_bytes=ACTIVATION_BYTES,
        )


def initial_zuko(network: BenchmarkNetwork, seed: int = 0) -> Any:
    """Return zuko's flow, with its time embedding and its default weights."""
    with seeded(seed):
        return peer("zuko").flows.CNF(
            network.dim,
            hidden_features=network.hidden,
            activation=ACTIVATION_MODULES[network.activation],
            rtol=network.rtol,
            atol=network.atol,
            exact=True,
        )


def trained_flow(network: BenchmarkNetwork, rows: Tensor) -> Flow:
    """Return this library's flow after a few hundred training steps on rows."""
    flow = initial_flow(network)
    for layer in flow.layers:  # stays the identity, since the contenders have none
        if not isinstance(layer, CNF):
            layer.get_buffer("fitted").fill_(True)
    fit(flow, rows, recipe=TRAINING_RECIPE, steps=TRAINING_STEPS)
    return flow


def trained_zuko(network: BenchmarkNetwork, rows: Tensor) -> Any:
    """Return zuko's flow after as many steps of Adam, at a loose tolerance."""
    flow = initial_zuko(network)
    flow.transform.rtol = flow.transform.atol = TRAINING_TOLERANCE
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRAINING_STEPS):
        batch = rows[torch.randint(len(rows), (TRAINING_BATCH,), generator=generator)]
        optimizer.zero_grad()
        (-flow().log_prob(batch).mean()).backward()
        optimizer.step()
    flow.transform.rtol, flow.transform.atol = network.rtol, network.atol
    return flow


def toy_rows(rows: int, seed: int = 0) -> Tensor:
    """Draw standardised rows of 8gaussians."""
    x = torch.from_numpy(TOYS["8gaussians"].sample(rows, seed)).float()
    return (x - x.mean(0)) / x.std(0)


def normal_rows(network: BenchmarkNetwork, rows: int) -> Tensor:
    """Draw rows of the standard normal distribution, in place of a standardised table."""
    return torch.randn(rows, network.dim, generator=torch.Generator().manual_seed(0))


def same_field(flow: Flow, network: BenchmarkNetwork, *, exact: bool) -> FFJORD:
    """Return FFJORD's method on a copy of a flow's weights."""
    (field,) = (layer.field for layer in flow.layers if isinstance(layer, CNF))
    sizes = (network.dim, *network.hidden, network.dim)
    activation = ACTIVATION_MODULES[network.activation]()
    twin = ConcatSquashNetwork(sizes, activation, gate_last=False).to(flow.like.dtype)
    layers = [*field.get_submodule("layers").children(), field.get_submodule("last")]
    for theirs, ours in zip(twin.layers, layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    name = "FFJORD's method" if exact else "FFJORD's, hutchinson"
    return FFJORD(name, twin, network.rtol, network.atol, exact=exact)


def exact_lineup(network: BenchmarkNetwork, flow: Flow, zuko: Any) -> list[Contender]:
    """Return all three contenders with exact traces, this library's first."""
    return [
        Ours("cnf", flow),
        same_field(flow, network, exact=True),
        Zuko("zuko", zuko),
    ]


def table_lineup(network: BenchmarkNetwork, flow: Flow) -> list[Contender]:
    """Return the contenders for wide networks: closed-form traces and Hutchinson's estimates."""
    estimating = copy.deepcopy(flow).with_solver(divergence="hutchinson")
    return [
        Ours("cnf, exact", flow),
        Ours("cnf, hutchinson", estimating),
        same_field(flow, network, exact=False),
    ]


def compiled(flow: Flow) -> Ours:
    """Return this library's flow, compiled, on a copy of the weights."""
    return Ours("cnf, compiled", copy.deepcopy(flow).with_solver(compile=True))
