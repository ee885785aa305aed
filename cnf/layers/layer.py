"""The interface of an invertible layer, and the results that layers return."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.fields.regularizers import Regularization
from cnf.layers import LAYERS
from cnf.ode import Stats, Status
from cnf.utils.random import RowNoise
from cnf.utils.registry import constructor_arguments, name_of


@dataclass(frozen=True)
class ScoringOptions:
    """Options of a scoring pass towards the base.

    Attributes:
        probes: Number of Hutchinson probes for each row, where the divergence is an estimate.
        noise: The source of the probes, and of the noise of stochastic layers.
        tolerance_factor: Factor of the solver's tolerances. Below 1 the method becomes dopri8, or
            fixed steps are halved.
    """

    probes: int
    noise: RowNoise
    tolerance_factor: float = 1.0


@dataclass(frozen=True)
class TransformResult:
    """The output of a layer, with its log-determinant.

    Attributes:
        value: The transformed rows, shape (rows, dim).
        log_det: log |det| of the map's Jacobian at the input, shape (rows,).
        stats: Cost of the solve; zeros for a layer without one.
        penalties: Integrals of the regularizers along the path, each of shape (rows,).
        residual: Relative residual of an inverse that was found by iteration, shape (rows,); None
            where the map is given in this direction.
    """

    value: Tensor
    log_det: Tensor
    stats: Stats = field(default_factory=Stats)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    residual: Tensor | None = None


@dataclass(frozen=True)
class ScoredTransform:
    """The output of a layer towards the base, with its errors and statuses.

    Attributes:
        result: The output; NaN in rows whose solve failed.
        variance: Variance of the log-determinant's estimate, shape (rows,): zero where it is exact,
            NaN where there is a single estimate.
        status: Status of each row's solve, an array of `cnf.ode.Status`.
    """

    result: TransformResult
    variance: Tensor
    status: NDArray[np.object_]

    @classmethod
    def exact(cls, result: TransformResult) -> Self:
        """Return the scored result of a map without estimates and solves."""
        log_det = result.log_det
        return cls(result, torch.zeros_like(log_det), np.full(len(log_det), Status.FINISHED))


def larger(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the larger of two residuals, either of which may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return torch.maximum(one, other)


class ColumnRange(NamedTuple):
    """The values that a column can have.

    Attributes:
        low: The lower end, −∞ without a bound.
        high: The upper end, ∞ without a bound.
        circular: Whether both ends are the same point.
    """

    low: float = -inf
    high: float = inf
    circular: bool = False


class Layer(nn.Module, ABC):
    """An invertible map between the base's side (z, t = 0) and the data's side (x, t = 1).

    A subclass implements `push` and `pull`, and has an entry in `LAYERS`; everything that `config`
    leaves out is in the state dict.

    Attributes:
        stochastic: Whether `pull` draws noise, so that the mean of log p is a lower bound.
        widths: Numbers of columns on the base's and the data's side; None where they are equal.
        circular: The columns on the base's side that are angles in radians; None for a layer that
            does not distinguish angles from other columns.
        surjective: Whether every row of real numbers on the data's side has a preimage.
        unread: The columns on the data's side that the layer drops, whatever they hold.
    """

    stochastic: bool = False
    widths: tuple[int, int] | None = None
    circular: tuple[int, ...] | None = None
    surjective: bool = True
    unread: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The layer's name in `LAYERS`."""
        return name_of(type(self), LAYERS, "cnf.layers.LAYERS")

    @property
    def ranges(self) -> tuple[ColumnRange, ...] | None:
        """Ranges of the columns on the data's side; None where all are the real line."""
        return None

    @abstractmethod
    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map z towards the data, with log |det ∂x/∂z|."""

    @abstractmethod
    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map x towards the base, with log |det ∂z/∂x|."""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, those in attributes of their names, JSON-ready."""
        return constructor_arguments(self)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x of shape (rows, dim) and log |det ∂x/∂z| of shape (rows,)."""
        result = self.push(z, context)
        return result.value, result.log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z of shape (rows, dim) and log |det ∂z/∂x| of shape (rows,)."""
        result = self.pull(x, context)
        return result.value, result.log_det

    def pull_regularized(
        self, x: Tensor, context: Tensor | None, regularization: Regularization, base_time: float
    ) -> TransformResult:
        """Pull x with the penalties of a regularization; a layer without a solve has none."""
        return self.pull(x, context)

    def pull_with_noise(
        self, x: Tensor, context: Tensor | None, noise: RowNoise
    ) -> TransformResult:
        """Pull x with random numbers of its rows, where the layer takes any."""
        return self.pull(x, context)

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        """Pull x with errors and statuses; never raises for a row."""
        return ScoredTransform.exact(self.pull_with_noise(x, context, options.noise))

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Push z without the log-determinant, which may be cheaper."""
        return self.push(z, context).value

    def in_range(self, x: Tensor) -> Tensor:
        """Return a mask of the rows of x that have a preimage, shape (rows,)."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a preimage of each row of x, which is in range, without drawing noise."""
        return self.pull(x, context).value

    def with_solver(self, **changes: Any) -> Self:
        """Return a layer that shares the parameters and solves with other settings."""
        return self
