"""A flow's layers, given a context, as one of PyTorch's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.constraints import Constraint

from cnf.flow.casting import cast_points
from cnf.flow.snapshot import Snapshot
from cnf.utils.angles import wrap_columns
from cnf.utils.shapes import as_rows

if TYPE_CHECKING:
    from cnf.flow.flow import Flow


@dataclass(frozen=True, eq=False)
class _CachedSolve:
    """A pair of points, and the state of all tensors that their solve depended on.

    The state is None where nothing is kept.
    """

    z: Tensor
    x: Tensor
    log_det: Tensor
    state: Snapshot | None


class FlowTransform(Transform):
    """A flow's map x = T(z) given a context, from the base's space to the data's.

    A solve gives a point and its log-determinant together; both are kept. After x = T(z), or
    z = T⁻¹(x), the log-determinant and the inverse of these very tensors take no other solve, until
    a parameter, the context or a point changes in place, or gradients are wanted that were not
    recorded. Angles that are whole turns apart are the same point.

    Args:
        flow: The flow, whose parameters it shares; one that draws no noise.
        context: Shape (*batch, context_dim), which broadcasts with a point's batch shape; None for
            a flow without one.
        cache_size: 1, or 0 to keep nothing: then the log-determinant takes another solve,
            and x = T(z) costs the velocity alone.

    Shapes: z (*batch, columns) → x (*batch, dim), with a log-determinant (*batch); any floating
        dtype, in which results are returned. Computed is in the flow's.

    Raises:
        ValueError: From any method: points have another number of columns, no floating dtype, or
            are on another device than the flow.
        SolveError: From any method: a solve failed.

    Example:
        >>> from torch.distributions import TransformedDistribution
        >>> import cnf
        >>> flow = cnf.ffjord(dim=2)
        >>> transform = flow.transform  # a new one with its own cache at each access
        >>> z = flow.base.sample((5,))
        >>> x = transform(z)
        >>> transform.log_abs_det_jacobian(z, x).shape, transform.inv(x) is z
        (torch.Size([5]), True)
        >>> TransformedDistribution(flow.base, transform).log_prob(x).shape
        torch.Size([5])
    """

    bijective = True

    def __init__(self, flow: Flow, context: Tensor | None = None, cache_size: int = 1) -> None:
        super().__init__(cache_size)
        self.flow, self.context = flow, context
        self._base_columns = flow.base.event_shape[0]
        self._last: _CachedSolve | None = None

    @constraints.dependent_property(event_dim=1)
    def domain(self) -> Constraint | None:
        return self.flow.base.support

    @constraints.dependent_property(event_dim=1)
    def codomain(self) -> Constraint:
        return self.flow.support(self.context)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        if cache_size == self._cache_size:
            return self
        return FlowTransform(self.flow, self.context, cache_size)

    def __call__(self, z: Tensor) -> Tensor:
        if not self._cache_size:
            rows, context, batch = self._rows(z, self._base_columns)
            x = self.flow.transport(rows, context)
            return x.reshape(*batch, self.flow.dim).to(z.dtype)
        last = self._cached()
        if last is None or last.z is not z:
            last = self._last = self._pushed(z)
        return last.x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant, shape (*batch), at a point x of the base and its image y.

        The names are PyTorch's; x is called z everywhere else.
        """
        last = self._cached()
        if last is None or last.z is not x or last.x is not y:
            last = self._pushed(x)
        return last.log_det

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._reshaped(shape, self.flow.dim)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._reshaped(shape, self._base_columns)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FlowTransform):
            return False
        return self.flow is other.flow and self.context is other.context

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cache, whose graph cannot be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_last": None}

    def __repr__(self) -> str:
        layers = ", ".join(type(layer).__name__ for layer in self.flow.layers)
        given = "" if self.context is None else f", context: {self.context.shape}"
        return f"{type(self).__name__}(layers: [{layers}]{given})"

    def _inv_call(self, x: Tensor) -> Tensor:
        last = self._cached()
        if last is None or last.x is not x:
            last = self._pulled(x)
            self._last = last if self._cache_size else None
        return last.z

    def _pushed(self, z: Tensor) -> _CachedSolve:
        rows, context, batch = self._rows(z, self._base_columns)
        mapped = self.flow.push(rows, context)
        x = mapped.value.reshape(*batch, self.flow.dim).to(z.dtype)
        return self._remember(z, x, mapped.log_det.reshape(batch).to(z.dtype))

    def _pulled(self, x: Tensor) -> _CachedSolve:
        rows, context, batch = self._rows(x, self.flow.dim)
        mapped = self.flow.pull(rows, context)
        z = wrap_columns(mapped.value, self.flow.circular)
        z = z.reshape(*batch, self._base_columns).to(x.dtype)
        return self._remember(z, x, -mapped.log_det.reshape(batch).to(x.dtype))

    def _remember(self, z: Tensor, x: Tensor, log_det: Tensor) -> _CachedSolve:
        state = Snapshot(self._tensors(z, x)) if self._cache_size else None
        return _CachedSolve(z, x, log_det, state)

    def _rows(self, points: Tensor, columns: int) -> tuple[Tensor, Tensor | None, torch.Size]:
        if points.shape[-1:] != (columns,):
            raise ValueError(
                f"Expected points of shape (..., {columns}); got {tuple(points.shape)}"
            )
        return as_rows(*cast_points(self.flow.like, points, self.context))

    def _cached(self) -> _CachedSolve | None:
        """Return the last solve, if another one would give the same."""
        last = self._last
        if last is None or last.state is None:
            return None
        return last if last.state.matches(self._tensors(last.z, last.x)) else None

    def _tensors(self, z: Tensor, x: Tensor) -> list[Tensor]:
        given = [] if self.context is None else [self.context]
        return [z, x, *given, *self.flow.parameters(), *self.flow.buffers()]

    def _reshaped(self, shape: Sequence[int], columns: int) -> torch.Size:
        given = () if self.context is None else self.context.shape[:-1]
        return torch.Size((*torch.broadcast_shapes(tuple(shape[:-1]), given), columns))
