"""The continuous layer: state and log-density integrated together."""

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves

from cnf.fields import TracedField, VectorField, as_field
from cnf.fields.divergence import Divergence, Hutchinson, choose_divergence, describe
from cnf.fields.regularizers import Regularization
from cnf.layers.augmented import DensityDynamics, VelocityDynamics
from cnf.layers.field_layer import FieldLayer
from cnf.layers.first_pass import first_pass
from cnf.layers.layer import ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.padding import drop_padding, pad_batch, take_per_row
from cnf.layers.settings import STEP_NORMS, SolverSettings, row_errors
from cnf.ode import Solution, SolveError, Tolerance, solve
from cnf.utils.random import RowNoise


class CNF(FieldLayer):
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
        super().__init__(field)
        self.settings = SolverSettings().replaced(settings)
        _ = self.vector_field  # which refuses a module that cannot be compiled

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
        factor = self.settings.scoring_factor(options.tolerance_factor)
        layer = self.with_solver(**self.settings.tightened(factor))
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
        self._check(z, context)
        dynamics = VelocityDynamics(self.vector_field, z.shape[1])
        return self._solve(dynamics, z, context, times).ys[..., :-1]

    @property
    def vector_field(self) -> VectorField:
        return as_field(self.field, self.settings.compile_sizes)

    def with_solver(self, **changes: Any) -> Self:
        return type(self)(self.field, **vars(self.settings.replaced(changes)))

    def config(self) -> dict[str, Any]:
        return {"field": self.field_config(), **self.settings.model_config()}

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
        field = self.vector_field
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
        y0 = pad(x, (0, dynamics.width - x.shape[1]))
        args = dynamics.arguments(x, times, context)
        if self._shares_times(dynamics, y0, args, times):
            solution = self._solve_with_first_pass(dynamics, y0, times, args)
        else:
            solution = self._solve_rows(dynamics, y0, times, args)
        if on_failure == "raise" and solution.rows:
            raise SolveError(solution)
        return solution

    def _shares_times(
        self,
        dynamics: DensityDynamics | VelocityDynamics,
        y0: Tensor,
        args: Any,
        times: Sequence[float] | Tensor,
    ) -> bool:
        """Return whether rows take a first pass: where autograd does not record it."""
        if not self.settings.may_share_times or len(times) != 2 or not y0.numel():
            return False
        if isinstance(dynamics, DensityDynamics):
            if dynamics.regularizers:
                return False
        elif not getattr(self.field, "gated", True):  # the velocity alone has little to share
            return False
        tensors = [leaf for leaf in (y0, *tree_leaves(args)) if isinstance(leaf, Tensor)]
        return not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))

    def _solve_with_first_pass(
        self,
        dynamics: DensityDynamics | VelocityDynamics,
        y0: Tensor,
        times: Sequence[float] | Tensor,
        args: Any,
    ) -> Solution:
        """Solve by steps at shared times, and the rows that need others by their own."""
        settings, ends = self.settings, (float(times[0]), float(times[1]))
        tolerance = Tolerance(
            settings.rtol, settings.atol, lambda ratio: row_errors(ratio, dynamics.dim)
        )
        tolerance.check_dtype(y0.dtype)
        found = first_pass(dynamics, y0, ends, args, tolerance)
        rest, rows = None, found.unfinished
        if len(rows):
            index = torch.from_numpy(rows).to(y0.device)
            rest = self._solve_rows(dynamics, y0[index], times, take_per_row(args, index))
        return found.solution(y0, ends, rest)

    def _solve_rows(
        self,
        dynamics: DensityDynamics | VelocityDynamics,
        y0: Tensor,
        times: Sequence[float] | Tensor,
        args: Any,
    ) -> Solution:
        """Solve by steps of `settings.step`; failed rows have their status."""
        settings = self.settings
        padded, args = pad_batch(y0, args)
        solution = solve(
            dynamics,
            padded,
            times,
            args,
            method=settings.method,
            rtol=settings.rtol,
            atol=settings.atol,
            step=settings.step,
            norm=lambda ratio: STEP_NORMS[settings.step](ratio, dynamics.dim),
            step_size=settings.step_size,
            first_step=settings.first_step,
            max_steps=settings.max_steps,
            gradient=settings.gradient_mode,
            on_failure="return",
        )
        return drop_padding(solution, len(y0))


def _final_result(dynamics: DensityDynamics, solution: Solution) -> TransformResult:
    end, dim, names = solution.ys[-1], dynamics.dim, dynamics.regularizers
    integrals = -end[:, dynamics.width - len(names) :]  # only solves backwards have penalties
    penalties = dict(zip(names, integrals.unbind(1), strict=True))
    return TransformResult(end[:, :dim], end[:, dim], solution.stats, penalties)
