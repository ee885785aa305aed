"""A multilayer perceptron, the exact trace of its Jacobian, and the gradient of both by hand.

At one time it is a chain of affine maps, each but the last gated and followed by an activation:

    z_l = (W_l h_{l−1}) ∘ g_l + o_l,   h_l = σ_l(z_l),   f = W_{L+1} h_L + o_{L+1},   h₀ = x.

With the slopes d_l = g_l ∘ σ_l'(z_l) the trace of ∂f/∂x is

    L = 1:  dᵀ p,        p = rowsum(W₁ ∘ W₂ᵀ),
    L = 2:  d₂ᵀ P d₁,    P = W₂ ∘ (W₁ W₃)ᵀ,
    L ≥ 3:  Σ_j Σ_k A_jk d_{L−1,k} C_jk,   C_j = N_jᵀ d₁ carried on by C ← W_l (d_{l−1} ∘ C),
            A_j = M_jᵀ d_L,   N_j = (W₂ ∘ W₁[:, j])ᵀ,   M_j = W_L ∘ W_{L+1}[j, :]ᵀ,

with j over the dimensions of x. The matrices p, P, N and M are of the weights alone. So one and two
hidden layers cost one product for each state whatever the dimension; deeper ones carry `dim`
tangents, but through neither the first two layers nor the last two: those are never formed.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields.activations import Activation


class Perceptron(NamedTuple):
    """A perceptron at one time.

    Attributes:
        weights: W₁ … W_{L+1}, each (out, in). A gate that is the same for all rows is folded in,
            and into the matrices of the trace.
        offsets: o₁ … o_{L+1}, one after the other, shape (width,) or (rows, width).
        gates: g₁ … g_L, one after the other, (rows, width); None where folded in, or absent.
        matrices: Matrices of the trace: (p,), (P,) or (N, M); empty for the velocity alone.
    """

    weights: tuple[Tensor, ...]
    offsets: Tensor
    gates: Tensor | None
    matrices: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in order."""
        gates = [] if self.gates is None else [self.gates]
        return [*self.weights, self.offsets, *gates, *self.matrices]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Perceptron":
        """Return a perceptron of this form with other tensors, in the order of `tensors`."""
        layers, gated = len(self.weights), self.gates is not None
        gates, rest = tensors[layers + 1] if gated else None, layers + 1 + gated
        return Perceptron(tuple(tensors[:layers]), tensors[layers], gates, tuple(tensors[rest:]))


class StagedPerceptron(NamedTuple):
    """A perceptron at the times of a step's stages.

    Attributes:
        net: Its tensors; those that differ between the times have an axis for them in front.
        times: The number of times.
        folded: Whether gates are folded in, so that hidden weights and matrices differ in time.
    """

    net: Perceptron
    times: int
    folded: bool

    def timed(self) -> list[bool]:
        """Return which of the net's tensors differ between the times."""
        gates = [] if self.net.gates is None else [True]
        hidden = [self.folded] * (len(self.net.weights) - 1)
        return [*hidden, False, True, *gates, *[self.folded] * len(self.net.matrices)]

    def stages(self) -> list[Perceptron]:
        """Return the perceptron at each of the times."""
        count = self.times
        columns = [
            tensor.unbind() if timed else [tensor] * count
            for tensor, timed in zip(self.net.tensors(), self.timed(), strict=True)
        ]
        return [self.net.with_tensors(row) for row in zip(*columns, strict=True)]


def trace_matrices(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the matrices p, P, or N of shape (H₁, dim H₂) and M of shape (H_L, dim H_{L−1})."""
    match weights:
        case [first, last]:
            return ((first * last.T).sum(1),)
        case [first, middle, last]:
            return (middle * (first @ last).T,)
        case [first, second, *_, before, last]:
            N = second.T.unsqueeze(1) * first.unsqueeze(2)
            M = before.unsqueeze(1) * last.T.unsqueeze(2)
            return N.flatten(1), M.flatten(1)
        case _:
            raise AssertionError("a perceptron has a hidden layer")


class HiddenLayer(NamedTuple):
    """A hidden layer at a state: h = σ(z), its auxiliary tensor, and W h before its gate."""

    value: Tensor
    auxiliary: Tensor | None
    product: Tensor | None


class SavedEvaluation(NamedTuple):
    """An evaluation, as its vector-Jacobian product needs it.

    Attributes:
        hidden: The hidden layers.
        ends: P d₁, or A_j one after the other; None for one hidden layer.
        carried: C₂ … C_{L−1}, each with its C_j one after the other.
    """

    hidden: list[HiddenLayer]
    ends: Tensor | None
    carried: list[Tensor]

    @property
    def nbytes(self) -> int:
        tensors = [tensor for layer in self.hidden for tensor in layer if tensor is not None]
        tensors += [*self.carried, *([] if self.ends is None else [self.ends])]
        return sum(tensor.nbytes for tensor in tensors)


class TraceCotangents(NamedTuple):
    """The cotangents of slopes (None without a trace), of matrices, and of weights by place."""

    slopes: Sequence[Tensor | None]
    matrices: tuple[Tensor, ...]
    weights: dict[int, Tensor]


def velocity(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> Tensor:
    """Return the velocity, (rows, dim) → (rows, dim)."""
    return _last(net, _hidden(net, activations, x))


def velocity_and_trace(
    net: Perceptron, activations: Sequence[Activation], x: Tensor
) -> tuple[Tensor, SavedEvaluation]:
    """Return the slope (velocity, its divergence), (rows, dim + 1), saved for its adjoint."""
    hidden = _hidden(net, activations, x)
    trace, ends, carried = _trace(net, _gated(net, _derivatives(activations, hidden)))
    slope = torch.cat([_last(net, hidden), trace.unsqueeze(1)], 1)
    return slope, SavedEvaluation(hidden, ends, carried)


def velocity_only(
    net: Perceptron, activations: Sequence[Activation], x: Tensor
) -> tuple[Tensor, SavedEvaluation]:
    """Return the slope (velocity, 0), (rows, dim + 1), saved for its adjoint."""
    hidden = _hidden(net, activations, x)
    return pad(_last(net, hidden), (0, 1)), SavedEvaluation(hidden, None, [])


def jacobian_products(
    net: Perceptron, activations: Sequence[Activation], x: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity, and the Jacobian's products with `vectors` (K, rows or 1, dim)."""
    hidden = _hidden(net, activations, x)
    slopes = _gated(net, _derivatives(activations, hidden))
    for slope, weight in zip(slopes, net.weights, strict=False):
        vectors = slope * (vectors @ weight.T)
    return _last(net, hidden), vectors @ net.weights[-1].T


class RowSubsets(NamedTuple):
    """The rows of a batch that count any of some columns, by the subset that each counts.

    Attributes:
        order: Numbers of these rows, those of one subset together.
        counts: The number of rows of each subset.
        matrices: The matrix P_u of each subset, transposed, (subsets, H₁, H₂).
    """

    order: Tensor
    counts: list[int]
    matrices: Tensor

    @classmethod
    def of(cls, counted: Tensor, matrices: Tensor) -> Self:
        """Return them for booleans (rows, k) and the matrices of the 2ᵏ subsets, by their bits.

        The empty subset is the first one.
        """
        bits = 2 ** torch.arange(counted.shape[1], device=counted.device)
        subset = (counted.long() * bits).sum(1)
        counts = torch.bincount(subset, minlength=len(matrices)).tolist()
        return cls(subset.argsort()[counts[0] :], counts[1:], matrices[1:])


def velocity_and_trace_over(
    subsets: Sequence[RowSubsets],
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the velocity of two hidden layers, and sums of ∂f_j/∂x_j over some columns of a row.

    Rows that count the same subset u of k columns share P_u, so that a sum over any columns takes
    dim / k products of matrices.

    Args:
        subsets: The rows by what they count of each part of the columns, which do not overlap.
        net: The perceptron.
        activations: Its activations.
        x: Shape (rows, dim).
    """
    hidden = _hidden(net, activations, x)
    first, second = _gated(net, _derivatives(activations, hidden))
    trace = x.new_zeros(len(x))
    for order, counts, matrices in subsets:
        if not len(order):
            continue
        pairs = zip(first[order].split(counts), matrices, strict=True)
        ends = torch.cat([rows @ matrix for rows, matrix in pairs if len(rows)])
        trace = trace.index_add(0, order, (ends * second[order]).sum(1))
    return _last(net, hidden), trace


def jacobian(
    net: Perceptron, activations: Sequence[Activation], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity and its transposed Jacobian, (rows, dim), (rows, dim in, dim out).

    The tangents of the unit vectors pass through all layers but the first, and the second as well
    where there is one: they are d₁ N there, with the matrix N of the trace.
    """
    hidden = _hidden(net, activations, x)
    first, *slopes = _gated(net, _derivatives(activations, hidden))
    weight = net.weights[0]
    if slopes:
        N = net.weights[1].T * weight.T.unsqueeze(2)  # (dim, hidden, hidden)
        tangents = first @ N  # (dim, rows, hidden)
        for slope, weight in zip(slopes[:-1], net.weights[2:-1], strict=True):
            tangents = _scaled(tangents, slope) @ weight.T
        tangents = _scaled(tangents, slopes[-1])
    else:
        tangents = first * weight.T.unsqueeze(1)
    columns = tangents @ net.weights[-1].T
    return _last(net, hidden), columns.transpose(0, 1)


def _scaled(tangents: Tensor, slope: Tensor) -> Tensor:
    """Return tangents (dim, rows, width) times the slopes of rows, in place without autograd."""
    return tangents * slope if torch.is_grad_enabled() else tangents.mul_(slope)


def velocity_and_trace_vjp(
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
    saved: SavedEvaluation,
    slope: Tensor,
) -> tuple[Tensor, Perceptron]:
    """Return the cotangents of the state (x, log-density) and of the net for that of the slope."""
    derivatives = _derivatives(activations, saved.hidden)
    trace = _trace_vjp(net, _gated(net, derivatives), saved, slope[:, -1])
    return _layers_vjp(net, activations, x, saved.hidden, derivatives, slope[:, :-1], trace)


def velocity_only_vjp(
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
    saved: SavedEvaluation,
    slope: Tensor,
) -> tuple[Tensor, Perceptron]:
    """Return the cotangents of the state and of the net where the slope has no trace."""
    derivatives = _derivatives(activations, saved.hidden)
    zeros = tuple(torch.zeros_like(matrix) for matrix in net.matrices)
    trace = TraceCotangents([None] * len(derivatives), zeros, {})
    return _layers_vjp(net, activations, x, saved.hidden, derivatives, slope[:, :-1], trace)


def _layers_vjp(
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
    hidden: Sequence[HiddenLayer],
    derivatives: Sequence[Tensor],
    velocity: Tensor,
    trace: TraceCotangents,
) -> tuple[Tensor, Perceptron]:
    """Return the cotangents of state and net for those of the velocity and of the trace's parts."""
    gates = _parts(net.gates, net.weights[:-1])
    weights: list[Tensor] = [velocity.T @ hidden[-1].value]
    offsets, gate_parts = [velocity], []
    h = velocity @ net.weights[-1]
    for i in reversed(range(len(hidden))):
        layer, gate, derivative, bar = hidden[i], gates[i], derivatives[i], trace.slopes[i]
        if bar is None:
            z = h * derivative
        else:
            d = bar if gate is None else bar * gate
            z = activations[i].adjoint(layer.value, layer.auxiliary, derivative, h, d)
        offsets.append(z)
        if gate is not None:
            assert layer.product is not None
            own = z * layer.product
            gate_parts.append(own if bar is None else torch.addcmul(own, bar, derivative))
            z = z * gate
        before = hidden[i - 1].value if i else x
        # A tall product is far slower than a wide one.
        weight = z.T @ before if before.shape[1] >= z.shape[1] else (before.T @ z).T
        weights.append(weight + trace.weights[i] if i in trace.weights else weight)
        h = z @ net.weights[i]
    shared = net.offsets.ndim == 1
    parts = [part.sum(0) if shared else part for part in reversed(offsets)]
    return pad(h, (0, 1)), Perceptron(
        tuple(reversed(weights)),
        torch.cat(parts, -1),
        torch.cat(gate_parts[::-1], -1) if gate_parts else None,
        trace.matrices,
    )


def _hidden(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> list[HiddenLayer]:
    layers = []
    weights = net.weights[:-1]
    offsets = net.offsets.split([weight.shape[0] for weight in net.weights], -1)
    gates = _parts(net.gates, weights)
    for weight, offset, gate, activation in zip(weights, offsets, gates, activations, strict=False):
        if gate is None:
            z, product = torch.addmm(offset, x, weight.T), None
        else:
            product = x @ weight.T
            z = torch.addcmul(offset, product, gate)
        x, auxiliary = activation.function(z)
        layers.append(HiddenLayer(x, auxiliary, product))
    return layers


def _derivatives(activations: Sequence[Activation], hidden: Sequence[HiddenLayer]) -> list[Tensor]:
    return [a.slope(h.value, h.auxiliary) for a, h in zip(activations, hidden, strict=True)]


def _gated(net: Perceptron, derivatives: list[Tensor]) -> list[Tensor]:
    gates = _parts(net.gates, net.weights[:-1])
    return [d if g is None else d * g for d, g in zip(derivatives, gates, strict=True)]


def _last(net: Perceptron, hidden: list[HiddenLayer]) -> Tensor:
    weight = net.weights[-1]
    return torch.addmm(net.offsets[..., -weight.shape[0] :], hidden[-1].value, weight.T)


def _trace(net: Perceptron, slopes: list[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Return the trace for the layers' slopes, with `SavedEvaluation`'s ends and carried."""
    if len(slopes) == 1:
        return slopes[0] @ net.matrices[0], None, []
    if len(slopes) == 2:
        ends = slopes[0] @ net.matrices[0].T
        return (ends * slopes[1]).sum(1), ends, []
    N, M = net.matrices
    carried = [slopes[0] @ N]
    for slope, weight in zip(slopes[1:-2], net.weights[2:-2], strict=True):
        carried.append((_by_dim(carried[-1], slope) * slope.unsqueeze(1) @ weight.T).flatten(1))
    ends = slopes[-1] @ M
    sums = _dot(_by_dim(ends, slopes[-2]), _by_dim(carried[-1], slopes[-2]))
    return (sums * slopes[-2]).sum(1), ends, carried


def _trace_vjp(
    net: Perceptron, slopes: list[Tensor], saved: SavedEvaluation, trace: Tensor
) -> TraceCotangents:
    """Return the cotangents of the trace's parts for that of the trace."""
    trace = trace.unsqueeze(1)
    if saved.ends is None:
        return TraceCotangents([trace * net.matrices[0]], ((slopes[0] * trace).sum(0),), {})
    if len(slopes) == 2:
        ends = slopes[1] * trace
        (P,) = net.matrices
        return TraceCotangents([ends @ P, saved.ends * trace], (ends.T @ slopes[0],), {})
    N, M = net.matrices
    A, C = _by_dim(saved.ends, slopes[-2]), _by_dim(saved.carried[-1], slopes[-2])
    slope_bars = {len(slopes) - 2: _dot(A, C) * trace}
    weight_bars = {}
    both = (slopes[-2] * trace).unsqueeze(1)
    ends, carried = (C * both).flatten(1), A * both
    slope_bars[len(slopes) - 1] = ends @ M.T
    for i in range(len(slopes) - 3, 0, -1):  # the layer whose tangents the next one carries
        before, slope = _by_dim(saved.carried[i - 1], slopes[i]), slopes[i].unsqueeze(1)
        weight_bars[i + 1] = carried.flatten(0, 1).T @ (before * slope).flatten(0, 1)
        carried = carried @ net.weights[i + 1]
        slope_bars[i] = _dot(carried, before)
        carried = carried * slope
    carried = carried.flatten(1)
    slope_bars[0] = carried @ N.T
    matrices = (slopes[0].T @ carried, slopes[-1].T @ ends)
    return TraceCotangents([slope_bars[i] for i in range(len(slopes))], matrices, weight_bars)


def _by_dim(joined: Tensor, like: Tensor) -> Tensor:
    """Return (rows, dim · width) as (rows, dim, width)."""
    return joined.view(joined.shape[0], -1, like.shape[1])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the product's sum over the second axis; that is short, so term by term is faster."""
    pairs = list(zip(left.unbind(1), right.unbind(1), strict=True))
    total = pairs[0][0] * pairs[0][1]
    for one, other in pairs[1:]:
        total = torch.addcmul(total, one, other)
    return total


def _parts(joined: Tensor | None, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if joined is None:
        return [None] * len(weights)
    return [*joined.split([weight.shape[0] for weight in weights], -1)]
