"""The continuous layer: state and log-density integrated together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnf.divergence import Divergence, FieldTrace, choose_divergence, velocity_of
from cnf.fields import FIELDS, TracedField
from cnf.layers.layer import Layer, Mapped
from cnf.ode import (
    GRADIENTS,
    TABLEAUS,
    Checkpoint,
    Gradient,
    PerRow,
    Solution,
    StepMode,
    Tolerance,
    solve,
)


def row_errors(ratio: Tensor, dim: int) -> Tensor:
    """The larger of the RMS over a row's coordinates and its log-density's own error, (rows,).

    So the log-density, the column after the `dim` coordinates, is always controlled and never
    diluted by them; columns after it do not steer.
    """
    coordinates = ratio[:, :dim].square().mean(1).sqrt()
    return torch.maximum(coordinates, ratio[:, dim].abs())


def own_errors(ratio: Tensor, dim: int) -> Tensor:
    """The row errors in units of a tenth of the tolerance, (rows,).

    A map's error is what those of its steps add up to; so it keeps near the tolerance, there and
    back. Measured on flows fitted to toys: z → x → z at 1e-5 is wrong by up to 1e-5, with the whole
    tolerance for each step by up to 2e-4; the price is a third more evaluations.
    """
    return 10 * row_errors(ratio, dim)


def batch_error(ratio: Tensor, dim: int) -> Tensor:
    """The root mean square of the row errors, a scalar."""
    return row_errors(ratio, dim).square().mean().sqrt()


NORMS: dict[StepMode, Callable[[Tensor, int], Tensor]] = {
    "per_sample": own_errors,
    "joint": batch_error,
}


@dataclass(frozen=True)
class SolverSettings:
    """How a CNF layer solves.

    Attributes:
        divergence: A name for `cnf.divergence.choose_divergence`.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        gradient: Name of a mode in `cnf.ode.GRADIENTS`.
        keep: Bytes for the activations of accepted steps, which `"checkpoint"` then does not
            replay on the way back.
        step: `"per_sample"`: every row has its own time and steps, each with an error of at most a
            tenth of the tolerance, so that a row's log p does not depend on the rows beside it;
            `"joint"`: one step for the batch, whose root mean square error is within the
            tolerance, cheapest for training.
        step_size: Steps of this size with no error control, for any method; adaptive when None.
        max_steps: The most steps that one solve may take, for each row where steps are per sample.

    Raises:
        ValueError: A name is unknown or a number out of range.
    """

    divergence: str = "auto"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    gradient: str = "checkpoint"
    keep: int = 0
    step: StepMode = "per_sample"
    step_size: float | None = None
    max_steps: int = 1000

    def __post_init__(self) -> None:
        Tolerance(self.rtol, self.atol)
        choose_divergence(self.divergence, nn.Identity(), 1)
        names: dict[str, Collection[str]] = {
            "method": TABLEAUS,
            "gradient": GRADIENTS,
            "step": NORMS,
        }
        for setting, choices in names.items():
            if getattr(self, setting) not in choices:
                raise ValueError(
                    f"Expected {setting} to be one of {', '.join(choices)}; "
                    f"got {getattr(self, setting)!r}"
                )
        if self.max_steps < 1:
            raise ValueError(f"Expected max_steps of at least 1; got {self.max_steps}")
        if self.keep < 0:
            raise ValueError(f"Expected keep of at least 0 bytes; got {self.keep}")
        if self.step_size is None and not TABLEAUS[self.method].adaptive:
            raise ValueError(
                f"Expected a step_size with method {self.method!r}, which has no error estimate"
            )
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"Expected step_size to be above 0; got {self.step_size}")

    @property
    def gradient_mode(self) -> Gradient:
        """How solves are differentiated."""
        return Checkpoint(self.keep) if self.gradient == "checkpoint" else GRADIENTS[self.gradient]


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
        self.field = _made(field) if isinstance(field, dict) else field
        self.settings = _settings(SolverSettings(), settings)

    def push(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """From base to data."""
        return self._map(z, context, (0.0, 1.0))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """From data to base."""
        return self._map(x, context, (1.0, 0.0))

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The value of `push` alone, at the price of the velocity alone."""
        return self.path(z, (0.0, 1.0), context)[-1]

    def path(
        self, z: Tensor, times: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The states at `times` of the trajectories that start as `z` at the first of them.

        Shapes: (rows, dim) → (times, rows, dim).
        """
        self._check(z, context)
        dynamics = _Velocity(self.field)
        states = torch.cat([z, z.new_zeros(len(z), 1)], 1)
        return self._solve(dynamics, states, times, (_per_row(context),)).ys[..., :-1]

    def with_solver(self, **changes: Any) -> Self:
        """A layer on the very same field, with these of `SolverSettings`' attributes changed."""
        settings = asdict(_settings(self.settings, changes))
        return type(self)(self.field, **settings)

    def config(self) -> dict[str, Any]:
        """The field's name and configuration, and the solver settings."""
        if not isinstance(self.field, TracedField) or type(self.field) not in FIELDS.values():
            raise ValueError(
                "Expected a field that can be made anew from its configuration, a TracedField "
                f"entered in cnf.fields.FIELDS; got {type(self.field).__name__}. Enter it there, "
                "or save its state_dict yourself"
            )
        field = {"name": self.field.name, **self.field.config()}
        return {"field": field, **asdict(self.settings)}

    def extra_repr(self) -> str:
        """The settings, with the divergence that they choose, for the module's repr."""
        settings = ", ".join(f"{name}={value!r}" for name, value in asdict(self.settings).items())
        return f"{settings}; {self.trace()}"

    def trace(self) -> str:
        """How the divergence is computed, in words: what "auto" picked, where that is known yet."""
        if not isinstance(self.field, TracedField):
            return self.settings.divergence
        chosen = choose_divergence(self.settings.divergence, self.field, self.field.dim)
        own = isinstance(chosen, FieldTrace)
        return f"exact by {self.field.trace}" if own else repr(chosen)

    def _map(self, x: Tensor, context: Tensor | None, times: tuple[float, float]) -> Mapped:
        self._check(x, context)
        divergence = choose_divergence(self.settings.divergence, self.field, x.shape[1])
        constants = divergence.constants(self.field, x)
        dynamics = _Augmented(self.field, divergence)
        states = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        solution = self._solve(dynamics, states, times, (_per_row(context), constants))
        end = solution.ys[-1]
        return Mapped(end[:, :-1], end[:, -1], solution.stats)

    def _solve(
        self,
        dynamics: nn.Module,
        states: Tensor,
        times: Sequence[float] | Tensor,
        inputs: tuple[Any, ...],
    ) -> Solution:
        """Solve with every tensor that wants a gradient among the arguments."""
        return solve(
            lambda t, y, args: functional_call(dynamics, args[0], (t, y, *args[1])),
            states,
            times,
            (dict(dynamics.named_parameters()), inputs),
            method=self.settings.method,
            rtol=self.settings.rtol,
            atol=self.settings.atol,
            step=self.settings.step,
            norm=lambda ratio: NORMS[self.settings.step](ratio, states.shape[1] - 1),
            step_size=self.settings.step_size,
            max_steps=self.settings.max_steps,
            gradient=self.settings.gradient_mode,
        )

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


class _Augmented(nn.Module):
    """The joint dynamics of state and log-determinant, (rows, dim + 1)."""

    def __init__(self, field: nn.Module, divergence: Divergence) -> None:
        super().__init__()
        self.field = field
        self.divergence = divergence

    def forward(
        self, t: Tensor, y: Tensor, context: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Tensor:
        velocity, trace = self.divergence(self.field, t, y[:, :-1], context, constants)
        return torch.cat([velocity, trace.unsqueeze(1)], 1)


class _Velocity(nn.Module):
    """The state's dynamics alone; the last column, the log-determinant's place, stays zero."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        velocity = velocity_of(self.field, t, y[:, :-1], context)
        return torch.cat([velocity, torch.zeros_like(y[:, -1:])], 1)


def _per_row(context: Tensor | None) -> PerRow | None:
    return None if context is None else PerRow(context)


def _made(config: dict[str, Any]) -> TracedField:
    """The field of a configuration."""
    arguments = dict(config)
    name = arguments.pop("name")
    if name not in FIELDS:
        raise ValueError(f"Expected a field among {', '.join(FIELDS)}; got {name!r}")
    return FIELDS[name](**arguments)


def _settings(start: SolverSettings, changes: dict[str, Any]) -> SolverSettings:
    unknown = sorted(set(changes) - set(asdict(start)))
    if unknown:
        raise ValueError(
            f"Expected solver settings among {', '.join(asdict(start))}; got {', '.join(unknown)}"
        )
    return replace(start, **changes)
