"""A flow, given a context, as one of PyTorch's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from cnf.layers import Layer
from cnf.utils.shapes import Shape, sizes

Pair = tuple[Tensor, Tensor]


class ConditionalDensity(Protocol):
    """A density p(x | context) with draws and log-densities, as a `cnf.Flow` is."""

    base: Distribution
    layers: Sequence[Layer]
    dim: int

    @property
    def noisy(self) -> bool:
        """Whether log p is a lower bound on average, and draws have no gradient."""

    def support(self, context: Tensor | None = None) -> Constraint:
        """Return the support of x."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log p; shapes (*batch, dim), (*batch, context_dim) → (*batch)."""

    def sample(self, shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Return draws, shape (*shape, *context's batch, dim)."""

    def rsample(self, shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Return draws with a gradient."""

    def sample_and_log_prob(self, shape: Shape = (), context: Tensor | None = None) -> Pair:
        """Return draws and their log p."""

    def rsample_and_log_prob(self, shape: Shape = (), context: Tensor | None = None) -> Pair:
        """Return draws and their log p, with a gradient."""


class FlowDistribution(Distribution):
    """A flow's p(x | context), with the context's batch shape and event shape (dim,).

    It does what `torch.distributions` objects do: it stands in `Independent`, in
    `MixtureSameFamily` and under the transforms of `TransformedDistribution`, or as the guide q of
    variational inference. A draw and its log-density take one solve together, by
    `rsample_and_log_prob`; `log_prob` of a draw takes another solve, in the other direction.

    For whole numbers and categories log p is a lower bound on average, by noise that is drawn anew
    each time, and there is no `rsample`. `kl_divergence` has no closed form: average over draws.

    Args:
        flow: The flow, whose parameters it shares.
        context: Shape (*batch, context_dim); None for a flow without one.
        validate_args: Whether arguments are checked: a context for NaN, and x for its shape and for
            being in the support. PyTorch's default when None.

    Attributes:
        has_rsample: Whether draws have a gradient: where the base's do, and no layer draws noise.
        support: Where x can be: `constraints.real_vector`, or what checks by what the layers reach.

    Raises:
        ValueError: A context holds NaN, where that is checked. From a method: x is of the wrong
            shape or, where that is checked, not in the support; or there is no `rsample`.
        SolveError: From any method: a solve failed.

    Example:
        >>> from torch.distributions import AffineTransform, TransformedDistribution
        >>> import cnf
        >>> q = cnf.ffjord(dim=2, context_dim=3).distribution(torch.randn(7, 3))
        >>> q.batch_shape, q.event_shape, q.sample((5,)).shape
        (torch.Size([7]), torch.Size([2]), torch.Size([5, 7, 2]))
        >>> x, log_q = q.rsample_and_log_prob((5,))
        >>> torch.allclose(q.log_prob(x), log_q, atol=1e-3)
        True
        >>> TransformedDistribution(q, AffineTransform(1.0, 2.0)).log_prob(torch.zeros(2)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        flow: ConditionalDensity,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.flow, self.context = flow, context
        self.has_rsample = flow.base.has_rsample and not flow.noisy
        batch = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch, torch.Size([flow.dim]), validate_args)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        """Return the constraint of the context, if there is one."""
        return {} if self.context is None else {"context": constraints.real_vector}

    @constraints.dependent_property(event_dim=1)
    def support(self) -> Constraint:
        """Return the support of x."""
        return self.flow.support(self.context)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Return the distribution with a larger batch shape, by a view of the context.

        Raises:
            ValueError: The batch shape is not one that this one expands to.
        """
        batch = torch.Size(batch_shape)
        if not _expands(self.batch_shape, batch):
            raise ValueError(
                f"Expected a batch shape that {tuple(self.batch_shape)} expands to; got "
                f"{tuple(batch)}"
            )
        new: FlowDistribution
        new = self._get_checked_instance(FlowDistribution, _instance)  # type: ignore[no-untyped-call]
        new.flow, new.has_rsample = self.flow, self.has_rsample
        new.context = None if self.context is None else self.context.expand(*batch, -1)
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws, shape (*sample_shape, *batch, dim), without a gradient."""
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws with a gradient to the parameters and the context (reparameterised)."""
        self._check_rsample()
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> Pair:
        """Draws and their log p, shape (*sample_shape, *batch), in one solve, no gradient."""
        return self.flow.sample_and_log_prob(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> Pair:
        """Draws and their log p in one solve, with a gradient to parameters and context."""
        self._check_rsample()
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(x | context) in nats, of x whose batch shape broadcasts with this one's."""
        if self._validate_args:
            self._validate_sample(value)
        found = self.flow.log_prob(value, self.context)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def _shape(self, sample_shape: Shape) -> torch.Size:
        """Return the shape of draws, without what the context adds to it."""
        shape = sizes(sample_shape)
        return shape if self.context is not None else torch.Size((*shape, *self.batch_shape))

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


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    """Whether `Tensor.expand` takes the one to the other."""
    last = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, last, strict=True))
