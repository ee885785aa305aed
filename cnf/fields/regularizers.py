"""Regularizers: terms of the training loss that make a flow's paths easy to integrate.

Each is the integral along the path of a quantity that is not negative, an extra column of the
solve: a part of the training loss alone, never of log p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnf.fields import Traced, VectorField
from cnf.fields.field import vector_jacobian_products


@dataclass(frozen=True)
class PathPoint:
    """A field at the states of a solve, the argument of regularizers.

    Attributes:
        field: The vector field.
        stage: The field at this time, as `VectorField.prepare` gives it.
        x: The states, shape (rows, dim).
        traced: Its velocity there with its divergence.
        probe: A Rademacher vector for each row, (rows, 1, dim), fixed for the solve; None where no
            regularizer needs one.
    """

    field: VectorField
    stage: Any
    x: Tensor
    traced: Traced
    probe: Tensor | None


Regularizer = Callable[[PathPoint], Tensor]


def kinetic(point: PathPoint) -> Tensor:
    """Return |f|², whose integral is the kinetic energy of the path, (rows,).

    Source: Finlay et al. (2020), How to train your neural ODE.
    """
    return point.traced.velocity.square().sum(1)


def jacobian(point: PathPoint) -> Tensor:
    """Return ‖∂f/∂x‖², in the Frobenius norm, (rows,).

    It is exact where the Jacobian's columns were computed, otherwise the unbiased estimate |J ε|²
    from the probes of the divergence, or from one probe where the trace needs none.

    Source: Finlay et al. (2020), How to train your neural ODE.
    """
    products = point.traced.products
    if products is None:
        assert point.probe is not None
        vectors = point.probe.transpose(0, 1)
        _, products = point.field.products(point.stage, point.x, vectors)
    squares: Tensor = products.square().sum(-1)
    columns = point.traced.products is not None and point.traced.estimates is None
    return squares.sum(0) if columns else squares.mean(0)


def path_l1(point: PathPoint) -> Tensor:
    """Return the sum of |f_i|, whose integral is the path's length in the L1 norm, (rows,)."""
    return point.traced.velocity.abs().sum(1)


def path_l2(point: PathPoint) -> Tensor:
    """Return |f|, whose integral is the path's length, (rows,)."""
    length: Tensor = torch.linalg.vector_norm(point.traced.velocity, dim=1)
    return length


def directional(point: PathPoint) -> Tensor:
    """Return ½ |Jᵀ f|² / dim, where Jᵀ f is the gradient of half the squared speed, (rows,).

    Source: `dl2int` of the code with Grathwohl et al. (2019), FFJORD.
    """
    velocity = point.traced.velocity
    _, (gradient,) = vector_jacobian_products(
        point.field, point.stage, point.x, velocity.unsqueeze(0)
    )
    squared: Tensor = gradient.square().mean(1)
    return 0.5 * squared


REGULARIZERS: dict[str, Regularizer] = {
    "kinetic": kinetic,
    "jacobian": jacobian,
    "path_l1": path_l1,
    "path_l2": path_l2,
    "directional": directional,
}


@dataclass(frozen=True)
class Regularization:
    """The weights of the terms that training adds to its loss.

    Attributes:
        kinetic: Weight of the path's kinetic energy.
        jacobian: Weight of the squared Frobenius norm of the Jacobian along it.
        path_l1: Weight of its length in the L1 norm.
        path_l2: Weight of its length.
        directional: Weight of the gradient of the squared speed along it.
        steer: The base's time is drawn from (−steer, steer) for each batch, so that the field stays
            smooth around 0. Source: Ghosh et al. (2020), STEER.

    Raises:
        ValueError: A weight is negative or not finite, or `steer` is not in [0, 1).

    Example:
        >>> Regularization(kinetic=0.1).active
        {'kinetic': 0.1}
    """

    kinetic: float = 0.0
    jacobian: float = 0.0
    path_l1: float = 0.0
    path_l2: float = 0.0
    directional: float = 0.0
    steer: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"Expected {name} to be finite and at least 0; got {weight}")
        if self.steer >= 1:
            raise ValueError(f"Expected steer below 1, the length of the solve; got {self.steer}")

    @property
    def active(self) -> dict[str, float]:
        """The weights of the active regularizers, those above 0."""
        return {name: getattr(self, name) for name in REGULARIZERS if getattr(self, name) > 0}

    def base_time(self) -> float:
        """Return a time of the base for one batch, from PyTorch's generator; 0 without `steer`."""
        return self.steer * (2 * torch.rand(()).item() - 1) if self.steer else 0.0
