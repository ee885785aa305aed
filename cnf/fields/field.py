"""Vector fields as a solve takes them, and the base class of the toolkit's fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnf.fields.activations import find_activation
from cnf.fields.analytic import BatchSizes
from cnf.ode import Linearization, PerRow, take_rows
from cnf.utils.angles import circular_columns


@dataclass(frozen=True)
class Traced:
    """A velocity with its divergence.

    Attributes:
        velocity: Shape (rows, dim).
        trace: Its divergence, shape (rows,).
        estimates: The estimate of each probe, shape (rows, probes), whose mean the trace is; None
            where it is exact.
        products: Products of the Jacobian (or its transpose), shape (K, rows, dim): with the
            probes where there are estimates, otherwise its columns; None where none were computed.
    """

    velocity: Tensor
    trace: Tensor
    estimates: Tensor | None = None
    products: Tensor | None = None


class VectorField(ABC):
    """A vector field f(t, x, c) in the parts that a solve takes it in.

    What depends on the weights and the context alone is computed once for each solve (`constants`),
    what depends on time besides once for each step (`prepare`), the rest for each state.

    Attributes:
        trace: The cost of an exact trace: `"closed form"`, a fixed number of products whatever the
            dimension; `"tangents"`, one more pass for each dimension; `"autograd"`, one
            vector-Jacobian product for each.
    """

    trace: Literal["closed form", "tangents", "autograd"]

    @abstractmethod
    def constants(self, context: Tensor | None) -> Any:
        """Return the velocity's tensors for a whole solve; those of rows wrapped in `PerRow`."""

    def trace_constants(self) -> Any:
        """Return the further tensors of the exact trace."""
        return None

    @abstractmethod
    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> Sequence[Any]:
        """Return the stages, the field at each of `times` of shape (times,) or (times, rows, 1)."""

    @abstractmethod
    def velocity(self, stage: Any, x: Tensor) -> Tensor:
        """Return the velocity (rows, dim) at x (rows, dim)."""

    @abstractmethod
    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity, and products of its Jacobian or of the transpose with each vector.

        Shapes: vectors (K, rows or 1, dim) → (rows, dim), (K, rows, dim).
        """

    def traced(self, stage: Any, x: Tensor) -> Traced:
        """Return the velocity and the exact trace of its Jacobian."""
        return trace_of_columns(*self.products(stage, x, unit_vectors(x)))

    def linearize(
        self, times: Tensor, constants: Any, trace_constants: Any
    ) -> Linearization | None:
        """Return `traced` at `times`, differentiated by hand; None to leave it to autograd.

        The states and slopes of the linearization have a column more, the log-density's.
        """
        return None

    def compiled(self, sizes: BatchSizes) -> VectorField:
        """Return this field with its evaluations compiled, for one number of rows each or for any.

        Raises:
            ValueError: The field has nothing to compile.
        """
        raise ValueError(
            "Expected a field of the concat-squash family for compile=True; got "
            f"{type(self).__name__}. Compile a module of your own by torch.compile"
        )

    def eager(self) -> VectorField:
        """Return this field with nothing compiled."""
        return self

    def at(self, t: Tensor, context: Tensor | None = None, *, trace: bool = False) -> Any:
        """Return the stage at a time (scalar or (rows, 1)), with the trace's tensors if asked."""
        constants = take_rows(self.constants(context), None)
        extra = self.trace_constants() if trace else None
        return self.prepare(t.unsqueeze(0), constants, extra)[0]


class TracedField(nn.Module, VectorField):
    """A field of the toolkit, with its Jacobian's products and trace, that can be saved.

    Attributes:
        dim: Size of x.
        hidden: Widths of the hidden layers.
        context_dim: Size of the context, 0 without one.
        activation: Name of the activation.
        circular: The columns of x that are angles, in radians.
        harmonics: The number of sines and of cosines of each angle among its features.
        name: Its name in `FIELDS`.
    """

    dim: int
    hidden: tuple[int, ...]
    context_dim: int
    activation: str
    circular: tuple[int, ...] = ()
    harmonics: int
    name: ClassVar[str]

    def _set_arguments(
        self,
        dim: int,
        hidden: Sequence[int],
        context_dim: int,
        activation: str,
        circular: Sequence[int],
        **features: float,
    ) -> None:
        """Check the constructor's arguments and store them, as attributes and for `config`.

        Raises:
            ValueError: A size or a column is out of range, or the activation unknown.
        """
        least = {"dim": 1, "context_dim": 0, "time_features": 0, "x_features": 0, "harmonics": 1}
        for name, size in {"dim": dim, "context_dim": context_dim, **features}.items():
            if name in least and size < least[name]:
                raise ValueError(f"Expected {name} of at least {least[name]}; got {size}")
        widths = tuple(hidden)
        if not widths or min(widths) < 1:
            raise ValueError(
                f"Expected at least one hidden width, each at least 1; got hidden = {widths}"
            )
        find_activation(activation)
        angles = circular_columns(circular, dim)
        arguments = {"dim": dim, "hidden": widths, "context_dim": context_dim}
        arguments |= {"activation": activation, "circular": angles, **features}
        for name, value in arguments.items():
            setattr(self, name, value)
        self.arguments = tuple(arguments)

    def config(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments (without weights), JSON-ready."""
        lists = {"hidden": [*self.hidden], "circular": [*self.circular]}
        return {name: lists.get(name, getattr(self, name)) for name in self.arguments}

    def extra_repr(self) -> str:
        """Return the sizes, for the module's repr."""
        return f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}"

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity (rows, dim) at x (rows, dim) and context (rows, context_dim).

        The time is a scalar for all rows, or has shape (rows, 1).
        """
        return self.velocity(self.at(t, context), x)

    def with_divergence(
        self, t: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity (rows, dim) and the exact trace of its Jacobian (rows,)."""
        traced = self.traced(self.at(t, context, trace=True), x)
        return traced.velocity, traced.trace


@dataclass(frozen=True)
class ModuleField(VectorField):
    """A module as a field: `forward(t, x)`, or `forward(t, x, context)` where there is a context.

    Its rows must not depend on one another. The Jacobian's products are autograd's.

    Attributes:
        module: The module.
    """

    module: nn.Module
    trace = "autograd"

    def constants(self, context: Tensor | None) -> Any:
        """Return the parameters and the context."""
        per_row = None if context is None else PerRow(context)
        return _parameters(self.module), per_row

    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> Sequence[Any]:
        """Return each time, with the constants."""
        return [(time, *constants) for time in times.unbind()]

    def velocity(self, stage: Any, x: Tensor) -> Tensor:
        """Return the module's value.

        Raises:
            ValueError: The value has another shape than x.
        """
        time, parameters, context = stage
        inputs = (time, x) if context is None else (time, x, context)
        velocity: Tensor = functional_call(self.module, parameters, inputs, tie_weights=False)
        if velocity.shape != x.shape:
            raise ValueError(
                f"Expected the field to return the shape of x, {tuple(x.shape)}; "
                f"got {tuple(velocity.shape)}"
            )
        return velocity

    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and vector-Jacobian products."""
        return vector_jacobian_products(self, stage, x, vectors)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters, each once for every module that holds it.

    `functional_call` would leave a module that appears under two names without its parameters.
    """
    return {
        f"{path}.{name}" if path else name: parameter
        for path, holder in module.named_modules()
        for name, parameter in holder.named_parameters(recurse=False)
    }


def as_field(module: nn.Module, compiled: BatchSizes | None = None) -> VectorField:
    """Return a module as a vector field; the toolkit's fields are returned as they are.

    Args:
        module: The module.
        compiled: The numbers of rows that its evaluations are compiled for; not compiled when None.

    Raises:
        ValueError: The module is to be compiled, and is not a field of the toolkit that can be.
    """
    field = module if isinstance(module, TracedField) else ModuleField(module)
    return field if compiled is None else field.compiled(compiled)


def trace_of_columns(velocity: Tensor, columns: Tensor) -> Traced:
    """Return the velocity with the trace of its Jacobian, given whole, shape (dim, rows, dim)."""
    return Traced(velocity, columns.diagonal(dim1=0, dim2=2).sum(-1), products=columns)


def unit_vectors(x: Tensor) -> Tensor:
    """Return the unit vectors, shape (dim, 1, dim)."""
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1)


def vector_jacobian_products(
    field: VectorField, stage: Any, x: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity, and vector-Jacobian products by autograd, for any field.

    The products are differentiable where autograd records, and only there. Shapes as in `products`.
    """
    recording, field = torch.is_grad_enabled(), field.eager()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        velocity = field.velocity(stage, x)
        cotangents = vectors.expand(len(vectors), *x.shape)
        products = None
        if velocity.requires_grad:
            options: dict[str, Any] = {"create_graph": recording, "retain_graph": True}
            (products,) = torch.autograd.grad(
                velocity, x, cotangents, allow_unused=True, is_grads_batched=True, **options
            )
        if products is None:  # the velocity does not depend on x
            products = torch.zeros_like(cotangents)
    return (velocity, products) if recording else (velocity.detach(), products.detach())
