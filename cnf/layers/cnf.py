"""The continuous layer: state and log-density integrated together."""

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cnf.fields import FIELDS, TracedField, VectorField, as_field, make_field
from cnf.fields.divergence import Divergence, Hutchinson, choose_divergence, describe
from cnf.fields.regularizers import Regularization
from cnf.layers.augmented import DensityDynamics, VelocityDynamics
from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.padding import drop_padding, pad_batch
from cnf.layers.settings import STEP_NORMS, SolverSettings
from cnf.ode import Solution, SolveError, solve
from cnf.utils.random import RowNoise
from cnf.utils.registry import name_of


class CNF(Layer):
    """A continuous normalizing flow: x = z + ∫₀¹ f(t, x(t), c) dt.

    The log-determinant is integrated along with the state (instantaneous change of variables),

        d/dt log |det ∂x(t)/∂z| = tr ∂f/∂x,

    from t = 0 (base) to t = 1 (data) to push, and back to pull.

    Args:
        field: A `TracedField`, or any module with `forward(t, x)` or `forward(t, x, context)` whose
            rows do not depend on one another.
        settings: Any of `SolverSettings`' attributes by name: `divergence`, `method`, `rtol`, …

    Raises:
        ValueError: A setting is unknown or out of range.
        SolveError: A solve failed, in `push`, `pull` or a method that uses them.

    Shapes: (rows, dim), context (rows, context_dim) → (rows, dim), (rows,).

    Source: Chen et al. (2018), Neural ordinary differential equations, theorem 1; Grathwohl et al.
    (2019), FFJORD.

    Example:
        >>> from cnf.fields import ConcatSquash
        >>> layer = CNF(ConcatSquash(2, hidden=(16, 16)), rtol=1e-6, atol=1e-6)
        >>> z = torch.randn(5, 2)
        >>> x, log_det = layer(z)
        >>> back, minus_log_det = layer.inverse(x)
        >>> torch.allclose(z, back, atol=1e-4), torch.allclose(log_det, -minus_log_det, atol=1e-4)
        (True, True)
    """

    def __init__(self, field: nn.Module | dict[str, Any], **settings: Any) -> None:
        super().__init__()
        self.field = make_field(**field) if isinstance(field, dict) else field
        if isinstance(self.field, TracedField):
            self.circular = self.field.circular
        self.settings = SolverSettings().replaced(settings)
        as_field(self.field, self.settings.compile_sizes)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return self.between(z, 0.0, 1.0, context)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return self.between(x, 1.0, 0.0, context)

    def pull_with_noise(
        self, x: Tensor, context: Tensor | None, noise: RowNoise
    ) -> TransformResult:
        return self.between(x, 1.0, 0.0, context, noise)

    def between(
        self,
        x: Tensor,
        begin: float,
        end: float,
        context: Tensor | None = None,
        noise: RowNoise | None = None,
    ) -> TransformResult:
        """Transport states at time `begin` to time `end`, with the log-determinant.

        The probes of an estimated trace come from `noise`, from the divergence's source when None.
        """
        dynamics = DensityDynamics(*self._field_and_divergence(x, context, noise))
        return _final_result(dynamics, self._solve(dynamics, x, context, (begin, end)))

    def pull_regularized(
        self, x: Tensor, context: Tensor | None, regularization: Regularization, base_time: float
    ) -> TransformResult:
        names = tuple(regularization.active)
        dynamics = DensityDynamics(*self._field_and_divergence(x, context), regularizers=names)
        return _final_result(dynamics, self._solve(dynamics, x, context, (1.0, base_time)))

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        field, divergence, dim = self._field_and_divergence(x, context, options.noise)
        estimates = 0
        if isinstance(divergence, Hutchinson):
            estimates = options.probes
            divergence = divergence.with_estimates(estimates, dim)
        dynamics = DensityDynamics(field, divergence, dim, estimates=estimates)
        layer = self.with_solver(**self.settings.tightened(options.tolerance_factor))
        solution = layer._solve(dynamics, x, context, (1.0, 0.0), on_failure="return")
        log_dets = solution.ys[-1, :, dim + 1 :]
        variance = log_dets.var(1) / estimates if estimates > 1 else x.new_full((len(x),), nan)
        if divergence.exact:
            variance = torch.zeros_like(variance)
        return ScoredTransform(_final_result(dynamics, solution), variance, solution.row_status)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.path(z, (0.0, 1.0), context)[-1]

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.path(x, (1.0, 0.0), context)[-1]

    def path(
        self, z: Tensor, times: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return the states at `times` of the trajectories that start at `z` at the first time.

        Shapes: (rows, dim) → (times, rows, dim).
        """
        self._check(z, context)
        dynamics = VelocityDynamics(as_field(self.field, self.settings.compile_sizes), z.shape[1])
        return self._solve(dynamics, z, context, times).ys[..., :-1]

    def velocity(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Evaluate the field.

        Shapes: a scalar or (rows, 1), (rows, dim), (rows, context_dim) → (rows, dim).
        """
        self._check(x, context)
        field = as_field(self.field, self.settings.compile_sizes)
        return field.velocity(field.at(t, context), x)

    def with_solver(self, **changes: Any) -> Self:
        return type(self)(self.field, **vars(self.settings.replaced(changes)))

    def config(self) -> dict[str, Any]:
        name = name_of(type(self.field), FIELDS, "cnf.fields.FIELDS")
        assert isinstance(self.field, TracedField)
        return {"field": {"name": name, **self.field.config()}, **self.settings.model_config()}

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self.settings).items())
        return f"{settings}; {self.trace()}"

    def trace(self) -> str:
        """Describe the divergence in words, with the choice of "auto" where it is known."""
        if isinstance(self.field, TracedField):
            name = self.settings.divergence
            return describe(choose_divergence(name, self.field, self.field.dim), self.field)
        return str(self.settings.divergence)

    def _field_and_divergence(
        self, x: Tensor, context: Tensor | None, noise: RowNoise | None = None
    ) -> tuple[VectorField, Divergence, int]:
        """Return the field, its divergence and the dimension, once the inputs are checked."""
        self._check(x, context)
        dim = x.shape[1]
        field = as_field(self.field, self.settings.compile_sizes)
        divergence = choose_divergence(self.settings.divergence, field, dim)
        if noise is not None and isinstance(divergence, Hutchinson):
            divergence = replace(divergence, generator=noise)
        return field, divergence, dim

    def _solve(
        self,
        dynamics: DensityDynamics | VelocityDynamics,
        x: Tensor,
        context: Tensor | None,
        times: Sequence[float] | Tensor,
        on_failure: Literal["raise", "return"] = "raise",
    ) -> Solution:
        """Solve from states x, with every tensor that needs a gradient among the arguments."""
        settings = self.settings
        y0 = pad(x, (0, dynamics.width - x.shape[1]))
        y0, args = pad_batch(y0, dynamics.arguments(x, times, context))
        solution = solve(
            dynamics,
            y0,
            times,
            args,
            method=settings.method,
            rtol=settings.rtol,
            atol=settings.atol,
            step=settings.step,
            norm=lambda ratio: STEP_NORMS[settings.step](ratio, x.shape[1]),
            step_size=settings.step_size,
            first_step=settings.first_step,
            max_steps=settings.max_steps,
            gradient=settings.gradient_mode,
            on_failure="return",
        )
        solution = drop_padding(solution, len(x))
        if on_failure == "raise" and solution.rows:
            raise SolveError(solution)
        return solution

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        if not isinstance(self.field, TracedField):
            return
        if x.ndim != 2 or x.shape[1] != self.field.dim:
            raise ValueError(
                f"Expected shape (rows, {self.field.dim}) of the field's dimension; "
                f"got {tuple(x.shape)}: flatten batch axes to rows"
            )
        context_dim = self.field.context_dim
        given = None if context is None else tuple(context.shape)
        if given != ((len(x), context_dim) if context_dim else None):
            raise ValueError(
                f"Expected a context of shape ({len(x)}, {context_dim}); got {given}: "
                "pass one context for each row"
                if context_dim
                else f"Expected no context for a field without context_dim; got shape "
                f"{given}: leave it out"
            )


def _final_result(dynamics: DensityDynamics, solution: Solution) -> TransformResult:
    end, dim, names = solution.ys[-1], dynamics.dim, dynamics.regularizers
    integrals = -end[:, dynamics.width - len(names) :]  # only solves backwards have penalties
    penalties = dict(zip(names, integrals.unbind(1), strict=True))
    return TransformResult(end[:, :dim], end[:, dim], solution.stats, penalties)
