"""A perceptron of two hidden layers whose gates, shifts and trace differ between groups of rows.

Rows come in G groups of equal size, one after the other. A group has gates, offsets, a mask u of
the coordinates that move, and the matrix of the trace over these,

    v = u ∘ f,   Σ_j u_j ∂f_j/∂x_j = d₂ᵀ P_u d₁,   P_u = W₂ ∘ (W₁ diag(u) W₃)ᵀ.

The weights are those of all groups: their products are of the whole batch, those with P batched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields.activations import Activation
from cnf.fields.analytic.compiled import PerceptronFunctions
from cnf.fields.analytic.perceptron import Perceptron
from cnf.ode.fused_step import StageFunctions


class GroupedEvaluation(NamedTuple):
    """An evaluation, as its vector-Jacobian product needs it; tensors (groups, rows, width).

    Attributes:
        values: h₁ and h₂.
        auxiliaries: The auxiliary tensors of the activations.
        products: W₁ x and W₂ h₁, before their gates.
        ends: P_u d₁; None without the trace.
    """

    values: tuple[Tensor, Tensor]
    auxiliaries: tuple[Tensor | None, Tensor | None]
    products: tuple[Tensor, Tensor]
    ends: Tensor | None

    @property
    def nbytes(self) -> int:
        tensors = [*self.values, *self.auxiliaries, *self.products, self.ends]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class GroupedParts(NamedTuple):
    """The tensors of groups at one time, (groups, 1, width): gates, offsets and the mask."""

    gates: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]
    P: Tensor
    mask: Tensor


def trace_matrices_of_groups(weights: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Return the matrices P_u, (groups, H₂, H₁), for masks u (groups, dim)."""
    first, middle, last = weights
    ends = (first * masks.unsqueeze(1)) @ last
    return middle * ends.transpose(1, 2)


def _parts(net: Perceptron) -> GroupedParts:
    assert net.gates is not None
    P, mask = net.matrices
    sizes = [weight.shape[0] for weight in net.weights]
    gates = net.gates.unsqueeze(1).split(sizes[:-1], -1)
    return GroupedParts(gates, net.offsets.unsqueeze(1).split(sizes, -1), P, mask)


def _evaluate(
    net: Perceptron, activations: Sequence[Activation], x: Tensor, trace: bool
) -> tuple[Tensor, GroupedEvaluation]:
    gates, offsets, P, mask = _parts(net)
    shape = (len(P), -1)
    values, auxiliaries, products = [], [], []
    h = x
    for i, activation in enumerate(activations):
        product = (h @ net.weights[i].T).unflatten(0, shape)
        value, auxiliary = activation.function(torch.addcmul(offsets[i], product, gates[i]))
        values.append(value)
        auxiliaries.append(auxiliary)
        products.append(product)
        h = value.flatten(0, 1)
    velocity = ((h @ net.weights[-1].T).unflatten(0, shape) + offsets[-1]) * mask
    if trace:
        d1, d2 = (
            activation.slope(value, auxiliary) * gate
            for activation, value, auxiliary, gate in zip(
                activations, values, auxiliaries, gates, strict=True
            )
        )
        ends = torch.bmm(d1, P.transpose(1, 2))
        slope = torch.cat([velocity, (ends * d2).sum(-1, keepdim=True)], -1)
    else:
        ends, slope = None, pad(velocity, (0, 1))
    saved = GroupedEvaluation(tuple(values), tuple(auxiliaries), tuple(products), ends)  # type: ignore[arg-type]
    return slope.flatten(0, 1), saved


def _vjp(
    net: Perceptron,
    activations: Sequence[Activation],
    x: Tensor,
    saved: GroupedEvaluation,
    slope: Tensor,
    trace: bool,
) -> tuple[Tensor, Perceptron]:
    gates, _, P, mask = _parts(net)
    derivatives = [
        activation.slope(value, auxiliary)
        for activation, value, auxiliary in zip(
            activations, saved.values, saved.auxiliaries, strict=True
        )
    ]
    slope = slope.unflatten(0, (len(P), -1))
    velocity = slope[..., :-1] * mask
    matrix, bars = P.new_zeros(()).expand_as(P), list[Tensor | None]([None, None])
    if trace:
        assert saved.ends is not None
        bar = slope[..., -1:]
        ends = derivatives[1] * gates[1] * bar
        bars = [torch.bmm(ends, P), saved.ends * bar]
        matrix = torch.bmm(ends.transpose(1, 2), derivatives[0] * gates[0])
    offsets = [velocity.sum(1)]
    gate_grads, weights = [], [_product(velocity.flatten(0, 1), saved.values[1].flatten(0, 1))]
    h = velocity.flatten(0, 1) @ net.weights[-1]
    for i in (1, 0):
        h, derivative, own = h.unflatten(0, (len(P), -1)), derivatives[i], bars[i]
        if own is None:
            z = h * derivative
            gate = z * saved.products[i]
        else:
            value, auxiliary = saved.values[i], saved.auxiliaries[i]
            z = activations[i].adjoint(value, auxiliary, derivative, h, own * gates[i])
            gate = torch.addcmul(z * saved.products[i], own, derivative)
        offsets.append(z.sum(1))
        gate_grads.append(gate.sum(1))
        z = (z * gates[i]).flatten(0, 1)
        weights.append(_product(z, saved.values[0].flatten(0, 1) if i else x))
        h = z @ net.weights[i]
    gradients = Perceptron(
        tuple(reversed(weights)),
        torch.cat(offsets[::-1], -1),
        torch.cat(gate_grads[::-1], -1),
        (matrix, mask),  # the mask has no gradient
    )
    return pad(h, (0, 1)), gradients


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return leftᵀ right; a tall product is far slower than a wide one."""
    wide = right.shape[1] >= left.shape[1]
    return left.T @ right if wide else (right.T @ left).T


def _velocity_and_trace(net: Perceptron, activations: Any, x: Tensor) -> tuple[Tensor, Any]:
    return _evaluate(net, activations, x, trace=True)


def _velocity_only(net: Perceptron, activations: Any, x: Tensor) -> tuple[Tensor, Any]:
    return _evaluate(net, activations, x, trace=False)


def _velocity_and_trace_vjp(
    net: Perceptron, activations: Any, x: Tensor, saved: Any, slope: Tensor
) -> tuple[Tensor, Perceptron]:
    return _vjp(net, activations, x, saved, slope, trace=True)


def _velocity_only_vjp(
    net: Perceptron, activations: Any, x: Tensor, saved: Any, slope: Tensor
) -> tuple[Tensor, Perceptron]:
    return _vjp(net, activations, x, saved, slope, trace=False)


def _velocity(net: Perceptron, activations: Any, x: Tensor) -> Tensor:
    return _evaluate(net, activations, x, trace=False)[0][:, :-1]


GROUPED = PerceptronFunctions(
    velocity=_velocity,
    stage=StageFunctions(
        _velocity_and_trace,
        _velocity_and_trace_vjp,
        _velocity_only,
        _velocity_only_vjp,
        inputs=(slice(None), slice(None, -1)),
    ),
)
