"""Evolution of a flow from base to data as NumPy arrays: states, densities, velocities.

Flow time runs from 0, the base, to 1, the data, evenly through all layers with a field. Layers
without time on the data's side of the current position (standardisation, logarithms, …) are applied
throughout, as in `cnf.Flow.path`: results are in the data's coordinates, and at time 1 they are the
flow's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.batching import in_chunks
from cnf.layers import CNF, FieldLayer, Layer, Steps, TransformResult
from cnf.layers.explicit_step import Coefficients
from cnf.plotting.panels import Array
from cnf.utils.random import seeded

SOLVE_CHUNK_ROWS = 4096  # rows in one solve
FIGURE_TOLERANCE = 1e-3  # finer than shades and dots can show


class FlowPosition(NamedTuple):
    """A position in a flow at a time."""

    before: Sequence[Layer]  # on the base's side
    layer: FieldLayer
    time: float  # within the layer, from 0 to 1
    after: Sequence[Layer]  # without time, on the data's side

    @staticmethod
    def of(flow: Flow, time: float) -> "FlowPosition":
        """Return the position of `flow` at a time from 0 to 1."""
        places = [i for i, layer in enumerate(flow.layers) if isinstance(layer, FieldLayer)]
        if not places or not 0 <= time <= 1:
            raise ValueError(
                f"Expected a time from 0 to 1 and a CNF layer; got {time:g} and {len(places)} "
                "CNF layers: choose another time or flow"
            )
        crossed = min(int(time * len(places)), len(places) - 1)
        place = places[crossed]
        layer = flow.layers[place]
        assert isinstance(layer, FieldLayer)
        after = [other for other in flow.layers[place + 1 :] if not isinstance(other, FieldLayer)]
        return FlowPosition(flow.layers[:place], layer, time * len(places) - crossed, after)


class PartialSteps(Steps):
    """The explicit steps of a layer between the base and a time, the one across it cut short.

    Its states are those of the layer at the steps' ends; between them they are a step's of a
    smaller size.
    """

    def __init__(self, layer: Steps, time: float) -> None:
        super().__init__(
            layer.field, layer.count, layer.method, learnt=layer.learnt, towards=layer.towards
        )
        self._parameters = layer._parameters
        self.time = time

    def times(self, like: Tensor) -> tuple[Tensor, Tensor]:
        times, sizes = super().times(like)
        ends = sizes.cumsum(0)
        begins = ends - sizes
        low, high = (1 - self.time, 1.0) if self.towards == "base" else (0.0, self.time)
        left = begins.clamp(low, high)
        cut = ends.clamp(low, high) - left
        shares = (times - begins.unsqueeze(1)) / sizes.unsqueeze(1)
        return left.unsqueeze(1) + shares * cut.unsqueeze(1), cut

    def coefficients(self, sizes: Tensor) -> list[Coefficients]:
        sign = -1.0 if self.towards == "base" else 1.0
        found = [sign * size for size in sizes.tolist()]
        own = super().coefficients(sizes)
        return [each._replace(size=size) for each, size in zip(own, found, strict=True)]


def quick(flow: Flow) -> Flow:
    """Return the flow with the loose solver tolerance that figures need."""
    return flow.with_solver(rtol=FIGURE_TOLERANCE, atol=FIGURE_TOLERANCE, step="joint")


def log_prob_of(flow: Flow, rows: Array, context: Array | None = None) -> Array:
    """Return log p (n,) of rows (n, dim), given contexts (n, context columns) if any."""
    with torch.no_grad():
        found = flow.log_prob(*_tensors(flow, rows, context), max_batch=SOLVE_CHUNK_ROWS)
    return found.double().cpu().numpy()


def log_prob_at(flow: Flow, time: float, rows: Array, context: Array | None = None) -> Array:
    """Return the log-density at a time, in nats, of rows (n, dim).

    Example:
        >>> import cnf, numpy as np
        >>> rows = np.zeros((1, 2))
        >>> print(f"{log_prob_at(cnf.ffjord(2), 0.0, rows)[0]:.4f}")  # -log 2 pi
        -1.8379
    """
    solve = partial(_log_prob_at, flow, FlowPosition.of(flow, time))
    with torch.no_grad():
        found = in_chunks(solve, *_tensors(flow, rows, context), SOLVE_CHUNK_ROWS)
    return found.double().cpu().numpy()


def velocity_at(flow: Flow, time: float, rows: Array, context: Array | None = None) -> Array:
    """Return the velocity (n, dim) at a time of points at rows (n, dim), in the data's units.

    Layers without time multiply it by their Jacobian. A flow of k layers with a field passes
    through all of them in one unit of time, so the velocity is k times that of the current layer.

    Example:
        >>> import cnf, numpy as np
        >>> velocity_at(cnf.ffjord(2), 0.5, np.zeros((1, 2)))
        array([[0., 0.]])
    """
    solve = partial(_velocity_at, flow, FlowPosition.of(flow, time))
    found = in_chunks(solve, *_tensors(flow, rows, context), SOLVE_CHUNK_ROWS)
    crossed = sum(isinstance(layer, FieldLayer) for layer in flow.layers)
    return crossed * found.double().cpu().numpy()


def base_rows(flow: Flow, n: int, seed: int = 0) -> Tensor:
    """Draw rows (n, dim) of a flow's base without advancing PyTorch's generator."""
    with seeded(seed):
        return flow.base.sample(torch.Size((n,))).to(flow.like)


def path_of(flow: Flow, z: Tensor, frames: int, context: Array | None = None) -> Array:
    """Return the states (frames, rows, dim) of base points (rows, dim) at times from 0 to 1.

    The times are evenly spread, and their states come from one solve by dense output; many rows are
    solved in chunks. All points share a context (context columns,).
    """
    given = None if context is None else torch.from_numpy(context).to(flow.like)
    with torch.no_grad():
        parts = [
            flow.path(chunk, frames, None if given is None else given.expand(len(chunk), -1)).cpu()
            for chunk in z.split(4 * SOLVE_CHUNK_ROWS)
        ]
    return torch.cat(parts, 1).double().numpy()


def _log_prob_at(flow: Flow, position: FlowPosition, x: Tensor, context: Tensor | None) -> Tensor:
    context = flow.standardized(context)
    pulls = [layer.pull for layer in (*position.before, *position.after)]
    if position.time > 0:
        pulls.insert(len(position.before), _partway(position.layer, position.time))
    log_det = x.new_zeros(len(x))
    for pull in reversed(pulls):
        mapped = pull(x, context=context)
        x, log_det = mapped.value, log_det + mapped.log_det
    log_prob: Tensor = flow.base.log_prob(x) + log_det
    return log_prob


def _partway(layer: FieldLayer, time: float) -> Callable[..., TransformResult]:
    """Return the map from states of a layer at a time to its start."""
    if isinstance(layer, Steps):
        return PartialSteps(layer, time).pull
    assert isinstance(layer, CNF)
    return partial(layer.between, begin=time, end=0.0)


def _velocity_at(flow: Flow, position: FlowPosition, x: Tensor, context: Tensor | None) -> Tensor:
    context = flow.standardized(context)

    def to_data(u: Tensor) -> Tensor:
        for layer in position.after:
            u = layer.transport(u, context)
        return u

    with torch.no_grad():
        for layer in reversed(position.after):
            x = layer.preimage(x, context)
        layer_velocity = position.layer.velocity(x.new_tensor(position.time), x, context)
    velocity: Tensor = torch.autograd.functional.jvp(to_data, x, layer_velocity)[1]
    return velocity


def _tensors(flow: Flow, rows: Array, context: Array | None) -> tuple[Tensor, Tensor | None]:
    given = None if context is None else torch.from_numpy(context).to(flow.like)
    return torch.from_numpy(rows).to(flow.like), given
