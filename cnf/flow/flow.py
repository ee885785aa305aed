"""A flow: a base distribution and the invertible layers between it and the data."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import log
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from cnf.fields import TracedField
from cnf.fields.regularizers import Regularization
from cnf.flow.base_config import map_tensors
from cnf.flow.batching import carry_or_redraw, in_chunks
from cnf.flow.casting import cast_points, cast_tensor, tensors_of
from cnf.flow.cylinder import Cylinder
from cnf.flow.distribution import FlowDistribution
from cnf.flow.scores import RowLogProbs, Scores, base_log_prob, score_rows
from cnf.flow.support import reach
from cnf.flow.transform import FlowTransform
from cnf.layers import CNF, FieldLayer, Layer, Standardize, Steps, TransformResult
from cnf.layers.context import ContextEncoder
from cnf.layers.layer import larger
from cnf.layers.steps import Direction, check_steps
from cnf.layers.training_solver import TRAINING_SOLVER
from cnf.ode import Stats
from cnf.utils.random import RowNoise
from cnf.utils.shapes import Shape, as_rows, per_row, sizes


class Flow(nn.Module):
    """The distribution of x = T(z), z ~ base, with T the composition of invertible layers.

        log p(x) = log p_base(T⁻¹(x)) + log |det ∂T⁻¹/∂x|

    Args:
        base: Any `torch.distributions` object over vectors (event shape (dim,)), not batched.
        layers: Invertible layers, the one next to the data last.
        context: Standardises or encodes the context on its way to the layers; they get it as it is
            when None.

    Raises:
        ValueError: The base is not a single distribution over vectors, or a layer disagrees with it
            on the number of columns or on which of them are angles.
        SolveError: From any method: a solve failed; the message names the rows and what to try.

    Attributes:
        dim: Size of x; the base's, but for layers that make one column of several.

    Shapes: x is (*batch, dim) and a context (*batch, context_dim); their batch shapes broadcast.
        Both may have any floating dtype, in which results are returned: of x, or of the context
        that draws are given. Computed is in the flow's.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> from cnf.fields import ConcatSquash
        >>> flow = Flow(base, [CNF(ConcatSquash(2, hidden=(16, 16))), Standardize(2)])
        >>> x, log_prob = flow.sample_and_log_prob(5)
        >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-3)
        True
    """

    def __init__(
        self,
        base: Distribution,
        layers: Iterable[Layer],
        context: Standardize | ContextEncoder | None = None,
    ) -> None:
        super().__init__()
        if len(base.event_shape) != 1 or base.batch_shape:
            raise ValueError(
                "Expected a base with an event shape (dim,) and no batch shape (wrap it in "
                f"torch.distributions.Independent); got event shape {tuple(base.event_shape)} and "
                f"batch shape {tuple(base.batch_shape)}"
            )
        self.base = base
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))
        self.context = context
        self.dim = base.event_shape[0]
        for layer in self.layers:
            name, (before, after) = type(layer).__name__, layer.widths or (self.dim, self.dim)
            if before != self.dim:
                raise ValueError(
                    f"Expected {before} columns on the base's side of {name}; got {self.dim} from "
                    "the base and its layers"
                )
            if layer.circular not in (None, self.circular):
                raise ValueError(
                    f"Expected the base's circular columns, {list(self.circular)}, to be those of "
                    f"{name}; got {list(layer.circular or ())}"
                )
            self.dim = after

    @property
    def circular(self) -> tuple[int, ...]:
        """The columns of the base that are angles in radians: those of a `Cylinder`."""
        return self.base.circular if isinstance(self.base, Cylinder) else ()

    @property
    def noisy(self) -> bool:
        """A flag for noise that is drawn for each row: log p is then a lower bound on average."""
        return any(layer.stochastic for layer in self.layers)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the flow's dtype on its device."""
        found = (each for each in tensors_of(self) if each.is_floating_point())
        return next(found, torch.empty(0)).new_empty(0)

    @property
    def context_dim(self) -> int | None:
        """The size of the context, 0 without one; None where the layers do not know."""
        if self.context is not None:
            return self.context.dim
        fields = [layer.field for layer in self.layers if isinstance(layer, FieldLayer)]
        known = {each.context_dim if isinstance(each, TracedField) else None for each in fields}
        return known.pop() if len(known) == 1 else None

    @property
    def transform(self) -> FlowTransform:
        """The map T as one of PyTorch's transforms: a new one at each access, with its own cache.

        Raises:
            ValueError: The flow draws noise, or has a context.
        """
        return self.transform_given(None)

    def transform_given(self, context: Tensor | None) -> FlowTransform:
        """Return T given a context as one of PyTorch's transforms.

        The context's batch shape, (*batch, context_dim), broadcasts with a point's.

        Raises:
            ValueError: The flow draws noise for whole numbers or categories, and so is no
                bijection; or the context is not of its size.
        """
        if self.noisy:
            raise ValueError(
                "Expected a flow over real numbers for a transform, which takes one point to one; "
                "got one that draws noise for whole numbers or categories. Use its sample and "
                "log_prob, or distribution()"
            )
        self._check_context(context, "transform_given(context)")
        return FlowTransform(self, context)

    def distribution(
        self, context: Tensor | None = None, validate_args: bool | None = None
    ) -> FlowDistribution:
        """Return p(x | context) as one of PyTorch's distributions, with the context's batch shape.

        Arguments are those of `FlowDistribution`.

        Raises:
            ValueError: The context is not of the flow's size, or holds NaN.

        Example:
            >>> from torch.distributions import Independent
            >>> from cnf.flow import ffjord
            >>> p = Independent(ffjord(2).distribution().expand((3,)), 1)
            >>> p.log_prob(p.sample()).shape
            torch.Size([])
        """
        self._check_context(context, "distribution(context)")
        return FlowDistribution(self, context, validate_args)

    def support(self, context: Tensor | None = None) -> Constraint:
        """Return the support of x: `constraints.real_vector`, or the part that the layers reach.

        Example:
            >>> from cnf.layers import Bounded
            >>> from cnf.flow import ffjord
            >>> flow = ffjord(1, columns=[Bounded([0.0], [1.0])])
            >>> flow.support().check(torch.tensor([[0.5], [1.5]]))
            tensor([ True, False])
        """
        like = self.like
        if context is not None:
            batch = context.shape[:-1]
            rows = self.standardized(per_row(cast_tensor(like, "context", context), batch))
            context = None if rows is None else rows.reshape(*batch, rows.shape[1])
        return reach(self.base, self.layers, context, like.dtype)

    @property
    def solves(self) -> int:
        """The number of ODE solves in one pass through the flow."""
        return sum(isinstance(layer, CNF) for layer in self.layers)

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> Tensor:
        """Return the log-density log p(x | context) in nats, shape (*batch).

        Args:
            x: Shape (*batch, dim).
            context: Shape (*batch, context_dim).
            max_batch: The most rows in one solve, which bounds its memory; all when None. It
                changes only rounding, except where steps are joint, or where PyTorch's generator
                draws probes or noise on the way.
            seed: Makes the probes of an estimated trace, and the noise of whole numbers and
                categories, functions of the seed and of each row's own values and context, so that
                a row has one log p in any batch, and equal rows have the same. They come from
                PyTorch's generator when None.
            draws: Draws of noise for each row, where columns are whole numbers or categories: log p
                is that of the mean mass, a lower bound on average, which tightens with them. A flow
                without such columns takes one.

        Raises:
            ValueError: A shape does not fit, a dtype is not floating, a tensor is on another device
                than the flow, or `max_batch` or `draws` is below 1.
            TypeError: x or the context is no tensor.

        Example:
            >>> from cnf.flow import ffjord
            >>> flow, x = ffjord(2), torch.randn(5, 2)
            >>> torch.allclose(flow.log_prob(x, max_batch=2), flow.log_prob(x), atol=1e-5)
            True
        """
        if draws < 1:
            raise ValueError(f"Expected draws of at least 1; got {draws}")
        rows, context, batch = self._rows(x, context)

        def solve(rows: Tensor, context: Tensor | None) -> Tensor:
            return self.score_draws(rows, context, seed, draws).log_prob

        return in_chunks(solve, rows, context, max_batch).reshape(batch).to(x.dtype)

    def sample(
        self, shape: Shape = (), context: Tensor | None = None, *, max_batch: int | None = None
    ) -> Tensor:
        """Return draws, shape (*shape, *context's batch, dim), without a gradient.

        They have the context's dtype, the flow's without one. With `max_batch` that many in one
        solve, as in `log_prob`; they are the same, but for base draws without a preimage under
        explicit steps, next to a fold, which are drawn anew.
        """
        with torch.no_grad():
            return self._draw(self.base.sample, shape, context, Flow.transport, max_batch)

    def rsample(self, shape: Shape = (), context: Tensor | None = None) -> Tensor:
        """Return draws with a gradient to the parameters and the context (reparameterised)."""
        return self._draw(self._base_rsample, shape, context, Flow.transport)

    def sample_and_log_prob(
        self, shape: Shape = (), context: Tensor | None = None, *, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return draws and their log p by one solve, without a gradient; see `log_prob`."""
        with torch.no_grad():
            joint = self._draw(self.base.sample, shape, context, Flow._joint, max_batch)
        return joint[..., :-1], joint[..., -1]

    def rsample_and_log_prob(
        self, shape: Shape = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return draws and their log p by one solve, with a gradient to parameters and context."""
        joint = self._draw(self._base_rsample, shape, context, Flow._joint)
        return joint[..., :-1], joint[..., -1]

    def score(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        probes: int = 16,
        generator: torch.Generator | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
    ) -> Scores:
        """Return log p(x | context) with its errors, without a gradient; never raises for a row.

        The rows are solved twice, the second time in double precision, by dopri8 at a thousandth of
        the tolerance (a tenth without a first pass): together that takes several times as long as
        `log_prob`. A user-defined field has to work in double precision too.

        Args:
            x: Shape (*batch, dim).
            context: Shape (*batch, context_dim).
            probes: Estimates of the trace for each row, where it is estimated (Hutch++ takes up to
                as many products more), and draws of noise, where columns are whole numbers or
                categories: log p is then a lower bound on average, which tightens with them.
            generator: Source of the seed of probes and noise, which are functions of it and of each
                row's own values and context; PyTorch's on the CPU when None.
            max_batch: As in `log_prob`; probes and noise are the same for any.
            seed: The seed itself, in place of a generator's: noise is then that of `log_prob`.

        Raises:
            ValueError: A shape does not fit, a dtype is not floating, a tensor is on another device
                than the flow, or `probes` or `max_batch` is below 1.
            TypeError: x or the context is no tensor.

        Example:
            >>> from cnf.flow import ffjord
            >>> scores = ffjord(2).score(torch.zeros(3, 2))
            >>> scores.stderr
            tensor([0., 0., 0.])
            >>> (scores.uncertainty < 1e-4).all().item()
            True
        """
        if probes < 1:
            raise ValueError(f"Expected probes of at least 1; got {probes}")
        rows, context, batch = self._rows(x, context)
        if seed is None:
            device = torch.device("cpu") if generator is None else generator.device
            seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
        scores = score_rows(self, rows, context, probes, seed, max_batch)
        return scores.reshape(batch).to(x.dtype)

    def score_rows(
        self,
        x: Tensor,
        context: Tensor | None = None,
        regularization: Regularization | None = None,
        noise: RowNoise | None = None,
    ) -> RowLogProbs:
        """Return log p of rows (rows, dim) given a context (rows, context_dim), and the cost.

        A regularization adds its penalties, and may move the base's time. Without one, random
        numbers come from `noise`, and from PyTorch's generator when None.
        """
        pulled, inputs = self._pull(x, context, regularization, noise)
        log_prob = base_log_prob(self.base, pulled.value) + pulled.log_det
        return RowLogProbs(log_prob, pulled.stats, pulled.penalties, inputs)

    def score_draws(
        self, x: Tensor, context: Tensor | None = None, seed: int | None = None, draws: int = 1
    ) -> RowLogProbs:
        """Return log p of rows by the mean mass over draws of noise, and the cost of all draws.

        Shapes are those of `score_rows`, the other arguments those of `log_prob`.
        """
        noise = None if seed is None else self.row_noise(seed, x, context)
        count = draws if self.noisy else 1
        scored = [self.score_rows(x, context, noise=noise) for _ in range(count)]
        if count == 1:
            return scored[0]
        log_prob = torch.stack([each.log_prob for each in scored]).logsumexp(0) - log(count)
        return RowLogProbs(log_prob, sum((each.stats for each in scored), start=Stats()))

    def row_noise(self, seed: int, x: Tensor, context: Tensor | None = None) -> RowNoise:
        """Return random numbers of rows, functions of the seed and of what the layers read.

        Shapes: (rows, dim), (rows, context_dim).
        """
        unread = self.layers[-1].unread if len(self.layers) else ()
        if unread:
            x = x[:, [column for column in range(self.dim) if column not in unread]]
        return RowNoise(seed, x, context)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the value of `push` alone, which is cheaper."""
        context = self.standardized(context)
        for layer in self.layers:
            z = layer.transport(z, context)
        return z

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Push rows of the base to x through all layers, with log |det ∂x/∂z| and the cost.

        Shapes: (rows, columns of the base), (rows, context_dim) → (rows, dim), (rows,).
        """
        context = self.standardized(context)
        log_det, stats, residual = z.new_zeros(len(z)), Stats(), None
        for layer in self.layers:
            mapped = layer.push(z, context)
            z, log_det, stats = mapped.value, log_det + mapped.log_det, stats + mapped.stats
            residual = larger(residual, mapped.residual)
        return TransformResult(z, log_det, stats, residual=residual)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Pull rows of x to the base through all layers, with log |det ∂z/∂x| and the cost.

        Shapes: (rows, dim), (rows, context_dim) → (rows, columns of the base), (rows,).

        Example:
            >>> from cnf.flow import ffjord
            >>> flow, x = ffjord(2), torch.zeros(3, 2)
            >>> pulled = flow.pull(x)
            >>> torch.equal(flow.base.log_prob(pulled.value) + pulled.log_det, flow.log_prob(x))
            True
        """
        return self._pull(x, context)[0]

    def _pull(
        self,
        x: Tensor,
        context: Tensor | None,
        regularization: Regularization | None = None,
        noise: RowNoise | None = None,
    ) -> tuple[TransformResult, list[Tensor]]:
        """Pull with the penalties of a regularization, and return the input of each layer too."""
        context = self.standardized(context)
        log_det, residual = x.new_zeros(len(x)), None
        stats, penalties, inputs = Stats(), dict[str, Tensor](), list[Tensor]()
        base_time = 0.0 if regularization is None else regularization.base_time()
        for layer in reversed(self.layers):
            inputs.insert(0, x.detach())
            if regularization is not None:
                mapped = layer.pull_regularized(x, context, regularization, base_time)
            elif noise is not None:
                mapped = layer.pull_with_noise(x, context, noise)
            else:
                mapped = layer.pull(x, context)
            x, log_det, stats = mapped.value, log_det + mapped.log_det, stats + mapped.stats
            residual = larger(residual, mapped.residual)
            for name, penalty in mapped.penalties.items():
                penalties[name] = penalties[name] + penalty if name in penalties else penalty
        return TransformResult(x, log_det, stats, penalties, residual), inputs

    def path(self, z: Tensor, frames: int, context: Tensor | None = None) -> Tensor:
        """Return the path of base points z (rows, dim) to the data, shape (frames, rows, dim).

        Flow time runs evenly through all CNF layers. The other layers have no time: those on the
        data's side of a CNF layer are applied to all of its frames, to be in the data's units.

        Raises:
            ValueError: Fewer than two frames, or no CNF layer to pass through.
        """
        cnfs = [layer for layer in self.layers if isinstance(layer, FieldLayer)]
        if frames < 2 or not cnfs:
            raise ValueError(
                f"Expected at least 2 frames and 1 CNF layer; got {frames} and {len(cnfs)}"
            )
        context = self.standardized(context)
        times = torch.linspace(0, len(cnfs), frames, dtype=z.dtype).tolist()
        states: list[Tensor] = []
        crossed = 0
        for layer in self.layers:
            if isinstance(layer, FieldLayer):
                own = [t - crossed for t in times if crossed < t <= crossed + 1]
                stops = sorted({0.0, *own, 1.0})
                solved = dict(zip(stops, layer.path(z, stops, context), strict=True))
                states += [z] if crossed == 0 else []
                states += [solved[t] for t in own]
                z, crossed = solved[1.0], crossed + 1
            else:
                z = layer.transport(z, context)
                states = [layer.transport(state, context) for state in states]
        return torch.stack(states)

    def with_solver(self, **changes: Any) -> Self:
        """Return a flow that shares the parameters, with some `cnf.layers.SolverSettings` changed.

        Example:
            >>> from cnf.flow import ffjord
            >>> flow = ffjord(2)
            >>> flow.with_solver(rtol=1e-8, atol=1e-8).layers[0].field is flow.layers[0].field
            True
        """
        layers = [layer.with_solver(**changes) for layer in self.layers]
        return type(self)(self.base, layers, self.context)

    def discretized(
        self,
        steps: int = 2,
        method: str = "midpoint",
        *,
        learnt: bool = False,
        towards: Direction = "base",
    ) -> Self:
        """Return a flow on the same fields that takes a fixed number of explicit steps.

        Its log p is exact, with no solver's error, and a few steps are an order of magnitude faster
        than an adaptive solve; but it is the density of another map, which is further from the
        flow's the fewer steps there are, and may fold (`cnf.layers.Steps`). `cnf.distil` trains it.

        Args:
            steps: The number of steps in place of each `cnf.CNF` layer, or of other steps.
            method: Name of a tableau in `cnf.ode.TABLEAUS` of at least two stages.
            learnt: Whether the coefficients of each step, and their sizes, are parameters.
            towards: `"base"`, so that log p is explicit and draws are found by Newton's method; or
                `"data"`, the other way round.

        Raises:
            ValueError: A number or name is out of range, the flow has no CNF layer, angles, noise,
                or more columns than exact determinants pay for.

        Example:
            >>> from cnf.flow import ffjord
            >>> fast = ffjord(2).discretized(2)
            >>> fast.log_prob(torch.zeros(3, 2)).shape
            torch.Size([3])
        """
        check_steps(steps, method)
        if self.noisy:
            raise ValueError(
                "Expected a flow over real numbers to discretise, whose log p is then exact; got "
                "one that draws noise for whole numbers or categories: use the adaptive flow"
            )
        if not any(isinstance(layer, FieldLayer) for layer in self.layers):
            raise ValueError(
                "Expected a flow with CNF layers to discretise; got none: take a flow with a field"
            )
        make = partial(Steps, count=steps, method=method, learnt=learnt, towards=towards)
        layers = [
            make(layer.field) if isinstance(layer, FieldLayer) else layer for layer in self.layers
        ]
        return type(self)(self.base, layers, self.context)

    def for_training(self, **changes: Any) -> Self:
        """Return the view of the flow that `cnf.fit` trains on, which shares the parameters.

        For training loops that users write: joint steps of bosh3 at a tolerance of 1e-3, with a
        given first step and activations kept (`cnf.layers.training_solver.TRAINING_SOLVER`). Its
        log p is off by about the tolerance and depends on the batch: score by the flow itself.

        Args:
            changes: `cnf.layers.SolverSettings` that differ from these.

        Example:
            >>> from cnf.flow import ffjord
            >>> flow, data = ffjord(2), torch.randn(64, 2)
            >>> view = flow.for_training(rtol=1e-2, atol=1e-2)
            >>> optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
            >>> for _ in range(3):
            ...     optimizer.zero_grad()
            ...     (-view.log_prob(data).mean()).backward()
            ...     optimizer.step()
            >>> flow.log_prob(data).shape
            torch.Size([64])
        """
        return self.with_solver(**TRAINING_SOLVER | changes)

    def in_double(self) -> Self:
        """Return a copy in double precision, whose code is not compiled.

        Example:
            >>> from cnf.flow import ffjord
            >>> ffjord(2).in_double().log_prob(torch.zeros(1, 2, dtype=torch.float64)).dtype
            torch.float64
        """
        base = map_tensors(self.base, lambda tensor: tensor.detach())
        flow = type(self)(base, copy.deepcopy(self.layers), copy.deepcopy(self.context))
        return flow.with_solver(compile=False).double()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.base = map_tensors(self.base, fn)
        return self

    def _rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
        points, context = cast_points(self.like, x, context)
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"Expected x of shape (..., {self.dim}); got {tuple(x.shape)}")
        return as_rows(points, context)

    def _check_context(self, context: Tensor | None, call: str) -> None:
        size = self.context_dim
        if context is None:
            fits, got = not size, "none"
        else:
            fits = context.ndim > 0 and size in (None, context.shape[-1])
            got = str(tuple(context.shape))
        if not fits:
            wanted = "no context" if size == 0 else f"a context of shape (..., {size or 'size'})"
            raise ValueError(f"Expected {wanted} in {call}; got {got}")

    def standardized(self, context: Tensor | None) -> Tensor | None:
        """Return the context as the layers receive it, shape (rows, context_dim)."""
        if context is None or self.context is None:
            return context
        if context.shape[1:] != (self.context.dim,):
            raise ValueError(
                f"Expected a context of shape (rows, {self.context.dim}); got "
                f"{tuple(context.shape)}"
            )
        if isinstance(self.context, Standardize):
            return self.context.pull(context).value
        encoded: Tensor = self.context(context)
        return encoded

    def encoded(
        self, context: Tensor | None, max_batch: int | None = None
    ) -> tuple["Flow", Tensor | None]:
        """Return the flow behind its encoder, and encoded contexts: each once for many points.

        Without an encoder they are as given. Both share the parameters.

        Shapes: (*batch, context_dim) → (*batch, size of the layers' context), so many at once.

        Example:
            >>> from cnf.flow import ffjord
            >>> flow, context = ffjord(2, context_dim=3), torch.zeros(3)
            >>> flow.encoded(context)[1] is context
            True
        """
        if context is None or not isinstance(self.context, ContextEncoder):
            return self, context
        rows = per_row(context, context.shape[:-1])

        def encode(rows: Tensor, _: Tensor | None) -> Tensor:
            return cast("Tensor", self.standardized(rows))

        found = in_chunks(encode, rows, None, max_batch)
        return Flow(self.base, self.layers), found.reshape(*context.shape[:-1], found.shape[1])

    def _draw(
        self,
        base_sample: Callable[[torch.Size], Tensor],
        shape: Shape,
        context: Tensor | None,
        carry: Callable[["Flow", Tensor, Tensor | None], Tensor],
        max_batch: int | None = None,
    ) -> Tensor:
        given = None if context is None else cast_tensor(self.like, "context", context)
        batch = () if given is None else given.shape[:-1]
        whole = torch.Size((*sizes(shape), *batch))
        if whole.numel():
            z = base_sample(whole)
        else:  # which PyTorch's mixtures do not draw
            z = base_sample(torch.Size((1,))).new_empty(*whole, *self.base.event_shape)
        flow, given = self.encoded(given, max_batch)
        rows, given, batch = as_rows(z, given)
        carried = partial(carry_or_redraw, partial(carry, flow), base_sample)
        drawn = in_chunks(carried, rows, given, max_batch)
        drawn = drawn if context is None else drawn.to(context.dtype)
        return drawn.reshape(*batch, drawn.shape[1])

    def _joint(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Return samples and, as the last column, their log-density."""
        pushed = self.push(z, context)
        log_prob = base_log_prob(self.base, z) - pushed.log_det
        return torch.cat([pushed.value, log_prob.unsqueeze(1)], 1)

    def _base_rsample(self, shape: torch.Size) -> Tensor:
        if not self.base.has_rsample:
            raise ValueError(
                "Expected a base with rsample for a reparameterised draw; "
                f"got {type(self.base).__name__}"
            )
        return self.base.rsample(shape)
