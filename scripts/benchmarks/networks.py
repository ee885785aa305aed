"""The networks that flows are compared on, and the contenders that are made of them."""

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

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}
KEEP = 2**28  # bytes of activations that training does not compute twice, as recipes have it
TRAINING_STEPS, TRAINING_ROWS, TRAINING_BATCH = 300, 10_000, 512
LOOSE = 1e-3  # the tolerance of training

# What the tables that train FFJORD's own network train it by.
TRAINING = Recipe(
    objective="mle",
    hidden=(64, 64, 64),
    activation="tanh",
    batch_size=TRAINING_BATCH,
    learning_rate=2e-2,
    warmup=0.02,
    max_grad_norm=5.0,
    ema_decay=0.995,
    method="dopri5",
    rtol=LOOSE,
    atol=LOOSE,
)


@dataclass(frozen=True)
class Network:
    """A network's sizes, and the tolerances that its flow is solved at.

    Attributes:
        dim: Size of x.
        hidden: Widths of the hidden layers.
        activation: A name in `ACTIVATIONS`.
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


TOY = Network(2, (64, 64, 64), "tanh", rtol=1e-5, atol=1e-5)
MINIBOONE = Network(43, (860, 860), "softplus", rtol=1e-6, atol=1e-8)


def initial_flow(network: Network, seed: int = 0) -> Flow:
    """This library's flow with PyTorch's default weights; its standardisation is the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ffjord(
            network.dim,
            network.hidden,
            activation=network.activation,
            zero_last=False,
            rtol=network.rtol,
            atol=network.atol,
            step="joint",
            activation_bytes=KEEP,
        )


def initial_zuko(network: Network, seed: int = 0) -> Any:
    """Zuko's flow, with its own time embedding and its default weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peer("zuko").flows.CNF(
            network.dim,
            hidden_features=network.hidden,
            activation=ACTIVATIONS[network.activation],
            rtol=network.rtol,
            atol=network.atol,
            exact=True,
        )


def trained_flow(network: Network, rows: Tensor) -> Flow:
    """This library's flow after some hundred steps on rows."""
    flow = initial_flow(network)
    for layer in flow.layers:  # the contenders have no standardisation: so it stays the identity
        if not isinstance(layer, CNF):
            layer.get_buffer("fitted").fill_(True)
    fit(flow, rows, recipe=TRAINING, steps=TRAINING_STEPS)
    return flow


def trained_zuko(network: Network, rows: Tensor) -> Any:
    """Zuko's flow after as many steps of Adam, at a loose tolerance."""
    flow = initial_zuko(network)
    flow.transform.rtol = flow.transform.atol = LOOSE
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
    """Rows of 8gaussians, in standard units."""
    x = torch.from_numpy(TOYS["8gaussians"].sample(rows, seed)).float()
    return (x - x.mean(0)) / x.std(0)


def normal_rows(network: Network, rows: int) -> Tensor:
    """Rows of the standard normal distribution: what a standardised table is like."""
    return torch.randn(rows, network.dim, generator=torch.Generator().manual_seed(0))


def same_field(flow: Flow, network: Network, *, exact: bool) -> FFJORD:
    """FFJORD's method on a copy of a flow's own weights."""
    (field,) = (layer.field for layer in flow.layers if isinstance(layer, CNF))
    sizes = (network.dim, *network.hidden, network.dim)
    activation = ACTIVATIONS[network.activation]()
    twin = ConcatSquashNetwork(sizes, activation, gate_last=False).to(flow.like.dtype)
    layers = [*field.get_submodule("layers").children(), field.get_submodule("last")]
    for theirs, ours in zip(twin.layers, layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    name = "FFJORD's method" if exact else "FFJORD's, hutchinson"
    return FFJORD(name, twin, network.rtol, network.atol, exact=exact)


def exact_lineup(network: Network, flow: Flow, zuko: Any) -> list[Contender]:
    """All three with exact traces, this library's first."""
    return [
        Ours("cnf", flow),
        same_field(flow, network, exact=True),
        Zuko("zuko", zuko),
    ]


def table_lineup(network: Network, flow: Flow) -> list[Contender]:
    """What trains wide networks: exact by the closed form, and Hutchinson's estimates."""
    estimating = copy.deepcopy(flow).with_solver(divergence="hutchinson")
    return [
        Ours("cnf, exact", flow),
        Ours("cnf, hutchinson", estimating),
        same_field(flow, network, exact=False),
    ]


def compiled(flow: Flow) -> Ours:
    """This library's flow compiled, on weights of its own."""
    return Ours("cnf, compiled", copy.deepcopy(flow).with_solver(compile=True))
