"""Flows behind the interfaces of sbi's estimators: a density, and a vector field."""

from collections.abc import Sequence
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.base import ConditionalVectorFieldEstimator
from torch import Tensor, nn

from cnf.adapters.pairs import check_finite
from cnf.flow import Flow
from cnf.layers import CNF, Standardize
from cnf.layers.context import ContextEncoder
from cnf.utils.shapes import Shape, sizes

# sbi asks for as many as a hundred thousand rows at once, of many draws given many observations.
MAX_BATCH = 10_000  # rows in one solve


class _OfFlow:
    """The flow of an estimator that sbi keeps as its network, and the flow's encoder."""

    net: nn.Module

    @property
    def flow(self) -> Flow:
        assert isinstance(self.net, Flow)
        return self.net

    @property
    def embedding_net(self) -> nn.Module | None:
        """The encoder of conditions (rows, *shape), which sbi's tests of them use; None without."""
        context = self.flow.context
        return context if isinstance(context, ContextEncoder) else None


class FlowEstimator(_OfFlow, ConditionalDensityEstimator):  # type: ignore[misc]  # sbi has no types
    """A flow p(input | condition) as sbi's trainers and posteriors take it.

    For a posterior the input is θ and the condition x, for a likelihood the other way round. The
    loss is solved as `Flow.for_training` does, densities and draws as accurately as the flow.

    Args:
        flow: A flow given a context: the condition, flattened.
        condition_shape: The shape of one condition.

    Raises:
        ValueError: The flow's context is not of the condition's size; or, from a method, a shape
            does not fit, or a condition is not finite.
        SolveError: From a method: a solve failed.

    Attributes:
        flow: The flow.

    Shapes: inputs (samples, batch, dim) or (batch, dim) and conditions (batch, *condition_shape),
        whose batches broadcast.

    Example:
        >>> from cnf.flow import ffjord
        >>> estimator = FlowEstimator(ffjord(2, context_dim=3), (3,))
        >>> theta, log_prob = estimator.sample_and_log_prob((5,), torch.zeros(4, 3))
        >>> theta.shape, log_prob.shape, estimator.log_prob(theta, torch.zeros(1, 3)).shape
        (torch.Size([5, 4, 2]), torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(self, flow: Flow, condition_shape: Sequence[int]) -> None:
        _check_condition_size(flow, condition_shape)
        super().__init__(flow, torch.Size([flow.dim]), torch.Size(condition_shape))

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return −log p of each row, solved for training, (batch, dim) → (batch,)."""
        self._check_input_shape(input)
        flow, context = self._encoded(condition)
        return -flow.for_training().log_prob(input, context)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log p in nats, shape (samples, batch)."""
        self._check_input_shape(input)
        flow, context = self._encoded(condition)
        rows = input if input.ndim > 2 else input.unsqueeze(0)
        return flow.log_prob(rows, context, max_batch=MAX_BATCH)

    def sample(self, sample_shape: Shape, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return draws, shape (*sample_shape, batch, dim), without a gradient."""
        with torch.no_grad():
            flow, context = self._encoded(condition)
            return flow.sample(sizes(sample_shape), context, max_batch=MAX_BATCH)

    def sample_and_log_prob(
        self, sample_shape: Shape, condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return draws and their log p, shape (*sample_shape, batch), by one solve."""
        with torch.no_grad():
            flow, context = self._encoded(condition)
            return flow.sample_and_log_prob(sizes(sample_shape), context, max_batch=MAX_BATCH)

    def discretized(self, steps: int = 6, method: str = "rk4") -> "FlowEstimator":
        """Return the estimator on as many explicit steps, for MCMC, which asks for many densities.

        It has the very parameters, several times the speed, and the density of a map that is near
        the flow's: compare the two `log_prob`. See `Flow.discretized`.
        """
        return FlowEstimator(self.flow.discretized(steps, method), self.condition_shape)

    def _encoded(self, condition: Tensor) -> tuple[Flow, Tensor]:
        """Return the flow of encoded contexts, and those of conditions, each encoded once."""
        self._check_condition_shape(condition)
        return _encoded(self.flow, condition, self.condition_shape)


class FieldEstimator(_OfFlow, ConditionalVectorFieldEstimator):  # type: ignore[misc]  # sbi has no types
    """A flow's field as sbi's FMPE trains and integrates it, by flow matching.

    With sbi's time s = 1 − t from the data to the base, and z = (θ − loc) / scale,

        dθ/ds = −scale ∘ f(1 − s, z, x),   θ(1) ~ N(loc, scale²).

    FMPE's posterior integrates this by another solver; `FlowEstimator(estimator.flow,
    estimator.condition_shape)` is the same density on the flow's solver. Only sampling by the ODE
    is defined: no score, and so neither `sample_with="sde"` nor several observations at once.

    Args:
        flow: A flow of one CNF layer and a `Standardize` that is fitted, given a context.
        condition_shape: The shape of one condition.

    Raises:
        ValueError: The flow has other layers, or a context of another size.

    Example:
        >>> from cnf.flow import ffjord
        >>> estimator = FieldEstimator(ffjord(2, context_dim=3), (3,))
        >>> estimator.loss(torch.zeros(4, 2), torch.zeros(4, 3)).shape
        torch.Size([4])
    """

    SCORE_DEFINED = SDE_DEFINED = MARGINALS_DEFINED = False

    def __init__(self, flow: Flow, condition_shape: Sequence[int]) -> None:
        kinds = [type(layer) for layer in flow.layers]
        if kinds != [CNF, Standardize]:
            raise ValueError(
                "Expected a flow of a CNF layer and a standardisation, whose base is Gaussian in "
                f"the parameters' units; got {', '.join(kind.__name__ for kind in kinds)}: take a "
                'recipe of one block with scaling="standardize" in posterior_field'
            )
        _check_condition_size(flow, condition_shape)
        super().__init__(flow, torch.Size([flow.dim]), torch.Size(condition_shape))
        scaling = flow.layers[1]
        assert isinstance(scaling, Standardize)
        self._mean_base.copy_(scaling.loc)
        self._std_base.copy_(scaling.scale)

    def forward(self, input: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Return dθ/ds at times s, which broadcast with inputs (..., dim) and conditions."""
        self._check_condition_shape(condition)
        flow, context = _encoded(self.flow, condition, self.condition_shape)
        batch = torch.broadcast_shapes(input.shape[:-1], context.shape[:-1])
        z = ((input - self.mean_base) / self.std_base).expand(*batch, -1)
        times = (1 - time).expand(batch)
        velocity = self._velocity(flow, times, z, context.expand(*batch, -1))
        scaled: Tensor = -self.std_base * velocity
        return scaled

    def ode_fn(self, input: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        return self.forward(input, condition, times)

    def loss(
        self, input: Tensor, condition: Tensor, times: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the squared error of the velocity on straight paths from noise, (batch,).

        The times s of rows (batch, dim) have shape (batch,), and are uniform when None.
        """
        flow, context = _encoded(self.flow, condition, self.condition_shape)
        times = torch.rand_like(input[:, 0]) if times is None else times
        z = (input - self.mean_base) / self.std_base
        noise = torch.randn_like(z)
        between = torch.lerp(z, noise, times.unsqueeze(1))
        velocity = self._velocity(flow, 1 - times, between, context)
        error: Tensor = velocity - (z - noise)
        return error.square().sum(1)

    def _velocity(self, flow: Flow, times: Tensor, z: Tensor, context: Tensor) -> Tensor:
        """Return the field at (*batch), (*batch, dim), (*batch, context_dim)."""
        layer = flow.layers[0]
        assert isinstance(layer, CNF)
        rows, contexts = z.reshape(-1, flow.dim), context.reshape(-1, context.shape[-1])
        return layer.velocity(times.reshape(-1, 1), rows, contexts).view_as(z)


def _check_condition_size(flow: Flow, condition_shape: Sequence[int]) -> None:
    size = torch.Size(condition_shape).numel()
    if flow.context_dim not in (None, size):
        raise ValueError(
            f"Expected a flow with a context of {size} columns, for conditions of shape "
            f"{tuple(condition_shape)}; got {flow.context_dim}: build it with context_dim={size}"
        )


def _encoded(flow: Flow, condition: Tensor, shape: torch.Size) -> tuple[Flow, Tensor]:
    """Return a flow of encoded contexts, and the encoded conditions, (*batch, context_dim).

    Each condition is encoded once, however many draws or densities are asked for.
    """
    batch = condition.shape[: condition.ndim - len(shape)]
    check_finite("observations and parameters to condition on", condition.reshape(-1, *shape))
    rows = condition.reshape(*batch, shape.numel()).to(flow.like)
    behind, context = flow.encoded(rows, MAX_BATCH)
    assert context is not None
    return behind, context
