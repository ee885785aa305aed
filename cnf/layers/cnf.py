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
from cnf.layers.augmented import Augmented, Velocity
from cnf.layers.copies import copies, repeated, without_copies
from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.settings import NORMS, SolverSettings
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
        SolveError: From `push`, `pull` and what is built on them: a solve failed.

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
        self.settings = SolverSettings().changed(settings)
        as_field(self.field, self.settings.compiled)

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """From base to data."""
        return self._map(z, context, (0.0, 1.0))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """From data to base."""
        return self._map(x, context, (1.0, 0.0))

    def between(
        self, x: Tensor, begin: float, end: float, context: Tensor | None = None
    ) -> TransformResult:
        """From where trajectories are at one time to where they are at another."""
        return self._map(x, context, (begin, end))

    def pull_regularized(
        self, x: Tensor, context: Tensor | None, regularization: Regularization, base_time: float
    ) -> TransformResult:
        """`pull` to a base at another time, with the penalties of a regularization."""
        names = tuple(regularization.active)
        dynamics = Augmented(*self._traced(x, context), regularizers=names)
        return _mapped(dynamics, self._solve(dynamics, x, context, (1.0, base_time)))

    def assess(self, x: Tensor, context: Tensor | None, care: ScoringOptions) -> ScoredTransform:
        """`pull` that never raises for a row, with what it is worth."""
        field, divergence, dim = self._traced(x, context)
        estimates = 0
        if isinstance(divergence, Hutchinson):
            estimates = care.probes
            divergence = divergence.with_estimates(estimates, dim)
            divergence = replace(divergence, generator=care.noise)
        dynamics = Augmented(field, divergence, dim, estimates=estimates)
        layer = self.with_solver(**self.settings.tighter(care.tighter))
        solution = layer._solve(dynamics, x, context, (1.0, 0.0), on_failure="return")
        own = solution.ys[-1, :, dim + 1 :]
        variance = own.var(1) / estimates if estimates > 1 else x.new_full((len(x),), nan)
        if divergence.exact:
            variance = torch.zeros_like(variance)
        return ScoredTransform(_mapped(dynamics, solution), variance, solution.row_status)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The value of `push` alone, at the price of the velocity alone."""
        return self.path(z, (0.0, 1.0), context)[-1]

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The value of `pull` alone, at the price of the velocity alone."""
        return self.path(x, (1.0, 0.0), context)[-1]

    def path(
        self, z: Tensor, times: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The states at `times` of the trajectories that start as `z` at the first of them.

        Shapes: (rows, dim) → (times, rows, dim).
        """
        self._check(z, context)
        dynamics = Velocity(as_field(self.field, self.settings.compiled), z.shape[1])
        return self._solve(dynamics, z, context, times).ys[..., :-1]

    def velocity(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The field's value.

        Shapes: a scalar or (rows, 1), (rows, dim), (rows, context_dim) → (rows, dim).
        """
        self._check(x, context)
        field = as_field(self.field, self.settings.compiled)
        velocity: Tensor = field.velocity(field.at(t, context), x)
        return velocity

    def with_solver(self, **changes: Any) -> Self:
        """A layer on the very same field, with these of `SolverSettings`' attributes changed."""
        return type(self)(self.field, **vars(self.settings.changed(changes)))

    def config(self) -> dict[str, Any]:
        """The field's name and configuration, and the solver settings that belong to a model."""
        if not isinstance(self.field, TracedField) or type(self.field) not in FIELDS.values():
            raise ValueError(
                "Expected a field that can be made anew from its configuration, a TracedField "
                f"entered in cnf.fields.FIELDS; got {type(self.field).__name__}. Enter it there, "
                "or save its state_dict yourself"
            )
        field = {"name": self.field.name, **self.field.config()}
        return {"field": field, **self.settings.saved()}

    def extra_repr(self) -> str:
        """The settings, with the divergence that they choose, for the module's repr."""
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self.settings).items())
        return f"{settings}; {self.trace()}"

    def trace(self) -> str:
        """How the divergence is computed, in words: what "auto" picked, where that is known yet."""
        if isinstance(self.field, TracedField):
            wanted = self.settings.divergence
            return describe(choose_divergence(wanted, self.field, self.field.dim), self.field)
        return str(self.settings.divergence)

    def _map(
        self, x: Tensor, context: Tensor | None, times: tuple[float, float]
    ) -> TransformResult:
        dynamics = Augmented(*self._traced(x, context))
        return _mapped(dynamics, self._solve(dynamics, x, context, times))

    def _traced(self, x: Tensor, context: Tensor | None) -> tuple[VectorField, Divergence, int]:
        """The field, its divergence and the dimension, for checked inputs."""
        self._check(x, context)
        dim = x.shape[1]
        field = as_field(self.field, self.settings.compiled)
        return field, choose_divergence(self.settings.divergence, field, dim), dim

    def _solve(
        self,
        dynamics: Augmented | Velocity,
        x: Tensor,
        context: Tensor | None,
        times: Sequence[float] | Tensor,
        on_failure: Literal["raise", "return"] = "raise",
    ) -> Solution:
        """Solve from states x, with every tensor that wants a gradient among the arguments."""
        settings = self.settings
        y0, args = repeated(
            pad(x, (0, dynamics.width - x.shape[1])),
            dynamics.arguments(x, times, context),
            copies(len(x)),
        )
        solution = solve(
            dynamics,
            y0,
            times,
            args,
            method=settings.method,
            rtol=settings.rtol,
            atol=settings.atol,
            step=settings.step,
            norm=lambda ratio: NORMS[settings.step](ratio, x.shape[1]),
            step_size=settings.step_size,
            first_step=settings.first_step,
            max_steps=settings.max_steps,
            gradient=settings.gradient_mode,
            on_failure="return",
        )
        solution = without_copies(solution, len(x))
        if on_failure == "raise" and solution.rows:
            raise SolveError(solution)
        return solution

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        if not isinstance(self.field, TracedField):
            return
        if x.ndim != 2 or x.shape[1] != self.field.dim:
            raise ValueError(
                f"Expected shape (rows, {self.field.dim}) of the field's dimension; "
                f"got {tuple(x.shape)}"
            )
        wanted = self.field.context_dim
        given = None if context is None else tuple(context.shape)
        if given != ((len(x), wanted) if wanted else None):
            raise ValueError(
                f"Expected a context of shape ({len(x)}, {wanted}); got {given}"
                if wanted
                else f"Expected no context for a field without context_dim; got shape {given}"
            )


def _mapped(dynamics: Augmented, solution: Solution) -> TransformResult:
    """Where a solve ends; penalties only where it goes backwards in time, along which they fall."""
    end, dim = solution.ys[-1], dynamics.dim
    names = dynamics.regularizers
    paths = -end[:, dynamics.width - len(names) :]
    penalties = dict(zip(names, paths.unbind(1), strict=True))
    return TransformResult(end[:, :dim], end[:, dim], solution.stats, penalties)
