"""A network of continuous depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from cnf.ode.arguments import module_parameters
from cnf.ode.options import Gradient
from cnf.ode.solution import Solution
from cnf.ode.solver import StepMode, solve

# The attributes that are arguments of `solve` by their names.
SETTINGS = ("method", "rtol", "atol", "step", "gradient", "step_size", "max_steps")


class NeuralODE(nn.Module):
    """A network of continuous depth, which maps x to the state at the end of a solve.

        dy/dt = field(t, y),   y(t₀) = x,   forward(x) = y(t₁)

    The solver's settings are attributes, neither parameters nor part of the state dict, that can
    be changed at any time: the same weights give a cheap network and an accurate one.

    Args:
        field: Module of a time and a state, which returns the state's slope; its parameters, and
            the buffers that require a gradient, get gradients in every gradient mode. The time is
            a scalar, with per-sample steps of shape (rows, 1, …).
        span: The times t₀ and t₁.
        augment: Number of columns (of images: channels) of zeros that are appended to x, so that
            paths may pass one another (Dupont et al. 2019); the outputs have them too.
        method: See `cnf.ode.solve`, as for the other settings.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        step: `"joint"` steps of the batch, or `"per_sample"` ones, with which no row's result
            depends on the others.
        gradient: `"checkpoint"` has memory for one state for each step, `"backsolve"` for none.
        step_size: Steps of this size, or from each to the next of these times; adaptive when None.
        max_steps: The most steps of a solve.

    Attributes:
        field: The field.
        span: The times t₀ and t₁, and so on for the other settings, by their names.

    Raises:
        ValueError: `augment` is negative. When called: x has no columns to augment, a setting is
            not as `cnf.ode.solve` has it, or the field's slope has another shape or dtype than the
            state.
        SolveError: When called: the solve failed.

    Source: Chen et al. (2018), Neural ordinary differential equations; Dupont, Doucet & Teh (2019),
    Augmented neural ODEs.

    Example:
        >>> import torch
        >>> class Field(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        ...
        ...     def forward(self, t, y):
        ...         return self.net(y)
        >>> model, x = NeuralODE(Field(), rtol=1e-3, atol=1e-3), torch.randn(5, 2)
        >>> model(x).shape, model.trajectory(x, torch.linspace(0, 1, 7)).shape
        (torch.Size([5, 2]), torch.Size([7, 5, 2]))
        >>> loose = model.solve(x).stats.evaluations
        >>> model.rtol = model.atol = 1e-6
        >>> model.solve(x).stats.evaluations > loose
        True
    """

    def __init__(
        self,
        field: nn.Module,
        span: Tensor | Sequence[float] = (0.0, 1.0),
        *,
        augment: int = 0,
        method: str = "dopri5",
        rtol: float | Tensor = 1e-5,
        atol: float | Tensor = 1e-5,
        step: StepMode = "joint",
        gradient: str | Gradient = "checkpoint",
        step_size: float | Tensor | Sequence[float] | None = None,
        max_steps: int = 10_000,
    ) -> None:
        super().__init__()
        if augment < 0:
            raise ValueError(f"Expected augment of at least 0; got {augment}")
        self.field, self.span, self.augment = field, span, augment
        self.method, self.rtol, self.atol = method, rtol, atol
        self.step: StepMode = step
        self.gradient, self.step_size, self.max_steps = gradient, step_size, max_steps

    def forward(self, x: Tensor) -> Tensor:
        """Return the state at t₁ for x (rows, columns, …) at t₀."""
        return self.solve(x).ys[-1]

    def trajectory(self, x: Tensor, times: Tensor | Sequence[float]) -> Tensor:
        """Return the states at `times`, shape (times, rows, columns, …), for x at the first."""
        return self.solve(x, times).ys

    def solve(self, x: Tensor, times: Tensor | Sequence[float] | None = None) -> Solution:
        """Return the solution with its statistics, at t₀ and t₁, or at `times` for x at the first.

        Args:
            x: First state, shape (rows, columns, …), without the appended zeros.
            times: See `cnf.ode.solve`.
        """
        if self.augment:
            if x.ndim < 2:
                raise ValueError(
                    f"Expected x of shape (rows, columns, …) with augment; got {tuple(x.shape)}: "
                    "add an axis of rows"
                )
            # The padding of the second axis is the last that `pad` takes.
            x = pad(x, [0, 0] * (x.ndim - 2) + [0, self.augment])
        return solve(
            self._slope,
            x,
            self.span if times is None else times,
            module_parameters(self.field) | _differentiable_buffers(self.field),
            **{name: getattr(self, name) for name in SETTINGS},
        )

    def extra_repr(self) -> str:
        """Return the settings as `repr` shows them."""
        names = ("span", "augment", *SETTINGS)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _slope(self, t: Tensor, y: Tensor, tensors: dict[str, Tensor]) -> Any:
        return functional_call(self.field, tensors, (t, y), tie_weights=False)


def _differentiable_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that require a gradient; others may count or average evaluations."""
    return {name: buffer for name, buffer in module.named_buffers() if buffer.requires_grad}
