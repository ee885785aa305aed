"""A variational posterior of a VAE: its encoder's Gaussian, transformed by a CNF."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import inf, log, pi
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from cnf.fields import ConcatSquash, GivenWeights, LowRank, TracedField
from cnf.layers import CNF, FieldLayer, SolverSettings, Steps
from cnf.layers.training_solver import TRAINING_SOLVER
from cnf.utils.shapes import Shape, per_row, sizes
from cnf.variational import AMORTIZATIONS

# A field, and the module that maps an encoder's features to the field's context.
AmortizedField = tuple[TracedField, nn.Module | None]

# A posterior's field is smoother than a density's, and its first step longer.
POSTERIOR_SOLVER = TRAINING_SOLVER | {"first_step": 0.5}


class FlowPosterior(nn.Module):
    """A posterior q(z | x) for any VAE: its encoder's Gaussian, transformed by a CNF.

    An encoder maps x to features h, and to loc and scale of a Gaussian. With T the flow whose field
    is conditioned on h,

        z = loc + scale ∘ T(ε; h),   ε ~ N(0, 1),
        log q(z | x) = log N(ε; 0, 1) − log |det ∂T/∂ε| − Σ log scale.

    The field is zero at first, so that q starts as the Gaussian.

    A call with h, loc and scale returns a `torch.distributions` object with batch shape (*batch)
    and event shape (latent_dim,), with gradients to all three and to the weights.

    FFJORD applies the flow after loc and scale. Here it comes before them, so that the field sees
    coordinates of order one, and the solver's tolerance is in units of the width. Only a field
    that does not depend on h comes after them, z = T(loc + scale ∘ ε), like a more flexible prior.

    The solver's default is that of training, with log q off by some 5e-3 nats, which training
    learns to exploit: report bounds of `accurate()`. Nothing depends on `train()` and `eval()`.

    Args:
        latent_dim: Size of z.
        context_dim: Size of h; unused with `amortize="none"`.
        amortize: A name in `AMORTIZATIONS`, for the parts of the field that depend on h: `"none"`;
            `"bias"`, gates and biases; `"rank"`, biases and matrices of low rank; `"hyper"`, all
            weights.
        hidden: Widths of the field's hidden layers; with one or two the trace is cheap.
        activation: A name in `cnf.fields.ACTIVATIONS`.
        rank: Rank of the matrices with `amortize="rank"`.
        solver: Any of `cnf.layers.SolverSettings`' attributes, instead of the defaults.

    Raises:
        ValueError: A size is out of range, or a name or setting unknown. In a call: h, loc or
            scale is not finite, scale not above zero, or a shape does not fit.
        SolveError: A solve failed, in a method of the distribution.

    Source: Grathwohl et al. (2019), FFJORD, section 4.3; Rezende & Mohamed (2015), Variational
    inference with normalizing flows.

    Example:
        >>> posterior = FlowPosterior(latent_dim=4, context_dim=16)
        >>> h, loc, scale = torch.randn(10, 16), torch.zeros(10, 4), torch.ones(10, 4)
        >>> z, log_q = posterior(h, loc, scale).rsample_and_log_prob()
        >>> z.shape, log_q.shape
        (torch.Size([10, 4]), torch.Size([10]))
        >>> q = posterior.accurate()(h, loc, scale)
        >>> torch.allclose(q.log_prob(z), log_q, atol=1e-2)
        True
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 0,
        amortize: str = "bias",
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        rank: int = 4,
        **solver: Any,
    ) -> None:
        super().__init__()
        if amortize not in AMORTIZATIONS:
            raise ValueError(
                f"Expected amortize to be one of {', '.join(AMORTIZATIONS)}; got {amortize!r}"
            )
        if amortize != "none" and context_dim < 1:
            raise ValueError(
                f"Expected context_dim, the size of h, of at least 1 for amortize={amortize!r}; "
                f"got {context_dim}"
            )
        self.latent_dim, self.context_dim, self.amortize = latent_dim, context_dim, amortize
        field, self.encoding = AMORTIZATIONS[amortize](
            latent_dim, context_dim, rank, hidden=hidden, activation=activation
        )
        self.flow: FieldLayer = CNF(field, **{**POSTERIOR_SOLVER, **solver})

    def forward(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> Posterior:
        """Return q(z | x) for the encoder's outputs, whose batch shapes broadcast.

        Args:
            h: Features, shape (*batch, context_dim); None is allowed with `amortize="none"`.
            loc: Means, shape (*batch, latent_dim).
            scale: Standard deviations, above zero, shape (*batch, latent_dim).
        """
        self._check(h, loc, scale)
        context = None if self.encoding is None else self.encoding(h)
        return Posterior(self.flow, context, loc, scale)

    def with_solver(self, **changes: Any) -> Self:
        """Return a posterior that shares the parameters, with other `cnf.layers.SolverSettings`.

        Explicit steps have no such settings, and stay as they are.
        """
        view = copy.copy(self)
        view._modules = {**self._modules, "flow": self.flow.with_solver(**changes)}
        return view

    def accurate(self) -> Self:
        """Return a posterior that shares the parameters and solves as accurately as a `Flow`.

        Steps are per sample, so that a row's log q does not depend on the other rows, and its error
        is about 1e-5 nats. Explicit steps have no error, and stay as they are.
        """
        defaults = SolverSettings()
        changed = {*POSTERIOR_SOLVER} - {"gradient", "activation_bytes"}
        return self.with_solver(**{name: getattr(defaults, name) for name in changed})

    def discretized(
        self, steps: int = 2, method: str = "midpoint", *, learnt: bool = False
    ) -> Self:
        """Return a posterior on the same field that takes a fixed number of explicit steps.

        They go from base to data, so that draws and their log q take neither a solver nor an
        inverse, and log q is exact, up to rounding: a bound needs no other settings. It is another
        posterior, nearer to this one the more steps there are, and is trained as any other. Log q
        of other points than draws takes an inverse, by Newton's method. Where the steps fold log q
        is ∞, and a bound −∞: the gain of a bound itself keeps determinants away from zero.

        Args:
            steps: The number of steps.
            method: Name of a tableau in `cnf.ode.TABLEAUS` of at least two stages.
            learnt: Whether the coefficients of each step, and their sizes, are parameters too: of
                the new posterior, which is then the one to train and to keep.

        Raises:
            ValueError: A number or name is out of range, or there are more latents than exact
                determinants pay for.

        Example:
            >>> posterior = FlowPosterior(latent_dim=4, context_dim=16).discretized(2)
            >>> h, loc, scale = torch.randn(10, 16), torch.zeros(10, 4), torch.ones(10, 4)
            >>> q = posterior(h, loc, scale)
            >>> z, log_q = q.rsample_and_log_prob()
            >>> torch.allclose(q.log_prob(z), log_q, atol=1e-4)
            True
        """
        flow = Steps(self.flow.field, steps, method, learnt=learnt, towards="data")
        view = copy.copy(self)
        view._modules = {**self._modules, "flow": flow.to(next(self.parameters()))}
        return view

    def _check(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> None:
        expected = {"loc": (loc, self.latent_dim), "scale": (scale, self.latent_dim)}
        if self.encoding is not None:
            if h is None:
                raise ValueError(
                    f"Expected h of shape (..., {self.context_dim}) for "
                    f"amortize={self.amortize!r}; got None. Pass the encoder's features"
                )
            expected["h"] = (h, self.context_dim)
        for name, (tensor, size) in expected.items():
            if tensor.shape[-1:] != (size,):
                raise ValueError(
                    f"Expected {name} of shape (..., {size}), as the posterior was made for; got "
                    f"{tuple(tensor.shape)}. Change the encoder, or make another FlowPosterior"
                )
        batches = [tuple(tensor.shape[:-1]) for tensor, _ in expected.values()]
        try:
            torch.broadcast_shapes(*batches)
        except RuntimeError:
            shapes = ", ".join(map(str, batches))
            raise ValueError(
                f"Expected batch shapes that broadcast; got {shapes} of {', '.join(expected)}"
            ) from None
        check_encoding({name: tensor for name, (tensor, _) in expected.items()})


class Posterior(Distribution):
    """The distribution of z = loc + scale ∘ T(ε), with T a continuous flow given a context.

    `rsample_and_log_prob` takes one solve for draws and their log-densities; `log_prob` takes a
    separate solve in the other direction. The arguments' batch shapes broadcast.

    Args:
        flow: The flow T, by a solver or by explicit steps towards the data.
        context: Context of its field, shape (*batch, context_dim); None for a field without one,
            and then z = T(loc + scale ∘ ε).
        loc: Means, shape (*batch, dim).
        scale: Standard deviations, above zero, shape (*batch, dim).
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, flow: FieldLayer, context: Tensor | None, loc: Tensor, scale: Tensor
    ) -> None:
        shapes = [tensor.shape[:-1] for tensor in (context, loc, scale) if tensor is not None]
        batch, event = torch.broadcast_shapes(*shapes), loc.shape[-1:]
        self.flow = flow
        self.context = None if context is None else context.expand(*batch, -1)
        self.loc, self.scale = loc.expand(*batch, -1), scale.expand(*batch, -1)
        super().__init__(batch, event, validate_args=False)  # `FlowPosterior` checks the arguments

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Posterior:
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, -1)
        loc, scale = self.loc.expand(*shape, -1), self.scale.expand(*shape, -1)
        return Posterior(self.flow, context, loc, scale)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw z of shape (*sample_shape, *batch, dim), with gradients."""
        z = self._affine(self._noise(sample_shape), before=True)
        pushed = self.flow.transport(z.flatten(0, -2), self._row_contexts(z.shape[:-1]))
        return self._affine(pushed.view_as(z), before=False)

    def rsample_and_log_prob(
        self, sample_shape: Shape = (), noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw z with log q of shape (*sample_shape, *batch), in one solve.

        Args:
            sample_shape: The shape of the draws.
            noise: The standard normal ε that they are made of, (*sample_shape, *batch, dim).
        """
        noise = self._noise(sample_shape) if noise is None else noise
        z = self._affine(noise, before=True)
        pushed = self.flow.push(z.flatten(0, -2), self._row_contexts(z.shape[:-1]))
        log_det = pushed.log_det.view(z.shape[:-1]) + self.scale.log().sum(-1)
        drawn = self._affine(pushed.value.view_as(z), before=False)
        return drawn, _bounding(_normal_log_prob(noise) - log_det, log_det == inf)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q of z (..., dim), whose batch shape broadcasts with the distribution's."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"Expected z of shape (..., {self.event_shape[0]}); got {tuple(value.shape)}"
            )
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        z = value.expand(*batch, -1)
        z = z if self.context is None else self._standardized(z)
        pulled = self.flow.pull(z.reshape(-1, z.shape[-1]), self._row_contexts(batch))
        noise = pulled.value.view_as(z)
        noise = self._standardized(noise) if self.context is None else noise
        log_det = pulled.log_det.view(batch) - self.scale.log().sum(-1)
        return _bounding(_normal_log_prob(noise) + log_det, log_det == -inf)

    def _affine(self, z: Tensor, before: bool) -> Tensor:
        """Return loc + scale ∘ z where it comes before the flow, or after, else z."""
        return self.loc + self.scale * z if before == (self.context is None) else z

    def _standardized(self, z: Tensor) -> Tensor:
        return (z - self.loc) / self.scale

    def _noise(self, sample_shape: Shape) -> Tensor:
        return torch.randn_like(self.loc.expand(*sizes(sample_shape), *self.loc.shape))

    def _row_contexts(self, batch: torch.Size) -> Tensor | None:
        return None if self.context is None else per_row(self.context, batch)


def _bounding(log_q: Tensor, folded: Tensor) -> Tensor:
    """Return log q with ∞ where explicit steps fold, so that bounds are not above the evidence."""
    return log_q.masked_fill(folded, inf)


def _normal_log_prob(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square() + log(2 * pi)).sum(-1)


def check_encoding(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless an encoder's outputs are finite, and `scale` above zero.

    Example:
        >>> check_encoding({"loc": torch.zeros(3, 2), "scale": torch.tensor([1.0, 0.0])})
        Traceback (most recent call last):
        ValueError: Expected scale to be finite and above zero; got 0.0 at (1,), one of 1 such \
numbers. Make it by softplus or exp of a bounded number
    """
    valid = {
        name: tensor.isfinite() & (tensor > 0) if name == "scale" else tensor.isfinite()
        for name, tensor in tensors.items()
    }
    if torch.stack([each.all() for each in valid.values()]).all():  # a single synchronization
        return
    name = next(name for name, each in valid.items() if not each.all())
    invalid = (~valid[name]).nonzero()
    index = tuple(invalid[0].tolist())
    condition, hint = "", "Lower the learning rate, or clip the gradient"
    if name == "scale":
        condition, hint = " and above zero", "Make it by softplus or exp of a bounded number"
    raise ValueError(
        f"Expected {name} to be finite{condition}; got {tensors[name][index].item()} at {index}, "
        f"one of {len(invalid)} such numbers. {hint}"
    )


def unconditional(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build one field for all x."""
    return ConcatSquash(latent_dim, zero_last=True, **options), None


def given_biases(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build a field whose gates and biases depend on x; its weights are shared by all x."""
    field = ConcatSquash(latent_dim, context_dim=context_dim, zero_last=True, **options)
    return field, nn.Identity()


def given_low_rank(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build a field with shared weights plus matrices of low rank and biases that depend on x."""
    field = LowRank(latent_dim, rank=rank, **options)
    return field, field.generator(context_dim)


def hypernetwork(latent_dim: int, context_dim: int, rank: int, **options: Any) -> AmortizedField:
    """Build a field all of whose weights depend on x."""
    field = GivenWeights(latent_dim, **options)
    return field, field.generator(context_dim)
