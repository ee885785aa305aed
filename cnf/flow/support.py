"""The support of a flow's x."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from cnf.layers import FieldLayer, Layer
from cnf.utils.shapes import as_rows


def reach(
    base: Distribution,
    layers: Sequence[Layer],
    context: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Constraint:
    """Return the points that layers take a base's support to.

    `constraints.real_vector` where these are all, as for columns of real numbers and for angles.
    Arguments are those of `Reach`.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> from cnf.layers import Positive
        >>> support = reach(Independent(Normal(torch.zeros(1), 1.0), 1), [Positive([2.0])])
        >>> support, support.check(torch.tensor([[1.0], [3.0]]))
        (Reach(positive(low=[2.0])), tensor([False,  True]))
    """
    if not _everywhere(base.support):
        return Reach(base, layers, context, dtype)
    limits = [i for i, layer in enumerate(layers) if not layer.surjective]
    if not limits:
        return constraints.real_vector
    return Reach(None, layers[limits[0] :], context, dtype)


class Reach(Constraint):
    """The points that layers take a base's support to, where these are not all.

    The layers check a point on its way to the base, which takes a solve where a CNF layer stands
    between.

    Args:
        base: The base; None for one that is everywhere.
        layers: The layers, the one next to the data last.
        context: As the layers get it, shape (*batch, context_dim).
        dtype: The layers' dtype, to which points are cast; they stay as they are when None.

    Raises:
        SolveError: From `check`: a solve failed.
    """

    event_dim = 1

    def __init__(
        self,
        base: Distribution | None,
        layers: Sequence[Layer],
        context: Tensor | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.base, self.layers, self.dtype = base, list(layers), dtype
        solves = any(isinstance(layer, FieldLayer) for layer in self.layers)
        self.context = context if solves else None
        self.is_discrete = any(layer.stochastic for layer in self.layers)
        super().__init__()

    @torch.no_grad()
    def check(self, value: Tensor) -> Tensor:
        rows, context, batch = as_rows(value.to(self.dtype or value.dtype), self.context)
        inside = ~rows.isnan().any(1)
        for i, layer in enumerate(reversed(self.layers), 1):
            inside = inside.masked_scatter(inside, layer.in_range(rows[inside]))
            if i < len(self.layers) or self.base is not None:
                given = None if context is None else context[inside]
                before = layer.preimage(rows[inside], given)
                rows = before.new_zeros(len(rows), before.shape[1])
                rows[inside] = before
        if self.base is not None and inside.any():
            support = self.base.support
            assert support is not None
            inside = inside.masked_scatter(inside, support.check(rows[inside]))
        return inside.reshape(batch)

    def __repr__(self) -> str:
        limits = [_call(layer) for layer in self.layers if not layer.surjective]
        return f"Reach({', '.join([repr(self.base)] * (self.base is not None) + limits)})"


def _everywhere(support: Constraint | None) -> bool:
    inner: Any = support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return inner is None or isinstance(inner, type(constraints.real))


def _call(layer: Layer) -> str:
    """Return the call that makes the layer, by the names of its configuration."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in layer.config().items())
    return f"{layer.name}({arguments})"
