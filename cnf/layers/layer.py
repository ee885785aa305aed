"""What an invertible layer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from cnf.ode import Stats


@dataclass(frozen=True)
class Mapped:
    """Where a layer takes its input.

    Attributes:
        value: Shape (rows, dim).
        log_det: log |det| of the map's Jacobian at the input, shape (rows,).
        stats: What the solve cost; zeros for a layer without one.
    """

    value: Tensor
    log_det: Tensor
    stats: Stats = field(default_factory=Stats)


class Layer(nn.Module, ABC):
    """An invertible map between the base's side (z, t = 0) and the data's side (x, t = 1).

    A subclass gives `push` and `pull`, an entry in `LAYERS` and the configuration that makes it
    anew; the state dict carries the rest.
    """

    name: ClassVar[str]

    @abstractmethod
    def push(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """From the base towards the data; the log-determinant is log |det ∂x/∂z|."""

    @abstractmethod
    def pull(self, x: Tensor, context: Tensor | None = None) -> Mapped:
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

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The value of `push` alone, cheaper where the log-determinant costs something."""
        return self.push(z, context).value

    def with_solver(self, **changes: Any) -> Self:
        """This layer, sharing its parameters, with other solver settings; itself without any."""
        return self
