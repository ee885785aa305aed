"""The continuous layer: state and log-density integrated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any, ClassVar, Literal, Self

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

    name: ClassVar[str] = "cnf"

    def __init__(self, field: nn.Module | dict[str, Any], **settings: Any) -> None:
        super().__init__()
        self.field = make_field(**field) if isinstance(field, dict) else field
        if isinstance(self.field, TracedField):
            self.circular = self.field.circular
        self.settings = SolverSettings().replaced(settings)
        as_field(self.field, self.settings.compile_sizes)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """Integrate from base (t = 0) to data (t = 1)."""
        return self._transform(z, context, (0.0, 1.0))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """Integrate from data (t = 1) to base (t = 0)."""
        return self._transform(x, context, (1.0, 0.0))

    def between(
        self, x: Tensor, begin: float, end: float, context: Tensor | None = None
    ) -> TransformResult:
        """Transport states at time `begin` to time `end`, with the log-determinant."""
        return self._transform(x, context, (begin, end))

    def pull_regularized(
        self, x: Tensor, context: Tensor | None, regularization: Regularization, base_time: float
    ) -> TransformResult:
        """Pull x to `base_time`, with the penalties of a regularization."""
        names = tuple(regularization.active)
        dynamics = DensityDynamics(*self._field_and_divergence(x, context), regularizers=names)
        return _final_result(dynamics, self._solve(dynamics, x, context, (1.0, base_time)))

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        """Pull x at a tightened tolerance, with the variance of an estimated trace."""
        field, divergence, dim = self._field_and_divergence(x, context)
        estimates = 0
        if isinstance(divergence, Hutchinson):
            estimates = options.probes
            divergence = divergence.with_estimates(estimates, dim)
            divergence = replace(divergence, generator=options.noise)
        dynamics = DensityDynamics(field, divergence, dim, estimates=estimates)
        layer = self.with_solver(**self.settings.tightened(options.tolerance_factor))
        solution = layer._solve(dynamics, x, context, (1.0, 0.0), on_failure="return")
        log_dets = solution.ys[-1, :, dim + 1 :]
        variance = log_dets.var(1) / estimates if estimates > 1 else x.new_full((len(x),), nan)
        if divergence.exact:
            variance = torch.zeros_like(variance)
        return ScoredTransform(_final_result(dynamics, solution), variance, solution.row_status)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Push z without the log-determinant, by evaluations of the velocity alone."""
        return self.path(z, (0.0, 1.0), context)[-1]

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Pull x without the log-determinant, by evaluations of the velocity alone."""
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
        velocity: Tensor = field.velocity(field.at(t, context), x)
        return velocity

    def with_solver(self, **changes: Any) -> Self:
        """Return a layer on the same field with some of `SolverSettings`' attributes changed."""
        return type(self)(self.field, **vars(self.settings.replaced(changes)))

    def config(self) -> dict[str, Any]:
        """Return the field's configuration and the solver settings that belong to a model."""
        if not isinstance(self.field, TracedField) or type(self.field) not in FIELDS.values():
            raise ValueError(
                "Expected a field that its configuration can rebuild, a TracedField registered in "
                f"cnf.fields.FIELDS; got {type(self.field).__name__}: register it there, or save "
                "its state_dict yourself"
            )
        field = {"name": self.field.name, **self.field.config()}
        return {"field": field, **self.settings.model_config()}

    def extra_repr(self) -> str:
        """Return the settings and the chosen divergence, for the module's repr."""
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self.settings).items())
        return f"{settings}; {self.trace()}"

    def trace(self) -> str:
        """Describe the divergence in words, with the choice of "auto" where it is known."""
        if isinstance(self.field, TracedField):
            name = self.settings.divergence
            return describe(choose_divergence(name, self.field, self.field.dim), self.field)
        return str(self.settings.divergence)

    def _transform(
        self, x: Tensor, context: Tensor | None, times: tuple[float, float]
    ) -> TransformResult:
        dynamics = DensityDynamics(*self._field_and_divergence(x, context))
        return _final_result(dynamics, self._solve(dynamics, x, context, times))

    def _field_and_divergence(
        self, x: Tensor, context: Tensor | None
    ) -> tuple[VectorField, Divergence, int]:
        """Return the field, its divergence and the dimension, once the inputs are checked."""
        self._check(x, context)
        dim = x.shape[1]
        field = as_field(self.field, self.settings.compile_sizes)
        return field, choose_divergence(self.settings.divergence, field, dim), dim

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
    """Return the end of a solve as a result.

    Penalties are negated integrals: only solves backwards in time have them.
    """
    end, dim = solution.ys[-1], dynamics.dim
    names = dynamics.regularizers
    integrals = -end[:, dynamics.width - len(names) :]
    penalties = dict(zip(names, integrals.unbind(1), strict=True))
    return TransformResult(end[:, :dim], end[:, dim], solution.stats, penalties)
