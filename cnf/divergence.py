"""The divergence of a vector field, tr ∂f/∂x: the field's own, exact by autograd, Hutchinson's.

Each way is a small frozen object that gives the velocity and its divergence together. What it
needs for a whole solve (a matrix made of the weights, a random probe) comes from `constants`, once,
and is handed to every evaluation: so the gradient reaches it, and a probe stays fixed for one
solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnf.fields import TracedField
from cnf.ode import PerRow

# Up to this dimension "auto" takes the exact trace even where it costs a pass for each dimension.
LARGEST_EXACT_DIM = 32


class Divergence(ABC):
    """A way to compute a field's velocity and the trace of its Jacobian."""

    def constants(self, field: nn.Module, x: Tensor) -> tuple[Tensor | PerRow, ...]:
        """What one solve needs, for states like `x` of shape (rows, dim)."""
        return ()

    @abstractmethod
    def __call__(
        self,
        field: nn.Module,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        constants: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The velocity (rows, dim) and its divergence (rows,), t a scalar or of shape (rows, 1)."""


@dataclass(frozen=True)
class FieldTrace(Divergence):
    """The exact trace that a `TracedField` computes itself."""

    def constants(self, field: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """The field's constants."""
        return _traced(field).constants()

    def __call__(
        self,
        field: nn.Module,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        constants: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The field's own velocity and trace."""
        return _traced(field).with_divergence(t, x, context, constants)


@dataclass(frozen=True)
class AutogradTrace(Divergence):
    """The exact trace of any module, by one vectorised vector-Jacobian product per dimension."""

    def __call__(
        self,
        field: nn.Module,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        constants: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The velocity and Σ_i ∂f_i/∂x_i."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x = _differentiable(x)
            velocity = velocity_of(field, t, x, context)
            dim = x.shape[1]
            basis = torch.eye(dim, dtype=x.dtype, device=x.device)
            rows = _pull_back(
                velocity, x, basis.unsqueeze(1).expand(dim, *x.shape), differentiable, batched=True
            )
            trace = rows.diagonal(dim1=0, dim2=2).sum(-1)
        return (velocity, trace) if differentiable else (velocity.detach(), trace.detach())


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """An unbiased estimate of the trace: εᵀ (∂f/∂x) ε, with one probe ε for each row and solve.

    Args:
        noise: `"rademacher"` (entries ±1, the lower variance) or `"gaussian"`.

    Source: Hutchinson (1990); Grathwohl et al. (2019), FFJORD, equation 8.

    Example:
        >>> from cnf.ode import take_rows
        >>> field, x = nn.Linear(3, 3), torch.randn(4, 3)
        >>> estimate = Hutchinson()
        >>> probe = take_rows(estimate.constants(field, x), None)
        >>> module = type("Field", (nn.Module,), {"forward": lambda self, t, x: 2 * x})()
        >>> estimate(module, torch.tensor(0.0), x, None, probe)[1]
        tensor([6., 6., 6., 6.])
    """

    noise: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        if self.noise not in ("rademacher", "gaussian"):
            raise ValueError(f"Expected noise to be rademacher or gaussian; got {self.noise!r}")

    def constants(self, field: nn.Module, x: Tensor) -> tuple[Tensor | PerRow, ...]:
        """A fresh probe of x's shape, one for each row."""
        if self.noise == "gaussian":
            return (PerRow(torch.randn_like(x)),)
        return (PerRow(torch.randint_like(x, 0, 2) * 2 - 1),)

    def __call__(
        self,
        field: nn.Module,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        constants: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The velocity and the estimate of its divergence."""
        (probe,) = constants
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x = _differentiable(x)
            velocity = velocity_of(field, t, x, context)
            product = _pull_back(velocity, x, probe, differentiable, batched=False)
            trace = (product * probe).sum(-1)
        return (velocity, trace) if differentiable else (velocity.detach(), trace.detach())


DIVERGENCES: dict[str, Divergence] = {
    "autograd": AutogradTrace(),
    "hutchinson": Hutchinson(),
    "hutchinson-gaussian": Hutchinson("gaussian"),
}


def choose_divergence(name: str, field: nn.Module, dim: int) -> Divergence:
    """The divergence that `name` stands for with this field.

    Args:
        name: `"exact"`: the field's own trace, or else by autograd. `"auto"`: the field's closed
            form where it has one; else exact up to dimension 32; above that Hutchinson. Or a name
            in `DIVERGENCES`.
        field: The vector field.
        dim: Size of its state.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from cnf.fields import ConcatSquash
        >>> choose_divergence("auto", ConcatSquash(100, hidden=(8, 8)), 100)
        FieldTrace()
        >>> choose_divergence("auto", nn.Linear(100, 100), 100)
        Hutchinson(noise='rademacher')
    """
    exact = FieldTrace() if isinstance(field, TracedField) else AutogradTrace()
    closed_form = isinstance(field, TracedField) and field.trace == "closed form"
    if name == "exact":
        return exact
    if name == "auto":
        return exact if closed_form or dim <= LARGEST_EXACT_DIM else Hutchinson()
    if name not in DIVERGENCES:
        names = ", ".join(["auto", "exact", *DIVERGENCES])
        raise ValueError(f"Expected divergence to be one of {names}; got {name!r}")
    return DIVERGENCES[name]


def velocity_of(field: nn.Module, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """The field's velocity; without a context it is called as `field(t, x)`."""
    velocity: Tensor = field(t, x) if context is None else field(t, x, context)
    if velocity.shape != x.shape:
        raise ValueError(
            f"Expected the field to return the shape of x, {tuple(x.shape)}; "
            f"got {tuple(velocity.shape)}"
        )
    return velocity


def _traced(field: nn.Module) -> TracedField:
    assert isinstance(field, TracedField)
    return field


def _differentiable(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _pull_back(
    velocity: Tensor, x: Tensor, cotangent: Tensor, create_graph: bool, *, batched: bool
) -> Tensor:
    """The vector-Jacobian product; zero where the velocity does not depend on x."""
    if not velocity.requires_grad:
        return torch.zeros_like(cotangent)
    options: dict[str, Any] = {"create_graph": create_graph, "is_grads_batched": batched}
    (product,) = torch.autograd.grad(
        velocity, x, cotangent, retain_graph=True, allow_unused=True, **options
    )
    return torch.zeros_like(cotangent) if product is None else product
