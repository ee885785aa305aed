"""What a vector field is, and what the toolkit's own fields offer beyond it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn


class TracedField(nn.Module, ABC):
    """A vector field that knows the exact trace of its own Jacobian.

    Any `nn.Module` with `forward(t, x)` (or `forward(t, x, context)` where there is a context)
    serves as a field; its rows must not depend on one another. A subclass of this one brings its
    divergence along, cheaper than autograd would find it, and can be saved.

    Attributes:
        dim: Size of x.
        context_dim: Size of the context, 0 without one.
        trace: `"closed form"` where the trace costs a fixed number of products, whatever the
            dimension, `"tangents"` where it costs one more pass for each dimension.
    """

    dim: int
    context_dim: int
    trace: Literal["closed form", "tangents"]
    name: ClassVar[str]

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity (rows, dim) at x (rows, dim) and context (rows, context_dim).

        The time is a scalar for all rows, or has shape (rows, 1).
        """

    @abstractmethod
    def constants(self) -> tuple[Tensor, ...]:
        """What the trace needs that depends on the weights alone: computed once for each solve."""

    @abstractmethod
    def with_divergence(
        self, t: Tensor, x: Tensor, context: Tensor | None, constants: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The velocity (rows, dim) and the exact trace of its Jacobian (rows,)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The keyword arguments that make this field anew (without its weights), JSON-ready."""
