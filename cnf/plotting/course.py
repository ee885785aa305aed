"""A flow's course from base to data in NumPy's arrays: states, densities, velocities on the way.

Flow time runs from 0, the base, to 1, the data, evenly through all CNF layers. Layers without time
on the data's side of where it stands (standardisation, logarithms, …) are applied throughout, as in
`cnf.Flow.path`: all is in the data's own coordinates, and what there is at 1 is the flow itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.flow import Flow
from cnf.layers import CNF, Layer

Array = NDArray[np.float64]

CHUNK = 4096  # rows in one solve
SHADES = 1e-3  # a tolerance finer than shades and dots are


@dataclass(frozen=True, eq=False)
class FlowPosition:
    """Where a flow stands at a time.

    Attributes:
        before: Layers on the base's side.
        layer: The CNF layer that it is passing through.
        time: That layer's own time, from 0 to 1.
        after: Layers without time on the data's side.
    """

    before: Sequence[Layer]
    layer: CNF
    time: float
    after: Sequence[Layer]

    @staticmethod
    def of(flow: Flow, time: float) -> FlowPosition:
        """Where `flow` stands at a time from 0 to 1.

        Raises:
            ValueError: It is no such time, or the flow has no CNF layer.
        """
        places = [i for i, layer in enumerate(flow.layers) if isinstance(layer, CNF)]
        if not places or not 0 <= time <= 1:
            raise ValueError(
                f"Expected a time from 0 to 1 and a CNF layer; got {time:g} and {len(places)}"
            )
        crossed = min(int(time * len(places)), len(places) - 1)
        place = places[crossed]
        layer = flow.layers[place]
        assert isinstance(layer, CNF)
        after = [other for other in flow.layers[place + 1 :] if not isinstance(other, CNF)]
        return FlowPosition(flow.layers[:place], layer, time * len(places) - crossed, after)


def quick(flow: Flow) -> Flow:
    """The flow, solved no more exactly than figures show."""
    return flow.with_solver(rtol=SHADES, atol=SHADES, step="joint")


def log_prob_of(flow: Flow, rows: Array, context: Array | None = None) -> Array:
    """Log p of rows (n, dim), given contexts (n, context columns) where the flow takes them."""
    with torch.no_grad():
        parts = [flow.log_prob(*pair) for pair in _chunks(flow, rows, context)]
    return torch.cat(parts).double().cpu().numpy()


def log_prob_at(flow: Flow, time: float, rows: Array, context: Array | None = None) -> Array:
    """The log-density that the flow's points have at a time, in nats, at rows (n, dim).

    Example:
        >>> import cnf
        >>> rows = np.zeros((1, 2))
        >>> print(f"{log_prob_at(cnf.ffjord(2), 0.0, rows)[0]:.4f}")  # -log 2 pi
        -1.8379
    """
    standing = FlowPosition.of(flow, time)
    with torch.no_grad():
        parts = [_log_prob_at(flow, standing, *pair) for pair in _chunks(flow, rows, context)]
    return torch.cat(parts).double().cpu().numpy()


def velocity_at(flow: Flow, time: float, rows: Array, context: Array | None = None) -> Array:
    """The velocity at a time of the points that are at rows (n, dim) then, in the data's units.

    Through layers without time it is carried by their Jacobian; n CNF layers are gone through in
    one unit of time, so that it is n times their own.

    Example:
        >>> import cnf
        >>> velocity_at(cnf.ffjord(2), 0.5, np.zeros((1, 2)))
        array([[0., 0.]])
    """
    standing = FlowPosition.of(flow, time)
    parts = [_velocity_at(flow, standing, *pair) for pair in _chunks(flow, rows, context)]
    return flow.solves * torch.cat(parts).double().cpu().numpy()


def base_rows(flow: Flow, n: int, seed: int = 0) -> Tensor:
    """Draws of a flow's base, without a change of PyTorch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return flow.base.sample(torch.Size((n,))).to(flow.like)


def path_of(flow: Flow, z: Tensor, frames: int, context: Array | None = None) -> Array:
    """The states of base points (rows, dim) at evenly spread times, shape (frames, rows, dim).

    All of them come from one solve, by its dense output; of many rows, from one for every few
    thousands.

    Args:
        flow: The flow.
        z: Base points.
        frames: How many times, the first 0 and the last 1.
        context: One context (context columns,), the same for all.
    """
    with torch.no_grad():
        parts = [
            flow.path(few, frames, _given(flow, context, len(few))).cpu()
            for few in z.split(4 * CHUNK)
        ]
    return torch.cat(parts, 1).double().numpy()


def _log_prob_at(flow: Flow, standing: FlowPosition, x: Tensor, context: Tensor | None) -> Tensor:
    context = flow.standardized(context)
    log_det = x.new_zeros(len(x))
    for layer in reversed(standing.after):
        mapped = layer.pull(x, context)
        x, log_det = mapped.value, log_det + mapped.log_det
    if standing.time > 0:
        mapped = standing.layer.between(x, standing.time, 0.0, context)
        x, log_det = mapped.value, log_det + mapped.log_det
    for layer in reversed(standing.before):
        mapped = layer.pull(x, context)
        x, log_det = mapped.value, log_det + mapped.log_det
    log_prob: Tensor = flow.base.log_prob(x) + log_det
    return log_prob


def _velocity_at(flow: Flow, standing: FlowPosition, x: Tensor, context: Tensor | None) -> Tensor:
    context = flow.standardized(context)

    def shown(u: Tensor) -> Tensor:
        for layer in standing.after:
            u = layer.transport(u, context)
        return u

    with torch.no_grad():
        for layer in reversed(standing.after):
            x = layer.preimage(x, context)
        own = standing.layer.velocity(x.new_tensor(standing.time), x, context)
    carried: Tensor = torch.autograd.functional.jvp(shown, x, own)[1]
    return carried


def _chunks(
    flow: Flow, rows: Array, context: Array | None
) -> Sequence[tuple[Tensor, Tensor | None]]:
    x = torch.from_numpy(rows).to(flow.like).split(CHUNK)
    if context is None:
        return [(few, None) for few in x]
    return list(zip(x, torch.from_numpy(context).to(flow.like).split(CHUNK), strict=True))


def _given(flow: Flow, context: Array | None, rows: int) -> Tensor | None:
    """One context for each of the rows."""
    return None if context is None else torch.from_numpy(context).to(flow.like).expand(rows, -1)
