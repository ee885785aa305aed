"""What training minimises: a registry of objectives behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cnf.flow import Flow
from cnf.ode import Stats
from cnf.regularizers import Regularization


@dataclass(frozen=True)
class Loss:
    """A loss to differentiate, and what its solve cost."""

    value: Tensor
    stats: Stats


Objective = Callable[[Flow, Tensor, Tensor | None, Regularization | None], Loss]


def maximum_likelihood(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    regularization: Regularization | None = None,
) -> Loss:
    """The mean negative log-likelihood −(1/n) Σ log p(x_i | c_i), in nats per row.

    With a regularization, the mean penalties with their weights are added; a ValueError where the
    flow has no layer to regularize.

    Shapes: x (rows, dim), context (rows, context_dim) or None → a scalar.

    Example:
        >>> import torch
        >>> from cnf.flow import ffjord
        >>> maximum_likelihood(ffjord(2), torch.zeros(3, 2)).value.shape
        torch.Size([])
    """
    scored = flow.score_rows(x, context, regularization)
    loss = -scored.log_prob.mean()
    if regularization is not None:
        if regularization.active and not scored.penalties:
            raise ValueError("Expected a flow with a CNF layer to regularize; got one without")
        for name, weight in regularization.active.items():
            loss = loss + weight * scored.penalties[name].mean()
    return Loss(loss, scored.stats)


OBJECTIVES: dict[str, Objective] = {"mle": maximum_likelihood}
