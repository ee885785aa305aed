"""The variational posterior of a VAE: a Gaussian of its encoder's, carried on by a CNF."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from math import log, pi
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from cnf.fields import ConcatSquash, GivenWeights, LowRank, TracedField
from cnf.layers import CNF
from cnf.utils.shapes import Shape, per_row, sizes

# The field for what encodes x, and what makes the field's context of it.
Amortized = tuple[TracedField, nn.Module | None]


def _none(latent_dim: int, context_dim: int, rank: int, **options: Any) -> Amortized:
    """One field for all x."""
    return ConcatSquash(latent_dim, zero_last=True, **options), None


def _bias(latent_dim: int, context_dim: int, rank: int, **options: Any) -> Amortized:
    """The encoding gates and shifts the hidden layers, whose weights are the same for all x."""
    field = ConcatSquash(latent_dim, context_dim=context_dim, zero_last=True, **options)
    return field, nn.Identity()


def _rank(latent_dim: int, context_dim: int, rank: int, **options: Any) -> Amortized:
    """It makes matrices of low rank, added to weights that are the same for all x, and biases."""
    field = LowRank(latent_dim, rank=rank, **options)
    return field, field.generator(context_dim)


def _hyper(latent_dim: int, context_dim: int, rank: int, **options: Any) -> Amortized:
    """It makes all weights."""
    field = GivenWeights(latent_dim, **options)
    return field, field.generator(context_dim)


AMORTIZATIONS: dict[str, Callable[..., Amortized]] = {
    "none": _none,
    "bias": _bias,
    "rank": _rank,
    "hyper": _hyper,
}
"""How the field depends on x, by name."""


class FlowPosterior(nn.Module):
    """A posterior q(z | x) for any VAE: its encoder's Gaussian, carried on by a CNF.

    An encoder makes of x features h, and a Gaussian's loc and scale. With T the flow whose field is
    conditioned on h,

        z = loc + scale ∘ T(ε; h),   ε ~ N(0, 1),
        log q(z | x) = log N(ε; 0, 1) − log |det ∂T/∂ε| − Σ log scale.

    The field starts at zero, and so q as that Gaussian.

    Called with h, loc and scale it is a `torch.distributions` object with batch shape (*batch) and
    event shape (latent_dim,), with gradients to all three and to the weights.

    FFJORD has the flow after loc and scale. Here it is before them, so that the field sees
    coordinates of order one however narrow a posterior is, and the solver's tolerance is in units
    of its width. Only a field that does not depend on h comes after them, z = T(loc + scale ∘ ε):
    where z is, is all that tells it of x. Such a flow does what a more flexible prior would do.

    The solver's defaults are those of training: steps are joint, loose, and start long, since the
    field starts at zero; log q is off by some 5e-3 nats, to which training comes to lean in its
    favour. So to report a bound take `accurate()`. Nothing depends on `train()` and `eval()`.

    Args:
        latent_dim: Size of z.
        context_dim: Size of h; not asked for with `amortize="none"`.
        amortize: A name in `AMORTIZATIONS`, by what of h the field depends on x: `"none"`, nothing;
            `"bias"`, gates and biases; `"rank"`, biases and matrices of low rank; `"hyper"`, all
            weights.
        hidden: Widths of the field's hidden layers. With one or two the trace is exact and cheap
            for any latent_dim.
        activation: A name in `cnf.fields.ACTIVATIONS`.
        rank: Of those matrices.
        solver: Any of `cnf.layers.SolverSettings`' attributes, instead of the defaults.

    Raises:
        ValueError: A size is out of range, or a name or setting unknown. From a call: h, loc or
            scale is not finite, scale not above zero, or a shape does not fit.
        SolveError: From the distribution: a solve failed.

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
        self.flow = CNF(field, **{**CHEAP, **solver})

    def forward(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> Posterior:
        """q(z | x) for the encoder's outputs.

        Args:
            h: Shape (*batch, context_dim); None will do with `amortize="none"`.
            loc: Shape (*batch, latent_dim).
            scale: Alike, above zero. The three batch shapes broadcast.
        """
        self._check(h, loc, scale)
        context = None if self.encoding is None else self.encoding(h)
        return Posterior(self.flow, context, loc, scale)

    def with_solver(self, **changes: Any) -> Self:
        """A posterior that shares the very parameters and solves otherwise.

        Args:
            changes: Any of `cnf.layers.SolverSettings`' attributes: `rtol`, `method`, `step`, …
        """
        view = copy.copy(self)
        view._modules = {**self._modules, "flow": self.flow.with_solver(**changes)}
        return view

    def accurate(self) -> Self:
        """A posterior that shares the very parameters and solves with care, as a `Flow` does.

        Every row has steps of its own, so that its log q does not depend on the rows beside it,
        and an error of about 1e-5 nats.
        """
        return self.with_solver(**CAREFUL)

    def _check(self, h: Tensor | None, loc: Tensor, scale: Tensor) -> None:
        """Hold that an encoder's outputs are what they must be."""
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
        batches = [tensor.shape[:-1] for tensor, _ in expected.values()]
        try:
            torch.broadcast_shapes(*batches)
        except RuntimeError:
            shapes = ", ".join(str(tuple(batch)) for batch in batches)
            raise ValueError(
                f"Expected batch shapes that broadcast; got {shapes} of {', '.join(expected)}"
            ) from None
        check_encoding({name: tensor for name, (tensor, _) in expected.items()})


CHEAP = {
    "method": "bosh3",
    "step": "joint",
    "rtol": 1e-3,
    "atol": 1e-3,
    "first_step": 0.5,
    "activation_bytes": 2**28,
}
CAREFUL = {
    "method": "dopri5",
    "step": "per_sample",
    "rtol": 1e-5,
    "atol": 1e-5,
    "first_step": None,
}


class Posterior(Distribution):
    """What `FlowPosterior` makes: z = loc + scale ∘ T(ε), with T a continuous flow given a context.

    Args:
        flow: T.
        context: What its field is conditioned on, shape (*batch, context_dim); None for nothing,
            and z = T(loc + scale ∘ ε).
        loc: Shape (*batch, dim).
        scale: Alike, above zero. The batch shapes broadcast.

    A draw and its log-density take one solve together, by `rsample_and_log_prob`; `log_prob` of a
    draw is a solve of its own, the other way.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: CNF, context: Tensor | None, loc: Tensor, scale: Tensor) -> None:
        shapes = [tensor.shape[:-1] for tensor in (context, loc, scale) if tensor is not None]
        batch, event = torch.broadcast_shapes(*shapes), loc.shape[-1:]
        self.flow = flow
        self.context = None if context is None else context.expand(*batch, -1)
        self.loc, self.scale = loc.expand(*batch, -1), scale.expand(*batch, -1)
        super().__init__(batch, event, validate_args=False)  # `FlowPosterior` has seen to it

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Posterior:
        """The same with a larger batch shape, by views."""
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, -1)
        return Posterior(
            self.flow, context, self.loc.expand(*shape, -1), self.scale.expand(*shape, -1)
        )

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch, dim), with gradients."""
        z = self._before(self._noise(sample_shape))
        moved = self.flow.transport(z.flatten(0, -2), self._contexts(z.shape[:-1]))
        return self._after(moved.view_as(z))

    def rsample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draws, and log q of each, shape (*sample_shape, *batch): one solve for all together."""
        noise = self._noise(sample_shape)
        z = self._before(noise)
        pushed = self.flow.push(z.flatten(0, -2), self._contexts(z.shape[:-1]))
        log_det = pushed.log_det.view(z.shape[:-1]) + self.scale.log().sum(-1)
        return self._after(pushed.value.view_as(z)), _normal(noise) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """Log q of z, whose batch shape broadcasts with this one's.

        Raises:
            ValueError: It is of another size.
        """
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"Expected z of shape (..., {self.event_shape[0]}); got {tuple(value.shape)}"
            )
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        z = value.expand(*batch, -1)
        z = z if self.context is None else self._standardized(z)
        pulled = self.flow.pull(z.reshape(-1, z.shape[-1]), self._contexts(batch))
        noise = pulled.value.view_as(z)
        noise = self._standardized(noise) if self.context is None else noise
        return _normal(noise) + pulled.log_det.view(batch) - self.scale.log().sum(-1)

    def _before(self, noise: Tensor) -> Tensor:
        """What the flow starts from."""
        return self._placed(noise) if self.context is None else noise

    def _after(self, moved: Tensor) -> Tensor:
        """The draws, of what the flow makes."""
        return moved if self.context is None else self._placed(moved)

    def _placed(self, noise: Tensor) -> Tensor:
        return self.loc + self.scale * noise

    def _standardized(self, z: Tensor) -> Tensor:
        return (z - self.loc) / self.scale

    def _noise(self, sample_shape: Shape) -> Tensor:
        """Standard normal numbers, of a batch shape and event shape."""
        return torch.randn_like(self.loc.expand(*sizes(sample_shape), *self.loc.shape))

    def _contexts(self, batch: torch.Size) -> Tensor | None:
        """The context of each row of a batch."""
        return None if self.context is None else per_row(self.context, batch)


def _normal(noise: Tensor) -> Tensor:
    """Log-density of standard normal coordinates, without the last axis."""
    return -0.5 * (noise.square() + log(2 * pi)).sum(-1)


def check_encoding(tensors: Mapping[str, Tensor]) -> None:
    """Hold that an encoder's outputs are finite, and the one called scale above zero.

    Args:
        tensors: By their names.

    Raises:
        ValueError: One is not; the message says which and where.

    Example:
        >>> check_encoding({"loc": torch.zeros(3, 2), "scale": torch.tensor([1.0, 0.0])})
        Traceback (most recent call last):
        ValueError: Expected scale to be finite and above zero; got 0.0 at (1,), one of 1 such \
numbers. Make it by softplus or exp of a bounded number
    """
    right = {
        name: tensor.isfinite() & (tensor > 0) if name == "scale" else tensor.isfinite()
        for name, tensor in tensors.items()
    }
    if torch.stack([each.all() for each in right.values()]).all():  # one question to a GPU
        return
    for name, each in right.items():
        wrong = (~each).nonzero()
        if not len(wrong):
            continue
        place = tuple(wrong[0].tolist())
        wanted = "finite and above zero" if name == "scale" else "finite"
        hint = (
            "Make it by softplus or exp of a bounded number"
            if name == "scale"
            else "Lower the learning rate, or clip the gradient"
        )
        raise ValueError(
            f"Expected {name} to be {wanted}; got {tensors[name][place].item()} at {place}, one "
            f"of {len(wrong)} such numbers. {hint}"
        )
