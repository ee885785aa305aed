"""The layers that are made of a vector field."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cnf.fields import FIELDS, WRAPPERS, TracedField, VectorField, as_field, make_field
from cnf.layers.layer import Layer
from cnf.utils.memory import hold_freed_memory
from cnf.utils.registry import name_of


class FieldLayer(Layer):
    """An invertible layer that moves rows along a vector field, from t = 0 to 1 at the data.

    Args:
        field: A `TracedField` or its configuration, or any module with `forward(t, x)` or
            `forward(t, x, context)` whose rows do not depend on one another.
    """

    field: nn.Module

    def __init__(self, field: nn.Module | dict[str, Any]) -> None:
        super().__init__()
        self.field = make_field(**field) if isinstance(field, dict) else field
        if isinstance(self.field, TracedField):
            self.circular = self.field.circular
        hold_freed_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        hold_freed_memory()  # in a process that unpickles the layer, and makes none

    @property
    def vector_field(self) -> VectorField:
        """The field as it is evaluated."""
        return as_field(self.field)

    @abstractmethod
    def path(
        self, z: Tensor, times: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return the states at `times` of the trajectories that start at `z` at the first time.

        Shapes: (rows, dim) → (times, rows, dim).
        """

    def velocity(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Evaluate the field.

        Shapes: a scalar or (rows, 1), (rows, dim), (rows, context_dim) → (rows, dim).
        """
        self._check(x, context)
        return self.vector_field.velocity(self.vector_field.at(t, context), x)

    def field_config(self) -> dict[str, Any]:
        """Return the configuration of the field, ready for JSON."""
        registry = WRAPPERS if type(self.field) in WRAPPERS.values() else FIELDS
        name = name_of(type(self.field), registry, "cnf.fields.FIELDS")
        assert isinstance(self.field, TracedField)
        return {"name": name, **self.field.config()}

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        """Check the shapes of rows and context against the field's."""
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
