"""A flow, given a context, as one of PyTorch's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from cnf.utils.shapes import Shape, sizes

if TYPE_CHECKING:
    from cnf.flow.flow import Flow

Pair = tuple[Tensor, Tensor]


class FlowDistribution(Distribution):
    """A flow's p(x | context), with the context's batch shape and event shape (dim,).

    It works in `Independent`, `MixtureSameFamily` and `TransformedDistribution`, or as the guide q
    of variational inference. `rsample_and_log_prob` takes one solve for a draw and its log-density;
    `log_prob` of a draw takes another, in the other direction.

    For whole numbers and categories log p is a lower bound on average, by noise that is drawn anew
    each time, and there is no `rsample`. `kl_divergence` has no closed form: average over draws.
    Points and contexts may have any floating dtype, in which log p and draws are returned.

    Args:
        flow: The flow, whose parameters it shares.
        context: Shape (*batch, context_dim); None for a flow without one.
        validate_args: Whether a context is checked for NaN, and x for its shape and for being in
            the support; PyTorch's default when None.

    Attributes:
        has_rsample: Whether draws have a gradient: where the base's do, and no layer draws noise.
        support: `constraints.real_vector`, or the part that the layers reach.

    Raises:
        ValueError: A context holds NaN, where that is checked. From a method: x is of the wrong
            shape or dtype, on another device or, where that is checked, not in the support; or
            there is no `rsample`.
        SolveError: From any method: a solve failed.

    Example:
        >>> import cnf
        >>> q = cnf.ffjord(dim=2, context_dim=3).distribution(torch.randn(7, 3))
        >>> q.batch_shape, q.event_shape, q.sample((5,)).shape
        (torch.Size([7]), torch.Size([2]), torch.Size([5, 7, 2]))
        >>> x, log_q = q.rsample_and_log_prob((5,))
        >>> torch.allclose(q.log_prob(x), log_q, atol=1e-3)
        True
    """

    def __init__(
        self, flow: Flow, context: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.flow, self.context = flow, context
        self.has_rsample = flow.base.has_rsample and not flow.noisy
        batch = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch, torch.Size([flow.dim]), validate_args)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {} if self.context is None else {"context": constraints.real_vector}

    @constraints.dependent_property(event_dim=1)
    def support(self) -> Constraint:
        return self.flow.support(self.context)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Return the distribution with a larger batch shape, by a view of the context.

        Raises:
            ValueError: The batch shape is not one that this one expands to.
        """
        batch, own = torch.Size(batch_shape), self.batch_shape
        pairs = zip(reversed(own), reversed(batch), strict=False)
        if len(own) > len(batch) or any(size not in (1, wanted) for size, wanted in pairs):
            raise ValueError(
                f"Expected a batch shape that {tuple(own)} expands to; got {tuple(batch)}"
            )
        new: FlowDistribution
        new = self._get_checked_instance(FlowDistribution, _instance)  # type: ignore[no-untyped-call]
        new.flow, new.has_rsample = self.flow, self.has_rsample
        new.context = None if self.context is None else self.context.expand(*batch, -1)
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws, shape (*sample_shape, *batch, dim), without a gradient."""
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws with a gradient to the parameters and the context (reparameterised)."""
        self._check_rsample()
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> Pair:
        """Return draws and their log p, (*sample_shape, *batch), by one solve, detached."""
        return self.flow.sample_and_log_prob(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> Pair:
        """Return draws and their log p by one solve, with a gradient to parameters and context."""
        self._check_rsample()
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x | context) in nats, of x whose batch shape broadcasts with this one's."""
        if self._validate_args:
            self._validate_sample(value)
        found = self.flow.log_prob(value, self.context)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def _shape(self, sample_shape: Shape) -> torch.Size:
        """Return the shape of draws, without what the context adds to it."""
        batch = self.batch_shape if self.context is None else ()
        return torch.Size((*sizes(sample_shape), *batch))

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise ValueError(
                "Expected a base with rsample and columns of real numbers for a reparameterised "
                f"draw; got {self!r}. Use sample"
            )

    def __repr__(self) -> str:
        layers = ", ".join(type(layer).__name__ for layer in self.flow.layers)
        shape = f"batch_shape: {self.batch_shape}, event_shape: {self.event_shape}"
        return f"{type(self).__name__}(base: {self.flow.base}, layers: [{layers}], {shape})"
