"""A flow's layers, given a context, as one of PyTorch's transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.constraints import Constraint

from cnf.layers import Layer, TransformResult
from cnf.utils.angles import wrapped_columns
from cnf.utils.shapes import as_rows


class Bijection(Protocol):
    """A map between a base's space and x given a context, as a `cnf.Flow` is."""

    base: Distribution
    layers: Sequence[Layer]
    dim: int

    @property
    def circular(self) -> tuple[int, ...]:
        """Which columns of the base are angles, in radians."""

    def support(self, context: Tensor | None = None) -> Constraint:
        """Where x can be."""

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Rows of the base to x, (rows, columns) → (rows, dim)."""

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """The same, with log |det ∂x/∂z|."""

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Rows of x to the base, with log |det ∂z/∂x|."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is trained."""

    def buffers(self) -> Iterator[Tensor]:
        """What else it depends on."""


@dataclass(frozen=True, eq=False)
class _Solved:
    """A pair of points, as they were when a solve found the one from the other.

    Attributes:
        z: The base's.
        x: The data's.
        log_det: log |det ∂x/∂z| there.
        mark: What tells tensors that a solve depends on from other ones.
        contents: Copies of these tensors.
        with_grad: Whether gradients were recorded.
    """

    z: Tensor
    x: Tensor
    log_det: Tensor
    mark: tuple[Any, ...]
    contents: tuple[Tensor, ...]
    with_grad: bool


class FlowTransform(Transform):
    """x = T(z) of a flow given a context, from the base's space to the data's.

    A solve gives a point and its log-determinant together; both are kept. So after x = T(z), or
    z = T⁻¹(x), `log_abs_det_jacobian(z, x)` of these very tensors takes no other solve, nor does
    the way back. Once a parameter, the context or a point has changed in place, or gradients are
    wanted that were not recorded, all is solved anew.

    Angles are the same whole turns apart: as points on the circle, z and x belong to each other
    one to one.

    Args:
        flow: The flow, whose parameters it shares; one that draws no noise.
        context: Shape (*batch, context_dim), which broadcasts with a point's batch shape; None for
            a flow without one.
        cache_size: 1, or 0 to keep nothing: then the log-determinant is a solve of its own, and
            x = T(z) one at the price of the velocity alone.

    Shapes: z (*batch, columns) → x (*batch, dim), with a log-determinant (*batch).

    Raises:
        ValueError: From any method: points have another number of columns.
        SolveError: Alike: a solve failed.

    Example:
        >>> from torch.distributions import TransformedDistribution
        >>> import cnf
        >>> flow = cnf.ffjord(dim=2)
        >>> transform = flow.transform  # another one, with a cache of its own, for each access
        >>> z = flow.base.sample((5,))
        >>> x = transform(z)
        >>> transform.log_abs_det_jacobian(z, x).shape, transform.inv(x) is z
        (torch.Size([5]), True)
        >>> p = TransformedDistribution(flow.base, transform)
        >>> torch.allclose(p.log_prob(x), flow.log_prob(x), atol=1e-3)
        True
    """

    bijective = True

    def __init__(self, flow: Bijection, context: Tensor | None = None, cache_size: int = 1) -> None:
        super().__init__(cache_size)
        self.flow, self.context = flow, context
        self._last: _Solved | None = None

    @constraints.dependent_property(event_dim=1)
    def domain(self) -> Constraint | None:
        """The base's support."""
        return self.flow.base.support

    @constraints.dependent_property(event_dim=1)
    def codomain(self) -> Constraint:
        """Where x can be."""
        return self.flow.support(self.context)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """The same with another size of the cache, 0 or 1."""
        if cache_size == self._cache_size:
            return self
        return FlowTransform(self.flow, self.context, cache_size)

    def __call__(self, z: Tensor) -> Tensor:
        """The point x of z."""
        if not self._cache_size:
            rows, context, batch = self._rows(z, self._base_columns)
            return self.flow.transport(rows, context).reshape(*batch, self.flow.dim)
        last = self._known()
        if last is None or last.z is not z:
            last = self._last = self._pushed(z)
        return last.x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-determinant, shape (*batch), at a point of the base and what it is taken to.

        Args:
            x: The base's point, which is z everywhere else: PyTorch's name for it.
            y: The data's.
        """
        last = self._known()
        if last is None or last.z is not x or last.x is not y:
            last = self._pushed(x)
        return last.log_det

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of x of z's."""
        return self._reshaped(shape, self.flow.dim)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of z of x's."""
        return self._reshaped(shape, self._base_columns)

    def __eq__(self, other: object) -> bool:
        """Whether they are the same flow's, given the same context."""
        if not isinstance(other, FlowTransform):
            return False
        return self.flow is other.flow and self.context is other.context

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept, which may hold on to a graph that cannot be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_last": None}

    def __repr__(self) -> str:
        layers = ", ".join(type(layer).__name__ for layer in self.flow.layers)
        given = "" if self.context is None else f", context: {self.context.shape}"
        return f"{type(self).__name__}(layers: [{layers}]{given})"

    def _inv_call(self, x: Tensor) -> Tensor:
        """The point z of x, as `inv` has it."""
        last = self._known()
        if last is None or last.x is not x:
            last = self._pulled(x)
            self._last = last if self._cache_size else None
        return last.z

    def _pushed(self, z: Tensor) -> _Solved:
        rows, context, batch = self._rows(z, self._base_columns)
        mapped = self.flow.push(rows, context)
        return self._noted(
            z, mapped.value.reshape(*batch, self.flow.dim), mapped.log_det.reshape(batch)
        )

    def _pulled(self, x: Tensor) -> _Solved:
        rows, context, batch = self._rows(x, self.flow.dim)
        mapped = self.flow.pull(rows, context)
        z = wrapped_columns(mapped.value, self.flow.circular)
        return self._noted(z.reshape(*batch, z.shape[1]), x, -mapped.log_det.reshape(batch))

    def _noted(self, z: Tensor, x: Tensor, log_det: Tensor) -> _Solved:
        tensors = self._tensors(z, x)
        contents = tuple(each.detach().clone() for each in tensors) if self._cache_size else ()
        return _Solved(z, x, log_det, _mark(tensors), contents, torch.is_grad_enabled())

    @property
    def _base_columns(self) -> int:
        return self.flow.base.event_shape[0]

    def _rows(self, points: Tensor, columns: int) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Points and their contexts as rows, and the batch shape."""
        if points.shape[-1:] != (columns,):
            raise ValueError(
                f"Expected points of shape (..., {columns}); got {tuple(points.shape)}"
            )
        return as_rows(points, self.context)

    def _known(self) -> _Solved | None:
        """The last solve, if it would come out the same again."""
        last = self._last
        if last is None or (torch.is_grad_enabled() and not last.with_grad):
            return None
        tensors = self._tensors(last.z, last.x)
        if _mark(tensors) != last.mark:
            return None
        # Assignments to `.data` are counted nowhere: they show in the contents alone.
        return last if all(map(torch.equal, tensors, last.contents)) else None

    def _tensors(self, z: Tensor, x: Tensor) -> list[Tensor]:
        """Return all that a solve depends on."""
        given = [] if self.context is None else [self.context]
        return [z, x, *given, *self.flow.parameters(), *self.flow.buffers()]

    def _reshaped(self, shape: Sequence[int], columns: int) -> torch.Size:
        given = () if self.context is None else self.context.shape[:-1]
        return torch.Size((*torch.broadcast_shapes(tuple(shape[:-1]), given), columns))


def _mark(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return which tensors these are, and how often each has been changed in place."""
    return tuple(
        (id(each), each.requires_grad, each.dtype, each.device, _version(each)) for each in tensors
    )


def _version(tensor: Tensor) -> int:
    """How often it has been changed in place, which inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
