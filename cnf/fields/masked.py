"""A field of the coordinates that are present in each row."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from cnf.fields import FIELDS, make_field
from cnf.fields.field import TracedField
from cnf.ode import PerRow
from cnf.utils.registry import name_of


class Masked(TracedField):
    """A field of the present coordinates, v = m ∘ f(t, m ∘ x, c), tr = Σ_j m_j ∂f_j/∂x_j.

    The mask m ∈ {0, 1}^dim is the last `dim` entries of the context c. Absent coordinates have no
    velocity and no part in the trace, and present ones do not depend on them.

    Args:
        field: The field f, whose context includes the mask, or its configuration.

    Raises:
        ValueError: The field's context has no room for the mask.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, context_dim) → (rows, dim).

    Example:
        >>> import torch
        >>> from cnf.fields import Concat
        >>> field = Masked(Concat(2, hidden=(8, 8), context_dim=2))
        >>> x, mask = torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
        >>> field(torch.tensor(0.5), x, mask)[0, 1] == 0
        tensor(True)
    """

    trace: Literal["closed form", "tangents", "autograd"] = "tangents"

    def __init__(self, field: TracedField | dict[str, Any]) -> None:
        super().__init__()
        self.field = make_field(**field) if isinstance(field, dict) else field
        self.dim, self.context_dim = self.field.dim, self.field.context_dim
        self.circular = self.field.circular
        if self.context_dim < self.dim:
            raise ValueError(
                f"Expected a field whose context_dim is at least dim = {self.dim}, for the mask; "
                f"got {self.context_dim}: add {self.dim} to it"
            )

    def constants(self, context: Tensor | None) -> Any:
        assert context is not None
        return self.field.constants(context), PerRow(context[:, -self.dim :])

    def prepare(
        self, times: Tensor, constants: Any, trace_constants: Any = None
    ) -> Sequence[tuple[Any, Tensor]]:
        inner, mask = constants
        return [(stage, mask) for stage in self.field.prepare(times, inner)]

    def velocity(self, stage: tuple[Any, Tensor], x: Tensor) -> Tensor:
        inner, mask = stage
        return mask * self.field.velocity(inner, mask * x)

    def products(
        self, stage: tuple[Any, Tensor], x: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inner, mask = stage
        velocity, products = self.field.products(inner, mask * x, mask * vectors)
        return mask * velocity, mask * products

    def config(self) -> dict[str, Any]:
        name = name_of(type(self.field), FIELDS, "cnf.fields.FIELDS")
        return {"field": {"name": name, **self.field.config()}}
