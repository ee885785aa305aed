"""The interface of an invertible layer, and the results that layers return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.fields.regularizers import Regularization
from cnf.ode import Stats, Status
from cnf.utils.row_noise import RowNoise


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
    """

    value: Tensor
    log_det: Tensor
    stats: Stats = field(default_factory=Stats)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)


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


class Layer(nn.Module, ABC):
    """An invertible map between the base's side (z, t = 0) and the data's side (x, t = 1).

    A subclass implements `push`, `pull` and `config`, and has an entry in `LAYERS`; everything that
    `config` leaves out is in the state dict.

    Attributes:
        circular: The columns on the base's side that are angles in radians; None for a layer that
            does not distinguish angles from other columns.
        surjective: Whether every row of real numbers on the data's side has a preimage.
    """

    name: ClassVar[str]
    circular: tuple[int, ...] | None = None
    surjective: bool = True

    @property
    def stochastic(self) -> bool:
        """Whether `pull` draws noise, so that the mean of log p is a lower bound."""
        return False

    @property
    def widths(self) -> tuple[int, int] | None:
        """Numbers of columns on the base's and the data's side; None where they are equal."""
        return None

    @abstractmethod
    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map z towards the data, with log |det ∂x/∂z|."""

    @abstractmethod
    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Map x towards the base, with log |det ∂z/∂x|."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON."""

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

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        """Pull x with errors and statuses; never raises for a row."""
        finished = np.full(len(x), Status.FINISHED)
        return ScoredTransform(self.pull(x, context), x.new_zeros(len(x)), finished)

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
