"""Vector fields as a solve takes them, and the base class of the toolkit's fields."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnf.fields.activations import find_activation
from cnf.fields.analytic import BatchSizes
from cnf.ode import Linearization, PerRow, take_rows
from cnf.ode.arguments import module_parameters
from cnf.utils.angles import circular_columns
from cnf.utils.registry import constructor_arguments

_SIZES_FROM_ONE = ("dim", "harmonics", "rank")
_SIZES_FROM_ZERO = ("context_dim", "time_features", "x_features")


@dataclass(frozen=True)
class Traced:
    """A velocity with its divergence.

    Attributes:
        velocity: Shape (rows, dim).
        trace: Its divergence, shape (rows,).
        estimates: The estimates whose mean the trace is, (rows, probes); None where it is exact.
        products: The Jacobian's products with the probes, or its columns where the trace is exact,
            (K, rows, dim); None where none were computed.
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
        trace: The cost of an exact trace: `"closed form"`, the same in any dimension;
            `"tangents"`, one pass for each dimension; `"autograd"`, one vector-Jacobian product.
    """

    trace: Literal["closed form", "tangents", "autograd"] = "autograd"

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

    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity, and products of its Jacobian or of the transpose with each vector.

        Shapes: vectors (K, rows or 1, dim) → (rows, dim), (K, rows, dim).
        """
        return self.transposed_products(stage, x, vectors)

    def transposed_products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity, and vector-Jacobian products by autograd; shapes as in `products`.

        They are differentiable where autograd records, and only there.
        """
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            velocity = self.eager().velocity(stage, x)
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

    def jacobian(self, stage: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity (rows, dim) and its transposed Jacobian, ∂f_i/∂x_j at [row, j, i]."""
        velocity, rows = self.transposed_products(stage, x, unit_vectors(x))
        return velocity, rows.permute(1, 2, 0)

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

    def compiled(self, sizes: BatchSizes) -> Self:
        """Return this field with its evaluations compiled, for one number of rows each or for any.

        Raises:
            ValueError: The field has nothing to compile.
        """
        raise ValueError(
            "Expected a field of the concat-squash family for compile=True; got "
            f"{type(self).__name__}. Compile a module of your own by torch.compile"
        )

    def eager(self) -> Self:
        """Return this field with nothing compiled."""
        return self

    def at(self, t: Tensor, context: Tensor | None = None, *, trace: bool = False) -> Any:
        """Return the stage at a time (scalar or (rows, 1)), with the trace's tensors if asked."""
        constants = take_rows(self.constants(context), None)
        extra = self.trace_constants() if trace else None
        return self.prepare(t.unsqueeze(0), constants, extra)[0]


class TracedField(nn.Module, VectorField):
    """A field of the toolkit, with its Jacobian's products and trace, that can be saved.

    Its constructor takes what the field uses, and stores what makes the field anew in attributes
    of the same names.

    Attributes:
        dim: Size of x.
        context_dim: Size of the context, 0 without one.
        circular: The columns of x that are angles, in radians.
    """

    dim: int
    context_dim: int = 0
    circular: tuple[int, ...] = ()

    def _set_arguments(
        self,
        dim: int,
        hidden: Sequence[int],
        activation: str,
        context_dim: int = 0,
        circular: Sequence[int] = (),
        harmonics: int = 1,
        **others: Any,
    ) -> None:
        """Check a constructor's arguments, and store each as the attribute of its name."""
        sizes = {"dim": dim, "context_dim": context_dim, "harmonics": harmonics, **others}
        for least, names in enumerate((_SIZES_FROM_ZERO, _SIZES_FROM_ONE)):
            for name in names:
                if sizes.get(name, least) < least:
                    raise ValueError(f"Expected {name} of at least {least}; got {sizes[name]}")
        self.hidden = tuple(hidden)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"Expected at least one hidden width, each at least 1; got hidden = {self.hidden}"
            )
        self.activation, self.sigma = activation, find_activation(activation)
        self.dim, self.context_dim, self.harmonics = dim, context_dim, harmonics
        self.circular = circular_columns(circular, dim)
        for name, value in others.items():
            setattr(self, name, value)

    def jacobian(self, stage: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and its transposed Jacobian; by `products` where a field has them."""
        if type(self).products is VectorField.products:
            return super().jacobian(stage, x)
        velocity, columns = self.products(stage, x, unit_vectors(x))
        return velocity, columns.transpose(0, 1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments (without weights), JSON-ready."""
        return constructor_arguments(self)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

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
    """

    module: nn.Module

    def constants(self, context: Tensor | None) -> Any:
        return module_parameters(self.module), None if context is None else PerRow(context)

    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> Sequence[Any]:
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


def as_field(module: nn.Module, compiled: BatchSizes | None = None) -> VectorField:
    """Return a module as a vector field; the toolkit's fields are returned as they are.

    Args:
        module: The module.
        compiled: The numbers of rows that its evaluations are compiled for; not compiled when None.

    Raises:
        ValueError: The module cannot be compiled.
    """
    field = module if isinstance(module, TracedField) else ModuleField(module)
    return field if compiled is None else field.compiled(compiled)


def trace_of_columns(velocity: Tensor, columns: Tensor) -> Traced:
    """Return the velocity with the trace of its Jacobian, given whole, shape (dim, rows, dim)."""
    return Traced(velocity, columns.diagonal(dim1=0, dim2=2).sum(-1), products=columns)


def unit_vectors(x: Tensor) -> Tensor:
    """Return the unit vectors, shape (dim, 1, dim)."""
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1)
