"""Training objectives, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cnf.fields.regularizers import Regularization
from cnf.flow import Flow
from cnf.layers import FieldLayer, Layer, MovingNorm
from cnf.ode import Stats
from cnf.training.recipes import COUPLINGS, PATHS
from cnf.utils.angles import nearest_image


@dataclass(frozen=True)
class Loss:
    """A loss to differentiate, and the cost of its solve.

    Attributes:
        value: A scalar.
        stats: The solve's statistics, empty where there was none.
        inputs: Each layer's input from the data's side, in the layers' order, without a gradient;
            empty where rows did not pass through the flow.
    """

    value: Tensor
    stats: Stats = field(default_factory=Stats)
    inputs: Sequence[Tensor] = ()


class Objective(Protocol):
    """A loss that training minimises."""

    name: ClassVar[str]
    """The name in records and figures."""

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Loss:
        """Return the loss of rows (rows, dim), given a context (rows, context_dim)."""
        ...

    def check(self, flow: Flow, *, conditional: bool) -> None:
        """Raise a ValueError where the objective cannot train the flow."""
        ...


@dataclass(frozen=True)
class MaximumLikelihood:
    """The mean negative log-likelihood −(1/n) Σ log p(x_i | c_i), in nats per row.

    With a regularization, the mean penalties with their weights are added.

    Attributes:
        regularization: The penalties and their weights; no penalty when None.

    Raises:
        ValueError: From `check`: the flow has no CNF layer to regularize.

    Example:
        >>> from cnf.flow import ffjord
        >>> MaximumLikelihood()(ffjord(2), torch.zeros(3, 2)).value.shape
        torch.Size([])
    """

    name: ClassVar[str] = "maximum likelihood"
    regularization: Regularization | None = None

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Loss:
        scored = flow.score_rows(x, context, self.regularization)
        loss = -scored.log_prob.mean()
        if self.regularization is not None:
            for name, weight in self.regularization.active.items():
                loss = loss + weight * scored.penalties[name].mean()
        return Loss(loss, scored.stats, scored.layer_inputs)

    def check(self, flow: Flow, *, conditional: bool) -> None:
        if self.regularization is not None and self.regularization.active and not flow.solves:
            raise ValueError("Expected a flow with a CNF layer to regularize; got one without")


@dataclass(frozen=True)
class FlowMatching:
    """Conditional flow matching: the field regresses the velocity of paths, straight by default.

    With z from the base and x from the data, drawn by a coupling, and t ~ U(0, 1),

        loss = mean of |f(t, x_t, c) − dx_t/dt|²,    x_t = (1 − t) z + t x on a straight path,

    whose minimiser is the field that takes the base to the data: no equation is solved. The times
    of a batch are stratified, one in each nth of the interval, which lowers the variance.

    Angles of x are taken in the turn nearest to z, so that the path is the geodesic on the circle.

    Fixed layers on the data's side are applied to x, those on the base's side to z. Layer
    k = 1 … K of a stack of K adjacent CNF layers learns the piece of the path at times
    t ∈ [(k − 1) / K, k / K], its time running from 0 to 1 and its velocity being a Kth of the
    path's. Other layers are not trained. A `MovingNorm` is refused: no rows pass through it.

    Attributes:
        coupling: A name in `cnf.training.COUPLINGS`.
        path: A name in `cnf.training.PATHS`.

    Raises:
        ValueError: From `check`: the flow has no CNF layer, another layer between two, or moving
            statistics; it is conditional and the coupling breaks the condition; or it has angles
            and paths are not straight.

    Source: Lipman et al. (2022), Flow matching for generative modeling; Tong et al. (2023).

    Example:
        >>> from cnf.flow import ffjord
        >>> FlowMatching()(ffjord(2), torch.zeros(3, 2)).value.shape
        torch.Size([])
    """

    name: ClassVar[str] = "flow matching"
    coupling: str = "independent"
    path: str = "straight"

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Loss:
        before, cnfs, after = _split_layers(flow)
        context = flow.standardized(context)
        with torch.no_grad():
            z = flow.base.sample(torch.Size([len(x)]))
            for layer in before:
                z = layer.transport(z, context)
            for layer in reversed(after):
                x = layer.pull(x, context).value
            z = COUPLINGS[self.coupling].pair(z, x, flow.circular)
            x = nearest_image(x, z, flow.circular)
        losses = []
        for k, layer in enumerate(cnfs):
            assert isinstance(layer, FieldLayer)  # by `check`
            rows = slice(len(x) * k // len(cnfs), len(x) * (k + 1) // len(cnfs))
            given = None if context is None else context[rows]
            piece = self.path, k, len(cnfs)
            losses.append(_squared_errors(layer, piece, z[rows], x[rows], given))
        return Loss(torch.cat(losses).mean())

    def check(self, flow: Flow, *, conditional: bool) -> None:
        _, cnfs, _ = _split_layers(flow)
        if not cnfs:
            raise ValueError("Expected a flow with a CNF layer for flow matching; got one without")
        if any(isinstance(layer, MovingNorm) for layer in flow.layers):
            raise ValueError(
                "Expected no batch normalisation for flow matching, which passes no rows through "
                "the flow to update its statistics; got MovingNorm. Train by maximum likelihood "
                "(mle)"
            )
        for layer in cnfs:
            if not isinstance(layer, FieldLayer):
                raise ValueError(
                    "Expected the CNF layers to follow one another for flow matching, whose paths "
                    f"are straight from the first one to the last; got {type(layer).__name__} "
                    "between them. Train by maximum likelihood (mle)"
                )
        if flow.circular and self.path != "straight":
            raise ValueError(
                f"Expected straight paths for angles, along the circle; got path {self.path}"
            )
        if conditional and not COUPLINGS[self.coupling].keeps_condition:
            raise ValueError(
                f"Expected the coupling of a conditional flow to be independent; {self.coupling} "
                "pairs base points with rows, and through them with contexts, so that given a "
                "context they are not distributed as the base, and p(x | c) would be wrong"
            )


def _squared_errors(
    layer: FieldLayer, piece: tuple[str, int, int], z: Tensor, x: Tensor, context: Tensor | None
) -> Tensor:
    """Return the squared errors of layer k of K, at stratified times on paths from z to x."""
    path, k, count = piece
    strata = torch.arange(len(x), dtype=x.dtype, device=x.device).unsqueeze(1)
    times = (strata + torch.rand_like(strata)) / len(x)
    point, slope = PATHS[path](z, x, (k + times) / count)
    velocity = layer.velocity(times, point, context)
    return (count * velocity - slope).square().sum(1)


def _split_layers(flow: Flow) -> tuple[Sequence[Layer], Sequence[Layer], Sequence[Layer]]:
    """Return the layers before the first CNF, from it to the last CNF, and after the last CNF."""
    is_cnf = [isinstance(layer, FieldLayer) for layer in flow.layers]
    if not any(is_cnf):
        return flow.layers, (), ()
    first, last = is_cnf.index(True), len(is_cnf) - is_cnf[::-1].index(True)
    layers = list(flow.layers)
    return layers[:first], layers[first:last], layers[last:]
