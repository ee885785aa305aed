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

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
        gates: g₁ … g_L alike, shape (rows, width); None where they are folded in, or not there.
        matrices: Of the trace: (p,), (P,) or (N, M); empty where only the velocity is asked for.
    """

    weights: tuple[Tensor, ...]
    offsets: Tensor
    gates: Tensor | None
    matrices: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        gates = [] if self.gates is None else [self.gates]
        return [*self.weights, self.offsets, *gates, *self.matrices]

    def of(self, tensors: Sequence[Tensor]) -> Perceptron:
        """A perceptron of this form with other tensors, in the order of `tensors`."""
        layers, gated = len(self.weights), self.gates is not None
        gates, rest = tensors[layers + 1] if gated else None, layers + 1 + gated
        return Perceptron(tuple(tensors[:layers]), tensors[layers], gates, tuple(tensors[rest:]))


class Stacked(NamedTuple):
    """A perceptron at several times.

    Attributes:
        net: Its tensors; those that differ between the times have an axis for them in front.
        times: How many.
        folded: Whether gates are folded into the hidden layers' weights and into the matrices, so
            that these differ between the times.
    """

    net: Perceptron
    times: int
    folded: bool

    def differ(self) -> list[bool]:
        """Which of the net's tensors differ between the times."""
        gates = [] if self.net.gates is None else [True]
        hidden = [self.folded] * (len(self.net.weights) - 1)
        return [*hidden, False, True, *gates, *[self.folded] * len(self.net.matrices)]

    def unstacked(self) -> list[Perceptron]:
        """The perceptron at each of the times."""
        count = self.times
        columns = [
            tensor.unbind() if differs else [tensor] * count
            for tensor, differs in zip(self.net.tensors(), self.differ(), strict=True)
        ]
        return [self.net.of(row) for row in zip(*columns, strict=True)]


def trace_matrices(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The matrices p, P, or N of shape (H₁, dim H₂) and M of shape (H_L, dim H_{L−1})."""
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


class Hidden(NamedTuple):
    """A hidden layer at a state, as the way back needs it; what is cheap is computed again.

    Attributes:
        value: h = σ(z).
        kept: What else the activation's derivatives are made of, if anything.
        product: W h of the layer before, where there is a gate.
    """

    value: Tensor
    kept: Tensor | None
    product: Tensor | None


class Saved(NamedTuple):
    """An evaluation, as the way back needs it.

    Attributes:
        hidden: The hidden layers.
        ends: P d₁, or A_j one after the other; None for one hidden layer.
        carried: C₂ … C_{L−1}, each with its C_j one after the other.
    """

    hidden: list[Hidden]
    ends: Tensor | None
    carried: list[Tensor]

    @property
    def nbytes(self) -> int:
        """What it takes."""
        kept = [tensor for layer in self.hidden for tensor in layer if tensor is not None]
        kept += [*self.carried, *([] if self.ends is None else [self.ends])]
        return sum(tensor.nbytes for tensor in kept)


class TraceBack(NamedTuple):
    """What the gradient of a trace comes to.

    Attributes:
        slopes: The gradients of the hidden layers' slopes; None for those of no trace.
        matrices: Of the trace's matrices.
        weights: Of weights that carried tangents, by their place.
    """

    slopes: Sequence[Tensor | None]
    matrices: tuple[Tensor, ...]
    weights: dict[int, Tensor]


def velocity(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> Tensor:
    """The velocity, (rows, dim) → (rows, dim)."""
    return _last(net, _hidden(net, activations, x))


def traced(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> tuple[Tensor, Saved]:
    """The slope (velocity, trace of its Jacobian), (rows, dim + 1), and what `pull` needs of it."""
    hidden = _hidden(net, activations, x)
    trace, ends, carried = _trace(net, _gated(net, _derivatives(activations, hidden)))
    slope = torch.cat([_last(net, hidden), trace.unsqueeze(1)], 1)
    return slope, Saved(hidden, ends, carried)


def bare(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> tuple[Tensor, Saved]:
    """The slope (velocity, 0), (rows, dim + 1), and what `pull_bare` needs of it."""
    hidden = _hidden(net, activations, x)
    return pad(_last(net, hidden), (0, 1)), Saved(hidden, None, [])


def tangents(
    net: Perceptron, activations: Sequence[Activation], x: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity, and the Jacobian's products with `vectors` (K, rows or 1, dim)."""
    hidden = _hidden(net, activations, x)
    slopes = _gated(net, _derivatives(activations, hidden))
    for slope, weight in zip(slopes, net.weights, strict=False):
        vectors = slope * (vectors @ weight.T)
    return _last(net, hidden), vectors @ net.weights[-1].T


def pull(
    net: Perceptron, activations: Sequence[Activation], x: Tensor, saved: Saved, slope: Tensor
) -> tuple[Tensor, Perceptron]:
    """The gradients of the state (x, 0) and, in its form, of the net for that of the slope."""
    derivatives = _derivatives(activations, saved.hidden)
    trace = _pull_trace(net, _gated(net, derivatives), saved, slope[:, -1])
    return _pull(net, activations, x, saved.hidden, derivatives, slope[:, :-1], trace)


def pull_bare(
    net: Perceptron, activations: Sequence[Activation], x: Tensor, saved: Saved, slope: Tensor
) -> tuple[Tensor, Perceptron]:
    """The same where the slope has no trace."""
    derivatives = _derivatives(activations, saved.hidden)
    zeros = tuple(torch.zeros_like(matrix) for matrix in net.matrices)
    trace = TraceBack([None] * len(derivatives), zeros, {})
    return _pull(net, activations, x, saved.hidden, derivatives, slope[:, :-1], trace)


def _pull(
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
    hidden: Sequence[Hidden],
    derivatives: Sequence[Tensor],
    velocity: Tensor,
    trace: TraceBack,
) -> tuple[Tensor, Perceptron]:
    """The gradients for that of the velocity and for what the trace's came to."""
    gates = _parts(net.gates, net.weights[:-1])
    weights: list[Tensor] = [velocity.T @ hidden[-1].value]
    offsets, gate_parts = [velocity], []
    h = velocity @ net.weights[-1]
    for i in reversed(range(len(hidden))):
        layer, gate, derivative, bar = hidden[i], gates[i], derivatives[i], trace.slopes[i]
        if bar is None:
            z = h * derivative
        else:
            bent = bar if gate is None else bar * gate
            z = activations[i].back(layer.value, layer.kept, derivative, h, bent)
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


def _hidden(net: Perceptron, activations: Sequence[Activation], x: Tensor) -> list[Hidden]:
    """The hidden layers at x."""
    layers = []
    weights = net.weights[:-1]
    offsets, gates = _parts(net.offsets, net.weights), _parts(net.gates, weights)
    for weight, offset, gate, activation in zip(weights, offsets, gates, activations, strict=False):
        assert offset is not None
        if gate is None:
            z, product = torch.addmm(offset, x, weight.T), None
        else:
            product = x @ weight.T
            z = torch.addcmul(offset, product, gate)
        x, kept = activation.function(z)
        layers.append(Hidden(x, kept, product))
    return layers


def _derivatives(activations: Sequence[Activation], hidden: Sequence[Hidden]) -> list[Tensor]:
    """The activations' derivatives in the hidden layers."""
    return [a.slope(h.value, h.kept) for a, h in zip(activations, hidden, strict=True)]


def _gated(net: Perceptron, derivatives: list[Tensor]) -> list[Tensor]:
    """The hidden layers' slopes, of their activations' derivatives."""
    if net.gates is None:
        return derivatives
    gates = net.gates.split([weight.shape[0] for weight in net.weights[:-1]], -1)
    return [d * g for d, g in zip(derivatives, gates, strict=True)]


def _last(net: Perceptron, hidden: list[Hidden]) -> Tensor:
    """The last layer, of the hidden ones."""
    weight = net.weights[-1]
    return torch.addmm(net.offsets[..., -weight.shape[0] :], hidden[-1].value, weight.T)


def _trace(net: Perceptron, slopes: list[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The trace of the slopes, as the head of this file has it, with `Saved`'s ends and carried."""
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


def _pull_trace(net: Perceptron, slopes: list[Tensor], saved: Saved, trace: Tensor) -> TraceBack:
    """What the gradient of the trace comes to."""
    trace = trace.unsqueeze(1)
    if saved.ends is None:
        return TraceBack([trace * net.matrices[0]], ((slopes[0] * trace).sum(0),), {})
    if len(slopes) == 2:
        ends = slopes[1] * trace
        (P,) = net.matrices
        return TraceBack([ends @ P, saved.ends * trace], (ends.T @ slopes[0],), {})
    N, M = net.matrices
    A, C = _by_dim(saved.ends, slopes[-2]), _by_dim(saved.carried[-1], slopes[-2])
    found = {len(slopes) - 2: _dot(A, C) * trace}
    middle = {}
    both = (slopes[-2] * trace).unsqueeze(1)
    ends, carried = (C * both).flatten(1), A * both
    found[len(slopes) - 1] = ends @ M.T
    for i in range(len(slopes) - 3, 0, -1):  # the layer whose tangents are carried on
        before, slope = _by_dim(saved.carried[i - 1], slopes[i]), slopes[i].unsqueeze(1)
        middle[i + 1] = carried.flatten(0, 1).T @ (before * slope).flatten(0, 1)
        carried = carried @ net.weights[i + 1]
        found[i] = _dot(carried, before)
        carried = carried * slope
    carried = carried.flatten(1)
    found[0] = carried @ N.T
    matrices = (slopes[0].T @ carried, slopes[-1].T @ ends)
    return TraceBack([found[i] for i in range(len(slopes))], matrices, middle)


def _by_dim(joined: Tensor, like: Tensor) -> Tensor:
    """(rows, dim · width) as (rows, dim, width)."""
    return joined.view(joined.shape[0], -1, like.shape[1])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the product over the second axis, which is short: term by term is faster."""
    pairs = list(zip(left.unbind(1), right.unbind(1), strict=True))
    total = pairs[0][0] * pairs[0][1]
    for one, other in pairs[1:]:
        total = torch.addcmul(total, one, other)
    return total


def _parts(joined: Tensor | None, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """A tensor's parts for the layers, along its last axis."""
    if joined is None:
        return [None] * len(weights)
    parts: Sequence[Tensor] = joined.split([weight.shape[0] for weight in weights], -1)
    return parts
