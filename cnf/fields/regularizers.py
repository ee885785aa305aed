"""Regularizers: terms of the training loss that make a flow's paths easy to integrate.

Each is the integral along the path of a quantity that is not negative, an extra column of the
solve: a part of the training loss alone, never of log p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # parsers read the names and the help without PyTorch
    from torch import Tensor

    from cnf.fields import Traced, VectorField


@dataclass(frozen=True)
class PathPoint:
    """A field at the states of a solve, the argument of regularizers.

    Attributes:
        field: The vector field.
        stage: The field at this time, as `VectorField.prepare` gives it.
        x: The states, shape (rows, dim).
        traced: Its velocity there with its divergence.
        probe: A Rademacher vector for each row, (rows, 1, dim); None where none is needed.
    """

    field: VectorField
    stage: Any
    x: Tensor
    traced: Traced
    probe: Tensor | None


def kinetic(point: PathPoint) -> Tensor:
    """Return |f|², whose integral is the kinetic energy of the path, (rows,).

    Source: Finlay et al. (2020), How to train your neural ODE.
    """
    return point.traced.velocity.square().sum(1)


def jacobian(point: PathPoint) -> Tensor:
    """Return ‖∂f/∂x‖², in the Frobenius norm, (rows,).

    It is exact where the Jacobian's columns were computed, otherwise an unbiased estimate |J ε|²
    from the divergence's probes, or from one where the trace needs none.

    Source: Finlay et al. (2020), How to train your neural ODE.
    """
    products = point.traced.products
    if products is None:
        assert point.probe is not None
        vectors = point.probe.transpose(0, 1)
        _, products = point.field.products(point.stage, point.x, vectors)
    squares = products.square().sum(-1)
    columns = point.traced.products is not None and point.traced.estimates is None
    return squares.sum(0) if columns else squares.mean(0)


def path_l1(point: PathPoint) -> Tensor:
    """Return the sum of |f_i|, whose integral is the path's length in the L1 norm, (rows,)."""
    return point.traced.velocity.abs().sum(1)


def path_l2(point: PathPoint) -> Tensor:
    """Return |f|, whose integral is the path's length, (rows,)."""
    length: Tensor = point.traced.velocity.norm(dim=1)
    return length


def directional(point: PathPoint) -> Tensor:
    """Return ½ |Jᵀ f|² / dim, where Jᵀ f is the gradient of half the squared speed, (rows,).

    Source: `dl2int` of the code with Grathwohl et al. (2019), FFJORD.
    """
    velocity = point.traced.velocity
    _, gradients = point.field.transposed_products(point.stage, point.x, velocity.unsqueeze(0))
    return 0.5 * gradients[0].square().mean(1)


@dataclass(frozen=True)
class Regularizer:
    """A quantity along a path, whose integral training may add to its loss.

    Attributes:
        function: The quantity, at least 0, at a point of the path, shape (rows,).
        help: A line on its weight, for the command line.
        needs_probe: Whether the function may use the point's `probe`.
    """

    function: Callable[[PathPoint], Tensor]
    help: str
    needs_probe: bool = False

    def __call__(self, point: PathPoint) -> Tensor:
        """Return the quantity, shape (rows,)."""
        return self.function(point)


REGULARIZERS = {
    "kinetic": Regularizer(kinetic, "weight of the paths' kinetic energy in the loss"),
    "jacobian": Regularizer(
        jacobian, "weight of the field's squared Jacobian along the paths", needs_probe=True
    ),
    "path_l1": Regularizer(path_l1, "weight of the paths' length in the L1 norm"),
    "path_l2": Regularizer(path_l2, "weight of the paths' length"),
    "directional": Regularizer(
        directional, "weight of the gradient of the squared speed along the paths"
    ),
}
"""The regularizers by name."""


@dataclass(frozen=True, init=False)
class Regularization:
    """The weights of the terms that training adds to its loss.

    Args:
        weights: Weights by the names in `REGULARIZERS`.
        steer: The base's time is drawn from (−steer, steer) for each batch, so that the field stays
            smooth around 0. Source: Ghosh et al. (2020), STEER.
        named: Further weights, by keyword.

    Attributes:
        active: The weights above 0, by name.
        steer: As given.

    Raises:
        ValueError: A name is unknown, a weight negative or not finite, or `steer` not in [0, 1).

    Example:
        >>> Regularization({"jacobian": 0.0}, kinetic=0.1)
        Regularization(active={'kinetic': 0.1}, steer=0.0)
    """

    active: Mapping[str, float]
    steer: float

    def __init__(
        self, weights: Mapping[str, float] | None = None, steer: float = 0.0, **named: float
    ) -> None:
        given = {**(weights or {}), **named}
        unknown = [name for name in given if name not in REGULARIZERS]
        if unknown:
            raise ValueError(
                f"Expected regularizers among {', '.join(REGULARIZERS)}; got {', '.join(unknown)}"
            )
        for name, weight in {**given, "steer": steer}.items():
            if not 0 <= weight < inf:
                raise ValueError(f"Expected {name} to be finite and at least 0; got {weight}")
        if steer >= 1:
            raise ValueError(f"Expected steer below 1, the length of the solve; got {steer}")
        active = {name: given[name] for name in REGULARIZERS if given.get(name)}
        object.__setattr__(self, "active", active)
        object.__setattr__(self, "steer", steer)

    def __bool__(self) -> bool:
        """Return whether it has any effect."""
        return bool(self.active or self.steer)

    def base_time(self) -> float:
        """Return a time of the base for one batch, from PyTorch's generator; 0 without `steer`."""
        import torch  # here, since parsers read the names above without PyTorch

        return self.steer * (2 * torch.rand(()).item() - 1) if self.steer else 0.0
