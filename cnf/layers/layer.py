"""What an invertible layer is."""

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
    """With what care log-densities are assessed.

    Attributes:
        probes: Estimates for each row, where the divergence is one.
        noise: Where they come from, and noise of other kinds.
        tighter: By what the tolerances are multiplied; where it is below 1 the method is dopri8, or
            fixed steps are halved.
    """

    probes: int
    noise: RowNoise
    tighter: float = 1.0


@dataclass(frozen=True)
class TransformResult:
    """Where a layer takes its input.

    Attributes:
        value: Shape (rows, dim).
        log_det: log |det| of the map's Jacobian at the input, shape (rows,).
        stats: What the solve cost; zeros for a layer without one.
        penalties: Integrals along the path that training asked for, each of shape (rows,).
    """

    value: Tensor
    log_det: Tensor
    stats: Stats = field(default_factory=Stats)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredTransform:
    """Where a layer takes its input towards the base, and how far that can be relied on.

    Attributes:
        mapped: The map; NaN in rows whose solve failed.
        variance: Of the log-determinant as an estimate, shape (rows,): zero where it is exact, NaN
            where it is made of one estimate alone.
        status: How each row's solve ended, an array of `cnf.ode.Status`.
    """

    mapped: TransformResult
    variance: Tensor
    status: NDArray[np.object_]


class Layer(nn.Module, ABC):
    """An invertible map between the base's side (z, t = 0) and the data's side (x, t = 1).

    A subclass gives `push` and `pull`, an entry in `LAYERS` and the configuration that makes it
    anew; the state dict carries the rest.

    Attributes:
        circular: The columns on the base's side that it takes for angles, in radians; None where it
            has none to tell of, whatever they are.
        onto: Whether it takes some row to every one on the data's side.
    """

    name: ClassVar[str]
    circular: tuple[int, ...] | None = None
    surjective: bool = True

    @property
    def noisy(self) -> bool:
        """Whether it draws noise on the way to the base, so that log p is a bound in the mean."""
        return False

    @property
    def widths(self) -> tuple[int, int] | None:
        """The columns on the base's side and on the data's; None where they are as many."""
        return None

    @abstractmethod
    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """From the base towards the data; the log-determinant is log |det ∂x/∂z|."""

    @abstractmethod
    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """From the data towards the base; the log-determinant is log |det ∂z/∂x|."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The keyword arguments that make this layer anew, ready for JSON."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`push` as a pair: x of shape (rows, dim) and log |det ∂x/∂z| of shape (rows,)."""
        mapped = self.push(z, context)
        return mapped.value, mapped.log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`pull` as a pair: z of shape (rows, dim) and log |det ∂z/∂x| of shape (rows,)."""
        mapped = self.pull(x, context)
        return mapped.value, mapped.log_det

    def pull_regularized(
        self, x: Tensor, context: Tensor | None, regularization: Regularization, base_time: float
    ) -> TransformResult:
        """`pull` for training, with penalties; a layer without a solve has none."""
        return self.pull(x, context)

    def assess(self, x: Tensor, context: Tensor | None, care: ScoringOptions) -> ScoredTransform:
        """`pull` that never raises for a row, with what it is worth."""
        finished = np.full(len(x), Status.FINISHED)
        return ScoredTransform(self.pull(x, context), x.new_zeros(len(x)), finished)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The value of `push` alone, cheaper where the log-determinant costs something."""
        return self.push(z, context).value

    def in_range(self, x: Tensor) -> Tensor:
        """Which rows of the data's side it takes some row to, shape (rows,): all if it is onto."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """A row that it takes to each of these, which are reached; nothing is drawn for that."""
        return self.pull(x, context).value

    def with_solver(self, **changes: Any) -> Self:
        """This layer, sharing its parameters, with other solver settings; itself without any."""
        return self
