"""Flows in Pyro: their distributions as sites of models and guides, and a guide that is a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Transform,
    biject_to,
    register_kl,
    transform_to,
)
from torch.distributions.constraints import Constraint
from torch.utils.weak import WeakTensorKeyDictionary

from cnf.adapters.hosts import check_host
from cnf.flow import Flow, ffjord
from cnf.flow.casting import tensors_of
from cnf.flow.snapshot import Snapshot
from cnf.flow.support import Reach
from cnf.layers import SolverSettings
from cnf.utils.shapes import Shape
from cnf.variational.posterior import POSTERIOR_SOLVER

check_host("pyro")

from pyro import distributions as dist  # noqa: E402 - only where the host is the right one
from pyro.distributions import constraints  # noqa: E402
from pyro.infer.autoguide import init_to_median  # noqa: E402
from pyro.infer.autoguide.guides import AutoContinuous  # noqa: E402
from pyro.nn.module import PyroParam  # noqa: E402
from pyro.poutine.messenger import Messenger  # noqa: E402

__all__ = ["AutoFlow", "PyroDistribution"]

QUANTILE_DRAWS = 10_000  # a quantile's standard error is then about a hundredth of a deviation


class PyroDistribution(dist.TorchDistribution):  # type: ignore[misc]
    """A flow's distribution p(x | context) for `pyro.sample`, with its batch and event shape.

    It goes wherever Pyro's own distributions do: in plates, with `expand`, `mask`, `to_event`, and
    as `obs`. `rsample` keeps the log-density of its draw for as long as the draw is there, so that
    a site of a trace takes one solve: `log_prob` of this very tensor takes no other, until it, a
    parameter, the context or the base changes in place, or gradients are wanted that were not
    recorded. `log_prob` of any other tensor takes a solve, and a copy of the distribution keeps
    nothing. Where there is no `rsample`, `log_prob` has the gradient of the score function.

    Register the flow's parameters as any module's, by `pyro.module` or as an attribute of a
    `PyroModule`. There is no closed form of a KL divergence, and `TraceMeanField_ELBO` then uses
    the draw. A `Jit…` ELBO is refused, as it would trace the solver's adaptive steps.

    Args:
        distribution: `flow.distribution(context)`, or what a `FlowPosterior` returns for h, loc and
            scale: any distribution with `rsample_and_log_prob`.

    Raises:
        ValueError: The distribution has no `rsample_and_log_prob`. From methods: a `Jit…` ELBO
            traces the program, or the distribution itself refuses a value.
        SolveError: From any method: a solve failed.

    Example:
        >>> import cnf, pyro
        >>> flow = cnf.ffjord(dim=2, context_dim=3)
        >>> def guide(context):
        ...     pyro.module("flow", flow)
        ...     with pyro.plate("rows", len(context)):
        ...         return pyro.sample("z", PyroDistribution(flow.distribution(context)))
        >>> trace = pyro.poutine.trace(guide).get_trace(torch.randn(5, 3))
        >>> trace.compute_log_prob()
        >>> trace.nodes["z"]["value"].shape, trace.nodes["z"]["log_prob"].shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, distribution: Any) -> None:
        if not hasattr(distribution, "rsample_and_log_prob"):
            raise ValueError(
                "Expected flow.distribution(context), or what a FlowPosterior returns; got "
                f"{type(distribution).__name__}: use Pyro's own distribution of that name"
            )
        self.base_dist = distribution
        self.has_rsample: bool = distribution.has_rsample
        # Weak, so that no distribution keeps the graph of a draw that nothing else needs.
        self._last: Any = WeakTensorKeyDictionary()
        batch, event = distribution.batch_shape, distribution.event_shape
        super().__init__(batch, event, validate_args=False)

    @constraints.dependent_property(event_dim=1)  # type: ignore[untyped-decorator]
    def support(self) -> Constraint:
        found: Constraint = self.base_dist.support
        return _Reached(found, self.event_shape[0]) if isinstance(found, Reach) else found

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PyroDistribution:
        expanded = PyroDistribution(self.base_dist.expand(torch.Size(batch_shape)))
        expanded.has_rsample = self.has_rsample  # which `has_rsample_` may have changed
        return expanded

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws, shape (*sample_shape, *batch, dim), without a gradient."""
        drawn: Tensor = self.base_dist.sample(sample_shape)
        return drawn

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws with a gradient, and keep their log-density."""
        _refuse_tracing()
        value, log_prob = self.base_dist.rsample_and_log_prob(sample_shape)
        self._last.clear()
        self._last[value] = log_prob, Snapshot(tensors_of([value, self.base_dist]))
        drawn: Tensor = value
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, shape (*batch): the one kept, where value is the last draw."""
        found: Tensor
        if value in self._last:
            found, state = self._last[value]
            if state.matches(tensors_of([value, self.base_dist])):
                return found
        _refuse_tracing()
        found = self.base_dist.log_prob(value)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make a copy, without the kept log-density, whose graph has none."""
        return type(self), (self.base_dist,), {"has_rsample": self.has_rsample}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist!r})"


class _Reached(Reach):
    """The support of a flow with so many columns, which Pyro can map unconstrained latents to.

    The attribute `dim` is the number of these latents, which constant columns have none of.
    """

    def __init__(self, reach: Reach, dim: int) -> None:
        super().__init__(reach.base, reach.layers, reach.context, reach.dtype)
        for layer in reversed(self.layers):
            dim = layer.widths[0] if layer.widths else dim
        self.dim = dim


def _to_support(support: _Reached) -> Transform:
    """Return the bounded columns' own map, of which a base that is bounded too has none."""
    if support.base is not None:
        raise NotImplementedError(f"Expected a base over all real vectors; got {support.base!r}")
    base = dist.Normal(0.0, 1.0).expand((support.dim,)).to_event(1)
    return Flow(base, support.layers).transform_given(support.context)


biject_to.register(_Reached, _to_support)
transform_to.register(_Reached, _to_support)


class AutoFlow(AutoContinuous):  # type: ignore[misc]
    """A guide for `SVI` whose posterior over a model's unconstrained latents z is a flow.

        z = loc + scale ∘ T(ε),   ε ~ base,

    with T a continuous flow, which is the identity at first: the guide starts as
    `AutoDiagonalNormal` does. A call takes one solve for draw and log-density, and so do vectorised
    particles, of which ten cost little more than one. The parameters are `loc`, `scale` and those
    of the module `flow`, which is T.

    The solver's default is that of training, with log q off by some 5e-3 nats: report bounds of
    `accurate()`. T has the base's tails: give a heavier base to a posterior with heavier tails.
    Medians and quantiles are those of draws. `NeuTraReparam` takes the guide.

    Args:
        model: A model whose latents are continuous, as all of Pyro's `AutoContinuous` guides.
        hidden: Widths of the hidden layers of the field.
        base: The distribution of each ε, over numbers; standard normal when None.
        init_loc_fn: Pyro's function of a site that gives the place to start at.
        init_scale: Deviation of each unconstrained latent at first.
        options: Further arguments of `cnf.ffjord`, and `cnf.layers.SolverSettings`' attributes,
            instead of the defaults.

    Raises:
        ValueError: The scale is not above zero, the base is not over numbers, or an option is
            unknown or out of range. From a call: a `Jit…` ELBO traces the program.
        SolveError: From a call: a solve failed.

    Source: Grathwohl et al. (2019), FFJORD, section 4.3; Kucukelbir et al. (2017), Automatic
    differentiation variational inference.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model():
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(3.0))
        >>> pyro.clear_param_store()  # of guides before
        >>> guide = AutoFlow(model, hidden=(16,))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> losses = [svi.step() for _ in range(3)]
        >>> guide()["rate"] > 0, guide.median()["rate"].shape
        (tensor(True), torch.Size([]))
    """

    def __init__(
        self,
        model: Any,
        hidden: Sequence[int] = (64, 64),
        base: dist.Distribution | None = None,
        init_loc_fn: Any = init_to_median,
        init_scale: float = 0.1,
        **options: Any,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"Expected init_scale above zero; got {init_scale}")
        base = dist.Normal(0.0, 1.0) if base is None else base
        if not isinstance(base, dist.Distribution) or base.shape():
            raise ValueError(
                f"Expected a base of Pyro's over numbers, without a batch; got {base}: write it as "
                "pyro.distributions.StudentT(4.0, 0.0, 1.0)"
            )
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._base, self._init_scale = base, init_scale
        self._options = {"hidden": hidden, "activation": "silu", **POSTERIOR_SOLVER, **options}
        with torch.random.fork_rng(devices=[]):  # only to refuse wrong options at once
            _ = self._new_flow(1).transform

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents of the model, each by a site of its name."""
        _refuse_tracing()
        with _DensityMessenger():
            drawn: dict[str, Tensor] = super().forward(*args, **kwargs)
        return drawn

    def get_base_dist(self) -> dist.Distribution:
        """Return the distribution of ε."""
        base: dist.Distribution = self.flow.base
        return base

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """Return the map from ε to the unconstrained latents, which keeps its last solve."""
        affine = AffineTransform(self.loc, self.scale, event_dim=1, cache_size=1)
        return ComposeTransform([self.flow.transform, affine], cache_size=1)

    def accurate(self) -> AutoFlow:
        """Return a guide that shares the parameters and solves as accurately as a `Flow`.

        Its log q is off by about 1e-5 nats, and does not depend on the other particles.

        Raises:
            ValueError: The guide has not been called, and has no flow yet.
        """
        self._check_called()
        defaults = SolverSettings()
        changed = {*POSTERIOR_SOLVER} - {"gradient", "activation_bytes"}
        flow = self.flow.with_solver(**{name: getattr(defaults, name) for name in changed})
        # Pyro's guides are no longer of use once `copy.copy` has taken their state.
        view = AutoFlow.__new__(type(self))
        view.__dict__.update(self.__dict__, _modules={**self._modules, "flow": flow})
        return view

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the median of each latent variable, of draws of the guide.

        Raises:
            ValueError: As from `quantiles`.
        """
        return {name: each[0] for name, each in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return quantiles of each latent variable, of draws of the guide.

        They are those of its unconstrained coordinates, mapped to its support: of a number the
        number's own, whereas a vector such as one on a simplex keeps to it.

        Args:
            quantiles: Levels from 0 to 1.
            args: Those of the model.
            kwargs: Those of the model.

        Returns:
            For each site a tensor of shape (levels, *the site's shape).

        Raises:
            ValueError: The guide has not been called, and has no flow yet.
        """
        self._check_called()
        draws = self.get_posterior(*args, **kwargs).sample((QUANTILE_DRAWS,))
        levels = torch.as_tensor(quantiles).to(draws)
        columns = draws.split(1000, 1)  # PyTorch's function takes 2**24 numbers at most
        found = torch.cat([torch.quantile(each, levels, dim=0) for each in columns], 1)
        unpacked = [list(self._unpack_latent(latent)) for latent in found]
        return {
            sites[0][0]["name"]: torch.stack(
                [biject_to(site["fn"].support)(value) for site, value in sites]
            )
            for sites in zip(*unpacked, strict=True)
        }

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        self.loc = nn.Parameter(loc)
        scale = torch.full_like(loc, self._init_scale)
        self.scale = PyroParam(scale, constraints.softplus_positive)
        self.flow = self._new_flow(len(loc)).to(loc)

    def _new_flow(self, dim: int) -> Flow:
        base = self._base.expand((dim,)).to_event(1)
        made = ffjord(dim, **self._options)
        return Flow(base, made.layers, made.context)

    def _check_called(self) -> None:
        if self.prototype_trace is None:
            raise ValueError(
                "Expected a guide that has been called; got a new one: call it with the model's "
                "arguments"
            )


class _LatentPoint(dist.Delta):  # type: ignore[misc]
    """A point with a log-density, all of which counts in KL divergences."""


class _DensityMessenger(Messenger):  # type: ignore[misc]
    """A handler that makes a guide's points count with their log-density in KL divergences.

    For Pyro 1.9 the KL divergence of a `Delta` leaves its log-density out. With it
    `TraceMeanField_ELBO` would miss the change of volume from unconstrained to constrained latents.
    """

    def _pyro_sample(self, msg: Any) -> None:
        point = msg["fn"]
        if type(point) is dist.Delta:
            msg["fn"] = _LatentPoint(point.v, point.log_density, point.event_dim)


@register_kl(_LatentPoint, dist.Distribution)  # type: ignore[untyped-decorator]
def _kl_of_point(p: _LatentPoint, q: dist.Distribution) -> Tensor:
    log_ratio: Tensor = p.log_density - q.log_prob(p.v)
    return log_ratio


def _refuse_tracing() -> None:
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise ValueError(
            "Expected a program that is not traced, for a solver's steps are chosen anew each "
            "time; got a Jit ELBO: use the one without Jit in its name"
        )
